//! What does the report look like to a person?
//!
//! It fits a terminal of 100 columns. Headings are styled with ANSI sequences; who writes the text takes them out where they are not wanted.

mod asked;
mod faults;

use std::fmt::{self, Write as _};

use super::{
    Options, Report, Total, header, label, loss, memory,
    page::{HEADING, Page, of, table},
    unit::{self, Units},
    verdict,
};
use crate::{
    attribute::{Class, Evidence, RankedSite},
    recording::Mode,
    stack::{FrameKind, Stack, StackEnd},
};

/// Sites whose stack is written out.
const STACKS: usize = 3;
/// Sites of the VM in their table at most; there the sum counts more than the places.
const VM_SITES: usize = 5;
/// Widths of columns with names.
const LIBRARY: usize = 13;
const FUNCTION: usize = 19;
const CALLER: usize = 20;

/// Renders the report.
pub fn render(report: &Report<'_>, options: Options) -> String {
    let mut text = String::new();
    #[expect(clippy::expect_used, reason = "writing to a String fails only where a Display of ours does")]
    Text { report, options, page: Page::new(&mut text) }.write().expect("a String takes everything");
    text
}

struct Text<'a> {
    report: &'a Report<'a>,
    options: Options,
    page: Page<'a>,
}

impl Text<'_> {
    fn write(&mut self) -> fmt::Result {
        self.header()?;
        verdict::text::sections(&mut self.page, &self.report.verdicts, self.options.units)?;
        // Where allocations were not followed, tables of them would say that there were none.
        if self.report.recording.interval.mode != Mode::Growth {
            self.allocations()?;
        }
        self.carriers()?;
        self.vm_api()?;
        self.faults()?;
        if let Some(memory) = &self.report.memory {
            let options = Options { top: memory::text::ROWS, units: self.options.units };
            memory::text::sections(&mut self.page, memory, options)?;
        }
        self.losses()?;
        self.remarks()?;
        verdict::text::thresholds(&mut self.page, self.options.units)
    }

    /// What was allocated, by whom, and what of it is outstanding.
    fn allocations(&mut self) -> fmt::Result {
        self.totals()?;
        let sites = &self.report.sites;
        let (vm, others): (Vec<_>, Vec<_>) = sites.iter().partition(|ranked| ranked.attribution.class == Class::Vm);
        self.native_table(&others)?;
        for (rank, ranked) in (1..).zip(others.iter().take(STACKS.min(self.options.top))) {
            if ranked.site.outstanding_bytes() > 0 {
                self.stack(rank, ranked)?;
            }
        }
        self.vm_table(&vm)
    }

    fn header(&mut self) -> fmt::Result {
        let recording = self.report.recording;
        writeln!(self.page, "{HEADING}Memory of {}{HEADING:#}", header::node_name(&recording.node))?;
        self.page.field("node", &header::node_facts(&recording.node))?;
        self.page.field("recorded", &header::interval_facts(&recording.interval, &recording.beamscope))?;
        for (name, fact) in [("cost", header::cost(self.report)), ("followed", header::followed(recording))] {
            if let Some(fact) = fact {
                self.page.hanging(&format!("{name:<11}"), 11, &fact)?;
            }
        }
        let Some(rss) = self.report.rss else {
            return self.page.field("RSS", "not known: no snapshot was taken");
        };
        let units = self.options.units;
        let growth = rss.growth_per_second.map(|rate| format!(", {}", units.rate(rate))).unwrap_or_default();
        let (start, end) = (units.bytes(rss.start.rss), units.bytes(rss.end.rss));
        self.page.field("RSS", &format!("{start} -> {end}  ({}{growth})", units.change(rss.start.rss, rss.end.rss)))?;
        let parts = [
            ("anonymous", rss.end.anon),
            ("files", rss.end.file),
            ("shared", rss.end.shmem),
            ("lazily freed", rss.end.lazy_free),
            ("swapped", rss.end.swap),
        ];
        let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<_> = parts.map(|(name, bytes)| format!("{name} {}", units.bytes(*bytes))).collect();
        self.page.field("", &format!("at the end: {}", parts.join(", ")))
    }

    fn totals(&mut self) -> fmt::Result {
        self.page.heading("Allocated during the recording")?;
        let mut table = table(&["", "outstanding", "blocks", "growth/s", "allocated", "temporary", "sites"], 1..7);
        let Report { native, vm, unknown, .. } = self.report;
        for (name, total) in [("native", native), ("VM", vm), ("unknown", unknown)] {
            if total.sites > 0 || name != "unknown" {
                table.add_row(self.total_row(name, total));
            }
        }
        self.page.table(&table)?;
        writeln!(self.page, "outstanding: not freed by the end; temporary: freed before it")
    }

    fn total_row(&self, name: &str, total: &Total) -> Vec<String> {
        let units = self.options.units;
        vec![
            name.to_owned(),
            units.bytes(total.outstanding_bytes),
            unit::count(total.outstanding_blocks),
            growth(units, total.growth_per_second),
            units.bytes(total.allocated_bytes),
            units.bytes(total.freed_bytes),
            total.sites.to_string(),
        ]
    }

    fn native_table(&mut self, sites: &[&RankedSite<'_>]) -> fmt::Result {
        let shown = sites.len().min(self.options.top);
        self.page.heading(&format!("Native memory by site{}", of(shown, sites.len())))?;
        if sites.is_empty() {
            return writeln!(self.page, "none was asked for");
        }
        let header = ["#", "outstanding", "blocks", "growth/s", "oldest", "library", "function", "on behalf of"];
        let mut table = table(&header, 0..5);
        for (rank, ranked) in (1..).zip(sites.iter().take(shown)) {
            let library = match &ranked.attribution.class {
                Class::Native { library } => library,
                Class::Vm | Class::Unknown => "?",
            };
            table.add_row(self.site_row(rank, ranked, library));
        }
        self.page.table(&table)
    }

    fn vm_table(&mut self, sites: &[&RankedSite<'_>]) -> fmt::Result {
        if sites.is_empty() {
            return Ok(());
        }
        let shown = sites.len().min(self.options.top).min(VM_SITES);
        self.page.heading(&format!("Memory that the VM asked for{}", of(shown, sites.len())))?;
        let header = ["#", "outstanding", "blocks", "growth/s", "oldest", "carriers of", "function", "on behalf of"];
        let mut table = table(&header, 0..5);
        for (rank, ranked) in (1..).zip(sites.iter().take(shown)) {
            let carriers = ranked.attribution.evidence.iter().find_map(|evidence| match evidence {
                Evidence::Carriers { allocators, .. } => Some(first_of(allocators, LIBRARY)),
                _ => None,
            });
            table.add_row(self.site_row(rank, ranked, carriers.as_deref().unwrap_or("none seen")));
        }
        self.page.table(&table)?;
        writeln!(self.page, "Carriers hold Erlang terms and tables; they are no leak of native code.")
    }

    fn site_row(&self, rank: usize, ranked: &RankedSite<'_>, owner: &str) -> Vec<String> {
        let units = self.options.units;
        let site = ranked.site;
        let function = responsible(ranked).unwrap_or_else(|| "(no stack)".into());
        vec![
            rank.to_string(),
            units.bytes(site.outstanding_bytes()),
            unit::count(site.outstanding_blocks()),
            growth(units, ranked.growth_per_second),
            if site.outstanding_bytes() == 0 { "-".into() } else { unit::seconds(site.survivors.oldest_seconds) },
            label::shorten(&label::clean(owner), LIBRARY),
            label::shorten(&function, FUNCTION),
            caller(ranked),
        ]
    }

    fn stack(&mut self, rank: usize, ranked: &RankedSite<'_>) -> fmt::Result {
        let RankedSite { site, attribution, .. } = ranked;
        let units = self.options.units;
        let function = responsible(ranked).unwrap_or_else(|| "no stack".into());
        self.page.heading(&format!("#{rank}  {}  {function}", units.bytes(site.outstanding_bytes())))?;
        if let (Class::Native { library }, Some(via)) = (&attribution.class, &attribution.via) {
            writeln!(self.page, "    {} is called by {}", label::clean(library), label::clean(via))?;
        }
        if let Some(thread) = &site.thread {
            let driver = site.driver.as_ref().map(|name| format!(", for a port of the driver {}", label::clean(name)));
            writeln!(self.page, "    on {}{}", label::clean(&thread.to_string()), driver.unwrap_or_default())?;
        }
        let exact = if site.exact { "" } else { "; divided among the site's stacks by samples" };
        let (allocated, freed) = (units.bytes(site.allocated_bytes), units.bytes(site.freed_bytes));
        writeln!(self.page, "    allocated {allocated}, freed {freed}{exact}")?;
        let quarters = site.survivors.bytes.map(|bytes| units.bytes(bytes)).join(" | ");
        writeln!(self.page, "    outstanding, by quarter of the recording: {quarters}")?;
        self.frames(&site.stack)?;
        if let Some(creator) = &site.creator {
            writeln!(self.page, "    the thread was made by")?;
            self.frames(creator)?;
        }
        Ok(())
    }

    fn frames(&mut self, stack: &Stack) -> fmt::Result {
        for frame in &stack.frames {
            writeln!(self.page, "      {}", label::line(frame))?;
        }
        match end(stack.end) {
            Some(end) => writeln!(self.page, "      ({end})"),
            None => Ok(()),
        }
    }

    fn losses(&mut self) -> fmt::Result {
        self.page.heading("Losses")?;
        let recording = self.report.recording;
        if recording.losses.is_empty() {
            writeln!(self.page, "no loss: every call was followed, and no event was dropped")?;
        }
        for (counter, number) in &recording.losses {
            let (number, counter) = (unit::count(*number), label::clean(counter));
            writeln!(self.page, "{number:>14}  {counter}")?;
            self.page.wrapped(&" ".repeat(16), "", loss::effect(&counter))?;
        }
        Ok(())
    }

    fn remarks(&mut self) -> fmt::Result {
        let recording = self.report.recording;
        if !recording.counts.is_empty() {
            self.page.heading("Counts")?;
        }
        for (counter, number) in &recording.counts {
            let (number, counter) = (unit::count(*number), label::clean(counter));
            let meaning = loss::meaning(&counter).unwrap_or(&counter);
            writeln!(self.page, "{number:>14}  {meaning}")?;
        }
        if let Some(rate) = self.report.calls_per_second() {
            let rate = format!("{rate:.0}");
            writeln!(self.page, "{rate:>14}  allocations and frees per second")?;
        }
        let looked = self.report.memory.as_ref().map(|memory| memory.explanation);
        let with = |own: &[String], looked: Option<&[String]>| [own, looked.unwrap_or_default()].concat();
        let notes = with(&recording.notes, looked.map(|look| look.notes.as_slice()));
        memory::text::remarks(&mut self.page, "Notes", &notes)?;
        let defects = with(&recording.defects, looked.map(|look| look.defects.as_slice()));
        memory::text::remarks(&mut self.page, "Defects", &defects)
    }
}

fn growth(units: Units, rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".into(), |rate| units.rate(rate))
}

/// The Erlang function on whose behalf a site's code ran, else the thread.
fn caller(ranked: &RankedSite<'_>) -> String {
    let site = ranked.site;
    match site.stack.frames.iter().find(|frame| frame.kind == FrameKind::Erlang) {
        Some(frame) => label::shorten(&label::function(frame), CALLER),
        None => first_of(&site.threads, CALLER),
    }
}

fn responsible(ranked: &RankedSite<'_>) -> Option<String> {
    Some(label::function(ranked.site.stack.frames.get(ranked.attribution.responsible?)?))
}

/// The first of `names`, and how many more there are.
fn first_of(names: &[String], width: usize) -> String {
    let first = names.first().map(|name| label::clean(name)).unwrap_or_default();
    match names.len().saturating_sub(1) {
        0 => label::shorten(&first, width),
        more => {
            let more = format!(" +{more}");
            format!("{}{more}", label::shorten(&first, width.saturating_sub(more.len())))
        }
    }
}

fn end(end: StackEnd) -> Option<&'static str> {
    match end {
        StackEnd::Root | StackEnd::Jit | StackEnd::Erlang => None,
        StackEnd::Truncated => Some("cut: more stack than was captured"),
        StackEnd::NoUnwindInformation => Some("cut: code without unwind information"),
        StackEnd::Missing => Some("what lies behind was not captured"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::page;
    use crate::{
        recording::{Asked, Recording},
        sample,
    };

    fn plain(recording: &Recording, options: Options) -> String {
        anstream::adapter::strip_str(&render(&Report::new(recording), options)).to_string()
    }

    #[test]
    fn fits_a_terminal() {
        let mut recording = sample::recording();
        recording.notes.push("one word after the other ".repeat(20));
        for line in plain(&recording, Options::default()).lines() {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
    }

    #[test]
    fn says_that_nothing_was_lost() {
        let recording = Recording { losses: [].into(), ..sample::recording() };
        assert!(plain(&recording, Options::default()).contains("no loss"));
        assert!(!plain(&sample::recording(), Options::default()).contains("no loss"));
    }

    #[test]
    fn exact_bytes_are_exact() {
        let text = plain(&sample::recording(), Options { units: Units::Exact, ..Options::default() });
        // Verdicts are sentences for people in any case.
        let (_, tables) = text.split_once("Allocated during the recording").expect("tables");
        let (tables, _) = tables.split_once("Judged by").expect("thresholds");
        assert!(tables.contains("536870912") && !tables.contains("MiB"), "{tables}");
    }

    #[test]
    fn what_the_vm_was_asked_for_has_a_table_of_its_own() {
        let mut recording = sample::recording();
        let before = plain(&recording, Options::default());
        assert!(!before.contains("native code asked the VM for"), "{before}");
        recording.sites[0].asked = Asked::Vm;
        let report = Report::new(&recording);
        assert_eq!([report.sites.len(), report.vm_api.len()], [recording.sites.len() - 1, 1]);
        let text = plain(&recording, Options::default());
        let (native, vm) = text.split_once("What native code asked the VM for").expect("a table");
        assert!(vm.contains("These blocks lie in carriers") && !native.contains("These blocks"), "{text}");
    }

    #[test]
    fn top_limits_the_rows() {
        let text = plain(&sample::recording(), Options { top: 1, ..Options::default() });
        assert!(text.contains("the first 1 of 5"), "{text}");
        assert!(!text.contains("libcrypto.so.3 is called"), "{text}");
    }

    #[test]
    fn names_from_the_node_cannot_steer_the_terminal() {
        let mut recording = sample::recording();
        let evil = "\x1b]0;title\x07\x1b[2J\n".to_owned();
        recording.node.name = Some(evil.clone());
        recording.notes.push(evil.clone());
        recording.losses.insert(evil.clone(), 1);
        for site in &mut recording.sites {
            site.threads = vec![evil.clone()];
            for frame in &mut site.stack.frames {
                (frame.function, frame.module, frame.file) =
                    (Some(evil.clone()), Some(evil.clone()), Some(evil.clone()));
            }
        }
        let text = render(&Report::new(&recording), Options::default());
        // What begins like others comes before them.
        let ours = [page::ALARM, page::DOUBT, page::QUIET, page::PASTE, HEADING]
            .iter()
            .fold(text, |text, style| text.replace(&format!("{style}"), "").replace(&format!("{style:#}"), ""));
        assert!(!ours.contains(['\x1b', '\x07']), "{ours}");
    }
}
