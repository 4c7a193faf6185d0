//! What tells the fields of a `Process` from each other?
//!
//! Each rule is tried at every place of the structure, over many processes. Those that run meanwhile, or end, break
//! rules: nine in ten have to keep them.

use super::{
    layout::{CodeMfa, Field, ProcessLayout, ProcessLayoutError, is_heap, is_stack},
    table::{ElementKind, ElementTable},
};
use crate::{
    erts::atom::AtomTable,
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::{read_block, words_of},
};

/// Processes that are looked at.
const SAMPLES: usize = 400;
/// Of these, how many must be readable. An idle VM has some 40 processes.
const ENOUGH: usize = 8;
/// Bytes of a word.
const WORD: u32 = 8;
/// From `u.initial`, which has three words, to `current` (`struct process`, `erts/emulator/beam/erl_process.h`, OTP 23.2.6,
/// 25.2.3 and 27.3.4.1; found at run time in 29.1.2).
const INITIAL_TO_CURRENT: u32 = 24;
/// From `heap` to `heap_sz`: `hend` and `abandoned_heap` are between (ibid.).
const HEAP_TO_SIZE: u32 = 24;

/// A process as it was at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Where it is.
    pub(super) address: Address,
    /// Its words.
    pub(super) words: Vec<u64>,
}

impl Sample {
    /// Processes of the table, those that have a heap.
    pub(super) fn take(table: &ElementTable, memory: &(impl ReadMemory + ?Sized)) -> Vec<Self> {
        let elements = table.elements(memory, SAMPLES);
        let size = usize::try_from(table.element_size()).unwrap_or_default();
        let ranges: Vec<_> = elements.iter().map(|element| (element.address, size)).collect();
        let read = elements.iter().zip(memory.read_many(&ranges));
        let samples = read.filter_map(|(element, bytes)| {
            let words = words_of(&bytes.ok()?);
            (words.first() == Some(&element.id)).then_some(Self { address: element.address, words })
        });
        samples.collect()
    }

    /// One process.
    pub(super) fn read(address: Address, size: u32, memory: &(impl ReadMemory + ?Sized)) -> Result<Self, Unreadable> {
        let words = read_block(memory, address, usize::try_from(size).unwrap_or_default())?;
        Ok(Self { address, words })
    }
}

/// The word at an offset in bytes.
pub(super) fn word_at(words: &[u64], offset: u32) -> Option<u64> {
    words.get(usize::try_from(offset / WORD).ok()?).copied()
}

/// `N` words from an offset in bytes on.
pub(super) fn words_at<const N: usize>(words: &[u64], offset: u32) -> Option<[u64; N]> {
    words.get(usize::try_from(offset / WORD).ok()?..)?.first_chunk().copied()
}

/// The layout by all rules.
pub(super) fn layout(
    samples: &[Sample],
    element_size: u32,
    atoms: &AtomTable,
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
) -> Result<ProcessLayout, ProcessLayoutError> {
    if samples.len() < ENOUGH {
        return Err(ProcessLayoutError::Processes { read: samples.len() });
    }
    let rules = Rules { samples, size: element_size };
    let heap = rules.only(Field::Heap, &rules.places(|words, at| heap_at(words, at).is_some()))?;
    let hend = heap + WORD;
    // A VM with frame pointers has `frame_pointer` right behind `stop`, and it is in the stack as well.
    let mut stacks = rules.places(|words, at| stack_at(words, heap, at).is_some());
    stacks.retain(|at| ![heap - WORD.min(heap), heap, hend].contains(at) && rules.is_mostly_apart(heap, *at));
    if let [first, second] = *stacks.as_slice()
        && second == first + WORD
    {
        stacks.truncate(1);
    }
    let htop = rules.only(Field::Stack, &stacks)?;
    let is_initial = |words: &[u64], at| words_at(words, at).is_some_and(|mfa| CodeMfa::of(&mfa, atoms).is_some());
    let initial = rules.only(Field::Initial, &rules.places(is_initial))?;
    let current = initial + INITIAL_TO_CURRENT;
    rules.check_current(current, atoms, memory)?;
    let is_known = |at: u32| [heap, hend, htop, htop + WORD].contains(&at);
    let is_instruction = |words: &[u64], at| word_at(words, at).is_some_and(|word| is_generated(view, Address(word)));
    let instructions = rules.places(is_instruction).into_iter().filter(|at| !is_known(*at) && *at < initial);
    let instructions: Vec<_> = instructions.collect();
    Ok(ProcessLayout {
        id: 0,
        htop,
        stop: htop + WORD,
        heap,
        hend,
        heap_size: heap + HEAP_TO_SIZE,
        initial,
        current,
        instruction: if let [one] = *instructions.as_slice() { Some(one) } else { None },
        element_size,
    })
}

struct Rules<'s> {
    samples: &'s [Sample],
    size: u32,
}

impl Rules<'_> {
    /// The offsets at which nine in ten processes keep a rule.
    fn places(&self, keeps: impl Fn(&[u64], u32) -> bool) -> Vec<u32> {
        let offsets = (0..self.size).step_by(8);
        offsets
            .filter(|at| self.is_most(self.samples.iter().filter(|sample| keeps(&sample.words, *at)).count()))
            .collect()
    }

    fn is_most(&self, count: usize) -> bool {
        count * 10 >= self.samples.len() * 9
    }

    fn only(&self, field: Field, places: &[u32]) -> Result<u32, ProcessLayoutError> {
        let samples = self.samples.len();
        match *places {
            [] => Err(ProcessLayoutError::NotFound { field, samples }),
            [place] => Ok(place),
            _ => Err(ProcessLayoutError::Ambiguous { field, count: places.len(), samples }),
        }
    }

    /// Whether more than half of the processes have heap, free words and stack, none of them empty.
    fn is_mostly_apart(&self, heap: u32, at: u32) -> bool {
        let is_apart = |sample: &&Sample| {
            stack_at(&sample.words, heap, at)
                .is_some_and(|[heap, htop, stop, hend]| heap < htop && htop < stop && stop < hend)
        };
        self.samples.iter().filter(is_apart).count() * 2 > self.samples.len()
    }

    fn check_current(
        &self,
        current: u32,
        atoms: &AtomTable,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<(), ProcessLayoutError> {
        let field = Field::Current;
        let not_found = ProcessLayoutError::NotFound { field, samples: self.samples.len() };
        let pointers: Vec<u64> = self.samples.iter().filter_map(|sample| word_at(&sample.words, current)).collect();
        let set: Vec<_> = pointers.iter().filter(|at| **at != 0).map(|at| (Address(*at), 24)).collect();
        let right = memory.read_many(&set).into_iter().filter(|bytes| {
            let words = bytes.as_ref().map(|bytes| words_of(bytes));
            words.is_ok_and(|words| words.first_chunk().is_some_and(|mfa| CodeMfa::of(mfa, atoms).is_some()))
        });
        let right = right.count();
        // Where none is noted, as in an idle VM, the next field tells: `parent`, the process that started this one.
        let parents = self.samples.iter().filter_map(|sample| word_at(&sample.words, current + WORD));
        let started = parents.filter(|parent| ElementKind::Process.is_tag_of(*parent)).count();
        let is_anchored = right > 0 || started * 2 > self.samples.len();
        if !is_anchored || !self.is_most(pointers.len() - set.len() + right) {
            return Err(not_found);
        }
        Ok(())
    }
}

/// `heap` and `hend`, if `heap` is at this offset.
fn heap_at(words: &[u64], at: u32) -> Option<(u64, u64)> {
    let (heap, hend) = (word_at(words, at)?, word_at(words, at.checked_add(WORD)?)?);
    is_heap(heap, hend, word_at(words, at.checked_add(HEAP_TO_SIZE)?)?).then_some((heap, hend))
}

/// `heap`, `htop`, `stop` and `hend`, if `htop` is at this offset.
fn stack_at(words: &[u64], heap: u32, at: u32) -> Option<[u64; 4]> {
    let (heap, hend) = heap_at(words, heap)?;
    let (htop, stop) = (word_at(words, at)?, word_at(words, at.checked_add(WORD)?)?);
    is_stack(heap, htop, stop, hend).then_some([heap, htop, stop, hend])
}

/// Whether machine code is there that the VM made.
fn is_generated(view: &ProcessView, address: Address) -> bool {
    view.mapping_at(address).is_some_and(|memory| memory.mapping.is_jit())
}
