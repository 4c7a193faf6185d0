//! Of which node and which time does a report speak?

use super::{label, unit};
use crate::recording::{Emulator, Ended, Interval, Mode, Node, Recording};

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

/// What the recording has cost the node, and how much of its time was followed for that.
pub(super) fn cost_facts(recording: &Recording) -> String {
    let Some(share) = recording.cost_share() else { return "not measured".to_owned() };
    let budget = recording.cost.budget.map(|budget| format!(" (budget {})", percent(budget))).unwrap_or_default();
    let seconds = recording.interval.seconds;
    let followed = match recording.blind.as_slice() {
        [] => String::new(),
        [_] => format!("; allocations followed for {} of it", unit::seconds(recording.followed_seconds())),
        blind => format!(
            "; allocations followed for {} of it, in windows between {} blind spans",
            unit::seconds(recording.followed_seconds()),
            blind.len()
        ),
    };
    format!("{} of one processor's time over {}{budget}{followed}", percent(share), unit::seconds(seconds))
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 10.0 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}
