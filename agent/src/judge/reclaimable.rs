//! Is resident memory only lazily freed, or kept for use again?

use super::{
    Amount, Answer, Case, Confidence, Fact, Verdict, VerdictId, advice,
    thresholds::{RECLAIMABLE_SHARE, WASTE_BYTES},
    whole,
};
use crate::{explain::owner::Owner, wording::unit::Units};

const IEC: Units = Units::Iec;

pub(super) fn judge(case: &Case<'_>) -> Verdict {
    let verdict = Verdict::open(VerdictId::Reclaimable);
    let least = |pick: &dyn Fn(&Owner) -> bool| {
        let points = case.owners(pick);
        if points.is_empty() { 0 } else { whole(points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min)) }
    };
    let lazy_of_vm = least(&|owner| *owner == Owner::VmLazyfree);
    // The kernel's sum has what native code has given up as well.
    let lazy_of_all = case.snapshots.iter().map(|snapshot| snapshot.lazy_free).min().unwrap_or(0);
    let (lazy, cached) = (lazy_of_vm.max(lazy_of_all), least(&|owner| *owner == Owner::VmCached));
    if case.looks.is_empty() && case.snapshots.is_empty() {
        return Verdict {
            summary: "neither the kernel's figures nor the VM's were read".into(),
            next: vec![case.explain()],
            ..verdict
        };
    }
    let bytes = lazy.saturating_add(cached);
    let share = case.share_of_rss(bytes);
    let verdict = Verdict {
        bytes,
        evidence: vec![
            Fact::new(
                "given up (MADV_FREE), and resident until the kernel needs it",
                Amount::Bytes(lazy),
                "smaps_rollup",
            ),
            Fact::new("kept by the VM for new carriers", Amount::Bytes(cached), "looks"),
            Fact::new("their share of the RSS", Amount::Share(share), "looks"),
        ],
        ..verdict
    };
    if (bytes as f64) < WASTE_BYTES.value || share < RECLAIMABLE_SHARE.value {
        return Verdict {
            answer: Answer::RuledOut,
            confidence: Some(Confidence::High),
            summary: format!(
                "{} are given up or kept for use again, {:.0} % of the RSS",
                IEC.bytes(bytes),
                100.0 * share
            ),
            ..verdict
        };
    }
    let most_is_cached = cached >= lazy;
    let what = if most_is_cached {
        "the VM keeps for new carriers"
    } else {
        "are given up (MADV_FREE) and go when the kernel needs them"
    };
    Verdict {
        answer: Answer::Confirmed,
        confidence: Some(if case.looks.len() > 1 { Confidence::High } else { Confidence::Medium }),
        subject: Some(if most_is_cached { "segments kept by the VM" } else { "lazily freed pages" }.into()),
        summary: format!(
            "{} of the RSS {what}, {:.0} % of it: no leak",
            IEC.bytes(cached.max(lazy)),
            100.0 * case.share_of_rss(cached.max(lazy))
        ),
        next: advice::reclaimable(most_is_cached),
        ..verdict
    }
}
