%% Runs the cases of stacks.erl and its like, and knows in which line each of their marked calls stands (stacks.hrl).
%%
%%   run(MODULE, CASE, BLOCKS, BYTES)   MODULE:scene(CASE, BLOCKS, BYTES) in a process whose first function is process/5;
%%                                      returns what MODULE:lost/0 has grown by
%%   lines()                            [{MARK, LINE}] of each mark that was passed so far
-module(stacks_marks).
-export([pass/2, lines/0, run/4, process/5, calls/2, wait/1]).
-include("stacks.hrl").

pass(Mark, Line) ->
    table(),
    ets:insert(?MODULE, {Mark, Line}).

lines() ->
    table(),
    lists:sort(ets:tab2list(?MODULE)).

run(Module, Case, Blocks, Bytes) ->
    table(),
    Before = Module:lost(),
    ok = wait(spawn_monitor(?MODULE, process, [self(), Module, Case, Blocks, Bytes])),
    {lost, Module:lost() - Before}.

process(_From, Module, Case, Blocks, Bytes) ->
    Result = ?AT(process, Module:scene(Case, Blocks, Bytes)),
    exit({ended, Result =/= false}).

%% The end of a process of a case, whose reason is `{ended, true}`.
wait({Pid, Monitor}) ->
    receive {'DOWN', Monitor, process, Pid, Reason} ->
        {ended, true} = Reason,
        ok
    end.

%% Calls a fun from outside of its module, so that no compiler puts it where it is called.
calls(Fun, Argument) ->
    [?AT(calls, Fun(Argument))].

%% Belongs to a process that never ends.
table() ->
    case ets:whereis(?MODULE) of
        undefined ->
            Self = self(),
            Keeper = spawn(fun() ->
                _ = ets:new(?MODULE, [named_table, public]),
                Self ! {up, self()},
                receive never -> ok end
            end),
            receive {up, Keeper} -> ok end;
        _Table -> ok
    end.
