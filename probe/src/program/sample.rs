//! Which stacks are captured, and how.

use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_current_comm,
    generated::{bpf_get_prandom_u32, bpf_probe_read_user},
};
use beamscope_probe::{
    Block, Control, Counter, ERLANG_WORDS, EXPONENTIAL_DRAWS, ErlangEnd, STACK_BYTES, SampleHeader, SampleOrigin, Site,
    StackImage,
};

use super::{
    erlang::Erlang,
    maps::{COUNTDOWN, EXPONENTIAL, NO_WAKEUP, SAMPLES, add, count},
    registers::Registers,
    thread::{returns, thread},
    walk,
};

/// Stacks that are sent of a site whose code is new, before it counts as one that will stay unknown.
const NEW_CODE: u64 = 64;
/// Bytes that are read at a time: no page is smaller, so a chunk is readable as a whole or not at all.
const CHUNK: usize = 4096;

#[repr(C)]
struct Sample {
    header: SampleHeader,
    image: StackImage,
    stack: [u8; STACK_BYTES],
    erlang: [u64; ERLANG_WORDS],
}

/// Captures the stack of an allocation where it is a site's first or the next sample is due. `WALK`: it is walked here.
#[inline(always)]
pub(crate) fn of_allocation<const WALK: bool>(
    control: &Control,
    site: *mut Site,
    address: u64,
    block: &Block,
    registers: &Registers,
) {
    // SAFETY: a map value, valid until the program ends.
    let introductions = unsafe { &raw mut (*site).introductions };
    // SAFETY: as above; a race only captures one stack more.
    let introduce = unsafe { *introductions } < u64::from(control.introductions);
    let of_new_code = block.site.is_stack == 2;
    let due = is_due(block.size);
    let origin = if of_new_code {
        // SAFETY: as above.
        if unsafe { *introductions } >= NEW_CODE {
            return;
        }
        SampleOrigin::Each
    } else if due {
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
        stack: 0,
        thread: thread(),
        origin: origin as u32,
    };
    let stack = if WALK && !of_new_code { walk::stack(control, registers, true).key() } else { 0 };
    let captured = match stack {
        0 => capture(control, &header, registers),
        stack => send(&SampleHeader { stack, ..header }),
    };
    if captured && (introduce || of_new_code) {
        add(introductions, 1);
    }
}

/// Captures the stack of a mapping call.
#[inline(always)]
pub(crate) fn of_mapping(control: &Control, sequence: u64, size: u64, registers: &Registers) {
    let origin = SampleOrigin::Mapping as u32;
    capture(control, &SampleHeader { sequence, size, origin, thread: thread(), ..SampleHeader::default() }, registers);
}

/// Captures the stack that called what makes the thread `new`. `WALK`: it is walked here.
#[inline(always)]
pub(crate) fn of_thread<const WALK: bool>(control: &Control, new: u32, registers: &Registers) {
    let origin = SampleOrigin::Thread as u32;
    let header = SampleHeader { sequence: new.into(), origin, thread: thread(), ..SampleHeader::default() };
    let stack = if WALK { walk::stack(control, registers, true).key() } else { 0 };
    match stack {
        0 => capture(control, &header, registers),
        stack => send(&SampleHeader { stack, ..header }),
    };
}

/// Captures the stack that took a page fault at `address`, which stands for `faults` of them. `WALK`: it is walked here.
#[inline(always)]
pub(crate) fn of_fault<const WALK: bool>(
    control: &Control,
    at: u64,
    address: u64,
    faults: u32,
    registers: Option<&Registers>,
) {
    let header = SampleHeader {
        sequence: at,
        address,
        size: faults.into(),
        thread: thread(),
        origin: SampleOrigin::Fault as u32,
        ..SampleHeader::default()
    };
    let Some(registers) = registers else {
        send(&header);
        return;
    };
    let stack = if WALK { walk::stack(control, registers, false).key() } else { 0 };
    match stack {
        0 => capture(control, &header, registers),
        stack => send(&SampleHeader { stack, ..header }),
    };
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

/// Sends a sample whose stack is in the map `STACKS`; false where the ring buffer is full.
#[inline(always)]
fn send(header: &SampleHeader) -> bool {
    let Some(mut entry) = SAMPLES.reserve::<SampleHeader>(0) else {
        count(Counter::LostSamples);
        return false;
    };
    entry.write(*header);
    entry.submit(NO_WAKEUP);
    true
}

/// Sends the stack itself; false where the ring buffer is full.
#[inline(always)]
fn capture(control: &Control, header: &SampleHeader, registers: &Registers) -> bool {
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else {
        count(Counter::LostSamples);
        return false;
    };
    let sample = entry.as_mut_ptr();
    // SAFETY: the reserved record, which is large enough.
    let (stack, words) = unsafe { ((&raw mut (*sample).stack).cast::<u8>(), &raw mut (*sample).erlang) };
    let captured = read_stack(stack, registers.stack_pointer);
    let mut erlang = Erlang::of_thread(control, header.thread, 0, registers.stack_pointer);
    let bytes = erlang.bottom - erlang.top;
    let mut erlang_words = 0;
    if bytes != 0 && bytes <= (ERLANG_WORDS * 8) as u64 {
        // SAFETY: the record has room for as many words; the helper checks the user's address.
        if unsafe { bpf_probe_read_user(words.cast(), bytes as u32, erlang.top as *const _) } == 0 {
            erlang_words = (bytes / 8) as u32;
        } else {
            erlang.end = ErlangEnd::Unreadable;
        }
    }
    let image = StackImage {
        instruction_pointer: registers.instruction_pointer,
        stack_pointer: registers.stack_pointer,
        frame_pointer: registers.frame_pointer,
        link_register: registers.link_register,
        current: erlang.current,
        driver: erlang.driver,
        captured,
        erlang_end: erlang.end as u32,
        erlang_words,
        scheduler: erlang.scheduler,
        command: bpf_get_current_comm().unwrap_or_default(),
        returns: returns(),
    };
    // SAFETY: as above.
    unsafe { ptr::write(&raw mut (*sample).header, *header) };
    // SAFETY: as above.
    unsafe { ptr::write(&raw mut (*sample).image, image) };
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
