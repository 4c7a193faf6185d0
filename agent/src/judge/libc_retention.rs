//! Does the C library hold freed memory?

use super::{
    Amount, Answer, Case, Confidence, Fact, Verdict, VerdictId, advice,
    thresholds::{RETAINED_SHARE, WASTE_BYTES},
    trend::Trend,
    whole,
};
use crate::{explain::owner::Owner, wording::unit::Units};

const IEC: Units = Units::Iec;

pub(super) fn judge(case: &Case<'_>) -> Verdict {
    let verdict = Verdict::open(VerdictId::LibcRetention);
    let looked = case.last_look().and_then(|look| look.libc.as_ref());
    let Some(libc) = looked else {
        let why = if case
            .last_look()
            .is_some_and(|look| look.node.libc.as_deref().is_some_and(|libc| libc.starts_with("musl")))
        {
            "the heap of musl is not walked"
        } else {
            "the C library's heap could not be walked"
        };
        return Verdict { summary: why.into(), next: vec![case.explain()], ..verdict };
    };
    // What is free at one moment and used at the next is no retention.
    let points = case.owners(|owner| *owner == Owner::NativeRetained);
    let retained = whole(points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min));
    let share = case.share_of_rss(retained);
    let growth = Trend::of(&points).map(|trend| trend.per_second);
    let evidence = vec![
        Fact::new("freed, and resident in the C library's arenas", Amount::Bytes(retained), "looks"),
        Fact::new("their share of the RSS", Amount::Share(share), "looks"),
        Fact::new(
            "bytes of chunks in use",
            Amount::Bytes(libc.heap.in_use_bytes.saturating_sub(libc.vm_bytes)),
            "libc",
        ),
        Fact::new("arenas", Amount::Count(libc.heap.arenas.len() as u64), "libc"),
    ];
    let verdict = Verdict { bytes: retained, growth_per_second: growth, evidence, ..verdict };
    let text =
        format!("the C library holds {} of freed memory, {:.0} % of the RSS", IEC.bytes(retained), 100.0 * share);
    if (retained as f64) < WASTE_BYTES.value || share < RETAINED_SHARE.value {
        return Verdict { answer: Answer::RuledOut, confidence: Some(Confidence::High), summary: text, ..verdict };
    }
    Verdict {
        answer: Answer::Confirmed,
        confidence: Some(if case.looks.len() > 1 { Confidence::High } else { Confidence::Medium }),
        subject: Some(format!("{} arenas of the C library", libc.heap.arenas.len())),
        summary: format!("{text}; it is no leak, and can be used again"),
        next: advice::retained(),
        ..verdict
    }
}
