%% Calls each callback of the driver stacks_drv.c. `run/3` runs a case.
-module(stacks_drv).
-export([run/3, scene/3, lost/0]).
-include("stacks.hrl").

run(Case, Blocks, Bytes) ->
    loaded(),
    stacks_marks:run(?MODULE, Case, Blocks, Bytes).

scene(Case, Blocks, Bytes) ->
    Port = open_port({spawn_driver, "stacks_drv"}, [binary]),
    ok = in_port(Case, Port, <<Blocks:32, Bytes:32>>),
    true = port_close(Port).

in_port(output, Port, Order) ->
    true = ?AT(drv_output, port_command(Port, Order)),
    ok;
in_port(call, Port, Order) ->
    1 = ?AT(drv_call, erlang:port_call(Port, 0, Order)),
    ok;
in_port(control, Port, Order) -> control(1, Port, Order);
in_port(timeout, Port, Order) -> later(2, Port, Order);
in_port(async, Port, Order) -> later(3, Port, Order);
in_port(ready_async, Port, Order) -> later(4, Port, Order);
in_port(alloc, Port, Order) -> control(5, Port, Order);
in_port(realloc, Port, Order) -> control(6, Port, Order);
in_port(alloc_binary, Port, Order) -> control(7, Port, Order).

control(Operation, Port, Order) ->
    [] = ?AT(drv_control, port_control(Port, Operation, Order)),
    ok.

later(Operation, Port, Order) ->
    ok = control(Operation, Port, Order),
    receive {Port, {data, <<"done">>}} -> ok end.

lost() ->
    loaded(),
    Port = open_port({spawn_driver, "stacks_drv"}, [binary]),
    Lost = binary:decode_unsigned(list_to_binary(port_control(Port, 0, <<>>))),
    true = port_close(Port),
    Lost.

%% A driver is unloaded with the process that has loaded it: this one never ends.
loaded() ->
    case whereis(?MODULE) of
        undefined ->
            Self = self(),
            Keeper = spawn(fun() ->
                true = register(?MODULE, self()),
                ok = erl_ddll:load_driver(filename:dirname(node_control:nif_path(?MODULE)), ?MODULE),
                Self ! {up, self()},
                receive never -> ok end
            end),
            receive {up, Keeper} -> ok end;
        _Keeper -> ok
    end.
