//! Walks the stack of the current thread by unwind rows, and the stack of the Erlang process on it.
//!
//! Needs `bpf_loop` (Linux 5.17), whose callbacks get at their state through the number of its slot.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::helpers::{
    bpf_get_current_comm,
    generated::{bpf_loop, bpf_probe_read_user},
};
use beamscope_probe::{
    Control, Counter, ERLANG_WORDS, ErlangEnd, NATIVE_FRAMES, RuleKind, STACK_WORDS, StoredStack, WalkEnd,
    walk_ends_index,
};

use super::{
    erlang::{Erlang, read_word},
    keep::keep,
    lookup::rule_of,
    maps::{RULES, WALK_BUDGET, WALKS, WALKS_BY_END, add, count, count_by},
    registers::Registers,
    thread::{now, returns, thread},
};

/// Stacks that are walked at a time on one processor: a program can be preempted by another thread's.
pub(crate) const SLOTS: u32 = 8;
/// Words of the Erlang stack that are read at a time.
const CHUNK: usize = 64;
/// Trampolines that a walk can step over.
const TRAMPOLINES: u32 = 2;
/// Bits of addresses in user space; above them a return address can have been signed (Documentation/arch/arm64,
/// pointer-authentication.rst).
#[cfg(bpf_target_arch = "aarch64")]
pub(crate) const ADDRESS_BITS: u64 = (1 << 48) - 1;
/// Time for which a processor saves up what it may spend on walks, in nanoseconds: what a node does once in a while is walked
/// in full.
const SAVED_UP: u64 = 1_000_000_000;

/// A walk in progress: element of the map `WALKS`.
#[repr(C)]
pub(crate) struct Walk {
    /// 1 while somebody uses it.
    busy: u64,
    instruction_pointer: u64,
    stack_pointer: u64,
    frame_pointer: u64,
    link_register: u64,
    process: u64,
    /// What to subtract from the instruction pointer to be inside the call.
    before: u64,
    pub(crate) hash: u64,
    modules: u64,
    code_start: u64,
    code_end: u64,
    /// Where the Erlang stack goes on, and where it ends.
    cursor: u64,
    bottom: u64,
    chunk: [u64; CHUNK],
    pub(crate) stack: StoredStack,
}

/// What became of a walk.
#[derive(Clone, Copy)]
pub(crate) enum Walked {
    /// The stack is in the map `STACKS`, under this key.
    Kept(u64),
    /// It leads into code that is not known yet.
    NewCode,
    /// It could not be kept.
    Lost,
}

impl Walked {
    /// The stack's key; 0 for none.
    #[inline(always)]
    pub(crate) fn key(self) -> u64 {
        match self {
            Self::Kept(key) => key,
            Self::NewCode | Self::Lost => 0,
        }
    }
}

/// What walks may cost on a processor: element of the map `WALK_BUDGET`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Budget {
    left: i64,
    at: u64,
}

/// Whether the stack of every allocation may be walked now.
#[inline(always)]
pub(crate) fn is_affordable(control: &Control, now: u64) -> bool {
    if control.walk_share >= 1024 {
        return true;
    }
    let Some(budget) = WALK_BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: a map value of this processor, valid until the program ends; a race only makes the budget less exact.
    let budget = unsafe { &mut *budget };
    let mut elapsed = now.wrapping_sub(budget.at);
    if elapsed > SAVED_UP {
        elapsed = SAVED_UP;
    }
    budget.at = now;
    let earned = (elapsed * u64::from(control.walk_share)) >> 10;
    let most = (SAVED_UP * u64::from(control.walk_share)) >> 10;
    let mut left = budget.left + earned as i64;
    if left > most as i64 {
        left = most as i64;
    }
    budget.left = left;
    left > 0
}

/// Walks the stack of an allocation, at the cost of the budget; see [`stack`].
#[inline(always)]
pub(crate) fn of_allocation(control: &Control, registers: &Registers, began: u64) -> Walked {
    let walked = stack(control, registers, true);
    let took = now() - began;
    count_by(Counter::WalkNanoseconds, took);
    count(Counter::Walks);
    if let Some(budget) = WALK_BUDGET.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { (*budget).left -= took as i64 };
    }
    walked
}

/// Walks the stack that begins with `registers`.
#[inline(always)]
pub(crate) fn stack(control: &Control, registers: &Registers, leaf_is_return: bool) -> Walked {
    let Some(slot) = take_slot() else {
        count(Counter::WalkersBusy);
        return Walked::Lost;
    };
    let walked = walk(control, registers, leaf_is_return, slot);
    if let Some(walk) = WALKS.get_ptr_mut(slot) {
        // SAFETY: a map value, valid until the program ends.
        unsafe { (&raw mut (*walk).busy).write_volatile(0) };
    }
    walked
}

/// Takes a slot that nobody uses. By a loop in the kernel, so that the number is any to the verifier and what follows is
/// verified once.
#[inline(always)]
fn take_slot() -> Option<u32> {
    let mut taken = SLOTS;
    let context = (&raw mut taken).cast::<c_void>();
    // SAFETY: the callback has the form that the helper asks for.
    unsafe { bpf_loop(SLOTS, try_slot as *mut c_void, context, 0) };
    (taken < SLOTS).then_some(taken)
}

#[inline(never)]
extern "C" fn try_slot(slot: u32, context: *mut c_void) -> i64 {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return 1 };
    // SAFETY: a map value, valid until the program ends.
    let busy = unsafe { &raw mut (*walk).busy };
    if exchange(busy, 1) != 0 {
        return 0;
    }
    // SAFETY: where the number is wanted, on the stack of the function that runs the loop.
    unsafe { *context.cast::<u32>() = slot };
    1
}

/// Writes a word that others write too; returns what stood there.
#[inline(always)]
fn exchange(word: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the caller took the pointer out of a map value, where it is valid and aligned until the program ends.
    unsafe { asm!("{value} = xchg_64({word} + 0, {value})", word = in(reg) word, value = inout(reg) value) };
    value
}

#[inline(always)]
fn walk(control: &Control, registers: &Registers, leaf_is_return: bool, slot: u32) -> Walked {
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return Walked::Lost };
    // SAFETY: the slot is this program's until it is given back.
    let walk = unsafe { &mut *walk };
    let thread = thread();
    walk.instruction_pointer = registers.instruction_pointer;
    walk.stack_pointer = registers.stack_pointer;
    walk.frame_pointer = registers.frame_pointer;
    walk.link_register = registers.link_register;
    walk.process = registers.process;
    walk.before = u64::from(leaf_is_return);
    walk.hash = 0;
    walk.modules = control.modules;
    walk.code_start = control.code_start;
    walk.code_end = control.code_end;
    walk.stack.native = 0;
    walk.stack.erlang = 0;
    walk.stack.leaf_is_return = u32::from(leaf_is_return);
    walk.stack.end = WalkEnd::TooDeep as u32;
    walk.stack.thread = thread;
    walk.stack.reserved = 0;
    let mut slot = slot;
    let context = (&raw mut slot).cast::<c_void>();
    // SAFETY: the callback has the form that the helper asks for.
    unsafe { bpf_loop(NATIVE_FRAMES as u32 + TRAMPOLINES, frame as *mut c_void, context, 0) };

    // The agent will know the code in a moment; until then it is sent the stack itself.
    if walk.stack.end == WalkEnd::NoModule as u32 {
        return Walked::NewCode;
    }
    let in_process = walk.stack.end == WalkEnd::Jit as u32;
    // Code that the VM made runs on the Erlang process's stack.
    let running = if in_process && walk.stack.native == 1 { registers.stack_pointer } else { 0 };
    let erlang = Erlang::of_thread(control, thread, if in_process { walk.process } else { 0 }, running);
    walk.stack.erlang_end = erlang.end as u32;
    walk.stack.scheduler = erlang.scheduler;
    walk.stack.current = erlang.current;
    walk.stack.driver = erlang.driver;
    walk.stack.command = [0; 16];
    if erlang.scheduler == 0 {
        walk.stack.command = bpf_get_current_comm().unwrap_or_default();
    }
    walk.cursor = erlang.top;
    walk.bottom = erlang.bottom;
    if walk.cursor < walk.bottom {
        // SAFETY: as above.
        unsafe { bpf_loop(ERLANG_WORDS as u32, word as *mut c_void, context, 0) };
    }
    count_by(Counter::WalkedFrames, walk.stack.native.into());
    if let Some(counter) = WALKS_BY_END.get_ptr_mut(walk_ends_index(walk.stack.end, walk.stack.erlang_end)) {
        add(counter, 1);
    }
    keep(walk, slot).map_or(Walked::Lost, Walked::Kept)
}

#[inline(always)]
pub(crate) fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

/// One step from a frame to its caller. 1: there is none.
#[inline(never)]
extern "C" fn frame(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the number of the slot, on the stack of the function that runs the loop.
    let slot = unsafe { *context.cast::<u32>() };
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return 1 };
    // SAFETY: the slot is this program's until it is given back.
    let walk = unsafe { &mut *walk };
    let at = walk.instruction_pointer.wrapping_sub(walk.before);
    let rule = rule_of(at, walk.modules);
    let depth = walk.stack.native as usize;
    if depth >= NATIVE_FRAMES {
        return 1;
    }
    let rule = RULES.get(rule);
    // The trampoline's mapping can be younger than the table of modules.
    if rule.is_none_or(|rule| rule.kind == RuleKind::Trampoline as u32)
        && let Some(address) = behind_trampoline(walk.stack_pointer)
    {
        walk.instruction_pointer = address;
        return 0;
    }
    walk.stack.words[depth] = walk.instruction_pointer;
    walk.stack.native = depth as u32 + 1;
    walk.hash = mix(walk.hash, walk.instruction_pointer);
    let Some(rule) = rule else { return end(walk, WalkEnd::NoModule) };

    let kind = rule.kind;
    let is = |other: RuleKind| kind == other as u32;
    let from_stack = walk.stack_pointer.wrapping_add(i64::from(rule.cfa_offset) as u64);
    let mut base = from_stack;
    let mut cfa = from_stack;
    // Where a call or a signal has left the registers as they were.
    let is_leaf = depth == 0 || walk.before == 0;
    walk.before = 1;
    if is(RuleKind::StackPointer) {
    } else if is(RuleKind::FramePointer) {
        cfa = walk.frame_pointer.wrapping_add(i64::from(rule.cfa_offset) as u64);
        base = cfa;
    } else if is(RuleKind::Jit) {
        return end(walk, WalkEnd::Jit);
    } else if is(RuleKind::End) {
        return end(walk, WalkEnd::Root);
    } else if is(RuleKind::Plt) {
        cfa = walk.stack_pointer + 8;
        if walk.instruction_pointer & 15 >= 11 {
            cfa += 8;
        }
        base = cfa;
    } else if is(RuleKind::SignalFrame) {
        let Some(word) = read_word(from_stack) else { return end(walk, WalkEnd::Unreadable) };
        cfa = word;
        base = walk.stack_pointer;
        walk.before = 0;
        #[cfg(bpf_target_arch = "aarch64")]
        {
            let link = base.wrapping_add(i64::from(rule.return_address) as u64).wrapping_sub(16);
            let Some(word) = read_word(link) else { return end(walk, WalkEnd::Unreadable) };
            walk.link_register = word;
        }
    } else if is(RuleKind::StackDereference) {
        let Some(word) = read_word(from_stack) else { return end(walk, WalkEnd::Unreadable) };
        cfa = word.wrapping_add(i64::from(rule.addend) as u64);
        base = cfa;
    } else if is(RuleKind::Gap) {
        return end(walk, WalkEnd::Gap);
    } else if is(RuleKind::Trampoline) {
        return end(walk, WalkEnd::Trampoline);
    } else {
        return end(walk, WalkEnd::Unsupported);
    }
    let saved = |offset: i16| read_word(base.wrapping_add(i64::from(offset) as u64));
    let caller = if rule.return_address == 0 {
        // Only a leaf can have left its return address where the call put it.
        if !is_leaf {
            return end(walk, WalkEnd::Implausible);
        }
        walk.link_register
    } else {
        match saved(rule.return_address) {
            Some(caller) => caller,
            None => return end(walk, WalkEnd::Unreadable),
        }
    };
    #[cfg(bpf_target_arch = "aarch64")]
    let caller = caller & ADDRESS_BITS;
    if caller == 0 {
        return end(walk, WalkEnd::Root);
    }
    if rule.frame_pointer != 0 {
        match saved(rule.frame_pointer) {
            Some(word) => walk.frame_pointer = word,
            None => return end(walk, WalkEnd::Unreadable),
        }
    }
    if rule.process != 0 {
        match saved(rule.process) {
            Some(word) => walk.process = word,
            None => return end(walk, WalkEnd::Unreadable),
        }
    }
    if cfa < walk.stack_pointer || (cfa == walk.stack_pointer && !is_leaf) {
        return end(walk, WalkEnd::Implausible);
    }
    walk.stack_pointer = cfa;
    walk.instruction_pointer = caller;
    0
}

/// Where the function whose frame ends at `stack_pointer` returns to, if its return is probed.
#[inline(always)]
fn behind_trampoline(stack_pointer: u64) -> Option<u64> {
    let [outer, inner] = returns();
    if outer.stack_pointer == stack_pointer {
        Some(outer.address)
    } else if inner.stack_pointer == stack_pointer {
        Some(inner.address)
    } else {
        None
    }
}

#[inline(always)]
fn end(walk: &mut Walk, end: WalkEnd) -> i64 {
    walk.stack.end = end as u32;
    1
}

/// Looks at one word of the Erlang stack. 1: it was the last.
#[inline(never)]
extern "C" fn word(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the number of the slot, on the stack of the function that runs the loop.
    let slot = unsafe { *context.cast::<u32>() };
    let Some(walk) = WALKS.get_ptr_mut(slot) else { return 1 };
    // SAFETY: the slot is this program's until it is given back.
    let walk = unsafe { &mut *walk };
    if walk.cursor >= walk.bottom {
        return 1;
    }
    let within = index as usize % CHUNK;
    if within == 0 {
        let mut bytes = walk.bottom - walk.cursor;
        if bytes > (CHUNK * 8) as u64 {
            bytes = (CHUNK * 8) as u64;
        }
        // SAFETY: the chunk has room for as many bytes; the helper checks the user's address.
        let failed = unsafe {
            bpf_probe_read_user((&raw mut walk.chunk).cast(), bytes as u32 & 0x3ff, walk.cursor as *const c_void)
        };
        if failed != 0 {
            walk.stack.erlang_end = ErlangEnd::Unreadable as u32;
            return 1;
        }
    }
    let word = walk.chunk[within];
    walk.cursor += 8;
    // Return addresses have no tag (`_CPMASK`, erl_term.h); nothing else on the stack has none.
    if word & 3 != 0 || word < walk.code_start || word >= walk.code_end {
        return 0;
    }
    let at = (walk.stack.native + walk.stack.erlang) as usize;
    if at >= STACK_WORDS {
        walk.stack.erlang_end = ErlangEnd::TooDeep as u32;
        return 1;
    }
    walk.stack.words[at] = word;
    walk.stack.erlang += 1;
    walk.hash = mix(walk.hash, word);
    0
}
