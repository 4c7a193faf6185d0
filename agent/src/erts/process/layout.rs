//! Where in a `Process` are its heap, its stack and its current function?
//!
//! The offsets are found by what must hold of them in the processes that run now, and only used when it does. See
//! `struct process` in `erts/emulator/beam/erl_process.h` for what the fields are (OTP 23.2.6, 25.2.3 and 27.3.4.1).

use thiserror::Error;

use super::{
    rules::{self, Sample},
    table::{Element, ElementTable},
};
use crate::{
    erts::atom::AtomTable,
    mapping::Address,
    retry,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::read_words,
};

/// How often the processes are read anew: a field that a running process leaves stale is right in another look.
const LOOKS: usize = 8;
/// The most words that a heap may have: 1 TiB.
const LARGEST_HEAP: u64 = (1 << 40) / 8;

/// Offsets in a `Process`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLayout {
    /// `common.id`, a term. It stands first.
    pub id: u32,
    /// `htop`: the end of what is used of the heap, which grows upwards.
    pub htop: u32,
    /// `stop`: the begin of what is used of the stack, which grows downwards towards the heap.
    pub stop: u32,
    /// `heap`: the begin of the block that heap and stack share.
    pub heap: u32,
    /// `hend`: its end, and that of the stack.
    pub hend: u32,
    /// `heap_sz`: its size in words.
    pub heap_size: u32,
    /// `u.initial`: module, function and arity that the process began with, three words.
    pub initial: u32,
    /// `current`: 0, or where the module, function and arity are that the VM last noted as running.
    pub current: u32,
    /// `i`: where a process that does not run goes on. `None`: its code is no machine code.
    pub instruction: Option<u32>,
    /// Bytes of a `Process` (`ErtsPTabReadOnlyData.element_size`).
    pub element_size: u32,
}

/// Module, function and arity, by the terms that the VM has for them (`ErtsCodeMFA`, `erts/emulator/beam/code_ix.h`,
/// OTP 23.2.6, 25.2.3 and 27.3.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeMfa {
    /// Index of the module's name in the atom table.
    pub module: u64,
    /// Index of the function's name in the atom table.
    pub function: u64,
    /// Number of arguments.
    pub arity: u8,
}

/// Heap and stack of a process, proven by `heap <= htop <= stop <= hend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessHead {
    /// First address of the heap.
    pub heap: Address,
    /// First address behind what is used of it.
    pub htop: Address,
    /// First address of the stack.
    pub stop: Address,
    /// First address behind the stack.
    pub hend: Address,
    /// What `current` points to; `None` where it is 0.
    pub current: Option<CodeMfa>,
    /// The function that it began with.
    pub initial: CodeMfa,
}

/// A field that has to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `heap`, `hend` and `heap_sz`.
    Heap,
    /// `htop` and `stop`.
    Stack,
    /// `u.initial`.
    Initial,
    /// `current`.
    Current,
}

impl Field {
    fn rule(self) -> &'static str {
        match self {
            Self::Heap => "hend - heap is heap_sz words",
            Self::Stack => "heap <= htop <= stop <= hend",
            Self::Initial => "u.initial is two atoms and an arity",
            Self::Current => "current is 0 or leads to two atoms and an arity",
        }
    }
}

/// There is no layout that can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProcessLayoutError {
    /// Too few processes could be read.
    #[error("only {read} processes can be read, too few to tell where their stacks are")]
    Processes {
        /// How many.
        read: usize,
    },
    /// No place in the structure is what the rule demands.
    #[error("there is no place in {samples} processes at which {rule}", rule = .field.rule())]
    NotFound {
        /// What was looked for.
        field: Field,
        /// Processes that were looked at.
        samples: usize,
    },
    /// Several are.
    #[error("there are {count} places in {samples} processes at which {rule}", rule = .field.rule())]
    Ambiguous {
        /// What was looked for.
        field: Field,
        /// How many.
        count: usize,
        /// Processes that were looked at.
        samples: usize,
    },
}

/// Why nothing is known of a process now.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// It cannot be read; it may have ended.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// It contradicts itself: it has ended, or was being changed.
    #[error("in the process at {process} it is not so that {rule}", rule = .field.rule())]
    Implausible {
        /// Where it is.
        process: Address,
        /// What is not as it should be.
        field: Field,
    },
}

impl ProcessLayout {
    /// Finds the layout of the processes in `table`.
    pub fn find(
        table: &ElementTable,
        atoms: &AtomTable,
        view: &ProcessView,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<Self, ProcessLayoutError> {
        retry::times(LOOKS, || {
            let samples = Sample::take(table, memory);
            rules::layout(&samples, table.element_size(), atoms, view, memory)
        })
    }

    /// Heap, stack and functions of a process.
    pub fn head(
        &self,
        process: Element,
        atoms: &AtomTable,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<ProcessHead, ProcessError> {
        let Sample { address, words } = Sample::read(process.address, self.element_size, memory)?;
        let implausible = |field| ProcessError::Implausible { process: address, field };
        let word = |offset: u32| rules::word_at(&words, offset);
        let (Some(heap), Some(hend), Some(size)) = (word(self.heap), word(self.hend), word(self.heap_size)) else {
            return Err(implausible(Field::Heap));
        };
        if word(self.id) != Some(process.id) || !is_heap(heap, hend, size) {
            return Err(implausible(Field::Heap));
        }
        let (Some(htop), Some(stop)) = (word(self.htop), word(self.stop)) else {
            return Err(implausible(Field::Stack));
        };
        if !is_stack(heap, htop, stop, hend) {
            return Err(implausible(Field::Stack));
        }
        let initial = rules::words_at(&words, self.initial).and_then(|mfa| CodeMfa::of(&mfa, atoms));
        let initial = initial.ok_or_else(|| implausible(Field::Initial))?;
        let current = match word(self.current) {
            Some(0) => None,
            Some(at) => match CodeMfa::of(&read_words(memory, Address(at))?, atoms) {
                Some(mfa) => Some(mfa),
                None => return Err(implausible(Field::Current)),
            },
            None => return Err(implausible(Field::Current)),
        };
        let [heap, htop, stop, hend] = [heap, htop, stop, hend].map(Address);
        Ok(ProcessHead { heap, htop, stop, hend, current, initial })
    }
}

impl CodeMfa {
    /// What three words say, if they are two atoms and an arity.
    pub fn of(words: &[u64; 3], atoms: &AtomTable) -> Option<Self> {
        let [module, function, arity] = *words;
        Some(Self {
            module: atoms.index_of(module)?,
            function: atoms.index_of(function)?,
            arity: u8::try_from(arity).ok()?,
        })
    }
}

/// Whether a block of `size` words lies between two addresses.
pub(super) fn is_heap(heap: u64, hend: u64, size: u64) -> bool {
    let is_pointer = heap.is_multiple_of(8) && heap >= 4096;
    is_pointer && (1..=LARGEST_HEAP).contains(&size) && size.checked_mul(8) == hend.checked_sub(heap)
}

/// Whether heap and stack lie in their block, in that order.
pub(super) fn is_stack(heap: u64, htop: u64, stop: u64, hend: u64) -> bool {
    htop.is_multiple_of(8) && stop.is_multiple_of(8) && heap <= htop && htop <= stop && stop <= hend
}
