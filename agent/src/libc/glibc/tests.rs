//! Heaps that a test made up, whole and broken.

use proptest::prelude::*;

use super::*;
use crate::{
    mapping::{Backing, Mapping, Permissions},
    target::memory::MemoryImage,
    view::{MappedMemory, Residency},
};

const DATA: u64 = 0x7f00_0000_0000;
const BRK: u64 = 0x5555_0000_0000;
const MAPPED: u64 = 0x7f10_0000_0000;
const PAGE: u64 = 4096;
/// In the data, with room for `mp_` before it.
const ARENA: u64 = DATA + 0x100;
const IN_USE: u64 = 1;

/// A heap under construction: one arena, and one chunk with a mapping of its own.
struct Builder {
    data: Vec<u64>,
    heap: Vec<u64>,
    mapped: Vec<u64>,
    bins_at: u64,
    before_in_use: u64,
}

impl Builder {
    fn new(bins_at: u64) -> Self {
        let mut builder =
            Self { data: vec![0; 512], heap: Vec::new(), mapped: vec![0; 2 * 512], bins_at, before_in_use: IN_USE };
        let bins = ARENA + bins_at;
        for bin in 0..127 {
            builder.set(bins + bin * 16, bins + bin * 16 - 16);
            builder.set(bins + bin * 16 + 8, bins + bin * 16 - 16);
        }
        builder.set(bins + 127 * 16 + 16, ARENA);
        builder
    }

    fn set(&mut self, at: u64, word: u64) {
        self.data[usize::try_from((at - DATA) / 8).unwrap()] = word;
    }

    fn end(&self) -> u64 {
        BRK + self.heap.len() as u64 * 8
    }

    fn chunk(&mut self, size: u64, content: u64) -> u64 {
        let at = self.end();
        self.heap.extend([0, size | self.before_in_use, content]);
        self.heap.resize(self.heap.len() + usize::try_from(size / 8).unwrap() - 3, 0);
        self.before_in_use = IN_USE;
        at
    }

    /// A free chunk, alone in the bin for unsorted ones.
    fn free(&mut self, size: u64) {
        let bins = ARENA + self.bins_at;
        let at = self.chunk(size, bins - 16);
        let index = usize::try_from((at - BRK) / 8).unwrap();
        self.heap[index + 3] = bins - 16;
        self.set(bins, at);
        self.set(bins + 8, at);
        self.before_in_use = 0;
    }

    /// Ends the heap with a top chunk, as the whole pages that it then has.
    fn finish(mut self) -> (MemoryImage, ProcessView) {
        let top = self.end();
        // The word before belongs to a free chunk: its size once more.
        let end = (top + 64).next_multiple_of(PAGE);
        self.heap.extend([0, (end - top) | self.before_in_use]);
        self.heap.resize(usize::try_from((end - BRK) / 8).unwrap(), 0);
        self.set(ARENA + self.bins_at - 16, top);
        self.set(ARENA + self.bins_at + 127 * 16 + 40, end - BRK);
        self.mapped[1] = (2 * PAGE - if self.bins_at == 24 { 16 } else { 0 }) | 2;
        // `mp_`: numbers, and where the heap begins.
        for (index, word) in [1 << 32, 65536 | 1 << 32, 0, 2 * PAGE, 2 * PAGE, BRK].into_iter().enumerate() {
            self.set(DATA + 8 * index as u64, word);
        }
        self.footers();
        let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let image = MemoryImage(vec![
            (Address(DATA), bytes(&self.data)),
            (Address(BRK), bytes(&self.heap)),
            (Address(MAPPED), bytes(&self.mapped)),
        ]);
        let libc = "/libc.so.6".to_owned();
        let mappings = vec![
            mapping(BRK..end, Backing::Heap),
            mapping(DATA..DATA + PAGE, Backing::File(libc.clone())),
            mapping(MAPPED..MAPPED + 2 * PAGE, Backing::Anonymous),
        ];
        let resident = Residency::Pages(mappings.iter().map(|it| it.mapping.start.0..it.mapping.end.0).collect());
        let view = ProcessView { mappings, resident, page_size: PAGE, libc: Some(libc), ..ProcessView::default() };
        (image, view)
    }

    fn footers(&mut self) {
        let mut index = 0;
        while let Some(size) = self.heap.get(index + 1).map(|head| usize::try_from((head & !7) / 8).unwrap()) {
            if self.heap.get(index + size + 1).is_some_and(|head| head & IN_USE == 0) {
                self.heap[index + size] = size as u64 * 8;
            }
            index += size;
        }
    }
}

fn mapping(range: Range<u64>, backing: Backing) -> MappedMemory {
    let permissions = Permissions { read: true, write: true, execute: false, shared: false };
    let mapping =
        Mapping { start: Address(range.start), end: Address(range.end), file_offset: 0, permissions, backing };
    MappedMemory { mapping, rss: 0, pss: 0, anonymous: 0, swap: 0, lazy_free: 0, huge: 0 }
}

/// Chunks in use, a free one, two in a fastbin.
fn small(bins_at: u64, protected: bool) -> (MemoryImage, ProcessView) {
    let mut builder = Builder::new(bins_at);
    builder.chunk(0x290, 0);
    let protect = |at: u64, next: u64| if protected { next ^ ((at + 16) >> 12) } else { next };
    let first = builder.end();
    builder.chunk(80, protect(first, 0));
    builder.chunk(4096, 7);
    builder.free(256);
    let second = builder.end();
    builder.chunk(80, protect(second, first));
    if bins_at > 24 {
        builder.set(ARENA + bins_at - 96 + 3 * 8, second);
    }
    builder.chunk(32, 0);
    builder.finish()
}

fn walk_all(image: &MemoryImage, view: &ProcessView, vm: &Extents) -> (LibcHeap, Vec<(ChunkKind, Range<u64>)>) {
    let mut pieces = Vec::new();
    let heap = walk(view, image, vm, &mut |kind, piece| pieces.push((kind, piece))).unwrap();
    (heap, pieces)
}

#[test]
fn tells_the_kinds_apart() {
    for (bins_at, protected) in [(112, true), (112, false), (104, false), (24, true)] {
        let (image, view) = small(bins_at, protected);
        let (heap, pieces) = walk_all(&image, &view, &Extents::default());
        assert_eq!(heap.defects, Vec::<String>::new(), "{bins_at} {protected}");
        let fast = if bins_at > 24 { 160 } else { 0 };
        assert_eq!((heap.fastbin_bytes, heap.free_bytes), (fast, 256));
        assert_eq!(heap.in_use_bytes, 0x290 + 4096 + 32 + 160 - fast);
        assert_eq!((heap.system_bytes, heap.mapped_bytes), (2 * PAGE, 2 * PAGE));
        assert_eq!(heap.mapped_count, LibraryCount::Agrees);
        assert_eq!(pieces.last(), Some(&(ChunkKind::Mapped, MAPPED..MAPPED + 2 * PAGE)));
        assert!(pieces.windows(2).all(|pair| pair[0].1.end <= pair[1].1.start));
    }
}

/// A carrier may reach into the word that the next chunk's header begins with, but not to its size.
#[test]
fn no_chunk_begins_in_a_carrier() {
    let (image, view) = small(112, true);
    let chunk = BRK + 0x290 + 80;
    let fits = Extents::from(vec![(chunk + 16, chunk + 4096 + 8)]);
    assert_eq!(walk_all(&image, &view, &fits).0.defects, Vec::<String>::new());
    let too_long = Extents::from(vec![(chunk + 16, chunk + 4096 + 16)]);
    let (heap, pieces) = walk_all(&image, &view, &too_long);
    assert!(heap.defects.iter().any(|defect| defect.contains("carrier")), "{:?}", heap.defects);
    assert!(pieces.iter().all(|(kind, piece)| *kind == ChunkKind::Mapped || piece.end <= chunk + 4096));
}

proptest! {
    #[test]
    fn broken_heaps_end_and_add_up(
        changes in prop::collection::vec((0_usize..3, 0_usize..2048, any::<u64>(), 0_u32..64), 1..8),
    ) {
        let (mut image, view) = small(112, true);
        for (part, word, value, shift) in changes {
            let bytes = &mut image.0[part].1;
            let word = word % (bytes.len() / 8);
            bytes[word * 8..word * 8 + 8].copy_from_slice(&(value >> shift).to_le_bytes());
        }
        let mut pieces = Vec::new();
        let walked = walk(&view, &image, &Extents::default(), &mut |kind, piece| pieces.push((kind, piece)));
        if let Ok(heap) = walked {
            let segments = heap.arenas.iter().flat_map(|arena| &arena.segments);
            let bytes: u64 = segments.map(|segment| segment.end - segment.start).sum();
            let sum = heap.in_use_bytes + heap.free_bytes + heap.fastbin_bytes + heap.top_bytes + heap.header_bytes;
            prop_assert_eq!(sum, bytes);
            prop_assert!(pieces.windows(2).all(|pair| pair[0].1.end <= pair[1].1.start));
            let visited: u64 = pieces.iter().map(|(_, piece)| piece.end - piece.start).sum();
            prop_assert_eq!(visited, bytes + heap.mapped_bytes);
            prop_assert!(bytes == heap.system_bytes || !heap.defects.is_empty());
        }
    }
}
