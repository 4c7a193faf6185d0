//! With which functions do the VM's allocators free a block?
//!
//! `erts_allctrs` has a record for each allocator: `alloc`, `realloc`, `free` and what they are passed as `extra`
//! (`ErtsAllocatorFunctions_t`, `erts/emulator/beam/erl_alloc.h`, OTP-23.2.6 to OTP-27.3.4.1). What `erts_allctrs_info`
//! says of an allocator stands there once more, so the table is found by that, with symbols and without.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use thiserror::Error;

use super::locate::{LocateError, Located, NAME_WORDS, locate, name_offsets};
use crate::{
    erts::{carrier::read_name, executable::Variables},
    mapping::{Address, Backing, Mapping},
    target::memory::ReadMemory,
    view::ProcessView,
    words::read_words,
};

/// Words of a record.
const RECORD: usize = 4;
/// Where `free` and `extra` stand in it.
const FREE: usize = 2;
const EXTRA: usize = 3;
const WORD: u64 = 8;

/// Why the functions were not found.
#[derive(Debug, Error)]
pub enum FunctionsError {
    /// The allocators themselves were not found.
    #[error(transparent)]
    Allocators(#[from] LocateError),
    /// No table has the allocators that there are.
    #[error("no table of the allocators' functions was found in the data of {path}")]
    NotFound {
        /// The executable.
        path: String,
    },
}

/// Where the functions begin that free blocks of the allocators called `names` (`binary_alloc`, …), each once.
pub fn free_functions(
    names: &[&str],
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
) -> Result<Vec<Address>, FunctionsError> {
    let located = locate(view, memory)?;
    let data = Variables::writable(view, memory);
    let code = code(view);
    let not_found = || FunctionsError::NotFound { path: view.beam.clone() };
    let table = table(&located, &data, &code).ok_or_else(not_found)?;
    let numbers = names.iter().map(|name| number(name, &located, memory)).collect::<Vec<_>>();
    // One that is switched off has no name; `sys_alloc` serves in its place.
    let disabled = numbers.contains(&None).then_some(&located.disabled);
    let numbers = numbers.iter().flatten().chain(disabled.into_iter().flatten());
    let functions = numbers.map(|number| Some(Address(*record(table, *number, &code)?.get(FREE)?)));
    let functions = functions.collect::<Option<BTreeSet<Address>>>().ok_or_else(not_found)?;
    if functions.is_empty() { Err(not_found()) } else { Ok(functions.into_iter().collect()) }
}

/// The number of the allocator of this name.
fn number(name: &str, located: &Located, memory: &(impl ReadMemory + ?Sized)) -> Option<u32> {
    located
        .extras
        .iter()
        .map(|(number, _)| *number)
        .find(|number| name_of(*number, located, memory).as_deref() == Some(name))
}

/// The name of the allocator of this number: `ets_alloc`.
fn name_of(number: u32, located: &Located, memory: &(impl ReadMemory + ?Sized)) -> Option<String> {
    let instance = located.instances.iter().find(|instance| instance.number == number)?;
    let words = read_words::<NAME_WORDS>(memory, instance.address).ok()?;
    let mut names = name_offsets(&words, number).filter_map(|at| read_name(Address(*words.get(at)?), memory));
    names.next().map(|prefix| format!("{prefix}alloc"))
}

/// The names of the allocators that are not switched off, by number; empty where they are not found.
pub fn names(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> BTreeMap<u32, String> {
    let Ok(located) = locate(view, memory) else { return BTreeMap::new() };
    let numbers = located.extras.iter().map(|(number, _)| *number);
    numbers.filter_map(|number| Some((number, name_of(number, &located, memory)?))).collect()
}

/// The words of the table, from the record of number 0 on.
fn table<'a>(located: &Located, data: &'a Variables, code: &[Range<u64>]) -> Option<&'a [u64]> {
    let (number, extra) = *located.extras.first()?;
    let back = u64::from(number).checked_mul(RECORD as u64)?.checked_add(EXTRA as u64)?.checked_mul(WORD)?;
    let starts: Vec<Address> = data.holding(&[extra]).filter_map(|at| Some(Address(at.0.checked_sub(back)?))).collect();
    starts.into_iter().map(|start| data.from(start)).find(|table| {
        located.extras.iter().all(|(number, extra)| {
            record(table, *number, code).is_some_and(|record| record.get(EXTRA) == Some(&extra.0))
        })
    })
}

/// The record of an allocator, if its functions are code.
fn record(table: &[u64], number: u32, code: &[Range<u64>]) -> Option<[u64; RECORD]> {
    let record = *table.as_chunks::<RECORD>().0.get(usize::try_from(number).ok()?)?;
    let [functions @ .., _] = record;
    let is_code = |at: &u64| code.iter().any(|range| range.contains(at));
    functions.iter().all(is_code).then_some(record)
}

/// Where the executable's code is.
fn code(view: &ProcessView) -> Vec<Range<u64>> {
    let of_beam = |mapping: &&Mapping| matches!(&mapping.backing, Backing::File(path) if *path == view.beam);
    let mapped = view.mappings.iter().map(|memory| &memory.mapping).filter(of_beam);
    let executable = mapped.filter(|mapping| mapping.permissions.execute);
    executable.map(|mapping| mapping.start.0..mapping.end.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erts::{
        alloc::locate::{FoundBy, InstanceAt},
        executable::tests::{CODE, DATA, HEAP, Node},
    };

    /// Two allocators, of which the second is switched off where `disabled`; the table stands at `DATA` + 64.
    fn located(disabled: bool) -> Located {
        let all = [(2, Address(HEAP)), (3, Address(HEAP + 0x800))];
        let extras: Vec<_> = all.into_iter().take(if disabled { 1 } else { 2 }).collect();
        let instances =
            extras.iter().map(|(number, address)| InstanceAt { number: *number, instance: 0, address: *address });
        Located {
            instances: instances.collect(),
            disabled: if disabled { vec![3] } else { Vec::new() },
            extras,
            records: 5,
            by: FoundBy::Shape,
        }
    }

    fn node(functions: [u64; 3]) -> Node {
        let mut node = Node::new(0x2000);
        let record = |extra| [CODE, CODE + 1, CODE + 2, extra];
        let [alloc, realloc, free] = functions;
        let table = [[0; 4], record(0), [alloc, realloc, free, HEAP], record(HEAP + 0x800)];
        node.put_words(DATA + 64, table.as_flattened());
        // What the same address means elsewhere.
        node.put_words(DATA, &[HEAP]);
        node
    }

    #[test]
    fn the_table_is_where_all_allocators_stand_behind_their_functions() {
        let check = |functions, disabled, expected: Option<u64>| {
            let Node { view, memory } = node(functions);
            let data = Variables::writable(&view, &memory);
            let code = code(&view);
            let found = table(&located(disabled), &data, &code);
            let free = found.and_then(|table| record(table, 2, &code)).map(|record| record[FREE]);
            assert_eq!(free, expected, "{functions:x?}");
        };
        check([CODE, CODE + 8, CODE + 16], false, Some(CODE + 16));
        check([CODE, CODE + 8, CODE + 16], true, Some(CODE + 16));
        check([CODE, CODE + 8, HEAP], false, None);
        check([0, CODE + 8, CODE + 16], false, None);
    }
}
