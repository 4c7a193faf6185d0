//! Where the blocks begin that the VM's interfaces for native code hand out, by their own fields.
//!
//! A block is followed by the address that the VM frees. For binaries and resources that is the `Binary` around them
//! (erts/emulator/beam/erl_binary.h, OTP-23.2.6 to OTP-27.3.4.1): `flags`, since OTP 27 `apparent_size`, `refc`,
//! `orig_size`, then the data. What precedes it is the allocator's header, whose smallest value is above that of `flags`,
//! which tells the two apart.

use aya_ebpf::helpers::bpf_probe_read_user;
use beamscope_probe::{Call, Function};

use super::allocation::Request;

/// `BIN_FLAG_*` are below this, and a block's header, which holds its size, is above it.
const FLAGS: u64 = 16;
/// Largest binary that can lie on a process's heap, in bytes (`ERL_ONHEAP_BIN_LIMIT`, `ERL_ONHEAP_BITS_LIMIT`).
const LARGEST_ON_HEAP: u64 = 64;
/// More references to a binary there are not.
const MOST_REFERENCES: u64 = 1 << 31;
/// Bytes of a resource in front of the user's: `destructor`, `refn` and `alloc_type` of `ErtsMagicBinary`, `type` and
/// `monitors` of `ErtsResource` (erts/emulator/beam/global.h).
const RESOURCE: u64 = 40;
/// Bytes of `ErtsResourceMonitors` at most, with what aligns them.
const MONITORS: u64 = 512;
/// Offset of `ref_bin` in `ErlNifBinary` (erts/emulator/beam/erl_nif.h).
const REFERENCED: u64 = 16;
/// Offset of the data in `ErlDrvBinary` (erts/emulator/beam/erl_driver.h).
const DRIVER_DATA: u64 = 8;

/// Why there is no block to follow.
pub(crate) enum NoBlock {
    /// The binary lies on a process's heap.
    OnHeap,
    /// Its fields are not where they should be.
    NotFound,
}

#[inline(always)]
fn word(at: u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_user(at as *const u64) }.ok()
}

/// The block that a call gives back or resizes; 0: none.
#[inline(always)]
pub(crate) fn resized(request: &Request) -> u64 {
    match request.function {
        Function::EnifRealloc | Function::DriverRealloc => request.argument,
        Function::EnifReallocBinary => word(request.argument.wrapping_add(REFERENCED)).unwrap_or(0),
        Function::DriverReallocBinary if request.argument != 0 => {
            let data = request.argument.wrapping_add(DRIVER_DATA);
            word(request.argument).and_then(|size| of_binary(data, size, MOST_REFERENCES)).unwrap_or(0)
        }
        _ => 0,
    }
}

/// The block that `function` returns by `result`; 0 where it has failed.
#[inline(always)]
pub(crate) fn block(call: &Call, function: u32, result: u64) -> Result<u64, NoBlock> {
    let is = |other: Function| function == other as u32;
    let found = if is(Function::EnifAllocBinary) || is(Function::EnifReallocBinary) {
        if result as u32 == 0 {
            return Ok(0);
        }
        word(call.argument.wrapping_add(REFERENCED))
    } else if result == 0 {
        return Ok(0);
    } else if is(Function::EnifAllocResource) {
        of_resource(result, call)
    } else if is(Function::EnifMakeNewBinary) {
        // In place of the references, a binary on the heap has its header, which is never 1.
        let found = of_binary(result, call.size, 1);
        if found.is_none() && call.size <= LARGEST_ON_HEAP {
            return Err(NoBlock::OnHeap);
        }
        found
    } else if is(Function::DriverAllocBinary) || is(Function::DriverReallocBinary) {
        of_binary(result.wrapping_add(DRIVER_DATA), call.size, MOST_REFERENCES)
    } else {
        Some(result)
    };
    found.ok_or(NoBlock::NotFound)
}

/// The `Binary` whose data begin at `data`, if its fields say so.
#[inline(always)]
fn of_binary(data: u64, size: u64, most_references: u64) -> Option<u64> {
    let mut words = [0_u64; 4];
    // SAFETY: the helper checks the address.
    words = unsafe { bpf_probe_read_user(data.wrapping_sub(32) as *const [u64; 4]) }.unwrap_or(words);
    let [before, _, references, stated] = words;
    let is_binary = stated == size && references != 0 && references <= most_references;
    is_binary.then(|| begin(data, before))
}

/// The `Binary` around the resource that is at `user`.
#[inline(always)]
fn of_resource(user: u64, call: &Call) -> Option<u64> {
    // SAFETY: the helper checks the address.
    let words = unsafe { bpf_probe_read_user(user.wrapping_sub(72) as *const [u64; 9]) };
    let [before, _, references, stated, _, _, _, kind, _] = words.ok()?;
    let least = call.size.wrapping_add(RESOURCE);
    let is_resource = kind == call.argument
        && stated >= least
        && stated - least < MONITORS
        && references != 0
        && references <= MOST_REFERENCES;
    is_resource.then(|| begin(user.wrapping_sub(RESOURCE), before))
}

/// The begin of the `Binary` with this data; `before` stands four words before them.
#[inline(always)]
fn begin(data: u64, before: u64) -> u64 {
    data.wrapping_sub(if before < FLAGS { 32 } else { 24 })
}
