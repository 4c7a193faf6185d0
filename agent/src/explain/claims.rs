//! Which bytes of the address space have an owner already?

use std::{collections::BTreeMap, ops::Range};

/// Ranges that have an owner. What is claimed twice stays with the first.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// End of each range, by its begin; disjoint.
    taken: BTreeMap<u64, u64>,
}

impl Claims {
    /// The parts of `range` that nobody has claimed, by rising address.
    pub(super) fn free_in(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let Range { start: mut at, end } = range;
        let mut parts = Vec::new();
        if let Some((_, taken_to)) = self.taken.range(..=at).next_back() {
            at = at.max(*taken_to);
        }
        if at >= end {
            return parts;
        }
        for (start, taken_to) in self.taken.range(at..end) {
            if at < *start {
                parts.push(at..*start);
            }
            at = at.max(*taken_to);
        }
        if at < end {
            parts.push(at..end);
        }
        parts
    }

    /// Claims `range`, and returns the parts of it that were free.
    pub(super) fn claim(&mut self, range: Range<u64>) -> Vec<Range<u64>> {
        let granted = self.free_in(range);
        for part in &granted {
            // Neighbours are joined: a heap of a million chunks is one range.
            let mut start = part.start;
            if let Some((before, end)) = self.taken.range(..=start).next_back()
                && *end == start
            {
                start = *before;
            }
            let end = self.taken.remove(&part.end).unwrap_or(part.end);
            self.taken.insert(start, end);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_claim_wins() {
        let mut claims = Claims::default();
        assert_eq!(claims.claim(10..20).as_slice(), std::slice::from_ref(&(10..20)));
        assert_eq!(claims.claim(5..30), [5..10, 20..30]);
        assert_eq!(claims.taken, BTreeMap::from([(5, 30)]));
        assert!(claims.claim(5..30).is_empty());
        assert_eq!(claims.free_in(29..40).as_slice(), std::slice::from_ref(&(30..40)));
    }

    proptest! {
        #[test]
        fn no_byte_is_granted_twice(ranges: Vec<(u8, u8)>) {
            let mut claims = Claims::default();
            let mut owner = [None; 256];
            for (index, (start, end)) in ranges.iter().enumerate() {
                for part in claims.claim(u64::from(*start)..u64::from(*end)) {
                    for at in part {
                        prop_assert_eq!(owner[usize::try_from(at).unwrap()].replace(index), None);
                    }
                }
            }
            for (start, end) in ranges {
                for at in start..end {
                    prop_assert!(owner[usize::from(at)].is_some());
                }
            }
        }
    }
}
