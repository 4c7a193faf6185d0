//! Of which node and which time does a report speak?

use super::{Report, label, unit};
use crate::recording::{BlindSpan, Emulator, Ended, Interval, Mode, Node, Recording};

/// Blind spans that are listed at most.
const SPANS: usize = 3;

pub(super) fn node_name(node: &Node) -> String {
    node.name.as_ref().map_or_else(|| format!("process {}", node.pid), |name| label::clean(name))
}

pub(super) fn node_facts(node: &Node) -> String {
    let emulator = match node.emulator {
        Some(Emulator::Jit) => "JIT",
        Some(Emulator::Emu) => "interpreter",
        None => "emulator not known",
    };
    let otp = node.otp_release.as_ref().map_or_else(|| "OTP release not known".into(), |otp| format!("OTP {otp}"));
    let erts = node.erts_version.as_ref().map(|erts| format!(" (ERTS {erts})")).unwrap_or_default();
    let libc = node.libc.as_ref().map(|libc| format!(", {libc}")).unwrap_or_default();
    let container = node.container.as_ref().map(|id| format!(", container {id}")).unwrap_or_default();
    let Node { pid, arch, kernel, .. } = node;
    let kernel = if kernel.is_empty() { String::new() } else { format!(", Linux {kernel}") };
    label::clean(&format!("pid {pid}, {otp}{erts}, {emulator}, {arch}{libc}{kernel}{container}"))
}

pub(super) fn interval_facts(interval: &Interval, beamscope: &str) -> String {
    let mode = match interval.mode {
        Mode::Growth => "growth",
        Mode::Exact => "exact",
        Mode::Auto => "auto",
    };
    let ended = match interval.ended {
        Ended::Duration => "to its end",
        Ended::Interrupted => "stopped by the user",
        Ended::NodeExited => "until the node exited",
    };
    let (start, span) = (unit::moment(interval.start_unix), unit::seconds(interval.seconds));
    label::clean(&format!("{start} for {span}, {ended}; mode {mode}, beamscope {beamscope}"))
}

/// What the recording has cost the node, and could have. `None`: neither was measured nor limited.
pub(super) fn cost(report: &Report<'_>) -> Option<String> {
    let budget = report.recording.cost.budget.map(|budget| format!("{:.0} %", 100.0 * budget));
    match (report.recording.cost_share(), budget) {
        (Some(share), Some(budget)) => {
            Some(format!("{:.1} % of one processor's time in the node, of {budget} that were allowed", 100.0 * share))
        }
        (Some(share), None) => {
            Some(format!("{:.1} % of one processor's time in the node, without a limit", 100.0 * share))
        }
        (None, Some(budget)) => Some(format!("not measured; {budget} of one processor's time were allowed")),
        (None, None) => None,
    }
}

/// How long allocations were followed, and when and why they were not. `None`: all the time.
pub(super) fn followed(recording: &Recording) -> Option<String> {
    if recording.blind.is_empty() {
        return None;
    }
    let span = |BlindSpan { from, until, reason }: &BlindSpan| format!("{from:.1} to {until:.1} s ({reason})");
    let (first, more) = recording.blind.split_at_checked(SPANS).unwrap_or((&recording.blind, &[]));
    let mut spans: Vec<_> = first.iter().map(span).collect();
    if !more.is_empty() {
        let sum: f64 = more.iter().map(|span| (span.until - span.from).max(0.0)).sum();
        spans.push(format!("and {} more spans, {} in all", more.len(), unit::seconds(sum)));
    }
    let (followed, all) = (unit::seconds(recording.followed_seconds()), unit::seconds(recording.interval.seconds));
    Some(label::clean(&format!("allocations for {followed} of {all}; not from {}", spans.join(", "))))
}
