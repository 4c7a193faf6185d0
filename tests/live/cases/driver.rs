//! What is expected of the linked-in driver `stacks_drv.c`?

use super::{Case, PROCESS, Site, THREAD, VM};

const BLOCK: &str = "libc.so.6!malloc
    stacks_drv.so!keep_block@malloc(bytes)
    stacks_drv.so!store@keep_block(order->bytes)";
pub(super) const BY_CALLER: Site = &[
    ("thread_kind", Some("normal scheduler")),
    ("library", Some("stacks_drv.so")),
    ("driver", Some("stacks_drv")),
    ("mfa", Some("er*:port_c*")),
];
const BY_SCHEDULER: Site = &[
    ("thread_kind", Some("normal scheduler")),
    ("library", Some("stacks_drv.so")),
    ("driver", Some("stacks_drv")),
    ("mfa", None),
];

pub(super) const fn driver(name: &'static str, site: Site, stack: &'static [&'static str]) -> Case {
    Case { module: "stacks_drv", name, stack, site, creator: &[] }
}

/// What a process calls goes on to its first function; what a scheduler calls has no process.
pub(crate) const DRIVER_CASES: [Case; 6] = [
    driver(
        "output",
        BY_CALLER,
        &[
            BLOCK,
            "stacks_drv.so!output@store(&order)",
            VM,
            "? erts_internal:port_command/3",
            "erlang:port_command/2",
            "stacks_drv:in_port/3@drv_output",
            "stacks_drv:scene/3",
            PROCESS,
        ],
    ),
    driver(
        "call",
        BY_CALLER,
        &[
            BLOCK,
            "stacks_drv.so!call@store(&order)",
            VM,
            "? erts_internal:port_call/3",
            "erlang:port_call/3",
            "stacks_drv:in_port/3@drv_call",
            "stacks_drv:scene/3",
            PROCESS,
        ],
    ),
    driver(
        "control",
        BY_CALLER,
        &[
            BLOCK,
            "stacks_drv.so!control@case CONTROL",
            VM,
            "? erts_internal:port_control/3",
            "erlang:port_control/3",
            "stacks_drv:control/3@drv_control",
            "stacks_drv:scene/3",
            PROCESS,
        ],
    ),
    driver("timeout", BY_SCHEDULER, &[BLOCK, "stacks_drv.so!timeout@store(", VM, "* libc.so.6!*"]),
    driver("ready_async", BY_SCHEDULER, &[BLOCK, "stacks_drv.so!ready_async@store(", VM, "* libc.so.6!*"]),
    driver(
        "async",
        &[("thread_kind", Some("async thread")), ("library", Some("stacks_drv.so")), ("mfa", None)],
        &[BLOCK, "stacks_drv.so!async_work@store(order)", THREAD],
    ),
];
