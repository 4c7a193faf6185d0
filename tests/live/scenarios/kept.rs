//! Memory that is resident and not in use.

use super::{QUIET, Scenario, Truth};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "fragmented_table",
        before: &["call allocators ets 800000"],
        truth: &[("fragmentation", Truth::Yes("ets_alloc"))],
        ..QUIET
    },
    Scenario {
        name: "fragmented_binaries",
        before: &["call scenario fragment_binaries 60000 20"],
        truth: &[("fragmentation", Truth::Yes("binary_alloc"))],
        ..QUIET
    },
    Scenario {
        name: "fragmented_heaps",
        before: &["call scenario fragment_heaps 6000 1500 20"],
        truth: &[("fragmentation", Truth::Yes("eheap_alloc"))],
        ..QUIET
    },
    Scenario {
        name: "retained_by_the_c_library",
        before: &["call scenario retain 4 30000 1000"],
        truth: &[("libc_retention", Truth::Yes(""))],
        ..QUIET
    },
    Scenario {
        name: "lazily_freed",
        before: &["call scenario lazily_free 134217728"],
        truth: &[("reclaimable", Truth::Yes(""))],
        ..QUIET
    },
    Scenario {
        name: "idle_super_carrier",
        arguments: &["+MMscs", "512"],
        before: &["call scenario drop_binaries 20000 10000"],
        truth: &[("reclaimable", Truth::Yes(""))],
        ..QUIET
    },
];
