%% Loads module `stacks_loaded` anew, with other functions in other lines, calls it, and purges what it replaces.
-module(stacks_loader).
-export([reload/4]).
-include("stacks.hrl").

%% In each version, `Name/2` calls the NIF in line `Line`, which gets the function's name as its mark.
reload(Name, Line, Blocks, Bytes) ->
    {ok, Module, Code} = compile:forms(forms(Name, Line), [return_errors]),
    _ = code:purge(Module),
    {module, Module} = code:load_binary(Module, "stacks_loaded.erl", Code),
    %% Nobody runs the old code, so nobody is killed.
    false = code:purge(Module),
    stacks_marks:pass(Name, Line),
    [?AT(reload, Module:Name(Blocks, Bytes))].

forms(Name, Line) ->
    [form("-file(\"stacks_loaded.erl\", 1).", 1),
     form("-module(stacks_loaded).", 1),
     form(io_lib:format("-export([~s/2]).", [Name]), 2),
     form(io_lib:format("~s(Blocks, Bytes) ->~n    [stacks:leak(chain, Blocks, Bytes)].", [Name]), Line - 1)].

form(Text, Line) ->
    {ok, Tokens, _End} = erl_scan:string(lists:flatten(Text), Line),
    {ok, Form} = erl_parse:parse_form(Tokens),
    Form.
