%% Workloads whose truth is known: memory that is kept, held, given back, or built and dropped.
%%
%% `leak(Kind, Bytes, Blocks)` keeps so many more for good, for node_control's `leak KIND BYTES BLOCKS RATE`. Kinds:
%%   pool library worker resource       scenario.c
%%   driver_malloc driver_alloc         scenario_drv.c
%%   process                            processes that wait (BYTES: of their heaps)
%%   heap                               lists on the heaps of processes, so many bytes each
%%   message                            messages of so many bytes that nobody receives
%%   atom                               atoms with names of so many bytes
%%   code                               modules (BYTES: of no meaning)
%%   port                               ports (BYTES: of no meaning)
%%
%% All other functions are for node_control's `call`: they return at once or when a state is reached, and what they have
%% started goes on until the node ends. Names begin with what is used; those with `PerSecond` keep their pace by the clock.
-module(scenario).
-export([leak/3, counters/0]).
-export([fragment_binaries/2, fragment_heaps/3, drop_binaries/2, retain/3, lazily_free/1]).
-export([churn/2, crypto/1, fill/3, fill_in/4, cache/3, burst/4, sessions/3, resizing/2, maps/2, threads_that_end/3,
         resources/2, enif_allocs/2, driver_allocs/2]).
-export([binaries/2, binary_pool/3, rows/2, rows_that_level_off/2, tables/2, processes/2, heap_waves/2, messages/2,
         timers/1, ports/1, known_atoms/1, files/1, text/1]).
-on_load(load/0).

-define(KINDS, [driver_malloc, driver_alloc, process, heap, message, atom, code, port]).

load() ->
    persistent_term:put(?MODULE, counters:new(length(?KINDS), [])),
    erlang:load_nif(node_control:nif_path(?MODULE), 0).

leak(Kind, Bytes, Blocks) ->
    Leaked = take(Kind, Bytes, Blocks),
    {Kind, Leaked}.

counters() ->
    native_counters() ++ [{Kind, counters:get(persistent_term:get(?MODULE), index(Kind))} || Kind <- ?KINDS].

index(Kind) -> index(Kind, ?KINDS, 1).
index(Kind, [Kind | _], Index) -> Index;
index(Kind, [_ | Kinds], Index) -> index(Kind, Kinds, Index + 1).

count(Kind, More) ->
    Counters = persistent_term:get(?MODULE),
    counters:add(Counters, index(Kind), More),
    counters:get(Counters, index(Kind)).

take(pool, Bytes, Blocks) -> leak_pool(Bytes, Blocks);
take(library, Bytes, Blocks) ->
    started(library, fun() ->
        ok = open_library(filename:join(filename:dirname(node_control:nif_path(?MODULE)), "scenario_lib.so"))
    end),
    leak_library(Bytes, Blocks);
take(worker, Bytes, Blocks) -> leak_worker(Bytes, Blocks);
take(resource, Bytes, Blocks) -> leak_resource(Bytes, Blocks);
take(driver_malloc, Bytes, Blocks) ->
    true = port_command(port(), <<0, Blocks:32, Bytes:32>>),
    count(driver_malloc, Bytes * Blocks);
take(driver_alloc, Bytes, Blocks) ->
    true = port_command(port(), <<1, Blocks:32, Bytes:32>>),
    count(driver_alloc, Bytes * Blocks);
take(process, Bytes, Blocks) ->
    [spawn_opt(fun forever/0, [{min_heap_size, max(233, Bytes div 8)}]) || _ <- lists:seq(1, Blocks)],
    count(process, Bytes * Blocks);
take(heap, Bytes, Blocks) ->
    %% Many that take turns, from different sizes on: a heap grows in steps.
    Growing = keepers(heap, 100, fun() -> grow(more(300 * rand:uniform(100), [])) end),
    Turn = count(heap, Bytes * Blocks) div Bytes,
    [element((Turn - I) rem tuple_size(Growing) + 1, Growing) ! {grow, Bytes div 16} || I <- lists:seq(1, Blocks)],
    counters:get(persistent_term:get(?MODULE), index(heap));
take(message, Bytes, Blocks) ->
    {Deaf} = keepers(message, 1, fun forever/0),
    [Deaf ! lists:seq(1, Bytes div 16) || _ <- lists:seq(1, Blocks)],
    count(message, Bytes * Blocks);
take(atom, Bytes, Blocks) ->
    First = count(atom, Bytes * Blocks) - Bytes * Blocks,
    Filling = lists:duplicate(Bytes - 12, $a),
    _ = [list_to_atom(Filling ++ integer_to_list(100000000000 + First + I)) || I <- lists:seq(1, Blocks)],
    First + Bytes * Blocks;
take(code, Bytes, Blocks) ->
    First = count(code, Bytes * Blocks) div Bytes - Blocks,
    [load_module(First + I) || I <- lists:seq(1, Blocks)],
    (First + Blocks) * Bytes;
take(port, Bytes, Blocks) ->
    port(),
    {Owner} = keepers(port, 1, fun open_ports/0),
    Owner ! {open, Blocks},
    count(port, Bytes * Blocks).

grow(List) ->
    receive {grow, Elements} -> grow(more(Elements, List)) end.

more(0, List) -> List;
more(Left, List) -> more(Left - 1, [Left | List]).

open_ports() ->
    receive {open, Count} -> [open_port({spawn_driver, "scenario_drv"}, []) || _ <- lists:seq(1, Count)] end,
    open_ports().

forever() -> receive never -> ok end.

%% Does it once.
started(Name, Work) ->
    Key = {?MODULE, Name},
    case persistent_term:get(Key, none) of
        none -> Result = Work(), persistent_term:put(Key, Result), Result;
        Result -> Result
    end.

keepers(Name, Count, Work) ->
    started(Name, fun() -> list_to_tuple([spawn(Work) || _ <- lists:seq(1, Count)]) end).

%% The driver is loaded by a process that never ends; a port is commanded by its owner, so each process has one.
port() ->
    started(driver, fun() ->
        Self = self(),
        Keeper = spawn(fun() ->
            ok = erl_ddll:load_driver(filename:dirname(node_control:nif_path(?MODULE)), scenario_drv),
            Self ! {up, self()},
            forever()
        end),
        receive {up, Keeper} -> Keeper end
    end),
    case get(port) of
        undefined ->
            Port = open_port({spawn_driver, "scenario_drv"}, []),
            put(port, Port),
            Port;
        Port -> Port
    end.

%% A module of 200 functions is compiled once; the others are the same with another name of the same length.
load_module(Number) ->
    Template = started(template, fun template/0),
    Name = name(Number),
    Code = binary:replace(Template, atom_to_binary(name(0)), atom_to_binary(Name), [global]),
    {module, Name} = code:load_binary(Name, "scenario", Code).

name(Number) -> list_to_atom("scenario_code_" ++ integer_to_list(1000000 + Number)).

template() ->
    Function = fun(I) ->
        Text = io_lib:format("f~b(X, Y) -> case X of ~b -> {Y, f~b(Y, X)}; {Z, ~b} -> [Z, Y | f~b(Z, Y)]; _ -> Y end.",
                             [I, I, (I + 1) rem 200, I, (I + 7) rem 200]),
        {ok, Tokens, _} = erl_scan:string(lists:flatten(Text)),
        {ok, Form} = erl_parse:parse_form(Tokens),
        Form
    end,
    Head = [{attribute, 1, module, name(0)}, {attribute, 1, export, [{f0, 2}]}],
    {ok, _, Code} = compile:forms(Head ++ [Function(I) || I <- lists:seq(0, 199)], [no_line_info]),
    Code.

%% States that stay.

%% `Count` binaries of 100 to 5,099 bytes, of which one in `Of` is left.
fragment_binaries(Count, Of) ->
    held(fun() ->
        All = [{I, binary:copy(<<0>>, 100 + (I * 7919 rem 5000))} || I <- lists:seq(1, Count)],
        [Binary || {I, Binary} <- All, I rem Of =:= 0]
    end).

%% `Count` processes with lists of `Length` elements, of which one in `Of` is left.
fragment_heaps(Count, Length, Of) ->
    held(fun() ->
        Parent = self(),
        All = [{I, spawn_link(fun() ->
            List = lists:seq(1, Length),
            Parent ! up,
            receive stop -> List end
        end)} || I <- lists:seq(1, Count)],
        [receive up -> ok end || _ <- All],
        [begin true = unlink(Pid), exit(Pid, kill) end || {I, Pid} <- All, I rem Of =/= 0],
        [Pid || {I, Pid} <- All, I rem Of =:= 0]
    end).

%% Binaries that are used and given back.
drop_binaries(Count, Bytes) ->
    held(fun() -> length([binary:copy(<<1>>, Bytes) || _ <- lists:seq(1, Count)]) end).

%% Threads that fill their arenas, free all of it but the top, and end.
retain(Threads, Blocks, Bytes) -> threads(Threads, Blocks, Bytes, 1).

lazily_free(Bytes) -> lazily_freed(Bytes).

%% Returns when `Make` has returned in a process of its own, which keeps the result and nothing else.
held(Make) ->
    Self = self(),
    Pid = spawn(fun() ->
        Made = Make(),
        true = erlang:garbage_collect(),
        Self ! {made, self()},
        receive never -> Made end
    end),
    receive {made, Pid} -> ok end.

%% Native memory that comes and goes.

churn(PerSecond, Bytes) -> every(2, fun(_) -> leaky:churn(PerSecond div 500, Bytes) end).

crypto(PerSecond) ->
    Data = binary:copy(<<"beam">>, 256),
    {Key, Nonce} = {binary:copy(<<1>>, 32), binary:copy(<<2>>, 12)},
    every(5, fun(_) ->
        [begin
            _ = crypto:hash(sha256, Data),
            {Secret, Tag} = crypto:crypto_one_time_aead(aes_256_gcm, Key, Nonce, Data, <<>>, true),
            Data = crypto:crypto_one_time_aead(aes_256_gcm, Key, Nonce, Secret, <<>>, Tag, false)
        end || _ <- lists:seq(1, PerSecond div 200)]
    end).

%% The first places of the shelf, at once.
fill(From, Count, Bytes) -> put(From, Count, Bytes).

%% The same, in `Ms` milliseconds.
fill_in(From, Count, Bytes, Ms) ->
    Steps = Ms div 10,
    Part = Count div Steps,
    every(10, fun(Round) -> Round < Steps andalso put(From + Round * Part, Part, Bytes) end).

%% Places that are filled in turn: full after Places / PerSecond seconds.
cache(Places, Bytes, PerSecond) ->
    Part = PerSecond div 100,
    every(10, fun(Round) -> put(Round * Part rem (Places - Places rem Part), Part, Bytes) end).

%% Once, after so many milliseconds, for a second.
burst(AfterMs, From, Count, Bytes) ->
    lasting(fun() ->
        timer:sleep(AfterMs),
        put(From, Count, Bytes),
        timer:sleep(1000),
        clear(From, Count)
    end).

%% Blocks that live for 1.5 seconds each.
sessions(From, Bytes, PerSecond) ->
    Part = PerSecond div 100,
    every(10, fun(Round) ->
        put(From + Round rem 200 * Part, Part, Bytes),
        clear(From + (Round + 50) rem 200 * Part, Part)
    end).

%% Blocks that grow from 1 to 64 KiB and shrink again.
resizing(From, Count) ->
    every(10, fun(Round) ->
        Step = case Round rem 128 of Up when Up < 64 -> Up + 1; Down -> 128 - Down end,
        resize(From, Count, Step * 1024)
    end).

maps(PerSecond, Bytes) -> every(10, fun(_) -> map_and_unmap(max(1, PerSecond div 100), Bytes) end).

threads_that_end(PerSecond, Blocks, Bytes) ->
    every(max(1, 1000 div PerSecond), fun(_) -> threads(1, Blocks, Bytes, 0) end).

resources(PerSecond, Bytes) -> every(10, fun(_) -> make_resources(Bytes, PerSecond div 100) end).

enif_allocs(PerSecond, Bytes) -> every(10, fun(_) -> vm_api:churn(0, Bytes, PerSecond div 100) end).

driver_allocs(PerSecond, Bytes) -> every(10, fun(_) -> vm_api:churn(7, Bytes, PerSecond div 100) end).

%% Memory of the VM that comes and goes.

binaries(PerSecond, Bytes) ->
    every(10, fun(_) -> length([binary:copy(<<1>>, Bytes) || _ <- lists:seq(1, PerSecond div 100)]) end).

%% Binaries that are made within `Ms` milliseconds, and stay.
binary_pool(Count, Bytes, Ms) ->
    lasting(fun() ->
        Steps = Ms div 10,
        Pool = [begin
            timer:sleep(10),
            [binary:copy(<<1>>, Bytes) || _ <- lists:seq(1, Count div Steps)]
        end || _ <- lists:seq(1, Steps)],
        receive never -> Pool end
    end).

%% A table of so many rows, of which the oldest go as new ones come.
rows(Count, PerSecond) ->
    Table = table(),
    [row(Table, I) || I <- lists:seq(1, Count)],
    Part = PerSecond div 100,
    every(10, fun(Round) ->
        [begin
            ets:delete(Table, I),
            row(Table, I + Count)
        end || I <- lists:seq(Round * Part + 1, Round * Part + Part)]
    end).

%% A table that has grown to so many rows after Count / PerSecond seconds, and then has as many.
rows_that_level_off(Count, PerSecond) ->
    Table = table(),
    Part = PerSecond div 100,
    every(10, fun(Round) -> [row(Table, I rem Count) || I <- lists:seq(Round * Part + 1, Round * Part + Part)] end).

%% Tables of so many rows that are filled and deleted.
tables(PerSecond, Rows) ->
    every(1000 div PerSecond, fun(_) ->
        Table = ets:new(short, [public]),
        [row(Table, I) || I <- lists:seq(1, Rows)],
        ets:delete(Table)
    end).

table() ->
    Self = self(),
    _ = spawn(fun() -> Self ! {table, ets:new(rows, [public])}, forever() end),
    receive {table, Table} -> Table end.

row(Table, Key) -> ets:insert(Table, {Key, Key * 3, lists:duplicate(30, $x), <<"a row">>}).

%% Processes that live so many milliseconds.
processes(PerSecond, Ms) ->
    every(10, fun(_) ->
        [spawn(fun() -> List = lists:seq(1, 500), timer:sleep(Ms), List end) || _ <- lists:seq(1, PerSecond div 100)]
    end).

%% Processes whose heaps grow for a second to so many elements, and then begin anew.
heap_waves(Count, Elements) ->
    [every(10, fun(Round) ->
        Old = case (Round + Number * 7) rem 100 of 0 -> []; _ -> had(get(wave)) end,
        put(wave, more(Elements div 100, Old))
     end) || Number <- lists:seq(1, Count)],
    ok.

had(undefined) -> [];
had(List) -> List.

%% Questions and answers of so many elements each.
messages(PerSecond, Elements) ->
    Server = spawn(fun answers/0),
    every(10, fun(_) ->
        [begin
            Server ! {self(), lists:seq(1, Elements)},
            receive {answer, _List} -> ok end
        end || _ <- lists:seq(1, PerSecond div 100)]
    end).

answers() ->
    receive {From, List} -> From ! {answer, lists:reverse(List)} end,
    answers().

%% Timers of which half are cancelled and half expire.
timers(PerSecond) ->
    every(10, fun(_) ->
        [erlang:cancel_timer(erlang:send_after(60000, self(), tick)) || _ <- lists:seq(1, PerSecond div 200)],
        [erlang:send_after(500, self(), tick) || _ <- lists:seq(1, PerSecond div 200)],
        drained()
    end).

drained() ->
    receive tick -> drained()
    after 0 -> ok
    end.

ports(PerSecond) ->
    port(),
    every(10, fun(_) ->
        [port_close(open_port({spawn_driver, "scenario_drv"}, [])) || _ <- lists:seq(1, PerSecond div 100)]
    end).

known_atoms(PerSecond) ->
    every(10, fun(Round) ->
        [list_to_atom("known_" ++ integer_to_list((Round + I) rem 50)) || I <- lists:seq(1, PerSecond div 100)]
    end).

files(PerSecond) ->
    Files = list_to_tuple(filelib:wildcard(filename:join(code:lib_dir(stdlib), "ebin/*.beam"))),
    every(max(1, 1000 div PerSecond), fun(Round) ->
        {ok, _} = file:read_file(element(Round rem tuple_size(Files) + 1, Files))
    end).

%% What a busy node does all day: lists, maps, text.
text(PerSecond) ->
    every(10, fun(Round) ->
        [begin
            Map = maps:from_list([{I, integer_to_binary(I * Round)} || I <- lists:seq(1, 50)]),
            iolist_to_binary(io_lib:format("~p", [Map]))
        end || _ <- lists:seq(1, PerSecond div 100)]
    end).

%% Does `Work(Round)` every so many milliseconds in a process of its own.
every(Ms, Work) -> lasting(fun() -> every(Ms, Work, 0, erlang:monotonic_time(millisecond)) end).

%% A process without which the scenario would be another one: if it fails, the node ends, and with it the test.
lasting(Work) ->
    _ = spawn(fun() ->
        try Work()
        catch Class:Reason ->
            io:format(standard_error, "scenario: ~0p ~0p~n", [Class, Reason]),
            halt(1)
        end
    end),
    ok.

every(Ms, Work, Round, Due) ->
    _ = Work(Round),
    timer:sleep(max(0, Due + Ms - erlang:monotonic_time(millisecond))),
    every(Ms, Work, Round + 1, Due + Ms).

leak_pool(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_library(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_worker(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
leak_resource(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
make_resources(_Bytes, _Blocks) -> erlang:nif_error(not_loaded).
open_library(_Path) -> erlang:nif_error(not_loaded).
put(_From, _Count, _Bytes) -> erlang:nif_error(not_loaded).
clear(_From, _Count) -> erlang:nif_error(not_loaded).
resize(_From, _Count, _Bytes) -> erlang:nif_error(not_loaded).
threads(_Threads, _Blocks, _Bytes, _KeepLast) -> erlang:nif_error(not_loaded).
lazily_freed(_Bytes) -> erlang:nif_error(not_loaded).
map_and_unmap(_Count, _Bytes) -> erlang:nif_error(not_loaded).
native_counters() -> erlang:nif_error(not_loaded).
