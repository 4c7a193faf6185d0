//! Which rule expresses what a table says of an address?

use beamscope_probe::{Architecture, Rule, RuleKind};
use gimli::{
    CfaRule, Encoding, Operation, Register, RegisterRule, UnwindExpression, UnwindOffset, UnwindSection, UnwindTableRow,
};

use super::{
    Cause,
    registers::{Registers, registers},
};
use crate::stack::cfi::{Bytes, Function};

/// What linkers write for the x86-64 procedure linkage table: `rsp + 8 + ((rip & 15 >= 11) << 3)`.
const PLT: [u8; 11] = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];

/// An expression that stands for a register plus an offset, or for the word there plus another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    register: Register,
    offset: i64,
    /// What is added to the word at `register + offset`; `None`: the place itself is meant.
    addend: Option<u64>,
}

/// Translates the rows of one function.
#[derive(Debug)]
pub(super) struct Translator<'t, S> {
    table: &'t S,
    encoding: Encoding,
    registers: Registers,
    is_plt_known: bool,
    is_signal_frame: bool,
    return_address_fits: bool,
}

impl<'t, 'a, S> Translator<'t, S>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    pub(super) fn new(architecture: Architecture, table: &'t S, function: &Function<'a>) -> Self {
        let registers = registers(architecture);
        Self {
            table,
            encoding: function.cie().encoding(),
            registers,
            is_plt_known: architecture == Architecture::X86_64,
            is_signal_frame: function.is_signal_trampoline(),
            return_address_fits: function.cie().return_address_register() == registers.return_address,
        }
    }

    pub(super) fn rule(&self, row: &UnwindTableRow<usize>) -> Result<Rule, Cause> {
        if !self.return_address_fits {
            return Err(Cause::ReturnAddress);
        }
        if row.register(self.registers.return_address) == Some(RegisterRule::Undefined) {
            return Ok(Rule::END);
        }
        let (kind, cfa_offset, addend) = self.cfa(row)?;
        if kind == RuleKind::SignalFrame {
            return self.signal_frame(row, cfa_offset);
        }
        Ok(Rule {
            kind: kind as u32,
            cfa_offset,
            return_address: self.return_address(row)?,
            frame_pointer: self.frame_pointer(row)?,
            // It only matters to Erlang frames, and its value is checked there.
            process: saved(row.register(self.registers.process).as_ref()).unwrap_or_default(),
            addend,
        })
    }

    /// The kind of rule, its offset and its addend.
    fn cfa(&self, row: &UnwindTableRow<usize>) -> Result<(RuleKind, i32, i16), Cause> {
        let place = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                Place { register: *register, offset: *offset, addend: None }
            }
            CfaRule::Expression(expression) if self.is_plt(*expression) => return Ok((RuleKind::Plt, 0, 0)),
            CfaRule::Expression(expression) => self.place(*expression).ok_or(Cause::CfaExpression)?,
        };
        let is_stack_pointer = place.register == self.registers.stack_pointer;
        let kind = match place.addend {
            None if is_stack_pointer => RuleKind::StackPointer,
            None if place.register == self.registers.frame_pointer => RuleKind::FramePointer,
            None => return Err(Cause::CfaRegister),
            Some(0) if is_stack_pointer && self.is_signal_frame => RuleKind::SignalFrame,
            Some(_) if is_stack_pointer => RuleKind::StackDereference,
            Some(_) => return Err(Cause::CfaExpression),
        };
        let offset = i32::try_from(place.offset).map_err(|_too_far| Cause::Offset)?;
        let addend = i16::try_from(place.addend.unwrap_or_default()).map_err(|_too_far| Cause::Offset)?;
        Ok((kind, offset, addend))
    }

    fn return_address(&self, row: &UnwindTableRow<usize>) -> Result<i16, Cause> {
        match row.register(self.registers.return_address) {
            Some(RegisterRule::Offset(offset)) => distance(offset),
            None | Some(RegisterRule::SameValue) if self.registers.has_link_register => Ok(0),
            _ => Err(Cause::ReturnAddress),
        }
    }

    fn frame_pointer(&self, row: &UnwindTableRow<usize>) -> Result<i16, Cause> {
        let rule = row.register(self.registers.frame_pointer);
        match rule {
            Some(RegisterRule::Offset(_)) => saved(rule.as_ref()).ok_or(Cause::Offset),
            rule => saved(rule.as_ref()).ok_or(Cause::FramePointer),
        }
    }

    fn signal_frame(&self, row: &UnwindTableRow<usize>, cfa_offset: i32) -> Result<Rule, Cause> {
        let return_address = row.register(self.registers.return_address);
        let frame_pointer = row.register(self.registers.frame_pointer);
        let process = row.register(self.registers.process);
        Ok(Rule {
            kind: RuleKind::SignalFrame as u32,
            cfa_offset,
            return_address: self.on_stack(return_address.as_ref()).ok_or(Cause::ReturnAddress)?,
            frame_pointer: self.on_stack(frame_pointer.as_ref()).ok_or(Cause::FramePointer)?,
            process: self.on_stack(process.as_ref()).unwrap_or_default(),
            addend: 0,
        })
    }

    /// Where a register is saved, from the stack pointer on.
    fn on_stack(&self, rule: Option<&RegisterRule<usize>>) -> Option<i16> {
        let Some(RegisterRule::Expression(expression)) = rule else { return None };
        let place = self.place(*expression)?;
        let is_plain = place.register == self.registers.stack_pointer && place.addend.is_none();
        i16::try_from(place.offset).ok().filter(|offset| is_plain && *offset != 0)
    }

    fn is_plt(&self, expression: UnwindExpression<usize>) -> bool {
        self.is_plt_known && expression.get(self.table).is_ok_and(|code: gimli::Expression<_>| code.0.slice() == PLT)
    }

    fn place(&self, expression: UnwindExpression<usize>) -> Option<Place> {
        let mut operations = expression.get(self.table).ok()?.operations(self.encoding);
        let Operation::RegisterOffset { register, offset, .. } = operations.next().ok()?? else { return None };
        let addend = match operations.next().ok()? {
            None => return Some(Place { register, offset, addend: None }),
            Some(Operation::Deref { size: 8, space: false, .. }) => match operations.next().ok()? {
                None => 0,
                Some(Operation::PlusConstant { value }) => value,
                Some(_) => return None,
            },
            Some(_) => return None,
        };
        operations.next().ok()?.is_none().then_some(Place { register, offset, addend: Some(addend) })
    }
}

/// Where a register that functions preserve is saved, from the CFA on; 0: nowhere yet.
fn saved(rule: Option<&RegisterRule<usize>>) -> Option<i16> {
    match rule {
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => Some(0),
        Some(RegisterRule::Offset(offset)) => distance(*offset).ok(),
        Some(_) => None,
    }
}

fn distance(offset: i64) -> Result<i16, Cause> {
    i16::try_from(offset).ok().filter(|&distance| distance != 0).ok_or(Cause::Offset)
}
