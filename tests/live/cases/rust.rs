//! What is expected of the Rust library `stacks_rust.rs`?

use super::{Case, PROCESS, Site};

const RUST: Site = &[
    ("thread_kind", Some("normal scheduler")),
    ("library", Some("stacks_rust.so")),
    ("mfa", Some("stacks_rust:leak/3")),
];
const RUST_CALLER: &str = "+ beam.smp!*\n stacks_rust:leak/3\n stacks_rust:scene/3@rust_scene";

const fn rust(name: &'static str, stack: &'static [&'static str]) -> Case {
    Case { module: "stacks_rust", name, stack, site: RUST, creator: &[] }
}

/// Between the C library and a function of the fixture there may be functions of Rust's standard library.
pub(crate) const RUST_CASES: [Case; 4] = [
    rust(
        "vec",
        &[
            "libc.so.6!malloc",
            "* stacks_rust.so!*alloc*",
            "stacks_rust.so!stacks_rust::rows*",
            "stacks_rust.so!stacks_rust::of_vec*@rows(bytes)",
            "stacks_rust.so!stacks_rust::leak*@take(bytes",
            RUST_CALLER,
            PROCESS,
        ],
    ),
    rust(
        "zeroed",
        &[
            "libc.so.6!calloc",
            "* stacks_rust.so!*alloc*",
            "stacks_rust.so!stacks_rust::rows_of_zeros*",
            "stacks_rust.so!stacks_rust::of_zeroed*@rows_of_zeros(bytes)",
            "stacks_rust.so!stacks_rust::leak*@take(bytes",
            RUST_CALLER,
            PROCESS,
        ],
    ),
    rust(
        "grown",
        &[
            "libc.so.6!realloc",
            "* stacks_rust.so!*alloc*",
            "stacks_rust.so!stacks_rust::grow*",
            "stacks_rust.so!stacks_rust::of_grown*@grow(",
            "stacks_rust.so!stacks_rust::leak*@take(bytes",
            RUST_CALLER,
            PROCESS,
        ],
    ),
    rust(
        "closure",
        &[
            "libc.so.6!malloc",
            "* stacks_rust.so!*alloc*",
            "stacks_rust.so!stacks_rust::rows*",
            "stacks_rust.so!stacks_rust::of_closure::{*closure*@rows(bytes + extra)",
            "stacks_rust.so!stacks_rust::call*@make(bytes)",
            "stacks_rust.so!stacks_rust::of_closure*",
            "stacks_rust.so!stacks_rust::leak*@take(bytes",
            RUST_CALLER,
            PROCESS,
        ],
    ),
];
