//! Which process runs on a thread?
//!
//! Each scheduler has an `ErtsSchedulerData` that names its thread and the process that runs on it
//! (`erts/emulator/beam/erl_process.h`, OTP 23.2.6, 25.2.3 and 27.3.4.1). Those of the normal schedulers are one array, those
//! of the dirty ones another (`erts_init_scheduling`, `erl_process.c`, same releases). They are found without symbols: a
//! variable of the VM leads to the first one of an array, and that one names the very thread that is called so.

mod search;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use search::{Named, Search};

use super::{
    executable::Variables,
    process::table::ElementTable,
    thread::{NamedThread, ThreadKind},
};
use crate::{
    mapping::Address,
    retry,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::{low_half, read_words, words_of},
};

/// `tid` in `ErtsSchedulerData` (`erl_process.h`): OTP 25.2.3 and 27.3.4.1, and OTP 23.2.6, which has the registers of
/// BEAM in two fields.
const TIDS: [u32; 2] = [32, 40];
/// Bytes behind `tid` in which `type` is looked for: 144 in 25.2.3 and 27.3.4.1.
const HEAD: u32 = 512;
/// How often the schedulers are looked at while processes come and go.
const LOOKS: usize = 16;
/// Bytes of a word.
const WORD: u32 = 8;

/// What a scheduler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerKind {
    /// Erlang code, and what it calls.
    Normal,
    /// Native code that takes long.
    DirtyCpu,
    /// Native code that waits.
    DirtyIo,
}

impl SchedulerKind {
    /// `ErtsSchedType` (`erl_process.h`, OTP 23.2.6, 25.2.3 and 27.3.4.1).
    fn number(self) -> u32 {
        match self {
            Self::Normal => 0,
            Self::DirtyCpu => 1,
            Self::DirtyIo => 2,
        }
    }
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal scheduler",
            Self::DirtyCpu => "dirty CPU scheduler",
            Self::DirtyIo => "dirty IO scheduler",
        })
    }
}

/// A scheduler whose data names its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scheduler {
    /// Its thread ([`NamedThread::tid`]).
    pub thread: u32,
    /// Its `ErtsSchedulerData`.
    pub data: Address,
    /// What it runs.
    pub kind: SchedulerKind,
    /// Its number among those of its kind, from 1 on.
    pub number: u32,
}

impl Scheduler {
    /// What its thread is there for.
    pub fn thread_kind(&self) -> ThreadKind {
        match self.kind {
            SchedulerKind::Normal => ThreadKind::Scheduler(self.number),
            SchedulerKind::DirtyCpu => ThreadKind::DirtyCpu(self.number),
            SchedulerKind::DirtyIo => ThreadKind::DirtyIo(self.number),
        }
    }
}

/// Offsets in an `ErtsSchedulerData`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerLayout {
    /// `tid`: what `pthread_self` returns on its thread.
    pub tid: u32,
    /// `current_process`: the process that runs, or 0.
    pub current_process: u32,
    /// `type`, 32 bits: [`SchedulerKind`].
    pub kind: u32,
    /// `no`: the number of a normal scheduler, else 0.
    pub number: u32,
    /// `dirty_no`: the number of a dirty scheduler, else 0.
    pub dirty_number: u32,
    /// `current_nif`: the environment of the dirty NIF that runs, or 0.
    pub current_nif: u32,
    /// `dirty_shadow_process`: what a dirty NIF has in place of its process.
    pub shadow_process: u32,
    /// `current_port`: the port whose tasks run, or 0.
    pub current_port: u32,
}

/// The schedulers of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedulers {
    /// Where the fields are.
    pub layout: SchedulerLayout,
    /// All that were found, by kind and number.
    pub all: Vec<Scheduler>,
    /// Threads that are called like a scheduler and are none that was found.
    pub unproven: Vec<NamedThread>,
    /// Whether a scheduler was seen while it ran a process of the table. Where none was, each was idle.
    pub seen_running: bool,
}

/// Which process runs on which thread is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SchedulerError {
    /// No thread has the name of a scheduler.
    #[error("none of {threads} threads is called like a scheduler")]
    NoNames {
        /// Threads of the process.
        threads: usize,
    },
    /// No variable leads to the data of one.
    #[error("found no data of {named} schedulers; {unread} bytes of the executable's memory could not be read")]
    NotFound {
        /// Threads that are called like a scheduler.
        named: usize,
        /// Bytes that were not looked at.
        unread: u64,
    },
    /// The data are not laid out as in any release that is known.
    #[error("{places} places in the data of {schedulers} schedulers hold their kinds and numbers, not one")]
    Layout {
        /// Schedulers that were found.
        schedulers: usize,
        /// Places that fit.
        places: usize,
    },
    /// What is said to run on one is no process of the table.
    #[error("what is said to run on {kind} {number} is no process")]
    NoProcess {
        /// Of which kind the scheduler is.
        kind: SchedulerKind,
        /// Its number.
        number: u32,
    },
    /// Its data cannot be read.
    #[error("cannot read the data of {kind} {number}")]
    Unreadable {
        /// Of which kind the scheduler is.
        kind: SchedulerKind,
        /// Its number.
        number: u32,
    },
}

/// Finds the schedulers of `threads`.
pub fn find(
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    threads: &[NamedThread],
    processes: &ElementTable,
) -> Result<Schedulers, SchedulerError> {
    let named = Named::of(threads);
    if named.0.is_empty() {
        return Err(SchedulerError::NoNames { threads: threads.len() });
    }
    let variables = Variables::writable(view, memory);
    let searches = TIDS.map(|tid| {
        let search = Search { view, memory, named: &named, tid };
        let roots = search.roots(&variables);
        (tid, search.all(&roots))
    });
    let (tid, all) = searches.into_iter().max_by_key(|(_, all)| all.len()).unwrap_or_default();
    if all.is_empty() {
        return Err(SchedulerError::NotFound { named: named.0.len(), unread: variables.unread });
    }
    let layout = layout(memory, tid, &all)?;
    let seen_running = retry::times(LOOKS, || check_processes(memory, layout, &all, processes))?;
    let found: BTreeSet<u32> = all.iter().map(|scheduler| scheduler.thread).collect();
    let unproven = named.0.values().filter(|(thread, ..)| !found.contains(&thread.tid));
    let unproven = unproven.map(|(thread, ..)| (*thread).clone()).collect();
    Ok(Schedulers { layout, all, unproven, seen_running })
}

impl Schedulers {
    /// The process that runs on a scheduler now.
    pub fn running(
        &self,
        scheduler: &Scheduler,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<Option<Address>, Unreadable> {
        pointer(memory, scheduler, self.layout.current_process)
    }

    /// The port whose tasks run on a scheduler now.
    pub fn port(
        &self,
        scheduler: &Scheduler,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<Option<Address>, Unreadable> {
        pointer(memory, scheduler, self.layout.current_port)
    }
}

fn pointer(
    memory: &(impl ReadMemory + ?Sized),
    scheduler: &Scheduler,
    offset: u32,
) -> Result<Option<Address>, Unreadable> {
    let at = Address(scheduler.data.0.saturating_add(offset.into()));
    let [pointer] = read_words(memory, at)?;
    Ok((pointer != 0).then_some(Address(pointer)))
}

/// Where the data hold kind and numbers, and what stands around them.
fn layout(memory: &(impl ReadMemory + ?Sized), tid: u32, all: &[Scheduler]) -> Result<SchedulerLayout, SchedulerError> {
    let ranges: Vec<_> = all.iter().map(|scheduler| (scheduler.data, (tid + HEAD) as usize)).collect();
    let mut data = Vec::new();
    for (scheduler, bytes) in all.iter().zip(memory.read_many(&ranges)) {
        let Scheduler { kind, number, .. } = *scheduler;
        // The cause is the same as of any read that fails: the node ends.
        let Ok(bytes) = bytes else { return Err(SchedulerError::Unreadable { kind, number }) };
        data.push((scheduler, words_of(&bytes)));
    }
    let fits = |at: &u32| {
        data.iter().all(|(scheduler, words)| {
            let normal = scheduler.kind == SchedulerKind::Normal;
            let (number, dirty) = if normal { (scheduler.number, 0) } else { (0, scheduler.number) };
            let from = usize::try_from(at / WORD).unwrap_or(usize::MAX);
            match words.get(from..).unwrap_or_default() {
                // `flxctr_slot_no`, `current_nif` and `dirty_shadow_process` come behind.
                [kind, own, own_dirty, _, _, shadow, ..] => {
                    low_half(*kind) == scheduler.kind.number()
                        && *own == u64::from(number)
                        && *own_dirty == u64::from(dirty)
                        && (*shadow == 0) == normal
                }
                _ => false,
            }
        })
    };
    let places: Vec<u32> = (tid + 2 * WORD..tid + HEAD).step_by(8).filter(fits).collect();
    let [kind] = *places.as_slice() else {
        return Err(SchedulerError::Layout { schedulers: all.len(), places: places.len() });
    };
    Ok(SchedulerLayout {
        tid,
        current_process: kind - WORD,
        kind,
        number: kind + WORD,
        dirty_number: kind + 2 * WORD,
        current_nif: kind + 4 * WORD,
        shadow_process: kind + 5 * WORD,
        current_port: kind + 6 * WORD,
    })
}

/// Whether what runs on the schedulers are processes of the table, and any runs.
fn check_processes(
    memory: &(impl ReadMemory + ?Sized),
    layout: SchedulerLayout,
    all: &[Scheduler],
    processes: &ElementTable,
) -> Result<bool, SchedulerError> {
    let mut seen = false;
    for scheduler in all {
        let Scheduler { kind, number, .. } = *scheduler;
        let unreadable = |_| SchedulerError::Unreadable { kind, number };
        let running = pointer(memory, scheduler, layout.current_process).map_err(unreadable)?;
        let Some(running) = running else { continue };
        if !processes.holds(running, memory).map_err(unreadable)? {
            return Err(SchedulerError::NoProcess { kind, number });
        }
        seen = true;
    }
    Ok(seen)
}
