//! What does one `mseg` allocator say of itself, and is it one?
//!
//! An `ErtsMsegAllctr_t` has, in this order: `ix`, `is_init_done`, `is_thread_safe`; a mutex; whether a check of the
//! cache is scheduled; 30 nodes of the cache; the heads of the lists that the nodes are in; the counters. The heads are
//! nodes too, always without a segment, and each node in a list is one of the 30. The mutex has any size, so where the
//! nodes begin is tried out (`erts/emulator/sys/common/erl_mseg.c`, the same in OTP 23.2.6, 25.2.3 and 27.3.4.1).

use std::ops::Range;

use super::{Calls, Figure, MsegInstance};
use crate::mapping::Address;

/// `MSEG_ALIGN_BITS`: 18 in OTP 23.2.6, 14 in 25.2.3 and 27.3.4.1 on 64-bit machines (`sys/common/erl_mmap.h`).
const ALIGN_BITS: [u32; 2] = [14, 18];
/// `MAX_CACHE_SIZE`.
const NODES: usize = 30;
/// Words of a `cache_t`: `size`, `seg`, `next`, `prev`.
const NODE: usize = 4;
/// Words before the mutex; the last of them is half filled.
const BEGIN: usize = 2;
/// Words at most that the mutex and the flag behind it take. A `pthread_mutex_t` takes 5 on x86-64 and 6 on arm64.
const MUTEX: usize = 40;
/// Words behind the heads: figures, and nine counters.
const FIGURES: usize = 12;
const COUNTERS: usize = 9;
/// Words of an instance at most.
pub(super) const LARGEST: usize = BEGIN + MUTEX + NODE * (NODES + 34 - 14) + FIGURES + COUNTERS;
/// `CallCounter.no` stays below this, `giga_no` counts it.
const ONE_GIGA: u64 = 1_000_000_000;
/// The smallest page: segments are made of pages.
const PAGE: u64 = 4096;

/// Where things are in an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    align_bits: u32,
    /// Words before the first node.
    nodes_at: usize,
}

/// An instance without its segments, and those.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) instance: MsegInstance,
    pub(super) nodes: Vec<Range<u64>>,
}

/// Whether `words` begin as instance `index` does. The global one is always used by several threads.
pub(super) fn begins(words: &[u64], index: u32) -> bool {
    let [first, second, ..] = words else { return false };
    let (number, is_init_done) = (first & u64::from(u32::MAX), first >> 32);
    let is_thread_safe = second & u64::from(u32::MAX);
    number == u64::from(index) && is_init_done <= 1 && is_thread_safe <= 1 && (index > 0 || is_thread_safe == 1)
}

impl Form {
    /// All that are possible.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let nodes_at = BEGIN..=BEGIN + MUTEX;
        nodes_at.flat_map(|nodes_at| ALIGN_BITS.map(|align_bits| Self { align_bits, nodes_at }))
    }

    pub(super) fn align_bits(self) -> u32 {
        self.align_bits
    }

    /// `cache_unpowered_node`, `cache_powered_node[CACHE_AREAS]` and `cache_free`.
    fn heads(self) -> usize {
        usize::try_from(34 - self.align_bits).unwrap_or_default()
    }

    fn heads_at(self) -> usize {
        self.nodes_at + NODE * NODES
    }

    /// Words before the figures.
    pub(super) fn counters_at(self) -> usize {
        self.heads_at() + NODE * self.heads()
    }

    /// Bytes of an instance.
    pub(super) fn length(self) -> u64 {
        8 * (self.counters_at() + FIGURES + COUNTERS) as u64
    }

    /// Whether `words` may be instance `index`, its lists aside, which the VM may just be changing.
    pub(super) fn resembles(self, index: u32, words: &[u64]) -> bool {
        let heads = words.get(self.heads_at()..self.counters_at()).unwrap_or_default().as_chunks::<NODE>().0;
        let empty = |&[size, segment, next, previous]: &[u64; NODE]| size | segment == 0 && next != 0 && previous != 0;
        begins(words, index) && heads.len() == self.heads() && heads.iter().all(empty)
    }

    /// Instance `index` at `at`, if `words` are it and do not contradict themselves.
    pub(super) fn parse(self, at: Address, index: u32, words: &[u64]) -> Option<Parsed> {
        if !self.resembles(index, words) {
            return None;
        }
        let (figures, counters) = words.get(self.counters_at()..)?.split_first_chunk::<FIGURES>()?;
        let [cached_segments, cache_hits, watermark, no, size, max_no, max_size, ever_no, ever_size, limit, ..] =
            *figures;
        let own = at.0..at.0.checked_add(8 * LARGEST as u64)?;
        if own.contains(&watermark) || own.contains(&no) {
            // The links of one more head: the form has fewer than there are.
            return None;
        }
        let lists = Lists { form: self, at: at.0, words, limit };
        let mut nodes = Vec::new();
        let mut seen = [false; NODES];
        let mut free = 0;
        for head in 0..self.heads() {
            let list = lists.walk(head, &mut seen)?;
            // The last is `cache_free`: its nodes hold nothing.
            if head + 1 == self.heads() {
                free = list.iter().all(|[size, segment]| size | segment == 0).then_some(list.len() as u64)?;
            } else {
                nodes.extend(list.into_iter().map(|node| self.segment(head, node)).collect::<Option<Vec<_>>>()?);
            }
        }
        // A node gets lost when a segment of 4 GiB or more is to be cached (`cache_bless_segment`, OTP 25.2.3).
        let counted = limit <= NODES as u64
            && nodes.len() as u64 == cached_segments
            && cached_segments.checked_add(free).is_some_and(|nodes| nodes <= limit);
        let figure = |current, max, max_ever| Figure { current, max, max_ever };
        let instance = MsegInstance {
            index,
            at,
            cached: Vec::new(),
            cached_segments,
            cache_limit: limit,
            cache_hits,
            segments: figure(no, max_no, ever_no),
            segments_size: figure(size, max_size, ever_size),
            calls: calls(counters.first_chunk()?)?,
        };
        counted.then_some(Parsed { instance, nodes })
    }

    /// The segment of a node in the list of `head`: the first is for any whole number of pages, each other for one
    /// power of two.
    fn segment(self, head: usize, [size, at]: [u64; 2]) -> Option<Range<u64>> {
        let fits = match u32::try_from(head).ok()?.checked_sub(1) {
            None => size > 0 && size.is_multiple_of(PAGE) && at.is_multiple_of(PAGE),
            Some(area) => {
                let aligned = 1_u64.checked_shl(self.align_bits)?;
                1_u64.checked_shl(self.align_bits + area) == Some(size) && at.is_multiple_of(aligned)
            }
        };
        let end = at.checked_add(size).filter(|_| fits && at > 0)?;
        Some(at..end)
    }
}

struct Lists<'w> {
    form: Form,
    at: u64,
    words: &'w [u64],
    /// Nodes from this one on were never initialised.
    limit: u64,
}

impl Lists<'_> {
    /// Size and segment of each node in the list of head number `head`, if it leads from node to node and back to the
    /// head, and its backward links the other way.
    fn walk(&self, head: usize, seen: &mut [bool; NODES]) -> Option<Vec<[u64; 2]>> {
        let head = self.form.heads_at() + NODE * head;
        let address = |word: usize| self.at.checked_add(8 * word as u64);
        let mut list = Vec::new();
        let mut at = head;
        // Each node is in one list, once, so that this ends.
        loop {
            let [_, _, next, _] = *self.node(at)?;
            let next = self.word_index(next)?;
            let [size, segment, _, previous] = *self.node(next)?;
            if Some(previous) != address(at) {
                return None;
            }
            if next == head {
                return Some(list);
            }
            let number = next.checked_sub(self.form.nodes_at).filter(|words| words.is_multiple_of(NODE))? / NODE;
            let fresh = seen.get_mut(number).filter(|seen| !**seen && (number as u64) < self.limit)?;
            *fresh = true;
            list.push([size, segment]);
            at = next;
        }
    }

    fn node(&self, at: usize) -> Option<&[u64; NODE]> {
        self.words.get(at..)?.first_chunk()
    }

    fn word_index(&self, address: u64) -> Option<usize> {
        let offset = address.checked_sub(self.at).filter(|offset| offset.is_multiple_of(8))?;
        usize::try_from(offset / 8).ok()
    }
}

/// `giga_no` and `no`, 32 bits each.
fn calls(counters: &[u64; COUNTERS]) -> Option<Calls> {
    let mut counts = [0; COUNTERS];
    for (count, counter) in counts.iter_mut().zip(counters) {
        let (giga, no) = (counter & u64::from(u32::MAX), counter >> 32);
        *count = giga.checked_mul(ONE_GIGA)?.checked_add(no).filter(|_| no < ONE_GIGA)?;
    }
    let [alloc, dealloc, realloc, create, create_resize, destroy, recreate, clear_cache, check_cache] = counts;
    Some(Calls { alloc, dealloc, realloc, create, create_resize, destroy, recreate, clear_cache, check_cache })
}
