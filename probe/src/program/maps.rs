//! The tables, and the counters of what did not fit into them.
//!
//! Sizes that depend on the user's choice are set by the agent before loading (`map_max_entries`).

use core::arch::asm;

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use beamscope_probe::{
    Block, Call, Control, Counter, EXPONENTIAL_DRAWS, MODULES, Module, PLACES, Pace, ROWS_PER_CHUNK, Row, Rule,
    Scheduler, Site, SiteKey, StoredStack, WALK_ENDS,
};

use super::{
    mapping::MappingRequest,
    walk::{Budget, SLOTS, Walk},
};

/// One element, written by the agent.
#[map]
pub(crate) static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
/// By [`Counter`].
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);
/// Allocation functions in progress, by thread id. Entries stay and are used again; the kernel drops those of threads
/// that are gone when it needs room. The agent makes it larger on machines with many processors, each of which takes a
/// share of the entries for itself.
#[map]
pub(crate) static CALLS: LruHashMap<u32, Call> = LruHashMap::with_max_entries(16_384, 0);
/// As `CALLS`, for the VM's functions.
#[map]
pub(crate) static VM_CALLS: LruHashMap<u32, Call> = LruHashMap::with_max_entries(16_384, 0);
/// End of the heap that `brk` moves; the agent enters where it is at the start.
#[map]
pub(crate) static HEAP_END: Array<u64> = Array::with_max_entries(1, 0);
/// Live blocks, by address.
#[map]
pub(crate) static LIVE: HashMap<u64, Block> = HashMap::with_max_entries(1 << 20, 0);
/// As `LIVE`, for the VM's functions.
#[map]
pub(crate) static VM_LIVE: HashMap<u64, Block> = HashMap::with_max_entries(1 << 20, 0);
/// What was allocated where.
#[map]
pub(crate) static SITES: HashMap<SiteKey, Site> = HashMap::with_max_entries(1 << 16, 0);
/// Bytes until the next sample.
#[map]
pub(crate) static COUNTDOWN: PerCpuArray<i64> = PerCpuArray::with_max_entries(1, 0);
/// Distances between samples, written by the agent.
#[map]
pub(crate) static EXPONENTIAL: Array<u64> = Array::with_max_entries(EXPONENTIAL_DRAWS, 0);
/// Stack samples.
#[map]
pub(crate) static SAMPLES: RingBuf = RingBuf::with_byte_size(32 << 20, 0);
/// Mapping events.
#[map]
pub(crate) static MAPPINGS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);
/// Mapping calls in progress, by thread id.
#[map]
pub(crate) static MAPPING_CALLS: HashMap<u32, MappingRequest> = HashMap::with_max_entries(16_384, 0);
/// Threads that run Erlang processes, by thread id.
#[map]
pub(crate) static SCHEDULERS: HashMap<u32, Scheduler> = HashMap::with_max_entries(8192, 0);
/// Ranges of code: two tables, one of which is in use.
#[map]
pub(crate) static MODULE_TABLE: Array<Module> = Array::with_max_entries(2 * MODULES, 0);
/// Unwind rows of all modules: an offset in the lower half, the index of a rule in the upper. The agent sets the number
/// of chunks.
#[map]
pub(crate) static ROWS: Array<[Row; ROWS_PER_CHUNK]> = Array::with_max_entries(1, 0);
/// What the rows refer to.
#[map]
pub(crate) static RULES: Array<Rule> = Array::with_max_entries(1 << 15, 0);
/// Rules of the places that were last asked for.
#[map]
pub(crate) static PLACE_CACHE: Array<u64> = Array::with_max_entries(PLACES, 0);
/// Walks in progress.
#[map]
pub(crate) static WALKS: PerCpuArray<Walk> = PerCpuArray::with_max_entries(SLOTS, 0);
/// What walks may cost.
#[map]
pub(crate) static WALK_BUDGET: PerCpuArray<Budget> = PerCpuArray::with_max_entries(1, 0);
/// Which page faults are looked at.
#[map]
pub(crate) static FAULT_PACE: PerCpuArray<Pace> = PerCpuArray::with_max_entries(1, 0);
/// Walks by how they ended.
#[map]
pub(crate) static WALKS_BY_END: PerCpuArray<u64> = PerCpuArray::with_max_entries(WALK_ENDS, 0);
/// All stacks that were walked, by a hash of them. Memory is taken as it is needed.
#[map]
pub(crate) static STACKS: HashMap<u64, StoredStack> = HashMap::with_max_entries(1 << 15, NO_PREALLOC);
/// Keys of stacks that are new.
#[map]
pub(crate) static NEW_STACKS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h).
const NO_PREALLOC: u32 = 1;

/// `bpf_ringbuf_submit`: the agent polls, so that the node's thread need not wake it.
pub(crate) const NO_WAKEUP: u64 = 1;
/// Where it must hear of it at once.
pub(crate) const FORCE_WAKEUP: u64 = 2;

/// Adds to a word that other processors write too.
///
/// `core`'s atomics need a compare-and-swap, which BPF has from Linux 5.12 on only; this is the older instruction.
#[inline(always)]
pub(crate) fn add(word: *mut u64, amount: u64) {
    // SAFETY: the caller took the pointer out of a map value, where it is valid and aligned until the program ends.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {amount}", word = in(reg) word, amount = in(reg) amount) };
}

/// Adds to a counter.
#[inline(always)]
pub(crate) fn count_by(counter: Counter, amount: u64) {
    if let Some(word) = COUNTERS.get_ptr_mut(counter as u32) {
        add(word, amount);
    }
}

/// Adds 1 to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_by(counter, 1);
}

/// The agent's settings while the recording goes on.
#[inline(always)]
pub(crate) fn recording() -> Option<&'static Control> {
    CONTROL.get(0).filter(|control| control.recording != 0)
}
