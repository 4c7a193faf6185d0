//! Who touches memory that becomes resident by it? The kernel tells of each page fault of each process on the machine, so
//! what is not the node's, and what is not looked at, is left as early as can be.

use aya_ebpf::{helpers::generated::bpf_get_prandom_u32, programs::PerfEventContext};
use beamscope_probe::Counter;

use super::{
    maps::{FAULT_PACE, count, count_by, recording},
    registers::Registers,
    sample,
    thread::{now, process},
};

/// A page fault is taken. `WALK`: stacks are walked here, and registers are to be had of who made a system call.
#[inline(always)]
pub(crate) fn taken<const WALK: bool>(ctx: &PerfEventContext) {
    let Some(control) = recording() else { return };
    if control.target != process() {
        return;
    }
    count(Counter::PageFaults);
    let Some(pace) = FAULT_PACE.get_ptr_mut(0) else { return };
    // SAFETY: a map value of this processor, valid until the program ends, which cannot be preempted here.
    let pace = unsafe { &mut *pace };
    let Some(faults) = pace.event() else { return };
    let began = now();
    // SAFETY: what the kernel passes to a program of this kind.
    let fault = unsafe { &*ctx.ctx };
    let address = fault.addr;
    let registers = match Registers::of_fault(fault) {
        None if WALK => Registers::of_system_call(),
        registers => registers,
    };
    sample::of_fault::<WALK>(control, began, address, faults, registers.as_ref());
    let ended = now();
    count(Counter::SampledFaults);
    count_by(Counter::FaultNanoseconds, ended.wrapping_sub(began));
    // SAFETY: the helper has no precondition.
    pace.next(control.fault_share, began, ended, unsafe { bpf_get_prandom_u32() });
}
