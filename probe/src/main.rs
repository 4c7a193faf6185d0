//! The BPF program: follows the allocation functions and the mapping calls of one process.
//!
//! The functions here are only entry points: each takes its arguments out of the registers or the tracepoint record.
//! `allocation` holds what a call means for the tables, `mapping` what it means for the address space, `vm` what native
//! code asks the VM for, `fault` who touches memory first. `walk` walks stacks, with `lookup` for unwind rules, `erlang` for the Erlang process on the
//! thread and `keep` for each stack once; `sample` chooses stacks and copies them where they cannot be walked. `maps` are
//! the tables themselves.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unsafe_code, reason = "map values are raw pointers that the kernel's verifier checks")]
#![expect(clippy::needless_pass_by_value, reason = "aya passes program contexts by value")]

mod program;

use aya_ebpf::{
    macros::{perf_event, tracepoint, uprobe, uretprobe},
    programs::{PerfEventContext, ProbeContext, RetProbeContext, TracePointContext},
};
use beamscope_probe::{ABI_VERSION, Architecture, CONTRACT_SECTION, Contract, Counter, Function};
use program::{
    allocation::{self, Request},
    fault,
    mapping::{self, MappingRequest},
    maps::{count, recording},
    registers::Registers,
    sample,
};

/// Product of two sizes; `u64::MAX`, which no allocator can serve, where it overflows.
///
/// By halves: a checked multiplication needs 128 bits, for which BPF lacks the compiler's helper function.
#[inline(always)]
fn product(left: u64, right: u64) -> u64 {
    let (large, small) = if left > right { (left, right) } else { (right, left) };
    if small >> 32 != 0 {
        return u64::MAX;
    }
    let upper = (large >> 32) * small;
    let lower = (large & 0xffff_ffff) * small;
    if upper >> 32 != 0 || (upper << 32) > u64::MAX - lower {
        return u64::MAX;
    }
    (upper << 32) + lower
}

#[inline(always)]
fn argument(ctx: &ProbeContext, index: usize) -> u64 {
    ctx.arg(index).unwrap_or(0)
}

#[inline(always)]
fn enter(ctx: &ProbeContext, function: Function, size: u64, argument: u64) -> u32 {
    allocation::enter::<false>(&Registers::of_probe(ctx), &Request { function, size, argument });
    0
}

#[inline(always)]
fn enter_vm(ctx: &ProbeContext, function: Function, size: u64, argument: u64) -> u32 {
    allocation::enter::<true>(&Registers::of_probe(ctx), &Request { function, size, argument });
    0
}

/// Entry of `malloc`.
#[uprobe]
fn malloc(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::Malloc, argument(&ctx, 0), 0)
}

/// Entry of `calloc`.
#[uprobe]
fn calloc(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::Calloc, product(argument(&ctx, 0), argument(&ctx, 1)), 0)
}

/// Entry of `realloc`.
#[uprobe]
fn realloc(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::Realloc, argument(&ctx, 1), argument(&ctx, 0))
}

/// Entry of `reallocarray`.
#[uprobe]
fn reallocarray(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::Reallocarray, product(argument(&ctx, 1), argument(&ctx, 2)), argument(&ctx, 0))
}

/// Entry of `aligned_alloc`.
#[uprobe]
fn aligned_alloc(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::AlignedAlloc, argument(&ctx, 1), 0)
}

/// Entry of `posix_memalign`.
#[uprobe]
fn posix_memalign(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::PosixMemalign, argument(&ctx, 2), argument(&ctx, 0))
}

/// Entry of `memalign`.
#[uprobe]
fn memalign(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::Memalign, argument(&ctx, 1), 0)
}

/// Entry of `valloc`.
#[uprobe]
fn valloc(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::Valloc, argument(&ctx, 0), 0)
}

/// Entry of `pvalloc`.
#[uprobe]
fn pvalloc(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::Pvalloc, argument(&ctx, 0), 0)
}

/// Entry of an allocator's own `operator new`.
#[uprobe]
fn operator_new(ctx: ProbeContext) -> u32 {
    enter(&ctx, Function::OperatorNew, argument(&ctx, 0), 0)
}

/// Return of any allocation function.
#[uretprobe]
fn allocated(ctx: RetProbeContext) -> u32 {
    allocation::leave::<false, false>(&Registers::of_return(&ctx), ctx.ret());
    0
}

/// As `allocated`, where the kernel has `bpf_loop`.
#[uretprobe]
fn allocated_walking(ctx: RetProbeContext) -> u32 {
    allocation::leave::<true, false>(&Registers::of_return(&ctx), ctx.ret());
    0
}

/// Entry of `free`.
#[uprobe]
fn free(ctx: ProbeContext) -> u32 {
    allocation::free::<false>(argument(&ctx, 0));
    0
}

/// Entry of `enif_alloc`.
#[uprobe]
fn enif_alloc(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::EnifAlloc, argument(&ctx, 0), 0)
}

/// Entry of `enif_realloc`.
#[uprobe]
fn enif_realloc(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::EnifRealloc, argument(&ctx, 1), argument(&ctx, 0))
}

/// Entry of `enif_alloc_resource`.
#[uprobe]
fn enif_alloc_resource(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::EnifAllocResource, argument(&ctx, 1), argument(&ctx, 0))
}

/// Entry of `enif_make_new_binary`.
#[uprobe]
fn enif_make_new_binary(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::EnifMakeNewBinary, argument(&ctx, 1), 0)
}

/// Entry of `enif_alloc_binary`.
#[uprobe]
fn enif_alloc_binary(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::EnifAllocBinary, argument(&ctx, 0), argument(&ctx, 1))
}

/// Entry of `enif_realloc_binary`.
#[uprobe]
fn enif_realloc_binary(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::EnifReallocBinary, argument(&ctx, 1), argument(&ctx, 0))
}

/// Entry of `driver_alloc`.
#[uprobe]
fn driver_alloc(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::DriverAlloc, argument(&ctx, 0), 0)
}

/// Entry of `driver_realloc`.
#[uprobe]
fn driver_realloc(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::DriverRealloc, argument(&ctx, 1), argument(&ctx, 0))
}

/// Entry of `driver_alloc_binary`.
#[uprobe]
fn driver_alloc_binary(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::DriverAllocBinary, argument(&ctx, 0), 0)
}

/// Entry of `driver_realloc_binary`.
#[uprobe]
fn driver_realloc_binary(ctx: ProbeContext) -> u32 {
    enter_vm(&ctx, Function::DriverReallocBinary, argument(&ctx, 1), argument(&ctx, 0))
}

/// Return of any of the VM's functions.
#[uretprobe]
fn vm_allocated(ctx: RetProbeContext) -> u32 {
    allocation::leave::<false, true>(&Registers::of_return(&ctx), ctx.ret());
    0
}

/// As `vm_allocated`, where the kernel has `bpf_loop`.
#[uretprobe]
fn vm_allocated_walking(ctx: RetProbeContext) -> u32 {
    allocation::leave::<true, true>(&Registers::of_return(&ctx), ctx.ret());
    0
}

/// Entry of what the VM's allocators free blocks with.
#[uprobe]
fn vm_free(ctx: ProbeContext) -> u32 {
    allocation::free::<true>(argument(&ctx, 2));
    0
}

/// Entry of `enif_free` and `driver_free`, where what they call is not found.
#[uprobe]
fn vm_api_free(ctx: ProbeContext) -> u32 {
    allocation::free::<true>(argument(&ctx, 0));
    0
}

/// Entry of `erts_mseg_alloc_opt`.
#[uprobe]
fn carrier_requested(ctx: ProbeContext) -> u32 {
    let size = argument(&ctx, 1) as *const u64;
    allocation::request_carrier::<false>(&Registers::of_probe(&ctx), argument(&ctx, 0), size);
    0
}

/// As `carrier_requested`, where the kernel has `bpf_loop`.
#[uprobe]
fn carrier_requested_walking(ctx: ProbeContext) -> u32 {
    let size = argument(&ctx, 1) as *const u64;
    allocation::request_carrier::<true>(&Registers::of_probe(&ctx), argument(&ctx, 0), size);
    0
}

#[inline(always)]
fn mapping_arguments(ctx: &ProbeContext, function: Function) -> MappingRequest {
    // On entry, brk moves the heap's end to its first argument, which is how a probe on the function learns it.
    MappingRequest::new(function, argument(ctx, 0), argument(ctx, 1), argument(ctx, 2), argument(ctx, 3))
}

/// Entry of the C library's `mmap`, where the kernel has no system call tracepoints.
#[uprobe]
fn mmap(ctx: ProbeContext) -> u32 {
    mapping::enter(&mapping_arguments(&ctx, Function::Mmap));
    0
}

/// Entry of the C library's `munmap`.
#[uprobe]
fn munmap(ctx: ProbeContext) -> u32 {
    mapping::enter(&mapping_arguments(&ctx, Function::Munmap));
    0
}

/// Entry of the C library's `mremap`.
#[uprobe]
fn mremap(ctx: ProbeContext) -> u32 {
    mapping::enter(&mapping_arguments(&ctx, Function::Mremap));
    0
}

/// Entry of the C library's `brk`.
#[uprobe]
fn brk(ctx: ProbeContext) -> u32 {
    mapping::enter(&mapping_arguments(&ctx, Function::Brk));
    0
}

/// Return of the C library's `mmap`, `munmap`, `mremap` and `brk`.
#[uretprobe]
fn mapped(ctx: RetProbeContext) -> u32 {
    mapping::leave::<false>(ctx.ret(), mapping::Caller::Function(&Registers::of_return(&ctx)));
    0
}

/// As `mapped`, where the kernel has `bpf_loop`.
#[uretprobe]
fn mapped_walking(ctx: RetProbeContext) -> u32 {
    mapping::leave::<true>(ctx.ret(), mapping::Caller::Function(&Registers::of_return(&ctx)));
    0
}

/// Offset of the first argument in the record of a `sys_enter_*` tracepoint, and of the result in `sys_exit_*`.
const TRACEPOINT_VALUES: usize = 16;

#[inline(always)]
fn system_call_argument(ctx: &TracePointContext, index: usize) -> u64 {
    // SAFETY: the record of a system call has six argument words (Documentation/trace/events.rst).
    unsafe { ctx.read_at(TRACEPOINT_VALUES + index * 8) }.unwrap_or(0)
}

#[inline(always)]
fn enter_system_call(ctx: &TracePointContext, function: Function) -> u32 {
    if mapping::is_target() {
        mapping::enter(&MappingRequest::new(
            function,
            system_call_argument(ctx, 0),
            system_call_argument(ctx, 1),
            system_call_argument(ctx, 2),
            system_call_argument(ctx, 3),
        ));
    }
    0
}

/// The tracepoint `sys_enter_mmap`.
#[tracepoint]
fn sys_enter_mmap(ctx: TracePointContext) -> u32 {
    enter_system_call(&ctx, Function::Mmap)
}

/// The tracepoint `sys_enter_munmap`.
#[tracepoint]
fn sys_enter_munmap(ctx: TracePointContext) -> u32 {
    enter_system_call(&ctx, Function::Munmap)
}

/// The tracepoint `sys_enter_mremap`.
#[tracepoint]
fn sys_enter_mremap(ctx: TracePointContext) -> u32 {
    enter_system_call(&ctx, Function::Mremap)
}

/// The tracepoint `sys_enter_brk`.
#[tracepoint]
fn sys_enter_brk(ctx: TracePointContext) -> u32 {
    enter_system_call(&ctx, Function::Brk)
}

/// The tracepoints `sys_exit_mmap`, `sys_exit_munmap`, `sys_exit_mremap` and `sys_exit_brk`.
#[tracepoint]
fn sys_exit(ctx: TracePointContext) -> u32 {
    if mapping::is_target() {
        mapping::leave::<false>(system_call_argument(&ctx, 0), mapping::Caller::SystemCall);
    }
    0
}

/// As `sys_exit`, where the kernel has `bpf_loop`.
#[tracepoint]
fn sys_exit_walking(ctx: TracePointContext) -> u32 {
    if mapping::is_target() {
        mapping::leave::<true>(system_call_argument(&ctx, 0), mapping::Caller::SystemCall);
    }
    0
}

/// Offsets of the new thread's id and of the flags of `clone` in the record of `task_newtask`
/// (include/trace/events/task.h).
const NEW_THREAD: usize = 8;
const CLONE_FLAGS: usize = 32;
const CLONE_THREAD: u64 = 0x10000;

#[inline(always)]
fn new_task<const WALK: bool>(ctx: &TracePointContext) -> u32 {
    // SAFETY: the record has the fields at these offsets.
    let flags: u64 = unsafe { ctx.read_at(CLONE_FLAGS) }.unwrap_or(0);
    // SAFETY: as above.
    let new: u32 = unsafe { ctx.read_at(NEW_THREAD) }.unwrap_or(0);
    if flags & CLONE_THREAD != 0
        && mapping::is_target()
        && let Some(control) = recording()
    {
        match Registers::of_system_call().and_then(Registers::of_caller) {
            Some(registers) => sample::of_thread::<WALK>(control, new, &registers),
            None => count(Counter::FailedReads),
        }
    }
    0
}

/// The tracepoint `task_newtask`.
#[tracepoint]
fn task_newtask(ctx: TracePointContext) -> u32 {
    new_task::<false>(&ctx)
}

/// As `task_newtask`, where the kernel has `bpf_loop`.
#[tracepoint]
fn task_newtask_walking(ctx: TracePointContext) -> u32 {
    new_task::<true>(&ctx)
}

/// The software event `PERF_COUNT_SW_PAGE_FAULTS`.
#[perf_event]
fn page_fault(ctx: PerfEventContext) -> u32 {
    fault::taken::<false>(&ctx);
    0
}

/// As `page_fault`, where the kernel has `bpf_loop`.
#[perf_event]
fn page_fault_walking(ctx: PerfEventContext) -> u32 {
    fault::taken::<true>(&ctx);
    0
}

#[cfg(bpf_target_arch = "x86_64")]
const ARCHITECTURE: Architecture = Architecture::X86_64;
#[cfg(bpf_target_arch = "aarch64")]
const ARCHITECTURE: Architecture = Architecture::Aarch64;

/// Read by the agent before it loads the object.
#[unsafe(link_section = "beamscope.contract")]
#[unsafe(no_mangle)]
#[used]
static CONTRACT: Contract = Contract { abi_version: ABI_VERSION, architecture: ARCHITECTURE as u32 };
const _: () = assert!(CONTRACT_SECTION.len() == "beamscope.contract".len());

/// `bpf_probe_read_user` and others are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
#[used]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no panic is reachable: a loop without end is refused.
    loop {}
}
