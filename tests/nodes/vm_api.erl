%% The NIFs of vm_api.c. Ways are numbered as its `enum way`: 0 enif_alloc, 1 enif_realloc, 2 enif_alloc_resource, 3 the
%% same with monitors, 4 enif_alloc_binary, 5 enif_realloc_binary, 6 enif_make_new_binary, 7 driver_alloc,
%% 8 driver_realloc, 9 driver_alloc_binary, 10 driver_realloc_binary.
%%
%% `hold(Way, Bytes, Blocks)` keeps blocks in a process until `drop(Way)` ends it; all return bytes.
-module(vm_api).
-export([take/3, churn/3, hold/3, drop/1, tables/1, heaps/1, binaries/1, pairs/1, spawns/1]).
-on_load(load/0).

load() -> erlang:load_nif(node_control:nif_path(?MODULE), 0).

take(Way, Bytes, Blocks) -> take_blocks(Way, Bytes, Blocks).

churn(Way, Bytes, Blocks) -> churn_blocks(Way, Bytes, Blocks).

hold(Way, Bytes, Blocks) ->
    Self = self(),
    spawn(fun() ->
        true = register(name(Way), self()),
        Held = hand_out_blocks(Way, Bytes, Blocks),
        Self ! holds,
        receive {drop, From} -> From ! {dropped, length(Held)} end
    end),
    receive holds -> Bytes * Blocks end.

drop(Way) ->
    {_Pid, Monitor} = spawn_monitor(fun() -> ok end),
    receive {'DOWN', Monitor, process, _, _} -> ok end,
    Holder = monitor(process, name(Way)),
    name(Way) ! {drop, self()},
    Held = receive {dropped, Number} -> Number end,
    receive {'DOWN', Holder, process, _, _} -> ok end,
    %% What a process held is freed behind its end, and on the scheduler that it was allocated on.
    timer:sleep(300),
    Held.

name(Way) -> list_to_atom("holder_" ++ integer_to_list(Way)).

%% Work for which the VM needs carriers: rows of a table, the heap of a process, binaries. `Mib` of each.
tables(Mib) ->
    Self = self(),
    spawn(fun() ->
        Table = ets:new(carrier_rows, [public]),
        insert_rows(Table, Mib * 64),
        Self ! filled,
        receive never -> Table end
    end),
    receive filled -> Mib end.

insert_rows(_Table, 0) -> ok;
insert_rows(Table, Left) ->
    ets:insert(Table, {Left, lists:duplicate(1024, x)}),
    insert_rows(Table, Left - 1).

heaps(Mib) ->
    Self = self(),
    spawn(fun() ->
        Kept = grow_list(Mib * 65536, []),
        Self ! filled,
        receive never -> Kept end
    end),
    receive filled -> Mib end.

grow_list(0, Kept) -> Kept;
grow_list(Left, Kept) -> grow_list(Left - 1, [Left | Kept]).

binaries(Mib) ->
    Self = self(),
    spawn(fun() ->
        Kept = make_binaries(Mib * 16, []),
        Self ! filled,
        receive never -> Kept end
    end),
    receive filled -> Mib end.

make_binaries(0, Kept) -> Kept;
make_binaries(Left, Kept) -> make_binaries(Left - 1, [binary:copy(<<"x">>, 65536) | Kept]).

%% CPU nanoseconds of the node for `Count` processes that end at once.
spawns(Count) ->
    Before = bench:process_cpu(),
    spawn_each(Count),
    bench:process_cpu() - Before.

spawn_each(0) -> ok;
spawn_each(Left) ->
    {_Pid, Monitor} = spawn_monitor(fun() -> ok end),
    receive {'DOWN', Monitor, process, _, _} -> spawn_each(Left - 1) end.

take_blocks(_Way, _Bytes, _Blocks) -> erlang:nif_error(not_loaded).
churn_blocks(_Way, _Bytes, _Blocks) -> erlang:nif_error(not_loaded).
hand_out_blocks(_Way, _Bytes, _Blocks) -> erlang:nif_error(not_loaded).
pairs(_Count) -> erlang:nif_error(not_loaded).
