//! How are the registers numbered in the unwind tables of an architecture, and where does the kernel save them?

use beamscope_probe::{Architecture, Rule, RuleKind};
use gimli::{AArch64, Register, X86_64};

/// The registers that a rule is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub(super) stack_pointer: Register,
    pub(super) frame_pointer: Register,
    pub(super) return_address: Register,
    /// Holds the Erlang process in code that the VM made at run time.
    pub(super) process: Register,
    /// Whether a function finds its return address in a register, and may leave it there.
    pub(super) has_link_register: bool,
}

/// Where a signal handler returns to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trampoline {
    /// Its code: the call of `rt_sigreturn`.
    pub(super) code: &'static [u8],
    /// How the interrupted code's registers are found there.
    pub(super) rule: Rule,
}

pub(super) const fn registers(architecture: Architecture) -> Registers {
    match architecture {
        Architecture::X86_64 => Registers {
            stack_pointer: X86_64::RSP,
            frame_pointer: X86_64::RBP,
            return_address: X86_64::RA,
            process: X86_64::R13,
            has_link_register: false,
        },
        Architecture::Aarch64 => Registers {
            stack_pointer: AArch64::SP,
            frame_pointer: AArch64::X29,
            return_address: AArch64::X30,
            process: AArch64::X21,
            has_link_register: true,
        },
    }
}

/// The trampoline is known by its code, as it is to libgcc and gdb: musl's has no table, that of arm64 kernels has none
/// since 5.8 ("arm64: vdso: Disable dwarf unwinding through the sigreturn trampoline"), and the one that it had before
/// leaves the interrupted frame out.
///
/// The offsets are those of `struct rt_sigframe` (the kernel's `arch/x86/include/asm/sigframe.h`, the return address
/// popped, and `arch/arm64/kernel/signal.c`).
pub(super) const fn trampoline(architecture: Architecture) -> Trampoline {
    let kind = RuleKind::SignalFrame as u32;
    match architecture {
        Architecture::X86_64 => Trampoline {
            // mov $15, %rax; syscall
            code: &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05],
            rule: Rule { kind, cfa_offset: 160, return_address: 168, frame_pointer: 120, process: 80, addend: 0 },
        },
        Architecture::Aarch64 => Trampoline {
            // mov x8, #139; svc #0
            code: &[0x68, 0x11, 0x80, 0xd2, 0x01, 0, 0, 0xd4],
            rule: Rule { kind, cfa_offset: 560, return_address: 568, frame_pointer: 544, process: 480, addend: 0 },
        },
    }
}
