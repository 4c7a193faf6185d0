//! Which memory did the VM reserve in advance? Its super carriers: the one of `+MMscs`, and the one for literals.
//!
//! An `ErtsMemMapper` (`erts/emulator/sys/common/erl_mmap.c`, the same in OTP 23.2.6, 25.2.3 and 27.3.4.1) holds the two
//! ends of a super carrier and the borders of the areas that grow from them towards each other. Its sizes lie behind a
//! mutex, whose length depends on machine and build; they are where they agree with the borders.

use std::ops::Range;

use thiserror::Error;

use super::executable::{Variables, is_code};
use crate::{mapping::Address, retry::times, target::memory::ReadMemory, view::ProcessView};

/// The names of the two, where the executable exports them (up to OTP 27.3.4.1).
const SYMBOLS: [(MapperKind, &str); 2] =
    [(MapperKind::Carriers, "erts_dflt_mmapper"), (MapperKind::Literals, "erts_literal_mmapper")];
/// Words before the mutex: two functions, two flags, and for each area its borders and a map of five words.
const MUTEX_AT: usize = 3 + 2 * AREA;
/// `top`, `bot`, and an `ErtsFreeSegMap`.
const AREA: usize = 7;
/// Words of the mutex at most. A `pthread_mutex_t` takes 5 on x86-64 and 6 on arm64.
const MUTEX: usize = 40;
/// Words between the mutex and the sizes: `desc` and `no`.
const DESCRIPTORS: usize = 5 + 3;
/// Words of the sizes.
const SIZES: usize = 5;
/// A living VM changes sizes one after the other.
const TRIES: usize = 8;
/// The smallest page.
const PAGE: u64 = 4096;

/// A super carrier. What is not used of it holds nothing, but may still be resident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperCarrier {
    /// What it is for.
    pub kind: MapperKind,
    /// Where its `ErtsMemMapper` is.
    pub at: Address,
    /// All of it, with the descriptors of free segments at its begin.
    pub whole: Range<u64>,
    /// The area at its begin, of carriers that are aligned; some of it may have been given back.
    pub aligned: Range<u64>,
    /// The area at its end, of all other carriers; some of it may have been given back.
    pub unaligned: Range<u64>,
    /// Whether the VM asks the operating system for nothing else (`+MMsco`).
    pub only: bool,
    /// Bytes in use, descriptors included.
    pub used: u64,
    /// Bytes of the aligned area that are in use.
    pub used_aligned: u64,
    /// Bytes of the other area that are in use.
    pub used_unaligned: u64,
}

/// What a super carrier is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MapperKind {
    /// All carriers (`+MMscs`).
    Carriers,
    /// Literals of modules and persistent terms (`+MIscs`).
    Literals,
    /// Nothing tells.
    Unknown,
}

/// Super carriers that cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapperError {
    /// None was found, though each 64-bit VM has one for literals.
    #[error("found no super carrier; {unread} bytes of the executable's memory could not be read")]
    NotFound {
        /// Bytes that were not looked at.
        unread: u64,
    },
    /// More were found than there can be.
    #[error("{count} structures look like a super carrier")]
    Ambiguous {
        /// How many.
        count: usize,
    },
}

/// The super carriers of a VM, by kind.
pub fn find(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Vec<SuperCarrier>, MapperError> {
    times(TRIES, || look(view, memory))
}

fn look(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Vec<SuperCarrier>, MapperError> {
    let variables = Variables::writable(view, memory);
    let recognised = variables.iter().filter_map(|(at, words)| recognise(at, words, view));
    let (mut carriers, mappers): (Vec<_>, Vec<_>) = recognised.unzip();
    if carriers.is_empty() {
        return Err(MapperError::NotFound { unread: variables.unread });
    }
    if carriers.len() > SYMBOLS.len() {
        return Err(MapperError::Ambiguous { count: carriers.len() });
    }
    let told = |(carrier, mapper): (&SuperCarrier, &Range<u64>)| {
        carrier.named(view).or_else(|| carrier.told(mapper, &variables))
    };
    let kinds: Vec<_> = carriers.iter().zip(&mappers).map(told).collect();
    for (position, carrier) in carriers.iter_mut().enumerate() {
        let own = kinds.get(position).copied().flatten();
        // There is one for literals, so that the other is not.
        let not_literals = kinds.iter().flatten().any(|kind| *kind == MapperKind::Literals);
        carrier.kind = own.or_else(|| not_literals.then_some(MapperKind::Carriers)).unwrap_or(MapperKind::Unknown);
    }
    carriers.sort_by_key(|carrier| carrier.kind);
    match carriers.as_slice() {
        [a, b] if a.kind == b.kind && a.kind != MapperKind::Unknown => Err(MapperError::Ambiguous { count: 2 }),
        _ => Ok(carriers),
    }
}

/// The super carrier whose mapper begins `words`, and where that mapper is.
fn recognise(at: Address, words: &[u64], view: &ProcessView) -> Option<(SuperCarrier, Range<u64>)> {
    let (mapper, behind) = words.split_first_chunk::<MUTEX_AT>()?;
    let [reserve, unreserve, flags, ..] = *mapper;
    let (has_one, only) = (flags & u64::from(u32::MAX), flags >> 32);
    if has_one != 1 || only > 1 {
        return None;
    }
    let area = |index| {
        let [top, bottom] = *mapper.get(3 + AREA * index..)?.first_chunk::<2>()?;
        let plausible = top.is_multiple_of(PAGE) && bottom.is_multiple_of(PAGE) && bottom <= top;
        plausible.then_some(bottom..top)
    };
    let (unaligned, aligned) = (area(0)?, area(1)?);
    let in_order = 0 < aligned.start && aligned.end <= unaligned.start && aligned.start < unaligned.end;
    let functions = reserve != unreserve && [reserve, unreserve].iter().all(|at| is_code(view, Address(*at)));
    if !in_order || !functions || view.mapping_at(Address(aligned.start)).is_none() {
        return None;
    }
    let mut found = (0..=MUTEX).filter_map(|mutex| {
        let sizes = *behind.get(mutex + DESCRIPTORS..)?.first_chunk::<4>()?;
        let words = MUTEX_AT + mutex + DESCRIPTORS + SIZES;
        sizes_agree(sizes, &aligned, &unaligned).map(|sizes| (sizes, 8 * words as u64))
    });
    let (sizes, length) = found.next().filter(|_| found.next().is_none())?;
    let [total, used, used_aligned, used_unaligned] = sizes;
    let mapper = at.0..at.0.checked_add(length)?;
    let whole = unaligned.end.checked_sub(total)?..unaligned.end;
    let only = only == 1;
    let kind = MapperKind::Unknown;
    let carrier = SuperCarrier { kind, at, whole, aligned, unaligned, only, used, used_aligned, used_unaligned };
    Some((carrier, mapper))
}

/// `size.supercarrier`, if it fits to the areas: what is used is that of both areas and the space before them, where the
/// descriptors of free segments are, and that space is not part of an area (`erts_mmap_init`).
fn sizes_agree(sizes: [u64; 4], aligned: &Range<u64>, unaligned: &Range<u64>) -> Option<[u64; 4]> {
    let [total, used, used_aligned, used_unaligned] = sizes;
    let descriptors = used.checked_sub(used_aligned)?.checked_sub(used_unaligned)?;
    let agree = used_aligned <= aligned.end - aligned.start
        && used_unaligned <= unaligned.end - unaligned.start
        && total.checked_sub(descriptors) == Some(unaligned.end - aligned.start)
        && descriptors > 0
        && [used_aligned, used_unaligned, descriptors].iter().all(|size| size.is_multiple_of(PAGE));
    agree.then_some(sizes)
}

impl SuperCarrier {
    /// What its symbol says that it is for.
    fn named(&self, view: &ProcessView) -> Option<MapperKind> {
        let is_it = |name: &str| view.symbols.get(name).is_some_and(|symbol| symbol.address == self.at);
        SYMBOLS.iter().find(|(_, name)| is_it(name)).map(|(kind, _)| *kind)
    }

    /// The borders of the super carrier for literals also stand in `erts_literals_start` and `erts_literals_size`
    /// (`erts_mmap_init`), by which a literal is told from a term on a heap.
    fn told(&self, mapper: &Range<u64>, variables: &Variables) -> Option<MapperKind> {
        let start = [Address(self.aligned.start)];
        let size = [Address(self.unaligned.end - self.aligned.start)];
        let stands = |value: &[Address; 1]| variables.holding(value).any(|at| !mapper.contains(&at.0));
        (stands(&start) && stands(&size)).then_some(MapperKind::Literals)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        erts::executable::tests::{CODE, DATA, HEAP, Node},
        view::Symbol,
    };

    const MIB: u64 = 1 << 20;
    const LITERALS: u64 = HEAP + 8 * MIB;
    /// The descriptors at the begin of each super carrier.
    const DESCRIPTORS_LENGTH: u64 = 0x4000;

    /// Writes a mapper whose mutex has `mutex` words, of 4 MiB from `start` on, and gives what it should be read as.
    fn put(node: &mut Node, at: u64, start: u64, mutex: u64, kind: MapperKind) -> SuperCarrier {
        let aligned = start + DESCRIPTORS_LENGTH..start + MIB;
        let unaligned = start + 3 * MIB..start + 4 * MIB;
        let (used_aligned, used_unaligned) = (0x80_000, 0x3000);
        let used = DESCRIPTORS_LENGTH + used_aligned + used_unaligned;
        node.put_words(at, &[CODE + 0x10, CODE + 0x20, 1 | 1 << 32, unaligned.end, unaligned.start, 0, 1, 0, 2, 0]);
        node.put_words(at + 80, &[aligned.end, aligned.start]);
        node.put_words(at + 8 * (17 + mutex), &[0, start, aligned.start, unaligned.end, 200, 3, 2, 2]);
        node.put_words(at + 8 * (25 + mutex), &[4 * MIB, used, used_aligned, used_unaligned, 0]);
        let (whole, at, only) = (start..start + 4 * MIB, Address(at), true);
        SuperCarrier { kind, at, whole, aligned, unaligned, only, used, used_aligned, used_unaligned }
    }

    /// `erts_literals_start` and `erts_literals_size`.
    fn put_literals(node: &mut Node, of: &SuperCarrier) {
        node.put_words(DATA + 0x400, &[of.unaligned.end - of.aligned.start, 0, of.aligned.start]);
    }

    fn find_in(node: &Node) -> Result<Vec<SuperCarrier>, MapperError> {
        find(&node.view, &node.memory)
    }

    #[test]
    fn tells_the_one_for_literals_without_symbols() {
        for mutex in [5, 6, 12] {
            let mut node = Node::new(16 * MIB);
            let literals = put(&mut node, DATA + 0x1f0, LITERALS, mutex, MapperKind::Literals);
            put_literals(&mut node, &literals);
            assert_eq!(find_in(&node).as_deref(), Ok(std::slice::from_ref(&literals)));
            let carriers = put(&mut node, DATA + 0xf80, HEAP, mutex, MapperKind::Carriers);
            assert_eq!(find_in(&node).unwrap(), [carriers, literals]);
        }
    }

    #[test]
    fn goes_by_symbols() {
        let mut node = Node::new(16 * MIB);
        let literals = put(&mut node, DATA + 0x1f0, LITERALS, 5, MapperKind::Literals);
        let carriers = put(&mut node, DATA + 0xf80, HEAP, 5, MapperKind::Carriers);
        let unknown: Vec<_> = find_in(&node).unwrap().iter().map(|carrier| carrier.kind).collect();
        assert_eq!(unknown, [MapperKind::Unknown; 2]);
        for (name, carrier) in [("erts_literal_mmapper", &literals), ("erts_dflt_mmapper", &carriers)] {
            node.view.symbols.insert(name.into(), Symbol { address: carrier.at, size: 280 });
        }
        assert_eq!(find_in(&node).unwrap(), [carriers, literals]);
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        let at = DATA + 0x1f0;
        for (offset, word) in [
            (0, HEAP),
            (8, CODE + 0x10),
            (16, 0),
            (16, 2),
            (24, 1),
            (32, u64::MAX),
            (88, 0),
            (80, HEAP),
            (240, 0x1000),
            (248, 0),
        ] {
            let mut node = Node::new(16 * MIB);
            let literals = put(&mut node, at, LITERALS, 5, MapperKind::Literals);
            put_literals(&mut node, &literals);
            node.put_words(at + offset, &[word]);
            assert_eq!(find_in(&node), Err(MapperError::NotFound { unread: 0 }), "{offset} {word:#x}");
        }
    }

    #[test]
    fn there_are_not_three() {
        let mut node = Node::new(16 * MIB);
        for (at, start) in [(0x100, HEAP), (0x800, HEAP + 4 * MIB), (0x1000, LITERALS)] {
            put(&mut node, DATA + at, start, 5, MapperKind::Unknown);
        }
        assert_eq!(find_in(&node), Err(MapperError::Ambiguous { count: 3 }));
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(damage: Vec<(bool, u16, u8)>) {
            let mut node = Node::new(16 * MIB);
            put(&mut node, DATA + 0x1f0, LITERALS, 5, MapperKind::Literals);
            node.damage(&damage);
            for carrier in find_in(&node).unwrap_or_default() {
                let SuperCarrier { whole, aligned, unaligned, used, .. } = carrier;
                prop_assert!(whole.start < aligned.start && aligned.end <= unaligned.start && unaligned.end == whole.end);
                prop_assert!(used <= whole.end - whole.start);
            }
        }
    }
}
