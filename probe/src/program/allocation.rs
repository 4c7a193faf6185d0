//! What a call of an allocation function means for the tables of live blocks and of sites.
//!
//! Only the outermost allocation function counts: `reallocarray` calls `realloc`, and musl's `realloc` calls `malloc`
//! and `free`. Nested calls are told by the stack pointer, so that a call whose return never comes (a thread that was
//! cancelled, a `longjmp`) does not blind its thread for long.
//!
//! Sizes are those that were asked for. The size in a chunk's header would save the probe at the entry, but it is rounded
//! up, by a third for the smallest blocks, and only glibc's is known.

use aya_ebpf::{
    helpers::bpf_probe_read_user,
    maps::{HashMap, LruHashMap},
};
use beamscope_probe::{Block, Call, Counter, Function, Return, Site, SiteKey};

use super::{
    maps::{CALLS, LIVE, SITES, VM_CALLS, VM_LIVE, add, count, count_by, recording},
    registers::{RETURN_ADDRESS_BYTES, Registers},
    sample,
    thread::{in_allocation, now, thread},
    vm, walk,
};

const ANY: u64 = 0;
const NOEXIST: u64 = 1;
const EEXIST: i32 = -17;
/// No allocator calls itself from deeper in the stack than this.
const DEEPEST_NESTING: u64 = 256 << 10;

/// What an allocation function was asked for.
pub(crate) struct Request {
    pub(crate) function: Function,
    /// Bytes.
    pub(crate) size: u64,
    /// As [`Call::argument`].
    pub(crate) argument: u64,
}

/// Calls in progress. `VM`: of the VM's functions, which call those of the C library.
#[inline(always)]
fn calls<const VM: bool>() -> &'static LruHashMap<u32, Call> {
    if VM { &VM_CALLS } else { &CALLS }
}

/// Live blocks. `VM`: of the VM's functions. With its allocators switched off, they are those of the C library as well.
#[inline(always)]
fn live<const VM: bool>() -> &'static HashMap<u64, Block> {
    if VM { &VM_LIVE } else { &LIVE }
}

/// An allocation function begins.
#[inline(always)]
pub(crate) fn enter<const VM: bool>(registers: &Registers, request: &Request) {
    let thread = thread();
    let function = request.function as u32;
    let fresh = Call {
        stack_pointer: registers.stack_pointer,
        size: request.size,
        argument: request.argument,
        replaced: Block::default(),
        replaced_at: 0,
        returns: [if VM { registers.return_of_function() } else { Return::default() }, Return::default()],
        function,
        reserved: 0,
    };
    let known = calls::<VM>().get_ptr_mut(thread);
    if let Some(call) = known {
        // SAFETY: only the current thread writes its entry.
        let outer = unsafe { &mut *call };
        let outer_stack = outer.stack_pointer;
        if outer.function != 0 {
            // The same stack pointer: the outer one has left by a jump to this one. A call that was abandoned exactly here
            // asked for something else.
            let same = outer.function == function && (outer.size != request.size || outer.argument != request.argument);
            let jumped = registers.stack_pointer == outer_stack && !same;
            let nested =
                registers.stack_pointer < outer_stack && outer_stack - registers.stack_pointer < DEEPEST_NESTING;
            if nested || jumped {
                if VM && nested {
                    outer.returns[1] = fresh.returns[0];
                }
                return;
            }
            if recording().is_some() {
                count(Counter::AbandonedCalls);
            }
        }
    }
    let call = match known {
        Some(call) => {
            // SAFETY: only the current thread writes its entry.
            unsafe { *call = fresh };
            call
        }
        None => {
            if calls::<VM>().insert(thread, fresh, ANY).is_err() {
                count(Counter::CallTableFull);
                return;
            }
            let Some(call) = calls::<VM>().get_ptr_mut(thread) else { return };
            call
        }
    };
    let resized = match request.function {
        Function::Realloc | Function::Reallocarray => request.argument,
        _ if VM => vm::resized(request),
        _ => 0,
    };
    if resized != 0 && recording().is_some() {
        // SAFETY: only the current thread writes its entry.
        let call = unsafe { &mut *call };
        call.replaced_at = resized;
        // Taken out before the allocator can give the address to another thread.
        take::<VM>(resized, &mut call.replaced);
    }
}

/// Some allocation function returns; `result` is its return value. `WALK`: stacks are walked here.
#[inline(always)]
pub(crate) fn leave<const WALK: bool, const VM: bool>(registers: &Registers, result: u64) {
    let control = recording();
    let Some(call) = calls::<VM>().get_ptr_mut(thread()) else {
        if control.is_some() {
            count(Counter::UnmatchedReturns);
        }
        return;
    };
    // SAFETY: only the current thread writes its entry.
    let call = unsafe { &mut *call };
    let returned_to = call.stack_pointer.wrapping_add(RETURN_ADDRESS_BYTES);
    if call.function == 0 {
        // A function that was left by a jump returns a second time, at the same place.
        if registers.stack_pointer != returned_to && control.is_some() {
            count(Counter::UnmatchedReturns);
        }
        return;
    }
    if registers.stack_pointer < returned_to {
        return;
    }
    let function = call.function;
    call.function = 0;
    let Some(control) = control else { return };
    if registers.stack_pointer > returned_to {
        count(Counter::AbandonedCalls);
        count(Counter::UnmatchedReturns);
        return;
    }

    let mut address = result;
    if VM {
        match vm::block(call, function, result) {
            Ok(block) => address = block,
            Err(vm::NoBlock::OnHeap) => return,
            Err(vm::NoBlock::NotFound) => {
                count(Counter::UnlocatedVmBlocks);
                return;
            }
        }
    } else if function == Function::PosixMemalign as u32 {
        address = 0;
        if result as u32 == 0 {
            // SAFETY: the helper checks the address.
            match unsafe { bpf_probe_read_user(call.argument as *const u64) } {
                Ok(block) => address = block,
                Err(_) => {
                    count(Counter::FailedReads);
                    return;
                }
            }
        }
    }
    let replaces = call.replaced.site.function != 0;
    if address == 0 {
        if call.size == 0 {
            // `realloc(address, 0)` has freed the block.
            if replaces {
                freed(&call.replaced);
            }
        } else {
            count(Counter::FailedAllocations);
            if replaces && live::<VM>().insert(call.replaced_at, call.replaced, ANY).is_err() {
                freed(&call.replaced);
                count(Counter::LiveTableFull);
                count_by(Counter::LiveTableFullBytes, call.replaced.size);
            }
        }
        return;
    }
    if replaces {
        freed(&call.replaced);
    }
    let allocated_at = now();
    let mut key = SiteKey {
        caller: registers.instruction_pointer,
        stack_pointer: registers.stack_pointer,
        function,
        is_stack: 0,
    };
    if WALK {
        if walk::is_affordable(control, allocated_at) {
            match walk::of_allocation(control, registers, allocated_at) {
                walk::Walked::Kept(stack) => {
                    key = SiteKey { caller: stack, stack_pointer: 0, function, is_stack: 1 };
                }
                walk::Walked::NewCode => {
                    key.is_stack = 2;
                    count(Counter::UnwalkedAllocations);
                }
                walk::Walked::Lost => count(Counter::UnwalkedAllocations),
            }
        } else {
            count(Counter::UnwalkedAllocations);
        }
    }
    let Some(site) = find_site(&mut key) else { return };
    let block = Block { size: call.size, allocated_at, site: key };
    if !track::<VM>(address, &block) {
        return;
    }
    // SAFETY: a map value, valid until the program ends.
    let words = unsafe { (&raw mut (*site).allocated_bytes, &raw mut (*site).allocated_blocks) };
    add(words.0, call.size);
    add(words.1, 1);
    if key.is_stack != 1 {
        sample::of_allocation::<WALK>(control, site, address, &block, registers);
    }
}

/// One of the VM's allocators asks for a carrier of `size` bytes. What becomes of it is not followed: it is counted. `WALK`:
/// stacks are walked here.
#[inline(always)]
pub(crate) fn request_carrier<const WALK: bool>(registers: &Registers, allocator: u64, size: *const u64) {
    let Some(control) = recording() else { return };
    // SAFETY: the helper checks the address.
    let Ok(size) = (unsafe { bpf_probe_read_user(size) }) else {
        count(Counter::FailedReads);
        return;
    };
    let caller = registers.return_of_function();
    let registers =
        Registers { instruction_pointer: caller.address, stack_pointer: caller.stack_pointer, ..*registers };
    let function = Function::MsegAlloc as u32 | ((allocator as u32 & 0xffff) << 16);
    let allocated_at = now();
    // They are few, so that each is worth its walk. No stack has the key 0.
    let stack = if WALK { walk::of_allocation(control, &registers, allocated_at).key() } else { 0 };
    let mut key = SiteKey { caller: stack, stack_pointer: 0, function, is_stack: 1 };
    if stack == 0 {
        key = SiteKey { caller: caller.address, stack_pointer: caller.stack_pointer, function, is_stack: 0 };
    }
    let Some(site) = find_site(&mut key) else { return };
    // SAFETY: a map value, valid until the program ends.
    let words = unsafe { (&raw mut (*site).allocated_bytes, &raw mut (*site).allocated_blocks) };
    add(words.0, size);
    add(words.1, 1);
    if key.is_stack != 1 {
        sample::of_allocation::<WALK>(control, site, 0, &Block { size, allocated_at, site: key }, &registers);
    }
}

/// `free` begins.
#[inline(always)]
pub(crate) fn free<const VM: bool>(address: u64) {
    if address == 0 || recording().is_none() {
        return;
    }
    let mut block = Block::default();
    if take::<VM>(address, &mut block) {
        freed(&block);
    } else if !VM && !in_allocation() {
        // Most of what the VM frees is its own.
        count(Counter::UnknownFrees);
    }
}

/// Takes the block at `address` out of the live blocks.
#[inline(always)]
fn take<const VM: bool>(address: u64, into: &mut Block) -> bool {
    let Some(block) = live::<VM>().get_ptr(address) else { return false };
    // SAFETY: a map value, valid until the program ends.
    *into = unsafe { *block };
    // Where two threads free the same block, only one of them removes it.
    live::<VM>().remove(address).is_ok()
}

/// Enters a block; false where it could not be followed.
#[inline(always)]
fn track<const VM: bool>(address: u64, block: &Block) -> bool {
    match live::<VM>().insert(address, block, NOEXIST) {
        Ok(()) => return true,
        Err(EEXIST) => {
            let mut stale = Block::default();
            if take::<VM>(address, &mut stale) {
                freed(&stale);
                count(Counter::MissedFrees);
            }
            if live::<VM>().insert(address, block, ANY).is_ok() {
                return true;
            }
        }
        Err(_) => {}
    }
    count(Counter::LiveTableFull);
    count_by(Counter::LiveTableFullBytes, block.size);
    false
}

/// Counts a block as freed at the site where it was allocated.
#[inline(always)]
fn freed(block: &Block) {
    if let Some(site) = SITES.get_ptr_mut(block.site) {
        // SAFETY: a map value, valid until the program ends.
        let words = unsafe { (&raw mut (*site).freed_bytes, &raw mut (*site).freed_blocks) };
        add(words.0, block.size);
        add(words.1, 1);
    }
}

/// The site of `key`; where the table is full, a coarser one, to which `key` is changed.
#[inline(always)]
fn find_site(key: &mut SiteKey) -> Option<*mut Site> {
    if let Some(site) = SITES.get_ptr_mut(*key) {
        return Some(site);
    }
    if let Some(site) = new_site(key) {
        return Some(site);
    }
    count(Counter::SiteTableFull);
    key.stack_pointer = 0;
    key.is_stack = 0;
    if let Some(site) = SITES.get_ptr_mut(*key) {
        return Some(site);
    }
    // The agent has entered this one for each function.
    key.caller = 0;
    SITES.get_ptr_mut(*key)
}

#[inline(always)]
fn new_site(key: &SiteKey) -> Option<*mut Site> {
    let fresh = Site::default();
    // Another thread can have been faster, which is as good.
    match SITES.insert(*key, fresh, NOEXIST) {
        Ok(()) | Err(EEXIST) => SITES.get_ptr_mut(*key),
        Err(_) => None,
    }
}
