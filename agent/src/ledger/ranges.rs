//! Which ranges of address space were mapped during the recording, by whom, and which of them are still there.

use std::collections::{BTreeMap, HashMap};

use beamscope_probe::{Function, MappingEvent, MappingKind};

use super::{LARGEST, Series, SiteTotals, StackId, Survivors, Totals, keep_largest};

const MAP_ANONYMOUS: u32 = 0x20;
/// `PROT_NONE`: address space that is set aside; nobody can touch it before an `mprotect`.
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
    reserved: bool,
}

#[derive(Debug, Default)]
struct OriginTotals {
    totals: Totals,
    /// Pieces of it that are still mapped, or taken away by a call that is not over.
    pieces: u64,
}

/// The ranges of one recording.
#[derive(Debug)]
pub(super) struct RangeLedger {
    page_size: u64,
    ranges: BTreeMap<u64, Range>,
    /// Pieces that a call in progress has taken away, by thread.
    leaving: HashMap<u32, Vec<(u64, Range)>>,
    origins: HashMap<Origin, (Function, OriginTotals)>,
    stacks: HashMap<Origin, StackId>,
    settled: BTreeMap<Site, Totals>,
    outstanding: BTreeMap<Site, Series>,
    heap_end: Option<u64>,
}

impl RangeLedger {
    pub(super) fn new(page_size: u64) -> Self {
        Self {
            page_size: page_size.max(1),
            ranges: BTreeMap::new(),
            leaving: HashMap::new(),
            origins: HashMap::new(),
            stacks: HashMap::new(),
            settled: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            heap_end: None,
        }
    }

    /// Takes an event that happened `at` seconds after the start; false where it is not understood.
    pub(super) fn event(&mut self, event: &MappingEvent, at: f64) -> bool {
        let Ok(kind) = MappingKind::try_from(event.kind) else { return false };
        let Some(end) =
            event.length.checked_next_multiple_of(self.page_size).and_then(|length| event.address.checked_add(length))
        else {
            return false;
        };
        let origin = (event.thread, event.sequence);
        match kind {
            MappingKind::Mapped => {
                // A mapping at a fixed address takes the place of what was there.
                self.free(event.address, end);
                if event.flags & MAP_ANONYMOUS != 0 && event.sequence != 0 {
                    let reserved = event.protection == NO_ACCESS;
                    self.insert(event.address, Range { end, origin, at, function: Function::Mmap, reserved });
                }
            }
            MappingKind::Unmapping => {
                let pieces = self.cut(event.address, end);
                // What the thread's call before this one took away is gone: it did not fail.
                let before = self.leaving.insert(event.thread, pieces).unwrap_or_default();
                self.free_all(&before);
            }
            MappingKind::UnmapFailed => {
                for (start, range) in self.leaving.remove(&event.thread).unwrap_or_default() {
                    self.ranges.insert(start, range);
                }
            }
            MappingKind::Moved => {
                let old = self.leaving.remove(&event.thread).unwrap_or_default();
                let reserved = old.iter().any(|(_, range)| range.reserved);
                self.free_all(&old);
                self.free(event.address, end);
                if event.sequence != 0 {
                    self.insert(event.address, Range { end, origin, at, function: Function::Mremap, reserved });
                }
            }
            MappingKind::Break => self.heap_end_moved(event, at),
        }
        true
    }

    /// Takes the stack of an event.
    pub(super) fn sample(&mut self, thread: u32, sequence: u64, stack: StackId) {
        self.stacks.insert((thread, sequence), stack);
        self.settle((thread, sequence));
    }

    /// Takes the figures at `at` seconds.
    pub(super) fn observe(&mut self, at: f64) {
        let mut now: BTreeMap<Site, u64> =
            self.settled.iter().map(|(site, totals)| (*site, totals.outstanding_bytes())).collect();
        for (origin, (function, entry)) in &self.origins {
            if let Some(stack) = self.stacks.get(origin) {
                let bytes = now.entry((*function, *stack)).or_default();
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

    /// Bytes that are set aside without access.
    pub(super) fn reserved_bytes(&self) -> u64 {
        let reserved = self.ranges.iter().filter(|(_, range)| range.reserved);
        reserved.fold(0, |sum: u64, (start, range)| sum.saturating_add(range.end - start))
    }

    /// The sites after a recording of `seconds`; `missing` is the stack of events whose sample was lost.
    pub(super) fn close(mut self, seconds: f64, mut missing: impl FnMut() -> StackId) -> Vec<SiteTotals> {
        for pieces in std::mem::take(&mut self.leaving).into_values() {
            self.free_all(&pieces);
        }
        let mut held: BTreeMap<Site, Held> = BTreeMap::new();
        for (start, range) in self.ranges.iter().filter(|(_, range)| !range.reserved) {
            let stack = self.stacks.get(&range.origin).copied().unwrap_or_else(&mut missing);
            let (survivors, largest) = held.entry((range.function, stack)).or_default();
            survivors.add(range.at, seconds, range.end - start);
            largest.push((*start, range.end - start));
            if largest.len() > 4 * LARGEST {
                keep_largest(largest);
            }
        }
        let mut totals = self.settled;
        for (origin, (function, entry)) in self.origins {
            let stack = self.stacks.get(&origin).copied().unwrap_or_else(&mut missing);
            totals.entry((function, stack)).or_default().add(&entry.totals);
        }
        totals
            .into_iter()
            .filter(|(_, totals)| *totals != Totals::default())
            .map(|((function, stack), totals)| {
                let (survivors, mut largest) = held.remove(&(function, stack)).unwrap_or_default();
                keep_largest(&mut largest);
                let outstanding = self.outstanding.remove(&(function, stack)).unwrap_or_default();
                SiteTotals {
                    function,
                    stack,
                    threads: Vec::new(),
                    totals,
                    outstanding,
                    survivors,
                    largest,
                    exact: true,
                }
            })
            .collect()
    }

    fn heap_end_moved(&mut self, event: &MappingEvent, at: f64) {
        let before = self.heap_end.replace(event.address);
        let Some(before) = before else { return };
        if event.address < before {
            self.free(event.address, before);
        } else if event.in_allocator == 0 && event.address > before && event.sequence != 0 {
            let origin = (event.thread, event.sequence);
            let range = Range { end: event.address, origin, at, function: Function::Brk, reserved: false };
            self.insert(before, range);
        }
    }

    fn insert(&mut self, start: u64, range: Range) {
        if start >= range.end {
            return;
        }
        let (_, entry) = self.origins.entry(range.origin).or_insert((range.function, OriginTotals::default()));
        entry.pieces += 1;
        if !range.reserved {
            entry.totals.allocated_bytes = entry.totals.allocated_bytes.saturating_add(range.end - start);
            entry.totals.allocated_blocks += 1;
        }
        self.ranges.insert(start, range);
    }

    /// Takes out what lies in `[start, end)`, and leaves what sticks out of it.
    fn cut(&mut self, start: u64, end: u64) -> Vec<(u64, Range)> {
        if start >= end {
            return Vec::new();
        }
        let before = self.ranges.range(..start).next_back().filter(|(_, range)| range.end > start).map(|(at, _)| *at);
        let inside = self.ranges.range(start..end).map(|(at, _)| *at);
        let touched: Vec<u64> = before.into_iter().chain(inside).collect();
        let mut pieces = Vec::with_capacity(touched.len());
        for at in touched {
            let Some(range) = self.ranges.remove(&at) else { continue };
            let mut more = 0;
            if at < start {
                self.ranges.insert(at, Range { end: start, ..range });
                more += 1;
            }
            if range.end > end {
                self.ranges.insert(end, range);
                more += 1;
            }
            if let Some((_, entry)) = self.origins.get_mut(&range.origin) {
                entry.pieces += more;
            }
            pieces.push((at.max(start), Range { end: range.end.min(end), ..range }));
        }
        pieces
    }

    /// Takes out what lies in `[start, end)`, for good.
    fn free(&mut self, start: u64, end: u64) {
        let pieces = self.cut(start, end);
        self.free_all(&pieces);
    }

    fn free_all(&mut self, pieces: &[(u64, Range)]) {
        for (start, range) in pieces {
            self.freed(*start, range);
        }
    }

    /// Counts a piece as given back for good.
    fn freed(&mut self, start: u64, range: &Range) {
        if let Some((_, entry)) = self.origins.get_mut(&range.origin) {
            entry.pieces = entry.pieces.saturating_sub(1);
            if !range.reserved {
                entry.totals.freed_bytes = entry.totals.freed_bytes.saturating_add(range.end - start);
                entry.totals.freed_blocks += u64::from(entry.pieces == 0);
            }
        }
        self.settle(range.origin);
    }

    /// Adds up an origin of which nothing is left, so that the ledger grows with the ranges that are mapped and not
    /// with those that ever were.
    fn settle(&mut self, origin: Origin) {
        let Some(stack) = self.stacks.get(&origin).copied() else { return };
        let Some((function, entry)) = self.origins.get(&origin) else { return };
        if entry.pieces == 0 {
            self.settled.entry((*function, stack)).or_default().add(&entry.totals);
            self.origins.remove(&origin);
            self.stacks.remove(&origin);
        }
    }
}
