//! Which carriers stay for the sake of few blocks, or of none, and what are those blocks for?

use super::{
    account::Split,
    model::{EmptyCarriers, InstanceFacts, Pinned, Tagged},
};
use crate::{
    erts::{
        alloc::{
            CarrierFound, Survey,
            list::Place,
            tally::{TagTotal, Tally},
        },
        carrier::CarrierKind,
        tag::TagNames,
    },
    target::memory::ReadMemory,
    view::ProcessView,
};

/// Fills in, for each of `instances`, the carriers that few blocks hold, and those without any.
pub(super) fn fill(
    survey: &Survey,
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    instances: &mut [InstanceFacts],
) {
    let mut blocks = vec![Tally::default(); instances.len()];
    for carrier in &survey.carriers {
        let owner = carrier.listed.owner;
        let (Some(facts), Some(blocks)) = (instances.get_mut(owner), blocks.get_mut(owner)) else { continue };
        let resident = view.resident.bytes_in(&carrier.range());
        if facts.pinned.take(carrier, resident)
            && let Some(tally) = &carrier.tally
        {
            blocks.merge(tally);
        }
        facts.empty.take(carrier, resident);
    }
    for (facts, blocks) in instances.iter_mut().zip(blocks) {
        facts.pinned.kinds = kinds(&blocks, &survey.names, memory);
        facts.pinned.sizes = blocks.used_sizes;
    }
}

/// The most frequent tags of blocks.
fn kinds(blocks: &Tally, names: &TagNames, memory: &(impl ReadMemory + ?Sized)) -> Vec<Tagged> {
    let mut tags: Vec<(&u64, &TagTotal)> = blocks.tags.iter().collect();
    tags.sort_by(|(tag, one), (other_tag, other)| other.blocks.cmp(&one.blocks).then(tag.cmp(other_tag)));
    let most = tags.into_iter().take(Pinned::KINDS).map(|(tag, TagTotal { blocks, bytes, sizes })| {
        let (origin, kind) = names.of(*tag, memory);
        Tagged { origin, kind, blocks: *blocks, bytes: *bytes, sizes: sizes.clone() }
    });
    most.collect()
}

impl Pinned {
    /// Counts `carrier`, of which `resident` bytes are, if few blocks hold it. Says whether it does.
    fn take(&mut self, carrier: &CarrierFound, resident: u64) -> bool {
        let bytes = carrier.listed.bytes;
        let Some((blocks, block_bytes)) = used(carrier).filter(|(blocks, _)| *blocks > 0) else { return false };
        if block_bytes as f64 >= Self::BELOW * bytes as f64 {
            return false;
        }
        let free = Split::of(carrier, resident).map_or(0, |split| split.unused);
        for (sum, more) in [
            (&mut self.carriers, 1),
            (&mut self.carrier_bytes, bytes),
            (&mut self.resident_free, free),
            (&mut self.blocks, blocks),
            (&mut self.block_bytes, block_bytes),
            (&mut self.walked, u64::from(carrier.tally.is_some())),
        ] {
            *sum = sum.saturating_add(more);
        }
        true
    }

    /// Adds those of another instance.
    pub fn add(&mut self, other: &Self) {
        let Self { carriers, carrier_bytes, resident_free, blocks, block_bytes, walked, sizes, kinds } = self;
        for (sum, more) in [
            (carriers, other.carriers),
            (carrier_bytes, other.carrier_bytes),
            (resident_free, other.resident_free),
            (blocks, other.blocks),
            (block_bytes, other.block_bytes),
            (walked, other.walked),
        ] {
            *sum = sum.saturating_add(more);
        }
        sizes.merge(&other.sizes);
        for more in &other.kinds {
            match kinds.iter_mut().find(|kind| (&kind.origin, &kind.kind) == (&more.origin, &more.kind)) {
                Some(kind) => {
                    kind.blocks = kind.blocks.saturating_add(more.blocks);
                    kind.bytes = kind.bytes.saturating_add(more.bytes);
                    kind.sizes.merge(&more.sizes);
                }
                None => kinds.push(more.clone()),
            }
        }
        kinds.sort_by(|one, other| {
            other.blocks.cmp(&one.blocks).then_with(|| (&one.origin, &one.kind).cmp(&(&other.origin, &other.kind)))
        });
        kinds.truncate(Self::KINDS);
    }
}

impl EmptyCarriers {
    fn take(&mut self, carrier: &CarrierFound, resident: u64) {
        if used(carrier).is_some_and(|(blocks, _)| blocks == 0) {
            self.carriers = self.carriers.saturating_add(1);
            self.carrier_bytes = self.carrier_bytes.saturating_add(carrier.listed.bytes);
            self.resident = self.resident.saturating_add(resident);
        }
    }
}

/// Blocks of a multi-block carrier that is not about to go, and their bytes.
fn used(carrier: &CarrierFound) -> Option<(u64, u64)> {
    let stays = carrier.listed.kind == CarrierKind::MultiBlock && carrier.listed.place != Place::Dying;
    carrier.used().filter(|_| stays)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        erts::{alloc::list::Listed, carrier::CarrierSource},
        mapping::Address,
    };

    const SIZE: u64 = 1 << 20;

    /// A carrier with so many blocks of so many bytes together, by the counters in its header.
    fn carrier(kind: CarrierKind, place: Place, counted: Option<(u64, u64)>) -> CarrierFound {
        let source = CarrierSource::Mseg;
        let listed = Listed { address: Address(SIZE), bytes: SIZE, kind, source, place, owner: 0, counted };
        CarrierFound { listed, overhead: 128, tally: None, resident_overhead: 128 }
    }

    #[test]
    fn carriers_with_few_blocks_are_pinned_and_those_with_none_are_empty() {
        use CarrierKind::{MultiBlock, SingleBlock};
        let check = |kind, place, counted, expected: (u64, u64)| {
            let carrier = carrier(kind, place, counted);
            let (mut pinned, mut empty) = (Pinned::default(), EmptyCarriers::default());
            pinned.take(&carrier, SIZE);
            empty.take(&carrier, SIZE);
            assert_eq!((pinned.carriers, empty.carriers), expected, "{kind:?} {place:?} {counted:?}");
        };
        for place in [Place::Employed, Place::Pooled] {
            check(MultiBlock, place, Some((1, 64)), (1, 0));
            check(MultiBlock, place, Some((100, SIZE / 4 - 1)), (1, 0));
            check(MultiBlock, place, Some((100, SIZE / 4)), (0, 0));
            check(MultiBlock, place, Some((0, 0)), (0, 1));
            // Counters that do not fit into the carrier are not believed.
            check(MultiBlock, place, Some((1, SIZE)), (0, 0));
            check(MultiBlock, place, None, (0, 0));
        }
        check(SingleBlock, Place::Employed, Some((1, 64)), (0, 0));
        check(MultiBlock, Place::Dying, Some((0, 0)), (0, 0));
        check(MultiBlock, Place::Dying, Some((1, 64)), (0, 0));
    }

    #[test]
    fn what_is_free_is_what_is_resident_beyond_the_blocks() {
        let mut pinned = Pinned::default();
        for resident in [SIZE, SIZE / 2] {
            assert!(pinned.take(&carrier(CarrierKind::MultiBlock, Place::Pooled, Some((3, 1000))), resident));
        }
        let free = SIZE + SIZE / 2 - 2 * (1000 + 128);
        assert_eq!((pinned.blocks, pinned.block_bytes, pinned.resident_free), (6, 2000, free));
        assert_eq!(pinned.walked, 0);
    }

    #[test]
    fn a_sum_keeps_the_kinds_with_the_most_blocks() {
        let kind = |name: &str, blocks| Tagged {
            origin: Some("system".into()),
            kind: Some(name.into()),
            blocks,
            bytes: 100 * blocks,
            ..Tagged::default()
        };
        let of = |kinds: &[(&str, u64)]| Pinned {
            carriers: 1,
            kinds: kinds.iter().map(|(name, blocks)| kind(name, *blocks)).collect(),
            ..Pinned::default()
        };
        let mut sum = of(&[("a", 9), ("b", 8), ("c", 7), ("d", 6), ("e", 5)]);
        sum.add(&of(&[("f", 20), ("e", 10), ("g", 1)]));
        let names: Vec<_> = sum.kinds.iter().map(|kind| (kind.kind.as_deref().unwrap_or(""), kind.blocks)).collect();
        assert_eq!(names, [("f", 20), ("e", 15), ("a", 9), ("b", 8), ("c", 7)]);
        assert_eq!(sum.carriers, 2);
    }
}
