//! Which ranges of address space were mapped during the recording, by whom, and which of them are still there.

use std::collections::{BTreeMap, HashMap, HashSet};

use beamscope_probe::{Function, MappingEvent, MappingKind};

use super::{LARGEST, Series, SiteTotals, StackId, Survivors, Totals, keep_largest};
use crate::mapping::{Backing, Mappings};

const MAP_ANONYMOUS: u32 = 0x20;
/// The old range stays, empty (mremap(2)).
const MREMAP_DONTUNMAP: u32 = 4;
/// Given by the C library for the stacks of threads (mmap(2)). How much of one is memory depends on how deep the thread
/// goes, and it is the thread's and no block of anybody's.
const MAP_STACK: u32 = 0x2_0000;
/// `PROT_NONE`: address space that is set aside.
const NO_ACCESS: u32 = 0;

/// Thread and sequence number of the event that made a range: its stack arrives under the same pair.
type Origin = (u32, u64);

type Site = (Function, StackId);

/// What is still mapped of a site: its ages, and its largest ranges by address and size.
type Held = (Survivors, Vec<(u64, u64)>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    end: u64,
    origin: Origin,
    at: f64,
    function: Function,
    /// Bytes of it that count as memory: all of an ordinary mapping. Of what was mapped without access, or grown out of
    /// a mapping that nobody saw being made, only what the process's mappings prove.
    counted: u64,
    certain: bool,
}

#[derive(Debug)]
struct Entry {
    function: Function,
    totals: Totals,
    /// Pieces of it that are still mapped, or taken away by a call that is not over.
    pieces: u64,
}

/// A range that a call in progress has taken away.
#[derive(Debug)]
struct Leaving {
    began: u64,
    length: u64,
    pieces: Vec<(u64, Range)>,
}

/// The ranges of one recording.
#[derive(Debug)]
pub(super) struct RangeLedger {
    page_size: u64,
    ranges: BTreeMap<u64, Range>,
    /// By thread.
    leaving: HashMap<u32, Leaving>,
    origins: HashMap<Origin, Entry>,
    stacks: HashMap<Origin, StackId>,
    /// Events that made no range, whose stacks may still arrive.
    without_range: HashSet<Origin>,
    settled: BTreeMap<Site, Totals>,
    outstanding: BTreeMap<Site, Series>,
    heap_end: u64,
    thread_stack_bytes: u64,
}

impl RangeLedger {
    pub(super) fn new(page_size: u64, heap_end: u64) -> Self {
        Self {
            page_size: page_size.max(1),
            ranges: BTreeMap::new(),
            leaving: HashMap::new(),
            origins: HashMap::new(),
            stacks: HashMap::new(),
            without_range: HashSet::new(),
            settled: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            heap_end,
            thread_stack_bytes: 0,
        }
    }

    /// Takes an event that happened `at` seconds after the start; false where it is not understood.
    pub(super) fn event(&mut self, event: &MappingEvent, at: f64) -> bool {
        let Ok(kind) = MappingKind::try_from(event.kind) else { return false };
        let length = event.length.checked_next_multiple_of(self.page_size);
        let range = length.and_then(|length| Some((length, event.address.checked_add(length)?)));
        match (kind, range) {
            (MappingKind::Mapped, Some((length, end))) => {
                // A mapping at a fixed address takes the place of what was there.
                self.free(event.address, end);
                if event.flags & MAP_STACK != 0 {
                    self.thread_stack_bytes = self.thread_stack_bytes.saturating_add(length);
                } else if event.flags & MAP_ANONYMOUS != 0 && event.sequence != 0 {
                    let certain = event.protection != NO_ACCESS;
                    self.insert(event.address, end, event, at, Function::Mmap, certain);
                }
            }
            (MappingKind::Unmapping, range) => {
                // The end of the thread's call before this one was lost.
                self.take_leaving(event.thread, None);
                // A length that no range has: the call will fail.
                let (length, end) = range.unwrap_or((0, event.address));
                let leaving = Leaving { began: event.at, length, pieces: self.cut(event.address, end) };
                self.leaving.insert(event.thread, leaving);
            }
            (MappingKind::Unmapped, _) => {
                if let Some(Leaving { pieces, .. }) = self.take_leaving(event.thread, Some(event.began)) {
                    self.free_all(&pieces);
                }
            }
            (MappingKind::UnmapFailed, _) => {
                if let Some(Leaving { pieces, .. }) = self.take_leaving(event.thread, Some(event.began)) {
                    self.ranges.extend(pieces);
                }
            }
            (MappingKind::Moved, Some((length, end))) => self.moved(event, length, end, at),
            (MappingKind::Break, _) => self.heap_end_moved(event, at),
            (MappingKind::Mapped | MappingKind::Moved, None) => return false,
        }
        self.forget_without_range(event);
        true
    }

    /// Takes the stack of an event.
    pub(super) fn sample(&mut self, thread: u32, sequence: u64, stack: StackId) {
        if !self.without_range.remove(&(thread, sequence)) {
            self.stacks.insert((thread, sequence), stack);
            self.settle((thread, sequence));
        }
    }

    /// Takes word that the event was an allocator's own: its blocks are counted instead.
    pub(super) fn disown(&mut self, thread: u32, sequence: u64) {
        let origin = (thread, sequence);
        if self.without_range.remove(&origin) {
            return;
        }
        self.ranges.retain(|_, range| range.origin != origin);
        for leaving in self.leaving.values_mut() {
            leaving.pieces.retain(|(_, range)| range.origin != origin);
        }
        self.origins.remove(&origin);
    }

    /// Bytes that were mapped for the stacks of threads.
    pub(super) fn thread_stack_bytes(&self) -> u64 {
        self.thread_stack_bytes
    }

    /// Counts of the uncertain ranges what `mappings` prove to be memory.
    pub(super) fn prove(&mut self, mappings: &Mappings) {
        for (start, range) in &mut self.ranges {
            if range.certain {
                continue;
            }
            let proven = memory_in(mappings, *start, range.end);
            if let Some(Entry { totals, .. }) = self.origins.get_mut(&range.origin) {
                totals.allocated_blocks += u64::from(range.counted == 0 && proven != 0);
                totals.allocated_bytes = totals.allocated_bytes.saturating_add(proven.saturating_sub(range.counted));
                totals.freed_bytes = totals.freed_bytes.saturating_add(range.counted.saturating_sub(proven));
            }
            range.counted = proven;
        }
    }

    /// Takes the figures at `at` seconds.
    pub(super) fn observe(&mut self, at: f64) {
        let mut now: BTreeMap<Site, u64> =
            self.settled.iter().map(|(site, totals)| (*site, totals.outstanding_bytes())).collect();
        for (origin, entry) in &self.origins {
            if let Some(stack) = self.stacks.get(origin) {
                let bytes = now.entry((entry.function, *stack)).or_default();
                *bytes = bytes.saturating_add(entry.totals.outstanding_bytes());
            }
        }
        for (site, bytes) in now {
            let series = self.outstanding.entry(site).or_default();
            if series.points().is_empty() {
                series.push(0.0, 0);
            }
            series.push(at, bytes);
        }
    }

    /// Bytes that are set aside and of which nothing proves that they are memory.
    pub(super) fn reserved_bytes(&self) -> u64 {
        let unproven = self.ranges.iter().map(|(start, range)| (range.end - start).saturating_sub(range.counted));
        unproven.fold(0, u64::saturating_add)
    }

    /// The sites after a recording of `seconds`; `missing` is the stack of events whose sample was lost.
    pub(super) fn close(mut self, seconds: f64, mut missing: impl FnMut() -> StackId) -> Vec<SiteTotals> {
        for Leaving { pieces, .. } in std::mem::take(&mut self.leaving).into_values() {
            self.free_all(&pieces);
        }
        let mut held: BTreeMap<Site, Held> = BTreeMap::new();
        for (start, range) in self.ranges.iter().filter(|(_, range)| range.counted != 0) {
            let stack = self.stacks.get(&range.origin).copied().unwrap_or_else(&mut missing);
            let (survivors, largest) = held.entry((range.function, stack)).or_default();
            survivors.add(range.at, seconds, range.counted);
            largest.push((*start, range.end - start));
            if largest.len() > 4 * LARGEST {
                keep_largest(largest);
            }
        }
        let mut totals: BTreeMap<Site, (Totals, bool)> =
            self.settled.into_iter().map(|(site, totals)| (site, (totals, true))).collect();
        for (origin, entry) in self.origins {
            let stack = self.stacks.get(&origin).copied();
            let site = (entry.function, stack.unwrap_or_else(&mut missing));
            let (sum, seen) = totals.entry(site).or_insert((Totals::default(), stack.is_some()));
            sum.add(&entry.totals);
            *seen &= stack.is_some();
        }
        totals
            .into_iter()
            .filter(|(_, (totals, _))| *totals != Totals::default())
            .map(|((function, stack), (totals, exact))| {
                let (survivors, mut largest) = held.remove(&(function, stack)).unwrap_or_default();
                keep_largest(&mut largest);
                let outstanding = self.outstanding.remove(&(function, stack)).unwrap_or_default();
                SiteTotals {
                    function,
                    allocator: 0,
                    stack,
                    threads: Vec::new(),
                    totals,
                    outstanding,
                    survivors,
                    largest,
                    exact,
                }
            })
            .collect()
    }

    fn moved(&mut self, event: &MappingEvent, length: u64, end: u64, at: f64) {
        let left = self.take_leaving(event.thread, Some(event.began));
        let (old_length, pieces) = left.map_or((length, Vec::new()), |left| (left.length, left.pieces));
        let known: u64 = pieces.iter().map(|(start, range)| range.end - start).sum();
        let certain = pieces.iter().all(|(_, range)| range.certain);
        if event.flags & MREMAP_DONTUNMAP != 0 {
            self.ranges.extend(pieces);
        } else {
            self.free_all(&pieces);
        }
        self.free(event.address, end);
        // Only what is known to be memory moves; of a mapping that nobody saw being made (a file's, or one that is older
        // than the recording) at most what it has grown by is new.
        if known == 0 {
            let grown_from = event.address.saturating_add(old_length);
            self.insert(grown_from, end, event, at, Function::Mremap, false);
        } else {
            self.insert(event.address, end, event, at, Function::Mremap, certain && known >= old_length);
        }
    }

    fn heap_end_moved(&mut self, event: &MappingEvent, at: f64) {
        let before = std::mem::replace(&mut self.heap_end, event.address);
        if event.address < before {
            self.free(event.address, before);
        } else if event.in_allocator == 0 && before != 0 && event.sequence != 0 {
            self.insert(before, event.address, event, at, Function::Brk, true);
        }
    }

    fn insert(&mut self, start: u64, end: u64, event: &MappingEvent, at: f64, function: Function, certain: bool) {
        let Some(length) = end.checked_sub(start).filter(|length| *length != 0) else { return };
        let origin = (event.thread, event.sequence);
        let fresh = Entry { function, totals: Totals::default(), pieces: 0 };
        let Entry { totals, pieces, .. } = self.origins.entry(origin).or_insert(fresh);
        *pieces += 1;
        let counted = if certain { length } else { 0 };
        totals.allocated_bytes = totals.allocated_bytes.saturating_add(counted);
        totals.allocated_blocks += u64::from(certain);
        self.ranges.insert(start, Range { end, origin, at, function, counted, certain });
    }

    /// What the thread's call in progress has taken away, if it is the one that began at `began`. What belongs to another
    /// one is gone: its end was lost.
    fn take_leaving(&mut self, thread: u32, began: Option<u64>) -> Option<Leaving> {
        let leaving = self.leaving.remove(&thread)?;
        if Some(leaving.began) == began {
            return Some(leaving);
        }
        self.free_all(&leaving.pieces);
        None
    }

    /// Takes out what lies in `[start, end)`, and leaves what sticks out of it.
    fn cut(&mut self, start: u64, end: u64) -> Vec<(u64, Range)> {
        if start >= end {
            return Vec::new();
        }
        let before = self.ranges.range(..start).next_back().filter(|(_, range)| range.end > start).map(|(at, _)| *at);
        let inside = self.ranges.range(start..end).map(|(at, _)| *at);
        let touched: Vec<u64> = before.into_iter().chain(inside).collect();
        let mut taken = Vec::with_capacity(touched.len());
        for at in touched {
            let Some(range) = self.ranges.remove(&at) else { continue };
            let (first, last) = (at.max(start), range.end.min(end));
            let mut counted = range.counted;
            let mut more = 0;
            // Of an uncertain range, each piece keeps what it can hold of what was counted.
            let mut share = |length: u64| {
                let part = if range.certain { length } else { counted.min(length) };
                counted = counted.saturating_sub(part);
                part
            };
            if at < start {
                self.ranges.insert(at, Range { end: start, counted: share(start - at), ..range });
                more += 1;
            }
            taken.push((first, Range { end: last, counted: share(last - first), ..range }));
            if range.end > end {
                self.ranges.insert(end, Range { counted: share(range.end - end), ..range });
                more += 1;
            }
            if let Some(entry) = self.origins.get_mut(&range.origin) {
                entry.pieces += more;
            }
        }
        taken
    }

    /// Takes out what lies in `[start, end)`, for good.
    fn free(&mut self, start: u64, end: u64) {
        let pieces = self.cut(start, end);
        self.free_all(&pieces);
    }

    fn free_all(&mut self, pieces: &[(u64, Range)]) {
        for (_, range) in pieces {
            if let Some(Entry { totals, pieces, .. }) = self.origins.get_mut(&range.origin) {
                *pieces = pieces.saturating_sub(1);
                totals.freed_bytes = totals.freed_bytes.saturating_add(range.counted);
                totals.freed_blocks += u64::from(*pieces == 0 && totals.allocated_blocks != 0);
            }
            self.settle(range.origin);
        }
    }

    /// Adds up an origin of which nothing is left, so that the ledger grows with the ranges that are mapped and not
    /// with those that ever were.
    fn settle(&mut self, origin: Origin) {
        let Some(stack) = self.stacks.get(&origin).copied() else { return };
        let Some(entry) = self.origins.get(&origin) else { return };
        if entry.pieces == 0 {
            self.settled.entry((entry.function, stack)).or_default().add(&entry.totals);
            self.origins.remove(&origin);
            self.stacks.remove(&origin);
        }
    }

    /// The stack of an event that has made no range is not kept.
    fn forget_without_range(&mut self, event: &MappingEvent) {
        /// Stacks that are waited for at most; where they are lost, they never come.
        const WAITING: usize = 4096;
        let origin = (event.thread, event.sequence);
        if event.sequence == 0 || self.origins.contains_key(&origin) {
            return;
        }
        if self.stacks.remove(&origin).is_none() {
            if self.without_range.len() >= WAITING {
                self.without_range.clear();
            }
            self.without_range.insert(origin);
        }
    }
}

/// Bytes of `[start, end)` that can be memory of the process's own: accessible, and of no file.
fn memory_in(mappings: &Mappings, start: u64, end: u64) -> u64 {
    let own = |backing: &Backing| matches!(backing, Backing::Anonymous | Backing::Heap | Backing::Stack);
    mappings
        .iter()
        .filter(|mapping| (mapping.permissions.read || mapping.permissions.write) && own(&mapping.backing))
        .map(|mapping| mapping.end.0.min(end).saturating_sub(mapping.start.0.max(start)))
        .fold(0, u64::saturating_add)
}
