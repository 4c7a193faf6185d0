//! Keeps each stack once, by a hash of it; stacks with the same hash are told apart by their values.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use beamscope_probe::{Counter, STACK_WORDS, StoredStack};

use super::{
    maps::{FORCE_WAKEUP, NEW_STACKS, STACKS, WALKS, count},
    walk::{Walk, mix},
};

/// Keys that are tried for stacks with the same hash.
const PLACES_TRIED: u32 = 4;
const NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// A search for the place of a stack.
#[repr(C)]
struct Keep {
    hash: u64,
    /// The key, when it is found.
    key: u64,
    slot: u32,
    /// 1 where the table is full.
    full: u32,
}

/// Enters the stack where it is not known yet; its key.
#[inline(always)]
pub(crate) fn keep(walk: &mut Walk, slot: u32) -> Option<u64> {
    let stack = &walk.stack;
    let mut hash = walk.hash;
    hash = mix(hash, (u64::from(stack.native) << 32) | u64::from(stack.erlang));
    hash = mix(hash, (u64::from(stack.end) << 32) | u64::from(stack.erlang_end));
    hash = mix(hash, (u64::from(stack.leaf_is_return) << 32) | u64::from(stack.scheduler));
    let [module, function, arity] = stack.current;
    hash = mix(mix(mix(hash, module), function), arity);
    hash = mix(hash, stack.driver);
    let [first, second] = command_words(stack);
    hash = mix(mix(hash, first), second);
    let mut keep = Keep { hash, key: 0, slot, full: 0 };
    let context = (&raw mut keep).cast::<c_void>();
    // SAFETY: the callback has the form that the helper asks for.
    unsafe { bpf_loop(PLACES_TRIED, try_place as *mut c_void, context, 0) };
    if keep.key != 0 {
        return Some(keep.key);
    }
    count(if keep.full != 0 { Counter::StackTableFull } else { Counter::StackCollisions });
    None
}

#[inline(never)]
extern "C" fn try_place(attempt: u32, context: *mut c_void) -> i64 {
    // SAFETY: the search, on the stack of the function that runs the loop.
    let keep = unsafe { &mut *context.cast::<Keep>() };
    let Some(walk) = WALKS.get_ptr_mut(keep.slot) else { return 1 };
    // SAFETY: the slot is this program's until it is given back.
    let stack = unsafe { &(*walk).stack };
    let key = keep.hash.wrapping_add(attempt.into()) | 1 << 63;
    let mut known = STACKS.get_ptr(key);
    if known.is_none() {
        match STACKS.insert(key, stack, NOEXIST) {
            Ok(()) => {
                announce(key);
                keep.key = key;
                return 1;
            }
            // Another processor was faster, with this stack or another one.
            Err(EEXIST) => known = STACKS.get_ptr(key),
            Err(_) => {
                keep.full = 1;
                return 1;
            }
        }
    }
    let Some(known) = known else { return 0 };
    // SAFETY: a map value, valid until the program ends, that nobody changes.
    if has_same_head(unsafe { &*known }, stack) && has_same_words(key, keep.slot, stack.native + stack.erlang) {
        keep.key = key;
        return 1;
    }
    0
}

#[inline(always)]
fn command_words(stack: &StoredStack) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = stack.command;
    [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p])]
}

#[inline(always)]
fn has_same_head(known: &StoredStack, stack: &StoredStack) -> bool {
    known.native == stack.native
        && known.erlang == stack.erlang
        && known.end == stack.end
        && known.erlang_end == stack.erlang_end
        && known.leaf_is_return == stack.leaf_is_return
        && known.scheduler == stack.scheduler
        && known.current == stack.current
        && known.driver == stack.driver
        && command_words(known) == command_words(stack)
}

/// Words that are compared at a time.
const COMPARED: usize = 16;

/// A comparison of a stack that is known with one that was walked.
#[repr(C)]
struct Compare {
    key: u64,
    slot: u32,
    words: u32,
    differ: u32,
}

#[inline(always)]
fn has_same_words(key: u64, slot: u32, words: u32) -> bool {
    let mut compare = Compare { key, slot, words, differ: 0 };
    let context = (&raw mut compare).cast::<c_void>();
    // SAFETY: the callback has the form that the helper asks for.
    unsafe { bpf_loop((STACK_WORDS / COMPARED) as u32, compare_words as *mut c_void, context, 0) };
    compare.differ == 0
}

#[inline(never)]
extern "C" fn compare_words(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the comparison, on the stack of the function that runs the loop.
    let compare = unsafe { &mut *context.cast::<Compare>() };
    let first = index as usize * COMPARED;
    if first >= compare.words as usize || first > STACK_WORDS - COMPARED {
        return 1;
    }
    let (Some(known), Some(walk)) = (STACKS.get_ptr(compare.key), WALKS.get_ptr_mut(compare.slot)) else {
        compare.differ = 1;
        return 1;
    };
    // SAFETY: `first` and what is compared from there on lie in the array of a map value that nobody changes.
    let known = unsafe { (&raw const (*known).words).cast::<u64>().add(first) };
    // SAFETY: likewise, and the slot is this program's until it is given back.
    let words = unsafe { (&raw const (*walk).stack.words).cast::<u64>().add(first) };
    let left = compare.words - first as u32;
    let mut difference = 0;
    for offset in 0..COMPARED {
        // What stands behind the end is left over from other stacks.
        if (offset as u32) < left {
            // SAFETY: as above.
            difference |= unsafe { *known.add(offset) ^ *words.add(offset) };
        }
    }
    if difference != 0 {
        compare.differ = 1;
        return 1;
    }
    0
}

/// Tells the agent of a new stack, so that it learns its names while they are there.
#[inline(always)]
fn announce(key: u64) {
    // Where the ring buffer is full, the agent finds the stack in the table.
    if let Some(mut entry) = NEW_STACKS.reserve::<u64>(0) {
        entry.write(key);
        // At once: Erlang code can be purged a moment later, and its names with it.
        entry.submit(FORCE_WAKEUP);
    }
}
