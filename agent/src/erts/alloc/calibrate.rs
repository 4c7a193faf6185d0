//! How are the structures of this VM laid out? Derived from what must hold in them, without knowing the release.
//!
//! The order is that of `layout::Layout`'s fields: each step uses what those before have proven. A running node may
//! change a list between two reads, so a step that fails is worth another try with fresh copies.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use thiserror::Error;

use super::{
    block::{self, BlockSink, Form},
    instance::Instance,
    layout::{
        CARRIER_WORDS, DC_LIST, FLAGS, HEADER_SIZES, Layout, POOL_MARKS, POOL_NEXT, SBC_LIST, SENTINEL, SINGLE_BLOCK,
        statistics_bytes,
    },
    list::{self, Listed, Place},
    locate::{NAME_WORDS, name_offsets},
    statistics,
};
use crate::{
    erts::{carrier::CarrierKind, tag::TagNames},
    mapping::Address,
    target::memory::ReadMemory,
    words::{Words, read_block, read_words},
};

/// Carriers that are walked for a proof, at most.
const SAMPLE: usize = 48;
/// Larger ones are not walked for it.
const LARGEST_SAMPLE: u64 = 4 << 20;
/// Where the carrier lists are looked for in an `Allctr_t`, in words.
const LISTS: Range<usize> = 24..128;
/// Where the counters of blocks are looked for in a carrier's header, in bytes.
const CARRIER_COUNTERS: Range<usize> = 64..320;

/// Why the layout could not be derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CalibrationError {
    /// No word of the instances points to their names.
    #[error("the allocators' names were not found in their structures")]
    Names,
    /// No place for the lists fits all instances.
    #[error("the lists of carriers were not found in the allocators' structures")]
    Lists,
    /// No size of a header leads through the carriers.
    #[error("no size of a carrier's header leads from block to block to the end of the carriers")]
    HeaderSize,
}

/// Derives the layout from `instances`. `records` is the number of records in the table of allocators.
pub(super) fn calibrate(
    instances: &[Instance],
    records: usize,
    names: &TagNames,
    memory: &(impl ReadMemory + ?Sized),
) -> Result<Layout, CalibrationError> {
    let name = name_offset(instances, memory).ok_or(CalibrationError::Names)?;
    let lists = list_offset(instances, memory).ok_or(CalibrationError::Lists)?;
    let mut layout = Layout {
        name,
        header_size: 0,
        carrier_lists: lists,
        has_pool: has_pool(instances, lists, memory),
        types: records.saturating_sub(1),
        carrier_blocks: None,
        statistics: None,
        pool_statistics: None,
        alignment: None,
        tag_bytes: Some(8),
    };
    let carriers = carriers(instances, &layout, memory);
    let sample = Sample::of(&carriers, instances);
    layout.header_size = (name / 8 + 8..lists / 8)
        .map(|word| word * 8)
        .find(|offset| sample.confirms_header(*offset, memory))
        .ok_or(CalibrationError::HeaderSize)?;
    layout.alignment = sample.alignment(layout.header_size, memory);
    layout.tag_bytes = sample.tag_bytes(&layout, names, memory);
    let walked = sample.walk(&layout, memory);
    if let Some((types, offset)) = carrier_counters(&walked, records, memory) {
        (layout.types, layout.carrier_blocks) = (types, Some(offset));
    }
    layout.statistics = statistics_offset(instances, &carriers, &layout);
    layout.pool_statistics = pool_statistics_offset(instances, &carriers, &layout);
    Ok(layout)
}

/// `name_prefix`: the first word that points to a name in every instance and has the instance's numbers behind it.
fn name_offset(instances: &[Instance], memory: &(impl ReadMemory + ?Sized)) -> Option<usize> {
    let first = instances.first()?;
    let fits = |instance: &Instance, offset: usize| {
        let number = instance.half(offset + 8) == Some(instance.at.number);
        let ix = instance.half(offset + 16) == Some(instance.at.instance);
        number && ix && instance.allocator(offset, memory).is_some()
    };
    let begin = first.words.get(..NAME_WORDS.min(first.words.len()))?;
    name_offsets(begin, first.at.number)
        .map(|word| word * 8)
        .find(|offset| instances.iter().all(|one| fits(one, *offset)))
}

/// `mbc_list`: the first place where every instance has two pairs of pointers, both null or neither, that lead to
/// carriers of its own, multi-block ones and single-block ones.
fn list_offset(instances: &[Instance], memory: &(impl ReadMemory + ?Sized)) -> Option<usize> {
    LISTS.map(|word| word * 8).find(|&offset| {
        let mut proofs = 0_usize;
        let fits = instances.iter().all(|instance| match fits_lists(instance, offset, memory) {
            Some(found) => {
                proofs += found;
                true
            }
            None => false,
        });
        fits && proofs >= 2
    })
}

/// Ends of lists that were confirmed; `None`: something contradicts.
fn fits_lists(instance: &Instance, offset: usize, memory: &(impl ReadMemory + ?Sized)) -> Option<usize> {
    // Carriers may be younger than the view of the mappings, so only a read tells whether they can be read.
    let mut proofs = 0;
    for (list, single) in [(0, 0), (SBC_LIST, SINGLE_BLOCK)] {
        let ends = [instance.word(offset + list)?, instance.word(offset + list + 8)?];
        if ends == [0, 0] {
            continue;
        }
        for (end, outer) in ends.into_iter().zip([2, 1]) {
            if end == 0 || !end.is_multiple_of(8) {
                return None;
            }
            let header = read_words::<CARRIER_WORDS>(memory, Address(end)).ok()?;
            let [chdr, .., allctr] = header;
            let is_end = header.get(outer) == Some(&0);
            if allctr & !FLAGS != instance.at.address.0 || chdr & SINGLE_BLOCK != single || !is_end {
                return None;
            }
            proofs += 1;
        }
    }
    Some(proofs)
}

/// Whether what follows the lists is that of a pool: every sentinel is null, or part of a ring.
fn has_pool(instances: &[Instance], lists: usize, memory: &(impl ReadMemory + ?Sized)) -> bool {
    instances.iter().all(|instance| match instance.word(lists + SENTINEL) {
        None => false,
        Some(0) => true,
        Some(sentinel) => Address(sentinel)
            .checked_add(POOL_NEXT)
            .and_then(|at| read_words::<2>(memory, at).ok())
            .is_some_and(|links| links.iter().all(|link| read_words::<1>(memory, Address(link & !POOL_MARKS)).is_ok())),
    })
}

/// All carriers that can be listed; what cannot is for the survey to complain about.
fn carriers(instances: &[Instance], layout: &Layout, memory: &(impl ReadMemory + ?Sized)) -> Vec<Listed> {
    let owners: BTreeMap<u64, usize> =
        instances.iter().enumerate().map(|(index, instance)| (instance.at.address.0, index)).collect();
    let mut all = Vec::new();
    for (owner, instance) in instances.iter().enumerate() {
        all.append(&mut list::of_instance(instance, owner, layout, memory).unwrap_or_default());
    }
    all.append(&mut list::pooled(instances, &owners, layout, memory).unwrap_or_default());
    all
}

struct Sample<'a> {
    carriers: Vec<&'a Listed>,
    instances: &'a [Instance],
}

impl<'a> Sample<'a> {
    /// Small multi-block carriers of as many instances as possible.
    fn of(carriers: &'a [Listed], instances: &'a [Instance]) -> Self {
        let mut by_owner: BTreeMap<usize, Vec<&Listed>> = BTreeMap::new();
        for carrier in carriers
            .iter()
            .filter(|carrier| carrier.kind == CarrierKind::MultiBlock && carrier.place == Place::Employed)
        {
            by_owner.entry(carrier.owner).or_default().push(carrier);
        }
        for list in by_owner.values_mut() {
            list.sort_by_key(|carrier| carrier.bytes);
        }
        let each = (SAMPLE / by_owner.len().max(1)).max(2);
        let small = |carrier: &&&Listed| carrier.bytes <= LARGEST_SAMPLE;
        let mut carriers: Vec<_> =
            by_owner.values().flat_map(|list| list.iter().take(each).filter(small)).copied().collect();
        if carriers.is_empty() {
            carriers = by_owner.values().filter_map(|list| list.first().copied()).take(2).collect();
        }
        carriers.truncate(2 * SAMPLE);
        Self { carriers, instances }
    }

    fn header(&self, carrier: &Listed, offset: usize) -> Option<u64> {
        self.instances.get(carrier.owner)?.word(offset)
    }

    /// Whether the word at `offset` leads through the carriers: through four of five at least, since some may change
    /// under way.
    fn confirms_header(&self, offset: usize, memory: &(impl ReadMemory + ?Sized)) -> bool {
        let plausible = |instance: &Instance| {
            instance.word(offset).is_some_and(|size| HEADER_SIZES.contains(&size) && size.is_multiple_of(8))
        };
        if !self.instances.iter().all(plausible) {
            return false;
        }
        let mut words = Words::new(memory);
        let walked = self.carriers.iter().filter(|carrier| {
            let Some(header) = self.header(carrier, offset) else { return false };
            let form = Form { header, alignment: None, tag_bytes: None };
            block::walk(&mut words, &range(carrier), form, &mut Distances::default()).is_ok()
        });
        most(walked.count(), self.carriers.len())
    }

    /// The alignment under which every block that tells its distance lies in its carrier.
    fn alignment(&self, header_size: usize, memory: &(impl ReadMemory + ?Sized)) -> Option<u32> {
        let mut words = Words::new(memory);
        let mut told = Vec::new();
        for carrier in &self.carriers {
            let Some(header) = self.header(carrier, header_size) else { continue };
            let mut distances = Distances::default();
            let form = Form { header, alignment: None, tag_bytes: None };
            if block::walk(&mut words, &range(carrier), form, &mut distances).is_ok() {
                told.extend(distances.0.into_iter().map(|(block, units)| (block, units, carrier.address.0)));
            }
        }
        if told.is_empty() {
            return None;
        }
        (12..=21).find(|&bits| {
            told.iter().all(|&(block, units, start)| block::carrier_of(block, units, bits) == Some(start))
        })
    }

    /// Where the tags are: as many of them as possible are to name a type and an atom that there are. What stands in the
    /// wrong place, a term or the block's content, does not do so in all blocks.
    fn tag_bytes(&self, layout: &Layout, names: &TagNames, memory: &(impl ReadMemory + ?Sized)) -> Option<u64> {
        let mut tagged = TaggedEnds::default();
        let mut words = Words::new(memory);
        for carrier in &self.carriers {
            let Some(instance) = self.instances.get(carrier.owner) else { continue };
            // What was seen of a carrier that changed under way is as good.
            drop(block::walk(&mut words, &range(carrier), layout.form(instance), &mut tagged));
        }
        let mut valid = |bytes: u64| {
            let tags = tagged.0.iter().filter_map(|end| words.word(Address(end.checked_sub(bytes)?)).ok());
            tags.filter(|tag| matches!(names.of(*tag, memory), (Some(_), Some(_)))).count()
        };
        // Of a few blocks of one process, the terms may look like tags as well; never the other way round.
        [8, 16]
            .into_iter()
            .map(|bytes| (valid(bytes), bytes))
            .filter(|(valid, _)| *valid > 0)
            .max()
            .map(|(_, bytes)| bytes)
    }

    /// The carriers of the sample with the blocks that were counted in them.
    fn walk(&self, layout: &Layout, memory: &(impl ReadMemory + ?Sized)) -> Vec<(&Listed, u64, Count)> {
        let mut words = Words::new(memory);
        let mut walk = |carrier: &&'a Listed| {
            let form = layout.form(self.instances.get(carrier.owner)?);
            let mut count = Count::default();
            block::walk(&mut words, &range(carrier), form, &mut count).ok()?;
            Some((*carrier, form.header, count))
        };
        self.carriers.iter().filter_map(&mut walk).collect()
    }
}

/// Distances of blocks from the begin of their carrier, some of each carrier.
#[derive(Default)]
struct Distances(Vec<(u64, u64)>);

impl BlockSink for Distances {
    fn used(&mut self, _: Range<u64>, _: Option<u64>) {}
    fn free(&mut self, _: Range<u64>) {}
    fn distance(&mut self, block: u64, units: u64) {
        if self.0.len() < 256 {
            self.0.push((block, units));
        }
    }
}

/// Ends of tagged blocks, some of all carriers.
#[derive(Default)]
struct TaggedEnds(Vec<u64>);

impl BlockSink for TaggedEnds {
    fn used(&mut self, block: Range<u64>, tag: Option<u64>) {
        if tag.is_some() && self.0.len() < 512 {
            self.0.push(block.end);
        }
    }
    fn free(&mut self, _: Range<u64>) {}
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    blocks: u64,
    bytes: u64,
}

impl BlockSink for Count {
    fn used(&mut self, block: Range<u64>, _: Option<u64>) {
        self.blocks += 1;
        self.bytes += block.end - block.start;
    }
    fn free(&mut self, _: Range<u64>) {}
}

/// How many types are counted in a carrier's header, and where: the sums are what was walked.
fn carrier_counters(
    walked: &[(&Listed, u64, Count)],
    records: usize,
    memory: &(impl ReadMemory + ?Sized),
) -> Option<(usize, usize)> {
    let headers: Vec<_> = walked
        .iter()
        .filter(|(_, _, count)| count.blocks > 0)
        .filter_map(|(carrier, header, count)| {
            let bytes = usize::try_from(*header).ok()?;
            Some((read_block(memory, carrier.address, bytes).ok()?, *count))
        })
        .collect();
    // A table that was found by its shape may have been cut one record short or long.
    let types = [0, 1, -1, 2].into_iter().filter_map(|more| records.checked_sub(1)?.checked_add_signed(more));
    types.flat_map(|types| CARRIER_COUNTERS.step_by(8).map(move |offset| (types, offset))).find(|&(types, offset)| {
        let fits = headers.iter().filter(|(header, count)| {
            list::counted_blocks(header, offset / 8, types) == Some((count.blocks, count.bytes))
        });
        most(fits.count(), headers.len())
    })
}

/// `sbcs`, with `mbcs` behind it: carriers and their bytes are those of the lists.
fn statistics_offset(instances: &[Instance], carriers: &[Listed], layout: &Layout) -> Option<usize> {
    let mut expected = vec![[(0_u64, 0_u64); 2]; instances.len()];
    for carrier in carriers.iter().filter(|carrier| carrier.place == Place::Employed) {
        let kind = usize::from(carrier.kind == CarrierKind::MultiBlock);
        if let Some((count, bytes)) = expected.get_mut(carrier.owner).and_then(|kinds| kinds.get_mut(kind)) {
            (*count, *bytes) = (*count + 1, bytes.saturating_add(carrier.bytes));
        }
    }
    let known = |instance: &Instance, offset: usize| {
        let word = |index: usize| instance.word(offset + 8 * index);
        Some((word(0)?.checked_add(word(2)?)?, word(1)?.checked_add(word(3)?)?))
    };
    let last = instances.iter().map(|instance| instance.words.len() * 8).min()?;
    let size = statistics_bytes(layout.types);
    let end = last.checked_sub(2 * size)?;
    (layout.carrier_lists + SENTINEL..=end).step_by(8).find(|&offset| {
        let telling = instances.iter().zip(&expected).filter(|(_, [sbcs, mbcs])| sbcs.0 + mbcs.0 > 0);
        let (mut fitting, mut all) = (0, 0);
        for (instance, [sbcs, mbcs]) in telling {
            all += 1;
            let fits = known(instance, offset) == Some(*sbcs) && known(instance, offset + size) == Some(*mbcs);
            fitting += usize::from(fits);
        }
        most(fitting, all)
    })
}

/// `cpool.stat`: carriers and their bytes are those that lie in the pool.
fn pool_statistics_offset(instances: &[Instance], carriers: &[Listed], layout: &Layout) -> Option<usize> {
    let mut pooled: BTreeMap<usize, (u64, u64)> = BTreeMap::new();
    for carrier in carriers.iter().filter(|carrier| carrier.place == Place::Pooled) {
        let (count, bytes) = pooled.entry(carrier.owner).or_default();
        (*count, *bytes) = (*count + 1, bytes.saturating_add(carrier.bytes));
    }
    if !layout.has_pool {
        return None;
    }
    let begin = layout.carrier_lists + SENTINEL.max(DC_LIST) + 8;
    let end = layout.statistics.unwrap_or(begin + 1024);
    let by_figures = (begin..end).step_by(8).find(|&offset| {
        // Only the instances that have something in the pool tell one row of counters from zeros.
        let fits = pooled.iter().filter(|(owner, expected)| {
            let pool = instances.get(**owner).and_then(|one| statistics::pool_stats(one, offset, layout.types));
            pool.is_some_and(|pool| (pool.carriers.now, pool.carrier_bytes.now) == **expected)
        });
        most(fits.count(), pooled.len())
    });
    by_figures.or_else(|| before_main_carrier(instances, carriers, layout))
}

/// `cpool.stat` of a VM that has nothing in its pool, or whose pool changes too fast: it is at a fixed distance before
/// `main_carrier`, which points to a carrier of the instance or nowhere. Eleven counters of calls stand between
/// (`erl_alloc_util.h`, OTP-23.2.6 to OTP-27.3.4.1).
fn before_main_carrier(instances: &[Instance], carriers: &[Listed], layout: &Layout) -> Option<usize> {
    let own: BTreeSet<(usize, u64)> = carriers.iter().map(|carrier| (carrier.owner, carrier.address.0)).collect();
    let figures = 2 * layout.types + 2;
    let distance = (figures + 11) * 8;
    let begin = layout.carrier_lists + SENTINEL + 8;
    let main_carrier = (begin + distance..layout.statistics?).step_by(8).find(|&offset| {
        let pointers: Vec<_> = instances.iter().map(|instance| instance.word(offset).unwrap_or(u64::MAX)).collect();
        let known = |(owner, pointer): (usize, &u64)| *pointer == 0 || own.contains(&(owner, *pointer));
        pointers.iter().any(|pointer| *pointer != 0) && pointers.iter().enumerate().all(known)
    })?;
    let offset = main_carrier - distance;
    // No carrier, no byte and no block; and none of them without the others.
    let agrees = |instance: &Instance| {
        statistics::pool_stats(instance, offset, layout.types).is_some_and(|pool| {
            let is_empty = pool.carriers.now == 0;
            let bytes = pool.carrier_bytes.now;
            (bytes == 0) == is_empty && bytes.is_multiple_of(8) && pool.all_block_bytes().now <= bytes
        })
    };
    instances.iter().all(agrees).then_some(offset)
}

/// Whether `fitting` is four fifths of `all`, and not nothing.
fn most(fitting: usize, all: usize) -> bool {
    fitting > 0 && fitting.saturating_mul(5) >= all.saturating_mul(4)
}

fn range(carrier: &Listed) -> Range<u64> {
    carrier.address.0..carrier.address.0.saturating_add(carrier.bytes)
}
