//! Memory that comes and goes, or came and stays: nothing of it is to be confirmed.

use super::{CHURN, QUIET, Scenario};

pub(super) const NATIVE: &[Scenario] = &[
    Scenario { name: "idle", ..QUIET },
    Scenario { name: "crypto_in_balance", before: &["call scenario crypto 2000"], ..QUIET },
    Scenario { name: "malloc_in_balance", before: &["call scenario churn 20000 4096"], ..QUIET },
    Scenario {
        name: "pool_that_fills_once",
        before: &[CHURN],
        during: &["call scenario fill_in 0 3000 10000 1000"],
        ..QUIET
    },
    Scenario { name: "cache_that_levels_off", during: &["call scenario cache 4000 4096 1600"], ..QUIET },
    Scenario { name: "burst", before: &[CHURN], during: &["call scenario burst 2500 0 5000 10000"], ..QUIET },
    Scenario { name: "warm_before", before: &["call scenario fill 10000 4000 10000", CHURN], ..QUIET },
    Scenario { name: "leak_before", before: &["once malloc 1000 60000", CHURN], ..QUIET },
    Scenario { name: "realloc_in_balance", before: &["call scenario resizing 0 100"], ..QUIET },
    Scenario { name: "sessions", before: &["call scenario sessions 0 4096 2000", "call timer sleep 2000"], ..QUIET },
    Scenario { name: "sessions_that_begin", during: &["call scenario sessions 0 4096 1500"], ..QUIET },
    Scenario { name: "mappings_in_balance", before: &["call scenario maps 200 262144"], ..QUIET },
    Scenario { name: "threads_in_balance", before: &["call scenario threads_that_end 10 500 1000"], ..QUIET },
    Scenario { name: "without_allocators", arguments: &["+Mea", "min"], before: &[CHURN], ..QUIET },
    Scenario {
        name: "four_schedulers",
        arguments: &["+S", "4"],
        before: &[CHURN, "call scenario text 1000", "call scenario binaries 2000 1000"],
        ..QUIET
    },
    Scenario { name: "super_carrier_in_use", arguments: &["+MMscs", "256"], before: &[CHURN], ..QUIET },
];

pub(super) const VM: &[Scenario] = &[
    Scenario { name: "binaries_dropped", before: &["call scenario binaries 3000 10000"], ..QUIET },
    Scenario { name: "binaries_that_stay", during: &["call scenario binary_pool 3000 10000 1000"], ..QUIET },
    Scenario { name: "rows_in_balance", before: &["call scenario rows 20000 4000"], ..QUIET },
    Scenario { name: "rows_that_level_off", during: &["call scenario rows_that_level_off 20000 8000"], ..QUIET },
    Scenario { name: "tables_in_balance", before: &["call scenario tables 20 500"], ..QUIET },
    Scenario { name: "processes_in_balance", before: &["call scenario processes 2000 300"], ..QUIET },
    Scenario {
        name: "heaps_in_waves",
        before: &["call scenario heap_waves 20 50000", "call timer sleep 3000"],
        ..QUIET
    },
    Scenario { name: "messages_in_balance", before: &["call scenario messages 3000 100"], ..QUIET },
    Scenario { name: "resources_in_balance", before: &["call scenario resources 3000 1000"], ..QUIET },
    Scenario { name: "enif_alloc_in_balance", before: &["call scenario enif_allocs 5000 1000"], ..QUIET },
    Scenario { name: "driver_alloc_in_balance", before: &["call scenario driver_allocs 5000 1000"], ..QUIET },
    Scenario { name: "timers", before: &["call scenario timers 2000"], ..QUIET },
    Scenario { name: "ports_in_balance", before: &["call scenario ports 1000"], ..QUIET },
    Scenario { name: "modules_loaded_once", during: &["once code 1 50"], ..QUIET },
    Scenario { name: "known_atoms", before: &["call scenario known_atoms 5000"], ..QUIET },
    Scenario { name: "files_read", before: &["call scenario files 100"], ..QUIET },
    Scenario { name: "text", before: &["call scenario text 1000"], ..QUIET },
];
