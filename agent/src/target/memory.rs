//! Reads the node's memory.

use thiserror::Error;

use crate::mapping::Address;

/// Memory of a node: a live process, or a saved image.
pub trait ReadMemory {
    /// Fills `into` from `at` on, or says why not; never partly.
    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable>;
}

/// A range that could not be read.
#[derive(Debug, Error)]
#[error("cannot read {length} bytes at {at} of the node's memory")]
pub struct Unreadable {
    /// Its first address.
    pub at: Address,
    /// Its length.
    pub length: usize,
    /// Why.
    #[source]
    pub cause: std::io::Error,
}
