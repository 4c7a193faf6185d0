//! What does one allocator instance say of itself?

use crate::{
    erts::carrier::read_name,
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    words::read_block,
};

use super::locate::InstanceAt;

/// Bytes of an `Allctr_t` that are read; the fields that count end before 2500 in OTP 23 to 29, and later ones are the
/// strategies'. Smaller ones are tried where memory ends before that.
const BYTES: [usize; 3] = [4096, 3072, 2560];

/// An allocator instance, with a copy of its `Allctr_t`.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Which one it is, and where.
    pub at: InstanceAt,
    /// The begin of its `Allctr_t`.
    pub words: Vec<u64>,
}

impl Instance {
    /// Copies the `Allctr_t` of `at`.
    pub fn read(at: InstanceAt, memory: &(impl ReadMemory + ?Sized)) -> Result<Self, Unreadable> {
        let mut refused = None;
        for bytes in BYTES {
            match read_block(memory, at.address, bytes) {
                Ok(words) => return Ok(Self { at, words }),
                Err(error) => refused = Some(error),
            }
        }
        refused.map_or_else(|| Ok(Self { at, words: Vec::new() }), Err)
    }

    /// The word at an offset in bytes.
    pub fn word(&self, offset: usize) -> Option<u64> {
        self.words.get(offset / 8).copied().filter(|_| offset.is_multiple_of(8))
    }

    /// The 32 bits at an offset in bytes.
    pub fn half(&self, offset: usize) -> Option<u32> {
        let word = self.words.get(offset / 8)?;
        let shift = if offset % 8 == 4 { 32 } else { 0 };
        u32::try_from(word >> shift & u64::from(u32::MAX)).ok()
    }

    /// Name of its allocator, given the offset of `name_prefix`: `ets_alloc`.
    pub fn allocator(&self, name: usize, memory: &(impl ReadMemory + ?Sized)) -> Option<String> {
        Some(format!("{}alloc", read_name(Address(self.word(name)?), memory)?))
    }
}
