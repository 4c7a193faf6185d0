//! What one recording holds: everything that a report is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    erts::thread::ThreadKind,
    explain::model::Explanation,
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
    const FORMAT: u32 = 3;
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
    /// Every call of the allocation functions is followed.
    Exact,
}

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
    /// Outstanding bytes over the recording.
    pub outstanding: Series,
    /// When the outstanding blocks were allocated.
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

impl Site {
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
