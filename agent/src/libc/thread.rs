//! Which anonymous memory is the stack of which thread?
//!
//! A thread's descriptor lies in the mapping of its stack, at the upper end, and proves itself: it is part of a ring of
//! descriptors whose pointers lead back, and holds the number of a thread that exists. It also says where the block
//! lies that was mapped for it, which is needed where mappings of neighbours were merged.
//!
//! glibc (`nptl/descr.h`, run with 2.31, 2.36, 2.41 and 2.43): `list_t list`, then `pid_t tid`. `list` follows 192 bytes (`__padding`), or the
//! `tcbhead_t` where that is larger (704 bytes on `x86_64`); that one begins with a pointer to itself and has another as
//! its third word. musl (`src/internal/pthread_impl.h`, run with 1.2.3): `self`, on some machines `dtv`, then `prev`
//! and `next`, a word or three, and `tid`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{
    extents::Extents,
    mapping::Address,
    target::memory::ReadMemory,
    view::ProcessView,
    words::{read_words, words_of},
};

/// Bytes before `list` in glibc's descriptor where the machine's own part is small.
const PADDING: u64 = 192;
/// Bytes of `tcbhead_t` at most.
const LARGEST_HEAD: u64 = 1024;
/// Where `tid` is in musl's descriptor, in words, with `prev` and `next`: `TLS_ABOVE_TP` (arm64), and not (`x86_64`).
const MUSL: [(usize, usize); 2] = [(1, 4), (2, 6)];
/// Bytes of a descriptor in which the fields for the stack are looked for: glibc's has some 2.3 kB on `x86_64`, musl's
/// less than 300 bytes.
const DESCRIPTOR: usize = 4096;
/// Words at the begin of a descriptor that are looked at.
const WORDS: usize = 8;

/// The stack of a thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadStack {
    /// The thread, by its number in the process's own pid namespace.
    pub tid: u32,
    /// Its descriptor.
    pub descriptor: Address,
    /// The memory that was mapped for it, descriptor and thread-local variables included, without a guard that has a
    /// mapping of its own. Of the main thread, whose stack is elsewhere, it is what its descriptor was put into.
    pub range: Range<u64>,
}

/// A descriptor.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    tid: u32,
    at: u64,
}

/// Finds the threads whose descriptors lie in `unclaimed`, by rising address.
pub fn find(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), unclaimed: &[Range<u64>]) -> Vec<ThreadStack> {
    let mut threads = view.threads.clone();
    threads.sort_unstable();
    let mut found: Vec<Descriptor> = Vec::new();
    let unclaimed: Extents = unclaimed.iter().cloned().collect();
    for range in &unclaimed {
        let mut window = Window::default();
        memory.scan(range.clone(), &mut |at, bytes| {
            window.slide(at.0, bytes);
            look(memory, &threads, &window, &mut found);
        });
    }
    found.sort_unstable_by_key(|descriptor| descriptor.at);
    found.dedup_by_key(|descriptor| descriptor.at);
    // Two descriptors of one thread: one of them is not what it seems, and nothing tells which.
    let number = |tid: u32| found.iter().filter(|other| other.tid == tid).count();
    let proven: Vec<Descriptor> = found.iter().copied().filter(|descriptor| number(descriptor.tid) == 1).collect();
    stacks(view, memory, &unclaimed, &proven)
}

/// The thread whose descriptor is at `descriptor`, by its number in the process's own pid namespace. What `pthread_self`
/// returns is the address of the descriptor (`__pthread_self` in glibc's `nptl/descr.h` and musl's
/// `src/internal/pthread_impl.h`).
pub fn at(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), descriptor: Address) -> Option<u32> {
    let mut threads = view.threads.clone();
    threads.sort_unstable();
    let mapping = &view.mapping_at(descriptor)?.mapping;
    let room = usize::try_from(mapping.end.0.checked_sub(descriptor.0)?).ok()?;
    let mut bytes = vec![0; room.min(usize::try_from(LARGEST_HEAD).ok()? + WORDS * 8)];
    memory.read(descriptor, &mut bytes).ok()?;
    let window = Window { start: descriptor.0, words: words_of(&bytes) };
    let mut found = Vec::new();
    look(memory, &threads, &window, &mut found);
    // Bytes of glibc's descriptor may look like another one's.
    found.retain(|found| found.at == descriptor.0);
    match *found.as_slice() {
        [Descriptor { tid, .. }] => Some(tid),
        _ => None,
    }
}

/// Words that were shown last, with some of those before them: a descriptor may begin in one piece and go on in the
/// next.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    words: Vec<u64>,
}

impl Window {
    fn slide(&mut self, at: u64, bytes: &[u8]) {
        let end = self.start.saturating_add(self.words.len() as u64 * 8);
        let kept = if end == at { self.words.len().min(WORDS - 1) } else { 0 };
        self.words.drain(..self.words.len() - kept);
        self.start = at.saturating_sub(kept as u64 * 8);
        self.words.extend(words_of(bytes));
    }
}

/// Looks for descriptors whose first words lie in `window`.
fn look(memory: &(impl ReadMemory + ?Sized), threads: &[u32], window: &Window, found: &mut Vec<Descriptor>) {
    let is_thread = |word: u64| {
        let [a, b, c, d, ..] = word.to_le_bytes();
        let tid = u32::from_le_bytes([a, b, c, d]);
        threads.binary_search(&tid).is_ok().then_some(tid)
    };
    let pieces = window.words.windows(3).enumerate();
    for (at, words) in
        (window.start..).step_by(8).zip(pieces.map(|(index, _)| window.words.get(index..).unwrap_or_default()))
    {
        let word = |index: usize| words.get(index).copied();
        let keep = |words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            memory.used(Address(at), &bytes);
        };
        // The number of a thread is the dearest to check.
        if let (Some(next), Some(before)) = (word(0), word(1))
            && is_pointer(next)
            && is_pointer(before)
            && let Some(tid) = word(2).and_then(is_thread)
            && leads_back(memory, at, (next, 8), (before, 0))
        {
            keep(words.get(..3).unwrap_or(words));
            found.push(Descriptor { tid, at: begin(memory, at) });
        }
        if word(0) != Some(at) {
            continue;
        }
        for (ring, tid_at) in MUSL {
            if let (Some(before), Some(next), Some(tid)) =
                (word(ring), word(ring + 1), word(tid_at).and_then(is_thread))
                && is_pointer(next)
                && is_pointer(before)
                && leads_back(memory, at, (next, ring as u64 * 8), (before, ring as u64 * 8 + 8))
            {
                keep(words.get(..=tid_at).unwrap_or(words));
                found.push(Descriptor { tid, at });
            }
        }
    }
}

fn is_pointer(word: u64) -> bool {
    word.is_multiple_of(8) && word > 4096
}

/// Whether the next element names `at` as the one before it, and the one before as the next. Pairs are an element and
/// where in it that pointer is.
fn leads_back(memory: &(impl ReadMemory + ?Sized), at: u64, next: (u64, u64), before: (u64, u64)) -> bool {
    [next, before].into_iter().all(|(element, field)| {
        let pointer = element.checked_add(field);
        pointer.is_some_and(|pointer| read_words(memory, Address(pointer)).is_ok_and(|[word]| word == at))
    })
}

/// Where glibc's descriptor begins whose `list` is at `list`.
fn begin(memory: &(impl ReadMemory + ?Sized), list: u64) -> u64 {
    let has_head = |begin: &u64| {
        read_words(memory, Address(*begin)).is_ok_and(|[own, _, same]: [u64; 3]| own == *begin && same == *begin)
    };
    let candidates = (PADDING..=LARGEST_HEAD).step_by(8).filter_map(|bytes| list.checked_sub(bytes));
    candidates.into_iter().find(has_head).unwrap_or(list.saturating_sub(PADDING))
}

/// The stacks of the descriptors, which are sorted.
fn stacks(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    unclaimed: &Extents,
    descriptors: &[Descriptor],
) -> Vec<ThreadStack> {
    let mut stacks: Vec<ThreadStack> = Vec::new();
    for (index, &Descriptor { tid, at }) in descriptors.iter().enumerate() {
        let Some(mapping) = view.mapping_at(Address(at)).map(|memory| &memory.mapping) else { continue };
        let Some(within) = unclaimed.find(Address(at)) else { continue };
        let below = stacks.last().map_or(0, |stack| stack.range.end);
        let rest = within.start.max(mapping.start.0).max(below)..within.end.min(mapping.end.0);
        // A descriptor is at the upper end of its block. What lies between it and the next one is the next one's.
        let is_shared = descriptors.get(index + 1).is_some_and(|next| next.at < rest.end);
        let upper = if is_shared { at.saturating_add(DESCRIPTOR as u64).min(rest.end) } else { rest.end };
        let range = match block(view, memory, at) {
            Some(block) => block.start.max(rest.start)..block.end.min(rest.end),
            None => rest.start..upper,
        };
        if range.contains(&at) {
            stacks.push(ThreadStack { tid, descriptor: Address(at), range });
        }
    }
    stacks
}

/// What the descriptor at `at` says of its block: two words, its first address and its bytes, both whole pages (glibc:
/// `stackblock`, `stackblock_size`; musl: `map_base`, `map_size`).
fn block(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), at: u64) -> Option<Range<u64>> {
    let mapping = &view.mapping_at(Address(at))?.mapping;
    let room = usize::try_from(mapping.end.0.checked_sub(at)?).ok()?;
    let mut bytes = vec![0; room.min(DESCRIPTOR)];
    // Behind the block there may be the guard pages of another stack, which are no mapping of their own
    // (`MADV_GUARD_INSTALL`, glibc 2.42 and later).
    let read = memory.read_ahead(Address(at), &mut bytes).ok()?;
    bytes.truncate(read);
    let is_whole = |word: u64| word != 0 && view.page_size.is_power_of_two() && word.is_multiple_of(view.page_size);
    words_of(&bytes).array_windows().find_map(|&[start, size]| {
        let end = start.checked_add(size)?;
        (is_whole(start) && is_whole(size) && start <= at && at < end && end <= mapping.end.0).then_some(start..end)
    })
}
