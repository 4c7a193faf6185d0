//! Does a NIF or driver leak through the VM's own interfaces?
//!
//! The VM's allocators tag blocks of `driver_alloc` and `binary_alloc` with the NIF's module or the driver's name that
//! asked for them (`+M<S>atags`, on for these two; `erl_alloc.c`, OTP-25.2.3), so that looks alone show it.

use std::collections::BTreeMap;

use super::{
    Amount, Answer, Case, Fact, Verdict, VerdictId,
    leak::{self, Finding},
    thresholds::{LEAK_BLOCKS, LEAK_BYTES, LEAK_RATE, VM_GROWTH_BYTES},
    trend::{Course, Point, Trend},
};
use crate::{
    attribute::Class,
    explain::model::{Explanation, Tagged},
    wording::{label, unit::Units},
};

const IEC: Units = Units::Iec;

/// What the VM itself asks for has this origin.
pub(super) const SYSTEM: &str = "system";

/// Blocks of one tag over the looks.
struct Tag<'a> {
    origin: &'a str,
    kind: &'a str,
    bytes: Vec<Point>,
    blocks: Vec<Point>,
}

pub(super) fn judge(case: &Case<'_>) -> Verdict {
    let verdict = Verdict::open(VerdictId::NifLeak);
    if let Some(found) = by_sites(case, &verdict) {
        return found;
    }
    let tags = tags(case);
    let held = tags.iter().filter_map(|tag| tag.bytes.last()).map(|point| point.1).sum::<f64>();
    let no_tags = case.looks.last().is_none_or(|look| look.explanation.tags.is_empty());
    if no_tags && case.vm_api.is_empty() {
        return without_tags(case, verdict);
    }
    let verdict = Verdict { bytes: bytes(held), ..verdict };
    if walked(case).count() < 2 && case.vm_api.is_empty() {
        return Verdict {
            summary: format!(
                "NIFs and drivers hold {} of the VM's memory; one look does not show growth",
                IEC.bytes(bytes(held))
            ),
            evidence: tags.iter().take(3).map(held_by).collect(),
            next: vec![case.record("auto", 1.0)],
            ..verdict
        };
    }
    let mut growing: Vec<(&Tag<'_>, Trend, Course)> = Vec::new();
    for tag in &tags {
        let (Some(bytes), Some(blocks)) = (Trend::of(&tag.bytes), Trend::of(&tag.blocks)) else { continue };
        let course = bytes.course(LEAK_BYTES.value, LEAK_RATE.value);
        // What waits for a garbage collection comes and goes.
        let is_open = matches!(course, Course::AtOnce | Course::Unclear | Course::TooFew);
        let counts = course == Course::Steady || (is_open && bytes.net >= VM_GROWTH_BYTES.value);
        if counts && blocks.net >= LEAK_BLOCKS.value {
            growing.push((tag, bytes, course));
        }
    }
    growing.sort_by(|one, other| other.1.per_second.total_cmp(&one.1.per_second));
    let Some((tag, trend, course)) = growing.first() else {
        return Verdict {
            answer: Answer::RuledOut,
            confidence: Some(by_points(walked(case).count())),
            growth_per_second: Some(0.0),
            summary: format!(
                "no NIF and no driver takes more and more from the VM; they hold {}",
                IEC.bytes(bytes(held))
            ),
            evidence: tags.iter().take(3).map(held_by).collect(),
            ..verdict
        };
    };
    let subject = format!("{} ({})", tag.origin, tag.kind);
    let evidence = vec![
        held_by(tag),
        Fact::new("their growth", Amount::Rate(trend.per_second), "tags"),
        Fact::new("blocks that came with it", Amount::Count(blocks_of(tag)), "tags"),
        Fact::new("looks that show it", Amount::Count(trend.points as u64), "looks"),
    ];
    let rate = growing.iter().map(|(_, trend, _)| trend.per_second).sum::<f64>();
    let verdict = Verdict {
        growth_per_second: Some(rate),
        bytes: bytes(trend.net),
        subject: Some(subject.clone()),
        evidence,
        next: vec![
            format!("{} --vm-api", case.record("exact", 1.0)),
            "recon:bin_leak(5).  % whether Erlang processes keep its binaries and resources".into(),
        ],
        ..verdict
    };
    if *course != Course::Steady {
        return Verdict {
            summary: format!("blocks of {subject} have grown; too little was seen to tell whether they go on to"),
            ..verdict
        };
    }
    Verdict {
        answer: Answer::Confirmed,
        confidence: Some(trend.confidence()),
        summary: format!(
            "{} takes {} more from the VM and does not give it back: it leaks, or Erlang terms keep its binaries and resources",
            subject,
            IEC.rate(trend.per_second).trim_start_matches('+')
        ),
        ..verdict
    }
}

/// By the blocks that were followed from allocation to free.
fn by_sites(case: &Case<'_>, verdict: &Verdict) -> Option<Verdict> {
    let behind_vm = case.sites.iter().filter(|ranked| is_nif_behind_malloc(ranked));
    let groups = leak::groups(case, case.vm_api.iter().chain(behind_vm));
    let mut found = groups.iter().filter_map(|group| match group.finding() {
        Finding::Leak(trend) => Some((group, trend)),
        _ => None,
    });
    let (group, trend) = found.next()?;
    let rate = trend.per_second + found.map(|(_, trend)| trend.per_second).sum::<f64>();
    Some(Verdict {
        answer: Answer::Confirmed,
        confidence: Some(leak::confidence(&trend, group.outstanding_blocks)),
        bytes: group.outstanding_bytes,
        growth_per_second: Some(rate),
        subject: Some(group.place.to_string()),
        summary: format!(
            "{} takes {} more from the VM and does not give it back",
            group.place,
            IEC.rate(rate).trim_start_matches('+')
        ),
        evidence: group.evidence("sites"),
        next: vec![
            "look for the enif_free, enif_release_resource or driver_free that is missing on the way back".into(),
        ],
        ..verdict.clone()
    })
}

/// With the VM's allocators off, its interfaces ask malloc: native code stands behind the VM's function.
pub(super) fn is_nif_behind_malloc(ranked: &crate::attribute::RankedSite<'_>) -> bool {
    let asks_vm = |function: &str| {
        function.starts_with("enif_alloc") || function.starts_with("enif_re") || function.starts_with("driver_")
    };
    ranked.attribution.class == Class::Vm
        && ranked.site.stack.frames.iter().any(|frame| frame.function.as_deref().is_some_and(asks_vm))
}

fn without_tags(case: &Case<'_>, verdict: Verdict) -> Verdict {
    let disabled = case.looks.last().is_some_and(|look| !look.explanation.disabled.is_empty());
    if disabled && case.interval.is_some() && case.followed_seconds > 0.0 {
        // What the VM is asked for is then malloc's, and was followed.
        return Verdict {
            answer: Answer::RuledOut,
            confidence: Some(super::Confidence::Medium),
            summary: "no place keeps what it asks the VM for; its allocators are off, so that it was seen at malloc"
                .into(),
            ..verdict
        };
    }
    Verdict {
        summary: "blocks carry no tags that were read, so NIFs and drivers cannot be told apart in the VM's memory"
            .into(),
        next: vec![format!("{} --vm-api", case.record("exact", 1.0))],
        ..verdict
    }
}

fn by_points(points: usize) -> super::Confidence {
    match points {
        8.. => super::Confidence::High,
        4.. => super::Confidence::Medium,
        _ => super::Confidence::Low,
    }
}

fn held_by(tag: &Tag<'_>) -> Fact {
    let held = tag.bytes.last().map_or(0.0, |point| point.1);
    let name = format!("blocks of {} ({})", label::clean(tag.origin), label::clean(tag.kind));
    Fact::new(name, Amount::Bytes(bytes(held)), "tags")
}

fn blocks_of(tag: &Tag<'_>) -> u64 {
    bytes(Trend::of(&tag.blocks).map_or(0.0, |trend| trend.net))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and what it is of was a u64"
)]
fn bytes(value: f64) -> u64 {
    value as u64
}

/// The looks that walked the blocks of all carriers: one that left some out has not seen all tags.
fn walked<'a>(case: &Case<'a>) -> impl Iterator<Item = (f64, &'a Explanation)> {
    let looks = case.looks.iter().map(|look| (look.at, &look.explanation));
    looks.filter(|(_, look)| !look.tags.is_empty() && look.depth.walked == look.depth.carriers)
}

/// All tags of NIFs and drivers in the looks that walked blocks, by falling bytes of the last one.
fn tags<'a>(case: &Case<'a>) -> Vec<Tag<'a>> {
    let mut tags: BTreeMap<(&str, &str), Tag<'_>> = BTreeMap::new();
    for (_, explanation) in walked(case) {
        for Tagged { origin, kind, .. } in &explanation.tags {
            let (origin, kind) = (origin.as_deref().unwrap_or("?"), kind.as_deref().unwrap_or("?"));
            if origin != SYSTEM {
                tags.entry((origin, kind)).or_insert(Tag { origin, kind, bytes: Vec::new(), blocks: Vec::new() });
            }
        }
    }
    for (at, explanation) in walked(case) {
        let mut now: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
        for Tagged { origin, kind, blocks, bytes, .. } in &explanation.tags {
            let sum = now.entry((origin.as_deref().unwrap_or("?"), kind.as_deref().unwrap_or("?"))).or_default();
            *sum = (sum.0.saturating_add(*blocks), sum.1.saturating_add(*bytes));
        }
        for (key, tag) in &mut tags {
            let (blocks, bytes) = now.get(key).copied().unwrap_or_default();
            tag.blocks.push((at, blocks as f64));
            tag.bytes.push((at, bytes as f64));
        }
    }
    let mut tags: Vec<Tag<'_>> = tags.into_values().collect();
    let last = |tag: &Tag<'_>| tag.bytes.last().map_or(0.0, |point| point.1);
    tags.sort_by(|one, other| last(other).total_cmp(&last(one)));
    tags
}
