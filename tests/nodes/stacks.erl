%% The NIFs of stacks.c, each called by Erlang functions that a test can expect one by one on the stack.
%%
%% `run/3` runs a case of `scene/3`; its calls stand in marked lines (stacks_marks.erl).
-module(stacks).
-export([run/3, scene/3, hold/1, lost/0, held/0]).
-export([leak/3, leak_dirty_cpu/3, leak_dirty_io/3, leak_thread/2, leak_pthread/2, take/3]).
-on_load(load/0).
-include("stacks.hrl").

load() -> erlang:load_nif(node_control:nif_path(?MODULE), 0).

run(Case, Blocks, Bytes) -> stacks_marks:run(?MODULE, Case, Blocks, Bytes).

%% Each case is the last call of scene/3, which so leaves no frame of its own.
scene(chain, Blocks, Bytes) -> direct(chain, Blocks, Bytes);
scene(freed, Blocks, Bytes) -> direct(freed, Blocks, Bytes);
scene(recurse, Blocks, Bytes) -> direct(recurse, Blocks, Bytes);
scene(sort, Blocks, Bytes) -> direct(sort, Blocks, Bytes);
scene(large, Blocks, Bytes) -> direct(large, Blocks, Bytes);
scene(nested, Blocks, Bytes) -> nested(4, Blocks, Bytes);
scene(tail_call, Blocks, Bytes) -> tail_call(3, Blocks, Bytes);
scene(comprehension, Blocks, Bytes) -> comprehension([0, 0, Blocks], Bytes);
scene(anonymous, Blocks, Bytes) -> anonymous(Blocks, Bytes);
scene(map, Blocks, Bytes) -> map([0, 0, Blocks], Bytes);
scene(foldl, Blocks, Bytes) -> foldl([0, 0, Blocks], Bytes);
scene(applied, Blocks, Bytes) -> applied(?MODULE, leak, [chain, Blocks, Bytes]);
scene(guarded, Blocks, Bytes) -> guarded(Blocks, Bytes);
scene(dirty_cpu, Blocks, Bytes) -> dirty_cpu(Blocks, Bytes);
scene(dirty_io, Blocks, Bytes) -> dirty_io(Blocks, Bytes);
scene(thread, Blocks, Bytes) -> thread(Blocks, Bytes);
scene(pthread, Blocks, Bytes) -> pthread(Blocks, Bytes);
scene(worker, Blocks, Bytes) -> 'Elixir.MyApp.Worker':run(Blocks, Bytes);
scene(server, Blocks, Bytes) -> stacks_server:ask(Blocks, Bytes);
scene(spawned, Blocks, Bytes) -> spawned(Blocks, Bytes);
scene(proc_lib, Blocks, Bytes) -> of_proc_lib(Blocks, Bytes);
scene(loaded_first, Blocks, Bytes) -> stacks_loader:reload(first, 40, Blocks, Bytes);
scene(loaded_second, Blocks, Bytes) -> stacks_loader:reload(second, 70, Blocks, Bytes);
scene(alloc, Blocks, Bytes) -> taken(alloc, Blocks, Bytes);
scene(realloc, Blocks, Bytes) -> taken(realloc, Blocks, Bytes);
scene(resource, Blocks, Bytes) -> taken(resource, Blocks, Bytes);
scene(alloc_binary, Blocks, Bytes) -> taken(alloc_binary, Blocks, Bytes);
scene(new_binary, Blocks, Bytes) -> taken(new_binary, Blocks, Bytes).

direct(Way, Blocks, Bytes) ->
    [?AT(direct, leak(Way, Blocks, Bytes))].

nested(0, Blocks, Bytes) ->
    [?AT(nested_end, leak(chain, Blocks, Bytes))];
nested(Depth, Blocks, Bytes) ->
    [?AT(nested, nested(Depth - 1, Blocks, Bytes))].

tail_call(0, Blocks, Bytes) ->
    leak(chain, Blocks, Bytes);
tail_call(Depth, Blocks, Bytes) ->
    tail_call(Depth - 1, Blocks, Bytes).

comprehension(List, Bytes) ->
    [?AT(comprehension, leak(chain, Blocks, Bytes)) || Blocks <- List].

anonymous(Blocks, Bytes) ->
    Leak = fun(Count) -> [?AT(anonymous_fun, leak(chain, Count, Bytes))] end,
    [?AT(anonymous, stacks_marks:calls(Leak, Blocks))].

map(List, Bytes) ->
    [?AT(map, lists:map(fun(Blocks) -> [?AT(map_fun, leak(chain, Blocks, Bytes))] end, List))].

foldl(List, Bytes) ->
    Leak = fun(Blocks, Before) -> [?AT(foldl_fun, leak(chain, Blocks, Bytes)) | Before] end,
    [?AT(foldl, lists:foldl(Leak, [], List))].

applied(Module, Function, Arguments) ->
    [?AT(applied, apply(Module, Function, Arguments))].

guarded(Blocks, Bytes) ->
    try
        [?AT(guarded, leak(chain, Blocks, Bytes))]
    catch
        error:Reason -> {caught, Reason}
    after
        stacks_marks:pass(guarded_end, ?LINE)
    end.

dirty_cpu(Blocks, Bytes) -> [?AT(dirty_cpu, leak_dirty_cpu(chain, Blocks, Bytes))].
dirty_io(Blocks, Bytes) -> [?AT(dirty_io, leak_dirty_io(chain, Blocks, Bytes))].
thread(Blocks, Bytes) -> [?AT(thread, leak_thread(Blocks, Bytes))].
pthread(Blocks, Bytes) -> [?AT(pthread, leak_pthread(Blocks, Bytes))].

spawned(Blocks, Bytes) ->
    Leak = fun() ->
        [ok] = [?AT(spawned_fun, leak(chain, Blocks, Bytes))],
        exit({ended, true})
    end,
    stacks_marks:wait(spawn_monitor(Leak)).

of_proc_lib(Blocks, Bytes) ->
    Leak = fun() ->
        [ok] = [?AT(proc_lib_fun, leak(chain, Blocks, Bytes))],
        ok
    end,
    Pid = proc_lib:spawn(Leak),
    Monitor = erlang:monitor(process, Pid),
    receive {'DOWN', Monitor, process, Pid, _Reason} -> ok end.

%% What was taken stays in the hands of a process that never ends.
taken(Way, Blocks, Bytes) ->
    Held = ?AT(taken, take(Way, Blocks, Bytes)),
    false = lists:member(false, Held),
    _ = spawn(?MODULE, hold, [Held]),
    ok.

hold(Held) ->
    receive {held, From} -> From ! Held, hold(Held) end.

leak(_Way, _Blocks, _Bytes) -> erlang:nif_error(not_loaded).
leak_dirty_cpu(_Way, _Blocks, _Bytes) -> erlang:nif_error(not_loaded).
leak_dirty_io(_Way, _Blocks, _Bytes) -> erlang:nif_error(not_loaded).
leak_thread(_Blocks, _Bytes) -> erlang:nif_error(not_loaded).
leak_pthread(_Blocks, _Bytes) -> erlang:nif_error(not_loaded).
take(_Way, _Blocks, _Bytes) -> erlang:nif_error(not_loaded).
lost() -> erlang:nif_error(not_loaded).
held() -> erlang:nif_error(not_loaded).
