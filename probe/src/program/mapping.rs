//! What a mapping call means for the address space: events for the agent, which knows about ranges.
//!
//! A range is reported as gone when the call that takes it away begins, since the kernel can give it to another thread
//! before that call is over; a call that fails takes the report back.

use beamscope_probe::{Counter, Function, MappingEvent, MappingKind};

use super::{
    maps::{CONTROL, FORCE_WAKEUP, HEAP_END, MAPPING_CALLS, MAPPINGS, NO_WAKEUP, count, recording},
    registers::Registers,
    sample,
    thread::{in_allocation, now, process, thread},
    walk,
};

const MAP_ANONYMOUS: u32 = 0x20;
const PROT_EXEC: u32 = 4;
/// Results from here up are error numbers (`MAX_ERRNO` in include/linux/err.h).
const FIRST_ERROR: u64 = -4095_i64 as u64;

/// A mapping call in progress: value of the map `MAPPING_CALLS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MappingRequest {
    arguments: [u64; 4],
    began: u64,
    function: u32,
    in_allocator: u32,
}

impl MappingRequest {
    /// A call of `function` with its first four arguments.
    #[inline(always)]
    pub(crate) fn new(function: Function, first: u64, second: u64, third: u64, fourth: u64) -> Self {
        Self { arguments: [first, second, third, fourth], began: 0, function: function as u32, in_allocator: 0 }
    }
}

/// Whose call it was.
pub(crate) enum Caller<'a> {
    /// A function of the C library's: the registers behind its return.
    Function(&'a Registers),
    /// The kernel's system call itself.
    SystemCall,
}

/// Whether the current thread belongs to the process that the tracepoints follow.
#[inline(always)]
pub(crate) fn is_target() -> bool {
    CONTROL.get(0).is_some_and(|control| control.target == process())
}

/// A mapping call begins.
#[inline(always)]
pub(crate) fn enter(request: &MappingRequest) {
    if recording().is_none() {
        return;
    }
    let mut request = *request;
    let is = |function: Function| request.function == function as u32;
    if in_allocation() {
        // The allocator's own mappings hold the blocks that are followed already.
        count(Counter::AllocatorMappings);
        if !is(Function::Brk) {
            return;
        }
        request.in_allocator = 1;
    }
    let [address, length, ..] = request.arguments;
    if is(Function::Munmap) || is(Function::Mremap) {
        let kind = MappingKind::Unmapping as u32;
        request.began = now();
        send(&MappingEvent { at: request.began, address, length, kind, thread: thread(), ..MappingEvent::default() });
    }
    if MAPPING_CALLS.insert(thread(), request, 0).is_err() {
        count(Counter::MappingCallTableFull);
    }
}

/// A mapping call returns `result`. `WALK`: stacks are walked here.
#[inline(always)]
pub(crate) fn leave<const WALK: bool>(result: u64, caller: Caller<'_>) {
    let thread = thread();
    let Some(request) = MAPPING_CALLS.get_ptr(thread) else { return };
    // SAFETY: only the current thread writes its entry.
    let request = unsafe { *request };
    // An entry that cannot be removed is written over by the thread's next call.
    if MAPPING_CALLS.remove(thread).is_err() {
        return;
    }
    let Some(control) = recording() else { return };
    let is = |function: Function| request.function == function as u32;
    let [first, second, third, fourth] = request.arguments;
    let failed = result >= FIRST_ERROR;
    let mut event = MappingEvent { at: now(), began: request.began, thread, ..MappingEvent::default() };
    let mut holds_memory = true;
    if is(Function::Munmap) {
        event.kind = if failed { MappingKind::UnmapFailed } else { MappingKind::Unmapped } as u32;
        send(&event);
        return;
    }
    if is(Function::Brk) {
        // The system call returns the end of the heap, moved or not; the function returns 0 where it was moved.
        event.address = match caller {
            Caller::Function(_) if result as u32 != 0 => return,
            Caller::Function(_) => first,
            Caller::SystemCall => result,
        };
        event.kind = MappingKind::Break as u32;
        event.in_allocator = request.in_allocator;
        // `free` gives the heap's end back as well, which needs no stack.
        holds_memory = grows_heap(event.address);
    } else if is(Function::Mremap) {
        if failed {
            event.kind = MappingKind::UnmapFailed as u32;
            send(&event);
            return;
        }
        event.kind = MappingKind::Moved as u32;
        event.address = result;
        event.length = third;
        event.flags = fourth as u32;
    } else {
        if failed {
            return;
        }
        event.kind = MappingKind::Mapped as u32;
        event.address = result;
        event.length = second;
        event.protection = third as u32;
        event.flags = fourth as u32;
        holds_memory = event.flags & MAP_ANONYMOUS != 0;
    }
    if !holds_memory || request.in_allocator != 0 {
        send(&event);
        return;
    }
    event.sequence = event.at;
    let registers = match &caller {
        Caller::Function(registers) => Some(**registers),
        Caller::SystemCall => Registers::of_system_call(),
    };
    if registers.is_none() {
        count(Counter::FailedReads);
    }
    if WALK && let Some(registers) = &registers {
        let leaf_is_return = matches!(caller, Caller::Function(_));
        event.stack = walk::stack(control, registers, leaf_is_return).key();
    }
    send(&event);
    if event.stack == 0
        && let Some(registers) = &registers
    {
        sample::of_mapping(control, event.sequence, event.length, registers);
    }
}

/// Notes the end of the heap; says whether it has moved up.
#[inline(always)]
fn grows_heap(end: u64) -> bool {
    let Some(known) = HEAP_END.get_ptr_mut(0) else { return false };
    // SAFETY: a map value, valid until the program ends. The kernel moves the end under the lock of the address space,
    // and two threads that race here only make a stack too many or too few.
    let before = unsafe { core::mem::replace(&mut *known, end) };
    before != 0 && end > before
}

#[inline(always)]
fn send(event: &MappingEvent) {
    match MAPPINGS.reserve::<MappingEvent>(0) {
        Some(mut entry) => {
            entry.write(*event);
            // New code is urgent: stacks that pass through it end there until the agent knows it.
            let is_code = event.kind == MappingKind::Mapped as u32 && event.protection & PROT_EXEC != 0;
            entry.submit(if is_code { FORCE_WAKEUP } else { NO_WAKEUP });
        }
        None => count(Counter::LostMappings),
    }
}
