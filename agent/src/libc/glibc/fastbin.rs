//! Which chunks are in fastbins, though boundary tags call them in use?
//!
//! A fastbin is a list of chunks of one size. There can be millions, in any order, so that following the pointers in
//! the process would take a system call for each. Instead the walk through a segment, which passes every chunk anyway,
//! notes where each small chunk would lead to if it were in a list; the lists are followed in these notes.

use thiserror::Error;

use super::arena::FASTBINS;
use crate::{extents::Extents, mapping::Address, target::memory::ReadMemory};

/// `request2size (MAX_FAST_SIZE)`: the largest chunk that can be in a fastbin, whatever `M_MXFAST` is.
pub(super) const LARGEST: u64 = 176;
/// A chunk begins so many bytes before its `fd`.
const POINTER_BEHIND: u64 = 16;

/// How a chunk names the next one of its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Linking {
    /// By its address.
    Plain,
    /// By its address, xor the address of the pointer without its lowest twelve bits (`PROTECT_PTR`, 2.32 and later).
    Protected,
    /// All lists are empty, or their begin does not tell.
    Unknown,
}

/// From a chunk to the next one of its list, or to 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    /// The chunk's address, and in the low bits, which are 0, the number of the list for its size.
    key: u64,
    next: u64,
}

/// A list that does not hold together.
#[derive(Debug, PartialEq, Eq, Error)]
pub(super) enum Broken {
    #[error("fastbin {list} leads to {at:#x}, which is no chunk of its size; what follows is counted as in use")]
    Lost { list: usize, at: u64 },
    #[error("fastbin {list} comes back to {at:#x}")]
    Cycle { list: usize, at: u64 },
}

impl Linking {
    /// The chunk that the pointer `raw` in the chunk `at` leads to.
    fn next(self, at: u64, raw: u64) -> Option<u64> {
        match self {
            Self::Plain => Some(raw),
            Self::Protected => Some(raw ^ (at.checked_add(POINTER_BEHIND)? >> 12)),
            Self::Unknown => None,
        }
    }

    /// Where the chunk `at` leads to if it is in a list.
    #[inline]
    pub(super) fn edge(self, at: u64, size: u64, raw: u64) -> Option<Edge> {
        let list = list_of(size)?;
        let next = self.next(at, raw)?;
        // Chunks in use hold anything here; most of it is no address of a chunk.
        (next.is_multiple_of(16) && next < 1 << 56).then_some(Edge { key: at | list, next })
    }
}

/// `fastbin_index`.
fn list_of(size: u64) -> Option<u64> {
    if size <= LARGEST { (size / 16).checked_sub(2) } else { None }
}

/// Finds out how lists are linked, from what the first chunks hold.
pub(super) fn linking(memory: &(impl ReadMemory + ?Sized), heads: &[u64], ranges: &Extents) -> Linking {
    let heads: Vec<u64> = heads.iter().copied().filter(|head| *head != 0).collect();
    let asked: Vec<_> = heads.iter().filter_map(|head| Some((Address(head.checked_add(POINTER_BEHIND)?), 8))).collect();
    let leads = |next: Option<u64>| {
        next.is_some_and(|next| next == 0 || (next.is_multiple_of(16) && ranges.find(Address(next)).is_some()))
    };
    let (mut plain, mut protected) = (false, false);
    for ((at, _), bytes) in asked.iter().zip(memory.read_many(&asked)) {
        let Some(raw) = bytes.ok().and_then(|bytes| bytes.first_chunk().copied()).map(u64::from_le_bytes) else {
            return Linking::Unknown;
        };
        let head = at.0.saturating_sub(POINTER_BEHIND);
        match (leads(Linking::Plain.next(head, raw)), leads(Linking::Protected.next(head, raw))) {
            (true, false) => plain = true,
            (false, true) => protected = true,
            _ => {}
        }
    }
    match (plain, protected) {
        (true, false) => Linking::Plain,
        (false, true) => Linking::Protected,
        _ => Linking::Unknown,
    }
}

/// All notes of an arena.
#[derive(Debug)]
pub(super) struct Edges(Vec<Edge>);

impl Edges {
    pub(super) fn new(edges: impl Iterator<Item = Edge>) -> Self {
        let mut edges: Vec<Edge> = edges.collect();
        edges.sort_unstable();
        edges.dedup_by_key(|edge| edge.key);
        Self(edges)
    }

    /// Follows the lists that begin at `heads`: the chunks in them by rising address, and the first list that does not
    /// hold together.
    pub(super) fn follow(&self, heads: &[u64]) -> (Vec<u64>, Option<Broken>) {
        let Self(edges) = self;
        let mut seen = vec![false; edges.len()];
        let mut broken = None;
        for (list, &head) in heads.iter().enumerate().take(FASTBINS) {
            let mut at = head;
            while at != 0 {
                let found = edges.binary_search_by_key(&(at | list as u64), |edge| edge.key).ok();
                let found = found.and_then(|index| Some((edges.get(index)?, seen.get_mut(index)?)));
                let Some((edge, seen)) = found.filter(|_| at.is_multiple_of(16)) else {
                    broken.get_or_insert(Broken::Lost { list, at });
                    break;
                };
                if *seen {
                    broken.get_or_insert(Broken::Cycle { list, at });
                    break;
                }
                *seen = true;
                at = edge.next;
            }
        }
        let chunks = edges.iter().zip(seen).filter(|(_, seen)| *seen).map(|(edge, _)| edge.key & !15).collect();
        (chunks, broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(pairs: &[(u64, u64)]) -> Edges {
        Edges::new(pairs.iter().filter_map(|&(at, next)| Linking::Plain.edge(at, 80, next)))
    }

    #[test]
    fn follows_in_any_order() {
        let mut heads = [0; FASTBINS];
        heads[3] = 0x2000;
        let edges = edges(&[(0x1000, 0), (0x2000, 0x1050), (0x1050, 0x1000), (0x3000, 0x1000)]);
        assert_eq!(edges.follow(&heads), (vec![0x1000, 0x1050, 0x2000], None));
    }

    #[test]
    fn ends_where_a_list_does_not_hold_together() {
        let mut heads = [0; FASTBINS];
        heads[3] = 0x2000;
        let cycle = edges(&[(0x2000, 0x3000), (0x3000, 0x2000)]);
        assert_eq!(cycle.follow(&heads), (vec![0x2000, 0x3000], Some(Broken::Cycle { list: 3, at: 0x2000 })));
        let lost = edges(&[(0x2000, 0x4000)]);
        assert_eq!(lost.follow(&heads), (vec![0x2000], Some(Broken::Lost { list: 3, at: 0x4000 })));
        heads[2] = 0x2000;
        assert!(edges(&[(0x2000, 0)]).follow(&heads).1.is_some(), "a chunk of another size");
    }

    #[test]
    fn protects_pointers() {
        let at = 0x7f12_3456_7890;
        let raw = 0x7f12_3456_9000 ^ ((at + 16) >> 12);
        assert_eq!(Linking::Protected.edge(at, 32, raw).map(|edge| edge.next), Some(0x7f12_3456_9000));
    }
}
