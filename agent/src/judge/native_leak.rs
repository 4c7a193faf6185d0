//! Does native code leak memory that the VM cannot see?

use super::{
    Amount, Answer, Case, Confidence, Fact, Verdict, VerdictId,
    leak::{self, Finding, Group},
    thresholds::{BACKED_BY_GROWTH, LEAK_RATE, LEAK_SECONDS, NATIVE_GROWTH_BYTES},
    trend::{Course, Trend},
};
use crate::{
    attribute::Class,
    explain::owner::Owner,
    recording::Mode,
    wording::{label, unit::Units},
};

const IEC: Units = Units::Iec;

pub(super) fn judge(case: &Case<'_>) -> Verdict {
    let verdict = Verdict::open(VerdictId::NativeLeak);
    let Some(interval) = case.interval else { return from_one_look(case, verdict) };
    let trend = Trend::of(&case.owners(is_native));
    if interval.mode == Mode::Growth || case.followed_seconds < LEAK_SECONDS.value / 2.0 {
        return without_sites(case, verdict, trend);
    }
    let native = case.sites.iter().filter(|ranked| matches!(ranked.attribution.class, Class::Native { .. }));
    let groups = leak::groups(case, native);
    let findings = || groups.iter().map(|group| (group, group.finding()));
    let leaks: Vec<(&Group, Trend)> = findings()
        .filter_map(|(group, finding)| match finding {
            Finding::Leak(trend) => Some((group, trend)),
            _ => None,
        })
        .collect();
    if !leaks.is_empty() {
        return of_leaks(case, verdict, &leaks, trend);
    }
    let suspect = findings().find_map(|(group, finding)| match finding {
        Finding::Suspect(trend, why) => Some((group, trend, why)),
        _ => None,
    });
    if let Some((group, trend, why)) = suspect {
        return Verdict {
            bytes: group.outstanding_bytes,
            growth_per_second: Some(trend.per_second),
            subject: Some(group.place.to_string()),
            summary: format!("{} keeps {} and may leak: {why}", group.place, IEC.bytes(group.outstanding_bytes)),
            evidence: group.evidence("sites"),
            next: vec![case.record("exact", 4.0)],
            ..verdict
        };
    }
    none_found(case, verdict, &groups, trend)
}

/// Memory of native code that is in use.
fn is_native(owner: &Owner) -> bool {
    matches!(owner, Owner::NativeUsed | Owner::NativeMapped)
}

fn from_one_look(case: &Case<'_>, verdict: Verdict) -> Verdict {
    let used = case.owned(is_native);
    Verdict {
        bytes: used,
        summary: format!("native code holds {}; one look does not show whether that grows", IEC.bytes(used)),
        evidence: vec![Fact::new("resident memory of native code in use", Amount::Bytes(used), "looks")],
        next: vec![case.record("auto", 1.0)],
        ..verdict
    }
}

/// The sum of what native code holds, where no allocation was followed.
fn without_sites(case: &Case<'_>, verdict: Verdict, trend: Option<Trend>) -> Verdict {
    let used = case.owned(is_native);
    let Some(trend) = trend else {
        return Verdict {
            summary: "no allocation was followed, and there is one look only".into(),
            next: vec![case.record("exact", 1.0)],
            ..verdict
        };
    };
    let evidence = vec![
        Fact::new("resident memory of native code in use", Amount::Bytes(used), "looks"),
        Fact::new("its growth", Amount::Rate(trend.per_second), "looks"),
        Fact::new("looks", Amount::Count(trend.points as u64), "looks"),
    ];
    match trend.course(NATIVE_GROWTH_BYTES.value, LEAK_RATE.value) {
        Course::Flat | Course::LevelsOff => Verdict {
            answer: Answer::RuledOut,
            confidence: Some(trend.confidence()),
            bytes: used,
            growth_per_second: Some(trend.per_second),
            summary: format!("native code holds {} and does not keep growing", IEC.bytes(used)),
            evidence,
            ..verdict
        },
        Course::Steady | Course::AtOnce | Course::Unclear | Course::TooFew => {
            let candidate = candidate(case);
            let touched = candidate.as_ref().map(|who| format!("; {who} was most often the first to touch new memory"));
            Verdict {
                bytes: used,
                growth_per_second: Some(trend.per_second),
                summary: format!(
                    "native memory grows by {}{}, which is a lead and no proof",
                    IEC.rate(trend.per_second),
                    touched.unwrap_or_default()
                ),
                subject: candidate,
                evidence,
                next: vec![case.record("exact", 1.0)],
                ..verdict
            }
        }
    }
}

/// The code that touched most of the new memory of native code.
fn candidate(case: &Case<'_>) -> Option<String> {
    let native = case.faults.iter().filter(|fault| fault.owner.as_ref().is_some_and(is_native));
    let first = native.max_by_key(|fault| fault.bytes)?;
    let frame = first.stack.frames.iter().find(|frame| !crate::attribute::is_wrapper(frame))?;
    Some(label::function_and_module(frame))
}

fn of_leaks(case: &Case<'_>, verdict: Verdict, leaks: &[(&Group, Trend)], native: Option<Trend>) -> Verdict {
    let Some((first, trend)) = leaks.first() else { return verdict };
    let bytes = leaks.iter().fold(0_u64, |sum, (group, _)| sum.saturating_add(group.outstanding_bytes));
    let rate: f64 = leaks.iter().map(|(_, trend)| trend.per_second).sum();
    let mut evidence = first.evidence("sites");
    if let Some(native) = native {
        evidence.push(Fact::new(
            "growth of all resident native memory in use",
            Amount::Rate(native.per_second),
            "looks",
        ));
    }
    let others = match leaks.len() {
        1 => String::new(),
        more => format!(" ({more} places leak; this one leaks most)"),
    };
    let verdict =
        Verdict { bytes, growth_per_second: Some(rate), subject: Some(first.place.to_string()), evidence, ..verdict };
    if !is_backed(case, rate, native) {
        return Verdict {
            summary: format!(
                "{} keeps {}, yet native memory as a whole does not grow like that: older blocks may be freed as fast",
                first.place,
                IEC.bytes(first.outstanding_bytes)
            ),
            next: vec![case.record("exact", 4.0)],
            ..verdict
        };
    }
    Verdict {
        answer: Answer::Confirmed,
        confidence: Some(leak::confidence(trend, first.outstanding_blocks)),
        summary: format!("{} leaks {}{others}", first.place, IEC.rate(rate).trim_start_matches('+')),
        next: vec![
            "beamscope flamegraph node.bscope -o leak.svg".into(),
            "look for the free that is missing on the way back from this function; the sites below have its stack"
                .into(),
        ],
        ..verdict
    }
}

/// Whether memory as a whole grows as the leaking sites say, or need not.
fn is_backed(case: &Case<'_>, rate: f64, native: Option<Trend>) -> bool {
    let Some(native) = native else { return true };
    let grows = native.per_second >= BACKED_BY_GROWTH.value * rate;
    // Where all allocations were followed, memory can only stand still when as many older blocks are freed.
    let unknown_frees = case.counts.get("unknown_frees").copied().unwrap_or(0);
    let blocks: u64 = case.sites.iter().map(|ranked| ranked.site.outstanding_blocks()).fold(0, u64::saturating_add);
    grows || (!case.is_blind() && unknown_frees < blocks / 2)
}

fn none_found(case: &Case<'_>, verdict: Verdict, groups: &[Group], native: Option<Trend>) -> Verdict {
    let outstanding = groups.iter().fold(0_u64, |sum, group| sum.saturating_add(group.outstanding_bytes));
    let allocated = groups.iter().fold(0_u64, |sum, group| sum.saturating_add(group.allocated_bytes));
    let mut evidence = vec![
        Fact::new("native bytes allocated during the recording", Amount::Bytes(allocated), "sites"),
        Fact::new("of them not freed", Amount::Bytes(outstanding), "sites"),
        Fact::new("seconds in which allocations were followed", Amount::Seconds(case.followed_seconds), "recording"),
    ];
    if let Some(native) = &native {
        evidence.push(Fact::new(
            "growth of all resident native memory in use",
            Amount::Rate(native.per_second),
            "looks",
        ));
    }
    let verdict = Verdict { bytes: outstanding, growth_per_second: native.map(|trend| trend.per_second), ..verdict };
    if let Some(share) = leak::lost_share(case) {
        evidence.push(Fact::new("calls that were lost", Amount::Share(share), "losses"));
        return Verdict {
            summary: "no leak is among the calls that were followed, but too many were lost".into(),
            evidence,
            next: vec![format!("{} --max-live 4194304", case.record("exact", 1.0))],
            ..verdict
        };
    }
    // Memory that no followed call accounts for; what the VM asks malloc for is no carrier always.
    let in_libc = case.sites.iter().filter(|ranked| !ranked.has_carriers());
    let in_libc = in_libc.map(|ranked| ranked.site.outstanding_bytes()).fold(0, u64::saturating_add);
    let unexplained = native.filter(|trend| {
        let least = NATIVE_GROWTH_BYTES.value;
        trend.course(least, LEAK_RATE.value) == Course::Steady && trend.net - in_libc as f64 > least
    });
    if let Some(trend) = unexplained {
        return Verdict {
            summary: format!(
                "native memory grows by {}, and no allocation that was followed explains it",
                IEC.rate(trend.per_second)
            ),
            subject: candidate(case),
            evidence,
            next: vec![case.record("exact", 4.0)],
            ..verdict
        };
    }
    Verdict {
        answer: Answer::RuledOut,
        confidence: Some(if case.followed_seconds >= 5.0 { Confidence::High } else { Confidence::Medium }),
        summary: format!(
            "no place in native code keeps what it allocates: {} were allocated in {:.1} s, {} are left",
            IEC.bytes(allocated),
            case.followed_seconds,
            IEC.bytes(outstanding)
        ),
        evidence,
        ..verdict
    }
}
