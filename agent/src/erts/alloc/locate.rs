//! Where are the allocator instances of the VM?
//!
//! `erts_allctrs_info` has a record for each allocator: whether `erl_alloc_util` serves it, whether it is enabled,
//! how many instances it has, and where they are. OTP exports it up to release 28; since OTP 29 symbols of the
//! emulator are hidden (`-fvisibility=hidden`, erlang/otp#9864), and the table is found by its shape.

use thiserror::Error;

use crate::{
    erts::carrier::read_name,
    mapping::Address,
    target::memory::ReadMemory,
    view::ProcessView,
    words::{read_block, read_words, words_of},
};

/// The symbol (`erts/emulator/beam/erl_alloc.c`, OTP-23.2.6 to OTP-27.3.4.1).
const TABLE: &str = "erts_allctrs_info";
/// Words of a record `ErtsAllocatorInfo_t`: `int alloc_util, enabled, thr_spec`, padding, `void *extra` (`erl_alloc.h`).
const RECORD: usize = 3;
/// Most records: 13 in OTP 23 to 29 (`ERTS_ALC_A_MAX` + 1), one more with `HiPE`. Room for a few more.
const MOST_RECORDS: usize = 24;
/// Schedulers at most, normal and dirty, and the global instance (`ERTS_MAX_NO_OF_SCHEDULERS` is 1024).
const MOST_INSTANCES: u32 = 4096;
/// Longest range of data that is searched.
const LONGEST_DATA: u64 = 64 << 20;

/// The allocator instances of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// All of them, by allocator and instance number.
    pub instances: Vec<InstanceAt>,
    /// What each allocator that is not switched off is known by in the VM's tables, by its number.
    pub extras: Vec<(u32, Address)>,
    /// Numbers of the allocators that are switched off: their memory is asked of `sys_alloc`, which is `malloc`.
    pub disabled: Vec<u32>,
    /// Records in the table; where it was found by shape, as far as they are told from the zeros behind it.
    pub records: usize,
    /// How the table was found.
    pub by: FoundBy,
}

/// One allocator instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceAt {
    /// Number of the allocator (`ERTS_ALC_A_…`), which differs between releases.
    pub number: u32,
    /// Instance: 0 is the global one, or the only one.
    pub instance: u32,
    /// Its `Allctr_t`.
    pub address: Address,
}

/// How a structure was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// By a symbol of the executable.
    Symbol,
    /// By its shape.
    Shape,
}

/// Why the allocators were not found.
#[derive(Debug, Error)]
pub enum LocateError {
    /// The executable has no writable data.
    #[error("{path} has no readable data in the process, so its allocators cannot be found")]
    NoData {
        /// The executable.
        path: String,
    },
    /// The table may lie in what cannot be read.
    #[error(
        "no table of allocators was found in the data of {path}, of which {unread} bytes cannot be read; \
         what is swapped out is not looked at, since that would bring it back"
    )]
    Hidden {
        /// The executable.
        path: String,
        /// Bytes that cannot be read.
        unread: u64,
    },
    /// Nothing looks like the table.
    #[error(
        "no table of allocators was found in the data of {path}: the VM is still starting, or built in an unknown way; \
         `beamscope record` works without it"
    )]
    NotFound {
        /// The executable.
        path: String,
    },
}

/// Finds the allocators: by symbol, and by shape where there is none or where what is there is no such table.
pub fn locate(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Located, LocateError> {
    if let Some(symbol) = view.symbols.get(TABLE) {
        let records = usize::try_from(symbol.size / 24).unwrap_or(0).min(MOST_RECORDS);
        let table = read_block(memory, symbol.address, records.saturating_mul(24)).ok();
        if let Some(located) = table.and_then(|table| read_table(&table, FoundBy::Symbol, view, memory)) {
            return Ok(located);
        }
    }
    by_shape(view, memory)
}

fn by_shape(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Result<Located, LocateError> {
    let path = || view.beam.clone();
    let data = view.data_of(&view.beam);
    let mut seen = false;
    let mut unread = 0_u64;
    for range in data {
        let length = (range.end - range.start).min(LONGEST_DATA);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        // A page that cannot be read is passed over; the table may be in another one.
        let page = usize::try_from(view.page_size.max(1)).unwrap_or(4096);
        if memory.read(Address(range.start), &mut bytes).is_err() {
            for (at, chunk) in (range.start..).step_by(page).zip(bytes.chunks_mut(page)) {
                if memory.read(Address(at), chunk).is_err() {
                    chunk.fill(u8::MAX);
                    unread = unread.saturating_add(chunk.len() as u64);
                }
            }
        }
        seen |= !bytes.is_empty();
        let words = words_of(&bytes);
        let candidates = words.windows(2 * RECORD).enumerate().filter(|(_, window)| begins_table(window));
        for (at, _) in candidates {
            let table = words.get(at..).unwrap_or_default();
            let table = table.get(..RECORD * MOST_RECORDS).unwrap_or(table);
            if let Some(located) = read_table(table, FoundBy::Shape, view, memory) {
                return Ok(located);
            }
        }
    }
    Err(match (seen, unread) {
        (false, _) => LocateError::NoData { path: path() },
        (true, 0) => LocateError::NotFound { path: path() },
        (true, unread) => LocateError::Hidden { path: path(), unread },
    })
}

/// Record 0 stands for no allocator; record 1 is `sys_alloc`, enabled and without `erl_alloc_util`.
fn begins_table(words: &[u64]) -> bool {
    matches!(words, [0, 0, 0, sys, 0, 0] if *sys == 1 << 32)
}

/// The allocators of a table whose records begin `table`, unless one of them contradicts its form.
fn read_table(table: &[u64], by: FoundBy, view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Option<Located> {
    let mut located = Located { instances: Vec::new(), extras: Vec::new(), disabled: Vec::new(), records: 0, by };
    for (number, record) in (0_u32..).zip(table.as_chunks::<RECORD>().0) {
        let [flags, threads, extra] = *record;
        let (alloc_util, enabled) = (flags & u64::from(u32::MAX), flags >> 32);
        let instances = u32::try_from(threads).ok().filter(|instances| *instances <= MOST_INSTANCES);
        let well_formed = alloc_util <= 1
            && enabled <= 1
            && instances.is_some()
            && (alloc_util == 0 || enabled == 1)
            && (alloc_util == 1 || extra == 0 && threads == 0);
        match (well_formed, by) {
            (true, _) => {}
            // What follows the table is something else.
            (false, FoundBy::Shape) => break,
            (false, FoundBy::Symbol) => return None,
        }
        if alloc_util == 1 {
            let found = instances_of(number, instances?, Address(extra), view, memory);
            match (found, by) {
                (Some(mut found), _) => {
                    located.instances.append(&mut found);
                    located.extras.push((number, Address(extra)));
                }
                (None, FoundBy::Shape) => break,
                (None, FoundBy::Symbol) => return None,
            }
        } else if number > 1 {
            located.disabled.push(number);
        }
        located.records = usize::try_from(number).ok()?.saturating_add(1);
    }
    if by == FoundBy::Shape {
        // Zeros behind the table look like records of disabled allocators. The last one, `test_alloc`, is one.
        let last = located.instances.last()?.number;
        located.records = usize::try_from(last).ok()?.saturating_add(2);
        located.disabled.retain(|number| *number <= last);
    }
    // The last record is the test allocator's, which is for the VM's own tests.
    let tests = u32::try_from(located.records).ok()?.saturating_sub(1);
    located.disabled.retain(|number| *number != tests);
    (!located.instances.is_empty()).then_some(located)
}

fn instances_of(
    number: u32,
    instances: u32,
    extra: Address,
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
) -> Option<Vec<InstanceAt>> {
    let names_itself = |instance: &InstanceAt| is_allocator(*instance, view, memory);
    if instances == 0 {
        let only = InstanceAt { number, instance: 0, address: extra };
        return names_itself(&only).then(|| vec![only]);
    }
    // `ErtsAllocatorThrSpec_t`: `int enabled, dd, aix, size; Allctr_t **allctr` (erl_alloc.h).
    let [_, aix_and_size, pointers] = read_words::<3>(memory, extra).ok()?;
    if aix_and_size != u64::from(number) | u64::from(instances) << 32 {
        return None;
    }
    let pointers = read_block(memory, Address(pointers), usize::try_from(instances).ok()?.checked_mul(8)?).ok()?;
    let numbered = (0..instances).zip(pointers).filter(|(_, pointer)| *pointer != 0);
    let found: Vec<_> =
        numbered.map(|(instance, pointer)| InstanceAt { number, instance, address: Address(pointer) }).collect();
    found.iter().all(names_itself).then_some(found)
}

/// Whether an `Allctr_t` may be there: somewhere at its begin it points to a name, followed by its own number.
fn is_allocator(instance: InstanceAt, view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> bool {
    let InstanceAt { number, address, .. } = instance;
    if !address.0.is_multiple_of(8) || !view.is_readable(address) {
        return false;
    }
    let Ok(words) = read_words::<NAME_WORDS>(memory, address) else { return false };
    name_offsets(&words, number).any(|at| words.get(at).is_some_and(|name| read_name(Address(*name), memory).is_some()))
}

/// Words at the begin of an `Allctr_t` in which its name is looked for.
pub(super) const NAME_WORDS: usize = 64;

/// Words that may be `name_prefix`: the 32 bits behind it are the allocator's number.
pub(super) fn name_offsets(words: &[u64], number: u32) -> impl Iterator<Item = usize> + '_ {
    let pairs = words.windows(2).take(NAME_WORDS).enumerate();
    pairs.filter_map(move |(at, pair)| match *pair {
        [name, numbers] => (name != 0 && numbers & u64::from(u32::MAX) == u64::from(number)).then_some(at),
        _ => None,
    })
}
