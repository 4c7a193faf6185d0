//! Which blocks does a multi-block carrier hold?
//!
//! A carrier is cut into blocks without gaps. Each begins with a word of size and flags; a free one names its carrier
//! in the second word and repeats its size in the last; an allocated one says in the upper bits of its header how far
//! it is from the carrier's begin, and may end with an allocation tag (`erl_alloc_util.c`, OTP-25.2.3,
//! "Memory layouts"). All of it is checked, block for block: a wrong layout or a race shows after a few blocks.

use std::ops::Range;

use thiserror::Error;

use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    words::Words,
};

/// `THIS_FREE_BLK_HDR_FLG`
const FREE: u64 = 1 << 0;
/// `PREV_FREE_BLK_HDR_FLG`
const PREVIOUS_FREE: u64 = 1 << 1;
/// `LAST_BLK_HDR_FLG`
const LAST: u64 = 1 << 2;
/// All three: the block of a single-block carrier.
const SINGLE: u64 = FREE | PREVIOUS_FREE | LAST;
/// `ATAG_BLK_HDR_FLG`
const TAGGED: u64 = 1 << 63;
/// `MBC_FBLK_SZ_MASK`, `SBC_BLK_SZ_MASK`: bits 3 to 62.
const SIZE: u64 = !(SINGLE | TAGGED);
/// `MBC_ABLK_OFFSET_SHIFT`: bits 40 to 62 hold the distance from the carrier's begin, in units of its alignment.
const OFFSET_SHIFT: u32 = 40;
/// `MBC_ABLK_SZ_MASK`: bits 3 to 39.
const USED_SIZE: u64 = ((1 << OFFSET_SHIFT) - 1) & !SINGLE;
/// No block is smaller than header and one unit.
const SMALLEST: u64 = 16;
const WORD: u64 = 8;

/// What is to be known of a VM to walk the blocks of its carriers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Bytes before the first block of a multi-block carrier.
    pub header: u64,
    /// [`super::layout::Layout::alignment`]
    pub alignment: Option<u32>,
    /// [`super::layout::Layout::tag_bytes`]
    pub tag_bytes: Option<u64>,
}

/// What is done with the blocks of a carrier.
pub trait BlockSink {
    /// An allocated block. Its range begins with its header.
    fn used(&mut self, block: Range<u64>, tag: Option<u64>);
    /// A free block.
    fn free(&mut self, block: Range<u64>);
    /// Distance from the carrier's begin in an allocated block's header, in units of the alignment; above 0.
    fn distance(&mut self, block: u64, units: u64) {
        let _: (u64, u64) = (block, units);
    }
}

/// Why the blocks of a carrier could not be walked to its end.
#[derive(Debug, Error)]
pub enum WalkError {
    /// A block contradicts what must hold for it.
    #[error("block at {at}: {what}")]
    Block {
        /// The block.
        at: Address,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Memory of the carrier cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// Walks the blocks of the multi-block carrier `carrier`, and returns the end of the last one.
pub fn walk<M: ReadMemory + ?Sized>(
    words: &mut Words<'_, M>,
    carrier: &Range<u64>,
    form: Form,
    sink: &mut impl BlockSink,
) -> Result<u64, WalkError> {
    let Range { start, end } = *carrier;
    let Form { header, alignment, tag_bytes } = form;
    let mut at = start.saturating_add(header);
    let mut previous_free = false;
    loop {
        let wrong = |what| Err(WalkError::Block { at: Address(at), what });
        if at.checked_add(SMALLEST).is_none_or(|least| least > end) {
            return wrong("begins behind the end of its carrier");
        }
        let word = words.word(Address(at))?;
        let is_free = word & FREE != 0;
        let size = word & if is_free { SIZE } else { USED_SIZE };
        let Some(next) = at.checked_add(size).filter(|next| size >= SMALLEST && *next <= end) else {
            return wrong("has an impossible size");
        };
        if (word & PREVIOUS_FREE != 0) != previous_free {
            return wrong("and the one before it disagree on whether that is free");
        }
        let is_last = word & LAST != 0;
        if is_free {
            if previous_free {
                return wrong("is free beside a free one");
            }
            if words.word(Address(at + WORD))? != start {
                return wrong("is free and belongs to another carrier");
            }
            if !is_last && words.word(Address(next - WORD))? != size {
                return wrong("is free and its end names another size");
            }
            sink.free(at..next);
        } else {
            let units = (word & !TAGGED) >> OFFSET_SHIFT;
            if alignment.is_some_and(|bits| carrier_of(at, units, bits) != Some(start)) {
                return wrong("is that of another carrier");
            }
            if units > 0 {
                sink.distance(at, units);
            }
            sink.used(at..next, tag(words, word, next, tag_bytes)?);
        }
        if is_last {
            // What is left is too small for a block.
            return if end - next < SMALLEST { Ok(next) } else { wrong("is the last one, amid its carrier") };
        }
        previous_free = is_free;
        at = next;
    }
}

/// `ABLK_TO_MBC`: the carrier of an allocated block.
pub(super) fn carrier_of(block: u64, units: u64, alignment: u32) -> Option<u64> {
    let distance = units.checked_shl(alignment).filter(|distance| distance >> alignment == units)?;
    (block >> alignment << alignment).checked_sub(distance)
}

/// The block of the single-block carrier `carrier`, and its tag.
pub fn single<M: ReadMemory + ?Sized>(
    words: &mut Words<'_, M>,
    carrier: &Range<u64>,
    tag_bytes: Option<u64>,
) -> Result<(Range<u64>, Option<u64>), WalkError> {
    let at = carrier.start.saturating_add(super::layout::CPOOL);
    let wrong = |what| Err(WalkError::Block { at: Address(at), what });
    let word = words.word(Address(at))?;
    let Some(size) = single_size(word) else { return wrong("is not marked as the only one of its carrier") };
    let Some(end) = at.checked_add(size).filter(|end| size >= SMALLEST && *end <= carrier.end) else {
        return wrong("has an impossible size");
    };
    Ok((at..end, tag(words, word, end, tag_bytes)?))
}

/// The tag of a block that ends at `end`, if its header says that there is one.
fn tag<M: ReadMemory + ?Sized>(
    words: &mut Words<'_, M>,
    header: u64,
    end: u64,
    tag_bytes: Option<u64>,
) -> Result<Option<u64>, WalkError> {
    match tag_bytes {
        Some(bytes) if header & TAGGED != 0 => Ok(Some(words.word(Address(end - bytes))?)),
        _ => Ok(None),
    }
}

/// Size of the block of a single-block carrier, by the block's header.
pub(super) fn single_size(header: u64) -> Option<u64> {
    (header & SINGLE == SINGLE).then_some(header & SIZE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::target::memory::MemoryImage;

    const START: u64 = 0x7f00_0000_0000;
    const HEADER: u64 = 440;
    const ALIGNMENT: u32 = 14;

    #[derive(Clone, Debug)]
    pub(super) struct Piece {
        size: u64,
        is_free: bool,
        tag: Option<u64>,
    }

    #[derive(Default)]
    struct Sums {
        used: Vec<(u64, Option<u64>)>,
        free: Vec<u64>,
    }

    impl BlockSink for Sums {
        fn used(&mut self, block: Range<u64>, tag: Option<u64>) {
            self.used.push((block.end - block.start, tag));
        }
        fn free(&mut self, block: Range<u64>) {
            self.free.push(block.end - block.start);
        }
    }

    /// A carrier that is cut into `pieces`.
    fn carrier(pieces: &[Piece]) -> (Range<u64>, Vec<u8>) {
        let blocks: u64 = pieces.iter().map(|piece| piece.size).sum();
        let mut bytes = vec![0; usize::try_from(HEADER + blocks).unwrap()];
        let mut put = |at: u64, word: u64| {
            let at = usize::try_from(at).unwrap();
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        };
        let (mut at, mut before) = (HEADER, 0);
        for (index, piece) in pieces.iter().enumerate() {
            let last = if index + 1 == pieces.len() { LAST } else { 0 };
            let next = at + piece.size;
            if piece.is_free {
                put(at, piece.size | FREE | before | last);
                put(at + 8, START);
                put(next - 8, piece.size);
                before = PREVIOUS_FREE;
            } else {
                let units = at >> ALIGNMENT;
                put(at, piece.size | units << OFFSET_SHIFT | before | last | piece.tag.map_or(0, |_| TAGGED));
                if let Some(tag) = piece.tag {
                    put(next - 8, tag);
                }
                before = 0;
            }
            at = next;
        }
        (START..START + HEADER + blocks, bytes)
    }

    fn walk_bytes(range: &Range<u64>, bytes: Vec<u8>, alignment: Option<u32>) -> (Result<u64, WalkError>, Sums) {
        let image = MemoryImage(vec![(Address(START), bytes)]);
        let mut sums = Sums::default();
        let form = Form { header: HEADER, alignment, tag_bytes: Some(WORD) };
        (walk(&mut Words::new(&image), range, form, &mut sums), sums)
    }

    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        let piece = (4_u64..2000, any::<bool>(), any::<Option<u64>>());
        prop::collection::vec(piece, 1..40).prop_map(|list| {
            let mut before = false;
            list.into_iter()
                .map(|(units, free, tag)| {
                    before = free && !before;
                    Piece { size: units * 8, is_free: before, tag: tag.filter(|_| !before) }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn finds_every_block(pieces in pieces()) {
            let (range, bytes) = carrier(&pieces);
            let (end, sums) = walk_bytes(&range, bytes, Some(ALIGNMENT));
            prop_assert_eq!(end.unwrap(), range.end);
            let used: Vec<_> = pieces.iter().filter(|piece| !piece.is_free).map(|piece| (piece.size, piece.tag)).collect();
            let free: Vec<_> = pieces.iter().filter(|piece| piece.is_free).map(|piece| piece.size).collect();
            prop_assert_eq!((sums.used, sums.free), (used, free));
        }

        #[test]
        fn bytes_that_changed_end_the_walk_in_bounds(
            pieces in pieces(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let (range, mut bytes) = carrier(&pieces);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let (end, sums) = walk_bytes(&range, bytes, Some(ALIGNMENT));
            let walked: u64 = sums.used.iter().map(|(size, _)| size).chain(&sums.free).sum();
            prop_assert!(HEADER + walked <= range.end - range.start);
            if let Ok(end) = end {
                prop_assert_eq!(START + HEADER + walked, end);
            }
        }
    }

    #[test]
    fn a_block_of_another_carrier_is_refused() {
        let block = |size| Piece { size, is_free: false, tag: None };
        let (range, bytes) = carrier(&[block(64 << 10), block(64)]);
        assert!(walk_bytes(&range, bytes.clone(), Some(ALIGNMENT)).0.is_ok());
        assert!(walk_bytes(&range, bytes, Some(ALIGNMENT + 1)).0.is_err());
    }

    #[test]
    fn the_block_of_a_single_block_carrier() {
        let mut bytes = vec![0; 4096];
        let put = |bytes: &mut Vec<u8>, at: usize, word: u64| bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        put(&mut bytes, 32, 0xfa0 | SINGLE | TAGGED);
        put(&mut bytes, 32 + 4000 - 8, 0x1234);
        let check = |bytes: Vec<u8>| {
            let image = MemoryImage(vec![(Address(START), bytes)]);
            single(&mut Words::new(&image), &(START..START + 4096), Some(WORD))
        };
        assert_eq!(check(bytes.clone()).unwrap(), (START + 32..START + 4032, Some(0x1234)));
        put(&mut bytes, 32, 0x1000 | SINGLE);
        assert!(check(bytes.clone()).is_err(), "longer than its carrier");
        put(&mut bytes, 32, 4000);
        assert!(check(bytes).is_err(), "a block of a multi-block carrier");
    }
}
