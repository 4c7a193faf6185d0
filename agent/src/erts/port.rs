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
    let mut names: Vec<String> = pointers.iter().filter_map(|at| name(view, memory, Address(*at))).collect();
    match names.len() {
        0 => Err(PortError::NoDriver { port }),
        1 => names.pop().ok_or(PortError::NoDriver { port }),
        count => Err(PortError::Ambiguous { port, count }),
    }
}

fn is_pointer(view: &ProcessView, word: u64) -> bool {
    word != 0 && word.is_multiple_of(8) && view.is_readable(Address(word))
}

/// The name of the `erts_driver_t` at `driver`, if it is one.
fn name(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), driver: Address) -> Option<String> {
    let words: [u64; DRIVER] = read_words(memory, driver).ok()?;
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
