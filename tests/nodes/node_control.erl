%% Lets a test, the demo or the benchmark steer a node over its stdin and stdout.
%%
%%   erl -noshell -pa DIR -s node_control
%%
%% prints the line `ready` when the node is up, and then answers each line with exactly one line. At the end of stdin
%% the node halts, so it never outlives the program that started it.
%%
%%   leak KIND BYTES BLOCKS RATE   leak BLOCKS blocks of BYTES bytes, RATE times a second, until...  -> ok
%%   leak KIND off                 ...this; the answer comes after the last block                    -> ok
%%   once KIND BYTES BLOCKS        leak once, now                                                    -> leaked KIND=TOTAL
%%   churn on|off                  balanced malloc and free, about 100,000 pairs a second            -> ok
%%   counters                      bytes that each kind has leaked so far                            -> counters KIND=BYTES ...
%%   ticker                        largest gap between two 5 ms ticks since the last question        -> ticker max_us=N ticks=N
%%   call MODULE FUNCTION WORD...  apply an exported function to integers and atoms                  -> called TERM
%%   pid                           the operating system's process id                                 -> pid N
%%   stop                          halt with status 0                                                -> stopped
%% and `error TERM` for what failed.
%%
%% Kinds: malloc calloc realloc posix_memalign aligned_alloc mmap dirty thread (leaky.c), new (leaky_cpp.cc); through
%% the VM's own allocators: enif_alloc (leaky.c), ets (rows of BYTES bytes), binary (binaries of BYTES bytes, kept by
%% a process); and those of scenario.erl. RATE is at most 1000.
-module(node_control).
-export([start/0, nif_path/1]).

start() ->
    log_to_stderr(),
    spawn(fun() ->
        Ticker = spawn_opt(fun() -> tick(now_us(), 0, 0) end, [{priority, high}]),
        say("ready", []),
        commands(#{ticker => Ticker})
    end).

%% stdout carries answers only.
log_to_stderr() ->
    _ = logger:remove_handler(default),
    ok = logger:add_handler(default, logger_std_h, #{config => #{type => standard_error}}).

%% Where module `Module` finds its NIF library, without the ending.
nif_path(Module) ->
    Folder = case os:getenv("NODE_NIF_DIR") of
        false -> filename:dirname(code:which(Module));
        Other -> Other
    end,
    filename:join(Folder, atom_to_list(Module)).

commands(Running) ->
    case io:get_line("") of
        Line when is_list(Line) ->
            commands(answer(string:lexemes(Line, " \n"), Running));
        _EndOrError ->
            halt(0)
    end.

answer(["stop"], _Running) ->
    say("stopped", []),
    halt(0);
answer(Words, Running) ->
    try command(Words, Running) of
        {Answer, After} -> say("~ts", [Answer]), After
    catch
        _Class:Reason -> say("error ~0p", [Reason]), Running
    end.

command(["leak", Kind, "off"], Running) ->
    {"ok", stop_worker(Kind, Running)};
command(["leak", Kind, Bytes, Blocks, Rate], Running) ->
    Leak = leaker(list_to_atom(Kind), list_to_integer(Bytes), list_to_integer(Blocks)),
    Pause = max(1, 1000 div list_to_integer(Rate)),
    {"ok", start_worker(Kind, fun() -> paced(Leak, Pause) end, stop_worker(Kind, Running))};
command(["once", Kind, Bytes, Blocks], Running) ->
    {Kind_, Leaked} = (leaker(list_to_atom(Kind), list_to_integer(Bytes), list_to_integer(Blocks)))(),
    {io_lib:format("leaked ~s=~b", [Kind_, Leaked]), Running};
command(["churn", "on"], Running) ->
    {module, leaky} = code:ensure_loaded(leaky),
    Churn = fun() -> leaky:churn(100, 4096) end,
    {"ok", start_worker(churn, fun() -> paced(Churn, 1) end, stop_worker(churn, Running))};
command(["churn", "off"], Running) ->
    {"ok", stop_worker(churn, Running)};
command(["counters"], Running) ->
    All = lists:append([Module:counters() || Module <- [leaky, leaky_cpp, scenario], erlang:module_loaded(Module)]) ++ vm_counters(),
    {["counters" | [io_lib:format(" ~s=~b", [Kind, Bytes]) || {Kind, Bytes} <- All]], Running};
command(["ticker"], #{ticker := Ticker} = Running) ->
    Ticker ! {largest, self()},
    receive {largest, Gap, Ticks} -> {io_lib:format("ticker max_us=~b ticks=~b", [Gap, Ticks]), Running} end;
command(["call", Module, Function | Arguments], Running) ->
    Result = apply(list_to_atom(Module), list_to_atom(Function), [argument(Word) || Word <- Arguments]),
    {io_lib:format("called ~0p", [Result]), Running};
command(["pid"], Running) ->
    {"pid " ++ os:getpid(), Running}.

argument(Word) ->
    try list_to_integer(Word)
    catch error:badarg -> list_to_atom(Word)
    end.

leaker(new, Bytes, Blocks) ->
    {module, leaky_cpp} = code:ensure_loaded(leaky_cpp),
    fun() -> leaky_cpp:leak(new, Bytes, Blocks) end;
leaker(Kind, Bytes, Blocks) when Kind =:= ets; Kind =:= binary ->
    keeper(),
    fun() -> keep(Kind, Bytes, Blocks) end;
leaker(Kind, Bytes, Blocks) ->
    Knows = fun(Module) ->
        code:ensure_loaded(Module) =:= {module, Module} andalso lists:keymember(Kind, 1, Module:counters())
    end,
    case lists:search(Knows, [leaky, scenario]) of
        {value, Module} -> fun() -> Module:leak(Kind, Bytes, Blocks) end;
        false -> error({unknown_kind, Kind})
    end.

%% A worker ends between two rounds of its work, and only then is its end reported.
start_worker(Name, Work, Running) ->
    Running#{Name => spawn_monitor(Work)}.

stop_worker(Name, Running) ->
    case maps:take(Name, Running) of
        {{Pid, Monitor}, Rest} ->
            Pid ! stop,
            receive {'DOWN', Monitor, process, Pid, _Reason} -> Rest end;
        error ->
            Running
    end.

%% Keeps its pace by the clock: rounds that were late are made up for, but not more than two, so that a node that was kept
%% from working for a while does not do all of it at once.
paced(Work, Pause) ->
    paced(Work, Pause, erlang:monotonic_time(millisecond)).

paced(Work, Pause, Due) ->
    Work(),
    Next = max(Due, erlang:monotonic_time(millisecond) - 2 * Pause) + Pause,
    receive stop -> ok
    after max(0, Next - erlang:monotonic_time(millisecond)) ->
        %% A NIF counts as one reduction however long it takes: work that is late would keep the scheduler to itself.
        true = erlang:yield(),
        paced(Work, Pause, Next)
    end.

%% Memory of the VM: a table and the binaries in the state of a process.
keeper() ->
    case whereis(keeper) of
        undefined ->
            Self = self(),
            {Pid, Monitor} = spawn_monitor(fun() ->
                register(keeper, self()),
                _ = ets:new(kept_rows, [named_table, public]),
                ets:insert(kept_rows, [{{bytes, ets}, 0}, {{bytes, binary}, 0}]),
                Self ! {up, self()},
                keep_binaries([])
            end),
            receive
                {up, Pid} -> true = erlang:demonitor(Monitor);
                {'DOWN', Monitor, process, Pid, Reason} -> exit(Reason)
            end;
        _Pid ->
            true
    end.

keep_binaries(Kept) ->
    receive {keep, Binary} -> keep_binaries([Binary | Kept]) end.

keep(Kind, Bytes, Blocks) ->
    [keep_one(Kind, Bytes) || _ <- lists:seq(1, Blocks)],
    {Kind, ets:update_counter(kept_rows, {bytes, Kind}, Bytes * Blocks)}.

keep_one(ets, Bytes) -> ets:insert(kept_rows, {make_ref(), lists:duplicate(max(1, Bytes div 16), $x)});
keep_one(binary, Bytes) -> keeper ! {keep, binary:copy(<<"x">>, Bytes)}.

vm_counters() ->
    case ets:whereis(kept_rows) of
        undefined -> [];
        _Table -> [{Kind, ets:lookup_element(kept_rows, {bytes, Kind}, 2)} || Kind <- [ets, binary]]
    end.

%% A question counts the gap that it falls into, and does not end it: a stall may be what delayed the question.
tick(Last, Largest, Ticks) ->
    receive
        {largest, From} ->
            From ! {largest, max(Largest, now_us() - Last), Ticks},
            tick(Last, 0, 0)
    after max(0, 5 - (now_us() - Last) div 1000) ->
        Now = now_us(),
        tick(Now, max(Largest, Now - Last), Ticks + 1)
    end.

now_us() -> erlang:monotonic_time(microsecond).

say(Format, Arguments) ->
    io:put_chars([io_lib:format(Format, Arguments), $\n]).
