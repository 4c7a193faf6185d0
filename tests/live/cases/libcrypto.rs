//! What is expected of `stacks_ssl.c`, which libcrypto calls back?

use super::{Case, PROCESS, Site};

const SSL: Site = &[
    ("thread_kind", Some("normal scheduler")),
    ("library", Some("stacks_ssl.so")),
    ("mfa", Some("stacks_ssl:leak/3")),
];
const WANTED: &str = "libc.so.6!malloc
    stacks_ssl.so!keep_block@malloc(bytes)
    stacks_ssl.so!take_wanted@keep_block(*wanted)";
const SSL_CALLER: &str = "stacks_ssl.so!leak@.take(bytes)
    + beam.smp!*
    stacks_ssl:leak/3
    stacks_ssl:called_back/3@ssl_scene";

const fn ssl(name: &'static str, stack: &'static [&'static str]) -> Case {
    Case { module: "stacks_ssl", name, stack, site: SSL, creator: &[] }
}

pub(crate) const SSL_CASES: [Case; 3] = [
    ssl(
        "once",
        &[
            WANTED,
            "stacks_ssl.so!first_time@take_wanted(",
            "+ libc.so.6!*",
            "+ libcrypto.so*!*",
            "stacks_ssl.so!call_once@run_once(",
            SSL_CALLER,
            PROCESS,
        ],
    ),
    ssl(
        "sort",
        &[
            WANTED,
            "stacks_ssl.so!compare_entries@take_wanted(",
            "+ libc.so.6!*",
            "+ libcrypto.so*!*",
            "stacks_ssl.so!sort_stack@sk_sort(",
            SSL_CALLER,
            PROCESS,
        ],
    ),
    ssl(
        "bio",
        &[
            WANTED,
            "stacks_ssl.so!bio_written@take_wanted(",
            "+ libcrypto.so*!*",
            "stacks_ssl.so!write_bio@bio_write(",
            SSL_CALLER,
            PROCESS,
        ],
    ),
];
