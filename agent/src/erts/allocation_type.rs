//! What is an allocation for? The names of the VM's allocation types, as `instrument:allocations/1` gives them.
//!
//! `erts_alc_n2td` maps numbers to names. It is an array of pointers to texts that begins with `invalid_type` and ends
//! with NULL, and no two of its names are equal (`erts/emulator/utils/make_alloc_types`, OTP 25.2.3, which makes it
//! and refuses a description that was used before).

use std::collections::BTreeSet;

use thiserror::Error;

use super::executable::{Variables, find_text, read_text};
use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
};

/// The name of number 0 (`make_alloc_types`).
const FIRST: &str = "invalid_type";
/// Types that every VM has (`erts/emulator/beam/erl_alloc.types`, OTP 23.2.6, 25.2.3 and 27.3.4.1).
const KNOWN: [&str; 6] = ["heap", "old_heap", "binary", "drv_binary", "nif_internal", "atom_entry"];
/// `make_alloc_types` allows 2^16 types. OTP 27.3.4.1 has 234.
const MOST: usize = 4096;
/// Bytes of a name at most. The longest of OTP 27.3.4.1 has 35.
const LONGEST: usize = 255;

/// The allocation types of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationTypes {
    /// By number, from 0 on.
    names: Vec<String>,
}

/// There is no table of allocation types that can be believed.
#[derive(Debug, Error)]
pub enum AllocationTypesError {
    /// None was found.
    #[error("found no table of allocation types; {unread} bytes of the executable's memory could not be read")]
    NotFound {
        /// Bytes that were not looked at.
        unread: u64,
    },
    /// Several tables look like it, with different names.
    #[error("{count} tables look like that of the allocation types")]
    Ambiguous {
        /// How many.
        count: usize,
    },
    /// One that may be it cannot be read.
    #[error("the table of allocation types at {at} cannot be read")]
    Unreadable {
        /// Where it is.
        at: Address,
        /// Why not.
        #[source]
        cause: Unreadable,
    },
}

impl AllocationTypes {
    /// Finds the names in the executable's data.
    pub fn find(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Self, AllocationTypesError> {
        let (firsts, unread) = find_text(view, memory, FIRST);
        // The array is not `const`, but a compiler that sees that nobody writes to it may put it among the constants.
        let writable = Variables::writable(view, memory);
        if let Some(types) = Self::among(&writable, &firsts, view, memory)? {
            return Ok(types);
        }
        let constant = Variables::constant(view, memory);
        let unread = unread.saturating_add(writable.unread);
        Self::among(&constant, &firsts, view, memory)?.ok_or(AllocationTypesError::NotFound { unread })
    }

    fn among(
        variables: &Variables,
        firsts: &[Address],
        view: &ProcessView,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<Option<Self>, AllocationTypesError> {
        let mut found: Vec<Self> = Vec::new();
        for at in variables.holding(firsts) {
            let names = read_names(variables.from(at), view, memory);
            let names = names.map_err(|cause| AllocationTypesError::Unreadable { at, cause })?;
            found.extend(names.map(|names| Self { names }).filter(|types| !found.contains(types)));
        }
        match found.len() {
            0 | 1 => Ok(found.pop()),
            count => Err(AllocationTypesError::Ambiguous { count }),
        }
    }

    /// Low bits of a tag that hold the type: `ERTS_ALC_N_BITS`, as many as the largest number needs
    /// (`fits_in_bits`, `make_alloc_types`, OTP 23.2.6 and 25.2.3).
    pub fn bits(&self) -> u32 {
        self.largest().checked_ilog2().unwrap_or_default() + 1
    }

    /// The largest number of a type: `ERTS_ALC_N_MAX`.
    pub fn largest(&self) -> u64 {
        (self.names.len() as u64).saturating_sub(1)
    }

    /// The name of type `number`. Number 0 is none.
    pub fn name(&self, number: u64) -> Option<&str> {
        let number = usize::try_from(number).ok().filter(|number| *number > 0)?;
        self.names.get(number).map(String::as_str)
    }

    /// The index of the atom that says who allocated, and the number of the type, from a block's tag
    /// (`MAKE_ATAG`, `erts/emulator/beam/erl_alloc_util.c`, OTP 23.2.6 and 25.2.3; `PACK_ATAG_ID_TYPE`, 27.3.4.1).
    ///
    /// Where the tag lies differs: it is the last word of a block in OTP 25.2.3 and the last but one in 27.3.4.1
    /// (`alcu_atag_t`).
    pub fn decode(&self, tag: u64) -> (u64, u64) {
        let bits = self.bits();
        (tag.unbounded_shr(bits), tag & !(u64::MAX << bits))
    }
}

/// The names, if `pointers` is the whole array.
fn read_names(
    pointers: &[u64],
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
) -> Result<Option<Vec<String>>, Unreadable> {
    let Some(count) = pointers.iter().take(MOST).position(|pointer| *pointer == 0) else { return Ok(None) };
    if !pointers.iter().take(count).all(|pointer| view.is_readable(Address(*pointer))) {
        return Ok(None);
    }
    let mut names = Vec::with_capacity(count);
    for pointer in pointers.iter().take(count) {
        let text = read_text(memory, Address(*pointer), LONGEST)?;
        let Some(name) = text.and_then(|text| String::from_utf8(text).ok()).filter(|name| is_word(name)) else {
            return Ok(None);
        };
        names.push(name);
    }
    let distinct: BTreeSet<_> = names.iter().collect();
    let complete = distinct.len() == names.len() && KNOWN.iter().all(|known| names.iter().any(|name| name == known));
    Ok(complete.then_some(names))
}

/// What `make_alloc_types` takes for a description: `\w+`.
fn is_word(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::erts::executable::tests::{CONSTANTS, DATA, Node};

    /// An array of `count` names at `at`.
    fn node(at: u64, count: u64) -> Node {
        let mut node = Node::new(4096);
        let mut end = CONSTANTS + 0x800;
        for number in 0..=count {
            let name = match usize::try_from(number).unwrap() {
                0 => FIRST.to_owned(),
                number => KNOWN.get(number - 1).map_or(format!("t{number}"), |known| (*known).to_owned()),
            };
            node.put(end, name.as_bytes());
            node.put_words(at + 8 * number, &[end]);
            end += name.len() as u64 + 1;
        }
        node
    }

    fn find(node: &Node) -> Result<AllocationTypes, AllocationTypesError> {
        AllocationTypes::find(&node.view, &node.memory)
    }

    #[test]
    fn numbers_names_and_bits() {
        for (at, count, bits) in
            [(DATA + 0x10, 127, 7), (DATA + 0x10, 128, 8), (DATA + 0xf00, 255, 8), (CONSTANTS, 127, 7)]
        {
            let types = find(&node(at, count)).unwrap();
            assert_eq!((types.largest(), types.bits()), (count, bits));
            assert_eq!((types.name(0), types.name(1), types.name(count + 1)), (None, Some("heap"), None));
            assert_eq!(types.name(5), Some("nif_internal"));
            assert_eq!(types.name(count), Some(format!("t{count}").as_str()));
            assert_eq!(types.decode(1234 << bits | 5), (1234, 5));
        }
    }

    #[test]
    fn refuses_what_only_begins_like_it() {
        let mut spoilt = node(DATA + 0x10, 40);
        let heap = CONSTANTS + 0x800 + 13;
        spoilt.put(heap, b"h-ap");
        assert!(matches!(find(&spoilt), Err(AllocationTypesError::NotFound { unread: 0 })), "a name that is no word");
        let mut spoilt = node(DATA + 0x10, 40);
        spoilt.put_words(DATA + 0x10 + 8 * 30, &[heap]);
        assert!(matches!(find(&spoilt), Err(AllocationTypesError::NotFound { .. })), "a name that is there twice");
        let spoilt = node(DATA + 0x10, 4);
        assert!(matches!(find(&spoilt), Err(AllocationTypesError::NotFound { .. })), "ends before all known ones");
        let mut spoilt = node(DATA + 0x10, 40);
        spoilt.put_words(DATA + 0x10 + 8 * 30, &[8]);
        assert!(matches!(find(&spoilt), Err(AllocationTypesError::NotFound { .. })), "a pointer to nothing");
    }

    #[test]
    fn a_second_table_with_other_names_is_one_too_many() {
        let mut twice = node(DATA + 0x10, 40);
        let names: Vec<_> =
            (0..40).map(|n| crate::words::read_word(&twice.memory, Address(DATA + 0x10 + 8 * n)).unwrap()).collect();
        twice.put_words(DATA + 0x800, &names);
        assert!(matches!(find(&twice), Err(AllocationTypesError::Ambiguous { count: 2 })));
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(damage: Vec<(bool, u16, u8)>, tag: u64) {
            let mut node = node(DATA + 0x10, 200);
            node.damage(&damage);
            if let Ok(types) = find(&node) {
                let (atom, number) = types.decode(tag);
                prop_assert_eq!(atom << types.bits() | number, tag);
            }
        }
    }
}
