//! Where are the arenas, and which memory is theirs?
//!
//! Layouts: `struct malloc_state` and `struct malloc_par` in `malloc/malloc.c`, `struct _heap_info` in `malloc/arena.c`,
//! 64-bit; run with glibc 2.31, 2.36, 2.41 and 2.43 on `x86_64`. Offsets are counted from the bins, since what lies before them differs.

use super::LibcError;
use crate::{
    extents::Extents,
    mapping::{Address, Backing},
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::{read_block, read_words},
};

/// Pairs of pointers in `bins`: `NBINS - 1` (`bin_at(0)` does not exist).
const BINS: u64 = 127;
/// A bin is addressed as if a chunk began 16 bytes before it, so that `fd` and `bk` of that chunk are the bin's.
const CHUNK_TO_POINTERS: u64 = 16;
/// Size words hold flags in the low bits (`SIZE_BITS`).
pub(super) const FLAGS: u64 = 7;
/// `top`, then `last_remainder`, then the bins.
const TOP_BEFORE: u64 = 16;
/// `fastbinsY[NFASTBINS]` ends where `top` begins; `NFASTBINS` is 10.
pub(super) const FASTBINS: usize = 10;
/// Behind the bins: `binmap` (16 bytes), `next`, `next_free`, `attached_threads`, `system_mem`, `max_system_mem`.
const NEXT_BEHIND: u64 = BINS * 16 + 16;
const SYSTEM_BEHIND: u64 = NEXT_BEHIND + 24;
const END_BEHIND: u64 = SYSTEM_BEHIND + 16;
/// Bytes from an arena to its bins: `mutex`, `flags`, `have_fastchunks`, `fastbinsY`, `top`, `last_remainder` (run with
/// 2.31, 2.36 and 2.41), the same without `have_fastchunks` (2.26, not run), and without fastbins (2.43). The ring of
/// arenas decides.
const BINS_AT: [u64; 3] = [112, 104, 24];
/// `HEAP_MAX_SIZE`: twice `DEFAULT_MMAP_THRESHOLD_MAX`, which is 32 MiB on 64 bits. With `glibc.malloc.hugetlb=2` it is
/// four huge pages (`heap_max_size` in `malloc/arena.c`, 2.35 and later), of 2 MiB, 32 MiB, 512 MiB or 1 GiB.
const HEAP_ALIGNMENTS: [u64; 5] = [64 << 20, 8 << 20, 128 << 20, 2 << 30, 4 << 30];
/// Arenas at most: `NARENAS_FROM_NCORES` is eight for each processor, and there are at most 8192 of those.
const MOST_ARENAS: usize = 8 * 8192;
/// Heaps of an arena at most, which is 4 TiB.
const MOST_HEAPS: usize = 1 << 16;
/// The library's data is some 60 kB. More than this is not the library's.
const MOST_DATA: u64 = 16 << 20;

/// The library's data: where it begins, and its words.
pub(super) type Data = Vec<(u64, Vec<u64>)>;

/// What differs between versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bytes from an arena to its bins.
    bins_at: u64,
}

/// An arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: Address,
    pub(super) is_main: bool,
}

/// What an arena says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) top: u64,
    pub(super) system_bytes: u64,
    /// Heads of the lists; empty where the version has none.
    pub(super) fastbins: Vec<u64>,
}

/// A range that holds chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    /// Where the first chunk should begin.
    pub(super) first: u64,
    pub(super) end: u64,
    /// The arena's top chunk, if it is in here.
    pub(super) top: Option<u64>,
    pub(super) is_main: bool,
}

impl Layout {
    /// Whether there are lists before `top`.
    pub(super) fn has_fastbins(self) -> bool {
        self.bins_at > TOP_BEFORE + FASTBINS as u64 * 8
    }

    fn read<const N: usize>(
        self,
        memory: &(impl ReadMemory + ?Sized),
        arena: u64,
        behind_bins: u64,
    ) -> Result<[u64; N], Unreadable> {
        let at = arena.saturating_add(self.bins_at).saturating_add(behind_bins);
        read_words(memory, Address(at))
    }
}

/// Reads the data of the library at `path`.
pub(super) fn read_data(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    path: &str,
) -> Result<Data, LibcError> {
    let ranges = view.data_of(path);
    let read = |range: &std::ops::Range<u64>| {
        let bytes = usize::try_from((range.end - range.start).min(MOST_DATA)).unwrap_or_default();
        Ok((range.start, read_block(memory, Address(range.start), bytes)?))
    };
    ranges.iter().map(read).collect()
}

/// Finds the main arena, the layout, and all arenas.
pub(super) fn find(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    data: &Data,
    path: &str,
) -> Result<(Layout, Vec<Place>), LibcError> {
    let mut layout_known = true;
    // The bins are read once more where the process changed them meanwhile.
    for _ in 0..super::ATTEMPTS {
        for (start, words) in data {
            for index in 0..words.len() {
                let Some(bins) = bins_at(*start, words, index).filter(|bins| are_bins(view, memory, *bins)) else {
                    continue;
                };
                match BINS_AT.iter().find_map(|&bins_at| ring(memory, Layout { bins_at }, bins)) {
                    Some(found) => return Ok(found),
                    None => layout_known = false,
                }
            }
        }
    }
    let path = path.to_owned();
    Err(if layout_known { LibcError::NoArena { path } } else { LibcError::UnknownLayout { path } })
}

/// The address of the words from `index` on, if they have the shape of bins: each empty or with two pointers. The last
/// is always empty, since `largebin_index` ends at 126.
fn bins_at(start: u64, words: &[u64], index: usize) -> Option<u64> {
    let bins = words.get(index..)?.get(..usize::try_from(2 * BINS).ok()?)?;
    let at = start.checked_add(index as u64 * 8)?;
    let own = |pair: usize| (at + pair as u64 * 16).wrapping_sub(CHUNK_TO_POINTERS);
    let (pairs, _) = bins.as_chunks::<2>();
    let last = pairs.last()?;
    if last != &[own(pairs.len() - 1); 2] {
        return None;
    }
    let is_bin = |(pair, [forward, back]): (usize, &[u64; 2])| {
        let own = own(pair);
        let is_chunk = |pointer: u64| pointer != own && pointer.is_multiple_of(16) && pointer > 4096;
        (*forward == own && *back == own) || (is_chunk(*forward) && is_chunk(*back))
    };
    pairs.iter().enumerate().all(is_bin).then_some(at)
}

/// Whether the first chunk of each bin leads back to it, and the last one on to it.
fn are_bins(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), bins: u64) -> bool {
    let Ok(now) = read_words::<{ 2 * 127 }>(memory, Address(bins)) else { return false };
    let (pairs, _) = now.as_chunks::<2>();
    let mut asked = Vec::new();
    for (pair, [forward, back]) in (0..).zip(pairs) {
        let own = (bins + pair * 16).wrapping_sub(CHUNK_TO_POINTERS);
        if *forward == own && *back == own {
            continue;
        }
        // `bk` of the first chunk, `fd` of the last.
        let both = (forward.checked_add(24), back.checked_add(16));
        let (Some(first), Some(last)) = both else { return false };
        if !view.is_readable(Address(first)) || !view.is_readable(Address(last)) {
            return false;
        }
        asked.extend([(own, first), (own, last)]);
    }
    let ranges: Vec<_> = asked.iter().map(|(_, at)| (Address(*at), 8)).collect();
    let read = memory.read_many(&ranges);
    asked.iter().zip(read).all(|((own, _), bytes)| bytes.is_ok_and(|bytes| bytes == own.to_le_bytes()))
}

/// The arenas behind the main one, if `next` leads around.
fn ring(memory: &(impl ReadMemory + ?Sized), layout: Layout, bins: u64) -> Option<(Layout, Vec<Place>)> {
    let main = bins.checked_sub(layout.bins_at)?;
    let mut places = vec![Place { address: Address(main), is_main: true }];
    let mut at = main;
    loop {
        let [next] = layout.read::<1>(memory, at, NEXT_BEHIND).ok()?;
        if next == main {
            return Some((layout, places));
        }
        let is_no_arena = !next.is_multiple_of(8) || places.len() >= MOST_ARENAS || next <= 4096;
        // An arena outside of the library's data lies in a heap that names it.
        if is_no_arena || heap_of(memory, next, next).is_none() {
            return None;
        }
        places.push(Place { address: Address(next), is_main: false });
        at = next;
    }
}

/// The heap that holds `within` and belongs to `arena`: its address, the heap before it, its bytes.
fn heap_of(memory: &(impl ReadMemory + ?Sized), arena: u64, within: u64) -> Option<(u64, u64, u64)> {
    HEAP_ALIGNMENTS.iter().find_map(|&alignment| {
        let heap = within & !(alignment - 1);
        let [owner, before, bytes] = read_words(memory, Address(heap)).ok()?;
        let holds = bytes <= alignment && within - heap < bytes;
        (owner == arena && holds && before.is_multiple_of(alignment)).then_some((heap, before, bytes))
    })
}

/// What the arena says of itself now.
pub(super) fn read_state(
    memory: &(impl ReadMemory + ?Sized),
    layout: Layout,
    place: Place,
) -> Result<State, Unreadable> {
    let Place { address, .. } = place;
    let before = layout.bins_at.saturating_sub(TOP_BEFORE);
    let [top] = read_words(memory, Address(address.0.saturating_add(before)))?;
    let [system_bytes] = layout.read(memory, address.0, SYSTEM_BEHIND)?;
    let lists = FASTBINS as u64 * 8;
    let fastbins = match before.checked_sub(lists) {
        Some(lists_at) => read_block(memory, Address(address.0.saturating_add(lists_at)), FASTBINS * 8)?,
        None => Vec::new(),
    };
    Ok(State { top, system_bytes, fastbins })
}

/// The ranges in which an arena's chunks lie, and what of it could not be found.
pub(super) fn parts(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    layout: Layout,
    place: Place,
    state: &State,
) -> (Vec<Part>, Option<String>) {
    if place.is_main { main_part(view, state) } else { heaps(memory, layout, place, state) }
}

/// The heap that `brk` moves, up to the end of the top chunk.
fn main_part(view: &ProcessView, state: &State) -> (Vec<Part>, Option<String>) {
    let top = state.top;
    let heap: Extents = view
        .mappings
        .iter()
        .filter(|memory| memory.mapping.backing == Backing::Heap && memory.mapping.permissions.write)
        .map(|memory| memory.mapping.start.0..memory.mapping.end.0)
        .collect();
    // An arena that was never used has its first bin as its top (`initial_top`), and no memory.
    if state.system_bytes == 0 {
        return (Vec::new(), None);
    }
    let Some(range) = heap.find(Address(top)) else {
        let defect =
            format!("its top chunk {top:#x} is not in the brk heap; {} bytes of it are not walked", state.system_bytes);
        return (Vec::new(), Some(defect));
    };
    let part = Part { start: range.start, first: range.start, end: range.end, top: Some(top), is_main: true };
    (vec![part], None)
}

/// The heaps of an arena other than the main one, from the newest, which has the top chunk, to the first, which holds
/// the arena itself.
fn heaps(
    memory: &(impl ReadMemory + ?Sized),
    layout: Layout,
    place: Place,
    state: &State,
) -> (Vec<Part>, Option<String>) {
    let arena = place.address.0;
    let mut parts = Vec::new();
    // The arena follows its heap's `heap_info` (`new_arena`: `h + 1`), whose size is thereby known.
    let info = heap_of(memory, arena, arena).map(|(heap, ..)| arena - heap);
    let (mut within, mut top) = (state.top, Some(state.top));
    while let (Some(info), Some((heap, before, bytes))) = (info, heap_of(memory, arena, within)) {
        let is_first = heap.checked_add(info) == Some(arena);
        let chunks =
            if is_first { arena.saturating_add(layout.bins_at + END_BEHIND) } else { heap.saturating_add(info) };
        let Some(first) = chunks.checked_next_multiple_of(16) else { break };
        parts.push(Part { start: heap, first, end: heap.saturating_add(bytes), top: top.take(), is_main: false });
        if is_first && before == 0 {
            return (parts, None);
        }
        if parts.len() >= MOST_HEAPS || before == 0 {
            break;
        }
        within = before;
    }
    (parts, Some("the list of its heaps does not end at the arena itself; the others are not walked".to_owned()))
}
