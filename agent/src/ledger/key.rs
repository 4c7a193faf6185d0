//! What is known of one key of the kernel's: exact totals, and the stacks that its samples have shown.

use std::collections::BTreeMap;

use beamscope_probe::{Block, Function, SampleHeader, SampleOrigin};

use super::{LARGEST, Series, SiteTotals, StackId, Survivors, Totals, apportion::apportion, keep_largest};
use crate::sampling::weight;

/// Samples of one key that are kept to see which of them survive. Each tells a share to within 1 %.
const SAMPLES: usize = 10_000;

/// One key over the recording.
#[derive(Debug, Default)]
pub(super) struct KeyLedger {
    totals: Totals,
    outstanding: Series,
    survivors: Survivors,
    largest: Vec<(u64, u64)>,
    stacks: BTreeMap<StackId, Share>,
    /// Sampled blocks: address and time of allocation → stack and weight.
    sampled: BTreeMap<(u64, u64), (StackId, f64)>,
}

/// What the samples say of one stack.
#[derive(Debug, Default)]
struct Share {
    /// Bytes that the samples stand for.
    allocated: f64,
    /// Of them, those whose block is still live.
    outstanding: f64,
}

impl KeyLedger {
    /// Takes the kernel's counters at `at` seconds.
    pub(super) fn observe(&mut self, at: f64, site: &beamscope_probe::Site) {
        self.totals = Totals {
            allocated_bytes: site.allocated_bytes,
            allocated_blocks: site.allocated_blocks,
            freed_bytes: site.freed_bytes,
            freed_blocks: site.freed_blocks,
        };
        if self.outstanding.points().is_empty() {
            self.outstanding.push(0.0, 0);
        }
        self.outstanding.push(at, self.totals.outstanding_bytes());
    }

    /// Takes a sample; false where it could not be kept.
    pub(super) fn sample(&mut self, header: &SampleHeader, origin: SampleOrigin, stack: StackId, mean: u64) -> bool {
        // An introduction was not drawn, so it stands for nothing; it only shows the stack.
        let weight = if origin == SampleOrigin::Sampled { weight(header.size, mean) } else { 0.0 };
        self.stacks.entry(stack).or_default().allocated += weight;
        if self.sampled.len() >= SAMPLES {
            // With one stack nothing is to be told apart.
            return self.stacks.len() == 1;
        }
        self.sampled.insert((header.address, header.sequence), (stack, weight));
        true
    }

    /// Takes a block that is live at the end of a recording of `seconds`, allocated `at` seconds after its start.
    pub(super) fn survive(&mut self, address: u64, block: &Block, at: f64, seconds: f64) {
        self.survivors.add(at, seconds, block.size);
        self.largest.push((address, block.size));
        if self.largest.len() > 4 * LARGEST {
            keep_largest(&mut self.largest);
        }
        if let Some((stack, weight)) = self.sampled.get(&(address, block.allocated_at))
            && let Some(share) = self.stacks.get_mut(stack)
        {
            share.outstanding += weight;
        }
    }

    /// Divides the totals among the stacks.
    pub(super) fn close(mut self, function: Function, missing: impl FnOnce() -> StackId) -> Vec<SiteTotals> {
        if self.totals == Totals::default() {
            return Vec::new();
        }
        if self.stacks.is_empty() {
            self.stacks.insert(missing(), Share::default());
        }
        keep_largest(&mut self.largest);
        let exact = self.stacks.len() == 1;
        let allocated: Vec<f64> = self.stacks.values().map(|share| share.allocated).collect();
        let mut outstanding: Vec<f64> = self.stacks.values().map(|share| share.outstanding).collect();
        // What is outstanding and what was freed are divided by themselves, so that a stack that frees everything
        // beside one that leaks is not charged with the leak.
        let freed: Vec<f64> = allocated.iter().zip(&outstanding).map(|(all, left)| (all - left).max(0.0)).collect();
        if outstanding.iter().sum::<f64>() <= 0.0 {
            outstanding.clone_from(&allocated);
        }
        let Totals { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks } = self.totals;
        let left_bytes = apportion(allocated_bytes.saturating_sub(freed_bytes), &outstanding);
        let left_blocks = apportion(allocated_blocks.saturating_sub(freed_blocks), &outstanding);
        let freed_bytes = apportion(freed_bytes, &freed);
        let freed_blocks = apportion(freed_blocks, &freed);
        let sum: f64 = outstanding.iter().sum();
        let even = 1.0 / outstanding.len() as f64;
        self.stacks
            .keys()
            .zip(outstanding.iter())
            .zip(left_bytes.into_iter().zip(left_blocks))
            .zip(freed_bytes.into_iter().zip(freed_blocks))
            .map(|(((stack, weight), (left_bytes, left_blocks)), (freed_bytes, freed_blocks))| {
                let share = if sum > 0.0 { weight / sum } else { even };
                SiteTotals {
                    function,
                    stack: *stack,
                    threads: Vec::new(),
                    totals: Totals {
                        allocated_bytes: left_bytes.saturating_add(freed_bytes),
                        allocated_blocks: left_blocks.saturating_add(freed_blocks),
                        freed_bytes,
                        freed_blocks,
                    },
                    outstanding: self.outstanding.scaled(share),
                    survivors: self.survivors.scaled(share),
                    largest: self.largest.clone(),
                    exact,
                }
            })
            .collect()
    }
}
