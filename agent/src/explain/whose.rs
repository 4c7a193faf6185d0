//! Whose is the page at an address? Asked of a few pages while the account of all memory is made.

use std::{collections::BTreeMap, ops::Range};

use super::owner::Owner;
use crate::{mapping::Address, view::Residency};

/// Pages that are asked about, and what each owner has of them.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// Bytes of a page.
    size: u64,
    /// Where they begin, by rising address, none twice.
    starts: Vec<u64>,
    shares: Vec<Vec<(Owner, u64)>>,
}

/// The owners of pages, by the page's begin. A page that is not there is not resident, or nobody's.
pub type Owners = BTreeMap<Address, Owner>;

impl Pages {
    /// Asks about the pages, of `size` bytes, that begin at `starts`.
    pub fn new(size: u64, starts: impl IntoIterator<Item = Address>) -> Self {
        let mut starts: Vec<u64> = starts.into_iter().map(|start| start.0).collect();
        starts.sort_unstable();
        starts.dedup();
        Self { size, shares: vec![Vec::new(); starts.len()], starts }
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Takes word that `range` belongs to `owner`.
    pub(super) fn give(&mut self, range: &Range<u64>, owner: &Owner) {
        let first = self.starts.partition_point(|start| start.saturating_add(self.size) <= range.start);
        for (start, shares) in self.starts.iter().zip(&mut self.shares).skip(first) {
            if *start >= range.end {
                break;
            }
            let end = range.end.min(start.saturating_add(self.size));
            let bytes = end.saturating_sub(range.start.max(*start));
            match shares.iter_mut().find(|(known, _)| known == owner) {
                Some((_, sum)) => *sum = sum.saturating_add(bytes),
                None => shares.push((owner.clone(), bytes)),
            }
        }
    }

    /// Who has most of each page that is resident.
    pub(super) fn owners(self, resident: &Residency) -> Owners {
        let Self { size, starts, shares } = self;
        let pages = starts.into_iter().zip(shares);
        let there = pages.filter(|(start, _)| resident.bytes_in(&(*start..start.saturating_add(size))) > 0);
        let largest = |shares: Vec<(Owner, u64)>| shares.into_iter().max_by_key(|(_, bytes)| *bytes);
        there.filter_map(|(start, shares)| Some((Address(start), largest(shares)?.0))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident(ranges: &[(u64, u64)]) -> Residency {
        Residency::Pages(ranges.to_vec().into())
    }

    #[test]
    fn a_page_is_whose_most_of_it_is() {
        let mut pages = Pages::new(0x1000, [Address(0x3000), Address(0x1000), Address(0x3000), Address(0x5000)]);
        pages.give(&(0..0x1800), &Owner::NativeUsed);
        pages.give(&(0x1800..0x1900), &Owner::NativeRetained);
        pages.give(&(0x3000..0x3100), &Owner::NativeRetained);
        pages.give(&(0x3100..0x3180), &Owner::NativeUsed);
        pages.give(&(0x3f80..0x4800), &Owner::NativeUsed);
        pages.give(&(0x3200..0x3280), &Owner::NativeUsed);
        let owners = pages.owners(&resident(&[(0, 0x10000)]));
        let expected = [(Address(0x1000), Owner::NativeUsed), (Address(0x3000), Owner::NativeUsed)];
        assert_eq!(owners, Owners::from(expected));
    }

    #[test]
    fn what_is_not_resident_is_nobodys() {
        let mut pages = Pages::new(0x1000, [Address(0x1000), Address(0x2000)]);
        pages.give(&(0..0x8000), &Owner::Stacks);
        let owners = pages.owners(&resident(&[(0x2000, 0x3000)]));
        assert_eq!(owners, Owners::from([(Address(0x2000), Owner::Stacks)]));
    }
}
