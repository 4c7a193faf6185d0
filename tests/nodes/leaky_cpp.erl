%% The NIFs of leaky_cpp.cc; loaded as leaky.erl loads its own.
-module(leaky_cpp).
-export([leak/3, leak_new/2, counters/0]).
-on_load(load/0).

load() -> erlang:load_nif(node_control:nif_path(?MODULE), 0).

leak(new, Bytes, Blocks) ->
    Leaked = leak_new(Bytes, Blocks),
    {new, Leaked}.

leak_new(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
counters() -> erlang:nif_error(not_loaded).
