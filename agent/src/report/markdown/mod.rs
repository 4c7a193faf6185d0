//! What does the report look like in an issue tracker? GitHub Flavored Markdown: the verdicts, what they rest on, who has
//! the memory, and what was lost.

mod escape;

use std::fmt::{self, Write};

use self::escape::{block, cell, code, plain};
use super::{
    Options, Report, header, label, loss,
    memory::Memory,
    unit,
    verdict::{self, Step},
};
use crate::{
    attribute::{Class, RankedSite},
    explain::model::Explanation,
    judge::{Answer, Verdict, VerdictId},
    stack::FrameKind,
};

/// Renders what a recording says.
pub fn of_recording(report: &Report<'_>, options: Options) -> String {
    written(options, |document| document.recording(report))
}

/// Renders what one look says.
pub fn of_look(explanation: &Explanation, verdicts: &[Verdict], options: Options) -> String {
    written(options, |document| document.look(explanation, verdicts))
}

fn written(options: Options, write: impl FnOnce(&mut Document) -> fmt::Result) -> String {
    let mut document = Document { options, out: String::new() };
    #[expect(clippy::expect_used, reason = "writing to a String fails only where a Display of ours does")]
    write(&mut document).expect("a String takes everything");
    document.out
}

struct Document {
    options: Options,
    out: String,
}

impl Document {
    fn recording(&mut self, report: &Report<'_>) -> fmt::Result {
        let recording = report.recording;
        let units = self.options.units;
        self.title(&header::node_name(&recording.node))?;
        let rss = report.rss.map(|rss| {
            let growth = rss.growth_per_second.map(|rate| format!(", {}", units.rate(rate))).unwrap_or_default();
            let (start, end) = (units.bytes(rss.start.rss), units.bytes(rss.end.rss));
            format!("{start} at the start, {end} at the end ({}{growth})", units.change(rss.start.rss, rss.end.rss))
        });
        self.facts(&[
            ("node", Some(header::node_facts(&recording.node))),
            ("recorded", Some(header::interval_facts(&recording.interval, &recording.beamscope))),
            ("cost", header::cost(report)),
            ("followed", header::followed(recording)),
            ("RSS", rss),
        ])?;
        self.verdicts(&report.verdicts)?;
        for verdict in verdict::ranked(&report.verdicts) {
            self.evidence(verdict, responsible(report, verdict))?;
        }
        if let Some(memory) = &report.memory {
            self.owners(memory)?;
        }
        self.sites(report)?;
        self.heading("Losses")?;
        if recording.losses.is_empty() {
            return writeln!(self.out, "No loss: every call was followed, and no event was dropped.");
        }
        for (counter, number) in &recording.losses {
            writeln!(self.out, "- {} {}: {}", unit::count(*number), code(counter), plain(loss::effect(counter)))?;
        }
        self.list("Defects", &recording.defects)
    }

    fn look(&mut self, explanation: &Explanation, verdicts: &[Verdict]) -> fmt::Result {
        let units = self.options.units;
        let Explanation { node, taken_unix, figures, resident, .. } = explanation;
        self.title(&header::node_name(node))?;
        let rss = format!("{} (PSS {})", units.bytes(*resident), units.bytes(figures.pss));
        self.facts(&[
            ("node", Some(header::node_facts(node))),
            ("taken", Some(unit::moment(*taken_unix))),
            ("RSS", Some(rss)),
        ])?;
        self.verdicts(verdicts)?;
        for verdict in verdict::ranked(verdicts) {
            self.evidence(verdict, None)?;
        }
        self.owners(&Memory::once(explanation))?;
        self.list("Defects", &explanation.defects)
    }

    fn title(&mut self, node: &str) -> fmt::Result {
        writeln!(self.out, "# Memory of {}\n", code(node))
    }

    fn heading(&mut self, heading: &str) -> fmt::Result {
        writeln!(self.out, "\n## {heading}\n")
    }

    fn facts(&mut self, facts: &[(&str, Option<String>)]) -> fmt::Result {
        self.row(&["", ""])?;
        self.row(&["---", "---"])?;
        for (name, fact) in facts {
            if let Some(fact) = fact {
                self.row(&[*name, plain(fact).as_str()])?;
            }
        }
        Ok(())
    }

    fn row(&mut self, cells: &[&str]) -> fmt::Result {
        for cell in cells {
            write!(self.out, "| {cell} ")?;
        }
        writeln!(self.out, "|")
    }

    fn verdicts(&mut self, verdicts: &[Verdict]) -> fmt::Result {
        if verdicts.is_empty() {
            return Ok(());
        }
        self.heading("Verdicts")?;
        self.row(&["answer", "verdict", "in a sentence"])?;
        self.row(&["---"; 3])?;
        for verdict in verdict::ranked(verdicts) {
            let answer = verdict::answer(verdict.answer);
            let answer = if verdict.answer == Answer::Confirmed { format!("**{answer}**") } else { answer.to_owned() };
            self.row(&[answer.as_str(), &cell(verdict.id.name()), &plain(&verdict::summary(verdict))])?;
        }
        Ok(())
    }

    /// What a verdict rests on, unless it is ruled out.
    fn evidence(&mut self, verdict: &Verdict, site: Option<&RankedSite<'_>>) -> fmt::Result {
        let units = self.options.units;
        if verdict.answer == Answer::RuledOut || (verdict.evidence.is_empty() && verdict.next.is_empty()) {
            return Ok(());
        }
        let sure = verdict.confidence.map(|known| format!(", {} confidence", verdict::confidence(known)));
        let (id, answer) = (code(verdict.id.name()), verdict::answer(verdict.answer));
        writeln!(self.out, "\n### {id}: {answer}{}\n", sure.unwrap_or_default())?;
        if let Some(subject) = &verdict.subject {
            writeln!(self.out, "- subject: {}", code(subject))?;
        }
        if let Some(size) = verdict::size(verdict, units) {
            writeln!(self.out, "- bytes: {size}")?;
        }
        for fact in &verdict.evidence {
            let figure = verdict::figure(fact.amount, units);
            writeln!(self.out, "- {}: **{figure}** ({})", plain(&fact.fact), code(fact.source))?;
        }
        if let Some(site) = site {
            let frames = site.site.stack.frames.iter().map(label::line).collect::<Vec<_>>();
            write!(self.out, "\nThe stack, from the allocation to the root:\n\n")?;
            self.out.write_str(&block("text", &frames))?;
        }
        if !verdict.next.is_empty() {
            writeln!(self.out, "\nNext:\n")?;
        }
        for next in &verdict.next {
            match verdict::step(next) {
                Step::Sentence(sentence) => writeln!(self.out, "- {}", with_code(&sentence))?,
                Step::Paste { text, purpose } => {
                    let purpose = purpose.map(|purpose| format!(": {}", plain(&purpose))).unwrap_or_default();
                    writeln!(self.out, "- {}{purpose}", code(&text))?;
                }
            }
        }
        Ok(())
    }

    fn owners(&mut self, memory: &Memory<'_>) -> fmt::Result {
        let Explanation { owners, unattributed, resident, .. } = memory.explanation;
        let units = self.options.units;
        self.heading("Owners of the resident memory")?;
        self.row(&["owner", "bytes", "share", "growth", "what it is"])?;
        self.row(&["---", "---:", "---:", "---:", "---"])?;
        let share = |bytes: u64| format!("{:.1} %", 100.0 * bytes as f64 / (*resident).max(1) as f64);
        for owned in owners.iter().take(self.options.top) {
            let name = owned.owner.to_string();
            let growth = memory.growth(&name).map_or_else(|| "-".to_owned(), |rate| units.rate(rate));
            let (bytes, share) = (units.bytes(owned.bytes), share(owned.bytes));
            self.row(&[cell(&name).as_str(), &bytes, &share, &growth, owned.owner.meaning()])?;
        }
        let rest: Vec<_> = owners.iter().skip(self.options.top).collect();
        if !rest.is_empty() {
            let bytes = rest.iter().fold(0_u64, |sum, owned| sum.saturating_add(owned.bytes));
            self.row(&[&format!("{} smaller ones", rest.len()), &units.bytes(bytes), &share(bytes), "", ""])?;
        }
        let none = "nobody's, as far as is known";
        self.row(&["unattributed", &units.bytes(*unattributed), &share(*unattributed), "", none])
    }

    fn sites(&mut self, report: &Report<'_>) -> fmt::Result {
        let units = self.options.units;
        let native = report.sites.iter().filter(|ranked| ranked.attribution.class != Class::Vm);
        let native: Vec<_> = native.filter(|ranked| ranked.site.outstanding_bytes() > 0).collect();
        if native.is_empty() {
            return Ok(());
        }
        self.heading("Native memory that was allocated and not freed")?;
        self.row(&["outstanding", "blocks", "growth", "library", "function", "on behalf of"])?;
        self.row(&["---:", "---:", "---:", "---", "---", "---"])?;
        for ranked in native.iter().take(self.options.top) {
            let site = ranked.site;
            let library = match &ranked.attribution.class {
                Class::Native { library } => cell(library),
                Class::Vm | Class::Unknown => String::new(),
            };
            let erlang = site.stack.frames.iter().find(|frame| frame.kind == FrameKind::Erlang).map(label::function);
            let caller = erlang.or_else(|| site.threads.first().cloned()).unwrap_or_default();
            let growth = ranked.growth_per_second.map_or_else(|| "-".to_owned(), |rate| units.rate(rate));
            let function = function(ranked).map_or_else(|| "(no stack)".to_owned(), |name| cell(&name));
            let (bytes, blocks) = (units.bytes(site.outstanding_bytes()), unit::count(site.outstanding_blocks()));
            self.row(&[bytes.as_str(), &blocks, &growth, &library, &function, &cell(&caller)])?;
        }
        if native.len() > self.options.top {
            writeln!(self.out, "\nThe first {} of {}.", self.options.top, native.len())?;
        }
        Ok(())
    }

    fn list(&mut self, heading: &str, sentences: &[String]) -> fmt::Result {
        if sentences.is_empty() {
            return Ok(());
        }
        self.heading(heading)?;
        sentences.iter().try_for_each(|sentence| writeln!(self.out, "- {}", plain(sentence)))
    }
}

/// A sentence, with what stands between backticks as code.
fn with_code(sentence: &str) -> String {
    if sentence.matches('`').count() % 2 == 1 {
        return plain(sentence);
    }
    let parts = sentence.split('`');
    parts.enumerate().map(|(index, part)| if index % 2 == 0 { plain(part) } else { code(part) }).collect()
}

fn function(ranked: &RankedSite<'_>) -> Option<String> {
    Some(label::function(ranked.site.stack.frames.get(ranked.attribution.responsible?)?))
}

/// The site that a confirmed leak is about: the first whose function and library its subject begins with, of those the one
/// that was called by the Erlang function which it names.
fn responsible<'a>(report: &'a Report<'a>, verdict: &Verdict) -> Option<&'a RankedSite<'a>> {
    let sites = match verdict.id {
        VerdictId::NativeLeak => &report.sites,
        VerdictId::NifLeak => &report.vm_api,
        _ => return None,
    };
    let subject = label::clean(verdict.subject.as_deref().filter(|_| verdict.answer == Answer::Confirmed)?);
    let is_named = |ranked: &&RankedSite<'_>| match (&ranked.attribution.class, function(ranked)) {
        (Class::Native { library }, Some(function)) => {
            subject.starts_with(&format!("{function} in {}", label::clean(library)))
        }
        _ => false,
    };
    let is_called_so = |ranked: &&RankedSite<'_>| {
        let erlang = ranked.site.stack.frames.iter().find(|frame| frame.kind == FrameKind::Erlang);
        erlang.is_some_and(|frame| subject.ends_with(&label::function(frame)))
    };
    let named = || sites.iter().filter(is_named);
    named().find(is_called_so).or_else(|| named().next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{report::verdict::sample as verdicts, sample};

    fn render(verdicts: Vec<Verdict>) -> String {
        let recording = sample::recording();
        let mut report = Report::new(&recording);
        report.verdicts = verdicts;
        of_recording(&report, Options::default())
    }

    #[test]
    fn looks_as_it_was_meant_to() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/hermetic/expected/verdicts.md.txt");
        let expected = snapbox::Data::read_from(path.as_ref(), Some(snapbox::data::DataFormat::Text)).raw();
        snapbox::assert_data_eq!(render(verdicts::verdicts()), expected);
    }

    #[test]
    fn the_stack_of_a_leak_is_that_of_its_subject() {
        let text = render(verdicts::verdicts());
        let (_, stack) = text.split_once("```text\n").expect("a block with a stack");
        assert!(stack.starts_with("malloc [libc.so.6]\nkeep [leaky.so] (inlined)  leaky.c:31\n"), "{stack}");
        let mut other = verdicts::verdicts();
        other[0].subject = Some("nothing of the kind".into());
        assert!(!render(other).contains("```text"));
    }

    /// What of a line is neither escaped nor code: a run of backticks is closed by one as long, else it is none (GFM,
    /// "Code spans").
    fn outside_code(line: &str) -> String {
        let mut outside = String::new();
        let mut rest = line;
        while let Some(letter) = rest.chars().next() {
            let run = rest.len() - rest.trim_start_matches('`').len();
            let taken = match letter {
                '\\' => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
                '`' => {
                    let mut at = run;
                    let closing = rest[run..].split_inclusive(|letter| letter != '`').find_map(|part| {
                        let ticks = part.matches('`').count();
                        at += part.len();
                        (ticks == run).then_some(at - (part.len() - ticks))
                    });
                    closing.unwrap_or(run)
                }
                other => {
                    outside.push(other);
                    other.len_utf8()
                }
            };
            rest = &rest[taken..];
        }
        outside
    }

    #[test]
    fn names_from_the_node_are_no_markup() {
        let evil = "a|b`c\n# <script>alert(1)</script> @admins [x](http://evil.example) ![y](z)";
        let mut recording = sample::recording();
        recording.node.name = Some(evil.into());
        recording.defects = vec![evil.into()];
        for site in &mut recording.sites {
            site.threads = vec![evil.into()];
            for frame in &mut site.stack.frames {
                (frame.function, frame.module) = (Some(evil.into()), Some(evil.into()));
            }
        }
        let mut report = Report::new(&recording);
        report.verdicts = verdicts::verdicts();
        let subject = format!("{} in {evil}", function(&report.sites[0]).expect("a function"));
        for verdict in &mut report.verdicts {
            (verdict.subject, verdict.summary) = (Some(subject.clone()), evil.into());
            verdict.next = vec![evil.into(), format!("{evil}  # {evil}")];
        }
        let text = of_recording(&report, Options::default());
        assert!(!text.contains('\x1b'));
        assert!(text.contains("```text\n"), "no stack was put to the test");
        let mut fence = None;
        for line in text.lines() {
            let is_fence = line.starts_with("```");
            match fence {
                None if is_fence => fence = Some(line.trim_end_matches(char::is_alphabetic)),
                Some(open) if line == open => fence = None,
                Some(_) => {}
                None => {
                    let outside = outside_code(line);
                    assert!(!outside.starts_with("# <") && !outside.contains('<'), "{line}");
                    assert!(!outside.contains("](") && !outside.contains("@admins"), "{line}");
                }
            }
        }
        assert_eq!(fence, None, "a block that does not end");
        // Every row of a table has as many cells as its header.
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        let mut width = 0;
        for line in text.lines() {
            width = match (line.starts_with('|'), width) {
                (false, _) => 0,
                (true, 0) => cells(line),
                (true, expected) => {
                    assert_eq!(cells(line), expected, "{line}");
                    expected
                }
            };
        }
    }
}
