//! What is the atom with a given index called?
//!
//! The atom table is found by its own name, `atom_tab`, and proves itself by what its atoms say of themselves: their
//! index, and of their text the length, the number of characters and the first bytes.

use thiserror::Error;

use super::executable::{Variables, find_text, is_code};
use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::{high_half, low_half, read_word, read_words},
};

/// `Hash.name` (`erts/emulator/beam/hash.h`, OTP 23.2.6, 25.2.3 and 27.3.4.1; read at run time in 29.1.2).
const HASH_NAME: u64 = 64;
/// What `init_atom_table` calls it (`erts/emulator/beam/atom.c`, same releases).
const TABLE_NAME: &str = "atom_tab";
/// Functions at the begin of a `Hash` (`HashFunctions`, `hash.h`).
const HASH_FUNCTIONS: usize = 7;
/// Words of an `IndexTable`: a `Hash` of 13, then `type` and `size`, `limit` and `entries`, `seg_table`
/// (`erts/emulator/beam/index.h`, same releases).
const TABLE_WORDS: usize = 16;
/// `INDEX_PAGE_SHIFT` (`index.h`).
const SEGMENT_SHIFT: u64 = 10;
/// Bytes of an atom's text at most: `MAX_ATOM_SZ_LIMIT` (`erts/emulator/beam/atom.h`, OTP 27.3.4.1).
const LONGEST: usize = 4 * MOST_CHARACTERS;
/// `MAX_ATOM_CHARACTERS` (ibid.).
const MOST_CHARACTERS: usize = 255;
/// Atoms that are looked at before a table is believed.
const SAMPLES: u64 = 64;
/// Of these, how many must have been read and found right.
const ENOUGH: usize = 8;
/// `HEADER_SUB_BITS` (`erts/emulator/beam/erl_bits.h`, OTP 27.3.4.1; read at run time in 29.1.2): a part of a binary that
/// lies off the heap.
const HEADER_SUB_BITS: u64 = 0x124;
/// `_TAG_HEADER_HEAP_BITS` (`erts/emulator/beam/erl_term.h`, same releases), and the bits that it is in.
const HEAP_BITS: u64 = 0x20;
const HEADER_TAG: u64 = 0x3f;
/// `_TAG_IMMED2_ATOM` and `_TAG_IMMED2_SIZE`: how a term says that it is an atom (`erl_term.h`, OTP 23.2.6, 25.2.3 and
/// 27.3.4.1).
const ATOM_TAG: u64 = 0xb;
const ATOM_SHIFT: u32 = 6;
/// A text shorter than this says too little about where texts are.
const TELLING: usize = 4;

/// The atom table of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtomTable {
    segments: Address,
    entries: u64,
    limit: u64,
    text: TextForm,
}

/// How an atom refers to its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextForm {
    /// By a `byte *` (`Atom.name`, `atom.h`, OTP 23.2.6 to 27.3.4.1).
    Pointer,
    /// By a boxed bitstring, up to 64 bytes `ErlHeapBits` and else `ErlSubBits`
    /// (`erts/emulator/beam/erl_bits.h`, OTP 27.3.4.1; that atoms of 29.1.2 refer to one was read at run time).
    Bitstring,
}

/// There is no atom table that can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AtomTableError {
    /// None was found.
    #[error("found no atom table; {unread} bytes of the executable's memory could not be read")]
    NotFound {
        /// Bytes that were not looked at.
        unread: u64,
    },
    /// Several structures look like one.
    #[error("{count} structures look like the atom table")]
    Ambiguous {
        /// How many.
        count: usize,
    },
}

/// Why an atom has no name.
#[derive(Debug, Error)]
pub enum AtomError {
    /// The table had fewer atoms when it was found.
    #[error("the table has {entries} atoms, none with the index {index}")]
    Index {
        /// The index asked for.
        index: u64,
        /// Atoms in the table.
        entries: u64,
    },
    /// It contradicts itself.
    #[error("what is said to be atom {index} is none")]
    Implausible {
        /// The index asked for.
        index: u64,
    },
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl AtomTable {
    /// Finds the atom table in the executable's data. The names of atoms that are made later are not known to it.
    pub fn find(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Self, AtomTableError> {
        let (names, unread_text) = find_text(view, memory, TABLE_NAME);
        let variables = Variables::writable(view, memory);
        let tables = variables.holding(&names).filter_map(|at| {
            let table = Address(at.0.checked_sub(HASH_NAME)?);
            Self::recognise(variables.from(table).first_chunk()?, view, memory)
        });
        let mut tables: Vec<_> = tables.collect();
        match tables.len() {
            0 => Err(AtomTableError::NotFound { unread: unread_text.saturating_add(variables.unread) }),
            1 => tables.pop().ok_or(AtomTableError::NotFound { unread: 0 }),
            count => Err(AtomTableError::Ambiguous { count }),
        }
    }

    /// Atoms in the table: indices are below it.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// How many atoms there can be (`+t`, `erlang:system_info(atom_limit)`).
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The index of the atom that `term` is; `None`: it is no atom of the table.
    pub fn index_of(&self, term: u64) -> Option<u64> {
        let index = term >> ATOM_SHIFT;
        (term & ((1 << ATOM_SHIFT) - 1) == ATOM_TAG && index < self.entries).then_some(index)
    }

    /// The name of atom `index`, as [`AtomTable::read`] gives it. `None`: there is none, or it cannot be read.
    pub fn name(&self, index: u64, memory: &(impl ReadMemory + ?Sized)) -> Option<String> {
        self.read(index, memory).ok()
    }

    /// The name of atom `index`, without quotes.
    pub fn read(&self, index: u64, memory: &(impl ReadMemory + ?Sized)) -> Result<String, AtomError> {
        let &Self { entries, text, .. } = self;
        if index >= entries {
            return Err(AtomError::Index { index, entries });
        }
        let implausible = AtomError::Implausible { index };
        let Some(atom) = self.atom(index, memory)? else { return Err(implausible) };
        atom.text(text, memory)?.ok_or(implausible)
    }

    /// A table of so many atoms, none of which has a name.
    #[cfg(test)]
    pub(super) fn without_names(entries: u64) -> Self {
        Self { segments: Address(0), entries, limit: entries, text: TextForm::Pointer }
    }

    fn recognise(words: &[u64; TABLE_WORDS], view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Option<Self> {
        let [hash @ .., type_size, limit_entries, segments] = words;
        let functions = hash.first_chunk::<HASH_FUNCTIONS>()?;
        let objects = low_half(*hash.get(11)?);
        let size = high_half(*type_size);
        let (limit, entries) = (low_half(*limit_entries), high_half(*limit_entries));
        let plausible = functions.iter().all(|function| is_code(view, Address(*function)))
            // `index_put_entry` puts an atom first into the one and then into the other (`index.c`, OTP 25.2.3).
            && objects.abs_diff(entries) <= 1
            && (1..=limit.min(size)).contains(&entries)
            && segments.is_multiple_of(8);
        let believed = |text| Self { segments: Address(*segments), entries: entries.into(), limit: limit.into(), text };
        let forms = [TextForm::Pointer, TextForm::Bitstring].map(believed);
        let mut proven = forms.into_iter().filter(|table| plausible && table.proves_itself(memory));
        proven.next().filter(|_| proven.next().is_none())
    }

    /// Whether atoms from all over the table are what they should be. What cannot be read speaks neither for nor
    /// against it.
    fn proves_itself(&self, memory: &(impl ReadMemory + ?Sized)) -> bool {
        let step = usize::try_from(self.entries.div_ceil(SAMPLES)).unwrap_or(usize::MAX);
        let mut right = 0;
        for index in (0..self.entries).step_by(step) {
            match self.read(index, memory) {
                Ok(name) if name.len() >= TELLING => right += 1,
                Ok(_) | Err(AtomError::Unreadable(_)) => {}
                Err(AtomError::Implausible { .. } | AtomError::Index { .. }) => return false,
            }
        }
        right >= ENOUGH
    }

    fn atom(&self, index: u64, memory: &(impl ReadMemory + ?Sized)) -> Result<Option<Atom>, Unreadable> {
        let slot = |table: Address, index: u64| table.checked_add(index * 8);
        let Some(segment) = slot(self.segments, index >> SEGMENT_SHIFT) else { return Ok(None) };
        let segment = Address(read_word(memory, segment)?);
        let Some(atom) = slot(segment, index & ((1 << SEGMENT_SHIFT) - 1)) else { return Ok(None) };
        let atom = Address(read_word(memory, atom)?);
        let [_next, _hash, own_index, lengths, text] = read_words(memory, atom)?;
        let [len0, len1, characters0, characters1, order @ ..] = lengths.to_le_bytes();
        let length = i16::from_le_bytes([len0, len1]);
        let atom = usize::try_from(length).ok().filter(|length| *length <= LONGEST).map(|length| Atom {
            length,
            latin1_characters: i16::from_le_bytes([characters0, characters1]),
            order: u32::from_le_bytes(order),
            text,
        });
        Ok(atom.filter(|_| u64::from(low_half(own_index)) == index))
    }
}

/// `Atom` (`atom.h`, OTP 23.2.6, 25.2.3 and 27.3.4.1), without what every index slot has.
struct Atom {
    /// `len`: bytes of the text.
    length: usize,
    /// `latin1_chars`: characters of the text if each is below 256, else -1.
    latin1_characters: i16,
    /// `ord0`: the first 31 bits of the text.
    order: u32,
    text: u64,
}

impl Atom {
    /// The text, if the atom's own account of it is right.
    fn text(&self, form: TextForm, memory: &(impl ReadMemory + ?Sized)) -> Result<Option<String>, Unreadable> {
        let Some(at) = self.text_at(form, memory)? else { return Ok(None) };
        let mut bytes = vec![0; self.length];
        if !bytes.is_empty() {
            memory.read(at, &mut bytes)?;
        }
        let mut first = [0; 4];
        first.iter_mut().zip(&bytes).for_each(|(first, byte)| *first = *byte);
        // `(c[0] << 23) + (c[1] << 15) + (c[2] << 7) + (c[3] >> 1)` (`atom_alloc`, `atom.c`, OTP 27.3.4.1).
        let order = u32::from_be_bytes(first) >> 1;
        let text = String::from_utf8(bytes).ok().filter(|text| {
            let characters = text.chars().count();
            let all_latin1 = text.chars().all(|character| u32::from(character) < 256);
            let counted = if all_latin1 { i16::try_from(characters).ok() } else { Some(-1) };
            order == self.order && characters <= MOST_CHARACTERS && counted == Some(self.latin1_characters)
        });
        Ok(text)
    }

    fn text_at(&self, form: TextForm, memory: &(impl ReadMemory + ?Sized)) -> Result<Option<Address>, Unreadable> {
        if form == TextForm::Pointer {
            return Ok(Some(Address(self.text)));
        }
        // `TAG_PRIMARY_BOXED` is 2 (`erl_term.h`, OTP 27.3.4.1).
        if self.text & 3 != 2 {
            return Ok(None);
        }
        let at = Address(self.text & !3);
        let length = self.length as u64;
        let [header, second] = read_words(memory, at)?;
        if header == HEADER_SUB_BITS {
            let [_, base_flags, start, end] = read_words(memory, at)?;
            let fits = start.is_multiple_of(8) && end.checked_sub(start) == Some(8 * length);
            return Ok(Address(base_flags & !3).checked_add(start / 8).filter(|_| fits));
        }
        let words = 1 + length.div_ceil(8);
        let fits = header & HEADER_TAG == HEAP_BITS && header >> 6 == words && second == 8 * length;
        Ok(at.checked_add(16).filter(|_| fits))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::erts::executable::tests::{CODE, CONSTANTS, DATA, HEAP, Node};

    const TABLE: u64 = DATA + 0x1f80;
    const SEGMENT_TABLE: u64 = HEAP;
    const SEGMENT: u64 = HEAP + 0x100;
    const ATOMS: u64 = HEAP + 0x4000;
    const TEXTS: u64 = HEAP + 0x10000;
    const COUNT: u64 = 200;

    fn text(index: u64) -> String {
        match index {
            0 => String::new(),
            1 => "_".into(),
            2 => "gro\u{df}er Atom".into(),
            3 => "\u{6f22}\u{5b57}".repeat(40),
            4 => "y".repeat(255),
            _ => format!("atom_{index}"),
        }
    }

    /// Table and atoms. The table lies across the end of the first page of the variables.
    fn node(form: TextForm) -> Node {
        let mut node = Node::new(0x40000);
        node.put(CONSTANTS + 0x10, b"atom_tab\0");
        // The name of an allocation type points there as well.
        node.put_words(DATA + 0x100, &[CONSTANTS + 0x10]);
        node.put_words(TABLE - 0x1000, &[CODE; 7]);
        let table = TABLE - 0x1000;
        node.put_words(table + 64, &[CONSTANTS + 0x10, 7, 0, COUNT, HEAP + 0x3000]);
        node.put_words(table + 104, &[0x4d | 1024 << 32, 1 << 20 | COUNT << 32, SEGMENT_TABLE]);
        node.put_words(SEGMENT_TABLE, &[SEGMENT]);
        for index in 0..COUNT {
            put_atom(&mut node, index, form);
        }
        node
    }

    fn put_atom(node: &mut Node, index: u64, form: TextForm) {
        let text = text(index);
        let (bytes, length) = (text.as_bytes(), text.len() as u64);
        let (atom, at) = (ATOMS + 40 * index, TEXTS + 512 * index);
        let mut first = [0; 4];
        first.iter_mut().zip(bytes).for_each(|(first, byte)| *first = *byte);
        let latin1 = text.chars().all(|character| u32::from(character) < 256);
        let characters = if latin1 { text.chars().count() as u64 } else { 0xffff };
        let order = u64::from(u32::from_be_bytes(first) >> 1);
        let reference = match form {
            TextForm::Pointer => {
                // Often not aligned.
                node.put(at + 2, bytes);
                at + 2
            }
            TextForm::Bitstring if length > 64 => {
                node.put(at + 100, bytes);
                node.put_words(at, &[HEADER_SUB_BITS, at + 100 - 4, 32, 32 + 8 * length]);
                at | 2
            }
            TextForm::Bitstring => {
                node.put_words(at, &[(1 + length.div_ceil(8)) << 6 | HEAP_BITS, 8 * length]);
                node.put(at + 16, bytes);
                at | 2
            }
        };
        node.put_words(SEGMENT + 8 * index, &[atom]);
        node.put_words(
            atom,
            &[0, 0x1234, 0x7f00_0000_0000 | index, length | characters << 16 | order << 32, reference],
        );
    }

    /// A node with atoms 5 to 199 `atom_5` to `atom_199`, and its table.
    pub(in crate::erts) fn atom_node() -> (Node, AtomTable) {
        let node = node(TextForm::Pointer);
        let table = find(&node).unwrap();
        (node, table)
    }

    fn find(node: &Node) -> Result<AtomTable, AtomTableError> {
        AtomTable::find(&node.view, &node.memory)
    }

    #[test]
    fn names_every_atom_of_both_forms() {
        for form in [TextForm::Pointer, TextForm::Bitstring] {
            let node = node(form);
            let table = find(&node).unwrap();
            assert_eq!((table.entries(), table.limit(), table.text), (COUNT, 1 << 20, form));
            for index in 0..COUNT {
                assert_eq!(table.read(index, &node.memory).unwrap(), text(index), "{index}");
            }
            assert!(matches!(table.read(COUNT, &node.memory), Err(AtomError::Index { .. })));
            assert_eq!(table.name(u64::MAX, &node.memory), None);
            let indices =
                [7 << 6 | 0xb, 7 << 6 | 0x3b, 7 << 4 | 3, COUNT << 6 | 0xb, u64::MAX].map(|term| table.index_of(term));
            assert_eq!(indices, [Some(7), None, None, None, None]);
        }
    }

    #[test]
    fn believes_no_atom_that_contradicts_itself() {
        let mut node = node(TextForm::Pointer);
        let table = find(&node).unwrap();
        let atom = ATOMS + 40 * 7;
        let lengths = u64::from_le_bytes(*b"\x06\0\x06\0\0\0\0\0") | u64::from(u32::from_be_bytes(*b"atom") >> 1) << 32;
        for (offset, word) in [(16, 8), (24, lengths ^ 1 << 16), (24, lengths ^ 1 << 40), (24, 0xffff), (32, HEAP)] {
            put_atom(&mut node, 7, TextForm::Pointer);
            assert_eq!(table.name(7, &node.memory).as_deref(), Some("atom_7"));
            node.put_words(atom + offset, &[word]);
            assert!(matches!(table.read(7, &node.memory), Err(AtomError::Implausible { index: 7 })), "{offset} {word}");
            assert!(find(&node).is_ok() || COUNT.div_ceil(SAMPLES) == 1, "7 is not among the samples");
        }
        node.put_words(atom + 32, &[8]);
        node.put_words(atom + 24, &[lengths]);
        assert!(matches!(table.read(7, &node.memory), Err(AtomError::Unreadable(_))));
    }

    #[test]
    fn refuses_what_only_points_to_the_name() {
        let mut spoilt = node(TextForm::Pointer);
        spoilt.put_words(TABLE - 0x1000 + 8, &[HEAP]);
        assert_eq!(find(&spoilt), Err(AtomTableError::NotFound { unread: 0 }), "a function that is none");
        let mut spoilt = node(TextForm::Pointer);
        spoilt.put_words(TABLE - 0x1000 + 112, &[1 << 20 | (COUNT + 2) << 32]);
        assert_eq!(find(&spoilt), Err(AtomTableError::NotFound { unread: 0 }), "two counts that differ");
        let mut spoilt = node(TextForm::Pointer);
        spoilt.put_words(ATOMS + 16, &[1]);
        assert_eq!(find(&spoilt), Err(AtomTableError::NotFound { unread: 0 }), "an atom with the index of another");
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(damage: Vec<(bool, u16, u8)>, bitstring: bool) {
            let mut node = node(if bitstring { TextForm::Bitstring } else { TextForm::Pointer });
            let table = find(&node).unwrap();
            node.damage(&damage);
            if let Ok(found) = find(&node) {
                prop_assert!(found.entries() > 0);
            }
            for index in 0..COUNT {
                if let Ok(name) = table.read(index, &node.memory) {
                    prop_assert!(name.chars().count() <= MOST_CHARACTERS);
                }
            }
        }
    }
}
