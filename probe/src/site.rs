//! Where memory is asked for, and what is held of it: the keys and values of the hash maps.

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

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
    /// The VM's `enif_alloc(size)` (`erl_nif.c`, OTP-23.2.6 to OTP-27.3.4.1, as the next ones)
    EnifAlloc,
    /// `enif_realloc(address, size)`
    EnifRealloc,
    /// `enif_alloc_resource(type, size)`
    EnifAllocResource,
    /// `enif_make_new_binary(environment, size, term)`
    EnifMakeNewBinary,
    /// `enif_alloc_binary(size, binary)`
    EnifAllocBinary,
    /// `enif_realloc_binary(binary, size)`
    EnifReallocBinary,
    /// `enif_free(address)`
    EnifFree,
    /// The VM's `driver_alloc(size)` (`io.c`, same releases, as the next ones)
    DriverAlloc,
    /// `driver_realloc(address, size)`
    DriverRealloc,
    /// `driver_alloc_binary(size)`
    DriverAllocBinary,
    /// `driver_realloc_binary(binary, size)`
    DriverReallocBinary,
    /// `driver_free(address)`
    DriverFree,
    /// What the VM's allocators free a block with: `free(type, extra, address)` in `ErtsAllocatorFunctions_t`
    /// (`erl_alloc.h`, same releases)
    VmFree,
    /// `erts_mseg_alloc_opt(allocator, size, flags, options)`, which asks for a carrier
    /// (`erl_mseg.c`, same releases)
    MsegAlloc,
}

impl Function {
    /// All functions, in the order of their discriminants.
    pub const ALL: [Self; 29] = [
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
        Self::EnifAlloc,
        Self::EnifRealloc,
        Self::EnifAllocResource,
        Self::EnifMakeNewBinary,
        Self::EnifAllocBinary,
        Self::EnifReallocBinary,
        Self::EnifFree,
        Self::DriverAlloc,
        Self::DriverRealloc,
        Self::DriverAllocBinary,
        Self::DriverReallocBinary,
        Self::DriverFree,
        Self::VmFree,
        Self::MsegAlloc,
    ];

    /// Whether it serves native code from the VM's allocators, or frees what they served.
    pub const fn is_vm_api(self) -> bool {
        self as u32 >= Self::EnifAlloc as u32 && self as u32 <= Self::VmFree as u32
    }

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
            Self::EnifAlloc => "enif_alloc",
            Self::EnifRealloc => "enif_realloc",
            Self::EnifAllocResource => "enif_alloc_resource",
            Self::EnifMakeNewBinary => "enif_make_new_binary",
            Self::EnifAllocBinary => "enif_alloc_binary",
            Self::EnifReallocBinary => "enif_realloc_binary",
            Self::EnifFree => "enif_free",
            Self::DriverAlloc => "driver_alloc",
            Self::DriverRealloc => "driver_realloc",
            Self::DriverAllocBinary => "driver_alloc_binary",
            Self::DriverReallocBinary => "driver_realloc_binary",
            Self::DriverFree => "driver_free",
            Self::VmFree => "what the VM frees blocks with",
            Self::MsegAlloc => "erts_mseg_alloc_opt",
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
    /// The [`Function`] that was called; for [`Function::MsegAlloc`] with the allocator's number in the upper half.
    pub function: u32,
    /// 1 for a stack. 2 for a place whose stack led into code that was not known yet: each of its allocations is sent as a
    /// [`SampleOrigin::Each`](crate::SampleOrigin::Each).
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

impl SiteKey {
    /// The [`Function`] that was called.
    pub const fn function(&self) -> u32 {
        self.function & 0xffff
    }

    /// The number of the allocator that the call was for (`ERTS_ALC_A_…`); 0 where it was for none.
    pub const fn allocator(&self) -> u32 {
        self.function >> 16
    }
}

/// A live block: value of the maps `LIVE` and `VM_LIVE`, whose key is the block's address.
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

/// An allocation function that has been entered and has not returned: value of the maps `CALLS` and `VM_CALLS`, whose
/// key is the thread id.
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
    /// Its address.
    pub replaced_at: u64,
    /// In `VM_CALLS`: the caller, and that of a function nested in this one, since the kernel's trampoline is where a
    /// walk of the stack would look for them.
    pub returns: [Return; 2],
    /// The [`Function`], or 0 between calls.
    pub function: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// Where a function whose return is probed returns to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Return {
    /// Stack pointer after the return. 0: no such function.
    pub stack_pointer: u64,
    /// Return address.
    pub address: u64,
}

const _: () = assert!(size_of::<SiteKey>() == 24);
const _: () = assert!(size_of::<Site>() == 40);
const _: () = assert!(size_of::<Block>() == 40);
const _: () = assert!(size_of::<Call>() == 112);
