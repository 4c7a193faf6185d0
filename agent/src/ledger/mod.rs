//! Who holds what: turns the probe's counters, samples and events into sites.
//!
//! Blocks are counted in the kernel, exactly, by return address and stack height; ranges of mappings are counted here.
//! Samples say which stacks stand behind a key of the kernel's.

mod apportion;
mod interner;
mod key;
mod ranges;
mod series;
mod survivors;
mod window;

use std::collections::{BTreeMap, HashMap};

use beamscope_probe::{Block, Function, MappingEvent, SampleHeader, SampleOrigin, SiteKey};

pub use interner::{StackId, Stacks};
use key::{KeyLedger, Place};
use ranges::RangeLedger;
pub use series::{Point, Series};
pub use survivors::Survivors;
use window::Windows;

use crate::mapping::Mappings;

/// What became of the memory that was asked for at one stack.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteTotals {
    /// Which function was called.
    pub function: Function,
    /// Number of the allocator that it was called for; 0 where it was for none.
    pub allocator: u32,
    /// The stack behind the call.
    pub stack: StackId,
    /// Threads that were seen at it, sorted.
    pub threads: Vec<String>,
    /// Bytes and blocks, asked for and freed.
    pub totals: Totals,
    /// Outstanding bytes over the recording.
    pub outstanding: Series,
    /// When the outstanding blocks were allocated.
    pub survivors: Survivors,
    /// Addresses and sizes of the largest outstanding blocks or ranges.
    pub largest: Vec<(u64, u64)>,
    /// Whether all samples of the places that make it up have shown this one stack, so that nothing was divided.
    pub exact: bool,
}

/// Bytes and blocks, asked for and freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes asked for.
    pub allocated_bytes: u64,
    /// Blocks or mappings asked for.
    pub allocated_blocks: u64,
    /// Bytes of the freed part.
    pub freed_bytes: u64,
    /// Blocks or mappings of the freed part.
    pub freed_blocks: u64,
}

impl Totals {
    /// Bytes that are not freed.
    pub fn outstanding_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.freed_bytes)
    }

    /// What has come since `earlier`.
    fn less(&self, earlier: &Self) -> Self {
        Self {
            allocated_bytes: self.allocated_bytes.saturating_sub(earlier.allocated_bytes),
            allocated_blocks: self.allocated_blocks.saturating_sub(earlier.allocated_blocks),
            freed_bytes: self.freed_bytes.saturating_sub(earlier.freed_bytes),
            freed_blocks: self.freed_blocks.saturating_sub(earlier.freed_blocks),
        }
    }

    fn add(&mut self, other: &Self) {
        let Self { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks } = other;
        self.allocated_bytes = self.allocated_bytes.saturating_add(*allocated_bytes);
        self.allocated_blocks = self.allocated_blocks.saturating_add(*allocated_blocks);
        self.freed_bytes = self.freed_bytes.saturating_add(*freed_bytes);
        self.freed_blocks = self.freed_blocks.saturating_add(*freed_blocks);
    }
}

/// How many of the largest outstanding blocks of a site are kept.
const LARGEST: usize = 1024;

/// How many thread names are kept of a site: a pool can give each of its threads a name of its own.
const THREADS: usize = 16;

/// Collects one recording.
#[derive(Debug)]
pub struct Ledger {
    /// `CLOCK_MONOTONIC` nanoseconds at which the recording began.
    start: u64,
    keys: BTreeMap<SiteKey, KeyLedger>,
    windows: Windows,
    ranges: RangeLedger,
    threads: HashMap<StackId, Vec<String>>,
    /// Samples that were not understood.
    pub dropped_samples: u64,
    /// Mapping events that could not be understood.
    pub dropped_events: u64,
}

impl Ledger {
    /// An empty one for a recording that begins at `start` (`CLOCK_MONOTONIC` nanoseconds), on a machine with pages of
    /// `page_size` bytes, of a process whose heap ends at `heap_end` (0: unknown).
    pub fn new(start: u64, page_size: u64, heap_end: u64) -> Self {
        Self {
            start,
            keys: BTreeMap::new(),
            windows: Windows::default(),
            ranges: RangeLedger::new(page_size, heap_end),
            threads: HashMap::new(),
            dropped_samples: 0,
            dropped_events: 0,
        }
    }

    /// Takes the kernel's counters at `at` seconds.
    pub fn observe(&mut self, at: f64, sites: &[(SiteKey, beamscope_probe::Site)]) {
        let followed = self.windows.followed(at);
        for (key, site) in sites {
            // The entries for sites that found no room exist from the start.
            if site.allocated_blocks == 0 {
                continue;
            }
            let key_ledger = self.keys.entry(*key).or_default();
            if is_always_followed(key) {
                key_ledger.observe(at, site);
            } else if let Some(followed) = followed {
                key_ledger.observe(followed, site);
            }
        }
        self.ranges.observe(at);
    }

    /// Allocations are not followed any more from `at` seconds on, when the kernel's counters were `sites`. Until
    /// [`Ledger::settle`] has the blocks that are left, the window is not closed.
    pub fn cut(&mut self, at: f64, sites: &[(SiteKey, beamscope_probe::Site)]) {
        for (key, site) in sites.iter().filter(|(key, site)| site.allocated_blocks != 0 && !is_always_followed(key)) {
            self.keys.entry(*key).or_default().count(site);
        }
        self.windows.cut(at);
    }

    /// Closes the window that was cut: `live` are the blocks that were never seen to be freed.
    pub fn settle(&mut self, live: impl Iterator<Item = (u64, Block)>) {
        let Some((window, followed)) = self.windows.settle() else { return };
        for (address, block) in live {
            let at = block.allocated_at.saturating_sub(self.start) as f64 / 1e9;
            // Probes are attached and taken away one by one: what was allocated meanwhile is in no window.
            if window.contains(&at) {
                self.keys.entry(block.site).or_default().survive(
                    address,
                    &block,
                    at - window.start,
                    window.end - window.start,
                );
            }
        }
        for (_, key_ledger) in self.keys.iter_mut().filter(|(key, _)| !is_always_followed(key)) {
            key_ledger.settle(followed);
        }
    }

    /// Allocations are followed again from `at` seconds on, when the kernel's counters were `sites`.
    pub fn resume(&mut self, at: f64, sites: &[(SiteKey, beamscope_probe::Site)]) {
        for (key, site) in sites.iter().filter(|(key, _)| !is_always_followed(key)) {
            // Also of a key that has only been seen while no window was open.
            if site.allocated_blocks != 0 {
                self.keys.entry(*key).or_default().begin(site);
            }
        }
        self.windows.begin(at);
    }

    /// Takes word of a thread, by the NUL-padded name of it, that was seen at `stack`.
    pub fn thread(&mut self, stack: StackId, command: &[u8]) {
        let threads = self.threads.entry(stack).or_default();
        let name = thread_name(command);
        if let Err(place) = threads.binary_search(&name)
            && threads.len() < THREADS
        {
            threads.insert(place, name);
        }
    }

    /// The threads that were seen at `stack`, sorted by name.
    pub fn threads_of(&self, stack: StackId) -> Vec<String> {
        self.threads.get(&stack).cloned().unwrap_or_default()
    }

    /// Takes a sample whose stack is `stack`; `mean` is the sampling interval in bytes.
    pub fn sample(&mut self, header: &SampleHeader, stack: StackId, mean: u64) {
        match SampleOrigin::try_from(header.origin) {
            Ok(SampleOrigin::Mapping) => self.mapping_stack(header.thread, header.sequence, stack),
            // It is the thread's, or the fault's, and no block's.
            Ok(SampleOrigin::Thread | SampleOrigin::Fault) => {}
            Ok(origin) => self.keys.entry(header.site).or_default().sample(header, origin, stack, mean),
            Err(_) => self.dropped_samples += 1,
        }
    }

    /// Takes the stack of the mapping call of `thread` that is called `sequence`.
    pub fn mapping_stack(&mut self, thread: u32, sequence: u64, stack: StackId) {
        self.ranges.sample(thread, sequence, stack);
    }

    /// Takes word that an allocator made this mapping call for itself outside its allocation functions, as glibc's `free`
    /// does when it is a thread's first call.
    pub fn mapping_of_allocator(&mut self, thread: u32, sequence: u64) {
        self.ranges.disown(thread, sequence);
    }

    /// Bytes that were mapped for the stacks of threads.
    pub fn thread_stack_bytes(&self) -> u64 {
        self.ranges.thread_stack_bytes()
    }

    /// Takes the process's mappings: they say what of the ranges that were set aside is memory by now.
    pub fn prove(&mut self, mappings: &Mappings) {
        self.ranges.prove(mappings);
    }

    /// Takes a mapping event.
    pub fn mapping(&mut self, event: &MappingEvent) {
        let at = event.at.saturating_sub(self.start) as f64 / 1e9;
        self.dropped_events += u64::from(!self.ranges.event(event, at));
    }

    /// Bytes of address space that was set aside, and that was no memory when the mappings were last taken.
    pub fn reserved_bytes(&self) -> u64 {
        self.ranges.reserved_bytes()
    }

    /// Closes the ledger after `seconds`: the live blocks say what is outstanding at which stack. `missing` makes the
    /// stack of a key that no sample has shown.
    pub fn close(
        mut self,
        seconds: f64,
        live: impl Iterator<Item = (u64, Block)>,
        mut missing: impl FnMut(&SiteKey) -> StackId,
    ) -> Vec<SiteTotals> {
        if self.windows.is_only_one() {
            for (address, block) in live {
                let at = block.allocated_at.saturating_sub(self.start) as f64 / 1e9;
                self.keys.entry(block.site).or_default().survive(address, &block, at, seconds);
            }
        } else {
            self.windows.cut(seconds);
            self.settle(live);
        }
        let mut sites: BTreeMap<(Function, u32, StackId), SiteTotals> = BTreeMap::new();
        let mut parts = self.ranges.close(seconds, || missing(&SiteKey::default()));
        for (key, ledger) in self.keys {
            let function = Function::try_from(key.function()).unwrap_or(Function::Malloc);
            let place = match key {
                SiteKey { is_stack: 1, .. } => Place::Stack,
                SiteKey { caller: 0, .. } | SiteKey { stack_pointer: 0, .. } => Place::Several,
                _ => Place::Caller,
            };
            let closed = ledger.close(function, place, || missing(&key));
            parts.extend(closed.into_iter().map(|part| SiteTotals { allocator: key.allocator(), ..part }));
        }
        for mut part in parts {
            part.threads = self.threads.get(&part.stack).cloned().unwrap_or_default();
            match sites.entry((part.function, part.allocator, part.stack)) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(part);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => entry.get_mut().merge(&part),
            }
        }
        sites.into_values().collect()
    }
}

impl SiteTotals {
    /// Adds another thread's or stack height's part of the same site.
    fn merge(&mut self, part: &Self) {
        self.totals.add(&part.totals);
        self.outstanding.add(&part.outstanding);
        self.survivors.merge(&part.survivors);
        self.exact &= part.exact;
        self.largest.extend_from_slice(&part.largest);
        keep_largest(&mut self.largest);
    }
}

/// Whether a key is followed where other allocations are not: requests for carriers are few.
fn is_always_followed(key: &SiteKey) -> bool {
    key.function() == Function::MsegAlloc as u32
}

fn keep_largest(blocks: &mut Vec<(u64, u64)>) {
    blocks.sort_by_key(|(address, size)| (std::cmp::Reverse(*size), *address));
    blocks.truncate(LARGEST);
}

fn thread_name(command: &[u8]) -> String {
    let name = command.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests;
