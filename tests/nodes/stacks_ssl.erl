%% The NIFs of stacks_ssl.c, and those of Erlang's own crypto. `run/3` runs a case, which is a way to leak, or
%% `random` or `key`: then crypto makes `Blocks` times `Bytes` random bytes, or a pair of keys.
-module(stacks_ssl).
-export([run/3, scene/3, leak/3, lost/0]).
-on_load(load/0).
-include("stacks.hrl").

%% crypto loads libcrypto.
load() ->
    {module, crypto} = code:ensure_loaded(crypto),
    erlang:load_nif(node_control:nif_path(?MODULE), 0).

run(Way, Blocks, Bytes) -> stacks_marks:run(?MODULE, Way, Blocks, Bytes).

scene(random, Blocks, Bytes) -> random(Blocks, Bytes);
scene(key, Blocks, _Bytes) -> key(Blocks);
scene(Way, Blocks, Bytes) -> called_back(Way, Blocks, Bytes).

called_back(Way, Blocks, Bytes) ->
    ok = ?AT(ssl_scene, leak(Way, Blocks, Bytes)).

random(0, _Bytes) -> ok;
random(Blocks, Bytes) ->
    <<_:Bytes/binary>> = ?AT(random, crypto:strong_rand_bytes(Bytes)),
    random(Blocks - 1, Bytes).

key(0) -> ok;
key(Blocks) ->
    {_Public, _Private} = ?AT(key, crypto:generate_key(ecdh, secp256r1)),
    key(Blocks - 1).

leak(_Way, _Blocks, _Bytes) -> erlang:nif_error(not_loaded).
lost() -> erlang:nif_error(not_loaded).
