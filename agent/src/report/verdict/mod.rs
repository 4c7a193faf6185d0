//! How are verdicts told: in which order, with which words and figures?

pub(super) mod json;
#[cfg(test)]
pub(crate) mod sample;
pub(crate) mod text;

use super::{
    label,
    unit::{self, Units},
};
use crate::judge::{Amount, Answer, Confidence, Threshold, Verdict, VerdictId};

/// The verdicts with what asks for attention first: confirmed ones, then inconclusive ones, then what is ruled out.
pub(super) fn ranked(verdicts: &[Verdict]) -> Vec<&Verdict> {
    let mut ranked: Vec<_> = verdicts.iter().collect();
    // Stable: those with the same answer stay in the order of the questions.
    ranked.sort_by_key(|verdict| match verdict.answer {
        Answer::Confirmed => 0,
        Answer::Inconclusive => 1,
        Answer::RuledOut => 2,
    });
    ranked
}

/// The answer in words.
pub(super) fn answer(answer: Answer) -> &'static str {
    match answer {
        Answer::Confirmed => "confirmed",
        Answer::RuledOut => "ruled out",
        Answer::Inconclusive => "inconclusive",
    }
}

/// How much the evidence carries, in words.
pub(super) fn confidence(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Low => "low",
        Confidence::Medium => "medium",
        Confidence::High => "high",
    }
}

/// The question, as it is asked.
pub(super) fn question(id: VerdictId) -> &'static str {
    match id {
        VerdictId::NativeLeak => "does native code leak memory that the VM cannot see?",
        VerdictId::NifLeak => "does a NIF or driver leak through the VM's own interfaces?",
        VerdictId::Fragmentation => "do carriers hold memory that no block uses?",
        VerdictId::LibcRetention => "does the C library hold freed memory?",
        VerdictId::VmGrowth => "does the VM itself use more?",
        VerdictId::Reclaimable => "is resident memory only lazily freed, or kept for use again?",
        VerdictId::Limits => "is it a static table, a limit or the page cache?",
    }
}

/// The answer as one sentence.
pub(crate) fn summary(verdict: &Verdict) -> String {
    if verdict.summary.is_empty() { format!("open: {}", question(verdict.id)) } else { label::clean(&verdict.summary) }
}

/// A measured figure.
pub(super) fn figure(amount: Amount, units: Units) -> String {
    match amount {
        Amount::Bytes(bytes) => units.bytes(bytes),
        Amount::Rate(rate) => units.rate(rate),
        Amount::Count(count) => unit::count(count),
        Amount::Seconds(seconds) => unit::seconds(seconds),
        Amount::Share(share) => format!("{:.1} %", 100.0 * share),
    }
}

/// The bytes that a verdict is about, and their growth. `None`: it is about none.
pub(super) fn size(verdict: &Verdict, units: Units) -> Option<String> {
    let bytes = (verdict.bytes > 0).then(|| units.bytes(verdict.bytes));
    let growth = verdict.growth_per_second.map(|rate| units.rate(rate));
    match (bytes, growth) {
        (Some(bytes), Some(growth)) => Some(format!("{bytes}, {growth}")),
        (one, other) => one.or(other),
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A command, a flag or a call to paste, and what it is for.
    Paste { text: String, purpose: Option<String> },
    /// A sentence; what stands between backticks can be pasted.
    Sentence(String),
}

/// Tells a sentence from what is to be pasted, which is written as a line with a comment: `command  # what for` as in a
/// shell, `call().  % what for` as in Erlang; or as a command of beamscope alone.
pub(super) fn step(next: &str) -> Step {
    let next = label::clean(next);
    if let Some((text, purpose)) = next.rsplit_once("  # ").or_else(|| next.rsplit_once("  % ")) {
        return Step::Paste { text: text.trim().to_owned(), purpose: Some(purpose.trim().to_owned()) };
    }
    if next.starts_with("beamscope ") { Step::Paste { text: next, purpose: None } } else { Step::Sentence(next) }
}

/// The number of a threshold, with its unit.
pub(super) fn bound(threshold: &Threshold, units: Units) -> String {
    let Threshold { value, unit, .. } = *threshold;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a threshold is a small positive number"
    )]
    let whole = value.round() as u64;
    match unit {
        "bytes" => units.bytes(whole),
        "bytes/s" => units.rate(value).trim_start_matches('+').to_owned(),
        "s" | "seconds" => unit::seconds(value),
        "share" => format!("{:.1} %", 100.0 * value),
        "" | "ratio" => format!("{value}"),
        _ => format!("{value} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_asks_for_attention_comes_first() {
        let verdicts = sample::verdicts();
        let order: Vec<_> = ranked(&verdicts).iter().map(|verdict| (verdict.answer, verdict.id)).collect();
        assert_eq!(order.len(), verdicts.len());
        let rank =
            |answer| [Answer::Confirmed, Answer::Inconclusive, Answer::RuledOut].iter().position(|at| *at == answer);
        assert!(order.is_sorted_by_key(|(answer, id)| (rank(*answer), *id)), "{order:?}");
    }

    #[test]
    fn tells_what_to_paste_from_sentences() {
        let paste = |text: &str, purpose: Option<&str>| Step::Paste {
            text: text.to_owned(),
            purpose: purpose.map(str::to_owned),
        };
        assert_eq!(step("+MBas aobf  # best fit"), paste("+MBas aobf", Some("best fit")));
        assert_eq!(step("recon:bin_leak(5).  % who"), paste("recon:bin_leak(5).", Some("who")));
        assert_eq!(step("beamscope record 1 -d 5m"), paste("beamscope record 1 -d 5m", None));
        for sentence in ["try `a b`", "take # 5 of 10 % off"] {
            assert_eq!(step(sentence), Step::Sentence(sentence.into()));
        }
    }

    #[test]
    fn bounds_have_their_units() {
        let written = |value, unit| bound(&Threshold { name: "a", value, unit, reason: "" }, Units::Iec);
        assert_eq!(written(1024.0, "bytes"), "1.0 KiB");
        assert_eq!(written(2048.0, "bytes/s"), "2.0 KiB/s");
        assert_eq!(written(0.25, "share"), "25.0 %");
        assert_eq!(written(2.0, "looks"), "2 looks");
        assert_eq!([written(2.5, "ratio"), written(2.0, "s")], ["2.5", "2.0 s"]);
    }

    #[test]
    fn a_question_without_an_answer_is_asked() {
        let open = Verdict { summary: String::new(), ..sample::verdicts().remove(0) };
        assert!(summary(&open).starts_with("open: does"), "{}", summary(&open));
    }
}
