//! Who asked for the tagged blocks, and what for?
//!
//! What `instrument:allocations/1` answers inside the node is counted in the same way.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Explanation, Tagged};
use crate::{
    erts::alloc::{Depth, Survey, survey::whole, tally::TagTotal},
    target::memory::ReadMemory,
};

/// Adds the tags of all walked blocks to `explanation`, and which allocators have none.
pub(super) fn name(survey: &Survey, memory: &(impl ReadMemory + ?Sized), explanation: &mut Explanation) {
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
    let Survey { names, .. } = survey;
    let missing = [
        names.types.as_ref().err().map(|error| format!("names of allocation types: {}", whole(error))),
        names.atoms.as_ref().err().map(|error| format!("names of NIFs and drivers: {}", whole(error))),
    ];
    let mut missing = missing.into_iter().flatten().peekable();
    if missing.peek().is_some() {
        // Without names it is not known where a tag is, and so not whether a block has one.
        explanation.defects.extend(missing);
        return;
    }
    explanation.untagged = untagged.difference(&tagged).map(|name| (*name).to_owned()).collect();
    let named = tags.into_iter().map(|(tag, TagTotal { blocks, bytes, sizes })| {
        let (origin, kind) = names.of(tag, memory);
        Tagged { origin, kind, blocks, bytes, sizes }
    });
    explanation.tags = named.collect();
    explanation.tags.sort_by(|one, other| {
        other.bytes.cmp(&one.bytes).then_with(|| (&one.origin, &one.kind).cmp(&(&other.origin, &other.kind)))
    });
}
