//! What the probe sends one by one: stack samples and changes of the address space, each in a ring buffer of its own.

use bytemuck::{AnyBitPattern, NoUninit};

use crate::{Return, SiteKey};

/// Bytes of stack in a sample: whole pages from the one that holds the stack pointer.
pub const STACK_BYTES: usize = 16 * 1024;

/// Bytes of a thread's name, as `TASK_COMM_LEN` in the kernel.
pub const COMMAND_BYTES: usize = 16;

/// Why a stack was captured.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleOrigin {
    /// One of the first stacks of a site; stands for no bytes.
    Introduction = 1,
    /// Chosen by byte sampling; stands for `size / (1 - exp(-size / interval))` bytes.
    Sampled,
    /// Belongs to the mapping event with the same `sequence`.
    Mapping,
    /// Made the thread whose id is `sequence`.
    Thread,
    /// One of a site of which every allocation is sent; stands for itself.
    Each,
    /// Took a page fault at `address`; stands for `size` of them.
    Fault,
}

/// A `u32` that is no [`SampleOrigin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSampleOrigin(pub u32);

impl TryFrom<u32> for SampleOrigin {
    type Error = UnknownSampleOrigin;

    fn try_from(value: u32) -> Result<Self, UnknownSampleOrigin> {
        match value {
            1 => Ok(Self::Introduction),
            2 => Ok(Self::Sampled),
            3 => Ok(Self::Mapping),
            4 => Ok(Self::Thread),
            5 => Ok(Self::Each),
            6 => Ok(Self::Fault),
            _ => Err(UnknownSampleOrigin(value)),
        }
    }
}

/// A record in the ring buffer `SAMPLES`, or the beginning of one: where the program does not walk stacks itself, a
/// [`StackImage`] follows, then [`STACK_BYTES`] of stack, then [`ERLANG_WORDS`](crate::ERLANG_WORDS) words of an Erlang
/// process's stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct SampleHeader {
    /// The site (not for [`SampleOrigin::Mapping`], [`SampleOrigin::Thread`] and [`SampleOrigin::Fault`]).
    pub site: SiteKey,
    /// The mapping event's `sequence`, the block's `allocated_at`, the id of a new thread, or when a fault was taken.
    pub sequence: u64,
    /// Address of the block, or of the fault (not for [`SampleOrigin::Mapping`]).
    pub address: u64,
    /// Bytes of the allocation, or the number of faults.
    pub size: u64,
    /// The stack's key in the map `STACKS`. 0: see the image; where a fault has none, it is not known.
    pub stack: u64,
    /// Thread id in the initial pid namespace.
    pub thread: u32,
    /// A [`SampleOrigin`].
    pub origin: u32,
}

/// What a stack can be walked from, somewhere else.
///
/// The first byte of the stack that follows is that of the page that holds `stack_pointer`; what lies below the pointer is
/// not filled in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct StackImage {
    /// Program counter: the return address of the allocation function, or where a system call goes on.
    pub instruction_pointer: u64,
    /// Stack pointer that belongs to it.
    pub stack_pointer: u64,
    /// `rbp`, or `x29`.
    pub frame_pointer: u64,
    /// `x30`; 0 on `x86_64`.
    pub link_register: u64,
    /// As [`StoredStack::current`](crate::StoredStack::current).
    pub current: [u64; 3],
    /// As [`StoredStack::driver`](crate::StoredStack::driver).
    pub driver: u64,
    /// Bytes of the stack that could be read, from its beginning; a multiple of the 4096 that are read at a time.
    pub captured: u32,
    /// An [`ErlangEnd`](crate::ErlangEnd).
    pub erlang_end: u32,
    /// Words of the Erlang process's stack, from its top.
    pub erlang_words: u32,
    /// As [`StoredStack::scheduler`](crate::StoredStack::scheduler).
    pub scheduler: u32,
    /// The thread's name, padded with NUL.
    pub command: [u8; COMMAND_BYTES],
    /// As [`Call::returns`](crate::Call::returns).
    pub returns: [Return; 2],
}

/// What happened to the address space.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// `mmap` returned `address`.
    Mapped = 1,
    /// `munmap` or `mremap` begins for `address`, `length`: from here on the pages can be somebody else's.
    Unmapping,
    /// The call that began at `began` failed: the range is still there.
    UnmapFailed,
    /// The `mremap` that began at `began` made `address`, `length` out of its range.
    Moved,
    /// `brk` moved the end of the heap to `address`.
    Break,
    /// The `munmap` that began at `began` is over.
    Unmapped,
}

/// A `u32` that is no [`MappingKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownMappingKind(pub u32);

impl TryFrom<u32> for MappingKind {
    type Error = UnknownMappingKind;

    fn try_from(value: u32) -> Result<Self, UnknownMappingKind> {
        match value {
            1 => Ok(Self::Mapped),
            2 => Ok(Self::Unmapping),
            3 => Ok(Self::UnmapFailed),
            4 => Ok(Self::Moved),
            5 => Ok(Self::Break),
            6 => Ok(Self::Unmapped),
            _ => Err(UnknownMappingKind(value)),
        }
    }
}

/// A record in the ring buffer `MAPPINGS`. They arrive in the order in which they happened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct MappingEvent {
    /// Joins the event and its stack sample; unique within a thread. 0: no stack was captured.
    pub sequence: u64,
    /// When it happened.
    pub at: u64,
    /// `at` of the [`MappingKind::Unmapping`] by which the call began.
    pub began: u64,
    /// Begin of the range; for [`MappingKind::Break`] the end of the heap.
    pub address: u64,
    /// Length of the range, as it was asked for.
    pub length: u64,
    /// A [`MappingKind`].
    pub kind: u32,
    /// Thread id in the initial pid namespace.
    pub thread: u32,
    /// `prot` of `mmap`.
    pub protection: u32,
    /// `flags` of `mmap` or `mremap`.
    pub flags: u32,
    /// 1 where an allocation function made the call ([`MappingKind::Break`] only).
    pub in_allocator: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
    /// The stack's key in the map `STACKS`. 0: it arrives as a sample, or there is none.
    pub stack: u64,
}

const _: () = assert!(size_of::<SampleHeader>() == 64);
const _: () = assert!(size_of::<StackImage>() == 128);
const _: () = assert!(size_of::<MappingEvent>() == 72);
