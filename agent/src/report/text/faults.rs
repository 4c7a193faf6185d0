//! Who was first to touch memory that became resident?

use std::fmt;

use super::{CALLER, FUNCTION, Text, first_of};
use crate::{
    attribute::attribute_touch,
    recording::FaultSite,
    report::{
        label,
        page::{of, table},
        unit,
    },
    stack::FrameKind,
};

/// Width of the column with owners.
const OWNER: usize = 22;

impl Text<'_> {
    /// The stacks that took page faults, and whose the pages were at the end.
    pub(super) fn faults(&mut self) -> fmt::Result {
        let sites = &self.report.recording.faults;
        if sites.is_empty() {
            return Ok(());
        }
        let shown = sites.len().min(self.options.top);
        self.page.heading(&format!("Who touched new memory first{}", of(shown, sites.len())))?;
        let mut table = table(&["#", "touched", "faults", "whose it is", "function", "on behalf of"], 0..3);
        for (rank, site) in (1..).zip(sites.iter().take(shown)) {
            let owner = site.owner.as_ref().map_or_else(|| "(given back)".to_owned(), ToString::to_string);
            table.add_row(vec![
                rank.to_string(),
                self.options.units.bytes(site.bytes),
                unit::count(site.faults),
                label::shorten(&label::clean(&owner), OWNER),
                label::shorten(&function(site), FUNCTION),
                caller(site),
            ]);
        }
        self.page.table(&table)?;
        self.page.wrapped(
            "",
            "",
            "Page faults by the stack that took them, estimated from those whose stack was taken, and whose the pages were at \
             the end; given back: not resident then, or of no owner that is known. It is a lead, no proof: beside balanced \
             churn, who is first to touch a page is mostly not who keeps it.",
        )
    }
}

fn function(site: &FaultSite) -> String {
    let frame = attribute_touch(&site.stack).responsible.and_then(|index| site.stack.frames.get(index));
    frame.map_or_else(|| "(no stack)".to_owned(), label::function)
}

fn caller(site: &FaultSite) -> String {
    match site.stack.frames.iter().find(|frame| frame.kind == FrameKind::Erlang) {
        Some(frame) => label::shorten(&label::function(frame), CALLER),
        None => first_of(&site.threads, CALLER),
    }
}

#[cfg(test)]
mod tests {
    use super::super::render;
    use crate::{
        explain::owner::Owner,
        recording::{FaultSite, Recording},
        report::{Options, Report},
        sample,
    };

    #[test]
    fn who_touched_memory_is_named_with_its_owner() {
        let mut recording = Recording { faults: Vec::new(), ..sample::recording() };
        let text = render(&Report::new(&recording), Options::default());
        assert!(!text.contains("Who touched"), "a heading over nothing");
        let stack = sample::recording().sites.remove(0).stack;
        let site = |owner| FaultSite {
            stack: stack.clone(),
            owner,
            thread: None,
            threads: Vec::new(),
            faults: 512,
            bytes: 2 << 20,
            sampled: 9,
        };
        recording.faults = vec![site(Some(Owner::NativeUsed)), site(None)];
        let text = render(&Report::new(&recording), Options::default());
        let (_, table) = text.split_once("Who touched new memory first").expect("a table");
        for word in ["2.0 MiB", "512", "native.used", "(given back)", "keep", "no proof"] {
            assert!(table.contains(word), "{word}: {table}");
        }
        for line in table.lines() {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
    }
}
