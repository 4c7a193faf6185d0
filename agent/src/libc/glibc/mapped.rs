//! Which mappings are chunks of their own?
//!
//! `sysmalloc_mmap` in `malloc/malloc.c`: a chunk that is too large for an arena gets whole pages, and begins with the
//! first of them. Its size word has `IS_MMAPPED` and no other flag; up to 2.42 the size is that of the pages, in 2.43 it
//! is 16 bytes less. An aligned chunk (`_int_memalign`) begins further up, but the header that was written first stays
//! where it was and still spans all pages.
//!
//! Any page can begin like that by chance. What was found is therefore compared with what the library counts in `mp_`
//! (`struct malloc_par`), and the caller is told if the two differ or the count was not found.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::arena::{Data, FLAGS, Layout};
use crate::{
    extents::Extents,
    mapping::{Address, Backing},
    target::memory::ReadMemory,
    view::{ProcessView, Residency},
    words::read_words,
};

/// `IS_MMAPPED` alone.
const MAPPED: u64 = 2;
/// What 2.43 leaves out of the size (`CHUNK_HDR_SZ`).
const LEFT_OUT: u64 = 16;
/// `DEFAULT_MMAP_MAX`.
const MOST_CHUNKS: u64 = 65536;
/// The most pages that are looked at in one call.
const LARGEST_BATCH: usize = 1024;

/// Whether the library's own count of these chunks (`n_mmaps`, `mmapped_mem`) is what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LibraryCount {
    /// It is, to less than a page: 2.43 counts 16 bytes too many at each `mremap`.
    Agrees,
    /// It is not.
    Differs {
        /// Chunks that the library counts.
        chunks: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// It was not found, so that what was found has no proof.
    #[default]
    NotFound,
}

/// The blocks of mapped chunks by rising address, and the library's count.
pub(super) fn find(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    vm: &Extents,
    heaps: &Extents,
    (layout, data): (Layout, &Data),
    defects: &mut Vec<String>,
) -> (Vec<Range<u64>>, LibraryCount) {
    if !view.page_size.is_power_of_two() || view.page_size < LEFT_OUT {
        defects.push(format!(
            "chunks with a mapping of their own were not looked for: {} is no page size",
            view.page_size
        ));
        return (Vec::new(), LibraryCount::NotFound);
    }
    if matches!(view.resident, Residency::Mappings(_)) {
        defects.push(
            "which pages are resident is not known, so chunks with a mapping of their own were only looked for at the \
             begin of mappings and behind carriers and each other"
                .to_owned(),
        );
    }
    let count_at = count_at(view, data);
    let count = || count_at.and_then(|at| read_count(memory, at));
    let mut best = (Vec::new(), LibraryCount::NotFound);
    for _ in 0..super::ATTEMPTS {
        let counted = count();
        best = (Vec::new(), LibraryCount::NotFound);
        // 2.43 has no fastbins either; the other form is tried where this one does not agree.
        let forms = if layout.has_fastbins() { [0, LEFT_OUT] } else { [LEFT_OUT, 0] };
        for left_out in forms {
            let blocks = Scan::new(view, memory, vm, heaps, left_out).run();
            let verdict = judge(&blocks, counted, view.page_size);
            if verdict == LibraryCount::Agrees {
                return (blocks, verdict);
            }
            if best.0.is_empty() || best.0.len() < blocks.len() {
                best = (blocks, verdict);
            }
        }
        // With a count that stays the same, another look sees the same.
        if counted == count() {
            break;
        }
    }
    match best.1 {
        LibraryCount::Differs { chunks, bytes } => {
            let found: u64 = best.0.iter().map(|block| block.end - block.start).sum();
            let number = best.0.len();
            defects.push(format!(
                "{number} chunks with a mapping of their own were found, of {found} bytes, but the library counts \
                 {chunks} of {bytes} bytes"
            ));
        }
        LibraryCount::NotFound => {
            defects.push("the library's count of chunks with a mapping of their own was not found".to_owned());
        }
        LibraryCount::Agrees => {}
    }
    best
}

fn judge(blocks: &[Range<u64>], counted: Option<(u64, u64)>, page: u64) -> LibraryCount {
    let found: u64 = blocks.iter().map(|block| block.end - block.start).sum();
    match counted {
        None => LibraryCount::NotFound,
        Some((chunks, bytes)) if chunks == blocks.len() as u64 && bytes.abs_diff(found) < page => LibraryCount::Agrees,
        Some((chunks, bytes)) => LibraryCount::Differs { chunks, bytes },
    }
}

/// Where `mp_.sbrk_base` is: it says where the `brk` heap begins, and `mmapped_mem` and `max_mmapped_mem` stand before
/// it, and before these `n_mmaps`, `n_mmaps_max`, `max_n_mmaps` and `no_dyn_threshold`, of 32 bits each.
fn count_at(view: &ProcessView, data: &Data) -> Option<CountAt> {
    let heap = view.mappings.iter().find(|memory| memory.mapping.backing == Backing::Heap)?.mapping.start.0;
    data.iter().find_map(|(start, words)| {
        words.windows(6).enumerate().find_map(|(index, window)| {
            let window: &[u64; 6] = window.first_chunk()?;
            let at = Address(start.checked_add(index as u64 * 8)?);
            // Before 2.35 there are no three fields for huge pages before `n_mmaps`, so that no padding is needed.
            [false, true]
                .into_iter()
                .map(|padded| CountAt { at, padded })
                .find(|place| window.last() == Some(&heap) && place.of(window).is_some())
        })
    })
}

/// Five words before `sbrk_base`.
#[derive(Clone, Copy, Debug)]
struct CountAt {
    at: Address,
    padded: bool,
}

impl CountAt {
    /// Number and bytes of the chunks, if the words can be what they are taken for.
    fn of(self, words: &[u64; 6]) -> Option<(u64, u64)> {
        let [first, second, _, bytes, most_bytes, _] = *words;
        let halves = |word: u64| (word & 0xffff_ffff, word >> 32);
        let ((_, padded), (low, high)) = (halves(first), halves(second));
        let (number, limit) = if self.padded { (padded, low) } else { (low, high) };
        (limit == MOST_CHUNKS && number <= MOST_CHUNKS && bytes <= most_bytes).then_some((number, bytes))
    }
}

fn read_count(memory: &(impl ReadMemory + ?Sized), place: CountAt) -> Option<(u64, u64)> {
    place.of(&read_words(memory, place.at).ok()?)
}

/// A pass over all places at which a chunk can begin.
struct Scan<'a, M: ?Sized> {
    memory: &'a M,
    vm: &'a Extents,
    heaps: &'a Extents,
    /// Resident pages, if known.
    pages: Option<&'a Extents>,
    page: u64,
    left_out: u64,
    /// Private anonymous memory that can be written, neighbours joined: a chunk can lie across mappings.
    areas: Extents,
}

impl<'a, M: ReadMemory + ?Sized> Scan<'a, M> {
    fn new(view: &'a ProcessView, memory: &'a M, vm: &'a Extents, heaps: &'a Extents, left_out: u64) -> Self {
        let is_area = |mapping: &crate::mapping::Mapping| {
            let permissions = mapping.permissions;
            mapping.backing == Backing::Anonymous && permissions.read && permissions.write && !permissions.shared
        };
        let mappings = view.mappings.iter().map(|memory| &memory.mapping).filter(|mapping| is_area(mapping));
        let areas = mappings.map(|mapping| mapping.start.0..mapping.end.0).collect();
        let pages = match &view.resident {
            Residency::Pages(pages) => Some(pages),
            Residency::Mappings(_) => None,
        };
        Self { memory, vm, heaps, pages, page: view.page_size, left_out, areas }
    }

    /// Looks at few pages after a chunk, since the next one often follows, and at more and more where there is none.
    fn run(&self) -> Vec<Range<u64>> {
        let mut blocks = Vec::new();
        let (mut from, mut batch) = (0, 1);
        loop {
            let mut places = Vec::new();
            let mut next = from;
            while places.len() < batch
                && let Some(place) = self.place(next)
            {
                places.push((Address(place), 16));
                next = self.behind(place);
            }
            if places.is_empty() {
                return blocks;
            }
            let headers = self.memory.peek_many(&places);
            let found = places.iter().zip(headers).find_map(|((at, _), bytes)| {
                let bytes = bytes.ok()?;
                let block = self.block(at.0, &bytes)?;
                self.memory.used(*at, &bytes);
                Some(block)
            });
            batch = if found.is_some() { 1 } else { (batch * 2).min(LARGEST_BATCH) };
            from = found.as_ref().map_or(next, |block| block.end);
            blocks.extend(found);
        }
    }

    /// The first place from `from` on at which a chunk can begin.
    fn place(&self, from: u64) -> Option<u64> {
        let mut at = from.checked_next_multiple_of(self.page)?;
        loop {
            let mut next = self.areas.parts_in(at..u64::MAX).next()?.start;
            if let Some(pages) = self.pages {
                next = pages.parts_in(next..u64::MAX).next()?.start;
            }
            next = next.checked_next_multiple_of(self.page)?;
            let taken = self.vm.find(Address(next)).or_else(|| self.heaps.find(Address(next)));
            if let Some(taken) = taken {
                next = taken.end.checked_next_multiple_of(self.page)?;
            } else if next == at || self.areas.find(Address(next)).is_some() && self.is_resident(next) {
                return Some(next);
            }
            at = next;
        }
    }

    fn is_resident(&self, at: u64) -> bool {
        self.pages.is_none_or(|pages| pages.find(Address(at)).is_some())
    }

    /// Where to look after a place at which no chunk began.
    fn behind(&self, place: u64) -> u64 {
        if self.pages.is_some() {
            return place.saturating_add(self.page);
        }
        let area = self.areas.find(Address(place)).map_or(u64::MAX, |area| area.end);
        let carrier = self.vm.parts_in(place..area).next().map_or(area, |carrier| carrier.end);
        carrier.max(place.saturating_add(self.page))
    }

    /// The block of the chunk whose first words are `header`.
    fn block(&self, at: u64, header: &[u8]) -> Option<Range<u64>> {
        let [before, head] = *header.as_chunks::<8>().0 else { return None };
        let (before, head) = (u64::from_le_bytes(before), u64::from_le_bytes(head));
        // What lies before the chunk: nothing. 2.43 says in the lowest bit whether the pages are huge.
        let is_begin = before == 0 || (before == 1 && self.left_out != 0);
        let length = (head & !FLAGS).checked_add(self.left_out)?;
        if !is_begin || head & FLAGS != MAPPED || length < self.page || !length.is_multiple_of(self.page) {
            return None;
        }
        let block = at..at.checked_add(length)?;
        let area = self.areas.find(Address(at))?;
        (block.end <= area.end && self.heaps.bytes_in(&block) == 0).then_some(block)
    }
}
