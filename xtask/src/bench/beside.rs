//! What does a node notice of being looked at: memory, page faults, a delay?

use std::{fs, thread, time::Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{cost, spread::Spread, stall::largest_gap};
use crate::node::Node;

/// So many snapshots are taken for each answer.
pub(super) const SNAPSHOTS: usize = 10;

/// What became of the node.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Beside {
    /// While snapshots were taken.
    pub(super) looked_at: Change,
    /// For as long.
    pub(super) bare: Change,
    /// The largest gap between two ticks of the node's 5 ms ticker, in each span with a snapshot.
    pub(super) looked_at_gap_ms: Spread,
    /// In spans as long, by turns with them.
    pub(super) bare_gap_ms: Spread,
}

/// Of a node of which nothing was asked meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    pub(super) rss_before: u64,
    pub(super) rss_after: u64,
    pub(super) minor_faults: u64,
    pub(super) major_faults: u64,
}

pub(super) fn measure(node: &mut Node, mut snapshot: impl FnMut() -> Result<()>) -> Result<Beside> {
    let begin = Instant::now();
    let looked_at = change(node.pid(), || (0..SNAPSHOTS).try_for_each(|_| snapshot()))?;
    let span = begin.elapsed();
    let bare = change(node.pid(), || {
        thread::sleep(span);
        Ok(())
    })?;
    let mut gaps = Vec::new();
    for _ in 0..SNAPSHOTS {
        let begin = Instant::now();
        let looked_at = gap(node, &mut snapshot)?;
        let span = begin.elapsed();
        let bare = gap(node, || {
            thread::sleep(span);
            Ok(())
        })?;
        gaps.push((looked_at, bare));
    }
    let looked_at_gap_ms = Spread::of(gaps.iter().map(|(gap, _)| *gap)).context("no snapshots")?;
    let bare_gap_ms = Spread::of(gaps.iter().map(|(_, gap)| *gap)).context("no snapshots")?;
    Ok(Beside { looked_at, bare, looked_at_gap_ms, bare_gap_ms })
}

fn change(pid: u32, work: impl FnOnce() -> Result<()>) -> Result<Change> {
    let (rss_before, (minor, major)) = (rss(pid)?, faults(pid)?);
    work()?;
    let (rss_after, (minor_after, major_after)) = (rss(pid)?, faults(pid)?);
    Ok(Change { rss_before, rss_after, minor_faults: minor_after - minor, major_faults: major_after - major })
}

fn gap(node: &mut Node, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    largest_gap(node)?;
    work()?;
    largest_gap(node)
}

/// As the kernel counts it page by page; what `/proc/PID/status` says lags behind by some pages for each processor.
pub(super) fn rss(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    cost::kib(&text, "Rss").map(|kib| kib * 1024).with_context(|| format!("{path} has no Rss"))
}

/// Minor and major ones.
fn faults(pid: u32) -> Result<(u64, u64)> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_faults(&text).with_context(|| format!("cannot understand {path}"))
}

/// Fields 10 and 12 of `proc_pid_stat(5)`; the second field may hold spaces and parentheses.
fn parse_faults(text: &str) -> Option<(u64, u64)> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(7);
    Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
}

/// As much memory as a node may take here without anything being swapped out or killed.
pub(super) fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    cost::kib(&text, "MemAvailable").map(|kib| kib * 1024).context("/proc/meminfo has no MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found_behind_any_name() {
        let text = "42 (beam (x) y) S 1 42 42 0 -1 4194304 1234 5 67 8 90 12 0 0 20 0 30 0 100 0";
        assert_eq!(parse_faults(text), Some((1234, 67)));
    }
}
