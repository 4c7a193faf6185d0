//! How is the caller of each address of a file found, in a form in which the kernel can look it up?

mod registers;
mod rules;
mod steps;
mod translate;

use std::{collections::BTreeMap, ops::Range};

use beamscope_probe::{Architecture, Row, Rule};
use gimli::{DebugFrame, EhFrame, LittleEndian, Vendor};
use thiserror::Error;

pub use self::rules::Rules;
use self::{
    registers::{Trampoline, trampoline},
    steps::{Builder, Step, overlay},
};
use super::cfi;
use crate::target::sections::{Section, UnwindSections};

/// The rows of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileRows {
    /// Lowest address of the file that is covered; a row's `pc` is relative to it.
    pub base: u64,
    /// First address behind all that is covered.
    pub end: u64,
    /// By rising address; no two neighbours have the same rule. The first is at `base`, the last is a gap at `end`.
    pub rows: Vec<Row>,
    /// How many of them are of [`Rule::UNSUPPORTED`].
    pub unsupported: u64,
    /// Why the tables' rows could not be expressed, and how many could not; counted before neighbours are merged.
    pub causes: BTreeMap<Cause, u64>,
}

impl FileRows {
    /// Index of the rule that holds at `address` of the file.
    pub fn rule_at(&self, address: u64) -> u32 {
        let relative = address.checked_sub(self.base).and_then(|relative| u32::try_from(relative).ok());
        let row = relative.and_then(|relative| {
            let after = self.rows.partition_point(|row| row.pc() <= relative);
            self.rows.get(after.checked_sub(1)?)
        });
        row.map_or(Rules::GAP, |row| row.rule())
    }
}

/// Why no rule can express what a table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The CFA is computed from a register that is not followed.
    CfaRegister,
    /// The CFA is computed in a way that is not followed.
    CfaExpression,
    /// The return address is not saved at an offset from the CFA.
    ReturnAddress,
    /// The frame pointer is not saved at an offset from the CFA.
    FramePointer,
    /// An offset has no room in a rule.
    Offset,
    /// The table is broken there.
    Broken,
    /// There were too many rules before.
    TooManyRules,
}

/// Why a file has no rows.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RowsError {
    /// A row has 32 bits for an address.
    #[error("the unwind tables cover {:#x} to {:#x}, which is more than 4 GiB", range.start, range.end)]
    TooWide {
        /// The addresses of the file that they cover.
        range: Range<u64>,
    },
}

/// Makes the rows of a file of its unwind tables. Where `.eh_frame` and `.debug_frame` both say something,
/// `.eh_frame` holds.
pub fn build(architecture: Architecture, sections: &UnwindSections, rules: &mut Rules) -> Result<FileRows, RowsError> {
    let bases = cfi::bases(sections);
    let vendor = match architecture {
        Architecture::X86_64 => Vendor::Default,
        Architecture::Aarch64 => Vendor::AArch64,
    };
    let mut builder = Builder::new(architecture, &bases, rules);
    let mut steps = Vec::new();
    if let Some(section) = &sections.debug_frame {
        let mut table = DebugFrame::new(&section.bytes, LittleEndian);
        table.set_vendor(vendor);
        // What a linker has left out of the file begins at 0 here.
        steps = builder.steps(&table, |start| start > 0);
    }
    if let Some(section) = &sections.eh_frame {
        let mut table = EhFrame::new(&section.bytes, LittleEndian);
        table.set_vendor(vendor);
        steps = overlay(&builder.steps(&table, |_| true), &steps);
    }
    let causes = builder.causes;
    if let Some(section) = &sections.text {
        steps = overlay(&trampolines(trampoline(architecture), section, rules), &steps);
    }
    compact(&steps, causes)
}

/// Where signal handlers return to. Its rule begins a byte before the code, since nothing has called it there: the
/// handler's return address is looked up 1 below.
fn trampolines(Trampoline { code, rule }: Trampoline, text: &Section, rules: &mut Rules) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut seen = 0_usize;
    while let Some(at) = text.bytes.get(seen..).and_then(|rest| find(rest, code)) {
        let begin = seen.saturating_add(at);
        seen = begin.saturating_add(code.len());
        let address = |offset: usize| text.addresses.start.checked_add(offset as u64);
        if let (Some(begin), Some(end)) = (address(begin), address(seen)) {
            steps::push(&mut steps, Step { address: begin.saturating_sub(1), rule: rules.intern(rule) });
            steps::push(&mut steps, Step { address: end, rule: Rules::GAP });
        }
    }
    steps
}

/// Where `wanted` begins in `bytes`.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted.first()?;
    let mut seen = 0_usize;
    loop {
        let rest = bytes.get(seen..)?;
        let at = rest.iter().position(|byte| byte == first)?;
        if rest.get(at..)?.starts_with(wanted) {
            return seen.checked_add(at);
        }
        seen = seen.checked_add(at)?.checked_add(1)?;
    }
}

/// Makes rows of steps, which begin with a rule and end with a gap.
fn compact(steps: &[Step], causes: BTreeMap<Cause, u64>) -> Result<FileRows, RowsError> {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else {
        return Ok(FileRows { causes, ..FileRows::default() });
    };
    let (base, end) = (first.address, last.address);
    let too_wide = || RowsError::TooWide { range: base..end };
    let row = |step: &Step| {
        let pc = step.address.checked_sub(base).and_then(|pc| u32::try_from(pc).ok());
        pc.map(|pc| Row::new(pc, step.rule))
    };
    let rows = steps.iter().map(row).collect::<Option<Vec<_>>>().ok_or_else(too_wide)?;
    let unsupported = rows.iter().filter(|row| row.rule() == Rules::UNSUPPORTED).count() as u64;
    Ok(FileRows { base, end, rows, unsupported, causes })
}

const _: () = assert!(Rule::GAP.kind == Rules::GAP);

#[cfg(test)]
mod tests;
