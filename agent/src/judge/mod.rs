//! Which questions does the evidence answer, and how? Seven questions, each with an answer, what speaks for it, and what
//! to do next.
//!
//! Each question has a module with one function. What counts as much, as steady and as enough stands in [`thresholds`].

mod advice;
mod condition;
mod fragmentation;
mod leak;
mod libc_retention;
mod limits;
mod native_leak;
mod nif_leak;
mod reclaimable;
mod thresholds;
mod trend;
mod verdict;
mod vm_growth;

use std::collections::BTreeMap;

pub use condition::{Bound, Condition};
pub use thresholds::Threshold;
pub use verdict::{Amount, Answer, Confidence, Fact, Verdict, VerdictId};

use crate::{
    attribute::RankedSite,
    explain::{model::Explanation, owner::Owner},
    recording::{FaultSite, Interval, Look, Mode, Node, Snapshot},
};
use trend::Point;

/// Everything that there is to judge by: a recording, or one look.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// The node.
    pub node: &'a Node,
    /// When and how the recording was made; `None`: there is one look and no recording.
    pub interval: Option<&'a Interval>,
    /// Seconds of it in which allocations were followed.
    pub followed_seconds: f64,
    /// The kernel's figures, in the order of time.
    pub snapshots: &'a [Snapshot],
    /// Where the resident memory belonged, in the order of time: the looks that know owners.
    pub looks: Vec<&'a Look>,
    /// Where the system was asked for memory, and whose that is.
    pub sites: &'a [RankedSite<'a>],
    /// Where native code asked the VM.
    pub vm_api: &'a [RankedSite<'a>],
    /// Who touched memory that became resident.
    pub faults: &'a [FaultSite],
    /// What was lost, by the counter's name.
    pub losses: &'a BTreeMap<String, u64>,
    /// What was counted and is no loss, by the counter's name.
    pub counts: &'a BTreeMap<String, u64>,
}

impl<'a> Case<'a> {
    /// What there is to judge by after one look.
    pub fn of_look(look: &'a Look) -> Self {
        static NOTHING: BTreeMap<String, u64> = BTreeMap::new();
        Self {
            node: &look.explanation.node,
            interval: None,
            followed_seconds: 0.0,
            snapshots: &[],
            looks: Self::with_owners(std::slice::from_ref(look)),
            sites: &[],
            vm_api: &[],
            faults: &[],
            losses: &NOTHING,
            counts: &NOTHING,
        }
    }
}

/// The numbers that figures are compared with.
pub fn thresholds() -> &'static [Threshold] {
    thresholds::ALL
}

/// Answers each question, in the order of [`VerdictId::ALL`].
pub fn judge(case: &Case<'_>) -> Vec<Verdict> {
    let answer = |id| match id {
        VerdictId::NativeLeak => native_leak::judge(case),
        VerdictId::NifLeak => nif_leak::judge(case),
        VerdictId::Fragmentation => fragmentation::judge(case),
        VerdictId::LibcRetention => libc_retention::judge(case),
        VerdictId::VmGrowth => vm_growth::judge(case),
        VerdictId::Reclaimable => reclaimable::judge(case),
        VerdictId::Limits => limits::judge(case),
    };
    VerdictId::ALL.into_iter().map(answer).collect()
}

impl<'a> Case<'a> {
    /// Those of `looks` that know owners.
    pub fn with_owners(looks: &'a [Look]) -> Vec<&'a Look> {
        looks.iter().filter(|look| look.explanation.knows_owners()).collect()
    }

    fn last_look(&self) -> Option<&'a Explanation> {
        self.looks.last().map(|look| &look.explanation)
    }

    /// Resident bytes of the owners that `pick` takes, at each look.
    fn owners(&self, pick: impl Fn(&Owner) -> bool) -> Vec<Point> {
        let sum = |look: &Explanation| {
            let owned = look.owners.iter().filter(|owned| pick(&owned.owner));
            owned.map(|owned| owned.bytes as f64).sum()
        };
        self.looks.iter().map(|look| (look.at, sum(&look.explanation))).collect()
    }

    /// The same at the last look.
    fn owned(&self, pick: impl Fn(&Owner) -> bool) -> u64 {
        whole(self.owners(pick).last().map_or(0.0, |point| point.1))
    }

    /// A part of the resident memory.
    fn share_of_rss(&self, bytes: u64) -> f64 {
        let looked = self.last_look().map(|look| look.resident);
        let rss = looked.or_else(|| self.snapshots.last().map(|snapshot| snapshot.rss)).unwrap_or(0);
        bytes as f64 / rss.max(1) as f64
    }

    /// Whether allocations were not followed for a while.
    fn is_blind(&self) -> bool {
        self.interval.is_some_and(|interval| {
            interval.mode == Mode::Growth || interval.seconds - self.followed_seconds > 0.01 * interval.seconds
        })
    }

    /// The command that makes a recording `longer` times as long as this one.
    fn record(&self, mode: &str, longer: f64) -> String {
        let seconds = self.interval.map_or(60.0, |interval| (interval.seconds * longer).max(60.0));
        format!("beamscope record {} --mode {mode} -d {seconds:.0}s -o node.bscope", self.node.pid)
    }

    /// The command that looks at the node again.
    fn explain(&self) -> String {
        format!("beamscope explain {}", self.node.pid)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and a sum is not negative"
)]
fn whole(value: f64) -> u64 {
    // An empty minimum.
    if value.is_finite() { value.round() as u64 } else { 0 }
}

#[cfg(test)]
mod tests;
