//! Where are the processes and the ports of the VM?
//!
//! Both are in tables of the same form, found by it: each element names the slot that it stands in.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    erts::executable::Variables,
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::{high_half, low_half, read_words, words_of},
};

/// Slots of a table at least. `+P` and `+Q` take no less than 1024 (`ERTS_MIN_PROCESSES`, `erts/emulator/beam/erl_process.h`,
/// and `ERTS_MIN_PORTS`, `erl_port.h`, OTP 23.2.6 to 27.3.4.1), and become powers of two.
const FEWEST_SLOTS: u64 = 1024;
/// `ERTS_PTAB_MAX_SIZE` (`erts/emulator/beam/erl_ptab.h`, OTP 23.2.6, 25.2.3 and 27.3.4.1).
const MOST_SLOTS: u64 = 1 << 27;
/// Words of `ErtsPTabReadOnlyData`, the longer form, up to `element_size` (`erl_ptab.h`, OTP 27.3.4.1).
const TABLE_WORDS: usize = 14;
/// Elements that are looked at before a table is believed.
const SAMPLES: usize = 400;
/// Elements that are looked at in one go.
const AT_ONCE: usize = 4096;
/// Of the elements that can be read, one in this many may have ended since its slot was read.
const ENDED: usize = 10;
/// Bytes of a pointer or a term.
const WORD: u64 = 8;
/// `ERTS_CACHE_LINE_SIZE` (`erts/emulator/beam/erl_alloc.h`), by which the list of free identifiers is laid out (seen at run time
/// in OTP 23.2.6, 25.2.3, 27.3.4.1 and 29.1.2).
const CACHE_LINE: u32 = 64;
/// Smallest and largest plausible `element_size`. `Process` has 736 to 776 bytes in OTP 23.2.6 to 29.1.2.
const ELEMENT_SIZES: std::ops::RangeInclusive<u64> = 128..=4096;

/// What a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementKind {
    /// `Process`.
    Process,
    /// `Port`.
    Port,
}

impl ElementKind {
    /// `_TAG_IMMED1_PID` and `_TAG_IMMED1_PORT` (`erts/emulator/beam/erl_term.h`, OTP 23.2.6 to 27.3.4.1).
    fn tag(self) -> u64 {
        match self {
            Self::Process => 0x3,
            Self::Port => 0x7,
        }
    }

    /// Whether a term is an identifier of this node's, by its tag.
    pub(super) fn is_tag_of(self, term: u64) -> bool {
        term & 0xf == self.tag()
    }
}

/// How an identifier and the masks of the table are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Masks of 32 bits; the slot is the upper half of the identifier (`erl_ptab.h`, OTP 23.2.6 and 25.2.3).
    Narrow,
    /// Masks of a word; the slot is the lower part of the identifier's data (`erl_ptab.h`, OTP 27.3.4.1; read at run time
    /// in 29.1.2).
    Wide {
        /// `pix_cl_mask`, `pix_cl_shift`, `pix_cli_mask`, `pix_cli_shift`: where in the slot's number the parts of the
        /// identifier's lower part are.
        line: (u64, u32),
        /// Within a cache line.
        within: (u64, u32),
    },
}

/// The process table or the port table of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementTable {
    kind: ElementKind,
    slots: Address,
    count: u64,
    form: Form,
    reserved: Address,
    element_size: u32,
    /// Bytes of an entry of `free_id_data`, the list of free identifiers right behind the slots; 0 where it is not known.
    free_entry: u32,
}

/// A process or a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// Where its structure is.
    pub address: Address,
    /// Its identifier, a term (`common.id`).
    pub id: u64,
}

/// There is no table that can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ElementTableError {
    /// None was found.
    #[error("found no table of {kind}; {unread} bytes of the executable's memory could not be read", kind = plural(*.kind))]
    NotFound {
        /// Which table.
        kind: ElementKind,
        /// Bytes that were not looked at.
        unread: u64,
    },
    /// Several structures look like one.
    #[error("{count} structures look like the table of {kind}", kind = plural(*.kind))]
    Ambiguous {
        /// Which table.
        kind: ElementKind,
        /// How many.
        count: usize,
    },
}

fn plural(kind: ElementKind) -> &'static str {
    match kind {
        ElementKind::Process => "processes",
        ElementKind::Port => "ports",
    }
}

impl ElementTable {
    /// Finds the table in the executable's data.
    pub fn find(
        kind: ElementKind,
        view: &ProcessView,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<Self, ElementTableError> {
        let variables = Variables::writable(view, memory);
        let mut tables: Vec<Self> = variables
            .iter()
            .flat_map(|(_, words)| Self::recognise(kind, words).into_iter().flatten())
            .filter(|table| view.is_readable(table.slots) && table.proves_itself(memory))
            .collect();
        match tables.len() {
            0 => Err(ElementTableError::NotFound { kind, unread: variables.unread }),
            1 => tables.pop().ok_or(ElementTableError::NotFound { kind, unread: 0 }),
            count => Err(ElementTableError::Ambiguous { kind, count }),
        }
    }

    /// Bytes of an element, as the VM has it (`element_size`; of a port it is something else).
    pub fn element_size(&self) -> u32 {
        self.element_size
    }

    /// How many elements it can hold (`+P`, `+Q`; `erlang:system_info(process_limit)`).
    pub fn slots(&self) -> u64 {
        self.count
    }

    /// Bytes of the table itself: slots, and the list of free identifiers (`erts_ptab_mem_size`,
    /// `erts/emulator/beam/erl_ptab.c`, OTP 25.2.3).
    pub fn bytes(&self) -> u64 {
        self.count.saturating_mul(WORD.saturating_add(u64::from(self.free_entry)))
    }

    /// The elements that the table holds now, at most `most`. One that ends meanwhile is left out.
    pub fn elements(&self, memory: &(impl ReadMemory + ?Sized), most: usize) -> Vec<Element> {
        self.look(memory, most).elements
    }

    /// Whether the table holds an element at `address` now.
    pub fn holds(&self, address: Address, memory: &(impl ReadMemory + ?Sized)) -> Result<bool, Unreadable> {
        let [id] = read_words(memory, address)?;
        let Some(slot) = self.slot_of(id).and_then(|slot| self.slots.checked_add(slot.checked_mul(WORD)?)) else {
            return Ok(false);
        };
        let [element] = read_words(memory, slot)?;
        Ok(element == address.0)
    }

    /// The numbers that `<0.A.B>`, or `#Port<0.A>` where `B` is 0, shows of an identifier (`pid_channel_no`,
    /// `erts/emulator/beam/erl_node_container_utils.h`, OTP 25.2.3 and 27.3.4.1).
    pub fn numbers(&self, id: u64) -> (u64, u64) {
        match (self.form, self.kind) {
            (Form::Narrow, ElementKind::Process) => ((id >> 4) & 0x7fff, u64::from(low_half(id)) >> 19),
            (Form::Narrow, ElementKind::Port) => (u64::from(low_half(id)) >> 4, 0),
            (Form::Wide { line, within }, kind) => {
                let data = id >> 4;
                let upper = data & !(self.count - 1);
                let part = |(mask, shift): (u64, u32)| data.checked_shr(shift).unwrap_or(0) & mask;
                let number = upper | part(line) | (data & within.0).checked_shl(within.1).unwrap_or(0);
                match kind {
                    ElementKind::Process => (number & 0x0fff_ffff, number >> 28),
                    ElementKind::Port => (number, 0),
                }
            }
        }
    }

    /// The tables that `words` may begin with.
    fn recognise(kind: ElementKind, words: &[u64]) -> [Option<Self>; 2] {
        let none = [None, None];
        let Some(
            &[slots, free, count, second, third, fourth, shifts, narrow_reserved, _, ninth, tenth, _, _, wide_size],
        ) = words.get(..TABLE_WORDS).and_then(<[u64]>::first_chunk::<TABLE_WORDS>)
        else {
            return none;
        };
        let is_pointer = |word: u64| word.is_multiple_of(WORD) && word >= 4096;
        let (max, narrow_mask) = (u64::from(low_half(count)), u64::from(low_half(count >> 32)));
        if !is_pointer(slots)
            || !is_pointer(free)
            || !(FEWEST_SLOTS..=MOST_SLOTS).contains(&max)
            || !max.is_power_of_two()
        {
            return none;
        }
        // `dix_cl_shift` is the binary logarithm of the entries in a cache line.
        let free_entry =
            |dix_cl_shift: u32| CACHE_LINE.checked_shr(dix_cl_shift).filter(|bytes| [4, 8].contains(bytes));
        let table = |form, reserved: u64, size: u64, dix_cl_shift: u32| {
            let free_entry = free_entry(dix_cl_shift).unwrap_or(0);
            let element_size = u32::try_from(size).ok().filter(|_| ELEMENT_SIZES.contains(&size))?;
            let (slots, reserved) = (Address(slots), Address(reserved));
            is_pointer(reserved.0).then_some(Self { kind, slots, count: max, form, reserved, element_size, free_entry })
        };
        let narrow = (narrow_mask == max - 1).then(|| table(Form::Narrow, narrow_reserved, tenth, high_half(fourth)));
        let (line, within) = ((third, low_half(shifts)), (fourth, low_half(shifts >> 32)));
        let wide = (second == max - 1).then(|| table(Form::Wide { line, within }, tenth, wide_size, low_half(ninth)));
        [narrow.flatten(), wide.flatten()]
    }

    /// The slot that an identifier names.
    fn slot_of(&self, id: u64) -> Option<u64> {
        let slot = match self.form {
            Form::Narrow => id >> 32,
            Form::Wide { .. } => (id >> 4) & (self.count - 1),
        };
        (self.kind.is_tag_of(id) && slot < self.count).then_some(slot)
    }

    fn proves_itself(&self, memory: &(impl ReadMemory + ?Sized)) -> bool {
        let Looked { elements, wrong } = self.look(memory, SAMPLES);
        !elements.is_empty() && wrong <= elements.len() / ENDED
    }

    fn look(&self, memory: &(impl ReadMemory + ?Sized), most: usize) -> Looked {
        let mut looked = Looked::default();
        let mut pending: BTreeMap<u64, Address> = BTreeMap::new();
        let end = self.slots.0.saturating_add(self.count.saturating_mul(WORD));
        let mut from = self.slots.0;
        while from < end && looked.elements.len() < most {
            // As many slots as can fill a call.
            let to = from.saturating_add(AT_ONCE as u64 * WORD).min(end);
            memory.scan(from..to, &mut |at, bytes| {
                for (slot, word) in (at.0..).step_by(8).zip(words_of(bytes)) {
                    if word != 0 && word != self.reserved.0 && word.is_multiple_of(WORD) {
                        memory.used(Address(slot), &word.to_le_bytes());
                        pending.insert((slot - self.slots.0) / WORD, Address(word));
                    }
                }
            });
            let ranges: Vec<_> = pending.values().map(|address| (*address, 8)).collect();
            for ((slot, address), id) in pending.iter().zip(memory.read_many(&ranges)) {
                // What cannot be read has ended.
                let id = id.ok().and_then(|bytes| words_of(&bytes).first().copied());
                match id {
                    Some(id) if self.slot_of(id) == Some(*slot) => {
                        looked.elements.push(Element { address: *address, id });
                    }
                    _ => looked.wrong += 1,
                }
            }
            pending.clear();
            from = to;
        }
        looked.elements.truncate(most);
        looked
    }
}

/// Elements, and how many slots hold what is none.
#[derive(Default)]
struct Looked {
    elements: Vec<Element>,
    wrong: usize,
}
