//! What a stack is: frames from the leaf (the allocation) to the root.

mod cfi;
pub mod modules;
pub mod raw;
pub mod rows;
pub mod unwind;

use serde::{Deserialize, Serialize};

use crate::mapping::Address;

/// Module of the frame that stands for a system call. No file is called so.
pub const KERNEL_MODULE: &str = "[kernel]";

/// One frame: an address and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Frame {
    /// Where the code goes on when it is returned to; 0 for a frame that is known by name only.
    pub address: Address,
    /// What the address lies in.
    pub kind: FrameKind,
    /// The file's name (`libc.so.6`, `leaky.so`), or the Erlang module.
    pub module: Option<String>,
    /// The function, demangled.
    pub function: Option<String>,
    /// Bytes from the function's begin, or, without a function, from the module's first byte in memory.
    pub offset: Option<u64>,
    /// Source file.
    pub file: Option<String>,
    /// Line in it.
    pub line: Option<u32>,
    /// Whether the compiler has merged the function into the frame that follows.
    pub inlined: bool,
}

/// Kinds of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameKind {
    /// Compiled code in a file.
    Native,
    /// An Erlang function.
    Erlang,
    /// Code that the VM made at run time and that has no name yet.
    Jit,
    /// An address in no known mapping.
    Unknown,
}

/// Where the walk of a stack came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StackEnd {
    /// At the thread's first function.
    Root,
    /// At code that the VM made at run time; Erlang's own stack is not known.
    Jit,
    /// At the first function of an Erlang process.
    Erlang,
    /// At the end of the captured bytes.
    Truncated,
    /// At an address without unwind information.
    NoUnwindInformation,
    /// No stack was captured.
    Missing,
}

/// The stack of one allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stack {
    /// From the leaf to the root. The first is the allocation function itself.
    pub frames: Vec<Frame>,
    /// How complete it is.
    pub end: StackEnd,
}
