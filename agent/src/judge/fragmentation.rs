//! Do carriers hold memory that no block uses?

use std::collections::BTreeMap;

use super::{
    Amount, Answer, Case, Confidence, Fact, Verdict, VerdictId, advice,
    thresholds::{FRAGMENTED_SHARE, FRAGMENTED_USE, WASTE_BYTES},
};
use crate::{
    erts::alloc::Depth,
    explain::{
        model::{Explanation, InstanceFacts},
        owner::Owner,
    },
    wording::{label, unit::Units},
};

const IEC: Units = Units::Iec;

/// What an allocator's instances hold together.
struct Held<'a> {
    allocator: &'a str,
    /// Resident and free in its carriers: the least of all looks.
    unused: u64,
    carrier_bytes: u64,
    block_bytes: u64,
    /// The largest that the blocks have ever been.
    most_block_bytes: u64,
    largest_free_block: u64,
    instances: Vec<&'a InstanceFacts>,
}

impl Held<'_> {
    fn utilisation(&self) -> f64 {
        self.block_bytes as f64 / self.carrier_bytes.max(1) as f64
    }
}

pub(super) fn judge(case: &Case<'_>) -> Verdict {
    let verdict = Verdict::open(VerdictId::Fragmentation);
    let Some(last) = case.last_look() else {
        return Verdict {
            summary: "the VM's carriers were not looked at".into(),
            next: vec![case.explain()],
            ..verdict
        };
    };
    if last.depth.reached == Depth::Counters || last.instances.is_empty() {
        return Verdict {
            summary: "the VM's carriers could not be walked".into(),
            next: vec![format!("{} --depth full", case.explain())],
            ..verdict
        };
    }
    let mut held = allocators(case, last);
    held.sort_by_key(|held| std::cmp::Reverse(held.unused));
    let unused = held.iter().fold(0_u64, |sum, held| sum.saturating_add(held.unused));
    let share = case.share_of_rss(unused);
    let fragmented: Vec<&Held<'_>> = held
        .iter()
        .filter(|held| {
            let big =
                held.unused as f64 >= WASTE_BYTES.value && case.share_of_rss(held.unused) >= FRAGMENTED_SHARE.value;
            big && held.utilisation() < FRAGMENTED_USE.value
        })
        .collect();
    let all = Fact::new("free and resident in all carriers", Amount::Bytes(unused), "looks");
    let of_rss = Fact::new("their share of the RSS", Amount::Share(share), "looks");
    let Some(worst) = fragmented.first() else {
        let most = held.first().map(|held| {
            let fact = format!("the most of it, in {}", held.allocator);
            Fact::new(fact, Amount::Bytes(held.unused), "looks")
        });
        return Verdict {
            answer: Answer::RuledOut,
            confidence: Some(Confidence::High),
            bytes: unused,
            summary: format!(
                "carriers hold {} that no block uses, {:.0} % of the RSS",
                IEC.bytes(unused),
                100.0 * share
            ),
            evidence: [all, of_rss].into_iter().chain(most).collect(),
            ..verdict
        };
    };
    let mut evidence = of_allocator(worst);
    evidence.extend([all, of_rss]);
    let bytes = fragmented.iter().fold(0_u64, |sum, held| sum.saturating_add(held.unused));
    let names: Vec<&str> = fragmented.iter().map(|held| held.allocator).collect();
    let (use_now, most) = (worst.block_bytes, worst.most_block_bytes);
    let peak = if most > use_now.saturating_mul(2) {
        format!("; its blocks were {} at their peak and are {} now", IEC.bytes(most), IEC.bytes(use_now))
    } else {
        String::new()
    };
    Verdict {
        answer: Answer::Confirmed,
        // One look cannot tell a moment from a state.
        confidence: Some(if case.looks.len() > 1 { Confidence::High } else { Confidence::Medium }),
        bytes,
        subject: Some(names.join(", ")),
        summary: format!(
            "{} of {} hold {} that no block uses, {:.0} % of the RSS{peak}",
            "carriers",
            names.join(" and "),
            IEC.bytes(bytes),
            100.0 * case.share_of_rss(bytes)
        ),
        evidence,
        next: fragmented.iter().flat_map(|held| advice::fragmented(held.allocator)).collect(),
        ..verdict
    }
}

/// What is known of the most fragmented allocator.
fn of_allocator(held: &Held<'_>) -> Vec<Fact> {
    let name = held.allocator;
    let mut facts = vec![
        Fact::new(format!("free and resident in carriers of {name}"), Amount::Bytes(held.unused), "looks"),
        Fact::new(format!("part of the carriers of {name} that is in use"), Amount::Share(held.utilisation()), "looks"),
        Fact::new("largest free block", Amount::Bytes(held.largest_free_block), "looks"),
        Fact::new("bytes of blocks at their peak", Amount::Bytes(held.most_block_bytes), "counters"),
    ];
    let mut pinned: (u64, u64, u64) = (0, 0, 0);
    let mut empty = 0_u64;
    let mut kinds: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for instance in &held.instances {
        let of = &instance.pinned;
        pinned.0 = pinned.0.saturating_add(of.carriers);
        pinned.1 = pinned.1.saturating_add(of.resident_free);
        pinned.2 = pinned.2.saturating_add(of.blocks);
        empty = empty.saturating_add(instance.empty.resident);
        for tagged in &of.kinds {
            let key = (tagged.origin.as_deref().unwrap_or("?"), tagged.kind.as_deref().unwrap_or("?"));
            let blocks = kinds.entry(key).or_default();
            *blocks = blocks.saturating_add(tagged.blocks);
        }
    }
    if pinned.0 > 0 {
        facts.push(Fact::new("carriers that few blocks keep", Amount::Count(pinned.0), "looks"));
        facts.push(Fact::new("free and resident in these", Amount::Bytes(pinned.1), "looks"));
        facts.push(Fact::new("blocks that keep them", Amount::Count(pinned.2), "looks"));
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, blocks)| std::cmp::Reverse(*blocks));
    for ((origin, kind), blocks) in kinds.into_iter().take(2) {
        let fact = format!("of these blocks, of {} ({})", label::clean(origin), label::clean(kind));
        facts.push(Fact::new(fact, Amount::Count(blocks), "tags"));
    }
    if empty > 0 {
        facts.push(Fact::new("in carriers without any block", Amount::Bytes(empty), "looks"));
    }
    facts
}

fn allocators<'a>(case: &Case<'a>, last: &'a Explanation) -> Vec<Held<'a>> {
    let mut held: BTreeMap<&str, Held<'_>> = BTreeMap::new();
    for instance in &last.instances {
        let all = instance.all();
        let of = held.entry(&instance.allocator).or_insert_with(|| Held {
            allocator: &instance.allocator,
            unused: 0,
            carrier_bytes: 0,
            block_bytes: 0,
            most_block_bytes: 0,
            largest_free_block: 0,
            instances: Vec::new(),
        });
        let used = all.blocks.map_or_else(|| all.carrier_bytes.saturating_sub(instance.free_bytes), |(_, bytes)| bytes);
        of.carrier_bytes = of.carrier_bytes.saturating_add(all.carrier_bytes);
        of.block_bytes = of.block_bytes.saturating_add(used);
        let most = instance.counters.as_ref().map_or(0, |counters| {
            let most = counters.mbcs.all_block_bytes().plus(counters.sbcs.all_block_bytes());
            most.most.unwrap_or(most.now)
        });
        of.most_block_bytes = of.most_block_bytes.saturating_add(most);
        of.largest_free_block = of.largest_free_block.max(instance.largest_free_block.unwrap_or(0));
        of.instances.push(instance);
    }
    for of in held.values_mut() {
        let unused = Owner::VmUnused(of.allocator.to_owned());
        let of_looks = case.owners(|owner| *owner == unused);
        of.unused = super::whole(of_looks.iter().map(|point| point.1).fold(f64::INFINITY, f64::min));
    }
    held.into_values().collect()
}
