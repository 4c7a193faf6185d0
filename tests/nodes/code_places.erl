%% What a node itself says of the code on the stacks of its processes. The folder is in NODE_VIEW_DIR.
%%
%%   call code_places park             starts a process that waits in nested calls
%%   call code_places tell N           writes what follows to the file places-N
%%   call code_places load N           loads version N of the module `replaced`, which differs in its lines only, and
%%                                     starts a process that waits in it
%%   call code_places purge            ends what runs old code of `replaced`, and purges it
%%
%% A file has, in this order,
%%
%%   emulator FLAVOR                   jit or emu
%%   function MFA                      each function of some modules; MFA as Erlang writes it
%%
%% and for each process that waits, in the order of its stack:
%%
%%   process PID
%%   return ADDRESS OFFSET MFA         a return address as in its backtrace; MFA as the VM writes it
%%   end ADDRESS                       the return address of its first function
%%   line LINE FILE MFA                an entry of its stack trace, the function that it is in and equal neighbours
%%                                     left out; MFA as Erlang writes it
-module(code_places).
-export([park/0, tell/1, load/1, purge/0]).

park() ->
    _ = erlang:system_flag(backtrace_depth, 64),
    Up = self(),
    _ = spawn_up(fun() -> outer([a], Up) end),
    ok.

spawn_up(Fun) ->
    Pid = spawn(Fun),
    receive up -> Pid end.

outer(Items, Up) ->
    [middle(Item, Up) || Item <- Items].

middle(Item, Up) ->
    ok = lists:foreach(
        fun(_) ->
            'odd name'(Up),
            ok
        end,
        [Item]),
    Item.

'odd name'(Up) ->
    Up ! up,
    receive stop -> ok end,
    ok.

load(Version) ->
    _ = erlang:system_flag(backtrace_depth, 64),
    Texts = ["-module(replaced).", "-export([run/1]).", "run(Up) -> wait(Up), done.",
             "wait(Up) -> Up ! up, receive stop -> ok end, ok."],
    Forms = [form(Text, 100 * Version + Number) || {Number, Text} <- lists:zip([0, 1, 2, 3], Texts)],
    {ok, replaced, Code} = compile:forms([{attribute, 1, file, {"replaced.erl", 1}} | Forms]),
    {module, replaced} = code:load_binary(replaced, "replaced.erl", Code),
    Up = self(),
    _ = spawn_up(fun() -> replaced:run(Up), ok end),
    ok.

form(Text, Line) ->
    {ok, Tokens, _} = erl_scan:string(Text, Line),
    {ok, Form} = erl_parse:parse_form(Tokens),
    Form.

purge() ->
    _ = code:purge(replaced),
    ok.

tell(Number) ->
    Lines = [stack(Pid) || Pid <- erlang:processes(), process_info(Pid, status) =:= {status, waiting}],
    File = filename:join(os:getenv("NODE_VIEW_DIR"), "places-" ++ integer_to_list(Number)),
    Functions = [io_lib:format("function ~tw:~tw/~b~n", [Module, Name, Arity])
                 || Module <- [lists, gen_server, ?MODULE], {Name, Arity} <- Module:module_info(functions)],
    Text = unicode:characters_to_binary([io_lib:format("emulator ~p~n", [flavor()]), Functions, Lines]),
    file:write_file(File, Text).

%% OTP 23 has no other.
flavor() ->
    try erlang:system_info(emu_flavor) catch error:badarg -> emu end.

stack(Pid) ->
    case process_info(Pid, [backtrace, current_stacktrace]) of
        [{backtrace, Backtrace}, {current_stacktrace, [_Current | Trace]}] ->
            Returns = [return(Line) || Line <- binary:split(Backtrace, <<"\n">>, [global])],
            [io_lib:format("process ~p~n", [Pid]), Returns, [line(Entry) || Entry <- Trace]];
        _Gone ->
            []
    end.

return(Line) ->
    case re:run(Line, "Return addr (0x[0-9a-f]+) \\((.*?)(?: \\+ ([0-9]+))?\\)$", [{capture, all_but_first, binary}]) of
        {match, [Address, Function, Offset]} -> ["return ", Address, " ", Offset, " ", Function, "\n"];
        {match, [Address, <<"<terminate process normally>">>]} -> ["end ", Address, "\n"];
        nomatch -> []
    end.

line({Module, Function, Arity, Location}) ->
    Line = proplists:get_value(line, Location, 0),
    File = proplists:get_value(file, Location, "-"),
    io_lib:format("line ~b ~ts ~tw:~tw/~b~n", [Line, File, Module, Function, Arity]).
