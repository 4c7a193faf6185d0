//! Who was first to touch memory that became resident?

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, btree_map::Entry},
};

use beamscope_probe::SampleHeader;

use super::Recorder;
use crate::{
    explain::{
        owner::Owner,
        whose::{Owners, Pages},
    },
    kernel::faults::PERIOD,
    ledger::StackId,
    mapping::Address,
    recording::FaultSite,
    stack::{Frame, Stack, raw::RawStack},
};

/// Pages that are remembered at most. What is touched beyond them has no owner.
const PAGES: usize = 1 << 20;

/// The page faults of a recording whose stack was looked for.
#[derive(Debug)]
pub(super) struct Faults {
    page_size: u64,
    /// The last touch of each page.
    pages: HashMap<Address, (StackId, Count)>,
    /// Touches of pages that were touched again later: they had been given back.
    given_back: HashMap<StackId, Count>,
    /// Touches of pages that found no room.
    pub(super) without_room: u64,
}

/// Faults at a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    /// What they stand for.
    faults: u64,
    sampled: u64,
}

/// The faults of a stack and an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Touched {
    stack: StackId,
    owner: Option<Owner>,
    count: Count,
    /// Threads that were seen with the stack.
    threads: Vec<String>,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.faults = self.faults.saturating_add(other.faults);
        self.sampled = self.sampled.saturating_add(other.sampled);
    }
}

impl Faults {
    pub(super) fn new(page_size: u64) -> Self {
        Self { page_size: page_size.max(1), pages: HashMap::new(), given_back: HashMap::new(), without_room: 0 }
    }

    /// Takes in a fault at `stack`.
    pub(super) fn take(&mut self, header: &SampleHeader, stack: StackId) {
        let page = Address(header.address - header.address % self.page_size);
        let count = Count { faults: header.size.saturating_mul(PERIOD), sampled: 1 };
        if self.pages.len() >= PAGES && !self.pages.contains_key(&page) {
            self.without_room = self.without_room.saturating_add(count.faults);
            self.given_back.entry(stack).or_default().add(count);
        } else if let Some((before, earlier)) = self.pages.insert(page, (stack, count)) {
            self.given_back.entry(before).or_default().add(earlier);
        }
    }

    /// The pages to ask about.
    pub(super) fn pages(&self) -> Pages {
        Pages::new(self.page_size, self.pages.keys().copied())
    }

    /// The faults by stack and owner. `threads` says which threads were seen with a stack.
    pub(super) fn touched(&self, owners: &Owners, threads: impl Fn(StackId) -> Vec<String>) -> Vec<Touched> {
        let mut counts: BTreeMap<(StackId, Option<&Owner>), Count> = BTreeMap::new();
        for (stack, count) in &self.given_back {
            counts.entry((*stack, None)).or_default().add(*count);
        }
        for (page, (stack, count)) in &self.pages {
            counts.entry((*stack, owners.get(page))).or_default().add(*count);
        }
        let touched = counts.into_iter().map(|((stack, owner), count)| Touched {
            stack,
            owner: owner.cloned(),
            count,
            threads: threads(stack),
        });
        touched.collect()
    }
}

impl Recorder {
    /// The sites, those with most bytes first.
    pub(super) fn fault_sites(&self, touched: Vec<Touched>) -> Vec<FaultSite> {
        let none = RawStack::default();
        let page_size = self.faults.page_size;
        let site = |Touched { stack, owner, count, threads }: Touched| {
            let thread = self.stacks.first_thread(stack);
            let kind = |name: &String| self.code.erlang.thread_kind(thread, name, self.target.pid());
            FaultSite {
                stack: self.code.name(self.stacks.get(stack).unwrap_or(&none), None),
                owner,
                thread: threads.first().map(kind),
                threads,
                faults: count.faults,
                bytes: count.faults.saturating_mul(page_size),
                sampled: count.sampled,
            }
        };
        let mut sites = joined(touched.into_iter().map(site));
        sites.sort_by(|one, other| {
            let rank = |site: &FaultSite| (Reverse(site.bytes), site.owner.clone());
            rank(one).cmp(&rank(other)).then_with(|| one.stack.cmp(&other.stack))
        });
        sites
    }
}

/// The sites, of which those that differ only in the instruction that touched the memory are one: a loop that fills it has
/// several.
fn joined(sites: impl Iterator<Item = FaultSite>) -> Vec<FaultSite> {
    let mut joined: BTreeMap<(Stack, Option<Owner>), FaultSite> = BTreeMap::new();
    for site in sites {
        let mut stack = site.stack.clone();
        if let Some(leaf) = stack.frames.first_mut().filter(|leaf| leaf.function.is_some()) {
            *leaf = Frame { address: Address(0), offset: None, line: None, ..leaf.clone() };
        }
        match joined.entry((stack, site.owner.clone())) {
            Entry::Vacant(entry) => {
                entry.insert(site);
            }
            Entry::Occupied(mut entry) => entry.get_mut().join(site),
        }
    }
    joined.into_values().collect()
}

impl FaultSite {
    /// Takes in what was counted at `other`.
    fn join(&mut self, other: Self) {
        self.faults = self.faults.saturating_add(other.faults);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.sampled = self.sampled.saturating_add(other.sampled);
        self.threads.extend(other.threads);
        self.threads.sort_unstable();
        self.threads.dedup();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Stacks;

    fn fault(address: u64, faults: u64) -> SampleHeader {
        SampleHeader { address, size: faults, ..SampleHeader::default() }
    }

    fn stacks() -> [StackId; 2] {
        let mut stacks = Stacks::default();
        [1, 2].map(|address| stacks.intern(RawStack { addresses: vec![Address(address)], ..RawStack::default() }).0)
    }

    fn by_stack(faults: &Faults, owners: &Owners) -> Vec<(StackId, Option<Owner>, u64, u64)> {
        let touched = faults.touched(owners, |_| Vec::new());
        touched.into_iter().map(|of| (of.stack, of.owner, of.count.faults, of.count.sampled)).collect()
    }

    #[test]
    fn the_last_touch_of_a_page_counts() {
        let [one, other] = stacks();
        let mut faults = Faults::new(4096);
        faults.take(&fault(0x1000, 3), one);
        faults.take(&fault(0x1fff, 5), other);
        faults.take(&fault(0x2000, 7), other);
        faults.take(&fault(0x3000, 11), one);
        let owners = Owners::from([(Address(0x1000), Owner::NativeUsed), (Address(0x2000), Owner::NativeUsed)]);
        let expected = [(one, None, 14 * PERIOD, 2), (other, Some(Owner::NativeUsed), 12 * PERIOD, 2)];
        assert_eq!(by_stack(&faults, &owners), expected);
    }

    #[test]
    fn pages_without_room_are_counted() {
        let [one, other] = stacks();
        let mut faults = Faults::new(1);
        for address in 0..PAGES as u64 {
            faults.take(&fault(address, 1), one);
        }
        faults.take(&fault(1 << 40, 9), other);
        faults.take(&fault(5, 1), one);
        assert_eq!(faults.without_room, 9 * PERIOD);
        let all: u64 = by_stack(&faults, &Owners::new()).iter().map(|(.., count, _)| count).sum();
        assert_eq!(all, (PAGES as u64 + 10) * PERIOD);
    }
}
