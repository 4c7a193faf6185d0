//! What is expected of memory that the VM's own interface gives to `stacks.c` and `stacks_drv.c`?

use super::{
    Case, PROCESS, Site,
    driver::{BY_CALLER, driver},
};

const TAKE: Site =
    &[("thread_kind", Some("normal scheduler")), ("library", Some("stacks.so")), ("mfa", Some("stacks:take/3"))];
const TAKER: &str = "stacks.so!take@vm_ways[i].take(
    + beam.smp!*
    stacks:take/3
    stacks:taken/3@taken";

const fn vm(name: &'static str, stack: &'static [&'static str]) -> Case {
    Case { module: "stacks", name, stack, site: TAKE, creator: &[] }
}

const CONTROL: &str = "+ beam.smp!*
    ? erts_internal:port_control/3
    erlang:port_control/3
    stacks_drv:control/3@drv_control
    stacks_drv:scene/3";

pub(crate) const VM_CASES: [Case; 8] = [
    vm("alloc", &["beam.smp!enif_alloc", "stacks.so!take_alloc@enif_alloc(", TAKER, PROCESS]),
    vm("realloc", &["beam.smp!enif_realloc", "stacks.so!take_realloc@enif_realloc(", TAKER, PROCESS]),
    vm("resource", &["beam.smp!enif_alloc_resource", "stacks.so!take_resource@enif_alloc_resource(", TAKER, PROCESS]),
    vm(
        "alloc_binary",
        &["beam.smp!enif_alloc_binary", "stacks.so!take_alloc_binary@enif_alloc_binary(", TAKER, PROCESS],
    ),
    vm(
        "new_binary",
        &["beam.smp!enif_make_new_binary", "stacks.so!take_new_binary@enif_make_new_binary(", TAKER, PROCESS],
    ),
    driver(
        "alloc",
        BY_CALLER,
        &[
            "beam.smp!driver_alloc",
            "stacks_drv.so!take_alloc@driver_alloc(",
            "stacks_drv.so!control*",
            CONTROL,
            PROCESS,
        ],
    ),
    driver(
        "realloc",
        BY_CALLER,
        &[
            "beam.smp!driver_realloc",
            "stacks_drv.so!take_realloc@driver_realloc(",
            "stacks_drv.so!control*",
            CONTROL,
            PROCESS,
        ],
    ),
    driver(
        "alloc_binary",
        BY_CALLER,
        &[
            "beam.smp!driver_alloc_binary",
            "stacks_drv.so!take_alloc_binary@driver_alloc_binary(",
            "stacks_drv.so!control*",
            CONTROL,
            PROCESS,
        ],
    ),
];
