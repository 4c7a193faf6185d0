//! Where is the list of the code that the VM has made, and what stands in it?
//!
//! `__jit_debug_descriptor` and its entries are GDB's interface for compilers
//! (<https://sourceware.org/gdb/current/onlinedocs/gdb.html/JIT-Interface.html>), which the VM always fills
//! (`erts/emulator/beam/jit/beam_jit_metadata.cpp`, OTP 25.2.3 and 27.3.4.1). A new entry becomes the first. OTP 25 removes
//! none; OTP 27 frees those of code that is purged, so the list may change while it is read.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::{
    CodeTableError,
    symfile::{Files, Symfile},
};
use crate::{
    erts::executable::Variables,
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::read_words,
};

/// `version` of a `jit_descriptor`.
const VERSION: u64 = 1;
/// `JIT_UNREGISTER_FN`, the highest `action_flag`.
const LAST_ACTION: u64 = 2;
/// Entries that are looked at in a list: OTP 25 keeps one for each time that a module was loaded.
const MOST_ENTRIES: usize = 1 << 18;
/// Bytes of a symbol file at most. A module of 100,000 lines has some 4 MB.
const LARGEST_SYMFILE: u64 = 64 << 20;
/// Entries at the begin of a list of which one has to be the VM's: libraries may have put theirs before it.
const SAMPLES: usize = 64;
/// How often a list is read that changes meanwhile.
const ATTEMPTS: usize = 4;

/// A `jit_code_entry`, with its own address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: Address,
    next: u64,
    pub(super) symfile: Address,
    pub(super) size: u64,
}

/// The entries of a list, the newest first.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) entries: Vec<Entry>,
    pub(super) end: End,
}

/// Why a list was followed no further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    /// The next entry is known, and with it all behind it.
    Known,
    /// There is no other.
    Last,
    /// The next entry does not belong there, or cannot be read.
    #[default]
    Cut,
}

/// An entry as it was, to know it again. Its memory may meanwhile be that of another.
#[derive(Debug)]
pub(super) struct Fingerprint {
    entry: Entry,
    digest: u64,
}

/// The address of the first entry, 0 where there is none. `None`: there is no descriptor at `descriptor`.
pub(super) fn first(descriptor: Address, memory: &(impl ReadMemory + ?Sized)) -> Result<Option<u64>, Unreadable> {
    read_words(memory, descriptor).map(|words| first_of(&words))
}

fn first_of(&[version_action, _relevant, first]: &[u64; 3]) -> Option<u64> {
    let (version, action) = (version_action & u64::from(u32::MAX), version_action >> 32);
    (version == VERSION && action <= LAST_ACTION && first.is_multiple_of(8)).then_some(first)
}

/// The descriptor among the executable's variables.
pub(super) fn scan(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Address, CodeTableError> {
    let variables = Variables::writable(view, memory);
    let candidates = variables.iter().filter_map(|(at, words)| {
        let first = first_of(words.first_chunk()?).filter(|first| *first != 0 && view.is_readable(Address(*first)))?;
        is_of_the_vm(first, view, memory).then_some(at)
    });
    let mut candidates: Vec<Address> = candidates.collect();
    match (candidates.pop(), candidates.len()) {
        (Some(found), 0) => Ok(found),
        (Some(_), others) => Err(CodeTableError::Ambiguous { count: others.saturating_add(1) }),
        (None, _) if view.mappings.iter().any(|memory| memory.mapping.is_jit()) => {
            Err(CodeTableError::NotFound { unread: variables.unread })
        }
        (None, _) => Err(CodeTableError::NoJit),
    }
}

/// Whether the list that begins at `first` describes code that is there.
pub(super) fn is_of_the_vm(first: u64, view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> bool {
    let is_code =
        |address: u64| view.mapping_at(Address(address)).is_some_and(|memory| memory.mapping.permissions.execute);
    let entries = walk(first, memory, SAMPLES, |_| false).entries;
    // What only looks like an entry would have megabytes read.
    let lies_in_memory = |entry: &&Entry| {
        let last = entry.symfile.checked_add(entry.size.saturating_sub(1));
        view.is_readable(entry.symfile) && last.is_some_and(|last| view.is_readable(last))
    };
    entries.iter().filter(lies_in_memory).any(|entry| {
        let symfile = read_symfile(entry, memory).and_then(|bytes| Symfile::parse(&bytes, &mut Files::default()));
        match symfile {
            Some(Symfile::Module(module)) => is_code(module.range().start),
            Some(Symfile::Emulator(emulator)) => is_code(emulator.normal_exit.0),
            None => false,
        }
    })
}

/// The entries before the first that is `known`. A list that changes meanwhile is read again.
pub(super) fn read(
    descriptor: Address,
    memory: &(impl ReadMemory + ?Sized),
    known: impl Fn(&Entry) -> bool,
) -> Result<Entries, CodeTableError> {
    let mut entries = Entries::default();
    for _ in 0..ATTEMPTS {
        let first = first(descriptor, memory)?.ok_or(CodeTableError::Implausible { at: descriptor })?;
        entries = walk(first, memory, MOST_ENTRIES, &known);
        if entries.end != End::Cut {
            break;
        }
    }
    Ok(entries)
}

fn walk(first: u64, memory: &(impl ReadMemory + ?Sized), most: usize, known: impl Fn(&Entry) -> bool) -> Entries {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at = first;
    let end = loop {
        // A list that leads back to its begin has no end.
        if at == 0 || entries.len() >= most || at == first && !entries.is_empty() {
            break if at == 0 { End::Last } else { End::Cut };
        }
        let Ok([next, before, symfile, size]) = read_words(memory, Address(at)) else { break End::Cut };
        // Nothing sets `before` of the first entry in OTP 25.
        if !at.is_multiple_of(8) || entries.last().is_some_and(|last| last.at.0 != before) {
            break End::Cut;
        }
        let entry = Entry { at: Address(at), next, symfile: Address(symfile), size };
        if known(&entry) {
            break End::Known;
        }
        entries.push(entry);
        at = next;
    };
    Entries { entries, end }
}

impl Entry {
    /// The symbol file's range, if it is one to be read.
    pub(super) fn symfile_range(&self) -> Option<(Address, usize)> {
        let size = Some(self.size).filter(|size| (1..=LARGEST_SYMFILE).contains(size))?;
        self.symfile.checked_add(size)?;
        Some((self.symfile, usize::try_from(size).ok()?))
    }

    /// Whether the same entry is still there.
    pub(super) fn is_still(&self, memory: &(impl ReadMemory + ?Sized)) -> bool {
        read_words(memory, self.at)
            .is_ok_and(|[next, _before, symfile, size]| (next, symfile, size) == (self.next, self.symfile.0, self.size))
    }
}

fn read_symfile(entry: &Entry, memory: &(impl ReadMemory + ?Sized)) -> Option<Vec<u8>> {
    let (at, length) = entry.symfile_range()?;
    let mut bytes = vec![0; length];
    memory.read(at, &mut bytes).ok().map(|()| bytes)
}

impl Fingerprint {
    /// That of `entry`, whose symbol file is `symfile`.
    pub(super) fn new(entry: Entry, symfile: &[u8]) -> Self {
        Self { entry, digest: digest(symfile) }
    }

    /// Whether `entry` is the same.
    pub(super) fn is_of(&self, entry: &Entry, memory: &(impl ReadMemory + ?Sized)) -> bool {
        self.entry == *entry && read_symfile(entry, memory).is_some_and(|bytes| digest(&bytes) == self.digest)
    }

    /// Whether the list still begins with it.
    pub(super) fn is_first(&self, first: u64, memory: &(impl ReadMemory + ?Sized)) -> bool {
        self.entry.at.0 == first && self.entry.is_still(memory) && self.is_of(&self.entry, memory)
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
