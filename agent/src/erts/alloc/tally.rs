//! What do the blocks of carriers add up to: by use, by residency, by size, by tag?

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use super::block::BlockSink;
use crate::{extents::Extents, view::Residency};

/// How many blocks there are of which size. Slot `n` is for sizes from 2^n to 2^(n+1) - 1 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizes(BTreeMap<u32, (u64, u64)>);

impl Sizes {
    /// Counts a block of `bytes` bytes.
    pub fn add(&mut self, bytes: u64) {
        let (blocks, sum) = self.0.entry(bytes.checked_ilog2().unwrap_or(0)).or_default();
        (*blocks, *sum) = (blocks.saturating_add(1), sum.saturating_add(bytes));
    }

    /// Adds what another histogram has counted.
    pub fn merge(&mut self, other: &Self) {
        for (slot, (more_blocks, more)) in &other.0 {
            let (blocks, sum) = self.0.entry(*slot).or_default();
            (*blocks, *sum) = (blocks.saturating_add(*more_blocks), sum.saturating_add(*more));
        }
    }

    /// Slots that are not empty: the smallest size in bytes, blocks, and their bytes.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.0.iter().map(|(slot, (blocks, bytes))| (1_u64.checked_shl(*slot).unwrap_or(0), *blocks, *bytes))
    }
}

/// Blocks that carry the same tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagTotal {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes, headers and tags included.
    pub bytes: u64,
    /// Their sizes.
    pub sizes: Sizes,
}

/// What the blocks of one carrier, or of many, add up to. Bytes of blocks include their headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Allocated blocks.
    pub used_blocks: u64,
    /// Their bytes.
    pub used_bytes: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Their bytes.
    pub free_bytes: u64,
    /// The resident part of them.
    pub resident_free_bytes: u64,
    /// The part of them that is given up and still resident, where pages are known.
    pub lazily_freed_bytes: u64,
    /// Bytes of the largest free block.
    pub largest_free_block: u64,
    /// Sizes of the free blocks.
    pub free_sizes: Sizes,
    /// Sizes of the allocated blocks.
    pub used_sizes: Sizes,
    /// Blocks by their tag.
    pub tags: BTreeMap<u64, TagTotal>,
}

impl Tally {
    /// Adds what another tally has counted.
    pub fn merge(&mut self, other: &Self) {
        let Self {
            used_blocks,
            used_bytes,
            free_blocks,
            free_bytes,
            resident_free_bytes,
            lazily_freed_bytes,
            largest_free_block,
            free_sizes,
            used_sizes,
            tags,
        } = self;
        for (sum, more) in [
            (used_blocks, other.used_blocks),
            (used_bytes, other.used_bytes),
            (free_blocks, other.free_blocks),
            (free_bytes, other.free_bytes),
            (resident_free_bytes, other.resident_free_bytes),
            (lazily_freed_bytes, other.lazily_freed_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
        *largest_free_block = (*largest_free_block).max(other.largest_free_block);
        free_sizes.merge(&other.free_sizes);
        used_sizes.merge(&other.used_sizes);
        for (tag, more) in &other.tags {
            let total = tags.entry(*tag).or_default();
            total.blocks = total.blocks.saturating_add(more.blocks);
            total.bytes = total.bytes.saturating_add(more.bytes);
            total.sizes.merge(&more.sizes);
        }
    }
}

/// Counts the blocks of a carrier.
pub(super) struct Counter<'a> {
    tally: Tally,
    /// Blocks and bytes of the allocated blocks in each slot of [`Sizes`]: a search for the slot of each block would be the
    /// dearest part of the count.
    used: [(u64, u64); u64::BITS as usize],
    resident: &'a Residency,
    lazily_freed: Option<&'a Extents>,
}

impl<'a> Counter<'a> {
    /// Has counted nothing.
    pub(super) fn new(resident: &'a Residency, lazily_freed: Option<&'a Extents>) -> Self {
        Self { tally: Tally::default(), used: [(0, 0); u64::BITS as usize], resident, lazily_freed }
    }

    /// What was counted.
    pub(super) fn tally(mut self) -> Tally {
        let used = (0..).zip(self.used).filter(|(_, (blocks, _))| *blocks > 0);
        self.tally.used_sizes = Sizes(used.collect());
        self.tally
    }

    /// Bytes behind the only block of a carrier, which are no block and can serve no other request.
    pub(super) fn behind(&mut self, range: Range<u64>) {
        self.tally.resident_free_bytes = self.resident.bytes_in(&range);
        self.tally.free_bytes = range.end - range.start;
    }
}

impl BlockSink for Counter<'_> {
    fn used(&mut self, block: Range<u64>, tag: Option<u64>) {
        let bytes = block.end - block.start;
        self.tally.used_blocks += 1;
        self.tally.used_bytes += bytes;
        let slot = usize::try_from(bytes.checked_ilog2().unwrap_or(0)).unwrap_or(usize::MAX);
        if let Some((blocks, sum)) = self.used.get_mut(slot) {
            (*blocks, *sum) = (*blocks + 1, *sum + bytes);
        }
        if let Some(tag) = tag {
            let total = self.tally.tags.entry(tag).or_default();
            total.blocks += 1;
            total.bytes += bytes;
            total.sizes.add(bytes);
        }
    }

    fn free(&mut self, block: Range<u64>) {
        let bytes = block.end - block.start;
        let tally = &mut self.tally;
        tally.free_blocks += 1;
        tally.free_bytes += bytes;
        tally.largest_free_block = tally.largest_free_block.max(bytes);
        tally.free_sizes.add(bytes);
        tally.resident_free_bytes += self.resident.bytes_in(&block);
        tally.lazily_freed_bytes += self.lazily_freed.map_or(0, |pages| pages.bytes_in(&block));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fall_into_powers_of_two() {
        let mut sizes = Sizes::default();
        for bytes in [16, 31, 32, 4096, 0] {
            sizes.add(bytes);
        }
        assert_eq!(sizes.iter().collect::<Vec<_>>(), [(1, 1, 0), (16, 2, 47), (32, 1, 32), (4096, 1, 4096)]);
    }

    #[test]
    fn a_merge_adds_up() {
        let resident = Residency::Pages(Extents::from(vec![(0, 4096)]));
        let mut counter = Counter::new(&resident, None);
        counter.used(0..64, Some(7));
        counter.free(64..8192);
        let one = counter.tally();
        assert_eq!((one.free_bytes, one.resident_free_bytes, one.largest_free_block), (8128, 4032, 8128));
        let mut two = one.clone();
        two.merge(&one);
        assert_eq!((two.used_bytes, two.free_blocks, two.tags[&7].bytes), (128, 2, 128));
    }

    #[test]
    fn allocated_blocks_are_counted_by_size_with_and_without_tags() {
        let resident = Residency::Pages(Extents::default());
        let mut counter = Counter::new(&resident, None);
        let lengths = [16, 24, 31, 32, 100, 1 << 40];
        for (length, tag) in lengths.into_iter().zip([None, Some(7)].into_iter().cycle()) {
            counter.used(4096..4096 + length, tag);
        }
        let mut sizes = Sizes::default();
        for length in lengths {
            sizes.add(length);
        }
        assert_eq!(counter.tally().used_sizes, sizes);
    }
}
