//! Small stacks, from the leaf to the root, and whose the memory is.

use super::*;
use crate::{
    ledger::{Series, Survivors},
    sample::{frame, jit, stripped},
};

fn site(frames: &[Frame], end: StackEnd) -> Site {
    Site {
        stack: Stack { frames: frames.to_vec(), end },
        asked: Asked::System,
        thread: None,
        creator: None,
        driver: None,
        threads: Vec::new(),
        allocated_bytes: 1000,
        allocated_blocks: 1,
        freed_bytes: 0,
        freed_blocks: 0,
        outstanding: Series::default(),
        survivors: Survivors::default(),
        exact: true,
    }
}

/// `module!function`, or `module` for a stripped one.
fn frames(stack: &[&str]) -> Vec<Frame> {
    let parse = |text: &&str| match text.split_once('!') {
        Some((module, function)) => frame(module, function, None),
        None if *text == "[jit]" => jit(),
        None if *text == "?" => Frame { kind: FrameKind::Unknown, ..jit() },
        None => stripped(text, 0x10),
    };
    stack.iter().map(parse).collect()
}

fn native(library: &str) -> Class {
    Class::Native { library: library.into() }
}

#[track_caller]
fn check(stack: &[&str], end: StackEnd, class: &Class, responsible: Option<&str>, via: Option<&str>) {
    let found = attribute(&site(&frames(stack), end), &[]);
    assert_eq!(&found.class, class);
    assert_eq!(found.responsible.map(|index| stack[index]), responsible);
    assert_eq!(found.via.as_deref(), via);
    assert!(!found.evidence.is_empty());
}

#[test]
fn a_nif_is_native_though_the_vm_calls_it() {
    let stack = ["libc.so.6!malloc", "leaky.so!leak_block", "leaky.so!leak_nif", "beam.smp!beam_jit_call_nif", "[jit]"];
    check(&stack, StackEnd::Jit, &native("leaky.so"), Some("leaky.so!leak_block"), None);
    let stack = ["libc.so.6!malloc", "leaky.so", "leaky.so", "beam.smp", "[jit]"];
    check(&stack, StackEnd::Jit, &native("leaky.so"), Some("leaky.so"), None);
}

#[test]
fn a_nif_that_asks_the_vm_is_the_vms() {
    let stack = ["libc.so.6!mmap", "beam.smp!erts_mmap", "beam.smp!enif_alloc", "leaky.so!leak_nif", "beam.smp!x"];
    check(&stack, StackEnd::Jit, &Class::Vm, Some("leaky.so!leak_nif"), None);
}

#[test]
fn the_vms_own_function_is_past_its_allocators() {
    let stack = ["libc.so.6!mmap", "beam.smp!erts_mseg_alloc_opt", "beam.smp!create_carrier", "beam.smp!db_put_hash"];
    check(&stack, StackEnd::Jit, &Class::Vm, Some("beam.smp!db_put_hash"), None);
    let stack = ["libc.so.6!malloc", "beam.smp", "beam.smp", "[jit]"];
    check(&stack, StackEnd::Jit, &Class::Vm, Some("beam.smp"), None);
    let stack = ["libc.so.6!malloc", "beam.emu.smp!erts_sys_alloc", "beam.emu.smp!process_main"];
    check(&stack, StackEnd::Root, &Class::Vm, Some("beam.emu.smp!process_main"), None);
}

#[test]
fn a_library_is_named_with_its_nif() {
    let stack =
        ["libc.so.6!malloc", "libcrypto.so.3!CRYPTO_malloc", "crypto.so!hash_init_nif", "beam.smp!call", "[jit]"];
    check(&stack, StackEnd::Jit, &native("libcrypto.so.3"), Some("libcrypto.so.3!CRYPTO_malloc"), Some("crypto.so"));
    // A callback from the library into the NIF: the NIF asked.
    let stack = ["libc.so.6!malloc", "crypto.so!callback", "libcrypto.so.3!each", "crypto.so!nif", "beam.smp!call"];
    check(&stack, StackEnd::Jit, &native("crypto.so"), Some("crypto.so!callback"), None);
}

#[test]
fn wrappers_are_passed_by() {
    let stack = [
        "libc.so.6!malloc",
        "libstdc++.so.6!operator new(unsigned long)",
        "cache.so!std::vector<int, std::allocator<int> >::push_back(int const&)",
        "cache.so!Cache::insert(int)",
        "beam.smp!call",
    ];
    check(&stack, StackEnd::Jit, &native("cache.so"), Some("cache.so!Cache::insert(int)"), None);
    let stack = ["libc.so.6!malloc", "libc.so.6!strdup", "leaky.so!leak_nif", "beam.smp!call"];
    check(&stack, StackEnd::Jit, &native("leaky.so"), Some("leaky.so!leak_nif"), None);
    let stack = ["libjemalloc.so.2!malloc", "libjemalloc.so.2!arena_new", "leaky.so!leak_nif", "beam.smp!call"];
    check(&stack, StackEnd::Jit, &native("leaky.so"), Some("leaky.so!leak_nif"), None);
    // Only wrappers in the library: the first will have to do.
    let stack = ["libc.so.6!malloc", "rust.so!__rust_alloc", "beam.smp!call"];
    check(&stack, StackEnd::Jit, &native("rust.so"), Some("rust.so!__rust_alloc"), None);
}

#[test]
fn malloc_in_the_nif_itself_is_the_nifs() {
    let stack = ["leaky.so!malloc", "leaky.so!leak_nif", "beam.smp!call"];
    check(&stack, StackEnd::Jit, &native("leaky.so"), Some("leaky.so!leak_nif"), None);
}

#[test]
fn a_thread_belongs_to_its_code() {
    let stack = ["libc.so.6!malloc", "pool.so!worker", "beam.smp!thr_wrapper", "libc.so.6!start_thread"];
    check(&stack, StackEnd::Root, &native("pool.so"), Some("pool.so!worker"), None);
    let stack = ["libc.so.6!malloc", "pool.so!worker", "libc.so.6!start_thread"];
    check(&stack, StackEnd::Root, &native("pool.so"), Some("pool.so!worker"), None);
    let stack = ["libc.so.6!malloc", "libc.so.6!__res_init", "libc.so.6!start_thread"];
    check(&stack, StackEnd::Root, &native("libc.so.6"), Some("libc.so.6!start_thread"), None);
}

#[test]
fn the_caller_alone_decides_where_no_stack_was_captured() {
    check(&["libc.so.6!malloc", "leaky.so!leak"], StackEnd::Missing, &native("leaky.so"), Some("leaky.so!leak"), None);
    check(&["libc.so.6!malloc", "beam.smp"], StackEnd::Missing, &Class::Vm, Some("beam.smp"), None);
}

#[test]
fn what_the_stack_does_not_reach_is_unknown() {
    check(&[], StackEnd::Missing, &Class::Unknown, None, None);
    check(&["libc.so.6!malloc"], StackEnd::Missing, &Class::Unknown, None, None);
    check(&["libc.so.6!malloc", "libstdc++.so.6"], StackEnd::Truncated, &Class::Unknown, None, None);
    check(&["libc.so.6!malloc", "?", "beam.smp!call"], StackEnd::Jit, &Class::Unknown, None, None);
    // The VM's code calls its runtime; it never calls malloc. Something else makes code here.
    check(&["libc.so.6!malloc", "[jit]"], StackEnd::Jit, &Class::Unknown, None, None);
}

fn carrier(bytes: u64) -> CarrierSeen {
    CarrierSeen { site: 0, allocator: "ets_alloc".into(), bytes }
}

#[test]
fn a_carrier_proves_the_vm() {
    let missing = site(&[], StackEnd::Missing);
    let found = attribute(&missing, &[&carrier(1)]);
    assert_eq!(found.class, Class::Vm);
    let expected = Evidence::Carriers { count: 1, bytes: 1, allocators: vec!["ets_alloc".into()] };
    assert_eq!(found.evidence.first(), Some(&expected));

    let native_stack = site(&frames(&["libc.so.6!mmap", "odd.so!map", "beam.smp!call"]), StackEnd::Jit);
    assert_eq!(attribute(&native_stack, &[&carrier(400), &carrier(400)]).class, Class::Vm);
}

#[test]
fn one_stale_carrier_does_not_acquit_a_leak() {
    let leak = site(&frames(&["libc.so.6!malloc", "leaky.so!leak", "beam.smp!call"]), StackEnd::Jit);
    let found = attribute(&leak, &[&carrier(100)]);
    assert_eq!(found.class, native("leaky.so"));
    assert!(matches!(found.evidence.first(), Some(Evidence::Carriers { .. })), "it is said all the same");
}
