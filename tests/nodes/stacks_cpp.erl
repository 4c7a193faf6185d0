%% The NIFs of stacks_cpp.cc. `run/3` runs a case, which is a way to leak.
-module(stacks_cpp).
-export([run/3, scene/3, leak/3, lost/0]).
-on_load(load/0).
-include("stacks.hrl").

load() -> erlang:load_nif(node_control:nif_path(?MODULE), 0).

run(Way, Blocks, Bytes) -> stacks_marks:run(?MODULE, Way, Blocks, Bytes).

scene(Way, Blocks, Bytes) ->
    ok = ?AT(cpp_scene, leak(Way, Blocks, Bytes)).

leak(_Way, _Blocks, _Bytes) -> erlang:nif_error(not_loaded).
lost() -> erlang:nif_error(not_loaded).
