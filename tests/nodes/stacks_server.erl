%% A server that calls a NIF of stacks.c in a callback.
-module(stacks_server).
-behaviour(gen_server).
-export([ask/2, init/1, handle_call/3, handle_cast/2]).
-include("stacks.hrl").

ask(Blocks, Bytes) ->
    {ok, Server} = gen_server:start(?MODULE, [], []),
    Reply = gen_server:call(Server, {leak, Blocks, Bytes}),
    ok = gen_server:stop(Server),
    Reply.

init([]) -> {ok, state}.

handle_call({leak, Blocks, Bytes}, _From, State) ->
    {reply, ?AT(server_call, stacks:leak(chain, Blocks, Bytes)), State}.

handle_cast(_Message, State) -> {noreply, State}.
