//! What stands at an address of a memory that was saved?

use std::{io, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable, read_each},
};

/// Pieces of memory, by rising address; none empty, none beside another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Packed", into = "Packed")]
pub struct SavedMemory {
    pieces: Vec<Piece>,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    /// Where its bytes begin in those of all pieces.
    at: usize,
    length: usize,
}

/// As it stands in a file: distances between pieces and their lengths compress well, and so do words.
#[derive(Serialize, Deserialize)]
struct Packed {
    /// From the end of the piece before, and its length.
    pieces: Vec<(u64, u64)>,
    words: Vec<u64>,
    /// Bytes at the end that make no word.
    rest: Vec<u8>,
}

/// A piece that no memory can have.
#[derive(Debug, thiserror::Error)]
#[error("the pieces of the memory image do not fit their bytes")]
pub struct Misfit;

impl SavedMemory {
    /// Keeps `pieces`, each an address and its bytes, in any order. Where two overlap, the later one of the list counts.
    pub fn new(pieces: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Self {
        let mut ordered: Vec<(u64, Vec<u8>)> = pieces.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect();
        // Stable, so that of two pieces at one place the later one stays behind.
        ordered.sort_by_key(|(start, _)| *start);
        let mut saved = Self::default();
        for (start, bytes) in ordered {
            saved.append(start, &bytes);
        }
        saved
    }

    fn append(&mut self, start: u64, bytes: &[u8]) {
        let Self { pieces, bytes: all } = self;
        let Some(last) = pieces.last_mut().filter(|last| last.start.saturating_add(last.length as u64) >= start) else {
            pieces.push(Piece { start, at: all.len(), length: bytes.len() });
            all.extend_from_slice(bytes);
            return;
        };
        // The last piece is at the end of all bytes, so what it gains goes there too.
        let inside = usize::try_from(start - last.start).unwrap_or(usize::MAX).min(last.length);
        let overlap = (last.length - inside).min(bytes.len());
        let (over, behind) = bytes.split_at(overlap);
        let from = last.at + inside;
        if let Some(place) = all.get_mut(from..from + overlap) {
            place.copy_from_slice(over);
        }
        all.extend_from_slice(behind);
        last.length += behind.len();
    }

    /// Puts other bytes into the place of some, each by its index among all. For tests of what reads hostile memory.
    pub fn damage(&mut self, changes: impl IntoIterator<Item = (usize, u8)>) {
        for (at, byte) in changes {
            if let Some(place) = self.bytes.get_mut(at) {
                *place = byte;
            }
        }
    }

    /// Bytes that are kept.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes from `at` on, to the end of their piece.
    fn from(&self, at: Address) -> Option<&[u8]> {
        let after = self.pieces.partition_point(|piece| piece.start <= at.0);
        let piece = self.pieces.get(after.checked_sub(1)?)?;
        let inside = usize::try_from(at.0 - piece.start).ok()?;
        self.bytes.get(piece.at..piece.at.checked_add(piece.length)?)?.get(inside..).filter(|rest| !rest.is_empty())
    }
}

fn refused(at: Address, length: usize) -> Unreadable {
    Unreadable { at, length, cause: io::Error::new(io::ErrorKind::NotFound, "not in the memory image") }
}

impl ReadMemory for SavedMemory {
    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        let length = into.len();
        let bytes = self.from(at).and_then(|bytes| bytes.get(..length)).ok_or_else(|| refused(at, length))?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable> {
        let bytes = self.from(at).ok_or_else(|| refused(at, into.len()))?;
        let length = bytes.len().min(into.len());
        let (filled, _) = into.split_at_mut(length);
        filled.copy_from_slice(bytes.split_at(length).0);
        Ok(length)
    }

    fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
        read_each(self, ranges)
    }

    fn scan(&self, range: Range<u64>, visit: &mut dyn FnMut(Address, &[u8])) {
        let first = self.pieces.partition_point(|piece| piece.start.saturating_add(piece.length as u64) <= range.start);
        for piece in self.pieces.get(first..).unwrap_or_default() {
            if piece.start >= range.end {
                break;
            }
            let start = piece.start.max(range.start);
            let Some(bytes) = self.from(Address(start)) else { continue };
            let length = usize::try_from(range.end - start).unwrap_or(usize::MAX).min(bytes.len());
            visit(Address(start), bytes.split_at(length).0);
        }
    }
}

impl From<SavedMemory> for Packed {
    fn from(saved: SavedMemory) -> Self {
        let mut end = 0;
        let distance = |piece: &Piece| {
            let from_last = piece.start - end;
            end = piece.start + piece.length as u64;
            (from_last, piece.length as u64)
        };
        let pieces = saved.pieces.iter().map(distance).collect();
        let (words, rest) = saved.bytes.as_chunks::<8>();
        Self { pieces, words: words.iter().copied().map(u64::from_le_bytes).collect(), rest: rest.to_vec() }
    }
}

impl TryFrom<Packed> for SavedMemory {
    type Error = Misfit;

    fn try_from(packed: Packed) -> Result<Self, Misfit> {
        let Packed { pieces: distances, words, rest } = packed;
        let mut bytes = Vec::with_capacity(words.len().saturating_mul(8).saturating_add(rest.len()));
        bytes.extend(words.into_iter().flat_map(u64::to_le_bytes));
        bytes.extend(rest);
        let mut pieces = Vec::with_capacity(distances.len());
        let (mut end, mut at) = (0_u64, 0_usize);
        for (distance, length) in distances {
            let start = end.checked_add(distance).ok_or(Misfit)?;
            end = start.checked_add(length).ok_or(Misfit)?;
            let length = usize::try_from(length).map_err(|_too_long| Misfit)?;
            pieces.push(Piece { start, at, length });
            at = at.checked_add(length).ok_or(Misfit)?;
        }
        if at == bytes.len() { Ok(Self { pieces, bytes }) } else { Err(Misfit) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holds_what_was_put_last(pieces in prop::collection::vec((0_u64..200, prop::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let saved = SavedMemory::new(pieces.clone());
            let mut naive = [None; 256];
            let mut ordered = pieces;
            ordered.sort_by_key(|(start, _)| *start);
            for (start, bytes) in &ordered {
                for (at, byte) in (usize::try_from(*start).unwrap()..).zip(bytes) {
                    naive[at] = Some(*byte);
                }
            }
            for (at, expected) in naive.into_iter().enumerate() {
                let mut byte = [0];
                let read = saved.read(Address(at as u64), &mut byte).is_ok().then_some(byte[0]);
                prop_assert_eq!(read, expected, "at {}", at);
            }
            let again = SavedMemory::try_from(Packed::from(saved.clone())).unwrap();
            prop_assert_eq!(&again, &saved);
            let mut scanned = 0;
            saved.scan(0..256, &mut |_, bytes| scanned += bytes.len());
            prop_assert_eq!(scanned, saved.length());
        }
    }

    #[test]
    fn a_file_that_contradicts_itself_is_refused() {
        let packed = |pieces| SavedMemory::try_from(Packed { pieces, words: vec![1], rest: vec![] });
        assert!(packed(vec![(8, 8)]).is_ok());
        assert!(packed(vec![(8, 9)]).is_err());
        assert!(packed(vec![(u64::MAX, 8)]).is_err());
        assert!(packed(vec![]).is_err());
    }
}
