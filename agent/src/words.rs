//! Reads words of the node's memory one after the other, at the speed of a copy.

use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
};

/// The least that is read ahead: a page.
const SMALLEST: usize = 4096;
/// The most that is read ahead. Larger windows leave the processor's second-level cache and are slower.
const LARGEST: usize = 256 << 10;
/// Bytes of a word.
const WORD: u64 = 8;

/// A window on the memory that moves to where a word is asked for. It grows while its content is used, and shrinks
/// where most of it is jumped over.
#[derive(Debug)]
pub struct Words<'m, M: ?Sized> {
    memory: &'m M,
    start: u64,
    valid: u64,
    last_asked: u64,
    ahead: usize,
    buffer: Vec<u8>,
}

impl<'m, M: ReadMemory + ?Sized> Words<'m, M> {
    /// A window on `memory`.
    pub fn new(memory: &'m M) -> Self {
        Self { memory, start: 0, valid: 0, last_asked: 0, ahead: SMALLEST, buffer: vec![0; LARGEST] }
    }

    /// The word at `at`.
    #[inline]
    pub fn word(&mut self, at: Address) -> Result<u64, Unreadable> {
        let offset = at.0.wrapping_sub(self.start);
        if offset.checked_add(WORD).is_none_or(|end| end > self.valid) {
            return self.refill(at);
        }
        self.last_asked = offset;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        match self.buffer.get(from..).and_then(<[u8]>::first_chunk::<8>) {
            Some(bytes) => {
                self.memory.used(at, bytes);
                Ok(u64::from_le_bytes(*bytes))
            }
            None => self.refill(at),
        }
    }

    /// Forgets what was read: the next word is read anew.
    pub fn forget(&mut self) {
        self.valid = 0;
    }

    #[cold]
    fn refill(&mut self, at: Address) -> Result<u64, Unreadable> {
        let used_well = self.last_asked >= self.valid / 2;
        self.ahead = if used_well { (self.ahead * 2).min(LARGEST) } else { (self.ahead / 2).max(SMALLEST) };
        self.valid = 0;
        let window = self.buffer.get_mut(..self.ahead).unwrap_or_default();
        let read = self.memory.read_ahead(at, window)?;
        match window.first_chunk::<8>().filter(|_| read >= 8) {
            Some(bytes) => {
                (self.start, self.valid, self.last_asked) = (at.0, read as u64, 0);
                self.memory.used(at, bytes);
                Ok(u64::from_le_bytes(*bytes))
            }
            // A word across the end of what can be read in one go.
            None => read_word(self.memory, at),
        }
    }
}

/// The word at `at`.
pub fn read_word(memory: &(impl ReadMemory + ?Sized), at: Address) -> Result<u64, Unreadable> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// `N` words from `at` on.
pub fn read_words<const N: usize>(memory: &(impl ReadMemory + ?Sized), at: Address) -> Result<[u64; N], Unreadable> {
    let mut bytes = [[0; 8]; N];
    memory.read(at, bytes.as_flattened_mut())?;
    Ok(bytes.map(u64::from_le_bytes))
}

/// As many words as fit into `bytes` bytes, from `at` on.
pub fn read_block(memory: &(impl ReadMemory + ?Sized), at: Address, bytes: usize) -> Result<Vec<u64>, Unreadable> {
    let mut buffer = vec![0; bytes];
    memory.read(at, &mut buffer)?;
    Ok(words_of(&buffer))
}

/// The words in `bytes`; a part of a word at the end is left out.
pub fn words_of(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().copied().map(u64::from_le_bytes).collect()
}

/// The lower 32 bits of a word: of two fields of four bytes, the first.
pub fn low_half(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The upper 32 bits of a word: of two fields of four bytes, the second.
pub fn high_half(word: u64) -> u32 {
    low_half(word >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::MemoryImage;

    #[test]
    fn reads_forwards_backwards_and_across() {
        let bytes: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        let image = MemoryImage(vec![(Address(0x1000), bytes)]);
        let mut words = Words::new(&image);
        let expected = |n: u64| (2 * n) | ((2 * n + 1) << 32);
        for n in (0..10_000).chain((0..10_000).rev().step_by(7)).chain([3, 9_999, 0]) {
            assert_eq!(words.word(Address(0x1000 + 8 * n)).unwrap(), expected(n));
        }
        assert!(words.word(Address(0x1000 + 80_000)).is_err());
        assert!(words.word(Address(u64::MAX - 3)).is_err());
    }
}
