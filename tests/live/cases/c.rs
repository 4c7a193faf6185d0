//! What is expected of the C library `stacks.c`?

use super::{Case, DIRTY, PROCESS, Site, THREAD, VM};

const CHAIN: &str = "libc.so.6!malloc
    stacks.so!keep_block@malloc(bytes)
    stacks.so!chain_four@LINK(chain_four,
    stacks.so!chain_three@LINK(chain_three,
    stacks.so!chain_two@LINK(chain_two,
    stacks.so!chain_one@LINK(chain_one,
    stacks.so!leak@.take(bytes)";

const NORMAL: Site = &[
    ("thread_kind", Some("normal scheduler")),
    ("thread", Some("*sched*")),
    ("library", Some("stacks.so")),
    ("mfa", Some("stacks:leak/3")),
    ("creator", None),
    ("driver", None),
];

const fn case(name: &'static str, stack: &'static [&'static str]) -> Case {
    Case { module: "stacks", name, stack, site: NORMAL, creator: &[] }
}

/// Erlang's ways to call a NIF, and C's ways to nest.
pub(crate) const CALLS: [Case; 20] = [
    case("chain", &[CHAIN, VM, "stacks:leak/3", "stacks:direct/3@direct", PROCESS]),
    case(
        "recurse",
        &[
            "libc.so.6!malloc",
            "stacks.so!keep_block@malloc(bytes)",
            "25 stacks.so!recurse@recurse(bytes, depth - 1)",
            "stacks.so!begin_recursion@recurse(bytes, RECURSIONS)",
            "stacks.so!leak@.take(bytes)",
            VM,
            "stacks:leak/3",
            "stacks:direct/3@direct",
            PROCESS,
        ],
    ),
    case(
        "sort",
        &[
            "libc.so.6!malloc",
            "stacks.so!keep_block@malloc(bytes)",
            "stacks.so!compare_pair@keep_block(*one->wanted)",
            "+ libc.so.6!*",
            "stacks.so!sort_pair@qsort(",
            "stacks.so!leak@.take(bytes)",
            VM,
            "stacks:leak/3",
            "stacks:direct/3@direct",
            PROCESS,
        ],
    ),
    case(
        "large",
        &[
            "libc.so.6!malloc",
            "stacks.so!keep_block@malloc(bytes)",
            "3 stacks.so!large_frame@large_frame(bytes, depth - 1)",
            "stacks.so!begin_large@large_frame(bytes, LARGE_FRAMES)",
            "stacks.so!leak@.take(bytes)",
            VM,
            "stacks:leak/3",
            "stacks:direct/3@direct",
            PROCESS,
        ],
    ),
    case("nested", &[CHAIN, VM, "stacks:leak/3", "stacks:nested/3@nested_end", "4 stacks:nested/3@nested", PROCESS]),
    // Calls at the end of a function leave no frame of it.
    case("tail_call", &[CHAIN, VM, "stacks:leak/3", PROCESS]),
    case("comprehension", &[CHAIN, VM, "stacks:leak/3", "3 stacks:-comprehension/2-*@comprehension", PROCESS]),
    case(
        "anonymous",
        &[
            CHAIN,
            VM,
            "stacks:leak/3",
            "stacks:-anonymous/2-fun-0-/*@anonymous_fun",
            "stacks_marks:calls/2@calls",
            "stacks:anonymous/2@anonymous",
            PROCESS,
        ],
    ),
    case(
        "map",
        &[CHAIN, VM, "stacks:leak/3", "stacks:-map/2-fun-0-/*@map_fun", "3 lists:map*", "stacks:map/2@map", PROCESS],
    ),
    case(
        "foldl",
        &[
            CHAIN,
            VM,
            "stacks:leak/3",
            "stacks:-foldl/2-fun-0-/*@foldl_fun",
            "lists:foldl*",
            "stacks:foldl/2@foldl",
            PROCESS,
        ],
    ),
    case("applied", &[CHAIN, VM, "stacks:leak/3", "stacks:applied/3@applied", PROCESS]),
    case("guarded", &[CHAIN, VM, "stacks:leak/3", "stacks:guarded/2@guarded", PROCESS]),
    case(
        "worker",
        &[
            CHAIN,
            VM,
            "stacks:leak/3",
            "MyApp.Worker:anonymous fn/*@worker_fun",
            "stacks_marks:calls/2@calls",
            "MyApp.Worker:run/2@worker",
            PROCESS,
        ],
    ),
    case(
        "server",
        &[
            CHAIN,
            VM,
            "stacks:leak/3",
            "stacks_server:handle_call/3@server_call",
            "+ gen_server:*",
            "proc_lib:init_p_do_apply/3",
        ],
    ),
    case("spawned", &[CHAIN, VM, "stacks:leak/3", "stacks:-spawned/2-fun-0-/*@spawned_fun"]),
    case("proc_lib", &[CHAIN, VM, "stacks:leak/3", "stacks:-of_proc_lib/2-fun-0-/*@proc_lib_fun", "proc_lib:init_p/3"]),
    Case {
        site: &[
            ("thread_kind", Some("dirty CPU scheduler")),
            ("mfa", Some("stacks:leak_dirty_cpu/3")),
            ("creator", None),
        ],
        ..case("dirty_cpu", &[CHAIN, DIRTY, "stacks:leak_dirty_cpu/3", "stacks:dirty_cpu/2@dirty_cpu", PROCESS])
    },
    Case {
        site: &[
            ("thread_kind", Some("dirty IO scheduler")),
            ("mfa", Some("stacks:leak_dirty_io/3")),
            ("creator", None),
        ],
        ..case("dirty_io", &[CHAIN, DIRTY, "stacks:leak_dirty_io/3", "stacks:dirty_io/2@dirty_io", PROCESS])
    },
    Case {
        site: &[
            ("thread_kind", Some("NIF thread")),
            ("thread", Some("stacks_thread")),
            ("library", Some("stacks.so")),
            ("mfa", None),
        ],
        creator: &[
            "* libc.so.6!*",
            "* beam.smp!*",
            "stacks.so!start_thread@enif_thread_create(",
            "stacks.so!leak_thread@start_thread(&asked)",
            VM,
            "stacks:leak_thread/2",
            "stacks:thread/2@thread",
            PROCESS,
        ],
        ..case(
            "thread",
            &[
                "libc.so.6!malloc",
                "stacks.so!keep_block@malloc(bytes)",
                "stacks.so!chain_four@LINK(chain_four,",
                "stacks.so!thread_block@chain_four(bytes)",
                "stacks.so!thread_main@thread_block(order->bytes)",
                THREAD,
            ],
        )
    },
    Case {
        site: &[("library", Some("stacks.so")), ("mfa", None)],
        ..case(
            "pthread",
            &[
                "libc.so.6!malloc",
                "stacks.so!keep_block@malloc(bytes)",
                "stacks.so!chain_four@LINK(chain_four,",
                "stacks.so!thread_block@chain_four(bytes)",
                "stacks.so!pthread_main@thread_block(order->bytes)",
                "+ libc.so.6!*",
            ],
        )
    },
];

/// A module that is loaded anew between two cases.
pub(crate) const RELOADS: [Case; 3] = [
    case(
        "loaded_first",
        &[CHAIN, VM, "stacks:leak/3", "stacks_loaded:first/2@first", "stacks_loader:reload/4@reload", PROCESS],
    ),
    case(
        "loaded_second",
        &[CHAIN, VM, "stacks:leak/3", "stacks_loaded:second/2@second", "stacks_loader:reload/4@reload", PROCESS],
    ),
    case("chain", &[CHAIN, VM, "stacks:leak/3", "stacks:direct/3@direct", PROCESS]),
];
