//! Which process runs on a thread?
//!
//! Each scheduler has an `ErtsSchedulerData` that names its thread and the process that runs on it
//! (`erts/emulator/beam/erl_process.h`, OTP 23.2.6, 25.2.3 and 27.3.4.1). Those of the normal schedulers are one array, those
//! of the dirty ones another (`erts_init_scheduling`, `erl_process.c`, same releases). They are found without symbols: a
//! variable of the VM leads to the first one of an array, and that one names the very thread that is called so.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    executable::Variables,
    process::table::ElementTable,
    thread::{NamedThread, ThreadKind},
};
use crate::{
    libc,
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
/// `ERTS_CACHE_LINE_SIZE` (`erl_threads.h`, same releases): all of the structures begin at a multiple of it.
const LINE: u64 = 64;
/// The largest `ErtsAlignedSchedulerData` that is looked for. It has 41,728 bytes in OTP 25.2.3 and 41,792 in 27.3.4.1.
const LARGEST: u64 = 256 << 10;
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

/// The threads that are called like schedulers, by their numbers in their own pid namespace.
struct Named<'t>(BTreeMap<u32, (&'t NamedThread, SchedulerKind, u32)>);

impl<'t> Named<'t> {
    fn of(threads: &'t [NamedThread]) -> Self {
        let scheduler = |thread: &'t NamedThread| {
            let (kind, number) = match ThreadKind::of_name(&thread.name)? {
                ThreadKind::Scheduler(number) => (SchedulerKind::Normal, number),
                ThreadKind::DirtyCpu(number) => (SchedulerKind::DirtyCpu, number),
                ThreadKind::DirtyIo(number) => (SchedulerKind::DirtyIo, number),
                _ => return None,
            };
            Some((thread.inner, (thread, kind, number)))
        };
        Self(threads.iter().filter_map(scheduler).collect())
    }

    /// How many schedulers of a kind there can be.
    fn count(&self, kind: SchedulerKind) -> u32 {
        let numbers = self.0.values().filter(|(_, other, _)| *other == kind).map(|(.., number)| *number);
        // A thread may be called whatever a NIF says.
        let most = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        numbers.filter(|number| *number <= most).max().unwrap_or(0)
    }
}

struct Search<'s, M: ?Sized> {
    view: &'s ProcessView,
    memory: &'s M,
    named: &'s Named<'s>,
    tid: u32,
}

impl<M: ReadMemory + ?Sized> Search<'_, M> {
    /// The schedulers whose data a variable leads to.
    fn roots(&self, variables: &Variables) -> Vec<Scheduler> {
        let pointers = variables.iter().filter_map(|(_, words)| words.first().copied());
        let candidates: BTreeSet<u64> = pointers.filter(|word| self.is_data(*word)).collect();
        let candidates: Vec<u64> = candidates.into_iter().collect();
        let ranges: Vec<_> = candidates.iter().map(|data| (Address(data.saturating_add(self.tid.into())), 8)).collect();
        let read = candidates.iter().zip(self.memory.read_many(&ranges));
        read.filter_map(|(data, bytes)| self.scheduler(Address(*data), *words_of(&bytes.ok()?).first()?)).collect()
    }

    fn is_data(&self, word: u64) -> bool {
        word != 0 && word.is_multiple_of(LINE) && self.view.is_readable(Address(word))
    }

    /// The scheduler whose data is at `data` and has `tid` there.
    fn scheduler(&self, data: Address, tid: u64) -> Option<Scheduler> {
        let is_pointer = tid.is_multiple_of(WORD.into()) && self.view.is_readable(Address(tid));
        let thread = if is_pointer { libc::thread::at(self.view, self.memory, Address(tid))? } else { return None };
        let (thread, kind, number) = self.named.0.get(&thread)?;
        Some(Scheduler { thread: thread.tid, data, kind: *kind, number: *number })
    }

    fn at(&self, data: Address) -> Option<Scheduler> {
        let [tid] = read_words(self.memory, data.checked_add(self.tid.into())?).ok()?;
        self.scheduler(data, tid)
    }

    /// All schedulers of the arrays that the roots are in.
    fn all(&self, roots: &[Scheduler]) -> Vec<Scheduler> {
        let mut all: BTreeSet<(SchedulerKind, u32, Scheduler)> = BTreeSet::new();
        let size = roots.iter().find_map(|root| self.size(root));
        let kinds = [SchedulerKind::Normal, SchedulerKind::DirtyCpu, SchedulerKind::DirtyIo];
        let mut behind = None;
        for kind in kinds {
            let first = roots.iter().copied().filter(|root| root.kind == kind && root.number == 1);
            let continued = behind.filter(|_| kind == SchedulerKind::DirtyIo).and_then(|data| self.at(data));
            let Some(first) = first.chain(continued).find(|root| root.kind == kind && root.number == 1) else {
                continue;
            };
            for index in 0..self.named.count(kind) {
                let offset = u64::from(index).checked_mul(size.unwrap_or(0));
                let Some(data) = offset.and_then(|offset| first.data.checked_add(offset)) else { break };
                if let Some(found) = self.at(data).filter(|found| found.kind == kind && found.number == index + 1) {
                    all.insert((kind, found.number, found));
                }
                behind = size.and_then(|size| data.checked_add(size));
            }
        }
        all.into_iter().map(|(.., scheduler)| scheduler).collect()
    }

    /// Bytes from a scheduler's data to that of the next one.
    fn size(&self, root: &Scheduler) -> Option<u64> {
        let follows = |next: &Scheduler| {
            let is_next = next.kind == root.kind && next.number == root.number + 1;
            let is_first_io =
                root.kind == SchedulerKind::DirtyCpu && next.kind == SchedulerKind::DirtyIo && next.number == 1;
            is_next || (is_first_io && root.number == self.named.count(SchedulerKind::DirtyCpu))
        };
        let mut found = None;
        let start = root.data.0.checked_add(self.tid.into())?;
        self.memory.scan(start.checked_add(LINE)?..start.checked_add(LARGEST)?, &mut |at, bytes| {
            for (at, word) in (at.0..).step_by(8).zip(words_of(bytes)) {
                if found.is_none() && (at - start).is_multiple_of(LINE) {
                    let next = self.scheduler(Address(at - u64::from(self.tid)), word);
                    found = next.filter(follows).map(|next| next.data.0 - root.data.0);
                    if found.is_some() {
                        self.memory.used(Address(at), &word.to_le_bytes());
                    }
                }
            }
        });
        found
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::erts::{
        executable::tests::{DATA, HEAP},
        process::{
            table::ElementKind,
            tests::{Vm, process},
        },
    };

    const NORMAL: u64 = HEAP + 0x10000;
    const DIRTY: u64 = HEAP + 0x14000;
    const DESCRIPTORS: u64 = HEAP + 0x18000;
    const SIZE: u64 = 1024;
    const NAMES: [&str; 6] =
        ["erts_sched_1", "erts_sched_2", "erts_dcpus_1", "erts_dios_1", "erts_dios_2", "erts_sched_1"];

    /// Two normal schedulers, three dirty ones, and a thread with a name that is not its own.
    fn vm(tid: u64) -> (Vm, Vec<NamedThread>) {
        let mut vm = Vm::new(true);
        let threads: Vec<_> = NAMES.iter().zip(10..).map(|(name, tid)| thread(tid, name)).collect();
        vm.node.view.threads = threads.iter().map(|thread| thread.inner).collect();
        let descriptor = |index: u64| DESCRIPTORS + index * 0x1000;
        let count = NAMES.len() as u64;
        for index in 0..count {
            let at = descriptor(index);
            vm.node.put_words(at, &[at, 1, at]);
            let list = |index: u64| descriptor(index % count) + 704;
            vm.node.put_words(at + 704, &[list(index + 1), list(index + count - 1), thread_number(index)]);
        }
        let kinds = [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2)];
        for (index, (kind, number)) in (0..).zip(kinds) {
            let data = if index < 2 { NORMAL + index * SIZE } else { DIRTY + (index - 2) * SIZE };
            vm.node.put_words(data + tid, &[descriptor(index)]);
            let (normal, dirty) = if kind == 0 { (number, 0) } else { (0, number) };
            let running = if number == 1 { process(index).0 } else { 0 };
            vm.node.put_words(data + tid + 136, &[running, kind, normal, dirty, 0, 0, dirty * HEAP, 0]);
        }
        vm.node.put_words(DATA + 0x600, &[NORMAL, DIRTY, HEAP, 64]);
        (vm, threads)
    }

    fn thread_number(index: u64) -> u64 {
        index + 1010
    }

    fn thread(tid: u32, name: &str) -> NamedThread {
        NamedThread { tid, inner: tid + 1000, name: name.into() }
    }

    fn find_in(vm: &Vm, threads: &[NamedThread]) -> Result<Schedulers, SchedulerError> {
        find(&vm.node.view, &vm.node.memory, threads, &vm.table(ElementKind::Process).expect("a table"))
    }

    #[test]
    fn finds_all_schedulers_by_their_threads() {
        for tid in TIDS {
            let (vm, threads) = vm(tid.into());
            let found = find_in(&vm, &threads).unwrap();
            let all: Vec<_> = found.all.iter().map(|one| (one.thread, one.thread_kind().to_string())).collect();
            let expected = [
                (10, "normal scheduler 1"),
                (11, "normal scheduler 2"),
                (12, "dirty CPU scheduler 1"),
                (13, "dirty IO scheduler 1"),
                (14, "dirty IO scheduler 2"),
            ];
            assert_eq!(all, expected.map(|(tid, kind)| (tid, kind.to_owned())));
            assert_eq!(found.unproven, [thread(15, "erts_sched_1")]);
            assert!(found.seen_running);
            let SchedulerLayout { current_process, current_nif, current_port, .. } = found.layout;
            assert_eq!([current_process, current_nif, current_port], [tid + 136, tid + 176, tid + 192]);
            assert_eq!(found.running(&found.all[2], &vm.node.memory).unwrap(), Some(process(2)));
            assert_eq!(found.running(&found.all[1], &vm.node.memory).unwrap(), None);
        }
    }

    #[test]
    fn refuses_what_is_not_proven() {
        let (vm, threads) = vm(32);
        assert_eq!(find_in(&vm, &[thread(1, "beam.smp")]), Err(SchedulerError::NoNames { threads: 1 }));
        let check = |at: u64, word: u64, expected| {
            let mut vm = vm.clone();
            vm.node.put_words(at, &[word]);
            assert_eq!(find_in(&vm, &threads), Err(expected));
        };
        let layout = SchedulerError::Layout { schedulers: 5, places: 0 };
        check(NORMAL + 176, 1, layout);
        check(DIRTY + 176, 2, layout);
        check(NORMAL + SIZE + 184, 1, layout);
        check(NORMAL + 216, HEAP, layout);
        check(DIRTY + 216, 0, layout);
        let stranger = SchedulerError::NoProcess { kind: SchedulerKind::Normal, number: 1 };
        check(NORMAL + 168, HEAP, stranger);
        let mut gone = vm.clone();
        gone.node.put_words(DATA + 0x600, &[0, 0]);
        assert_eq!(find_in(&gone, &threads), Err(SchedulerError::NotFound { named: 6, unread: 0 }));
    }

    proptest! {
        #[test]
        fn any_damage_is_survived(damage: Vec<(u32, u8)>) {
            let (mut vm, threads) = vm(32);
            for (offset, byte) in damage {
                vm.node.put(NORMAL + u64::from(offset) % 0xe000, &[byte]);
            }
            if let Ok(found) = find_in(&vm, &threads) {
                prop_assert!(!found.all.is_empty() && found.all.len() <= threads.len());
            }
        }
    }
}
