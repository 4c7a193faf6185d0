//! The contract between beamscope's agent and its BPF program: what lies in each map and ring buffer record.
//!
//! Everything here is plain integers without padding, so that both sides can copy it byte by byte. Discriminants
//! travel as `u32` and come back through `TryFrom`, since the other side of a contract can be another version.
//! Addresses are those of the traced process; sizes and lengths are bytes; times are `CLOCK_MONOTONIC` nanoseconds.
#![cfg_attr(not(test), no_std)]

mod event;
mod pace;
mod site;
mod stack;
mod unwind;

pub use event::{
    COMMAND_BYTES, MappingEvent, MappingKind, STACK_BYTES, SampleHeader, SampleOrigin, StackImage, UnknownMappingKind,
    UnknownSampleOrigin,
};
pub use pace::Pace;
pub use site::{Block, Call, Function, Return, Site, SiteKey, UnknownFunction};
pub use stack::{
    ERLANG_WORDS, ErlangEnd, ErlangOffsets, MODULES, Module, NATIVE_FRAMES, PLACES, ROWS_PER_CHUNK, STACK_WORDS,
    Scheduler, SchedulerKind, StoredStack, UnknownErlangEnd, UnknownWalkEnd, WALK_ENDS, WalkEnd, walk_ends_index,
};
pub use unwind::{Row, Rule, RuleKind, UnknownRuleKind};

use bytemuck::{AnyBitPattern, NoUninit};

/// Changes whenever a type of this crate or its meaning changes. The agent refuses an object of another version.
pub const ABI_VERSION: u32 = 4;

/// Name of the ELF section that holds an object's [`Contract`].
pub const CONTRACT_SECTION: &str = "beamscope.contract";

/// What an object says about itself, readable before anything is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Contract {
    /// The object's [`ABI_VERSION`].
    pub abi_version: u32,
    /// The architecture whose `pt_regs` the object reads: an [`Architecture`] as `u32`.
    pub architecture: u32,
}

/// A processor architecture, as its `e_machine` number in ELF.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `EM_X86_64`.
    X86_64 = 62,
    /// `EM_AARCH64`.
    Aarch64 = 183,
}

/// Written by the agent, read by every program: the only element of the `CONTROL` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Control {
    /// 1 between the moment when all probes are attached and the moment before the first is detached.
    pub recording: u32,
    /// Thread group id, in the initial pid namespace, whose system calls and page faults are followed. 0: none.
    pub target: u32,
    /// Stacks that are captured for each site before sampling decides alone.
    pub introductions: u32,
    /// Share of each processor's time, in 1/1024, that walking the stack of every allocation may take. Beyond it, byte
    /// sampling chooses the stacks that are walked.
    pub walk_share: u32,
    /// Share of each processor's time, in 1/65536, that looking at page faults may take. Beyond it, some are chosen that
    /// stand for the others.
    pub fault_share: u32,
    /// Keeps the next word at a multiple of 8.
    pub reserved: u32,
    /// The table of modules in use: its generation in the upper half, whose lowest bit says which half of the map
    /// `MODULES` it is in, and in the lower half its length.
    pub modules: u64,
    /// Begin of the code that the VM made at run time.
    pub code_start: u64,
    /// Its end.
    pub code_end: u64,
    /// Where things are in the VM's structures.
    pub erlang: ErlangOffsets,
}

/// Elements of the `EXPONENTIAL` map: draws from an exponential distribution, in bytes (a power of two).
pub const EXPONENTIAL_DRAWS: u32 = 4096;

/// What the program could not do. Each is an element of the per-CPU array `COUNTERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Allocations that returned no memory.
    FailedAllocations = 0,
    /// `free` of an address that was allocated before the recording, or not followed.
    UnknownFrees,
    /// Blocks that were not followed because the `LIVE` map was full.
    LiveTableFull,
    /// Bytes of the blocks counted by [`Counter::LiveTableFull`].
    LiveTableFullBytes,
    /// Allocations whose site did not fit into the `SITES` map and that were counted under a coarser one.
    SiteTableFull,
    /// Calls that were not followed because the `CALLS` map was full.
    CallTableFull,
    /// Returns of an allocation function whose entry was not seen.
    UnmatchedReturns,
    /// Entries of an allocation function whose return was not seen.
    AbandonedCalls,
    /// Blocks that were allocated where another was still live: its `free` was not seen.
    MissedFrees,
    /// Reads of the target's memory that failed where the result was needed.
    FailedReads,
    /// Stack samples that did not fit into the ring buffer.
    LostSamples,
    /// Mapping events that did not fit into the ring buffer.
    LostMappings,
    /// Mapping calls that were not followed because the `MAPPING_CALLS` map was full.
    MappingCallTableFull,
    /// Mapping calls made by the allocation functions themselves; their blocks are followed instead.
    AllocatorMappings,
    /// Stacks that found no room in the map `STACKS`.
    StackTableFull,
    /// Stacks that were not stored because others with the same hash stand in their places.
    StackCollisions,
    /// Stacks that were not walked because all room to do so on the processor was taken.
    WalkersBusy,
    /// Allocations whose stack was walked.
    Walks,
    /// Native frames of these walks.
    WalkedFrames,
    /// Time that these walks took, in nanoseconds.
    WalkNanoseconds,
    /// Allocations whose stack was left to samples: walking each would have taken too long, or it led into code that was not
    /// known yet, or could not be kept.
    UnwalkedAllocations,
    /// Blocks of the VM's interfaces for native code that were not followed because where they begin was not found.
    UnlocatedVmBlocks,
    /// Page faults of the process.
    PageFaults,
    /// Page faults whose stack was looked for.
    SampledFaults,
    /// Time that this took, in nanoseconds.
    FaultNanoseconds,
}

impl Counter {
    /// Its name in recordings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FailedAllocations => "failed_allocations",
            Self::UnknownFrees => "unknown_frees",
            Self::LiveTableFull => "live_table_full",
            Self::LiveTableFullBytes => "live_table_full_bytes",
            Self::SiteTableFull => "site_table_full",
            Self::CallTableFull => "call_table_full",
            Self::UnmatchedReturns => "unmatched_returns",
            Self::AbandonedCalls => "abandoned_calls",
            Self::MissedFrees => "missed_frees",
            Self::FailedReads => "failed_reads",
            Self::LostSamples => "lost_samples",
            Self::LostMappings => "lost_mappings",
            Self::MappingCallTableFull => "mapping_call_table_full",
            Self::AllocatorMappings => "allocator_mappings",
            Self::StackTableFull => "stack_table_full",
            Self::StackCollisions => "stack_collisions",
            Self::WalkersBusy => "walkers_busy",
            Self::Walks => "walks",
            Self::WalkedFrames => "walked_frames",
            Self::WalkNanoseconds => "walk_nanoseconds",
            Self::UnwalkedAllocations => "unwalked_allocations",
            Self::UnlocatedVmBlocks => "unlocated_vm_blocks",
            Self::PageFaults => "page_faults",
            Self::SampledFaults => "sampled_faults",
            Self::FaultNanoseconds => "fault_nanoseconds",
        }
    }

    /// Whether it counts something that is missing from the figures.
    pub const fn is_loss(self) -> bool {
        !matches!(
            self,
            Self::FailedAllocations
                | Self::UnknownFrees
                | Self::AllocatorMappings
                | Self::Walks
                | Self::WalkedFrames
                | Self::WalkNanoseconds
                | Self::UnwalkedAllocations
                | Self::PageFaults
                | Self::SampledFaults
                | Self::FaultNanoseconds
        )
    }

    /// All counters, in the order of their discriminants.
    pub const ALL: [Self; 25] = [
        Self::FailedAllocations,
        Self::UnknownFrees,
        Self::LiveTableFull,
        Self::LiveTableFullBytes,
        Self::SiteTableFull,
        Self::CallTableFull,
        Self::UnmatchedReturns,
        Self::AbandonedCalls,
        Self::MissedFrees,
        Self::FailedReads,
        Self::LostSamples,
        Self::LostMappings,
        Self::MappingCallTableFull,
        Self::AllocatorMappings,
        Self::StackTableFull,
        Self::StackCollisions,
        Self::WalkersBusy,
        Self::Walks,
        Self::WalkedFrames,
        Self::WalkNanoseconds,
        Self::UnwalkedAllocations,
        Self::UnlocatedVmBlocks,
        Self::PageFaults,
        Self::SampledFaults,
        Self::FaultNanoseconds,
    ];
}

const _: () = assert!(size_of::<Contract>() == 8);
const _: () = assert!(size_of::<Control>() == 80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_at_their_discriminants() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }

    #[test]
    fn discriminants_come_back() {
        for function in Function::ALL {
            assert_eq!(Function::try_from(function as u32), Ok(function));
        }
        for unknown in [0, 30, u32::MAX] {
            assert_eq!(Function::try_from(unknown), Err(UnknownFunction(unknown)));
            assert_eq!(MappingKind::try_from(unknown), Err(UnknownMappingKind(unknown)));
            assert_eq!(SampleOrigin::try_from(unknown), Err(UnknownSampleOrigin(unknown)));
        }
    }
}
