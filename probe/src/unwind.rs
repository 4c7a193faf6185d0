//! How a frame's caller is found: rows that tell which rule holds from which address on, and the rules.

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

/// From which address of a file on which rule holds: until the next row's address.
///
/// The low 32 bits are the address, relative to the lowest one of the file that its rows cover; the high 32 bits are
/// the rule's index in the table of rules.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Row(pub u64);

impl Row {
    /// The row that says that `rule` holds from `pc` on.
    pub const fn new(pc: u32, rule: u32) -> Self {
        Self((rule as u64) << 32 | pc as u64)
    }

    /// The relative address from which on it holds.
    pub const fn pc(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Index of its rule.
    pub const fn rule(self) -> u32 {
        let [.., a, b, c, d] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// How the caller's registers are found from those of a frame.
///
/// "The frame pointer" is rbp or x29. "The process register" is r13 or x21, which hold the Erlang process in code that
/// the VM made at run time (`c_p` in `erts/emulator/beam/jit/{x86,arm}/beam_asm.hpp`, OTP 25.2.3).
/// Offsets are in bytes. The CFA is the caller's stack pointer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, NoUninit, AnyBitPattern)]
pub struct Rule {
    /// A [`RuleKind`] as `u32`.
    pub kind: u32,
    /// What is added to the register that the kind names.
    pub cfa_offset: i32,
    /// Where the return address is saved, from the CFA on. 0: it is in the link register still, as in an aarch64 leaf.
    pub return_address: i16,
    /// Where the caller's frame pointer is saved, from the CFA on. 0: the register holds it still.
    pub frame_pointer: i16,
    /// Where the caller's process register is saved, from the CFA on. 0: the register holds it still.
    pub process: i16,
    /// For [`RuleKind::StackDereference`], what is added to the word that is read.
    pub addend: i16,
}

impl Rule {
    /// No table says how to go on.
    pub const GAP: Self = Self::without_offsets(RuleKind::Gap);
    /// The frame is a thread's first.
    pub const END: Self = Self::without_offsets(RuleKind::End);
    /// A table says how to go on, and no rule can express it.
    pub const UNSUPPORTED: Self = Self::without_offsets(RuleKind::Unsupported);

    const fn without_offsets(kind: RuleKind) -> Self {
        Self { kind: kind as u32, cfa_offset: 0, return_address: 0, frame_pointer: 0, process: 0, addend: 0 }
    }
}

/// Kinds of rules.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleKind {
    /// No table covers the address.
    Gap = 0,
    /// The return address is undefined: this is a thread's first frame.
    End = 1,
    /// CFA = stack pointer + `cfa_offset`.
    StackPointer = 2,
    /// CFA = frame pointer + `cfa_offset`.
    FramePointer = 3,
    /// In the x86-64 procedure linkage table, where the second of three instructions pushes a word: CFA = stack
    /// pointer + 8, and 8 more where `pc & 15` is at least 11.
    Plt = 4,
    /// The kernel has interrupted the caller and saved its registers: all offsets are from the stack pointer. The
    /// caller's stack pointer is saved at `cfa_offset`. The address that is found at `return_address` is no return
    /// address: its row is looked up where it is, not 1 below. On aarch64 the caller's link register is saved 16 below
    /// it (`struct sigcontext` in the kernel's `arch/arm64/include/uapi/asm/sigcontext.h`).
    SignalFrame = 5,
    /// CFA = the word at stack pointer + `cfa_offset`, plus `addend`.
    StackDereference = 6,
    /// A table covers the address, and no rule can express what it says.
    Unsupported = 7,
    /// Code that the VM made at run time. Not in tables: for a whole range of code.
    Jit = 8,
    /// The kernel's trampoline, to which a function returns whose return is probed. Likewise.
    Trampoline = 9,
}

/// A `u32` that is no [`RuleKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRuleKind(pub u32);

impl TryFrom<u32> for RuleKind {
    type Error = UnknownRuleKind;

    fn try_from(value: u32) -> Result<Self, UnknownRuleKind> {
        match value {
            0 => Ok(Self::Gap),
            1 => Ok(Self::End),
            2 => Ok(Self::StackPointer),
            3 => Ok(Self::FramePointer),
            4 => Ok(Self::Plt),
            5 => Ok(Self::SignalFrame),
            6 => Ok(Self::StackDereference),
            7 => Ok(Self::Unsupported),
            8 => Ok(Self::Jit),
            9 => Ok(Self::Trampoline),
            _ => Err(UnknownRuleKind(value)),
        }
    }
}

const _: () = assert!(size_of::<Row>() == 8);
const _: () = assert!(size_of::<Rule>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_keeps_both_numbers() {
        for (pc, rule) in [(0, 0), (1, 2), (u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
            let row = Row::new(pc, rule);
            assert_eq!((row.pc(), row.rule()), (pc, rule));
        }
        assert_eq!(Row::new(1, 2), Row(0x2_0000_0001));
    }

    #[test]
    fn kinds_come_back() {
        for number in 0..10 {
            assert_eq!(RuleKind::try_from(number).map(|kind| kind as u32), Ok(number));
        }
        assert_eq!(RuleKind::try_from(10), Err(UnknownRuleKind(10)));
        assert_eq!(Rule::default(), Rule::GAP);
    }
}
