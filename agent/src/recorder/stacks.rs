//! Which stacks were seen, whoever walked them, and how far the walks came.

use std::collections::{BTreeMap, HashMap};

use beamscope_probe::{ErlangEnd, WalkEnd, walk_ends_index};

use crate::{
    kernel::session::{Session, SessionError},
    ledger::{Ledger, StackId, Stacks},
    stack::{StackEnd, raw::RawStack},
    target::process::Target,
};

/// The stacks of a recording.
#[derive(Debug, Default)]
pub(super) struct StackTable {
    stacks: Stacks,
    /// By their keys in the kernel.
    walked: HashMap<u64, StackId>,
    /// Thread that was first seen with each of them.
    threads: HashMap<StackId, u32>,
    /// Stacks that made threads, by the thread.
    creators: HashMap<u32, StackId>,
    unnamed: Vec<StackId>,
    /// Of them, those whose Erlang functions have no names either.
    without_functions: Vec<StackId>,
    /// Walks that were made here.
    ends: WalkCounts,
}

/// How many walks ended how.
#[derive(Clone, Debug, Default)]
pub(super) struct WalkCounts(BTreeMap<(WalkEnd, ErlangEnd), u64>);

impl StackTable {
    /// The stack that the kernel keeps under `key`.
    pub(super) fn walked(
        &mut self,
        key: u64,
        session: &Session,
        target: &Target,
        ledger: &mut Ledger,
    ) -> Result<StackId, SessionError> {
        if let Some(id) = self.walked.get(&key) {
            return Ok(*id);
        }
        let stored = if key == 0 { None } else { session.stack(key)? };
        let Some(stored) = stored else { return Ok(self.intern(RawStack::default())) };
        let id = self.intern(RawStack::of_stored(&stored));
        self.walked.insert(key, id);
        self.thread(id, stored.thread);
        if stored.command.iter().all(|byte| *byte == 0) {
            // A scheduler; its name does not change. A process that is gone has none.
            ledger.thread(id, target.thread_name(stored.thread).unwrap_or_default().as_bytes());
        } else {
            ledger.thread(id, &stored.command);
        }
        Ok(id)
    }

    /// The stack that the kernel was found to keep under `key`.
    pub(super) fn known(&self, key: u64) -> Option<StackId> {
        self.walked.get(&key).copied()
    }

    pub(super) fn intern(&mut self, stack: RawStack) -> StackId {
        let (id, is_new) = self.stacks.intern(stack);
        if is_new {
            self.unnamed.push(id);
            self.without_functions.push(id);
        }
        id
    }

    /// Takes word of a thread that was seen with a stack.
    pub(super) fn thread(&mut self, id: StackId, thread: u32) {
        self.threads.entry(id).or_insert(thread);
    }

    /// Takes word that the stack `id` made `thread`.
    pub(super) fn created(&mut self, thread: u64, id: StackId) {
        if let Ok(thread) = u32::try_from(thread) {
            self.creators.insert(thread, id);
        }
    }

    /// The stack that made `thread`, if that was seen.
    pub(super) fn creator(&self, thread: u32) -> Option<&RawStack> {
        self.get(*self.creators.get(&thread)?)
    }

    /// The thread that was first seen with a stack.
    pub(super) fn first_thread(&self, id: StackId) -> Option<u32> {
        self.threads.get(&id).copied()
    }

    pub(super) fn get(&self, id: StackId) -> Option<&RawStack> {
        self.stacks.get(id)
    }

    /// Stacks that found no room.
    pub(super) fn refused(&self) -> u64 {
        self.stacks.refused
    }

    /// Counts a stack that was walked here.
    pub(super) fn count(&mut self, stack: &RawStack) {
        let end = match stack.end {
            StackEnd::Root | StackEnd::Erlang => WalkEnd::Root,
            StackEnd::Jit => WalkEnd::Jit,
            StackEnd::Truncated => WalkEnd::Unreadable,
            StackEnd::NoUnwindInformation | StackEnd::Missing => WalkEnd::Gap,
        };
        *self.ends.0.entry((end, stack.erlang.end)).or_default() += 1;
    }

    /// All walks, with those that the kernel has counted.
    pub(super) fn ends(&self, session: &Session) -> Result<WalkCounts, SessionError> {
        let mut all = self.ends.clone();
        let counted = session.walks_by_end()?;
        for end in WalkEnd::ALL {
            for erlang in ErlangEnd::ALL {
                let index = usize::try_from(walk_ends_index(end as u32, erlang as u32)).ok();
                let count = index.and_then(|index| counted.get(index)).copied().unwrap_or(0);
                *all.0.entry((end, erlang)).or_default() += count;
            }
        }
        Ok(all)
    }

    /// Passes on the stacks that have no names yet.
    pub(super) fn learn(&mut self, learn: impl FnOnce(&[&RawStack])) {
        pass_on(&self.stacks, &mut self.unnamed, learn);
    }

    /// Passes on the stacks whose Erlang functions have no names yet.
    pub(super) fn learn_erlang(&mut self, learn: impl FnOnce(&[&RawStack])) {
        pass_on(&self.stacks, &mut self.without_functions, learn);
    }
}

fn pass_on(stacks: &Stacks, new: &mut Vec<StackId>, learn: impl FnOnce(&[&RawStack])) {
    if !new.is_empty() {
        learn(&new.iter().filter_map(|id| stacks.get(*id)).collect::<Vec<_>>());
        new.clear();
    }
}

impl WalkCounts {
    /// All walks.
    pub(super) fn all(&self) -> u64 {
        self.0.values().sum()
    }

    /// Walks that came to the thread's root, or to Erlang code and the first function of its process.
    pub(super) fn complete(&self) -> u64 {
        let is_complete = |(end, erlang): &(WalkEnd, ErlangEnd)| match end {
            WalkEnd::Root => matches!(erlang, ErlangEnd::NoProcess | ErlangEnd::Complete),
            // Between two processes a scheduler is in code that was made at run time, too.
            WalkEnd::Jit => matches!(erlang, ErlangEnd::NoProcess | ErlangEnd::Complete),
            _ => false,
        };
        self.0.iter().filter(|(ends, _)| is_complete(ends)).map(|(_, count)| count).sum()
    }

    /// What is missing in the others, by reason.
    pub(super) fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().filter_map(|((end, erlang), count)| {
            let reason = match (end, erlang) {
                (WalkEnd::NoModule, _) => "stacks_that_leave_known_code",
                (WalkEnd::Gap, _) => "stacks_without_unwind_information",
                (WalkEnd::Unsupported, _) => "stacks_with_unsupported_unwind_rules",
                (WalkEnd::TooDeep, _) => "stacks_too_deep",
                (WalkEnd::Unreadable, _) => "truncated_stacks",
                (WalkEnd::Implausible, _) => "implausible_stacks",
                (WalkEnd::Trampoline, _) => "stacks_behind_probed_returns",
                (_, ErlangEnd::TooDeep) => "erlang_stacks_too_deep",
                (_, ErlangEnd::Unreadable) => "unreadable_erlang_stacks",
                (_, ErlangEnd::Implausible) => "implausible_erlang_stacks",
                (_, ErlangEnd::Unknown) => "stacks_without_erlang_frames",
                (WalkEnd::Root | WalkEnd::Jit, _) => return None,
            };
            Some((reason, *count))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each walk is complete, or there is a reason why it is not.
    #[test]
    fn every_walk_is_accounted_for() {
        let mut counts = WalkCounts::default();
        for (number, (end, erlang)) in
            (1..).zip(WalkEnd::ALL.iter().flat_map(|end| ErlangEnd::ALL.map(|erlang| (*end, erlang))))
        {
            counts.0.insert((end, erlang), number);
        }
        let lost: u64 = counts.losses().map(|(_, stacks)| stacks).sum();
        assert_eq!(counts.complete() + lost, counts.all());
        assert!(counts.complete() > 0 && lost > 0);
    }

    #[test]
    fn a_stack_that_was_cut_is_not_complete() {
        let of = |end, erlang| WalkCounts(BTreeMap::from([((end, erlang), 1)])).complete();
        assert_eq!(of(WalkEnd::Root, ErlangEnd::NoProcess), 1);
        assert_eq!(of(WalkEnd::Jit, ErlangEnd::Complete), 1);
        assert_eq!(of(WalkEnd::Jit, ErlangEnd::Unknown), 0);
        assert_eq!(of(WalkEnd::Root, ErlangEnd::Unreadable), 0);
        assert_eq!(of(WalkEnd::Gap, ErlangEnd::Complete), 0);
    }
}
