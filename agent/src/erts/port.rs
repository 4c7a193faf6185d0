//! Which driver does a port belong to?
//!
//! Some word of a `Port` leads to its `erts_driver_t` (`drv_ptr`, `erts/emulator/beam/erl_port.h`), and that proves itself: it
//! leads to the `ErlDrvEntry` that it was made from, and has the same name and the same callbacks as that (`init_driver`,
//! `erts/emulator/beam/io.c`, OTP 23.2.6, 25.2.3 and 27.3.4.1). Where in the `Port` it is need not be known.

use std::collections::BTreeSet;

use thiserror::Error;

use super::executable::read_text;
use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::{read_words, words_of},
};

/// Bytes of a `Port` (OTP 23.2.6, 25.2.3, 27.3.4.1 and 29.1.2). `drv_ptr` is at 480.
const PORT: usize = 560;
/// Words of an `erts_driver_t`: `next`, `prev`, `name_atom`, `name`, `version`, `flags`, `handle`, `lock`, `entry`, `start`,
/// `stop` (`erts/emulator/beam/global.h`, OTP 23.2.6, 25.2.3 and 27.3.4.1).
const DRIVER: usize = 11;
/// Words of an `ErlDrvEntry`: `init`, `start`, `stop`, `output`, `ready_input`, `ready_output`, `driver_name`
/// (`erts/emulator/beam/erl_driver.h`, same releases; part of the interface for drivers).
const ENTRY: usize = 7;
/// Bytes of a driver's name at most: it is made an atom.
const LONGEST: usize = 255;

/// Why the driver of a port is not known.
#[derive(Debug, Error)]
pub enum PortError {
    /// The port cannot be read; it may have been closed.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// Nothing that it leads to is a driver.
    #[error("the port at {port} leads to no driver")]
    NoDriver {
        /// The port.
        port: Address,
    },
    /// It leads to several.
    #[error("the port at {port} leads to {count} drivers")]
    Ambiguous {
        /// The port.
        port: Address,
        /// How many.
        count: usize,
    },
}

/// The name of the driver of the `Port` at `port`.
pub fn driver_name(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    port: Address,
) -> Result<String, PortError> {
    let mut bytes = vec![0; PORT];
    let read = memory.read_ahead(port, &mut bytes)?;
    bytes.truncate(read);
    memory.used(port, &bytes);
    let pointers: BTreeSet<u64> = words_of(&bytes).into_iter().filter(|word| is_pointer(view, *word)).collect();
    let mut names: Vec<String> = pointers.iter().filter_map(|at| driver(view, memory, Address(*at))).collect();
    match names.len() {
        0 => Err(PortError::NoDriver { port }),
        1 => names.pop().ok_or(PortError::NoDriver { port }),
        count => Err(PortError::Ambiguous { port, count }),
    }
}

/// Where in a `Port` its driver is, in bytes: the one place that leads to a driver in each of `ports`. `None`: there is none,
/// or no port could be read.
pub fn driver_offset(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), ports: &[Address]) -> Option<u32> {
    let mut places: Option<BTreeSet<usize>> = None;
    for port in ports {
        let mut bytes = vec![0; PORT];
        let Ok(read) = memory.read_ahead(*port, &mut bytes) else { continue };
        bytes.truncate(read);
        memory.used(*port, &bytes);
        let words = words_of(&bytes);
        let leads = |word: &u64| is_pointer(view, *word) && driver(view, memory, Address(*word)).is_some();
        let here: BTreeSet<usize> =
            words.iter().enumerate().filter(|(_, word)| leads(word)).map(|(at, _)| at).collect();
        places = Some(places.map_or_else(|| here.clone(), |known| &known & &here));
    }
    let places = places?;
    let place = places.first().filter(|_| places.len() == 1)?;
    u32::try_from(place.checked_mul(8)?).ok()
}

fn is_pointer(view: &ProcessView, word: u64) -> bool {
    word != 0 && word.is_multiple_of(8) && view.is_readable(Address(word))
}

/// The name of the `erts_driver_t` at `at`, if it is one.
pub fn driver(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), at: Address) -> Option<String> {
    let words: [u64; DRIVER] = read_words(memory, at).ok()?;
    let [_, _, _, name, _, _, _, _, entry, start, stop] = words;
    if !is_pointer(view, entry) {
        return None;
    }
    let [_, entry_start, entry_stop, _, _, _, entry_name]: [u64; ENTRY] = read_words(memory, Address(entry)).ok()?;
    if name != entry_name || start != entry_start || stop != entry_stop {
        return None;
    }
    let is_code = |word: u64| view.mapping_at(Address(word)).is_some_and(|memory| memory.mapping.permissions.execute);
    // A driver need not have any callback; each that it has is code.
    if [start, stop].into_iter().any(|word| word != 0 && !is_code(word)) || (start == 0 && stop == 0) {
        return None;
    }
    let text = String::from_utf8(read_text(memory, Address(name), LONGEST).ok()??).ok()?;
    let is_name = !text.is_empty() && text.chars().all(|character| !character.is_control());
    is_name.then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::erts::executable::tests::{CODE, CONSTANTS, DATA, HEAP, Node};

    const ENTRY_AT: u64 = DATA + 0x100;
    const DRIVER_AT: u64 = HEAP + 0x400;

    fn node() -> Node {
        let mut node = Node::new(0x10000);
        node.put(CONSTANTS + 3, b"tcp_inet\0");
        node.put_words(ENTRY_AT, &[CODE + 1, CODE + 2, CODE + 3, CODE + 4, 0, 0, CONSTANTS + 3]);
        node.put_words(DRIVER_AT, &[0, 0, 0x4b, CONSTANTS + 3, 1, 3, 0, 0, ENTRY_AT, CODE + 2, CODE + 3]);
        node.put_words(HEAP, &[7]);
        node.put_words(HEAP + 472, &[CONSTANTS + 3, DRIVER_AT, HEAP + 0x800]);
        node
    }

    fn name_in(node: &Node) -> Result<String, PortError> {
        driver_name(&node.view, &node.memory, Address(HEAP))
    }

    #[test]
    fn names_the_driver() {
        assert_eq!(name_in(&node()).unwrap(), "tcp_inet");
        // A port need not be at the same place in each release.
        let mut other = node();
        other.put_words(HEAP + 472, &[0, 0, 0]);
        assert!(matches!(name_in(&other), Err(PortError::NoDriver { .. })));
        other.put_words(HEAP + 104, &[DRIVER_AT]);
        assert_eq!(name_in(&other).unwrap(), "tcp_inet");
        assert!(matches!(driver_name(&other.view, &other.memory, Address(8)), Err(PortError::Unreadable(_))));
    }

    #[test]
    fn believes_no_driver_that_contradicts_its_entry() {
        let check = |at: u64, word: u64| {
            let mut node = node();
            node.put_words(at, &[word]);
            assert!(matches!(name_in(&node), Err(PortError::NoDriver { .. })), "{at:x}");
        };
        check(DRIVER_AT + 24, CONSTANTS);
        check(DRIVER_AT + 64, HEAP);
        check(DRIVER_AT + 72, CODE);
        check(ENTRY_AT + 16, CODE);
        check(CONSTANTS, 0);
        let mut two = node();
        let driver = [0, 0, 0x4b, CONSTANTS + 3, 1, 3, 0, 0, ENTRY_AT, CODE + 2, CODE + 3];
        two.put_words(HEAP + 0x800, &driver);
        assert!(matches!(name_in(&two), Err(PortError::Ambiguous { count: 2, .. })));
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(damage: Vec<(bool, u16, u8)>) {
            let mut node = node();
            node.damage(&damage);
            if let Ok(name) = name_in(&node) {
                prop_assert!(!name.is_empty() && name.len() <= LONGEST);
            }
        }
    }
}
