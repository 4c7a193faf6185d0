//! Memory that native code loses.

use super::{CHURN, Leak, QUIET, Scenario, Truth};

/// Past the VM.
pub(super) const NATIVE: &[Scenario] = &[
    Scenario { name: "malloc", before: &[CHURN, "leak malloc 1000 40 50"], leak: MALLOC, ..LEAK },
    Scenario {
        name: "realloc",
        before: &[CHURN, "leak realloc 1000 40 50"],
        leak: Some(Leak {
            counter: "realloc",
            function: "take_realloc",
            mfa: Some("leaky:leak_realloc/2"),
            ..OF_LEAKY
        }),
        ..LEAK
    },
    Scenario {
        name: "operator_new",
        before: &[CHURN, "leak new 1000 40 50"],
        leak: Some(Leak {
            counter: "new",
            library: "leaky_cpp.so",
            function: "add_entry",
            mfa: Some("leaky_cpp:leak_new/2"),
            ..OF_LEAKY
        }),
        ..LEAK
    },
    Scenario {
        name: "mmap",
        before: &[CHURN, "leak mmap 16384 4 50"],
        leak: Some(Leak { counter: "mmap", function: "take_mmap", mfa: Some("leaky:leak_mmap/2"), ..OF_LEAKY }),
        ..LEAK
    },
    Scenario {
        name: "own_allocator",
        before: &[CHURN, "leak pool 1000 80 50"],
        leak: Some(Leak { counter: "pool", function: "pool_chunk", mfa: Some("scenario:leak_pool/2"), ..OF_SCENARIO }),
        ..LEAK
    },
    Scenario {
        name: "own_thread",
        before: &[CHURN, "leak worker 1000 40 50"],
        leak: Some(Leak { counter: "worker", function: "worker_take", ..OF_SCENARIO }),
        ..LEAK
    },
    Scenario {
        name: "dirty_nif",
        before: &[CHURN, "leak dirty 1000 40 50"],
        leak: Some(Leak { counter: "dirty", function: "take_malloc", mfa: Some("leaky:leak_dirty/2"), ..OF_LEAKY }),
        ..LEAK
    },
    Scenario {
        name: "driver",
        before: &[CHURN, "leak driver_malloc 1000 40 50"],
        leak: Some(Leak {
            counter: "driver_malloc",
            library: "scenario_drv.so",
            function: "keep_malloc",
            mfa: Some("erlang:port_command/2"),
            ..OF_SCENARIO
        }),
        ..LEAK
    },
    Scenario {
        name: "opened_library",
        before: &[CHURN, "leak library 1000 40 50"],
        leak: Some(Leak {
            counter: "library",
            library: "scenario_lib.so",
            function: "library_take",
            mfa: Some("scenario:leak_library/2"),
            ..OF_SCENARIO
        }),
        ..LEAK
    },
    Scenario {
        name: "slow_amid_churn",
        before: &["call scenario churn 50000 512", "leak malloc 500 6 50"],
        leak: MALLOC,
        seconds: 15,
        ..LEAK
    },
];

/// Through the VM's own interfaces.
pub(super) const THROUGH_VM: &[Scenario] = &[
    Scenario { name: "enif_alloc", before: &[CHURN, "leak enif_alloc 1000 40 50"], truth: NIF_LEAK, ..QUIET },
    Scenario { name: "resources", before: &[CHURN, "leak resource 1000 40 50"], truth: NIF_LEAK_OF_SCENARIO, ..QUIET },
    Scenario { name: "driver_alloc", before: &[CHURN, "leak driver_alloc 1000 40 50"], truth: DRIVER_LEAK, ..QUIET },
];

/// The same leaks where something else is unusual.
pub(super) const CONDITIONS: &[Scenario] = &[
    Scenario {
        name: "two_causes_malloc_and_ets",
        before: &["leak malloc 1000 40 50", "leak ets 1000 40 50"],
        leak: MALLOC,
        truth: &[("native_leak", Truth::Yes("take_malloc")), ("vm_growth", Truth::Yes("ets"))],
        ..QUIET
    },
    Scenario {
        name: "two_causes_enif_alloc_and_fragmentation",
        before: &["call allocators ets 600000", "leak enif_alloc 1000 40 50"],
        truth: &[("nif_leak", Truth::Yes("leaky")), ("fragmentation", Truth::Yes("ets_alloc"))],
        ..QUIET
    },
    Scenario {
        name: "malloc_with_a_super_carrier",
        arguments: &["+MMscs", "256"],
        before: &[CHURN, "leak malloc 1000 40 50"],
        leak: MALLOC,
        ..LEAK
    },
    Scenario {
        name: "malloc_without_allocators",
        arguments: &["+Mea", "min"],
        before: &[CHURN, "leak malloc 1000 40 50"],
        leak: MALLOC,
        truth: &[
            ("native_leak", Truth::Yes("take_malloc")),
            ("nif_leak", UNSEEN),
            ("fragmentation", UNSEEN),
            ("vm_growth", UNSEEN),
        ],
        ..QUIET
    },
    Scenario {
        name: "malloc_with_four_schedulers",
        arguments: &["+S", "4"],
        before: &[CHURN, "leak malloc 1000 40 50"],
        leak: MALLOC,
        ..LEAK
    },
    Scenario {
        name: "malloc_of_a_node_that_is_killed",
        before: &[CHURN, "leak malloc 1000 40 50"],
        killed: true,
        leak: MALLOC,
        ..LEAK
    },
];

const LEAK: Scenario = Scenario { truth: &[("native_leak", Truth::Yes(""))], ..QUIET };

const OF_LEAKY: Leak = Leak { verdict: "native_leak", counter: "", library: "leaky.so", function: "", mfa: None };

const OF_SCENARIO: Leak = Leak { verdict: "native_leak", counter: "", library: "scenario.so", function: "", mfa: None };

const MALLOC: Option<Leak> =
    Some(Leak { counter: "malloc", function: "take_malloc", mfa: Some("leaky:leak_malloc/2"), ..OF_LEAKY });

const NIF_LEAK: &[(&str, Truth)] = &[("nif_leak", Truth::Yes("leaky"))];
const NIF_LEAK_OF_SCENARIO: &[(&str, Truth)] = &[("nif_leak", Truth::Yes("scenario"))];
const DRIVER_LEAK: &[(&str, Truth)] = &[("nif_leak", Truth::Yes("scenario_drv"))];

/// Without carriers, the VM's blocks are those of the C library.
const UNSEEN: Truth = Truth::OneOf(&["ruled_out", "inconclusive"], "the VM's allocators are switched off");
