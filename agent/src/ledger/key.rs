//! What is known of one key of the kernel's: exact totals, and the stacks that its samples have shown.

use std::collections::BTreeMap;

use beamscope_probe::{Block, Function, SampleHeader, SampleOrigin};

use super::{LARGEST, Series, SiteTotals, StackId, Survivors, Totals, apportion::apportion, keep_largest};
use crate::sampling::weight;

/// Samples of one key that are kept to see which of them survive. Each tells a share to within 2 %.
const SAMPLES: usize = 4096;

/// One key over the recording.
#[derive(Debug, Default)]
pub(super) struct KeyLedger {
    totals: Totals,
    /// Of the windows that are over.
    settled: Totals,
    /// What the kernel's counters showed when the window began.
    base: Totals,
    /// Bytes and blocks of this window that were found to be live at its end.
    left: (u64, u64),
    outstanding: Series,
    survivors: Survivors,
    largest: Vec<(u64, u64)>,
    stacks: BTreeMap<StackId, Share>,
    /// Sampled blocks: address and time of allocation → stack and what it stands for.
    sampled: BTreeMap<(u64, u64), (StackId, Weight)>,
    /// Of the samples one in `2^thinned` is kept.
    thinned: u32,
}

/// What a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One stack.
    Stack,
    /// A return address at one height of the stack.
    Caller,
    /// Several of these.
    Several,
}

/// What samples stand for.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    bytes: f64,
    blocks: f64,
}

/// What the samples say of one stack.
#[derive(Debug, Default)]
struct Share {
    allocated: Weight,
    /// Of them, those whose block is still live.
    outstanding: Weight,
}

impl Weight {
    fn add(&mut self, other: Self, times: f64) {
        self.bytes += other.bytes * times;
        self.blocks += other.blocks * times;
    }

    fn less(self, other: Self) -> Self {
        Self { bytes: (self.bytes - other.bytes).max(0.0), blocks: (self.blocks - other.blocks).max(0.0) }
    }
}

impl KeyLedger {
    /// Takes the kernel's counters at `at` seconds of followed time.
    pub(super) fn observe(&mut self, at: f64, site: &beamscope_probe::Site) {
        self.count(site);
        self.note(at);
    }

    /// As [`KeyLedger::observe`], without a point of the series.
    pub(super) fn count(&mut self, site: &beamscope_probe::Site) {
        self.totals = self.settled;
        self.totals.add(&raw(site).less(&self.base));
    }

    fn note(&mut self, at: f64) {
        if self.outstanding.points().is_empty() {
            self.outstanding.push(0.0, 0);
        }
        self.outstanding.push(at, self.totals.outstanding_bytes());
    }

    /// A window begins: what the kernel has counted by now is not its.
    pub(super) fn begin(&mut self, site: &beamscope_probe::Site) {
        self.base = raw(site);
    }

    /// A window that ended at `at` seconds of followed time is closed, whose survivors have been taken: what was
    /// allocated in it and is not among them was freed.
    pub(super) fn settle(&mut self, at: f64) {
        let Totals { allocated_bytes, allocated_blocks, .. } = self.totals.less(&self.settled);
        let (left_bytes, left_blocks) = std::mem::take(&mut self.left);
        self.settled.add(&Totals {
            allocated_bytes,
            allocated_blocks,
            freed_bytes: allocated_bytes.saturating_sub(left_bytes),
            freed_blocks: allocated_blocks.saturating_sub(left_blocks),
        });
        self.totals = self.settled;
        self.note(at);
    }

    /// Takes a sample.
    pub(super) fn sample(&mut self, header: &SampleHeader, origin: SampleOrigin, stack: StackId, mean: u64) {
        // An introduction was not drawn, so it stands for nothing; it only shows the stack.
        let weight = match origin {
            SampleOrigin::Sampled => {
                let bytes = weight(header.size, mean);
                Weight { bytes, blocks: bytes / header.size.max(1) as f64 }
            }
            SampleOrigin::Each => Weight { bytes: header.size as f64, blocks: 1.0 },
            SampleOrigin::Introduction | SampleOrigin::Mapping | SampleOrigin::Thread | SampleOrigin::Fault => {
                Weight::default()
            }
        };
        self.stacks.entry(stack).or_default().allocated.add(weight, 1.0);
        let block = (header.address, header.sequence);
        if is_kept(block, self.thinned) {
            self.sampled.insert(block, (stack, weight));
        }
        // An even choice among all samples, old and new, so that none of the stacks is favoured.
        while self.sampled.len() > SAMPLES && self.thinned < u32::BITS {
            self.thinned += 1;
            let thinned = self.thinned;
            self.sampled.retain(|block, _| is_kept(*block, thinned));
        }
    }

    /// Takes a block that is live at the end of a window of `seconds`, allocated `at` seconds after its start.
    pub(super) fn survive(&mut self, address: u64, block: &Block, at: f64, seconds: f64) {
        self.survivors.add(at, seconds, block.size);
        self.left = (self.left.0.saturating_add(block.size), self.left.1.saturating_add(1));
        self.largest.push((address, block.size));
        if self.largest.len() > 4 * LARGEST {
            keep_largest(&mut self.largest);
        }
        if let Some((stack, weight)) = self.sampled.get(&(address, block.allocated_at))
            && let Some(share) = self.stacks.get_mut(stack)
        {
            share.outstanding.add(*weight, f64::from(self.thinned).exp2());
        }
    }

    /// Divides the totals among the stacks; `missing` gives the stack of a key without samples.
    pub(super) fn close(
        mut self,
        function: Function,
        place: Place,
        missing: impl FnOnce() -> StackId,
    ) -> Vec<SiteTotals> {
        if self.totals == Totals::default() {
            return Vec::new();
        }
        let exact = place == Place::Stack || (place == Place::Caller && self.stacks.len() == 1);
        if self.stacks.is_empty() {
            self.stacks.insert(missing(), Share::default());
        }
        keep_largest(&mut self.largest);
        // What is outstanding and what was freed are divided by themselves, so that a stack that frees everything
        // beside one that leaks is not charged with the leak.
        let allocated: Vec<Weight> = self.stacks.values().map(|share| share.allocated).collect();
        let mut outstanding: Vec<Weight> = self.stacks.values().map(|share| share.outstanding).collect();
        let freed: Vec<Weight> = allocated.iter().zip(&outstanding).map(|(all, left)| all.less(*left)).collect();
        if outstanding.iter().all(|weight| weight.bytes <= 0.0) {
            outstanding.clone_from(&allocated);
        }
        let bytes = |weights: &[Weight]| weights.iter().map(|weight| weight.bytes).collect::<Vec<f64>>();
        let blocks = |weights: &[Weight]| weights.iter().map(|weight| weight.blocks).collect::<Vec<f64>>();
        let Totals { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks } = self.totals;
        let left_bytes = apportion(allocated_bytes.saturating_sub(freed_bytes), &bytes(&outstanding));
        let left_blocks = apportion(allocated_blocks.saturating_sub(freed_blocks), &blocks(&outstanding));
        let freed_bytes = apportion(freed_bytes, &bytes(&freed));
        let freed_blocks = apportion(freed_blocks, &blocks(&freed));
        let sum: u64 = left_bytes.iter().sum();
        // Which block is of which stack is known of the sampled ones only.
        let heaviest = left_bytes.iter().enumerate().max_by_key(|(_, bytes)| **bytes).map_or(0, |(index, _)| index);
        let mut sites = Vec::with_capacity(self.stacks.len());
        for (index, stack) in self.stacks.keys().enumerate() {
            let of = |parts: &[u64]| parts.get(index).copied().unwrap_or(0);
            let share = if sum == 0 { 1.0 / left_bytes.len() as f64 } else { of(&left_bytes) as f64 / sum as f64 };
            sites.push(SiteTotals {
                function,
                allocator: 0,
                stack: *stack,
                threads: Vec::new(),
                totals: Totals {
                    allocated_bytes: of(&left_bytes).saturating_add(of(&freed_bytes)),
                    allocated_blocks: of(&left_blocks).saturating_add(of(&freed_blocks)),
                    freed_bytes: of(&freed_bytes),
                    freed_blocks: of(&freed_blocks),
                },
                outstanding: self.outstanding.scaled(share),
                survivors: self.survivors.scaled(share),
                largest: if index == heaviest { std::mem::take(&mut self.largest) } else { Vec::new() },
                exact,
            });
        }
        sites
    }
}

fn raw(site: &beamscope_probe::Site) -> Totals {
    Totals {
        allocated_bytes: site.allocated_bytes,
        allocated_blocks: site.allocated_blocks,
        freed_bytes: site.freed_bytes,
        freed_blocks: site.freed_blocks,
    }
}

/// Whether a sample is one of the one in `2^thinned` that are kept.
fn is_kept((address, at): (u64, u64), thinned: u32) -> bool {
    // Fibonacci hashing: the upper bits of the product are well mixed (D. Knuth, TAOCP 3, 6.4).
    let hash = (address ^ at.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash.leading_zeros() >= thinned
}
