%% A module with a name as Elixir's compiler gives it.
-module('Elixir.MyApp.Worker').
-export([run/2]).
-include("stacks.hrl").

run(Blocks, Bytes) ->
    Leak = fun(Count) -> [?AT(worker_fun, stacks:leak(chain, Count, Bytes))] end,
    [?AT(worker, stacks_marks:calls(Leak, Blocks))].
