//! Where memory is asked for, and what is held of it: the keys and values of the hash maps.

use bytemuck::{AnyBitPattern, NoUninit};

/// A function or system call that the probe follows.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Function {
    /// `malloc(size)`
    Malloc = 1,
    /// `calloc(count, size)`
    Calloc,
    /// `realloc(address, size)`
    Realloc,
    /// `reallocarray(address, count, size)`
    Reallocarray,
    /// `aligned_alloc(alignment, size)`
    AlignedAlloc,
    /// `posix_memalign(result, alignment, size)`
    PosixMemalign,
    /// `memalign(alignment, size)`
    Memalign,
    /// `valloc(size)`
    Valloc,
    /// `pvalloc(size)`
    Pvalloc,
    /// `free(address)`, and the `operator delete` of an allocator that has its own
    Free,
    /// `mmap(address, length, protection, flags, descriptor, offset)`
    Mmap,
    /// `munmap(address, length)`
    Munmap,
    /// `mremap(address, old length, new length, flags, new address)`
    Mremap,
    /// `brk(end)`
    Brk,
    /// The `operator new` of an allocator that has its own: its first parameter is the size
    OperatorNew,
}

impl Function {
    /// All functions, in the order of their discriminants.
    pub const ALL: [Self; 15] = [
        Self::Malloc,
        Self::Calloc,
        Self::Realloc,
        Self::Reallocarray,
        Self::AlignedAlloc,
        Self::PosixMemalign,
        Self::Memalign,
        Self::Valloc,
        Self::Pvalloc,
        Self::Free,
        Self::Mmap,
        Self::Munmap,
        Self::Mremap,
        Self::Brk,
        Self::OperatorNew,
    ];

    /// The name of its C symbol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Calloc => "calloc",
            Self::Realloc => "realloc",
            Self::Reallocarray => "reallocarray",
            Self::AlignedAlloc => "aligned_alloc",
            Self::PosixMemalign => "posix_memalign",
            Self::Memalign => "memalign",
            Self::Valloc => "valloc",
            Self::Pvalloc => "pvalloc",
            Self::Free => "free",
            Self::Mmap => "mmap",
            Self::Munmap => "munmap",
            Self::Mremap => "mremap",
            Self::Brk => "brk",
            Self::OperatorNew => "operator new",
        }
    }
}

/// A `u32` that is no [`Function`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownFunction(pub u32);

impl TryFrom<u32> for Function {
    type Error = UnknownFunction;

    fn try_from(value: u32) -> Result<Self, UnknownFunction> {
        value.checked_sub(1).and_then(|index| Self::ALL.get(index as usize).copied()).ok_or(UnknownFunction(value))
    }
}

/// Where memory is asked for: key of the `SITES` map. It is a stack (`is_stack`), or, where none was walked, a place as far
/// as the probe tells places apart without unwinding.
///
/// The return address and the height of the stack together identify a call path nearly always (T. Mytkowicz,
/// D. Coughlin, A. Diwan: *Inferred Call Path Profiling*, OOPSLA 2009); the captured stacks tell apart what they merge.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit, AnyBitPattern)]
pub struct SiteKey {
    /// Return address of the call. 0: all sites that found no room in the table. Of a stack: its key in the map `STACKS`.
    pub caller: u64,
    /// Stack pointer after the return. 0: all stack heights of `caller`. Of a stack: 0.
    pub stack_pointer: u64,
    /// The [`Function`] that was called.
    pub function: u32,
    /// 1 for a stack.
    pub is_stack: u32,
}

/// What was allocated at a [`SiteKey`]: value of the `SITES` map. Exact, not sampled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Site {
    /// Bytes that were asked for.
    pub allocated_bytes: u64,
    /// Blocks that were asked for.
    pub allocated_blocks: u64,
    /// Bytes of the freed part of them.
    pub freed_bytes: u64,
    /// Blocks of the freed part of them.
    pub freed_blocks: u64,
    /// Stacks that were captured to introduce the site.
    pub introductions: u64,
}

/// A live block: value of the `LIVE` map, whose key is the block's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Block {
    /// Bytes that were asked for.
    pub size: u64,
    /// When it was allocated.
    pub allocated_at: u64,
    /// Where it was allocated.
    pub site: SiteKey,
}

/// An allocation function that has been entered and has not returned: value of the `CALLS` map, whose key is the
/// thread id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Call {
    /// Stack pointer at entry. Calls nested in this one have a smaller one; its return has this one, or one word more.
    pub stack_pointer: u64,
    /// Bytes that are asked for; `u64::MAX` where the product of two arguments overflows.
    pub size: u64,
    /// The address to resize (`realloc`), or where the result will stand (`posix_memalign`); else 0.
    pub argument: u64,
    /// The block that `realloc` was given, where it is followed.
    pub replaced: Block,
    /// The [`Function`], or 0 between calls.
    pub function: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<SiteKey>() == 24);
const _: () = assert!(size_of::<Site>() == 40);
const _: () = assert!(size_of::<Block>() == 40);
const _: () = assert!(size_of::<Call>() == 72);
