%% What recon's module recon_alloc would answer, by the definitions in its documentation, from figures that
%% allocators.erl took: nodes under test have no recon.
%%
%% By these, used memory is the blocks, allocated memory the carriers, unused memory the difference, usage the share.
%% Carriers in the pool count as multi-block carriers, except for maxima, since the VM keeps none of the pool. A maximum is
%% the largest value ever. Only allocators of recon's type allocator() count.
-module(allocator_recon).
-export([lines/2, cache_hit_rates/1]).

%% Lists of words, without the leading `recon`.
lines(Stage, All) ->
    Allocators = [{Allocator, Instance, sizes(Stage, Kinds)}
                  || {Allocator, Instance, Kinds} <- All, lists:member(Allocator, allocators())],
    Used = lists:sum([used(Sizes) || {_, _, Sizes} <- Allocators]),
    Allocated = lists:sum([allocated(Sizes) || {_, _, Sizes} <- Allocators]),
    [[memory, Stage, used, Used],
     [memory, Stage, allocated, Allocated],
     [memory, Stage, unused, Allocated - Used],
     [memory, Stage, usage, share(Used, Allocated)]]
    ++ [[memory, Stage, allocated_types, Type, Bytes]
        || {Type, Bytes} <- sums([{Type, allocated(Sizes)} || {Type, _, Sizes} <- Allocators])]
    ++ [[memory, Stage, allocated_instances, Instance, Bytes]
        || {Instance, Bytes} <- sums([{Instance, allocated(Sizes)} || {_, Instance, Sizes} <- Allocators])]
    ++ lists:append([fragmentation(Stage, Allocator) || Allocator <- Allocators])
    ++ average_block_sizes(Stage, Allocators)
    ++ [[sbcs_to_mbcs, Stage, Type, Instance, ratio(Sbcs, Mbcs)]
        || {Type, Instance, {{_, _, Mbcs, _}, {_, _, Sbcs, _}}} <- Allocators].

%% Of calls that ask for a segment, those that the cache answered.
cache_hit_rates(Mseg) ->
    lists:append([[[cache_hit_rates, Instance, hit_rate, share(Hits, Calls)],
                   [cache_hit_rates, Instance, hits, Hits],
                   [cache_hit_rates, Instance, calls, Calls]] || {Instance, _Cached, Hits, Calls} <- Mseg]).

allocators() ->
    [temp_alloc, eheap_alloc, binary_alloc, ets_alloc, driver_alloc, sl_alloc, ll_alloc, fix_alloc, std_alloc].

%% Carriers, their bytes, blocks and their bytes, of multi-block and of single-block carriers.
sizes(current, {Mbcs, Sbcs, Pool}) -> {plus(four(current, Mbcs), four(current, Pool)), four(current, Sbcs)};
sizes(max, {Mbcs, Sbcs, _Pool}) -> {four(max, Mbcs), four(max, Sbcs)}.

four(_Stage, none) -> {0, 0, 0, 0};
four(current, {Carriers, _, _, Bytes, _, _, Blocks, _, _, Size, _, _}) -> {Carriers, Bytes, Blocks, Size};
four(max, {_, _, Carriers, _, _, Bytes, _, _, Blocks, _, _, Size}) -> {Carriers, Bytes, Blocks, Size}.

plus({A1, B1, C1, D1}, {A2, B2, C2, D2}) -> {A1 + A2, B1 + B2, C1 + C2, D1 + D2}.

used({{_, _, _, Mbcs}, {_, _, _, Sbcs}}) -> Mbcs + Sbcs.

allocated({{_, Mbcs, _, _}, {_, Sbcs, _, _}}) -> Mbcs + Sbcs.

fragmentation(Stage, {Type, Instance, {{_, MbcsBytes, _, MbcsSize}, {_, SbcsBytes, _, SbcsSize}}}) ->
    [[fragmentation, Stage, Type, Instance, Name, Value]
     || {Name, Value} <- [{sbcs_usage, usage(SbcsSize, SbcsBytes)}, {sbcs_block_size, SbcsSize},
                          {sbcs_carriers_size, SbcsBytes},
                          {mbcs_usage, usage(MbcsSize, MbcsBytes)}, {mbcs_block_size, MbcsSize},
                          {mbcs_carriers_size, MbcsBytes}]].

average_block_sizes(Stage, Allocators) ->
    Mbcs = sums([{Type, {Blocks, Size}} || {Type, _, {{_, _, Blocks, Size}, _}} <- Allocators]),
    Sbcs = sums([{Type, {Blocks, Size}} || {Type, _, {_, {_, _, Blocks, Size}}} <- Allocators]),
    [[average_block_sizes, Stage, Type, Kind, share(Size, Blocks)]
     || {Kind, Sums} <- [{mbcs, Mbcs}, {sbcs, Sbcs}], {Type, {Blocks, Size}} <- Sums].

sums(Pairs) ->
    lists:foldl(fun({Key, Value}, Sums) ->
        case lists:keyfind(Key, 1, Sums) of
            false -> Sums ++ [{Key, Value}];
            {Key, Sum} -> lists:keyreplace(Key, 1, Sums, {Key, add(Sum, Value)})
        end
    end, [], Pairs).

add({A1, B1}, {A2, B2}) -> {A1 + A2, B1 + B2};
add(A, B) -> A + B.

share(_Part, 0) -> 0.0;
share(Part, Whole) -> Part / Whole.

%% Carriers that are not there are not badly used.
usage(0, 0) -> 1.0;
usage(Part, Whole) -> Part / Whole.

ratio(0, 0) -> 0.0;
ratio(_Sbcs, 0) -> infinity;
ratio(Sbcs, Mbcs) -> Sbcs / Mbcs.
