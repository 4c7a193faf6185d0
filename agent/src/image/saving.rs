//! Keeps what is looked at of a memory.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use super::SavedMemory;
use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
};

/// A memory that remembers what of it was looked at.
#[derive(Debug)]
pub struct SavingMemory<M> {
    memory: M,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Addresses of single words, and the words: nearly all of an image.
    words: Vec<(u64, [u8; 8])>,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl<M: ReadMemory> SavingMemory<M> {
    /// Remembers what is looked at of `memory`.
    pub fn new(memory: M) -> Self {
        Self { memory, kept: Mutex::default() }
    }

    /// What was looked at.
    pub fn saved(self) -> SavedMemory {
        let Kept { words, pieces } = self.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        let words = words.into_iter().map(|(at, word)| (at, word.to_vec()));
        SavedMemory::new(pieces.into_iter().chain(words))
    }

    fn keep(&self, at: Address, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match <[u8; 8]>::try_from(bytes) {
            Ok(word) => kept.words.push((at.0, word)),
            Err(_) => kept.pieces.push((at.0, bytes.to_vec())),
        }
    }
}

impl<M: ReadMemory> ReadMemory for SavingMemory<M> {
    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        self.memory.read(at, into)?;
        self.keep(at, into);
        Ok(())
    }

    fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable> {
        self.memory.read_ahead(at, into)
    }

    fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
        self.memory.peek_many(ranges)
    }

    fn scan(&self, range: Range<u64>, visit: &mut dyn FnMut(Address, &[u8])) {
        self.memory.scan(range, visit);
    }

    fn used(&self, at: Address, bytes: &[u8]) {
        self.keep(at, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{target::memory::MemoryImage, words::Words};

    #[test]
    fn keeps_what_was_looked_at_and_no_more() {
        let memory = SavingMemory::new(MemoryImage(vec![(Address(0x1000), (0..64).collect())]));
        let mut words = Words::new(&memory);
        words.word(Address(0x1008)).unwrap();
        words.word(Address(0x1020)).unwrap();
        memory.scan(0x1000..0x1040, &mut |_, _| {});
        memory.read(Address(0x1030), &mut [0; 4]).unwrap();
        let saved = memory.saved();
        assert_eq!(saved.length(), 20);
        assert!(saved.read(Address(0x1010), &mut [0]).is_err());
        let mut word = [0; 8];
        saved.read(Address(0x1020), &mut word).unwrap();
        assert_eq!(word, [32, 33, 34, 35, 36, 37, 38, 39]);
    }
}
