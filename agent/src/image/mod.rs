//! What of a node's memory was looked at, so that the same answer can be had again elsewhere?
//!
//! An image holds what the kernel said of the process ([`ProcessView`]: names and sizes of mappings, threads by number,
//! facts of the node) and the words of its memory that `explain` looked at, and no others:
//!
//! * the structures of the VM's allocators (`Allctr_t`, `ErtsMsegAllctr_t`, `ErtsMemMapper`), and the writable data of
//!   the VM's executable and of the C library, in which they are found;
//! * headers of carriers and of blocks, the size at the end of a free block, and allocation tags; not the contents of
//!   blocks: no term, no binary, no row of a table, no message;
//! * headers of the C library's chunks with the links of free ones, and heads of threads' descriptors;
//! * the slots of the tables of processes and of ports, and the identifier of each of these;
//! * the text of the atoms that are the names in allocation tags, and names of allocators and allocation types.

mod memory;
mod saving;

use serde::{Deserialize, Serialize};

pub use self::{memory::SavedMemory, saving::SavingMemory};
use crate::{erts::alloc::Depth, stored::Stored, view::ProcessView};

/// A memory image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Version of the beamscope that made it.
    pub beamscope: String,
    /// How deep the look went.
    pub depth: Depth,
    /// What the kernel said of the process.
    pub view: ProcessView,
    /// What was looked at of its memory.
    pub memory: SavedMemory,
}

impl Stored for Image {
    const KIND: &'static str = "image";
    const FORMAT: u32 = 1;
    fn writer(&self) -> &str {
        &self.beamscope
    }
}
