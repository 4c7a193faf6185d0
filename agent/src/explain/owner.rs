//! To whom can a resident byte belong?

use std::fmt;

use serde::{Deserialize, Serialize};

/// An owner of resident memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Owner {
    /// Blocks in carriers of this allocator.
    VmUsed(String),
    /// Free bytes in carriers of this allocator.
    VmUnused(String),
    /// Headers of carriers.
    VmOverhead,
    /// Segments that mseg keeps for later, and free memory of super carriers.
    VmCached,
    /// Free bytes in carriers that are given up (`MADV_FREE`) and that the kernel has not yet taken.
    VmLazyfree,
    /// Code that the VM made at run time, and literals.
    VmCode,
    /// Data of the VM's executable.
    VmStatic,
    /// Blocks of the C library in use, less those that are carriers of the VM.
    NativeUsed,
    /// Free memory of the C library.
    NativeRetained,
    /// Fresh mappings that neither the VM nor the C library has made.
    NativeMapped,
    /// Stacks of threads.
    Stacks,
    /// Pages of this file.
    Files(String),
    /// Memory that is shared with other processes.
    Shared,
    /// What the kernel maps into each process.
    Kernel,
}

impl Owner {
    /// What the owner is, in a few words.
    pub fn meaning(&self) -> &'static str {
        match self {
            Self::VmUsed(_) => "blocks in carriers",
            Self::VmUnused(_) => "free in carriers",
            Self::VmOverhead => "headers of carriers",
            Self::VmCached => "kept by the VM for new carriers",
            Self::VmLazyfree => "given up, the kernel may take it",
            Self::VmCode => "JIT code and literals",
            Self::VmStatic => "data of the VM's executable",
            Self::NativeUsed => "malloc'ed by native code",
            Self::NativeRetained => "freed, kept by libc",
            Self::NativeMapped => "mapped by native code",
            Self::Stacks => "stacks of threads",
            Self::Files(_) => "pages of the file",
            Self::Shared => "shared memory",
            Self::Kernel => "vdso and the like",
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmUsed(allocator) => write!(f, "vm.used/{allocator}"),
            Self::VmUnused(allocator) => write!(f, "vm.unused/{allocator}"),
            Self::VmOverhead => f.write_str("vm.overhead"),
            Self::VmCached => f.write_str("vm.cached"),
            Self::VmLazyfree => f.write_str("vm.lazyfree"),
            Self::VmCode => f.write_str("vm.code"),
            Self::VmStatic => f.write_str("vm.static"),
            Self::NativeUsed => f.write_str("native.used"),
            Self::NativeRetained => f.write_str("native.retained"),
            Self::NativeMapped => f.write_str("native.mapped"),
            Self::Stacks => f.write_str("stacks"),
            Self::Files(name) => write!(f, "files/{name}"),
            Self::Shared => f.write_str("shared"),
            Self::Kernel => f.write_str("kernel"),
        }
    }
}
