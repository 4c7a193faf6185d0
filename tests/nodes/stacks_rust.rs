//! What do stacks of Rust look like? NIF library `stacks_rust`: takes memory at the end of known chains of functions.
//!
//!   leak(vec, ...)     leak -> of_vec -> rows -> a Vec with room for all bytes -> malloc
//!   leak(zeroed, ...)  leak -> of_zeroed -> rows_of_zeros -> a Vec of zeros -> calloc
//!   leak(grown, ...)   leak -> of_grown -> grow -> a Vec of half of the bytes, which grows -> realloc
//!   leak(closure, ...) leak -> of_closure -> call -> a closure -> rows -> ... -> malloc
//!
//! `leak(Way, Blocks, Bytes)` keeps `Blocks` blocks of `Bytes` bytes; `lost/0` is the sum of all so far.
//!
//! It uses nothing but the standard library, so what it needs of `erl_nif.h` is declared here.

use std::{
    ffi::{c_char, c_int, c_uint, c_ulong, c_void},
    hint::black_box,
    mem,
    ptr::null,
    sync::atomic::{AtomicU64, Ordering},
};

type Term = usize;
type Function = unsafe extern "C" fn(*mut c_void, c_int, *const Term) -> Term;

#[repr(C)]
struct NifFunction {
    name: *const c_char,
    arity: c_uint,
    function: Function,
    flags: c_uint,
}

#[repr(C)]
struct NifEntry {
    major: c_int,
    minor: c_int,
    name: *const c_char,
    number_of_functions: c_int,
    functions: *const NifFunction,
    callbacks: [*const c_void; 4],
    vm_variant: *const c_char,
    options: c_uint,
    size_of_resource_type_init: usize,
    oldest_erts: *const c_char,
}

struct Shared<T>(T);

// SAFETY: nobody writes to them, and what they point to lives as long as the library.
unsafe impl<T> Sync for Shared<T> {}

static FUNCTIONS: Shared<[NifFunction; 2]> = Shared([
    NifFunction { name: c"leak".as_ptr(), arity: 3, function: leak, flags: 0 },
    NifFunction { name: c"lost".as_ptr(), arity: 0, function: lost, flags: 0 },
]);

// The interface of OTP 23, see any_release.h.
static ENTRY: Shared<NifEntry> = Shared(NifEntry {
    major: 2,
    minor: 15,
    name: c"stacks_rust".as_ptr(),
    number_of_functions: 2,
    functions: &raw const FUNCTIONS.0[0],
    callbacks: [null(); 4],
    vm_variant: c"beam.vanilla".as_ptr(),
    options: 1,
    size_of_resource_type_init: 4 * size_of::<usize>(),
    oldest_erts: c"erts-10.4".as_ptr(),
});

unsafe extern "C" {
    fn enif_get_ulong(env: *mut c_void, term: Term, value: *mut c_ulong) -> c_int;
    fn enif_get_atom(env: *mut c_void, term: Term, text: *mut c_char, size: c_uint, encoding: c_int) -> c_int;
    fn enif_make_atom(env: *mut c_void, name: *const c_char) -> Term;
    fn enif_make_ulong(env: *mut c_void, value: c_ulong) -> Term;
    fn enif_make_badarg(env: *mut c_void) -> Term;
}

#[no_mangle]
extern "C" fn nif_init() -> *const c_void {
    (&raw const ENTRY.0).cast()
}

static LOST: AtomicU64 = AtomicU64::new(0);

/// Forgets the block. What it holds is looked at, so that it is not left out.
#[inline(never)]
fn lose(mut block: Vec<u8>, bytes: usize) {
    block.resize(bytes, 0x5a);
    LOST.fetch_add(block.capacity() as u64, Ordering::Relaxed);
    mem::forget(black_box(block));
}

#[inline(never)]
fn rows(bytes: usize) -> Vec<u8> {
    let block = Vec::with_capacity(black_box(bytes));
    black_box(block)
}

#[inline(never)]
fn rows_of_zeros(bytes: usize) -> Vec<u8> {
    let block = vec![0; black_box(bytes)];
    black_box(block)
}

#[inline(never)]
fn grow(block: &mut Vec<u8>, bytes: usize) {
    let more = bytes - block.len();
    block.reserve_exact(more);
    black_box(block);
}

#[inline(never)]
fn of_vec(bytes: usize) {
    lose(rows(bytes), bytes);
    black_box(bytes);
}

#[inline(never)]
fn of_zeroed(bytes: usize) {
    lose(rows_of_zeros(bytes), bytes);
    black_box(bytes);
}

#[inline(never)]
fn of_grown(bytes: usize) {
    let mut block = vec![1; black_box(bytes / 2)];
    grow(&mut block, bytes);
    lose(block, bytes);
    black_box(bytes);
}

#[inline(never)]
fn call(make: &dyn Fn(usize) -> Vec<u8>, bytes: usize) -> Vec<u8> {
    black_box(make(bytes))
}

#[inline(never)]
fn of_closure(bytes: usize) {
    let extra = black_box(0);
    let block = call(black_box(&move |bytes| black_box(rows(bytes + extra))), bytes);
    lose(block, bytes);
    black_box(bytes);
}

unsafe extern "C" fn leak(env: *mut c_void, _argc: c_int, argv: *const Term) -> Term {
    let (mut way, mut blocks, mut bytes) = ([0_u8; 16], 0, 0);
    // SAFETY: the VM passes three terms, and the buffer has the size that is said.
    let understood = unsafe {
        enif_get_atom(env, *argv, way.as_mut_ptr().cast(), 16, 1) > 0
            && enif_get_ulong(env, *argv.add(1), &raw mut blocks) != 0
            && enif_get_ulong(env, *argv.add(2), &raw mut bytes) != 0
    };
    let take: fn(usize) = match way.split(|byte| *byte == 0).next() {
        Some(b"vec") => of_vec,
        Some(b"zeroed") => of_zeroed,
        Some(b"grown") => of_grown,
        Some(b"closure") => of_closure,
        // SAFETY: the environment is the VM's own.
        _ => return unsafe { enif_make_badarg(env) },
    };
    if !understood || bytes < 2 {
        // SAFETY: the environment is the VM's own.
        return unsafe { enif_make_badarg(env) };
    }
    for _ in 0..blocks {
        take(bytes as usize);
    }
    // SAFETY: the environment is the VM's own.
    unsafe { enif_make_atom(env, c"ok".as_ptr()) }
}

unsafe extern "C" fn lost(env: *mut c_void, _argc: c_int, _argv: *const Term) -> Term {
    // SAFETY: the environment is the VM's own.
    unsafe { enif_make_ulong(env, LOST.load(Ordering::Relaxed)) }
}

/// Before glibc 2.33, these were in a part of the C library that only its development package has. The standard library
/// refers to them, and nothing here calls them.
#[cfg(libc_without_stat)]
mod never_called {
    #[no_mangle]
    extern "C" fn stat64() {
        std::process::abort();
    }

    #[no_mangle]
    extern "C" fn fstat64() {
        std::process::abort();
    }
}
