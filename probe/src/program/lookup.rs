//! Which unwind rule holds at an address? Searches the table of modules and their rows, and keeps what was found.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use beamscope_probe::{MODULES, PLACES, ROWS_PER_CHUNK, Row};

use super::maps::{MODULE_TABLE, PLACE_CACHE, ROWS};

/// No rule.
const NONE: u32 = u32::MAX;
/// Steps of a search through the table of modules, and through the rows of one.
const MODULE_STEPS: u32 = 13;
const ROW_STEPS: u32 = 26;

/// Index of the rule for the instruction at `at`.
///
/// The places that stacks pass through are few, so what was found is kept: one word, so that nobody reads half of it.
#[inline(always)]
pub(crate) fn rule_of(at: u64, modules: u64) -> u32 {
    let generation = (modules >> 32) & 0x3fff;
    let tag = ((at / u64::from(PLACES)) << 30) | (generation << 16);
    let place = (at ^ (at / u64::from(PLACES))) as u32 & (PLACES - 1);
    let known = PLACE_CACHE.get_ptr_mut(place);
    if let Some(known) = known {
        // SAFETY: a map value, valid until the program ends.
        let entry = unsafe { known.read_volatile() };
        if entry & !0xffff == tag {
            return entry as u32 & 0xffff;
        }
    }
    let rule = find_rule(at, modules);
    if rule <= 0xffff
        && let Some(known) = known
    {
        // SAFETY: as above.
        unsafe { known.write_volatile(tag | u64::from(rule)) };
    }
    rule
}

/// A search for the last element that is not above `key`.
#[repr(C)]
struct Search {
    key: u64,
    low: u32,
    high: u32,
}

#[inline(always)]
fn find_rule(at: u64, modules: u64) -> u32 {
    let first = if (modules >> 32) & 1 == 0 { 0 } else { MODULES };
    let mut search = Search { key: at, low: first, high: first + modules as u32 };
    let context = (&raw mut search).cast::<c_void>();
    // SAFETY: the callback has the form that the helper asks for.
    unsafe { bpf_loop(MODULE_STEPS, halve_modules as *mut c_void, context, 0) };
    if search.low <= first {
        return NONE;
    }
    let Some(module) = MODULE_TABLE.get(search.low - 1) else { return NONE };
    if at >= module.end {
        return NONE;
    }
    if module.rows == 0 {
        return module.rule;
    }
    let offset = at.wrapping_sub(module.base);
    // Below the first row, or so far above the last that the offset does not fit into a row.
    if offset > u64::from(u32::MAX) {
        return 0;
    }
    let mut search = Search { key: offset, low: module.first_row, high: module.first_row + module.rows };
    let context = (&raw mut search).cast::<c_void>();
    // SAFETY: as above.
    unsafe { bpf_loop(ROW_STEPS, halve_rows as *mut c_void, context, 0) };
    if search.low <= module.first_row {
        return 0;
    }
    row(search.low - 1).map_or(NONE, |row| row.rule())
}

#[inline(always)]
fn row(index: u32) -> Option<Row> {
    let chunk = ROWS.get(index / ROWS_PER_CHUNK as u32)?;
    Some(chunk[index as usize % ROWS_PER_CHUNK])
}

#[inline(never)]
extern "C" fn halve_modules(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the search, on the stack of the function that runs the loop.
    let search = unsafe { &mut *context.cast::<Search>() };
    if search.low >= search.high {
        return 1;
    }
    let middle = search.low + (search.high - search.low) / 2;
    let Some(module) = MODULE_TABLE.get(middle) else { return 1 };
    if module.start <= search.key {
        search.low = middle + 1;
    } else {
        search.high = middle;
    }
    0
}

#[inline(never)]
extern "C" fn halve_rows(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: as above.
    let search = unsafe { &mut *context.cast::<Search>() };
    if search.low >= search.high {
        return 1;
    }
    let middle = search.low + (search.high - search.low) / 2;
    let Some(row) = row(middle) else { return 1 };
    if u64::from(row.pc()) <= search.key {
        search.low = middle + 1;
    } else {
        search.high = middle;
    }
    0
}
