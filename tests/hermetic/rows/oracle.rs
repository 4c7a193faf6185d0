//! What does gimli find for an address by the search table of a file, evaluated with given registers?

use beamscope::target::sections::UnwindSections;
use beamscope_probe::Architecture;
use gimli::{
    AArch64, BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, Error, EvaluationResult, LittleEndian,
    ParsedEhFrameHdr, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection as _, Value, Vendor,
    X86_64,
};

use super::walker::Registers;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// What gimli finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The caller's registers; `lr` is not looked at.
    Caller(Registers),
    /// The return address is undefined.
    End,
    /// No function is known there.
    Nothing,
    /// The table needs what is not at hand, or is broken.
    Unknown,
}

/// The tables of a file.
pub(crate) struct Oracle<'a> {
    header: ParsedEhFrameHdr<Bytes<'a>>,
    table: EhFrame<Bytes<'a>>,
    bases: BaseAddresses,
    architecture: Architecture,
    context: UnwindContext<usize>,
}

impl<'a> Oracle<'a> {
    /// `None` where the file has no search table.
    pub(crate) fn new(architecture: Architecture, sections: &'a UnwindSections) -> Option<Self> {
        let (frames, header) = (sections.eh_frame.as_ref()?, sections.eh_frame_hdr.as_ref()?);
        let mut bases =
            BaseAddresses::default().set_eh_frame(frames.addresses.start).set_eh_frame_hdr(header.addresses.start);
        if let Some(text) = &sections.text {
            bases = bases.set_text(text.addresses.start);
        }
        let header = EhFrameHdr::new(&header.bytes, LittleEndian).parse(&bases, 8).ok()?;
        header.table()?;
        let mut table = EhFrame::new(&frames.bytes, LittleEndian);
        if architecture == Architecture::Aarch64 {
            table.set_vendor(Vendor::AArch64);
        }
        Some(Self { header, table, bases, architecture, context: UnwindContext::new() })
    }

    /// The caller of a frame with `registers`.
    pub(crate) fn caller(&mut self, registers: Registers, read: impl Fn(u64) -> u64) -> Found {
        let Self { header, table, bases, architecture, context } = self;
        let Some(search) = header.table() else { return Found::Nothing };
        let row = search.unwind_info_for_address(
            &*table,
            bases,
            context,
            registers.pc,
            EhFrame::<Bytes<'a>>::cie_from_offset,
        );
        let row = match row {
            Ok(row) => row,
            Err(Error::NoUnwindInfoForAddress) => return Found::Nothing,
            Err(_) => return Found::Unknown,
        };
        let numbers = match architecture {
            Architecture::X86_64 => [X86_64::RSP, X86_64::RBP, X86_64::RA, X86_64::R13],
            Architecture::Aarch64 => [AArch64::SP, AArch64::X29, AArch64::X30, AArch64::X21],
        };
        let is_x86 = *architecture == Architecture::X86_64;
        let held = [registers.sp, registers.fp, if is_x86 { registers.pc } else { registers.lr }, registers.process];
        let held = |register: Register| numbers.iter().position(|number| *number == register).map(|at| held[at]);
        let evaluate = |expression: UnwindExpression<usize>, start: Option<u64>| {
            let expression = expression.get(&*table).ok()?;
            evaluate(expression, start, &held, &read)
        };
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                held(*register).map(|at| at.wrapping_add_signed(*offset))
            }
            CfaRule::Expression(expression) => evaluate(*expression, None),
        };
        let [_, fp, ra, process] = numbers;
        if row.register(ra) == Some(RegisterRule::Undefined) {
            return Found::End;
        }
        let Some(cfa) = cfa else { return Found::Unknown };
        let before = |register: Register| match row.register(register) {
            None if register == ra && is_x86 => None,
            None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => held(register),
            Some(RegisterRule::Offset(offset)) => Some(read(cfa.wrapping_add_signed(offset))),
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Register(other)) => held(other),
            Some(RegisterRule::Expression(expression)) => evaluate(expression, Some(cfa)).map(&read),
            Some(RegisterRule::ValExpression(expression)) => evaluate(expression, Some(cfa)),
            Some(_) => None,
        };
        match (before(ra), before(fp), before(process)) {
            (Some(pc), Some(fp), Some(process)) => Found::Caller(Registers { pc, sp: cfa, fp, lr: 0, process }),
            _ => Found::Unknown,
        }
    }
}

fn evaluate(
    expression: gimli::Expression<Bytes<'_>>,
    start: Option<u64>,
    held: &dyn Fn(Register) -> Option<u64>,
    read: &dyn Fn(u64) -> u64,
) -> Option<u64> {
    let encoding = gimli::Encoding { address_size: 8, format: gimli::Format::Dwarf32, version: 4 };
    let mut evaluation = expression.evaluation(encoding);
    if let Some(start) = start {
        evaluation.set_initial_value(start);
    }
    let mut result = evaluation.evaluate().ok()?;
    loop {
        result = match result {
            EvaluationResult::Complete => return evaluation.value_result()?.to_u64(u64::MAX).ok(),
            EvaluationResult::RequiresRegister { register, .. } => {
                evaluation.resume_with_register(Value::Generic(held(register)?)).ok()?
            }
            EvaluationResult::RequiresMemory { address, .. } => {
                evaluation.resume_with_memory(Value::Generic(read(address))).ok()?
            }
            _ => return None,
        };
    }
}
