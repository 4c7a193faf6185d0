//! At which instruction of a function a probe costs least.
//!
//! The kernel puts a breakpoint over the probed instruction. A few instructions it then carries out itself
//! (`push_setup_ops` and `branch_setup_ops` in arch/x86/kernel/uprobes.c, `arm_probe_decode_insn` in
//! arch/arm64/kernel/probes/decode-insn.c); every other is run out of line with a second trap, which was measured at
//! about twelve times the cost on `x86_64`. So the probe moves past instructions that are neither, as long as the
//! arguments, the stack pointer and the return address are still where the call put them.

use beamscope_probe::Architecture;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};
use yaxpeax_arch::{Decoder as _, LengthedInstruction as _, U8Reader};
use yaxpeax_arm::armv8::a64::{ARMv8, Opcode};

/// Instructions that are looked at before giving up.
const MAXIMUM_STEPS: usize = 16;

/// Where the probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Bytes from the function's first instruction.
    pub offset: u64,
    /// Whether the kernel carries out the instruction there by itself.
    pub emulated: bool,
}

impl Placement {
    const ENTRY: Self = Self { offset: 0, emulated: false };
}

/// Chooses the place in `code`, a function's first bytes, for a probe that needs its first `arguments` arguments.
pub fn place(architecture: Architecture, code: &[u8], arguments: usize) -> Placement {
    match architecture {
        Architecture::X86_64 => place_x86_64(code, arguments),
        Architecture::Aarch64 => place_aarch64(code),
    }
}

fn place_x86_64(code: &[u8], arguments: usize) -> Placement {
    // System V AMD64 ABI, 3.2.3.
    const ARGUMENTS: [Register; 6] =
        [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut info = InstructionInfoFactory::new();
    for _ in 0..MAXIMUM_STEPS {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        if is_emulated_x86_64(&instruction) {
            return Placement { offset: instruction.ip(), emulated: true };
        }
        let passes = instruction.flow_control() == FlowControl::Next
            && info.info(&instruction).used_registers().iter().all(|used| {
                let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
                let register = used.register().full_register();
                let needed =
                    register == Register::RSP || ARGUMENTS.iter().take(arguments).any(|needed| *needed == register);
                !(written && needed)
            });
        if !passes && instruction.mnemonic() != Mnemonic::Endbr64 {
            break;
        }
    }
    Placement::ENTRY
}

fn is_emulated_x86_64(instruction: &Instruction) -> bool {
    match instruction.code() {
        // With another prefix than REX.B, push is not among them.
        Code::Push_r64 => instruction.len() <= 2,
        Code::Nopd => instruction.len() == 1,
        code => code.is_jcc_short_or_near() || code.is_jmp_short_or_near() || code.is_call_near(),
    }
}

/// Offset of the first instruction in `code`, the first bytes of a function, that every call of it comes to and that the
/// kernel carries out by itself, or that it does not.
pub fn find(architecture: Architecture, code: &[u8], emulated: bool) -> Option<u64> {
    match architecture {
        Architecture::X86_64 => {
            let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
            for _ in 0..MAXIMUM_STEPS {
                let instruction = decoder.decode();
                let goes_on = instruction.flow_control() == FlowControl::Next;
                if !instruction.is_invalid() && is_emulated_x86_64(&instruction) == emulated {
                    return (goes_on || emulated).then_some(instruction.ip());
                }
                if !goes_on {
                    break;
                }
            }
            None
        }
        Architecture::Aarch64 => {
            let decoder = <ARMv8 as yaxpeax_arch::Arch>::Decoder::default();
            let mut reader = U8Reader::new(code);
            let mut offset = 0;
            for _ in 0..MAXIMUM_STEPS {
                let instruction = decoder.decode(&mut reader).ok()?;
                if is_emulated_aarch64(instruction.opcode) == emulated {
                    return Some(offset);
                }
                if matches!(instruction.opcode, Opcode::B | Opcode::BL | Opcode::BLR | Opcode::BR | Opcode::RET) {
                    break;
                }
                offset += instruction.len().to_const();
            }
            None
        }
    }
}

fn is_emulated_aarch64(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::CBZ
            | Opcode::CBNZ
            | Opcode::TBZ
            | Opcode::TBNZ
            | Opcode::Bcc(_)
            | Opcode::B
            | Opcode::BL
            | Opcode::ADR
            | Opcode::ADRP
    )
}

fn place_aarch64(code: &[u8]) -> Placement {
    let decoder = <ARMv8 as yaxpeax_arch::Arch>::Decoder::default();
    let mut reader = U8Reader::new(code);
    let mut offset = 0;
    for _ in 0..MAXIMUM_STEPS {
        let Ok(instruction) = decoder.decode(&mut reader) else { break };
        let length = instruction.len().to_const();
        match instruction.opcode {
            opcode if is_emulated_aarch64(opcode) => return Placement { offset, emulated: true },
            // BTI and NOP are hints.
            Opcode::HINT => offset += length,
            _ => break,
        }
    }
    Placement::ENTRY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &[u8], arguments: usize, offset: u64, emulated: bool) {
        assert_eq!(place(Architecture::X86_64, code, arguments), Placement { offset, emulated }, "{code:x?}");
    }

    #[test]
    fn x86_64_pushes_and_jumps_are_emulated() {
        check(&[0x41, 0x54, 0x55], 1, 0, true); // push r12 (malloc in glibc 2.36)
        check(&[0x55, 0x48, 0x89, 0xe5], 1, 0, true); // push rbp; mov rbp, rsp
        check(&[0xe9, 0, 0, 0, 0], 1, 0, true); // jmp
        check(&[0x90, 0x55], 1, 0, true); // nop
    }

    #[test]
    fn x86_64_moves_past_what_leaves_the_arguments_alone() {
        // test rdi, rdi; je +0x13; push rbp (free in glibc 2.36)
        check(&[0x48, 0x85, 0xff, 0x74, 0x13, 0x55], 1, 3, true);
        // endbr64; push rbx
        check(&[0xf3, 0x0f, 0x1e, 0xfa, 0x53], 1, 4, true);
        // cmp byte ptr [rip+1], 0; je +1 (posix_memalign in glibc 2.36)
        check(&[0x80, 0x3d, 1, 0, 0, 0, 0, 0x74, 1], 3, 7, true);
        // mov rax, rdi; push rbx
        check(&[0x48, 0x89, 0xf8, 0x53], 1, 3, true);
    }

    #[test]
    fn x86_64_stays_at_the_entry_where_it_would_lose_something() {
        check(&[0x48, 0x83, 0xec, 0x18, 0x55], 1, 0, false); // sub rsp, 24; push rbp
        check(&[0x48, 0x89, 0xfa, 0x55], 3, 0, false); // mov rdx, rdi; push rbp: the third argument is gone
        check(&[0x48, 0x89, 0xfa, 0x55], 2, 3, true); // ... which nobody needs
        check(&[0x31, 0xff, 0x55], 1, 0, false); // xor edi, edi
        check(&[0xc3, 0x55], 1, 0, false); // ret
        check(&[0x66, 0x55], 1, 0, false); // push bp
        check(&[0x06], 1, 0, false); // no instruction
        check(&[], 1, 0, false);
    }

    #[test]
    fn instructions_of_both_kinds_are_found_before_the_code_branches() {
        let check = |code: &[u8], emulated, offset| assert_eq!(find(Architecture::X86_64, code, emulated), offset);
        let prologue = [0x48, 0x83, 0xec, 0x18, 0x55, 0xc3]; // sub rsp, 24; push rbp; ret
        check(&prologue, false, Some(0));
        check(&prologue, true, Some(4));
        check(&[0x55, 0x90, 0x48, 0x89, 0xf8], false, Some(2)); // push rbp; nop; mov rax, rdi
        check(&[0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xf8], false, None); // call
        check(&[0xe8, 0, 0, 0, 0], true, Some(0));
        check(&[0x48, 0x89, 0xf8, 0xc3, 0x55], true, None); // mov rax, rdi; ret
        let stp_bl: Vec<u8> = [0xa9bd_7bfd_u32, 0x9400_0001].iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(find(Architecture::Aarch64, &stp_bl, false), Some(0));
        assert_eq!(find(Architecture::Aarch64, &stp_bl, true), Some(4));
    }

    #[test]
    fn aarch64_probes_what_is_simulated() {
        let check = |code: &[u32], offset, emulated| {
            let bytes: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(place(Architecture::Aarch64, &bytes, 1), Placement { offset, emulated }, "{code:x?}");
        };
        check(&[0xb400_0060], 0, true); // cbz x0
        check(&[0xd503_245f, 0xb400_0060], 4, true); // bti c; cbz x0
        check(&[0xa9bd_7bfd], 0, false); // stp x29, x30, [sp, #-48]!
        check(&[0xd503_233f, 0xa9bd_7bfd], 0, false); // paciasp; stp
        check(&[], 0, false);
    }
}
