//! Which chunks does a segment of an arena consist of?
//!
//! Boundary tags, `malloc/malloc.c` ("Details of chunk representation and use", `sysmalloc`), glibc 2.31 to 2.43: a
//! chunk begins with the size of the one before it, if that is free, and its own size with three flags. Whether it is in
//! use stands in the next chunk. An arena's last segment ends with its top chunk, the others with fenceposts.

use std::ops::Range;

use thiserror::Error;

use super::{
    ChunkKind,
    arena::{FLAGS, Part},
    fastbin::{self, Linking},
    tcache::{self, Suspect},
};
use crate::{
    extents::Extents,
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    words::Words,
};

/// `PREV_INUSE`.
const BEFORE_IN_USE: u64 = 1;
/// `IS_MMAPPED`.
const IS_MAPPED: u64 = 2;
/// `NON_MAIN_ARENA`.
const NOT_MAIN: u64 = 4;
/// `MALLOC_ALIGNMENT`.
const ALIGNMENT: u64 = 16;
/// `MINSIZE`.
const SMALLEST: u64 = 32;
/// Size of a fencepost.
const FENCEPOST: u64 = 16;
/// How far behind the fenceposts the next chunk is looked for, where somebody else moved `brk`.
const SEARCHED: u64 = 64 << 20;
/// So many chunks in a row that fit are chunks.
const CONVINCING: u32 = 64;
/// Places at which a row of chunks is tried, when the next chunk is looked for.
const MOST_TRIED: u32 = 10_000;

/// The chunks of a segment.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) start: u64,
    /// The first chunk.
    from: u64,
    pub(super) end: u64,
    /// For each chunk twice its sixteenths, and one more if it is in use, as LEB128. Most chunks take one byte, of
    /// which a heap has tens of millions.
    chunks: Vec<u8>,
    /// What follows the chunks.
    last: Option<(ChunkKind, u64)>,
    /// What may lead to the next chunk of a fastbin.
    pub(super) edges: Vec<fastbin::Edge>,
    /// What may be the cache of a thread.
    pub(super) tcaches: Vec<Suspect>,
    /// Why it could not be walked to its end.
    pub(super) defect: Option<String>,
}

/// What stands at an address.
enum Step {
    Chunk { size: u64, in_use: bool, next: u64 },
    Top { size: u64 },
    Fenceposts { size: u64 },
}

/// Why no chunk can be at an address.
#[derive(Debug, Error)]
enum Tear {
    #[error("no chunk has the size {0:#x}")]
    Size(u64),
    #[error("the chunk goes on behind its segment")]
    TooLong,
    #[error("it has the flags of another arena's chunk")]
    Flags,
    #[error("it lies in a carrier of the VM")]
    InCarrier,
    #[error("its size and the copy of it at its end differ")]
    Footer,
    #[error("the fenceposts are not complete")]
    Fenceposts,
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl Walked {
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Shows the pieces by rising address.
    pub(super) fn pieces(&self, mut visit: impl FnMut(ChunkKind, Range<u64>)) {
        if self.start < self.from {
            visit(ChunkKind::Header, self.start..self.from);
        }
        let mut at = self.from;
        let (mut value, mut shift) = (0_u64, 0_u32);
        for byte in &self.chunks {
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or_default();
            shift += 7;
            if byte & 0x80 != 0 {
                continue;
            }
            let end = at.saturating_add((value >> 1).saturating_mul(ALIGNMENT));
            visit(if value & 1 == 1 { ChunkKind::InUse } else { ChunkKind::Free }, at..end);
            (at, value, shift) = (end, 0, 0);
        }
        if let Some((kind, bytes)) = self.last {
            visit(kind, at..at.saturating_add(bytes));
        }
    }

    /// Where the next chunk of the arena is, if this segment ends with fenceposts because somebody else moved `brk`.
    pub(super) fn resume<M: ReadMemory + ?Sized>(
        &self,
        words: &mut Words<'_, M>,
        part: &Part,
        vm: &Extents,
    ) -> Option<u64> {
        let fenced = matches!(self.last, Some((ChunkKind::Header, _)));
        if fenced && part.is_main { search(words, part, self.end, vm) } else { None }
    }

    fn push(&mut self, size: u64, in_use: bool) {
        let mut value = (size / ALIGNMENT) << 1 | u64::from(in_use);
        loop {
            let [low, ..] = (value & 0x7f).to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.chunks.push(low);
                return;
            }
            self.chunks.push(low | 0x80);
        }
    }
}

/// Walks `part` from the chunk at `from` on.
pub(super) fn walk<M: ReadMemory + ?Sized>(
    words: &mut Words<'_, M>,
    part: &Part,
    from: u64,
    vm: &Extents,
    linking: Linking,
) -> Walked {
    let start = if part.is_main && from != part.first { from } else { part.start };
    let mut walked = Walked { start, from, end: from, ..Walked::default() };
    loop {
        let at = walked.end;
        match step(words, part, at, vm) {
            Ok(Step::Chunk { size, in_use, next }) => {
                walked.push(size, in_use);
                walked.end = at.saturating_add(size);
                if !in_use {
                    continue;
                }
                walked.edges.extend(linking.edge(at, size, next));
                if tcache::is_size(size) {
                    walked.tcaches.push(Suspect { chunk: at, size });
                }
            }
            Ok(Step::Top { size }) => {
                walked.last = Some((ChunkKind::Top, size));
                walked.end = at.saturating_add(size);
                return walked;
            }
            Ok(Step::Fenceposts { size }) => {
                walked.last = Some((ChunkKind::Header, size));
                walked.end = at.saturating_add(size);
                return walked;
            }
            Err(tear) => {
                let end = part.end;
                walked.defect = Some(format!("not walked from {at:#x} to {end:#x}: {tear}"));
                return walked;
            }
        }
    }
}

/// Where the chunks of `part` begin.
pub(super) fn first_chunk<M: ReadMemory + ?Sized>(words: &mut Words<'_, M>, part: &Part, vm: &Extents) -> Option<u64> {
    if part.is_main {
        // What is in `brk` memory before the library's was taken by somebody else.
        return match step(words, part, part.first, vm) {
            Ok(_) => Some(part.first),
            Err(_) => search(words, part, part.first, vm),
        };
    }
    // The size of `malloc_state` may be larger than is known.
    (0..8).filter_map(|step| part.first.checked_add(step * ALIGNMENT)).find(|at| convinces(words, part, *at, vm))
}

/// The first place from `from` on at which a row of chunks begins.
fn search<M: ReadMemory + ?Sized>(words: &mut Words<'_, M>, part: &Part, from: u64, vm: &Extents) -> Option<u64> {
    let top = part.top?;
    let mut tried = 0;
    let mut at = from.checked_next_multiple_of(ALIGNMENT)?;
    while at <= top && at - from <= SEARCHED && tried < MOST_TRIED {
        let head = words.word(Address(at.checked_add(8)?)).ok()?;
        // Nothing before the first chunk can be free.
        if head & FLAGS == BEFORE_IN_USE && head >= SMALLEST && head / ALIGNMENT <= (part.end - at) / ALIGNMENT {
            tried += 1;
            if convinces(words, part, at, vm) {
                return Some(at);
            }
        }
        at = at.checked_add(ALIGNMENT)?;
    }
    None
}

/// Whether a row of chunks begins at `at`.
fn convinces<M: ReadMemory + ?Sized>(words: &mut Words<'_, M>, part: &Part, at: u64, vm: &Extents) -> bool {
    let mut at = at;
    for _ in 0..CONVINCING {
        match step(words, part, at, vm) {
            Ok(Step::Chunk { size, .. }) => at = at.saturating_add(size),
            Ok(Step::Top { .. } | Step::Fenceposts { .. }) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// What stands at `at`. Words are read by rising address, since they are read ahead.
fn step<M: ReadMemory + ?Sized>(words: &mut Words<'_, M>, part: &Part, at: u64, vm: &Extents) -> Result<Step, Tear> {
    let mut word = |behind: u64| words.word(Address(at.saturating_add(behind)));
    let head = word(8)?;
    let size = head & !FLAGS;
    // Not `at` itself: the word there belongs to the chunk before, whose carrier may end with it.
    if vm.find(Address(at.saturating_add(8))).is_some() {
        return Err(Tear::InCarrier);
    }
    let end = at.checked_add(size).filter(|end| *end <= part.end).ok_or(Tear::TooLong)?;
    if part.top == Some(at) {
        if head & BEFORE_IN_USE == 0 || size < FENCEPOST || !size.is_multiple_of(ALIGNMENT) {
            return Err(Tear::Size(size));
        }
        return if part.is_main || end == part.end { Ok(Step::Top { size }) } else { Err(Tear::Size(size)) };
    }
    if size == FENCEPOST {
        return fenceposts(&mut word, part, at);
    }
    if size < SMALLEST || !size.is_multiple_of(ALIGNMENT) {
        return Err(Tear::Size(size));
    }
    if part.top.is_some_and(|top| at < top && top < end) || part.end - end < ALIGNMENT {
        return Err(Tear::TooLong);
    }
    if head & IS_MAPPED != 0 || (part.is_main && head & NOT_MAIN != 0) {
        return Err(Tear::Flags);
    }
    let next = if size <= fastbin::LARGEST { word(16)? } else { 0 };
    let (footer, head_of_next) = (word(size)?, word(size + 8)?);
    let in_use = head_of_next & BEFORE_IN_USE != 0;
    if !in_use && footer != size {
        return Err(Tear::Footer);
    }
    Ok(Step::Chunk { size, in_use, next })
}

/// Two fenceposts, the second of size 16 in the main arena and 0 in others. In the main arena there is a third where the
/// old top chunk was too small to be freed.
fn fenceposts(word: &mut impl FnMut(u64) -> Result<u64, Unreadable>, part: &Part, at: u64) -> Result<Step, Tear> {
    let second = word(FENCEPOST + 8)?;
    if !part.is_main {
        let complete = second == BEFORE_IN_USE && at.checked_add(2 * FENCEPOST) == Some(part.end);
        return if complete { Ok(Step::Fenceposts { size: 2 * FENCEPOST }) } else { Err(Tear::Fenceposts) };
    }
    if second != FENCEPOST | BEFORE_IN_USE {
        return Err(Tear::Fenceposts);
    }
    let third = word(2 * FENCEPOST + 8)? == FENCEPOST | BEFORE_IN_USE;
    Ok(Step::Fenceposts { size: if third { 3 * FENCEPOST } else { 2 * FENCEPOST } })
}
