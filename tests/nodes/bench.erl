%% The benchmark's loads (bench.c), and one in Erlang alone that asks nothing for memory.
%%
%% tight(Ms, Smallest, Largest), deep(Ms, Frames) and paced(Ms, PairsPerSecond, Smallest, Largest) -> {Pairs, CpuNs, WallNs}
%% reductions(Iterations) -> {Iterations, CpuNs, WallNs}
-module(bench).
-export([tight/3, deep/2, paced/4, reductions/1, process_cpu/0]).
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

tight(_Ms, _Smallest, _Largest) -> erlang:nif_error(not_loaded).
deep(_Ms, _Frames) -> erlang:nif_error(not_loaded).
paced(_Ms, _PairsPerSecond, _Smallest, _Largest) -> erlang:nif_error(not_loaded).
process_cpu() -> erlang:nif_error(not_loaded).
