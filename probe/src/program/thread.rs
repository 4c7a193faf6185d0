//! Who runs here, when, and whether it is inside an allocation function.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_ns};

use beamscope_probe::Return;

use super::maps::{CALLS, VM_CALLS};

/// The current thread's id in the initial pid namespace.
#[inline(always)]
pub(crate) fn thread() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

/// The current process's id in the initial pid namespace.
#[inline(always)]
pub(crate) fn process() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether the current thread is inside an allocation function.
#[inline(always)]
pub(crate) fn in_allocation() -> bool {
    // SAFETY: only the current thread writes its entry.
    CALLS.get_ptr(thread()).is_some_and(|call| unsafe { (*call).function } != 0)
}

/// Where the VM's functions that the current thread is in return to.
#[inline(always)]
pub(crate) fn returns() -> [Return; 2] {
    match VM_CALLS.get_ptr(thread()) {
        // SAFETY: only the current thread writes its entry.
        Some(call) if unsafe { (*call).function } != 0 => unsafe { (*call).returns },
        _ => [Return::default(); 2],
    }
}
