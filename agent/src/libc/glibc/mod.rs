//! Which bytes of glibc's heaps are in use, which are free, and which hold neither?
//!
//! # How it is walked
//!
//! `main_arena` has no dynamic symbol. It proves itself by its 127 bins, whose pointers lead back to them (`arena`).
//! The ring of arenas that it starts must come back to it, which gives the layout. Each arena's segments are walked
//! from chunk to chunk by boundary tags (`segment`); a walk counts only if it ends exactly at the top chunk or at the
//! fenceposts. What boundary tags call in use and is in a fastbin is told by `fastbin`; what is in a thread's cache
//! by `tcache`; chunks with a mapping of their own are found by `mapped` and compared with the library's own count.
//!
//! The process may run on meanwhile. An arena that does not agree with itself is walked anew, `ATTEMPTS` times; what
//! still does not agree is a defect.

mod arena;
mod fastbin;
mod mapped;
mod segment;
mod tcache;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::mapped::LibraryCount;
use self::{
    arena::{Layout, Place},
    segment::Walked,
};
use crate::{
    extents::Extents,
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::Words,
};

/// How often an arena is walked before what does not agree in it is called a defect. Of walks through the carriers of
/// a busy node, one in a thousand had to be repeated, and none five times.
const ATTEMPTS: u32 = 5;

/// What a piece of a heap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChunkKind {
    /// A chunk that the program holds, or a thread's cache (tcache).
    InUse,
    /// A chunk in a bin.
    Free,
    /// A chunk in a fastbin: free, though its neighbours do not know.
    Fastbin,
    /// The chunk at the end of an arena's newest segment, from which others are cut.
    Top,
    /// The library's own: `heap_info`, `malloc_state`, fenceposts and what is lost to alignment.
    Header,
    /// A chunk with a mapping of its own.
    Mapped,
}

/// What was found in the heaps of a process.
///
/// The bytes of all arenas add up without rest: `in_use + free + fastbin + top + header` are the bytes of the segments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibcHeap {
    /// The arenas, the main one first.
    pub arenas: Vec<Arena>,
    /// Bytes that the arenas say they got from the system (`system_mem`; `arena` in mallinfo(3)).
    pub system_bytes: u64,
    /// Bytes of chunks in use, those in threads' caches among them, headers of chunks included.
    pub in_use_bytes: u64,
    /// Bytes of chunks in bins: neither fastbins nor top chunks.
    pub free_bytes: u64,
    /// Bytes of chunks in fastbins (`fsmblks` in mallinfo(3)).
    pub fastbin_bytes: u64,
    /// Bytes of top chunks.
    pub top_bytes: u64,
    /// Bytes of [`ChunkKind::Header`].
    pub header_bytes: u64,
    /// Bytes of chunks in threads' caches, as far as a cache could be proven; they are part of `in_use_bytes`. `None`:
    /// no cache was proven.
    pub tcache_bytes: Option<u64>,
    /// Chunks with a mapping of their own.
    pub mapped_chunks: u64,
    /// Bytes of their mappings.
    pub mapped_bytes: u64,
    /// What the library says of them.
    pub mapped_count: LibraryCount,
    /// What could not be walked or does not agree, one sentence each.
    pub defects: Vec<String>,
}

/// An arena.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arena {
    /// Its `malloc_state`.
    pub address: Address,
    /// Bytes that it says it got from the system.
    pub system_bytes: u64,
    /// What was walked of its memory: part of the `brk` heap, or heaps of up to 64 MiB.
    pub segments: Vec<Range<u64>>,
    /// Number of chunks in use.
    pub chunks_in_use: u64,
    /// As in [`LibcHeap`].
    pub in_use_bytes: u64,
    /// As in [`LibcHeap`].
    pub free_bytes: u64,
    /// As in [`LibcHeap`].
    pub fastbin_bytes: u64,
    /// As in [`LibcHeap`].
    pub top_bytes: u64,
    /// As in [`LibcHeap`].
    pub header_bytes: u64,
}

/// Why no heap could be walked.
#[derive(Debug, Error)]
pub enum LibcError {
    /// No C library among the mappings.
    #[error("no C library is mapped into the process")]
    NoLibrary,
    /// The library's data holds no initialised `main_arena`.
    #[error("no arena was found in the data of {path}; its allocator was never used, or has an unknown layout")]
    NoArena {
        /// The library.
        path: String,
    },
    /// The ring of arenas does not come back with any known layout.
    #[error("the arenas of {path} do not form a ring in any layout that glibc is known to have")]
    UnknownLayout {
        /// The library.
        path: String,
    },
    /// The library's data cannot be read.
    #[error("the data of the C library cannot be read")]
    Unreadable(#[from] Unreadable),
}

/// Walks the heaps of the process.
///
/// `vm` are the carriers of the VM: they lie inside chunks, and no chunk begins inside one. `visit` is called for each
/// piece of each segment by rising address, so that the pieces cover the segment, and then for each chunk with a
/// mapping of its own (the whole block, by rising address). What is a defect is not visited.
pub fn walk(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    vm: &Extents,
    visit: &mut dyn FnMut(ChunkKind, Range<u64>),
) -> Result<LibcHeap, LibcError> {
    let path = view.libc.as_deref().ok_or(LibcError::NoLibrary)?;
    let data = arena::read_data(view, memory, path)?;
    let (layout, places) = arena::find(view, memory, &data, path)?;
    let mut words = Words::new(memory);
    let mut heap = LibcHeap::default();
    let mut claimed = Vec::new();
    let mut suspects = Vec::new();
    let mut caches = tcache::Found::default();
    for place in &places {
        let walked = walk_arena(view, memory, &mut words, vm, layout, *place, &mut heap.defects);
        claimed.extend(walked.segments.iter().map(Walked::range));
        suspects.extend(walked.segments.iter().flat_map(|segment| segment.tcaches.iter().copied()));
        heap.arenas.push(emit(*place, &walked, visit));
    }
    let claimed: Extents = claimed.into_iter().collect();
    caches.prove(memory, &claimed, &suspects);
    let (blocks, count) = mapped::find(view, memory, vm, &claimed, (layout, &data), &mut heap.defects);
    for block in &blocks {
        visit(ChunkKind::Mapped, block.clone());
    }
    heap.mapped_chunks = blocks.len() as u64;
    heap.mapped_bytes = blocks.iter().map(|block| block.end - block.start).sum();
    heap.mapped_count = count;
    add_up(&mut heap);
    heap.tcache_bytes = caches.bytes(heap.in_use_bytes);
    Ok(heap)
}

/// An arena, walked.
#[derive(Debug, Default)]
struct WalkedArena {
    system_bytes: u64,
    segments: Vec<Walked>,
    /// Chunks in fastbins, by rising address.
    fast: Vec<u64>,
}

/// Walks an arena until it agrees with itself.
fn walk_arena<M: ReadMemory + ?Sized>(
    view: &ProcessView,
    memory: &M,
    words: &mut Words<'_, M>,
    vm: &Extents,
    layout: Layout,
    place: Place,
    defects: &mut Vec<String>,
) -> WalkedArena {
    let mut last = (WalkedArena::default(), Vec::new());
    for _ in 0..ATTEMPTS {
        words.forget();
        last = attempt(view, memory, words, vm, layout, place);
        if last.1.is_empty() {
            break;
        }
    }
    let (walked, found) = last;
    defects.extend(found.into_iter().map(|defect| format!("arena {}: {defect}", place.address)));
    walked
}

/// Walks an arena once; what does not agree is in the second value.
fn attempt<M: ReadMemory + ?Sized>(
    view: &ProcessView,
    memory: &M,
    words: &mut Words<'_, M>,
    vm: &Extents,
    layout: Layout,
    place: Place,
) -> (WalkedArena, Vec<String>) {
    let mut defects = Vec::new();
    let mut walked = WalkedArena::default();
    let state = match arena::read_state(memory, layout, place) {
        Ok(state) => state,
        Err(error) => return (walked, vec![error.to_string()]),
    };
    walked.system_bytes = state.system_bytes;
    let (parts, missing) = arena::parts(view, memory, layout, place, &state);
    defects.extend(missing);
    let ranges: Extents = parts.iter().map(|part| part.start..part.end).collect();
    let linking = fastbin::linking(memory, &state.fastbins, &ranges);
    // Bytes of the segments and of what others took from `brk` between them, which the arena counts as its own.
    let mut bytes = 0_u64;
    for part in &parts {
        let Some(first) = segment::first_chunk(words, part, vm) else {
            defects.push(format!("no chunk begins behind {:#x}; not walked up to {:#x}", part.first, part.end));
            continue;
        };
        let mut at = Some(first);
        while let Some(from) = at.take() {
            let result = segment::walk(words, part, from, vm, linking);
            defects.extend(result.defect.clone());
            let next = result.resume(words, part, vm);
            if let Some(next) = next {
                let foreign = next.saturating_sub(result.end);
                bytes = bytes.saturating_add(foreign);
                at = Some(next);
            }
            bytes = bytes.saturating_add(result.end.saturating_sub(result.start));
            walked.segments.push(result);
        }
    }
    let edges = fastbin::Edges::new(walked.segments.iter_mut().flat_map(|segment| segment.edges.drain(..)));
    let (fast, broken) = edges.follow(&state.fastbins);
    walked.fast = fast;
    defects.extend(broken.as_ref().map(ToString::to_string));
    if defects.is_empty() && bytes != state.system_bytes {
        defects.push(format!("its segments have {bytes} bytes, but it got {} from the system", state.system_bytes));
    }
    match arena::read_state(memory, layout, place) {
        Ok(again) if again == state => {}
        Ok(_) => defects.push("it changed while it was walked".to_owned()),
        Err(error) => defects.push(error.to_string()),
    }
    (walked, defects)
}

/// Shows the pieces of an arena, and counts them.
fn emit(place: Place, walked: &WalkedArena, visit: &mut dyn FnMut(ChunkKind, Range<u64>)) -> Arena {
    let mut arena = Arena { address: place.address, system_bytes: walked.system_bytes, ..Arena::default() };
    let mut segments: Vec<&Walked> = walked.segments.iter().filter(|segment| segment.start < segment.end).collect();
    segments.sort_by_key(|segment| segment.start);
    let mut fast = walked.fast.iter().copied().peekable();
    for segment in segments {
        arena.segments.push(segment.range());
        segment.pieces(|kind, piece| {
            while fast.next_if(|chunk| *chunk < piece.start).is_some() {}
            let kind = match fast.peek() {
                Some(chunk) if *chunk == piece.start && kind == ChunkKind::InUse => ChunkKind::Fastbin,
                _ => kind,
            };
            let length = piece.end.saturating_sub(piece.start);
            arena.chunks_in_use += u64::from(kind == ChunkKind::InUse);
            let sum = match kind {
                ChunkKind::InUse | ChunkKind::Mapped => &mut arena.in_use_bytes,
                ChunkKind::Free => &mut arena.free_bytes,
                ChunkKind::Fastbin => &mut arena.fastbin_bytes,
                ChunkKind::Top => &mut arena.top_bytes,
                ChunkKind::Header => &mut arena.header_bytes,
            };
            *sum = sum.saturating_add(length);
            visit(kind, piece);
        });
    }
    arena
}

/// Sums of the arenas.
fn add_up(heap: &mut LibcHeap) {
    let of = |figure: fn(&Arena) -> u64| heap.arenas.iter().fold(0_u64, |sum, arena| sum.saturating_add(figure(arena)));
    let [system, in_use, free] = [of(|it| it.system_bytes), of(|it| it.in_use_bytes), of(|it| it.free_bytes)];
    let [fast, top, header] = [of(|it| it.fastbin_bytes), of(|it| it.top_bytes), of(|it| it.header_bytes)];
    (heap.system_bytes, heap.in_use_bytes, heap.free_bytes) = (system, in_use, free);
    (heap.fastbin_bytes, heap.top_bytes, heap.header_bytes) = (fast, top, header);
}
