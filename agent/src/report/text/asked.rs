//! Who asked the VM for memory, and for whom did the VM's allocators ask for carriers?

use std::fmt::{self, Write as _};

use super::{FUNCTION, LIBRARY, STACKS, Text, caller, responsible};
use crate::{
    attribute::Class,
    recording::Asked,
    report::{
        label,
        page::{of, table},
        unit,
    },
};

/// Width of the column with the VM's functions.
const BY: usize = 14;

impl Text<'_> {
    /// The places at which the VM's allocators asked for carriers.
    pub(super) fn carriers(&mut self) -> fmt::Result {
        let sites = &self.report.carriers;
        if sites.is_empty() {
            return Ok(());
        }
        let shown = sites.len().min(self.options.top);
        self.page.heading(&format!("Who asked for carriers{}", of(shown, sites.len())))?;
        let mut table = table(&["#", "asked for", "carriers", "allocator", "function", "on behalf of"], 0..3);
        for (rank, ranked) in (1..).zip(sites.iter().take(shown)) {
            let site = ranked.site;
            let allocator = match &site.asked {
                Asked::Carriers { allocator } => allocator,
                Asked::System | Asked::Vm => "?",
            };
            table.add_row(vec![
                rank.to_string(),
                self.options.units.bytes(site.allocated_bytes),
                unit::count(site.allocated_blocks),
                label::shorten(&label::clean(allocator), LIBRARY),
                label::shorten(&responsible(ranked).unwrap_or_else(|| "(no stack)".into()), FUNCTION),
                caller(ranked),
            ]);
        }
        self.page.table(&table)?;
        writeln!(
            self.page,
            "Each time one of the VM's allocators asked for memory, also for what was given back since."
        )
    }

    /// The places at which native code asked the VM.
    pub(super) fn vm_api(&mut self) -> fmt::Result {
        let sites = &self.report.vm_api;
        if sites.is_empty() {
            return Ok(());
        }
        let shown = sites.len().min(self.options.top);
        self.page.heading(&format!("What native code asked the VM for{}", of(shown, sites.len())))?;
        let header = ["#", "outstanding", "blocks", "growth/s", "oldest", "library", "function", "by"];
        let mut table = table(&header, 0..5);
        for (rank, ranked) in (1..).zip(sites.iter().take(shown)) {
            let library = match &ranked.attribution.class {
                Class::Native { library } => library,
                Class::Vm | Class::Unknown => "?",
            };
            let mut row = self.site_row(rank, ranked, library);
            row.pop();
            row.push(label::shorten(&ranked.site.stack.frames.first().map(label::function).unwrap_or_default(), BY));
            table.add_row(row);
        }
        self.page.table(&table)?;
        writeln!(self.page, "These blocks lie in carriers, whose bytes are counted above as the VM's.")?;
        for (rank, ranked) in (1..).zip(sites.iter().take(STACKS.min(self.options.top))) {
            if ranked.site.outstanding_bytes() > 0 {
                self.stack(rank, ranked)?;
            }
        }
        Ok(())
    }
}
