//! Which stacks are captured, and how.

use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_current_comm,
    generated::{bpf_get_prandom_u32, bpf_probe_read_user},
};
use beamscope_probe::{Block, Control, Counter, EXPONENTIAL_DRAWS, STACK_BYTES, SampleHeader, SampleOrigin, Site};

use super::{
    maps::{COUNTDOWN, EXPONENTIAL, NO_WAKEUP, SAMPLES, add, count},
    registers::Registers,
    thread::thread,
};

/// Bytes that are read at a time: no page is smaller, so a chunk is readable as a whole or not at all.
const CHUNK: usize = 4096;

#[repr(C)]
struct Sample {
    header: SampleHeader,
    stack: [u8; STACK_BYTES],
}

/// Captures the stack of an allocation where it is a site's first or the next sample is due.
#[inline(always)]
pub(crate) fn of_allocation(control: &Control, site: *mut Site, address: u64, block: &Block, registers: &Registers) {
    // SAFETY: a map value, valid until the program ends.
    let introductions = unsafe { &raw mut (*site).introductions };
    // SAFETY: as above; a race only captures one stack more.
    let introduce = unsafe { *introductions } < u64::from(control.introductions);
    let origin = if is_due(block.size) {
        SampleOrigin::Sampled
    } else if introduce {
        SampleOrigin::Introduction
    } else {
        return;
    };
    let header = SampleHeader {
        site: block.site,
        sequence: block.allocated_at,
        address,
        size: block.size,
        origin: origin as u32,
        ..SampleHeader::default()
    };
    if capture(&header, registers) && introduce {
        add(introductions, 1);
    }
}

/// Captures the stack of a mapping call.
#[inline(always)]
pub(crate) fn of_mapping(sequence: u64, size: u64, registers: &Registers) {
    let origin = SampleOrigin::Mapping as u32;
    capture(&SampleHeader { sequence, size, origin, ..SampleHeader::default() }, registers);
}

/// Whether one of the points that lie on the line of allocated bytes, at exponential distances, lies in the next
/// `size` bytes. Each processor has a line of its own, which makes no difference to a Poisson process.
#[inline(always)]
fn is_due(size: u64) -> bool {
    let Some(countdown) = COUNTDOWN.get_ptr_mut(0) else { return false };
    // SAFETY: a map value of this processor, valid until the program ends.
    let left = unsafe { *countdown } - (size & (i64::MAX as u64)) as i64;
    if left > 0 {
        // SAFETY: as above.
        unsafe { *countdown = left };
        return false;
    }
    // SAFETY: the helper has no precondition.
    let draw = unsafe { bpf_get_prandom_u32() } & (EXPONENTIAL_DRAWS - 1);
    if let Some(distance) = EXPONENTIAL.get(draw) {
        // SAFETY: as above.
        unsafe { *countdown = *distance as i64 };
    }
    true
}

/// Sends the stack; false where the ring buffer is full.
#[inline(always)]
fn capture(header: &SampleHeader, registers: &Registers) -> bool {
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else {
        count(Counter::LostSamples);
        return false;
    };
    let sample = entry.as_mut_ptr();
    // SAFETY: the reserved record, which is large enough.
    let (stack, into) = unsafe { ((&raw mut (*sample).stack).cast::<u8>(), &raw mut (*sample).header) };
    let captured = read_stack(stack, registers.stack_pointer);
    // SAFETY: as above.
    unsafe {
        ptr::write(
            into,
            SampleHeader {
                instruction_pointer: registers.instruction_pointer,
                stack_pointer: registers.stack_pointer,
                frame_pointer: registers.frame_pointer,
                link_register: registers.link_register,
                thread: thread(),
                captured,
                command: bpf_get_current_comm().unwrap_or_default(),
                ..*header
            },
        );
    }
    entry.submit(NO_WAKEUP);
    true
}

/// Reads chunk by chunk up to the first that is not there. A stack is full of holes: ERTS keeps 16 KiB of scheduler
/// registers in `process_main`'s frame and touches few of their pages.
#[inline(always)]
fn read_stack(into: *mut u8, stack_pointer: u64) -> u32 {
    let below = (stack_pointer & (CHUNK as u64 - 1)) as usize;
    // SAFETY: `below` is less than a chunk, and the image has several.
    let begin = unsafe { into.add(below) };
    // SAFETY: the helper checks the user's address; the record has room for a chunk behind `begin`.
    let failed = unsafe { bpf_probe_read_user(begin.cast(), (CHUNK - below) as u32, stack_pointer as *const _) };
    if failed != 0 {
        return 0;
    }
    let page = stack_pointer - below as u64;
    let mut captured = CHUNK;
    while captured < STACK_BYTES {
        // SAFETY: `captured` is less than the image's size and a multiple of a chunk.
        let next = unsafe { into.add(captured) };
        // SAFETY: the helper checks the user's address.
        let failed = unsafe { bpf_probe_read_user(next.cast(), CHUNK as u32, (page + captured as u64) as *const _) };
        if failed != 0 {
            break;
        }
        captured += CHUNK;
    }
    captured as u32
}
