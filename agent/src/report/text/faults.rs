//! Who was first to touch memory that became resident?

use std::fmt::{self, Write as _};

use super::{CALLER, FUNCTION, LIBRARY, Text};
use crate::{
    attribute::is_wrapper,
    recording::FaultSite,
    report::{
        label,
        page::{of, table},
        unit,
    },
    stack::{Frame, FrameKind},
};

/// Width of the column with owners.
const OWNER: usize = 22;

impl Text<'_> {
    /// The stacks at which memory became resident.
    pub(super) fn faults(&mut self) -> fmt::Result {
        let faults = &self.report.faults;
        if faults.is_empty() {
            return Ok(());
        }
        let shown = faults.len().min(self.options.top);
        self.page.heading(&format!("Who touched memory first{}", of(shown, faults.len())))?;
        let header = ["#", "resident", "faults", "owner", "library", "function", "on behalf of"];
        let mut table = table(&header, 0..3);
        for (rank, fault) in (1..).zip(faults.iter().take(shown)) {
            let FaultSite { stack, owner, threads, faults, bytes, .. } = fault;
            let toucher = toucher(&stack.frames);
            let owner = owner.as_ref().map_or_else(|| "not known".to_owned(), ToString::to_string);
            let caller = stack.frames.iter().find(|frame| frame.kind == FrameKind::Erlang).map(label::function);
            let caller = caller.or_else(|| threads.first().map(|name| label::clean(name))).unwrap_or_default();
            let library = toucher.and_then(|frame| frame.module.as_deref()).unwrap_or("?");
            let function = toucher.map_or_else(|| "(no stack)".to_owned(), label::function);
            table.add_row([
                rank.to_string(),
                self.options.units.bytes(*bytes),
                unit::count(*faults),
                label::shorten(&label::clean(&owner), OWNER),
                label::shorten(&label::clean(library), LIBRARY),
                label::shorten(&function, FUNCTION),
                label::shorten(&caller, CALLER),
            ]);
        }
        self.page.table(&table)?;
        writeln!(self.page, "A lead and no proof: who touches a page first is mostly not who keeps it.")
    }
}

/// The first function that is more than a way to write to memory.
pub(in crate::report) fn toucher(frames: &[Frame]) -> Option<&Frame> {
    frames.iter().find(|frame| !is_wrapper(frame)).or_else(|| frames.first())
}
