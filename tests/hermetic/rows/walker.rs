//! What does the kernel do with a rule? The same, in user space.

use beamscope_probe::{Architecture, Rule, RuleKind};

/// The registers of a frame that rules are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) pc: u64,
    pub(crate) sp: u64,
    pub(crate) fp: u64,
    pub(crate) lr: u64,
    pub(crate) process: u64,
}

/// How a step ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// At the caller, and whether its `pc` is a return address.
    Caller(Registers, bool),
    /// At a thread's first frame.
    End,
    /// At an address without a rule.
    Gap,
    /// At a rule that nobody knows.
    Unsupported,
    /// At a word that is not at hand.
    Unread,
}

/// The caller of a frame.
pub(crate) fn step(
    architecture: Architecture,
    rule: Rule,
    registers: Registers,
    read: impl Fn(u64) -> Option<u64>,
) -> Step {
    let offset = i64::from(rule.cfa_offset);
    let from = |base: u64, distance: i16| read(base.wrapping_add_signed(i64::from(distance)));
    let preserved = |base: u64, distance: i16, now: u64| if distance == 0 { Some(now) } else { from(base, distance) };
    let below = registers.sp.wrapping_add_signed(offset);
    let cfa = match RuleKind::try_from(rule.kind) {
        Ok(RuleKind::Gap) => return Step::Gap,
        Ok(RuleKind::End) => return Step::End,
        Ok(RuleKind::StackPointer) => Some(below),
        Ok(RuleKind::FramePointer) => Some(registers.fp.wrapping_add_signed(offset)),
        Ok(RuleKind::Plt) => Some(registers.sp + if registers.pc & 15 >= 11 { 16 } else { 8 }),
        Ok(RuleKind::StackDereference) => read(below).map(|word| word.wrapping_add_signed(i64::from(rule.addend))),
        Ok(RuleKind::SignalFrame) => read(below),
        // No table has the last two.
        Ok(RuleKind::Unsupported | RuleKind::Jit | RuleKind::Trampoline) | Err(_) => return Step::Unsupported,
    };
    let is_signal_frame = rule.kind == RuleKind::SignalFrame as u32;
    let caller = || {
        let cfa = cfa?;
        let base = if is_signal_frame { registers.sp } else { cfa };
        let lr = if is_signal_frame && architecture == Architecture::Aarch64 {
            from(base, rule.return_address - 16)?
        } else {
            registers.lr
        };
        Some(Registers {
            pc: preserved(base, rule.return_address, registers.lr)?,
            sp: cfa,
            fp: preserved(base, rule.frame_pointer, registers.fp)?,
            lr,
            process: preserved(base, rule.process, registers.process)?,
        })
    };
    caller().map_or(Step::Unread, |caller| Step::Caller(caller, !is_signal_frame))
}
