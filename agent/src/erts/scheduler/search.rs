//! Which `ErtsSchedulerData` does a variable lead to, and which ones come behind it?

use std::collections::{BTreeMap, BTreeSet};

use super::{Scheduler, SchedulerKind};
use crate::{
    erts::{
        executable::Variables,
        thread::{NamedThread, ThreadKind},
    },
    libc,
    mapping::Address,
    target::memory::ReadMemory,
    view::ProcessView,
    words::{read_words, words_of},
};

/// `ERTS_CACHE_LINE_SIZE` (`erl_threads.h`, same releases): all of the structures begin at a multiple of it.
const LINE: u64 = 64;
/// The largest `ErtsAlignedSchedulerData` that is looked for. It has 41,728 bytes in OTP 25.2.3 and 41,792 in 27.3.4.1.
const LARGEST: u64 = 256 << 10;
/// Bytes of a word.
const WORD: u64 = 8;

/// The threads that are called like schedulers, by their numbers in their own pid namespace.
pub(super) struct Named<'t>(pub(super) BTreeMap<u32, (&'t NamedThread, SchedulerKind, u32)>);

impl<'t> Named<'t> {
    pub(super) fn of(threads: &'t [NamedThread]) -> Self {
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

/// A search for data with `tid` at one offset.
pub(super) struct Search<'s, M: ?Sized> {
    pub(super) view: &'s ProcessView,
    pub(super) memory: &'s M,
    pub(super) named: &'s Named<'s>,
    /// Where it is in an `ErtsSchedulerData`, in bytes.
    pub(super) tid: u32,
}

impl<M: ReadMemory + ?Sized> Search<'_, M> {
    /// The schedulers whose data a variable leads to.
    pub(super) fn roots(&self, variables: &Variables) -> Vec<Scheduler> {
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
        let is_pointer = tid.is_multiple_of(WORD) && self.view.is_readable(Address(tid));
        let thread = if is_pointer { libc::thread::at(self.view, self.memory, Address(tid))? } else { return None };
        let (thread, kind, number) = self.named.0.get(&thread)?;
        Some(Scheduler { thread: thread.tid, data, kind: *kind, number: *number })
    }

    fn at(&self, data: Address) -> Option<Scheduler> {
        let [tid] = read_words(self.memory, data.checked_add(self.tid.into())?).ok()?;
        self.scheduler(data, tid)
    }

    /// All schedulers of the arrays that the roots are in.
    pub(super) fn all(&self, roots: &[Scheduler]) -> Vec<Scheduler> {
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
