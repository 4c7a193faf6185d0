//! A stack before its addresses have names: what the kernel has walked, or what was walked here.

use std::ops::Range;

use beamscope_probe::{ErlangEnd, STACK_WORDS, SchedulerKind, StackImage, StoredStack, WalkEnd};

use super::StackEnd;
use crate::mapping::Address;

/// A stack of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawStack {
    /// From the leaf to the root. Return addresses, except for the first where [`RawStack::leaf_is_return`] is false.
    pub addresses: Vec<Address>,
    /// Whether the first address is a return address too: the call stands before it.
    pub leaf_is_return: bool,
    /// Where the walk came to its end.
    pub end: StackEnd,
    /// The Erlang process on the thread.
    pub erlang: RawErlang,
    /// Which kind of scheduler the thread was, as far as that was known in the kernel.
    pub scheduler: Option<SchedulerKind>,
    /// The driver for whose port the scheduler worked; 0 for none.
    pub driver: Address,
}

/// The stack of an Erlang process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawErlang {
    /// Module, function and arity that the VM noted last as running, as it has them (`Process.current`); 0 for none.
    pub current: [u64; 3],
    /// Return addresses, from the innermost on.
    pub addresses: Vec<Address>,
    /// What became of it.
    pub end: ErlangEnd,
}

/// A stack that the kernel has copied, to be walked here.
#[derive(Clone, Debug)]
pub struct Captured<'a> {
    /// Where the walk begins, and what else is known.
    pub image: StackImage,
    /// The thread's stack, from the page of the stack pointer on.
    pub stack: &'a [u8],
    /// The Erlang process's stack, from its top.
    pub erlang: Vec<u64>,
}

impl Default for RawStack {
    /// One of which nothing was captured.
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            leaf_is_return: true,
            end: StackEnd::Missing,
            erlang: RawErlang::default(),
            scheduler: None,
            driver: Address(0),
        }
    }
}

impl Default for RawErlang {
    fn default() -> Self {
        Self { current: [0; 3], addresses: Vec::new(), end: ErlangEnd::NoProcess }
    }
}

impl RawStack {
    /// The stack that the kernel has stored.
    pub fn of_stored(stored: &StoredStack) -> Self {
        let words = |from: u32, count: u32| -> Vec<Address> {
            let from = usize::try_from(from).unwrap_or(usize::MAX);
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            stored.words.iter().skip(from).take(count).map(|word| Address(*word)).collect()
        };
        Self {
            addresses: words(0, stored.native),
            leaf_is_return: stored.leaf_is_return != 0,
            end: WalkEnd::try_from(stored.end).map_or(StackEnd::NoUnwindInformation, stack_end),
            erlang: RawErlang {
                current: stored.current,
                addresses: words(stored.native, stored.erlang),
                end: ErlangEnd::try_from(stored.erlang_end).unwrap_or(ErlangEnd::Implausible),
            },
            scheduler: scheduler(stored.scheduler),
            driver: Address(stored.driver),
        }
    }
}

impl RawErlang {
    /// Of the `words` from the top of a process's stack those that can be return addresses into `code`; beside `native`
    /// native frames there is room for the rest of [`STACK_WORDS`].
    pub fn of_words(current: [u64; 3], words: &[u64], end: ErlangEnd, code: &Range<u64>, native: usize) -> Self {
        let mut found = Self { current, addresses: Vec::new(), end };
        // Return addresses have no tag (`_CPMASK`, erts/emulator/beam/erl_term.h, OTP 25.2.3).
        for word in words.iter().filter(|word| word.is_multiple_of(4) && code.contains(word)) {
            if native.saturating_add(found.addresses.len()) >= STACK_WORDS {
                found.end = ErlangEnd::TooDeep;
                break;
            }
            found.addresses.push(Address(*word));
        }
        found
    }
}

/// A [`SchedulerKind`] as the kernel tells it.
pub fn scheduler(kind: u32) -> Option<SchedulerKind> {
    [SchedulerKind::Normal, SchedulerKind::DirtyCpu, SchedulerKind::DirtyIo]
        .into_iter()
        .find(|known| *known as u32 == kind)
}

/// What the end of a walk says of the stack.
pub fn stack_end(end: WalkEnd) -> StackEnd {
    match end {
        WalkEnd::Root => StackEnd::Root,
        WalkEnd::Jit => StackEnd::Jit,
        WalkEnd::TooDeep | WalkEnd::Unreadable => StackEnd::Truncated,
        WalkEnd::NoModule | WalkEnd::Gap | WalkEnd::Unsupported | WalkEnd::Implausible | WalkEnd::Trampoline => {
            StackEnd::NoUnwindInformation
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_words_that_are_there() {
        let mut stored = StoredStack { words: [0; STACK_WORDS], ..bytemuck::Zeroable::zeroed() };
        stored.words[..4].copy_from_slice(&[0x10, 0x20, 0x30, 0x99]);
        (stored.native, stored.erlang, stored.end) = (2, 1, WalkEnd::Jit as u32);
        (stored.erlang_end, stored.scheduler, stored.leaf_is_return) = (ErlangEnd::Complete as u32, 2, 1);
        let stack = RawStack::of_stored(&stored);
        assert_eq!(stack.addresses, [Address(0x10), Address(0x20)]);
        assert_eq!((stack.end, stack.scheduler), (StackEnd::Jit, Some(SchedulerKind::DirtyCpu)));
        assert_eq!((stack.erlang.addresses.as_slice(), stack.erlang.end), (&[Address(0x30)][..], ErlangEnd::Complete));
    }

    #[test]
    fn any_stored_stack_is_taken() {
        let mut stored: StoredStack = bytemuck::Zeroable::zeroed();
        (stored.native, stored.erlang, stored.end, stored.erlang_end) = (u32::MAX, u32::MAX, 77, 78);
        let stack = RawStack::of_stored(&stored);
        assert_eq!((stack.addresses.len(), stack.erlang.addresses.len()), (STACK_WORDS, 0));
        assert_eq!((stack.end, stack.erlang.end), (StackEnd::NoUnwindInformation, ErlangEnd::Implausible));
    }

    #[test]
    fn only_untagged_words_in_the_code_are_return_addresses() {
        let code = 0x1000..0x2000;
        let words = [0x1000, 0x1001, 0x1ffc, 0x2000, 0xffc, 0x1002];
        let found = RawErlang::of_words([0; 3], &words, ErlangEnd::Complete, &code, 0);
        assert_eq!(found.addresses, [Address(0x1000), Address(0x1ffc)]);
        let full = RawErlang::of_words([0; 3], &words, ErlangEnd::Complete, &code, STACK_WORDS - 1);
        assert_eq!((full.addresses.len(), full.end), (1, ErlangEnd::TooDeep));
    }
}
