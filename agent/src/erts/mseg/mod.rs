//! Which memory does the VM keep mapped to hand it out again? The caches of its `mseg` allocators.
//!
//! `aligned_mseg_allctr` (`erts/emulator/sys/common/erl_mseg.c`, OTP 23.2.6, 25.2.3 and 27.3.4.1) is a static pointer to
//! an array of `ErtsMsegAllctr_t`, one for each scheduler and a global one. It is hidden in every release, and is found
//! by what it points to.

mod instance;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, ops::Range};

use thiserror::Error;

use self::instance::{Form, LARGEST, Parsed};
use super::executable::Variables;
use crate::{
    mapping::{Address, Backing},
    retry::again,
    target::memory::{ReadMemory, Unreadable},
    view::{MappedMemory, ProcessView},
    words::{read_block, read_words},
};

/// `ERTS_CACHE_LINE_SIZE`, to which instances are aligned (`erts_mseg_init`), or a divisor of it.
const CACHE_LINE: u64 = 64;
/// `ERTS_MAX_NO_OF_SCHEDULERS` is 1024; normal and dirty ones, and the global instance.
const MOST_INSTANCES: u32 = 4096;
/// A page that cannot be read is at least this long.
const PAGE: u64 = 4096;

/// The `mseg` allocators of a VM.
#[derive(Debug, Default)]
pub struct Mseg {
    /// The global instance first, then that of each scheduler.
    pub instances: Vec<MsegInstance>,
    /// `MSEG_ALIGN_BITS`: carriers with many blocks are aligned to this power of two. `None`: nothing is ever cached
    /// (`+MMmcs 0`), and so nothing tells it.
    pub align_bits: Option<u32>,
    /// What was not taken over, and why.
    pub defects: Vec<MsegDefect>,
}

/// One `ErtsMsegAllctr_t`. Counts are of calls and segments, sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsegInstance {
    /// Its number: 0 is the global one.
    pub index: u32,
    /// Where it is.
    pub at: Address,
    /// Cached segments: mapped, and in use by nobody.
    pub cached: Vec<Range<u64>>,
    /// How many they are by the allocator's own count.
    pub cached_segments: u64,
    /// The most that it caches (`+MMmcs`).
    pub cache_limit: u64,
    /// Segments that came from the cache.
    pub cache_hits: u64,
    /// Segments in use.
    pub segments: Figure,
    /// Their size in bytes.
    pub segments_size: Figure,
    /// Calls.
    pub calls: Calls,
}

/// A figure and its largest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// Now.
    pub current: u64,
    /// Since somebody last asked for the figures.
    pub max: u64,
    /// Before that.
    pub max_ever: u64,
}

/// How often an instance was called, and called `erts_mmap` itself (`ErtsMsegCalls`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// A segment was asked for.
    pub alloc: u64,
    /// A segment was given back.
    pub dealloc: u64,
    /// A segment was resized.
    pub realloc: u64,
    /// Memory was mapped.
    pub create: u64,
    /// Memory was mapped, resized. Always 0 since it is counted nowhere.
    pub create_resize: u64,
    /// Memory was unmapped.
    pub destroy: u64,
    /// Memory was remapped.
    pub recreate: u64,
    /// The cache was emptied.
    pub clear_cache: u64,
    /// The cache was looked at, to give back what is old.
    pub check_cache: u64,
}

/// There are no `mseg` allocators that can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsegError {
    /// None were found.
    #[error("found no mseg allocator; {unread} bytes of the executable's memory could not be read")]
    NotFound {
        /// Bytes that were not looked at.
        unread: u64,
    },
    /// Several structures look like the first.
    #[error("{count} structures look like the first mseg allocator")]
    Ambiguous {
        /// How many.
        count: usize,
    },
}

/// Something that was left out.
#[derive(Debug, Error)]
pub enum MsegDefect {
    /// An instance could not be read. It and those behind it are missing.
    #[error("mseg allocator {index} cannot be read")]
    Unreadable {
        /// Its number.
        index: u32,
        /// Why not.
        #[source]
        cause: Unreadable,
    },
    /// An instance contradicts itself, each time that it was read. It is missing.
    #[error("mseg allocator {index} at {at} contradicts itself")]
    Implausible {
        /// Its number.
        index: u32,
        /// Where it is.
        at: Address,
    },
    /// A cached segment is mapped, and not as segments are. It is missing in its instance.
    #[error("mseg allocator {index} caches {length} bytes at {at} that are no segment")]
    Segment {
        /// Number of the instance.
        index: u32,
        /// First address.
        at: Address,
        /// Bytes.
        length: u64,
    },
}

/// Finds the allocators through the executable's data. Empty caches are a result, not an error.
pub fn find(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Mseg, MsegError> {
    let variables = Variables::writable(view, memory);
    let is_line = |word: &u64| word.is_multiple_of(CACHE_LINE) && is_private(view, Address(*word));
    let candidates = variables.iter().filter_map(|(_, words)| words.first().copied().filter(is_line));
    let candidates: BTreeSet<u64> = candidates.collect();
    let mut found = candidates.into_iter().filter_map(|at| first_instance(Address(at), memory));
    let (Some((at, forms)), others) = (found.next(), found.count()) else {
        return Err(MsegError::NotFound { unread: variables.unread });
    };
    if others > 0 {
        return Err(MsegError::Ambiguous { count: others + 1 });
    }
    Ok(walk(at, &forms, view, memory))
}

/// The forms of structure in which the first instance may be at `at`.
fn first_instance(at: Address, memory: &(impl ReadMemory + ?Sized)) -> Option<(Address, Vec<Form>)> {
    // Most of what is pointed to is something else, which two words tell.
    let begin: [u64; 2] = read_words(memory, at).ok()?;
    if !instance::begins(&begin, 0) {
        return None;
    }
    let attempt = || {
        let words = read_instance(at, memory).ok()?;
        let forms: Vec<_> = Form::all().filter(|form| form.parse(at, 0, &words).is_some()).collect();
        // Forms may differ in where the heads begin, and only if there is no list that tells.
        let one_end = forms.windows(2).all(|pair| matches!(pair, [a, b] if a.counters_at() == b.counters_at()));
        (!forms.is_empty() && one_end).then_some((at, forms))
    };
    again(|| attempt().ok_or(())).ok()
}

fn walk(first: Address, forms: &[Form], view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Mseg {
    let mut mseg = Mseg::default();
    let (Some(form), others) = (forms.first(), forms.len().saturating_sub(1)) else { return mseg };
    mseg.align_bits = (others == 0).then_some(form.align_bits());
    let strides = [CACHE_LINE, 2 * CACHE_LINE].map(|line| form.length().next_multiple_of(line));
    let is_second = |stride: &u64| {
        let second = first.checked_add(*stride).and_then(|at| read_instance(at, memory).ok());
        second.is_some_and(|words| form.resembles(1, &words))
    };
    let stride = strides.into_iter().find(is_second);
    for index in 0..MOST_INSTANCES {
        let offset = stride.unwrap_or_default().checked_mul(index.into());
        let Some(at) = offset.and_then(|offset| first.checked_add(offset)) else { break };
        if index > 0 && stride.is_none() || !mseg.take(index, at, *form, view, memory) {
            break;
        }
    }
    mseg.leave_out_overlaps();
    mseg
}

/// What stands where an instance may be.
enum Looked {
    At(Parsed),
    /// No instance: the array has ended.
    Behind,
    Unreadable(Unreadable),
}

impl Mseg {
    /// Adds the instance at `at`. False: it is the end of the array.
    fn take(
        &mut self,
        index: u32,
        at: Address,
        form: Form,
        view: &ProcessView,
        memory: &(impl ReadMemory + ?Sized),
    ) -> bool {
        if !is_private(view, at) {
            return false;
        }
        // A contradiction may be gone with the next look; an end of the array and an unreadable page are not.
        let looked = again(|| {
            let words = match read_instance(at, memory) {
                Ok(words) => words,
                Err(cause) => return Ok(Looked::Unreadable(cause)),
            };
            if !form.resembles(index, &words) {
                return Ok(Looked::Behind);
            }
            form.parse(at, index, &words).map(Looked::At).ok_or(())
        });
        match looked {
            Ok(Looked::Unreadable(cause)) => {
                self.defects.push(MsegDefect::Unreadable { index, cause });
                return false;
            }
            Ok(Looked::Behind) => return false,
            Err(()) => self.defects.push(MsegDefect::Implausible { index, at }),
            Ok(Looked::At(Parsed { mut instance, nodes })) => {
                for Range { start, end } in nodes {
                    if can_be_cached(view, &(start..end)) {
                        instance.cached.push(start..end);
                    } else {
                        let length = end - start;
                        self.defects.push(MsegDefect::Segment { index, at: Address(start), length });
                    }
                }
                self.instances.push(instance);
            }
        }
        true
    }

    /// No byte is cached twice: of two segments that share one, neither is believed.
    fn leave_out_overlaps(&mut self) {
        let all = self.instances.iter().flat_map(|instance| &instance.cached);
        let mut all: Vec<_> = all.map(|segment| (segment.start, segment.end)).collect();
        all.sort_unstable();
        let mut highest = 0;
        let mut overlapping: Vec<Range<u64>> = Vec::new();
        for (position, &(start, end)) in all.iter().enumerate() {
            let next = all.get(position + 1).map_or(u64::MAX, |next| next.0);
            if start < highest || next < end {
                overlapping.push(start..end);
            }
            highest = highest.max(end);
        }
        let Self { instances, defects, .. } = self;
        for instance in instances {
            let index = instance.index;
            instance.cached.retain(|segment| {
                let shared = overlapping.contains(segment);
                if shared {
                    let length = segment.end - segment.start;
                    defects.push(MsegDefect::Segment { index, at: Address(segment.start), length });
                }
                !shared
            });
        }
    }
}

/// The words of an instance, and of what lies behind it, as far as its page goes on or the next can be read.
fn read_instance(at: Address, memory: &(impl ReadMemory + ?Sized)) -> Result<Vec<u64>, Unreadable> {
    let bytes = LARGEST * 8;
    read_block(memory, at, bytes).or_else(|cause| {
        let in_page = usize::try_from(PAGE - at.0 % PAGE).unwrap_or(bytes);
        if in_page < bytes { read_block(memory, at, in_page) } else { Err(cause) }
    })
}

/// Whether `address` lies where malloc puts things.
fn is_private(view: &ProcessView, address: Address) -> bool {
    view.mapping_at(address).is_some_and(is_private_memory)
}

fn is_private_memory(memory: &MappedMemory) -> bool {
    let permissions = memory.mapping.permissions;
    let fresh = matches!(memory.mapping.backing, Backing::Anonymous | Backing::Heap);
    permissions.read && permissions.write && !permissions.shared && fresh
}

/// Whether `range` is private memory, as far as it is mapped: a segment may be younger than the view of the mappings.
fn can_be_cached(view: &ProcessView, range: &Range<u64>) -> bool {
    let first = view.mappings.partition_point(|memory| memory.mapping.end.0 <= range.start);
    let touched = view.mappings.get(first..).unwrap_or_default().iter();
    touched.take_while(|memory| memory.mapping.start.0 < range.end).all(is_private_memory)
}
