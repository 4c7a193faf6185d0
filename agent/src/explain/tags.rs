//! Who asked for the tagged blocks, and what for?
//!
//! A tag holds the atom of the NIF's module or of the driver, or `system`, and the number of the allocation type
//! (`MAKE_ATAG` in `erl_alloc_util.c`, OTP-25.2.3). What `instrument:allocations/1` answers is counted in the same way.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    model::{Explanation, Tagged},
    whole,
};
use crate::{
    erts::{
        alloc::{Depth, Survey, tally::TagTotal},
        allocation_type::AllocationTypes,
        atom::AtomTable,
    },
    target::memory::ReadMemory,
    view::ProcessView,
};

/// Adds the tags of all walked blocks to `explanation`, and which allocators have none.
pub(super) fn name(
    survey: &Survey,
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    explanation: &mut Explanation,
) {
    if survey.depth != Depth::Full {
        return;
    }
    let mut tags: BTreeMap<u64, TagTotal> = BTreeMap::new();
    let mut tagged: BTreeSet<&str> = BTreeSet::new();
    let mut untagged: BTreeSet<&str> = BTreeSet::new();
    for carrier in &survey.carriers {
        let Some(tally) = &carrier.tally else { continue };
        let allocator = survey.instances.get(carrier.listed.owner).map_or("", |owner| owner.allocator.as_str());
        if !tally.tags.is_empty() {
            tagged.insert(allocator);
        } else if tally.used_blocks > 0 {
            untagged.insert(allocator);
        }
        for (tag, total) in &tally.tags {
            let sum = tags.entry(*tag).or_default();
            sum.blocks = sum.blocks.saturating_add(total.blocks);
            sum.bytes = sum.bytes.saturating_add(total.bytes);
            sum.sizes.merge(&total.sizes);
        }
    }
    explanation.untagged = untagged.difference(&tagged).map(|name| (*name).to_owned()).collect();
    if tags.is_empty() {
        return;
    }
    let types = match AllocationTypes::find(view, memory) {
        Ok(types) => Some(types),
        Err(error) => {
            explanation.defects.push(format!("names of allocation types: {}", whole(&error)));
            None
        }
    };
    let atoms = match AtomTable::find(view, memory) {
        Ok(atoms) => Some(atoms),
        Err(error) => {
            explanation.defects.push(format!("names of NIFs and drivers: {}", whole(&error)));
            None
        }
    };
    let named = tags.into_iter().map(|(tag, TagTotal { blocks, bytes, sizes })| {
        let decoded = types.as_ref().map(|types| (types, types.decode(tag)));
        let origin = decoded.as_ref().and_then(|(_, (atom, _))| atoms.as_ref()?.name(*atom, memory));
        let kind = decoded.and_then(|(types, (_, number))| types.name(number).map(str::to_owned));
        Tagged { origin, kind, blocks, bytes, sizes }
    });
    explanation.tags = named.collect();
    explanation.tags.sort_by(|one, other| {
        other.bytes.cmp(&one.bytes).then_with(|| (&one.origin, &one.kind).cmp(&(&other.origin, &other.kind)))
    });
}
