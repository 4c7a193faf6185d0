//! What one recording holds: everything that a report is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    erts::thread::ThreadKind,
    explain::{model::Explanation, owner::Owner},
    ledger::{Series, Survivors},
    mapping::Mappings,
    stack::Stack,
    stored::Stored,
};

/// The stored input of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// Version of the beamscope that made it.
    pub beamscope: String,
    /// The node.
    pub node: Node,
    /// When and how.
    pub interval: Interval,
    /// What the kernel said of the process's memory, in the order of time; the first at the start, the last at the end.
    pub snapshots: Vec<Snapshot>,
    /// Where the resident memory belonged, in the order of time; the first at the start, the last at the end.
    pub looks: Vec<Look>,
    /// The mappings at the end.
    pub mappings: Mappings,
    /// Every stack at which memory was asked for.
    pub sites: Vec<Site>,
    /// Carriers of the VM that were found in blocks and mappings which were made during the recording.
    pub carriers: Vec<CarrierSeen>,
    /// Every stack that was first to touch memory which became resident, as far as that was followed.
    pub faults: Vec<FaultSite>,
    /// When allocations were not followed, in the order of time. In [`Mode::Growth`] it is one span, the whole.
    pub blind: Vec<BlindSpan>,
    /// What the recording has cost the node.
    pub cost: Cost,
    /// What was lost, by the counter's name. Only counters above zero.
    pub losses: BTreeMap<String, u64>,
    /// What was counted and is no loss, by the counter's name.
    pub counts: BTreeMap<String, u64>,
    /// Where the probes were.
    pub probes: Vec<Probe>,
    /// What was decided at attach and what it costs, one sentence each.
    pub notes: Vec<String>,
    /// Where the tool had to stop or to guess, one sentence each.
    pub defects: Vec<String>,
}

impl Stored for Recording {
    const KIND: &'static str = "recording";
    const FORMAT: u32 = 4;
    fn writer(&self) -> &str {
        &self.beamscope
    }
}

/// A look at the node's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Seconds since the start.
    pub at: f64,
    /// What was found.
    pub explanation: Explanation,
}

/// A probe on a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Probe {
    /// Function and library: `malloc in libc.so.6`.
    pub place: String,
    /// Whether the kernel carries out the instruction under it by itself; else each call costs about ten times as much.
    pub emulated: bool,
}

/// What is known of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Process id, as beamscope sees it.
    pub pid: u32,
    /// Node name, where it has one.
    pub name: Option<String>,
    /// `25`
    pub otp_release: Option<String>,
    /// `13.1.5`
    pub erts_version: Option<String>,
    /// Whether Erlang code is compiled to machine code.
    pub emulator: Option<Emulator>,
    /// `x86_64`, `aarch64`
    pub arch: String,
    /// `glibc`, `musl`
    pub libc: Option<String>,
    /// Release of the kernel.
    pub kernel: String,
    /// Container id, where it runs in one.
    pub container: Option<String>,
}

/// How a VM runs Erlang code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Emulator {
    /// It compiles it to machine code when it loads it.
    Jit,
    /// It interprets it.
    Emu,
}

/// When and how the recording was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Seconds since 1970.
    pub start_unix: u64,
    /// Length in seconds.
    pub seconds: f64,
    /// How it was made.
    pub mode: Mode,
    /// Mean distance of two byte samples.
    pub sample_interval_bytes: u64,
    /// Why it ended.
    pub ended: Ended,
}

/// Ways to look at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Pages that become resident are followed, and requests for carriers; no allocation is.
    Growth,
    /// Every call of the allocation functions is followed.
    Exact,
    /// As growth, and as exact as far as the budget goes.
    Auto,
}

/// A span in which allocations were not followed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlindSpan {
    /// Seconds since the start.
    pub from: f64,
    /// Seconds since the start.
    pub until: f64,
    /// Why, as the end of a sentence.
    pub reason: String,
}

/// What a recording has cost the node, as measured in the kernel's programs and calibrated for what leads there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Share of one processor's time that it was allowed to take; `None`: it had no limit.
    pub budget: Option<f64>,
    /// Seconds of processor time that the node's threads spent in probes. `None`: it could not be measured.
    pub node_seconds: Option<f64>,
    /// What was done to stay within the budget, in the order of time.
    pub steps: Vec<BudgetStep>,
}

/// Something that was done to stay within the budget, or undone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BudgetStep {
    /// Seconds since the start.
    pub at: f64,
    /// What, as a sentence without its full stop.
    pub what: String,
}

/// A stack that was first to touch memory, and what became resident by it.
///
/// It is a lead and no proof: beside balanced churn the first to touch a page is mostly not who leaks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultSite {
    /// The stack; its first frame is the function that touched the memory.
    pub stack: Stack,
    /// Whose the memory was at the end. `None`: it was given back meanwhile, or its owner is not known.
    pub owner: Option<Owner>,
    /// What the thread is there for that was first seen at it.
    pub thread: Option<ThreadKind>,
    /// Threads that were seen at it, by name.
    pub threads: Vec<String>,
    /// Page faults, estimated from those whose stack was taken.
    pub faults: u64,
    /// Bytes of their pages.
    pub bytes: u64,
    /// Page faults whose stack was taken.
    pub sampled: u64,
}

/// Names of the calls by which mappings are made.
const MAPPING_CALLS: [&str; 3] = ["mmap", "mremap", "brk"];

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The time was over.
    Duration,
    /// The user stopped it.
    Interrupted,
    /// The node exited.
    NodeExited,
}

/// The kernel's figures for the process at one moment, in bytes (`smaps_rollup`, proc(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Seconds since the start.
    pub at: f64,
    /// Resident.
    pub rss: u64,
    /// Resident, pages in several mappings counted by their share.
    pub pss: u64,
    /// Resident and anonymous.
    pub anon: u64,
    /// Resident and from files.
    pub file: u64,
    /// Resident and shared memory.
    pub shmem: u64,
    /// Swapped out.
    pub swap: u64,
    /// Resident pages that the process has given up and the kernel has not yet taken (`MADV_FREE`).
    pub lazy_free: u64,
}

/// One stack at which memory was asked for, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// The stack; its first frame is the allocation function.
    pub stack: Stack,
    /// Who was asked.
    #[serde(default)]
    pub asked: Asked,
    /// What the thread is there for that was first seen at it.
    pub thread: Option<ThreadKind>,
    /// The stack that made this thread, where it was made during the recording.
    pub creator: Option<Stack>,
    /// The driver for whose port the thread worked.
    pub driver: Option<String>,
    /// Threads that were seen at it, by name.
    pub threads: Vec<String>,
    /// Bytes asked for.
    pub allocated_bytes: u64,
    /// Blocks or mappings asked for.
    pub allocated_blocks: u64,
    /// Bytes of the freed part.
    pub freed_bytes: u64,
    /// Blocks or mappings of the freed part.
    pub freed_blocks: u64,
    /// Outstanding bytes over the time in which allocations were followed: blind spans are left out of it, and what was
    /// outstanding before one stays so. Mappings and requests for carriers are followed in blind spans as well, so that
    /// theirs is over the time of the recording ([`Site::is_always_followed`]).
    pub outstanding: Series,
    /// When the outstanding blocks were allocated. Where there are blind spans: each within the time between two of them,
    /// but for those that are always followed.
    pub survivors: Survivors,
    /// Whether the figures are exact for this stack, or were divided among stacks by samples.
    pub exact: bool,
}

/// Who was asked for the memory of a site.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asked {
    /// The C library or the kernel. The memory of these sites is all that the process has asked for.
    #[default]
    System,
    /// The VM, by native code. What it hands out lies in carriers, whose memory is that of other sites.
    Vm,
    /// The VM's allocation of segments, by one of its allocators: carriers, whose memory is that of other sites or was
    /// taken from those that are kept for use again. When they are given back is not followed.
    Carriers {
        /// Name of the allocator: `ets_alloc`.
        allocator: String,
    },
}

impl Recording {
    /// Share of one processor's time that it has cost the node; `None`: it could not be measured.
    pub fn cost_share(&self) -> Option<f64> {
        self.cost.node_seconds.filter(|_| self.interval.seconds > 0.0).map(|spent| spent / self.interval.seconds)
    }

    /// Seconds over which the outstanding bytes of a site were followed: the length of the axis of [`Site::outstanding`].
    pub fn seconds_of(&self, site: &Site) -> f64 {
        if site.is_always_followed() { self.interval.seconds } else { self.followed_seconds() }
    }

    /// Seconds in which allocations were followed.
    pub fn followed_seconds(&self) -> f64 {
        let blind: f64 = self.blind.iter().map(|span| (span.until - span.from).max(0.0)).sum();
        (self.interval.seconds - blind).max(0.0)
    }
}

impl Site {
    /// Whether it is followed in blind spans too: a mapping call, or a request for carriers.
    pub fn is_always_followed(&self) -> bool {
        let leaf = self.stack.frames.first().and_then(|frame| frame.function.as_deref());
        matches!(self.asked, Asked::Carriers { .. })
            || (self.asked == Asked::System && leaf.is_some_and(|name| MAPPING_CALLS.contains(&name)))
    }

    /// Bytes allocated during the recording and not freed by its end.
    pub fn outstanding_bytes(&self) -> u64 {
        self.allocated_bytes.saturating_sub(self.freed_bytes)
    }

    /// Blocks allocated during the recording and not freed by its end.
    pub fn outstanding_blocks(&self) -> u64 {
        self.allocated_blocks.saturating_sub(self.freed_blocks)
    }
}

/// A carrier of the VM that lies where memory was asked for during the recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierSeen {
    /// Index of the site in [`Recording::sites`].
    pub site: usize,
    /// `ets_alloc`, `binary_alloc`, …
    pub allocator: String,
    /// Size of the carrier in bytes.
    pub bytes: u64,
}
