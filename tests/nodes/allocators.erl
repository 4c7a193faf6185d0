%% Brings the allocators of a node into a known state, and tells what the node itself sees of them.
%%
%% All functions take integers, so that node_control's `call` reaches them:
%%
%%   call allocators small            a little of everything
%%   call allocators ets 3000000      a state of that size; it stays until the node ends
%%   call allocators settle           returns when the carriers have come to rest
%%   call allocators look             takes the figures, and keeps them without allocating any more
%%   call allocators tell 1           writes the kept figures to the file view-1 in the folder NODE_VIEW_DIR
%%   call allocators view 1           look and tell
%%   call allocators instrument 1     writes what `instrument` says to the file instrument-1 there
%%
%% To compare with a look from outside: settle, look, SIGSTOP, look from outside, SIGCONT, tell.
%%
%% A line of a file is one figure: words and last the value, separated by one space. The lines are
%%
%%   allocator ALLOCATOR INSTANCE KIND FIGURE N      KIND: mbcs sbcs mbcs_pool; FIGURE: carriers carriers_size blocks
%%                                                   blocks_size, where given also these with _max (since the look
%%                                                   before) and _ever; block figures are sums over the block types
%%   mseg INSTANCE FIGURE N                          FIGURE: cached_segments cache_hits calls
%%   memory CLASS N                                  of erlang:memory/0
%%   recon NAME [current|max] ... N                  what the functions of recon's module recon_alloc of this NAME say
%%   carriers ALLOCATOR FIGURE N                     FIGURE: carriers carriers_size unscanned_size blocks blocks_size
%%   allocations unscanned_size N
%%   allocations ORIGIN TYPE blocks N
%%
%% and their order has no meaning.
-module(allocators).
-export([idle/0, ets/1, blocks/1, binary/1, processes/1, large/1, mixed/1, small/0, churn/1]).
-export([settle/0, look/0, tell/1, view/1, instrument/1]).

%% The full size of each state; `mixed` counts in percent of it.
-define(ROWS, 3000000).
-define(BINARIES, 300000).
-define(PROCESSES, 30000).
-define(LARGE, 400).

idle() -> ok.

%% A table of `Rows` rows, of which every tenth is left.
ets(Rows) ->
    hold(fun() ->
        Table = ets:new(rows, [public, set]),
        fill(Table, Rows),
        each(1, Rows, fun(I) -> I rem 10 =:= 0 orelse ets:delete(Table, I) end),
        Table
    end).

%% A table of `Count` rows, all of which stay: a block of about 100 bytes each, and few besides.
blocks(Count) ->
    hold(fun() ->
        Table = ets:new(rows, [public, set]),
        fill(Table, Count),
        Table
    end).

fill(Table, Rows) -> each(1, Rows, fun(I) -> ets:insert(Table, {I, I * 3, <<"abc">>, a}) end).

%% `Count` binaries of 100 to 5,099 bytes, of which every fifth is left.
binary(Count) ->
    hold(fun() ->
        All = [{I, binary:copy(<<0>>, 100 + (I * 7919 rem 5000))} || I <- lists:seq(1, Count)],
        [Binary || {I, Binary} <- All, I rem 5 =:= 0]
    end).

%% `Count` processes, each with a list of 50 to 2,049 elements.
processes(Count) ->
    hold(fun() -> [holder(50 + (I rem 2000)) || I <- lists:seq(1, Count)] end).

%% What gets carriers of its own: `Count` binaries of 0.6 to 1.1 MB, and a tenth as many processes with 200,000 elements.
large(Count) ->
    hold(fun() ->
        Binaries = [binary:copy(<<1>>, 600000 + (I * 1237 rem 500000)) || I <- lists:seq(1, Count)],
        {Binaries, [holder(200000) || _ <- lists:seq(1, max(1, Count div 10))]}
    end).

%% All of them, each at `Percent` of its full size: 100 % allocates about 2 GB.
mixed(Percent) ->
    ok = ets(?ROWS * Percent div 100),
    ok = binary(?BINARIES * Percent div 100),
    ok = processes(?PROCESSES * Percent div 100),
    large(?LARGE * Percent div 100).

small() ->
    ok = ets(20000),
    ok = binary(5000),
    ok = processes(200),
    large(10).

%% `Writers` processes that write rows and binaries until the node ends.
churn(Writers) ->
    hold(fun() ->
        Table = ets:new(churn, [public, set, {write_concurrency, true}]),
        Self = self(),
        Pids = [spawn_link(fun() -> write(Table, Self, 2000, [], rand:seed_s(exsss, I)) end) || I <- lists:seq(1, Writers)],
        [receive {churning, Pid} -> Pid end || Pid <- Pids],
        {Table, Pids}
    end).

%% Tells its parent when the warm-up of so many rounds is over.
write(Table, Parent, Warmup, Kept, Random0) ->
    Warmup =:= 0 andalso (Parent ! {churning, self()}),
    {Key, Random1} = rand:uniform_s(50000, Random0),
    {Choice, Random2} = rand:uniform_s(10, Random1),
    {Size, Random3} = rand:uniform_s(2000, Random2),
    if
        Choice < 6 ->
            ets:insert(Table, {Key, binary:copy(<<Choice>>, Size), lists:seq(1, Size rem 30)}),
            write(Table, Parent, Warmup - 1, Kept, Random3);
        Choice < 9 ->
            ets:delete(Table, Key),
            write(Table, Parent, Warmup - 1, Kept, Random3);
        true ->
            Large = binary:copy(<<Choice>>, Size * 350),
            write(Table, Parent, Warmup - 1, lists:sublist([Large | Kept], 20), Random3)
    end.

%% A process that is up and keeps a list of `Length` elements.
holder(Length) ->
    Parent = self(),
    Pid = spawn_link(fun() ->
        List = lists:seq(1, Length),
        Parent ! {up, self()},
        receive stop -> List end
    end),
    receive {up, Pid} -> Pid end.

each(I, Last, _Work) when I > Last -> ok;
each(I, Last, Work) ->
    Work(I),
    each(I + 1, Last, Work).

%% Returns when `Make` has returned in a process of its own, which keeps the result and nothing else.
hold(Make) ->
    Self = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        Made = Make(),
        true = erlang:garbage_collect(),
        Self ! {made, self()},
        receive stop -> Made end
    end),
    receive
        {made, Pid} ->
            true = erlang:demonitor(Monitor, [flush]),
            ok;
        {'DOWN', Monitor, process, Pid, Reason} ->
            exit(Reason)
    end.

%% A process of its own takes the figures: its heap has room for all of them from the start, so that its size, and with
%% it the figures, are the same before and after. It stays on one scheduler: a heap that it left on another would be
%% counted until that one runs.
settle() -> ask(settle).
look() -> ask(look).
tell(Number) -> ask({tell, path("view", Number)}).

view(Number) ->
    ok = look(),
    tell(Number).

ask(Question) ->
    Viewer = viewer(),
    Monitor = monitor(process, Viewer),
    Viewer ! {Question, self(), Monitor},
    receive
        {answer, Monitor, Answer} ->
            true = erlang:demonitor(Monitor, [flush]),
            Answer;
        {'DOWN', Monitor, process, Viewer, Reason} ->
            exit(Reason)
    end.

viewer() ->
    case whereis(?MODULE) of
        undefined ->
            Self = self(),
            Options = [monitor, {scheduler, 1}, {min_heap_size, 17731}, {fullsweep_after, 0}],
            {Pid, Monitor} = spawn_opt(fun() ->
                register(?MODULE, self()),
                Self ! {up, self()},
                viewing([])
            end, Options),
            receive
                {up, Pid} -> true = erlang:demonitor(Monitor, [flush]), Pid;
                {'DOWN', Monitor, process, Pid, Reason} -> exit(Reason)
            end;
        Pid ->
            Pid
    end.

viewing(Figures) ->
    receive
        {settle, From, Tag} ->
            %% Loads all code that a later look and tell need.
            ok = write_lines("/dev/null", lines(figures())),
            From ! {answer, Tag, settle([], 1)},
            viewing([]);
        {look, From, Tag} ->
            %% No garbage collection after it: it would free what was counted, and perhaps a carrier with it.
            Taken = figures(),
            From ! {answer, Tag, ok},
            viewing(Taken);
        {{tell, Path}, From, Tag} ->
            From ! {answer, Tag, write_lines(Path, lines(Figures))},
            viewing(Figures)
    end.

%% What was freed on another scheduler comes back to its allocator when that one runs next: there is no event for the
%% last of it, only figures that return. They need not stay, for the heap of this process may take and give back a
%% carrier in turns.
settle(_Seen, 100) -> error(restless);
settle(Seen, Round) ->
    receive after 10 -> ok end,
    Now = erlang:phash2(carriers(figures())),
    case lists:member(Now, Seen) of
        true -> ok;
        false -> settle([Now | Seen], Round + 1)
    end.

carriers({_Memory, _Mseg, Allocators}) ->
    [{Allocator, Instance, [element(1, Figures) + element(4, Figures) || Figures <- tuple_to_list(Kinds), is_tuple(Figures)]}
     || {Allocator, Instance, Kinds} <- Allocators].

%% The heaps of processes are last, for all that is done here shows there.
figures() ->
    Allocators = lists:delete(eheap_alloc, erlang:system_info(alloc_util_allocators)) ++ [eheap_alloc],
    true = erlang:garbage_collect(),
    Memory = memory(),
    Mseg = mseg(erlang:system_info({allocator, mseg_alloc})),
    {Memory, Mseg, [Figures || Allocator <- Allocators, Figures <- figures(Allocator)]}.

%% The VM refuses where an allocator that it sums up is off (+Mea min).
memory() ->
    try erlang:memory()
    catch error:notsup -> []
    end.

figures(Allocator) ->
    true = erlang:garbage_collect(),
    case erlang:system_info({allocator, Allocator}) of
        false ->
            [];
        Instances ->
            [{Allocator, Instance, {kind(mbcs, Info), kind(sbcs, Info), kind(mbcs_pool, Info)}}
             || {instance, Instance, Info} <- Instances]
    end.

%% Now, largest since the last question, and largest ever, of: carriers, their bytes, blocks, their bytes.
kind(Kind, Info) ->
    case lists:keyfind(Kind, 1, Info) of
        false ->
            none;
        {Kind, Figures} ->
            {blocks, Types} = lists:keyfind(blocks, 1, Figures),
            {Carriers, CarriersMax, CarriersEver} = three(carriers, Figures),
            {Bytes, BytesMax, BytesEver} = three(carriers_size, Figures),
            {Blocks, BlocksMax, BlocksEver} = sum(count, Types),
            {Size, SizeMax, SizeEver} = sum(size, Types),
            {Carriers, CarriersMax, CarriersEver, Bytes, BytesMax, BytesEver,
             Blocks, BlocksMax, BlocksEver, Size, SizeMax, SizeEver}
    end.

sum(Figure, Types) ->
    lists:foldl(fun({_Type, Figures}, Sum) -> plus(Sum, three(Figure, Figures)) end, {0, 0, 0}, Types).

plus({Now, _, _}, {More, none, none}) -> {Now + More, none, none};
plus({Now, Max, Ever}, {More, MoreMax, MoreEver}) -> {Now + More, Max + MoreMax, Ever + MoreEver}.

%% The pool has no maxima.
three(Figure, Figures) ->
    case lists:keyfind(Figure, 1, Figures) of
        {Figure, Now, Max, Ever} -> {Now, Max, Ever};
        {Figure, Now} -> {Now, none, none}
    end.

mseg(false) -> [];
mseg(Instances) ->
    [begin
        {memkind, Kind} = lists:keyfind(memkind, 1, Info),
        {status, Status} = lists:keyfind(status, 1, Kind),
        {calls, Calls} = lists:keyfind(calls, 1, Kind),
        {cached_segments, Cached} = lists:keyfind(cached_segments, 1, Status),
        {cache_hits, Hits} = lists:keyfind(cache_hits, 1, Status),
        {mseg_alloc, Giga, Rest} = lists:keyfind(mseg_alloc, 1, Calls),
        {Instance, Cached, Hits, Giga * 1000000000 + Rest}
     end || {instance, Instance, Info} <- Instances].

lines([]) -> error(no_look_before);
lines({Memory, Mseg, Allocators}) ->
    Names = [carriers, carriers_max, carriers_ever, carriers_size, carriers_size_max, carriers_size_ever,
             blocks, blocks_max, blocks_ever, blocks_size, blocks_size_max, blocks_size_ever],
    [[[allocator, Allocator, Instance, Kind, Name, Value]
      || {Allocator, Instance, Kinds} <- Allocators,
         {Kind, Figures} <- lists:zip([mbcs, sbcs, mbcs_pool], tuple_to_list(Kinds)), is_tuple(Figures),
         {Name, Value} <- lists:zip(Names, tuple_to_list(Figures)), is_integer(Value)],
     [[[mseg, Instance, cached_segments, Cached], [mseg, Instance, cache_hits, Hits], [mseg, Instance, calls, Calls]]
      || {Instance, Cached, Hits, Calls} <- Mseg],
     [[memory, Class, Bytes] || {Class, Bytes} <- Memory],
     [[[recon | Line] || Line <- allocator_recon:lines(Stage, Allocators)] || Stage <- [current, max]],
     [[recon | Line] || Line <- allocator_recon:cache_hit_rates(Mseg)]].

%% Only where the application `tools` is installed.
instrument(Number) ->
    All = #{scheduler_ids => lists:seq(0, erlang:system_info(schedulers))},
    {ok, {_, Carriers}} = instrument:carriers(All),
    {ok, {_, Unscanned, Origins}} = instrument:allocations(All),
    Sums = lists:foldl(fun sum_carrier/2, #{}, Carriers),
    write_lines(path("instrument", Number), [
        [[carriers, Allocator, Name, Value]
         || {Allocator, Figures} <- maps:to_list(Sums),
            {Name, Value} <- lists:zip([carriers, carriers_size, unscanned_size, blocks, blocks_size], Figures)],
        [allocations, unscanned_size, Unscanned],
        [[allocations, Origin, Type, blocks, lists:sum(tuple_to_list(Histogram))]
         || {Origin, Types} <- maps:to_list(Origins), {Type, Histogram} <- maps:to_list(Types)]]).

sum_carrier({Allocator, _InPool, Size, Unscanned, Types, _FreeBlocks}, Sums) ->
    Blocks = lists:sum([Count || {_Type, Count, _Bytes} <- Types]),
    Bytes = lists:sum([TypeBytes || {_Type, _Count, TypeBytes} <- Types]),
    Old = maps:get(Allocator, Sums, [0, 0, 0, 0, 0]),
    Sums#{Allocator => [Was + More || {Was, More} <- lists:zip(Old, [1, Size, Unscanned, Blocks, Bytes])]}.

path(Name, Number) ->
    case os:getenv("NODE_VIEW_DIR") of
        false -> error({not_set, "NODE_VIEW_DIR"});
        Folder -> filename:join(Folder, Name ++ "-" ++ integer_to_list(Number))
    end.

%% Lines are lists of words, in lists of any depth.
write_lines(Path, Lines) -> file:write_file(Path, text(Lines)).

text([]) -> [];
text([Word | _] = Line) when is_atom(Word) -> [lists:join($\s, [word(Part) || Part <- Line]), $\n];
text(Lines) -> [text(Line) || Line <- Lines].

word(Atom) when is_atom(Atom) -> atom_to_list(Atom);
word(Integer) when is_integer(Integer) -> integer_to_list(Integer);
word(Float) when is_float(Float) -> io_lib:format("~.9f", [Float]).
