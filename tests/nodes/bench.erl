%% The benchmark's loads (bench.c), and two in Erlang alone: one that asks nothing for memory, and one that builds and
%% drops so much of it that the VM's carriers come and go.
%%
%% tight(Ms, Smallest, Largest), deep(Ms, Frames) and paced(Ms, PairsPerSecond, Smallest, Largest) -> {Pairs, CpuNs, WallNs}
%% reductions(Iterations) -> {Iterations, CpuNs, WallNs}
%% carriers(Rounds) -> {Rounds, CpuNs, WallNs}
-module(bench).
-export([tight/3, deep/2, paced/4, reductions/1, carriers/1, process_cpu/0]).
-on_load(load/0).

load() -> erlang:load_nif(node_control:nif_path(?MODULE), 0).

reductions(Iterations) ->
    Begin = erlang:monotonic_time(nanosecond),
    Cpu = process_cpu(),
    _ = loop(Iterations, 1),
    {Iterations, process_cpu() - Cpu, erlang:monotonic_time(nanosecond) - Begin}.

%% The sum stays a small integer, so the loop builds no term on the heap.
loop(0, Sum) -> Sum;
loop(Left, Sum) -> loop(Left - 1, (Sum * 31 + Left) band 16#ffffff).

carriers(Rounds) ->
    Begin = erlang:monotonic_time(nanosecond),
    Cpu = process_cpu(),
    ok = build_and_drop(Rounds),
    {Rounds, process_cpu() - Cpu, erlang:monotonic_time(nanosecond) - Begin}.

%% Binaries, rows of a table and a list, some 10 MB of each, of a process that ends.
build_and_drop(0) ->
    ok;
build_and_drop(Left) ->
    {_Pid, Monitor} = spawn_monitor(fun() ->
        Binaries = [binary:copy(<<Number>>, 100000) || Number <- lists:seq(1, 100)],
        Table = ets:new(rows, []),
        [ets:insert(Table, {Number, lists:duplicate(20, Number)}) || Number <- lists:seq(1, 20000)],
        List = [{Number, Number + 1} || Number <- lists:seq(1, 200000)],
        exit({dropped, length(Binaries), ets:info(Table, size), length(List)})
    end),
    receive {'DOWN', Monitor, process, _, {dropped, 100, 20000, 200000}} -> build_and_drop(Left - 1) end.

tight(_Ms, _Smallest, _Largest) -> erlang:nif_error(not_loaded).
deep(_Ms, _Frames) -> erlang:nif_error(not_loaded).
paced(_Ms, _PairsPerSecond, _Smallest, _Largest) -> erlang:nif_error(not_loaded).
process_cpu() -> erlang:nif_error(not_loaded).
