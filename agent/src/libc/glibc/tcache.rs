//! How many bytes do the threads' caches hold?
//!
//! `struct tcache_perthread_struct`, `malloc/malloc.c`: numbers for each size, then the head of each size's list. It is
//! an ordinary chunk and nothing points to it but its thread, so it is looked for among chunks of its size, and counts
//! only if every list has exactly the length that its number says and each chunk in it the size of its list.

use crate::{extents::Extents, mapping::Address, target::memory::ReadMemory};

/// Lists for chunks of one size each: `TCACHE_SMALL_BINS`, or `TCACHE_MAX_BINS` before 2.42.
const SMALL_LISTS: usize = 64;

/// A chunk that may be a thread's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) chunk: u64,
    pub(super) size: u64,
}

/// How a version of glibc lays out a cache.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Bytes of its chunk.
    size: u64,
    lists: usize,
    /// Bytes of a number.
    number: usize,
    /// The numbers say how many chunks still fit, not how many there are.
    counts_down: bool,
}

/// Before 2.30 (not run), from then on (run with 2.31, 2.36 and 2.41), and 2.43 (run). A form that does not fit proves no
/// cache.
const FORMS: [Form; 3] = [
    Form { size: 0x250, lists: 64, number: 1, counts_down: false },
    Form { size: 0x290, lists: 64, number: 2, counts_down: false },
    Form { size: 0x300, lists: 76, number: 2, counts_down: true },
];

/// Whether a cache has a chunk of `size`.
pub(super) fn is_size(size: u64) -> bool {
    FORMS.iter().any(|form| form.size == size)
}

/// The caches that were proven.
#[derive(Debug, Default)]
pub(super) struct Found {
    caches: u64,
    bytes: u64,
}

/// A list that is being followed.
#[derive(Debug)]
struct List {
    cache: usize,
    index: usize,
    at: u64,
    left: u64,
}

impl Found {
    /// Bytes in the caches; they are all in use by boundary tags.
    pub(super) fn bytes(&self, in_use: u64) -> Option<u64> {
        (self.caches > 0 && self.bytes <= in_use).then_some(self.bytes)
    }

    /// Follows the lists of all suspects, one chunk of each list at a time.
    pub(super) fn prove(&mut self, memory: &(impl ReadMemory + ?Sized), heaps: &Extents, suspects: &[Suspect]) {
        let asked: Vec<_> = suspects
            .iter()
            .filter_map(|suspect| {
                Some((Address(suspect.chunk.checked_add(16)?), usize::try_from(suspect.size).ok()? - 16))
            })
            .collect();
        // Bytes in each cache, as long as it is believed.
        let mut trusted: Vec<Option<u64>> = Vec::new();
        let mut lists = Vec::new();
        for (suspect, content) in suspects.iter().zip(memory.read_many(&asked)) {
            let found = content.ok().and_then(|content| heads(suspect.size, &content));
            let number = trusted.len();
            trusted.push(found.as_ref().map(|_| 0));
            lists.extend(found.into_iter().flatten().map(|(index, at, left)| List { cache: number, index, at, left }));
        }
        while !lists.is_empty() {
            lists.retain(|list| trusted.get(list.cache).is_some_and(Option::is_some));
            let asked: Vec<_> = lists.iter().map(|list| (Address(list.at.saturating_sub(8)), 16)).collect();
            for (list, content) in lists.iter_mut().zip(memory.read_many(&asked)) {
                let Some(bytes) = trusted.get_mut(list.cache) else { continue };
                let content = content.ok().filter(|_| heaps.find(Address(list.at)).is_some());
                *bytes =
                    content.zip(*bytes).and_then(|(content, sum)| sum.checked_add(advance(list, &content, heaps)?));
            }
            lists.retain(|list| list.left > 0);
        }
        for bytes in trusted.into_iter().flatten() {
            self.caches += 1;
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }
}

/// Index, head and length of each list that is not empty; `None` where numbers and heads do not fit, or all are empty.
fn heads(size: u64, content: &[u8]) -> Option<Vec<(usize, u64, u64)>> {
    let form = FORMS.iter().find(|form| form.size == size)?;
    let numbers = content.get(..form.lists * form.number)?.chunks(form.number);
    let numbers: Vec<u64> =
        numbers.map(|bytes| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))).collect();
    let (words, _) = content.get(form.lists * form.number..)?.as_chunks::<8>();
    let words: Vec<u64> = words.iter().copied().map(u64::from_le_bytes).take(form.lists).collect();
    // What fits into an empty list fits into each.
    let room = if form.counts_down {
        words.iter().zip(&numbers).find(|(word, _)| **word == 0).map(|(_, number)| *number)?
    } else {
        0
    };
    let mut heads = Vec::new();
    for (index, (&word, &number)) in words.iter().zip(&numbers).enumerate() {
        let length = if form.counts_down { room.checked_sub(number)? } else { number };
        if (word == 0) != (length == 0) || !word.is_multiple_of(16) {
            return None;
        }
        if word != 0 {
            heads.push((index, word, length));
        }
    }
    (!heads.is_empty()).then_some(heads)
}

/// Passes the chunk whose size and pointer to the next are `content`; its bytes, if it fits.
fn advance(list: &mut List, content: &[u8], heaps: &Extents) -> Option<u64> {
    let [size, raw] = *content.as_chunks::<8>().0 else { return None };
    let size = u64::from_le_bytes(size) & !super::arena::FLAGS;
    let raw = u64::from_le_bytes(raw);
    let smallest = (list.index as u64 + 2) * 16;
    let fits = if list.index < SMALL_LISTS { size == smallest } else { size >= (SMALL_LISTS as u64 + 2) * 16 };
    list.left = list.left.checked_sub(1)?;
    let protected = raw ^ (list.at >> 12);
    let next = if list.left == 0 {
        // The end of a list, plain or protected.
        (raw == 0 || protected == 0).then_some(0)?
    } else {
        let leads = |next: &u64| next.is_multiple_of(16) && heaps.find(Address(*next)).is_some();
        [protected, raw].into_iter().find(leads)?
    };
    list.at = next;
    fits.then_some(size)
}
