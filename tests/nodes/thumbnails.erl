%% The demo's service: takes "uploads", makes a thumbnail of each through a NIF, and keeps it in a table.
%%
%% Two things grow: native memory, by a leak in the NIF (thumbnails.c), and the VM's own, by the table.
%% `start/0` begins with 1000 uploads a second; `leaked/0` says how many bytes the NIF has lost so far.
-module(thumbnails).
-export([start/0, leaked/0, render/1]).
-on_load(load/0).

load() -> erlang:load_nif(node_control:nif_path(?MODULE), 0).

start() ->
    _ = spawn(fun() ->
        _ = ets:new(thumbnail_cache, [named_table]),
        accept_uploads(1, erlang:monotonic_time(millisecond))
    end),
    ok.

%% 10 uploads each 10 ms.
accept_uploads(Number, Due) ->
    ok = handle_uploads(Number, Number + 9),
    Next = Due + 10,
    receive stop -> ok
    after max(0, Next - erlang:monotonic_time(millisecond)) -> accept_uploads(Number + 10, Next)
    end.

handle_uploads(Upload, Last) when Upload > Last -> ok;
handle_uploads(Upload, Last) ->
    Upload = handle_upload(Upload),
    handle_uploads(Upload + 1, Last).

handle_upload(Upload) ->
    Thumbnail = make_thumbnail(Upload),
    true = cache_thumbnail(Upload, Thumbnail),
    Upload.

make_thumbnail(Upload) ->
    Thumbnail = render(Upload),
    true = byte_size(Thumbnail) > 0,
    Thumbnail.

cache_thumbnail(Upload, Thumbnail) ->
    ets:insert(thumbnail_cache, {{upload, Upload}, Thumbnail, visitors(Upload)}).

%% Something for the table itself to hold, beside the binary.
visitors(Upload) -> lists:seq(Upload, Upload + 31).

render(_Upload) -> erlang:nif_error(not_loaded).
leaked() -> erlang:nif_error(not_loaded).
