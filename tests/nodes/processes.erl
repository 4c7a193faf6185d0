%% Processes, schedulers and ports in known states, and what the node itself says of them.
%%
%%   call processes park        processes that wait, with heaps and stacks of several sizes
%%   call processes parked      {Pid, words of the heap in use, of the stack, of the block, M, F, A of what waits} of each
%%   call processes all         every process
%%   call processes schedulers  {normal, dirty CPU, dirty IO}
%%   call processes busy        processes that run all the time: {on normal schedulers, on a dirty CPU one, on a dirty IO one}
%%   call processes rest        ends them
%%   call processes open        ports of several drivers
%%   call processes ports       {Port, its name} of each
-module(processes).
-export([park/0, parked/0, all/0, schedulers/0, busy/0, rest/0, open/0, ports/0, wait/0]).

park() ->
    [register(name(N), spawn(fun() -> lists:seq(1, N * 10), deep(N, lists:seq(1, N * 7)) end)) || N <- parked_sizes()],
    ok.

parked_sizes() -> [1, 2, 5, 10, 100, 1000].

name(N) -> list_to_atom("parked_" ++ integer_to_list(N)).

%% Each level has a frame, and `Held` stays on the heap.
deep(0, Held) -> wait(), Held;
deep(N, Held) -> [N | deep(N - 1, Held)].

wait() -> receive stop -> ok end.

parked() -> [told(whereis(name(N))) || N <- parked_sizes()].

told(Pid) ->
    {current_function, {M, F, A}} = process_info(Pid, current_function),
    {garbage_collection_info, Heap} = process_info(Pid, garbage_collection_info),
    [Used, Stack, Block] = [proplists:get_value(Key, Heap) || Key <- [heap_size, stack_size, heap_block_size]],
    {Pid, Used, Stack, Block, M, F, A}.

all() -> erlang:processes().

schedulers() ->
    list_to_tuple([erlang:system_info(Key) || Key <- [schedulers, dirty_cpu_schedulers, dirty_io_schedulers]]).

busy() ->
    Loops = [spawn(fun() -> loop(0) end) || _ <- lists:seq(1, erlang:system_info(schedulers))],
    Cpu = spawn(fun() -> dirty(cpu) end),
    Io = spawn(fun() -> dirty(io) end),
    register(busy, spawn(fun() -> receive {stop, From} -> [exit(Pid, kill) || Pid <- [Cpu, Io | Loops]], From ! stopped end end)),
    {Loops, [Cpu], [Io]}.

loop(N) -> loop(N + 1).

%% BIFs of the VM for its own tests.
dirty(cpu) -> erts_debug:dirty_cpu(wait, 1000), dirty(cpu);
dirty(io) -> erts_debug:dirty_io(wait, 1000), dirty(io).

rest() ->
    busy ! {stop, self()},
    receive stopped -> ok end.

open() ->
    Self = self(),
    spawn(fun() ->
        Socket = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
        File = file:open([], [ram, read, write, binary]),
        Program = open_port({spawn, "cat"}, []),
        Descriptors = open_port({fd, 0, 1}, [out]),
        Self ! {open, Socket, File, Program, Descriptors},
        receive after infinity -> {Socket, File, Program, Descriptors} end
    end),
    receive {open, {ok, _}, {ok, _}, _, _} -> ok end.

ports() -> [{Port, Name} || Port <- erlang:ports(), {name, Name} <- [erlang:port_info(Port, name)]].
