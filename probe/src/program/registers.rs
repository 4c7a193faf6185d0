//! The user's registers at a probe: what an unwinder starts from.

use aya_ebpf::{
    bindings::{bpf_perf_event_data, pt_regs},
    helpers::{bpf_probe_read_kernel, generated},
    programs::{ProbeContext, RetProbeContext},
};
use beamscope_probe::Return;

#[cfg(bpf_target_arch = "x86_64")]
use aya_ebpf::helpers::bpf_probe_read_user;

/// Registers that every unwinder needs.
#[derive(Clone, Copy)]
pub(crate) struct Registers {
    pub(crate) instruction_pointer: u64,
    pub(crate) stack_pointer: u64,
    pub(crate) frame_pointer: u64,
    pub(crate) link_register: u64,
    /// `r13` or `x21`, in which the VM's code at run time keeps the Erlang process (`c_p` in
    /// erts/emulator/beam/jit/{x86,arm}/beam_asm.hpp, OTP 25.2.3 and 27.3.4.1).
    pub(crate) process: u64,
}

/// Bytes by which a return moves the stack pointer.
#[cfg(bpf_target_arch = "x86_64")]
pub(crate) const RETURN_ADDRESS_BYTES: u64 = 8;
/// Bytes by which a return moves the stack pointer.
#[cfg(bpf_target_arch = "aarch64")]
pub(crate) const RETURN_ADDRESS_BYTES: u64 = 0;

impl Registers {
    /// At the entry of a function.
    #[inline(always)]
    pub(crate) fn of_probe(ctx: &ProbeContext) -> Self {
        // SAFETY: the kernel passes the registers as the program's context.
        Self::from_context(unsafe { &*ctx.regs })
    }

    /// Behind the return of a function: program counter and stack are the caller's.
    #[inline(always)]
    pub(crate) fn of_return(ctx: &RetProbeContext) -> Self {
        // SAFETY: the kernel passes the registers as the program's context.
        Self::from_context(unsafe { &*ctx.regs })
    }

    /// Where a page fault was taken; `None`: in the kernel, on behalf of a system call.
    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn of_fault(fault: &bpf_perf_event_data) -> Option<Self> {
        const USER: u64 = 3;
        (fault.regs.cs & USER == USER).then(|| Self::from_context(&fault.regs))
    }

    /// Where a page fault was taken; `None`: in the kernel, on behalf of a system call.
    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) fn of_fault(fault: &bpf_perf_event_data) -> Option<Self> {
        /// `PSR_MODE_MASK`; 0 is `PSR_MODE_EL0t` (arch/arm64/include/uapi/asm/ptrace.h).
        const MODE: u64 = 15;
        let registers = &fault.regs;
        (registers.pstate & MODE == 0).then(|| Self {
            instruction_pointer: registers.pc,
            stack_pointer: registers.sp,
            frame_pointer: registers.regs[29],
            link_register: registers.regs[30],
            process: registers.regs[21],
        })
    }

    /// At a function's entry: where it returns to.
    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn return_of_function(&self) -> Return {
        // SAFETY: the helper checks the address.
        let address = unsafe { bpf_probe_read_user(self.stack_pointer as *const u64) }.unwrap_or(0);
        Return { stack_pointer: self.stack_pointer.wrapping_add(RETURN_ADDRESS_BYTES), address }
    }

    /// At a function's entry: where it returns to.
    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    pub(crate) fn return_of_function(&self) -> Return {
        Return { stack_pointer: self.stack_pointer, address: self.link_register & super::walk::ADDRESS_BITS }
    }

    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    fn from_context(registers: &pt_regs) -> Self {
        Self {
            instruction_pointer: registers.rip,
            stack_pointer: registers.rsp,
            frame_pointer: registers.rbp,
            link_register: 0,
            process: registers.r13,
        }
    }

    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    fn from_context(registers: &pt_regs) -> Self {
        Self {
            instruction_pointer: registers.pc,
            stack_pointer: registers.sp,
            frame_pointer: registers.regs[29],
            link_register: registers.regs[30],
            process: registers.regs[21],
        }
    }

    /// Of the current thread where it entered the kernel. Needs `bpf_task_pt_regs` (Linux 5.15).
    #[inline(always)]
    pub(crate) fn of_system_call() -> Option<Self> {
        // SAFETY: the helper has no precondition.
        let task = unsafe { generated::bpf_get_current_task_btf() };
        // SAFETY: `task` is the current task.
        let registers = unsafe { generated::bpf_task_pt_regs(task) } as *const pt_regs;
        Self::read(registers)
    }

    /// Of the caller of a function that has left them as the call did. `clone` and `clone3` in the C libraries are such: they
    /// have no unwind information behind the system call, which would be wrong in the new thread.
    #[inline(always)]
    pub(crate) fn of_caller(self) -> Option<Self> {
        #[cfg(bpf_target_arch = "x86_64")]
        let instruction_pointer = super::erlang::read_word(self.stack_pointer)?;
        #[cfg(bpf_target_arch = "aarch64")]
        let instruction_pointer = self.link_register;
        let stack_pointer = self.stack_pointer + RETURN_ADDRESS_BYTES;
        Some(Self { instruction_pointer, stack_pointer, ..self })
    }

    #[cfg(bpf_target_arch = "x86_64")]
    #[inline(always)]
    fn read(registers: *const pt_regs) -> Option<Self> {
        Some(Self {
            // SAFETY: an address for the helper to read from, which fails where it cannot.
            instruction_pointer: kernel_word(unsafe { &raw const (*registers).rip })?,
            // SAFETY: as above.
            stack_pointer: kernel_word(unsafe { &raw const (*registers).rsp })?,
            // SAFETY: as above.
            frame_pointer: kernel_word(unsafe { &raw const (*registers).rbp })?,
            link_register: 0,
            // SAFETY: as above.
            process: kernel_word(unsafe { &raw const (*registers).r13 })?,
        })
    }

    #[cfg(bpf_target_arch = "aarch64")]
    #[inline(always)]
    fn read(registers: *const pt_regs) -> Option<Self> {
        Some(Self {
            // SAFETY: an address for the helper to read from, which fails where it cannot.
            instruction_pointer: kernel_word(unsafe { &raw const (*registers).pc })?,
            // SAFETY: as above.
            stack_pointer: kernel_word(unsafe { &raw const (*registers).sp })?,
            // SAFETY: as above.
            frame_pointer: kernel_word(unsafe { &raw const (*registers).regs[29] })?,
            // SAFETY: as above.
            link_register: kernel_word(unsafe { &raw const (*registers).regs[30] })?,
            // SAFETY: as above.
            process: kernel_word(unsafe { &raw const (*registers).regs[21] })?,
        })
    }
}

#[inline(always)]
fn kernel_word(at: *const u64) -> Option<u64> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(at) }.ok()
}
