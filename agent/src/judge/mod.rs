//! Which questions does the evidence answer, and how? Seven questions, each with an answer, what speaks for it, and what
//! to do next.

mod condition;
mod thresholds;
mod verdict;

use std::collections::BTreeMap;

pub use condition::{Bound, Condition};
pub use thresholds::Threshold;
pub use verdict::{Amount, Answer, Confidence, Fact, Verdict, VerdictId};

use crate::{
    attribute::RankedSite,
    recording::{FaultSite, Interval, Look, Snapshot},
};

/// Everything that there is to judge by: a recording, or one look.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// When and how the recording was made; `None`: there is one look and no recording.
    pub interval: Option<&'a Interval>,
    /// Seconds of it in which allocations were followed.
    pub followed_seconds: f64,
    /// The kernel's figures, in the order of time.
    pub snapshots: &'a [Snapshot],
    /// Where the resident memory belonged, in the order of time.
    pub looks: &'a [Look],
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
            interval: None,
            followed_seconds: 0.0,
            snapshots: &[],
            looks: std::slice::from_ref(look),
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
    let _ = case;
    VerdictId::ALL.into_iter().map(Verdict::open).collect()
}
