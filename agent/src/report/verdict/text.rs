//! What do the verdicts say to a person? First a sentence for each, then what it rests on and what to do.

use std::fmt::{self, Write as _};

use anstyle::Style;

use super::{Step, answer, bound, confidence, figure, ranked, size, step, summary};
use crate::{
    judge::{self, Answer, Fact, Threshold, Verdict},
    report::{
        label,
        page::{ALARM, DOUBT, HEADING, PASTE, Page, QUIET},
        unit::Units,
    },
};

/// Widths of the columns with answers and questions, the space behind them included.
const ANSWER: usize = 16;
const QUESTION: usize = 16;
/// Width of the names in the evidence, with the space around them.
const NAME: usize = 12;
/// Where the lines begin that say what a command is for.
const PURPOSE: usize = NAME + 4;

/// A line for each verdict, then the evidence.
pub(in crate::report) fn sections(page: &mut Page<'_>, verdicts: &[Verdict], units: Units) -> fmt::Result {
    if verdicts.is_empty() {
        return Ok(());
    }
    let ranked = ranked(verdicts);
    page.heading("Verdicts")?;
    for verdict in &ranked {
        sentence(page, verdict)?;
    }
    let (ruled_out, others): (Vec<_>, Vec<_>) =
        ranked.into_iter().partition(|verdict| verdict.answer == Answer::RuledOut);
    let others = others.into_iter().filter(|verdict| has_evidence(verdict));
    let ruled_out = ruled_out.into_iter().filter_map(|verdict| Some((verdict, verdict.evidence.first()?)));
    let (mut others, mut ruled_out) = (others.peekable(), ruled_out.peekable());
    if others.peek().is_none() && ruled_out.peek().is_none() {
        return Ok(());
    }
    page.heading("Evidence")?;
    for (index, verdict) in others.enumerate() {
        if index > 0 {
            writeln!(page)?;
        }
        evidence(page, verdict, units)?;
    }
    if ruled_out.peek().is_some() {
        writeln!(page, "\n{QUIET}ruled out{QUIET:#}")?;
    }
    for (verdict, first) in ruled_out {
        page.hanging(&format!("  {:<QUESTION$}", verdict.id.name()), QUESTION.saturating_add(2), &fact(first, units))?;
    }
    Ok(())
}

/// A line for each verdict that asks for attention, or one that there is none.
pub(crate) fn brief(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    let mut page = Page::new(&mut text);
    let mut whole = || -> fmt::Result {
        let open: Vec<_> = ranked(verdicts).into_iter().filter(|verdict| verdict.answer != Answer::RuledOut).collect();
        if open.is_empty() {
            writeln!(page, "all verdicts are ruled out")?;
        }
        open.into_iter().try_for_each(|verdict| sentence(&mut page, verdict))
    };
    #[expect(clippy::expect_used, reason = "writing to a String fails only where a Display of ours does")]
    whole().expect("a String takes everything");
    text
}

/// The numbers that the verdicts compare figures with.
pub(in crate::report) fn thresholds(page: &mut Page<'_>, units: Units) -> fmt::Result {
    bounds(page, judge::thresholds(), units)
}

fn bounds(page: &mut Page<'_>, thresholds: &[Threshold], units: Units) -> fmt::Result {
    if thresholds.is_empty() {
        return Ok(());
    }
    page.heading("Judged by")?;
    let bounds = thresholds.iter().map(|threshold| format!("{} {}", threshold.name, bound(threshold, units)));
    page.wrapped("", "", &bounds.collect::<Vec<_>>().join(", "))?;
    writeln!(page, "--format json has the reason for each")
}

/// `! CONFIRMED     native_leak     …`
fn sentence(page: &mut Page<'_>, verdict: &Verdict) -> fmt::Result {
    let (mark, word, style) = match verdict.answer {
        Answer::Confirmed => ('!', "CONFIRMED", ALARM),
        Answer::Inconclusive => ('?', "inconclusive", DOUBT),
        Answer::RuledOut => ('-', "ruled out", QUIET),
    };
    let name = if verdict.answer == Answer::RuledOut { QUIET } else { HEADING };
    let word = format!("{mark} {word}");
    let lead = format!("{style}{word:<ANSWER$}{style:#}{name}{:<QUESTION$}{name:#}", verdict.id.name());
    page.hanging(&lead, ANSWER.saturating_add(QUESTION), &summary(verdict))
}

fn has_evidence(verdict: &Verdict) -> bool {
    !verdict.evidence.is_empty() || !verdict.next.is_empty() || verdict.subject.is_some()
}

fn evidence(page: &mut Page<'_>, verdict: &Verdict, units: Units) -> fmt::Result {
    let style: Style = if verdict.answer == Answer::Confirmed { ALARM } else { DOUBT };
    let sure = verdict.confidence.map(|known| format!(", {} confidence", confidence(known))).unwrap_or_default();
    writeln!(page, "{HEADING}{}{HEADING:#}  {style}{}{style:#}{sure}", verdict.id.name(), answer(verdict.answer))?;
    if let Some(subject) = &verdict.subject {
        named(page, "subject", &label::clean(subject))?;
    }
    if let Some(size) = size(verdict, units) {
        named(page, "bytes", &size)?;
    }
    let mut name = "evidence";
    for one in &verdict.evidence {
        named(page, name, &fact(one, units))?;
        name = "";
    }
    for next in &verdict.next {
        match step(next) {
            Step::Sentence(sentence) => named(page, "next", &sentence)?,
            Step::Paste { text, purpose } => {
                writeln!(page, "{}{PASTE}{text}{PASTE:#}", column("next"))?;
                if let Some(purpose) = purpose {
                    page.hanging(&" ".repeat(PURPOSE), PURPOSE, &purpose)?;
                }
            }
        }
    }
    Ok(())
}

fn named(page: &mut Page<'_>, name: &str, text: &str) -> fmt::Result {
    page.hanging(&column(name), NAME, text)
}

fn column(name: &str) -> String {
    format!("{:<NAME$}", format!("  {name}"))
}

/// `fact: figure (source)`
fn fact(fact: &Fact, units: Units) -> String {
    format!("{}: {} ({})", label::clean(&fact.fact), figure(fact.amount, units), fact.source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::verdict::sample;

    fn render(verdicts: &[Verdict]) -> String {
        let mut text = String::new();
        sections(&mut Page::new(&mut text), verdicts, Units::Iec).expect("a String takes everything");
        text
    }

    fn plain(verdicts: &[Verdict]) -> String {
        anstream::adapter::strip_str(&render(verdicts)).to_string()
    }

    #[test]
    fn looks_as_it_was_meant_to() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/hermetic/expected/verdicts.txt");
        let expected = snapbox::Data::read_from(path.as_ref(), Some(snapbox::data::DataFormat::Text)).raw();
        snapbox::assert_data_eq!(plain(&sample::verdicts()), expected);
    }

    #[test]
    fn is_understood_without_colours() {
        let text = plain(&sample::verdicts());
        let marks = |mark| text.lines().filter(|line| line.starts_with(mark)).count();
        assert_eq!(["! CONFIRMED ", "? inconclusive ", "- ruled out "].map(marks), [2, 2, 3]);
    }

    #[test]
    fn commands_stay_whole_and_the_rest_fits() {
        let verdicts = sample::verdicts();
        let text = plain(&verdicts);
        let pasted: Vec<_> = text.lines().filter_map(|line| Some(line.trim().strip_prefix("next")?.trim())).collect();
        let steps = verdicts.iter().filter(|verdict| verdict.answer != Answer::RuledOut).flat_map(|one| &one.next);
        for next in steps {
            if let Step::Paste { text: command, .. } = step(next) {
                assert!(pasted.contains(&command.as_str()), "{command} is broken in:\n{text}");
            }
        }
        let (long, others): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.chars().count() > 100);
        assert!(long.len() == 1 && !others.is_empty(), "one command is long, and nothing else: {long:?}");
        assert!(long[0].ends_with("-o a-longer-and-closer-look.bscope"), "{long:?}");
        assert!(text.contains("`beamscope explain 4242 --depth full`"), "{text}");
    }

    #[test]
    fn names_from_the_node_cannot_steer_the_terminal() {
        let evil = "\x1b]0;title\x07\x1b[2J\n";
        let mut verdicts = sample::verdicts();
        for verdict in &mut verdicts {
            verdict.subject = Some(evil.into());
            verdict.summary.push_str(evil);
            verdict.next.push(evil.into());
            for fact in &mut verdict.evidence {
                fact.fact.push_str(evil);
            }
        }
        let text = render(&verdicts);
        assert!(!text.contains("\x1b]") && !text.contains("\x1b[2J") && !text.contains('\x07'), "{text}");
    }

    #[test]
    fn in_brief_what_is_ruled_out_is_left_out() {
        let brief = |verdicts: &[Verdict]| anstream::adapter::strip_str(&brief(verdicts)).to_string();
        let mut verdicts = sample::verdicts();
        let text = brief(&verdicts);
        assert!(text.contains("CONFIRMED") && text.contains("inconclusive") && !text.contains("ruled out"), "{text}");
        verdicts.retain(|verdict| verdict.answer == Answer::RuledOut);
        assert_eq!(brief(&verdicts), "all verdicts are ruled out\n");
    }

    #[test]
    fn thresholds_are_in_few_lines() {
        let reason = "";
        let bytes = Threshold { name: "leak_bytes", value: 131_072.0, unit: "bytes", reason };
        let looks = Threshold { name: "looks", value: 3.0, unit: "looks", reason };
        let mut text = String::new();
        bounds(&mut Page::new(&mut text), &[bytes, looks], Units::Iec).expect("a String takes everything");
        assert!(text.contains("leak_bytes 128.0 KiB, looks 3 looks\n"), "{text}");
        let mut all = String::new();
        thresholds(&mut Page::new(&mut all), Units::Iec).expect("a String takes everything");
        assert!(all.lines().all(|line| line.chars().count() <= 100), "{all}");
    }

    #[test]
    fn no_verdict_is_no_section() {
        assert_eq!(render(&[]), "");
    }
}
