//! Which limits hold for a process, and how much of them does it use?

use serde::{Deserialize, Serialize};

/// Limits of a process. Those without a figure are not set, or could not be read; then a defect says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitFacts {
    /// Open files.
    pub open_files: Option<u64>,
    /// How many there may be (`Max open files`, the soft limit). The VM makes its port table as large as this where `+Q` does
    /// not say otherwise.
    pub most_open_files: Option<u64>,
    /// Bytes of address space in use (`VmSize`), reservations included.
    pub address_space: Option<u64>,
    /// How many there may be (`Max address space`, the soft limit).
    pub most_address_space: Option<u64>,
    /// The control group that counts its memory.
    pub group: Option<GroupFacts>,
}

/// A control group's memory, in bytes: what all of its processes have, page cache included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupFacts {
    /// 1 or 2: the version of the kernel's interface.
    pub version: u8,
    /// Its path below the root of the hierarchy, as `/proc/PID/cgroup` has it.
    pub path: String,
    /// In use (`memory.current`; `memory.usage_in_bytes`).
    pub current: Option<u64>,
    /// Its own limit (`memory.max`; `memory.limit_in_bytes`).
    pub max: Option<u64>,
    /// From here on the kernel slows its processes down and takes pages back (`memory.high`; version 2 only).
    pub high: Option<u64>,
    /// Swapped out (`memory.swap.current`; `total_swap` in `memory.stat`).
    pub swap_current: Option<u64>,
    /// How much may be swapped out (`memory.swap.max`; version 2 only).
    pub swap_max: Option<u64>,
    /// The smallest limit of the group and of those above it that can be seen.
    pub tightest: Option<GroupLimit>,
    /// What it is used for.
    pub stat: GroupStat,
    /// How often its limit was hit, so that memory had to be taken back (`max` in `memory.events`; `memory.failcnt`).
    pub limit_hits: Option<u64>,
    /// How often nothing could be taken back then (`oom` in `memory.events`; version 2 only).
    pub oom: Option<u64>,
    /// Processes that were killed for it (`oom_kill` in `memory.events`, `memory.oom_control`).
    pub oom_kill: Option<u64>,
}

/// A group and the limit on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLimit {
    /// The group.
    pub path: String,
    /// Its limit, bytes.
    pub max: u64,
    /// In use in the group, bytes.
    pub current: Option<u64>,
}

/// `memory.stat`, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStat {
    /// Anonymous memory (`anon`; `total_rss`).
    pub anon: Option<u64>,
    /// Page cache, shared memory included (`file`; `total_cache`).
    pub file: Option<u64>,
    /// Shared memory and tmpfs (`shmem`; `total_shmem`).
    pub shmem: Option<u64>,
    /// Buffers of sockets (`sock`; version 2 only).
    pub sock: Option<u64>,
    /// The kernel's own memory, its slab included (`kernel`, since Linux 5.18; `memory.kmem.usage_in_bytes`).
    pub kernel: Option<u64>,
    /// Slab (`slab`; version 2 only).
    pub slab: Option<u64>,
}
