//! Which Erlang function, and which line of its source, is at an address of code that the VM's JIT has made?
//!
//! The VM tells debuggers of all code that it makes, by a list in its own memory. No flag of the VM and no symbol is
//! needed for it: where `__jit_debug_descriptor` is not exported (OTP 29), the list is found among the variables.

mod cover;
mod list;
mod symfile;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::symfile::Emulator;
use self::{
    cover::Cover,
    list::{End, Entry, Fingerprint},
    symfile::{Files, Symfile},
};
use super::mfa::Mfa;
use crate::{
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
};

/// The symbol of the list's head, as [`CodeTable::find`] takes it.
pub const SYMBOL: &str = "__jit_debug_descriptor";

/// Bytes of symbol files that are read in one go, unless one is larger.
const BYTES_AT_ONCE: usize = 4 << 20;
/// Bytes of symbol files that one reading takes at most. A node of 3,000 modules has some 50 MB.
const MOST_BYTES: usize = 512 << 20;

/// The names of all code that the JIT of a VM has made, as far as it was seen.
///
/// Where code was loaded to the addresses of other code, the newer names stand. Code that was purged keeps its names
/// until then.
#[derive(Debug)]
pub struct CodeTable {
    descriptor: Address,
    newest: Option<Fingerprint>,
    cover: Cover,
    files: Files,
    emulator: Option<Emulator>,
    losses: Losses,
}

/// What is at an address of code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Place {
    /// The code of a function.
    Function {
        /// The function.
        mfa: Mfa,
        /// Its source file as the compiler names it. `None`: the module was compiled without lines, the VM is OTP 24, or
        /// the code belongs to no line.
        file: Option<String>,
        /// The line there. `None`: as for the file.
        line: Option<u32>,
        /// Bytes from the begin of the function's header. In a backtrace, the VM prints 16 less as `+ OFFSET`: it counts
        /// from the `mfa` of the `ErtsCodeInfo` (`print_function_from_pc`, `erts/emulator/beam/erl_process.c`, OTP
        /// 25.2.3).
        offset: u32,
    },
    /// The header before a function's code. A process's first frame returns behind that of `normal_exit/0`.
    Prologue {
        /// The function.
        mfa: Mfa,
        /// Bytes from the header's begin.
        offset: u32,
    },
    /// Code that belongs to no function, such as `global::call_nif_shared` or `lists::codeHeader`.
    Fragment {
        /// What the VM calls it.
        name: String,
    },
}

/// Why there is no table.
#[derive(Debug, Error)]
pub enum CodeTableError {
    /// The emulator interprets its code, or was built without the JIT.
    #[error("this emulator has no JIT: nothing of its memory can hold code that was made at run time")]
    NoJit,
    /// There seems to be a JIT, and no list of what it has made.
    #[error(
        "found no list of the code that the JIT has made; {unread} bytes of the executable's variables could not be read"
    )]
    NotFound {
        /// Bytes that were not looked at.
        unread: u64,
    },
    /// Several structures look like the list.
    #[error("{count} structures look like the list of the code that the JIT has made")]
    Ambiguous {
        /// How many.
        count: usize,
    },
    /// What was the list's head is none any more.
    #[error("what is at {at} is no list of code")]
    Implausible {
        /// Where it was.
        at: Address,
    },
    /// The list's head cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// What of the list has no names here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// The list changed under each reading, or leads nowhere: older entries are missing. The next
    /// [`CodeTable::refresh`] begins anew.
    pub cut: bool,
    /// Entries whose description could not be read, or that were freed meanwhile.
    pub unreadable: usize,
    /// Entries of other compilers in the process, and such as nothing is known of.
    pub foreign: usize,
    /// Entries that were left out since all together are too large.
    pub left_out: usize,
}

/// How large a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableSize {
    /// Modules, and fragments that all share as one. One that others have cut may be counted several times.
    pub modules: usize,
    /// Functions and fragments of code.
    pub functions: usize,
    /// Bytes of this process's memory that they take.
    pub bytes: usize,
}

impl CodeTable {
    /// Finds the list, by the address of [`SYMBOL`] where the executable exports it, and reads it.
    pub fn find(
        view: &ProcessView,
        memory: &(impl ReadMemory + ?Sized),
        symbol: Option<Address>,
    ) -> Result<Self, CodeTableError> {
        let is_proven = |descriptor: &Address| {
            let first = list::first(*descriptor, memory).ok().flatten();
            first.is_some_and(|first| list::is_of_the_vm(first, view, memory))
        };
        let descriptor = match symbol.filter(is_proven) {
            Some(descriptor) => descriptor,
            None => list::scan(view, memory)?,
        };
        let mut table = Self {
            descriptor,
            newest: None,
            cover: Cover::default(),
            files: Files::default(),
            emulator: None,
            losses: Losses::default(),
        };
        table.refresh(memory)?;
        Ok(table)
    }

    /// Reads what is new in the list, and says whether anything was.
    pub fn refresh(&mut self, memory: &(impl ReadMemory + ?Sized)) -> Result<bool, CodeTableError> {
        let Self { descriptor, newest, .. } = &*self;
        let first = list::first(*descriptor, memory)?.ok_or(CodeTableError::Implausible { at: *descriptor })?;
        if newest.as_ref().is_some_and(|newest| newest.is_first(first, memory)) {
            return Ok(false);
        }
        let known = |entry: &Entry| newest.as_ref().is_some_and(|newest| newest.is_of(entry, memory));
        let list = list::read(*descriptor, memory, known)?;
        if list.entries.is_empty() {
            return Ok(false);
        }
        // Of a list that does not lead to what is known, all is read; the names of what has left it stay.
        if list.end != End::Known {
            self.losses = Losses { cut: list.end == End::Cut, ..Losses::default() };
        }
        let newest = self.take(&list.entries, memory);
        self.newest = newest.filter(|_| list.end != End::Cut);
        Ok(true)
    }

    /// Takes the names of `entries`, the newest of which is the first, and returns what to know that one by.
    fn take(&mut self, entries: &[Entry], memory: &(impl ReadMemory + ?Sized)) -> Option<Fingerprint> {
        let mut total = 0_usize;
        let mut readable = Vec::new();
        for entry in entries {
            let Some((at, length)) = entry.symfile_range() else {
                self.losses.foreign = self.losses.foreign.saturating_add(1);
                continue;
            };
            total = total.saturating_add(length);
            if total > MOST_BYTES {
                self.losses.left_out = self.losses.left_out.saturating_add(1);
            } else {
                readable.push((entry, (at, length)));
            }
        }
        // The oldest first, so that what is newer comes over it.
        readable.reverse();
        let mut newest = None;
        let mut rest = readable.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0_usize;
            let fits = |(_, (_, length)): &&(&Entry, (Address, usize))| {
                bytes = bytes.saturating_add(*length);
                bytes <= BYTES_AT_ONCE
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (batch, others) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            let ranges: Vec<_> = batch.iter().map(|(_, range)| *range).collect();
            for ((entry, _), symfile) in batch.iter().zip(memory.read_many(&ranges)) {
                newest = symfile.ok().filter(|symfile| self.take_one(entry, symfile, memory));
                if newest.is_none() {
                    self.losses.unreadable = self.losses.unreadable.saturating_add(1);
                }
                newest = newest.filter(|_| entries.first() == Some(*entry));
            }
            rest = others;
        }
        Some(Fingerprint::new(*entries.first()?, &newest?))
    }

    /// Whether `symfile` was that of `entry`.
    fn take_one(&mut self, entry: &Entry, symfile: &[u8], memory: &(impl ReadMemory + ?Sized)) -> bool {
        match Symfile::parse(symfile, &mut self.files) {
            Some(Symfile::Module(module)) => self.cover.put(module),
            Some(Symfile::Emulator(emulator)) => self.emulator = Some(emulator),
            None if !entry.is_still(memory) => return false,
            None => self.losses.foreign = self.losses.foreign.saturating_add(1),
        }
        true
    }

    /// What is at `address`, which for a return address is the one before it. `None`: no code that was seen.
    ///
    /// The list leaves out where code belongs to no line; such code has the line before it.
    pub fn lookup(&self, address: Address) -> Option<Place> {
        self.cover.at(address)?.place(address, &self.files)
    }

    /// The ranges of all code by rising address, holes of up to 1 MiB included. Code may come to be elsewhere later.
    pub fn ranges(&self) -> Vec<Range<Address>> {
        self.cover.ranges()
    }

    /// What the VM says of its emulator. `None`: OTP 24 says nothing.
    pub fn emulator(&self) -> Option<Emulator> {
        self.emulator
    }

    /// What has no names here.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// How large it is.
    pub fn size(&self) -> TableSize {
        let empty = TableSize { bytes: self.files.bytes(), ..TableSize::default() };
        self.cover.modules().fold(empty, |size, module| TableSize {
            modules: size.modules.saturating_add(1),
            functions: size.functions.saturating_add(module.functions()),
            bytes: size.bytes.saturating_add(module.bytes()),
        })
    }
}
