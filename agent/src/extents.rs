//! How many bytes of a range lie in a set of ranges, such as the resident pages of a process?

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::mapping::Address;

/// Ranges of addresses: sorted, disjoint, none empty, neighbours joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Extents {
    ranges: Vec<Range<u64>>,
    /// Bytes of all ranges before the one with the same index.
    before: Vec<u64>,
}

impl Extents {
    /// Adds `range`, which must not begin before the end of the last one; what does is cut off.
    pub fn push(&mut self, range: Range<u64>) {
        let Self { ranges, before } = self;
        let Some(last) = ranges.last_mut() else {
            if !range.is_empty() {
                ranges.push(range);
                before.push(0);
            }
            return;
        };
        let start = range.start.max(last.end);
        if start >= range.end {
            return;
        }
        if start == last.end {
            last.end = range.end;
            return;
        }
        let sum = before.last().copied().unwrap_or_default().saturating_add(last.end - last.start);
        ranges.push(start..range.end);
        before.push(sum);
    }

    /// Bytes of all ranges.
    pub fn total(&self) -> u64 {
        self.bytes_below(u64::MAX)
    }

    /// Bytes of `range` that lie in them.
    pub fn bytes_in(&self, range: &Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        self.bytes_below(range.end).saturating_sub(self.bytes_below(range.start))
    }

    /// The range that holds `address`.
    pub fn find(&self, address: Address) -> Option<&Range<u64>> {
        let after = self.ranges.partition_point(|range| range.start <= address.0);
        self.ranges.get(after.checked_sub(1)?).filter(|range| address.0 < range.end)
    }

    /// The parts of the ranges that lie in `within`, by rising address.
    pub fn parts_in(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.partition_point(|range| range.end <= within.start);
        let ranges = self.ranges.get(first..).unwrap_or_default();
        let Range { start, end } = within;
        ranges
            .iter()
            .take_while(move |range| range.start < end)
            .map(move |range| range.start.max(start)..range.end.min(end))
    }

    /// All of them, by rising address.
    pub fn iter(&self) -> std::slice::Iter<'_, Range<u64>> {
        self.ranges.iter()
    }

    fn bytes_below(&self, address: u64) -> u64 {
        let after = self.ranges.partition_point(|range| range.start < address);
        let Some((range, before)) =
            after.checked_sub(1).and_then(|at| Some((self.ranges.get(at)?, self.before.get(at)?)))
        else {
            return 0;
        };
        before.saturating_add(address.min(range.end).saturating_sub(range.start))
    }
}

impl From<Vec<(u64, u64)>> for Extents {
    fn from(mut pairs: Vec<(u64, u64)>) -> Self {
        pairs.sort_unstable();
        let mut extents = Self::default();
        for (start, end) in pairs {
            extents.push(start..end);
        }
        extents
    }
}

impl From<Extents> for Vec<(u64, u64)> {
    fn from(extents: Extents) -> Self {
        extents.ranges.into_iter().map(|range| (range.start, range.end)).collect()
    }
}

impl<'a> IntoIterator for &'a Extents {
    type Item = &'a Range<u64>;
    type IntoIter = std::slice::Iter<'a, Range<u64>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Range<u64>> for Extents {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        Self::from(ranges.into_iter().map(|range| (range.start, range.end)).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn joins_neighbours_and_cuts_overlaps() {
        let extents = Extents::from(vec![(30, 40), (10, 20), (20, 25), (35, 50), (60, 60), (7, 3)]);
        assert_eq!(Vec::from(extents.clone()), [(10, 25), (30, 50)]);
        assert_eq!(extents.total(), 35);
    }

    #[test]
    fn finds_and_cuts() {
        let extents = Extents::from(vec![(10, 20), (30, 40)]);
        assert_eq!(extents.find(Address(19)), Some(&(10..20)));
        assert_eq!(extents.find(Address(20)), None);
        assert_eq!(extents.parts_in(15..35).collect::<Vec<_>>(), [15..20, 30..35]);
        assert_eq!(extents.parts_in(20..30).count(), 0);
    }

    proptest! {
        #[test]
        fn counts_as_a_set_of_bytes_does(pairs: Vec<(u8, u8)>, start: u8, end: u8) {
            let extents = Extents::from(pairs.iter().map(|&(a, b)| (u64::from(a), u64::from(b))).collect::<Vec<_>>());
            let is_in = |at: &u64| pairs.iter().any(|&(a, b)| (u64::from(a)..u64::from(b)).contains(at));
            let range = u64::from(start)..u64::from(end);
            let expected = range.clone().filter(is_in).count() as u64;
            prop_assert_eq!(extents.bytes_in(&range), expected);
            let range = range.start..range.end.max(range.start);
            let parts: u64 = extents.parts_in(range).map(|part| part.end - part.start).sum();
            prop_assert_eq!(parts, expected);
        }
    }
}
