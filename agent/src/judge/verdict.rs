//! What is an answer, and what does it rest on?

use std::fmt;

use serde::Serialize;

/// A question that a node can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictId {
    /// Does native code leak memory that the VM cannot see?
    NativeLeak,
    /// Does a NIF or driver leak through the VM's own interfaces?
    NifLeak,
    /// Do carriers hold memory that no block uses?
    Fragmentation,
    /// Does the C library hold freed memory?
    LibcRetention,
    /// Does the VM itself use more?
    VmGrowth,
    /// Is resident memory only lazily freed, or kept for use again?
    Reclaimable,
    /// Is it a static table, a limit or the page cache?
    Limits,
}

impl VerdictId {
    /// All questions, in the order in which they are answered.
    pub const ALL: [Self; 7] = [
        Self::NativeLeak,
        Self::NifLeak,
        Self::Fragmentation,
        Self::LibcRetention,
        Self::VmGrowth,
        Self::Reclaimable,
        Self::Limits,
    ];

    /// Its name in reports and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NativeLeak => "native_leak",
            Self::NifLeak => "nif_leak",
            Self::Fragmentation => "fragmentation",
            Self::LibcRetention => "libc_retention",
            Self::VmGrowth => "vm_growth",
            Self::Reclaimable => "reclaimable",
            Self::Limits => "limits",
        }
    }
}

impl fmt::Display for VerdictId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Yes.
    Confirmed,
    /// No.
    RuledOut,
    /// The evidence does not say; [`Verdict::next`] says what would.
    Inconclusive,
}

/// How much the evidence for an answer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// Few samples, or much noise.
    Low,
    /// Enough for the answer, and not for the second digit of the figures.
    Medium,
    /// The figures stand far above their noise.
    High,
}

/// A measured figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Bytes per second.
    Rate(f64),
    /// A number of things.
    Count(u64),
    /// Seconds.
    Seconds(f64),
    /// A part of a whole, from 0 to 1.
    Share(f64),
}

/// One thing that speaks for an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// What was measured, as the beginning of a sentence that the figure ends.
    pub fact: String,
    /// The figure.
    pub amount: Amount,
    /// Where it comes from: `sites`, `looks`, `smaps_rollup`, `tags`, …
    pub source: &'static str,
}

/// The answer to one question.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The question.
    pub id: VerdictId,
    /// The answer.
    pub answer: Answer,
    /// How much the evidence carries. `None`: the question is open.
    pub confidence: Option<Confidence>,
    /// Bytes that it is about.
    pub bytes: u64,
    /// How fast they grow. `None`: there is one look only, or they are no matter of growth.
    pub growth_per_second: Option<f64>,
    /// Who or what it is about: a function, an allocator, a class of memory.
    pub subject: Option<String>,
    /// The answer as one sentence.
    pub summary: String,
    /// What it rests on, the weightiest first.
    pub evidence: Vec<Fact>,
    /// What to do next: a command, a flag or a call to paste, with a word of what it is for.
    pub next: Vec<String>,
}

impl Fact {
    pub(super) fn new(fact: impl Into<String>, amount: Amount, source: &'static str) -> Self {
        Self { fact: fact.into(), amount, source }
    }
}

impl Verdict {
    /// A question without an answer.
    pub(crate) fn open(id: VerdictId) -> Self {
        Self {
            id,
            answer: Answer::Inconclusive,
            confidence: None,
            bytes: 0,
            growth_per_second: None,
            subject: None,
            summary: String::new(),
            evidence: Vec::new(),
            next: Vec::new(),
        }
    }
}
