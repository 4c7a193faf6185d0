//! Stacks as the kernel walks and keeps them, and the tables that it walks by.

use bytemuck::{AnyBitPattern, NoUninit};

use crate::COMMAND_BYTES;

/// Words of a stored stack: return addresses of native code, and behind them those of Erlang code.
pub const STACK_WORDS: usize = 192;

/// Native frames that are walked at most. Deeper stacks are recursions, whose end is at the leaf.
pub const NATIVE_FRAMES: usize = 128;

/// Words of an Erlang process's stack that are looked at, from its top.
pub const ERLANG_WORDS: usize = 1024;

/// Rows of unwind tables in an element of the map `ROWS`: one page, so that few system calls fill the map.
pub const ROWS_PER_CHUNK: usize = 512;

/// Modules that the map `MODULES` has room for, twice: a new table is written beside the one in use.
pub const MODULES: u32 = 4096;

/// Entries of the map `PLACES`, a power of two.
pub const PLACES: u32 = 1 << 14;

/// A range of code: element of the map `MODULES`, sorted by `start`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Module {
    /// First address.
    pub start: u64,
    /// Behind the last address.
    pub end: u64,
    /// Address that the rows count from.
    pub base: u64,
    /// Its first row in the map `ROWS`.
    pub first_row: u32,
    /// Its rows. 0: `rule` is good for all of it.
    pub rows: u32,
    /// Index of a rule, where there are no rows.
    pub rule: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// Where a walk of native frames came to its end.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalkEnd {
    /// At the thread's first function.
    Root = 1,
    /// At code that the VM made at run time.
    Jit,
    /// At an address that lies in no known code.
    NoModule,
    /// At code without unwind information.
    Gap,
    /// At a rule that cannot be followed.
    Unsupported,
    /// After [`NATIVE_FRAMES`].
    TooDeep,
    /// At memory that could not be read.
    Unreadable,
    /// At a frame that does not lie above the one before it.
    Implausible,
    /// At the return of a probed function that is not known.
    Trampoline,
}

impl WalkEnd {
    /// All ends, in the order of their discriminants.
    pub const ALL: [Self; 9] = [
        Self::Root,
        Self::Jit,
        Self::NoModule,
        Self::Gap,
        Self::Unsupported,
        Self::TooDeep,
        Self::Unreadable,
        Self::Implausible,
        Self::Trampoline,
    ];
}

/// A `u32` that is no [`WalkEnd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownWalkEnd(pub u32);

impl TryFrom<u32> for WalkEnd {
    type Error = UnknownWalkEnd;

    fn try_from(value: u32) -> Result<Self, UnknownWalkEnd> {
        value.checked_sub(1).and_then(|index| Self::ALL.get(index as usize).copied()).ok_or(UnknownWalkEnd(value))
    }
}

/// What became of the stack of the Erlang process on the thread.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErlangEnd {
    /// No Erlang process runs on the thread.
    NoProcess = 0,
    /// All of it was looked at.
    Complete,
    /// It has more than [`ERLANG_WORDS`], or more return addresses than there is room for.
    TooDeep,
    /// The process, or its stack, could not be read.
    Unreadable,
    /// What should be the process does not look like one.
    Implausible,
    /// Where the stack of a process is, or what a return address looks like, is not known of this VM.
    Unknown,
}

impl ErlangEnd {
    /// All ends, in the order of their discriminants.
    pub const ALL: [Self; 6] =
        [Self::NoProcess, Self::Complete, Self::TooDeep, Self::Unreadable, Self::Implausible, Self::Unknown];
}

/// A `u32` that is no [`ErlangEnd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownErlangEnd(pub u32);

impl TryFrom<u32> for ErlangEnd {
    type Error = UnknownErlangEnd;

    fn try_from(value: u32) -> Result<Self, UnknownErlangEnd> {
        Self::ALL.get(value as usize).copied().ok_or(UnknownErlangEnd(value))
    }
}

/// Elements of the map `WALKS_BY_END`, per processor.
pub const WALK_ENDS: u32 = 128;

/// The element of the map `WALKS_BY_END` that counts walks with these ends.
pub const fn walk_ends_index(end: u32, erlang_end: u32) -> u32 {
    (end & 15) * 8 + (erlang_end & 7)
}

/// A stack: value of the map `STACKS`, whose key is a hash of it. The program compares the values of equal hashes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct StoredStack {
    /// Native return addresses, from the leaf to the root.
    pub native: u32,
    /// Words behind them that can be Erlang return addresses, from the innermost on.
    pub erlang: u32,
    /// A [`WalkEnd`].
    pub end: u32,
    /// An [`ErlangEnd`].
    pub erlang_end: u32,
    /// 1 where the first address is a return address too.
    pub leaf_is_return: u32,
    /// Thread that was first seen with it; not part of what is compared.
    pub thread: u32,
    /// What `current` of the process leads to, an `ErtsCodeMFA`: module, function and arity; 0 where it is 0. What is there
    /// can be gone when the agent could read it.
    pub current: [u64; 3],
    /// Address of the driver whose port the scheduler is busy with, or 0.
    pub driver: u64,
    /// The thread's name, padded with NUL; empty for schedulers.
    pub command: [u8; COMMAND_BYTES],
    /// A [`SchedulerKind`](crate::SchedulerKind), or 0.
    pub scheduler: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
    /// Addresses.
    pub words: [u64; STACK_WORDS],
}

/// A thread that runs Erlang processes: value of the map `SCHEDULERS`, whose key is the thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Scheduler {
    /// Its `ErtsSchedulerData`.
    pub data: u64,
    /// A [`SchedulerKind`].
    pub kind: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// Kinds of schedulers.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchedulerKind {
    /// Runs Erlang code.
    Normal = 1,
    /// Runs long native functions.
    DirtyCpu,
    /// Runs native functions that wait.
    DirtyIo,
}

/// Where the program finds things in the VM's structures, in bytes from their begin. All 0: nothing is known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct ErlangOffsets {
    /// `current_process` in `ErtsSchedulerData`.
    pub current_process: u32,
    /// `current_port` in it; 0: unknown.
    pub current_port: u32,
    /// `drv_ptr` in `Port`; 0: unknown.
    pub driver: u32,
    /// `htop` in `Process`.
    pub htop: u32,
    /// `stop` in it.
    pub stop: u32,
    /// `heap` in it.
    pub heap: u32,
    /// `hend` in it.
    pub hend: u32,
    /// `current` in it.
    pub current: u32,
}

const _: () = assert!(size_of::<Module>() == 40);
const _: () = assert!(size_of::<StoredStack>() == 80 + STACK_WORDS * 8);
const _: () = assert!(size_of::<Scheduler>() == 16);
const _: () = assert!(size_of::<ErlangOffsets>() == 32);
