%% The NIFs of leaky.c. `leak/3` is the way in: an Erlang function of its own on every stack.
%%
%% The library is loaded from the folder in the environment variable NODE_NIF_DIR, else from that of the .beam file.
-module(leaky).
-export([leak/3, churn/2, counters/0]).
-export([leak_malloc/2, leak_calloc/2, leak_realloc/2, leak_posix_memalign/2, leak_aligned_alloc/2, leak_mmap/2,
         leak_enif_alloc/2, leak_dirty/2, leak_thread/2]).
-on_load(load/0).

load() -> erlang:load_nif(node_control:nif_path(?MODULE), 0).

leak(Kind, Bytes, Blocks) ->
    Leaked = take(Kind, Bytes, Blocks),
    {Kind, Leaked}.

take(malloc, Bytes, Blocks) -> leak_malloc(Bytes, Blocks);
take(calloc, Bytes, Blocks) -> leak_calloc(Bytes, Blocks);
take(realloc, Bytes, Blocks) -> leak_realloc(Bytes, Blocks);
take(posix_memalign, Bytes, Blocks) -> leak_posix_memalign(Bytes, Blocks);
take(aligned_alloc, Bytes, Blocks) -> leak_aligned_alloc(Bytes, Blocks);
take(mmap, Bytes, Blocks) -> leak_mmap(Bytes, Blocks);
take(enif_alloc, Bytes, Blocks) -> leak_enif_alloc(Bytes, Blocks);
take(dirty, Bytes, Blocks) -> leak_dirty(Bytes, Blocks);
take(thread, Bytes, Blocks) -> leak_thread(Bytes, Blocks).

leak_malloc(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_calloc(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_realloc(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_posix_memalign(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_aligned_alloc(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_mmap(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_enif_alloc(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_dirty(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_thread(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
churn(_Count, _Bytes) -> erlang:nif_error(not_loaded).
counters() -> erlang:nif_error(not_loaded).
