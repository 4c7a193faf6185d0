//! How long does the node stand still while beamscope attaches, records and detaches?

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;

use super::{PATIENCE, Section, condition, spread::Spread};
use crate::{
    node::Node,
    project::Project,
    watched::{Echo, Watched},
};

/// Interleaved, each with its own bare span, as a machine that does something else stalls the node too.
const ROUNDS: usize = 7;

const RECORDED: Duration = Duration::from_secs(5);

/// So long before its end the recording is counted as detaching: nobody says from outside when that begins.
const LEAD: Duration = Duration::from_millis(100);

/// The kernel takes breakpoints away behind a process that has ended.
const GRACE: Duration = Duration::from_millis(500);

/// What beamscope promises.
const BOUND_MS: f64 = 30.0;

/// Largest gaps between two ticks, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    /// In a span as long as the three others together.
    bare: f64,
    /// From the start of the process until it says that it records.
    attach: f64,
    record: f64,
    /// From just before the end of the recording until the kernel has settled.
    detach: f64,
    span_ms: f64,
}

pub(super) fn measure(project: &Project) -> Result<Section> {
    // With the emulator's own settings: whether its threads spin is part of how it stalls.
    let mut node = Node::start(&project.target.join("bench"), &[])?;
    node.ask("churn on", PATIENCE)?;
    thread::sleep(GRACE);
    let rounds = (1..=ROUNDS)
        .map(|round| {
            eprintln!("    stall: round {round} of {ROUNDS}");
            measure_round(project, &mut node)
        })
        .collect::<Result<Vec<Round>>>()?;
    section(&rounds).context("no rounds")
}

fn measure_round(project: &Project, node: &mut Node) -> Result<Round> {
    let mut command = condition::record(project, node.pid(), "exact", RECORDED);
    largest_gap(node)?;
    let begin = Instant::now();
    let mut recorder = Watched::start(&mut command, Echo::No)?;
    recorder.await_line("recording", PATIENCE)?;
    let recording = Instant::now();
    let attach = largest_gap(node)?;
    thread::sleep(RECORDED.saturating_sub(LEAD + recording.elapsed()));
    let record = largest_gap(node)?;
    recorder.succeed(PATIENCE)?;
    thread::sleep(GRACE);
    let detach = largest_gap(node)?;
    let span = begin.elapsed();
    thread::sleep(span);
    let bare = largest_gap(node)?;
    Ok(Round { bare, attach, record, detach, span_ms: span.as_secs_f64() * 1e3 })
}

/// Since it was asked last, in milliseconds.
pub(super) fn largest_gap(node: &mut Node) -> Result<f64> {
    let answer = node.ask("ticker", PATIENCE)?;
    parse(&answer).with_context(|| format!("the node's ticker says {answer:?}"))
}

/// Reads `ticker max_us=N ticks=N`.
fn parse(answer: &str) -> Option<f64> {
    let largest = answer.split(' ').find_map(|word| word.strip_prefix("max_us="))?;
    Some(f64::from(largest.parse::<u32>().ok()?) / 1e3)
}

impl Round {
    fn beamscope(&self) -> f64 {
        self.attach.max(self.record).max(self.detach)
    }
}

fn section(rounds: &[Round]) -> Option<Section> {
    let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
    let (bare, beamscope) = (spread(|round| round.bare)?, spread(Round::beamscope)?);
    let (attach, record, detach) =
        (spread(|round| round.attach)?, spread(|round| round.record)?, spread(|round| round.detach)?);
    let within = rounds.iter().filter(|round| round.beamscope() <= BOUND_MS).count();
    let held = within == rounds.len();
    let line = |name: &str, spread: Spread| format!("{name:<34}{:>9.1}{:>9.1}\n", spread.median, spread.largest);
    let lines = [
        "stall: largest gap, in ms, of a 5 ms ticker in a node with 100,000 malloc and free pairs a second\n"
            .to_owned(),
        format!("{:<34}{:>9}{:>9}\n", "", "median", "largest"),
        line("bare, for as long", bare),
        line("attach, record for 5 s, detach", beamscope),
        line("  of that: attach", attach),
        line("  of that: record", record),
        line("  of that: detach", detach),
        format!(
            "the bound of {BOUND_MS} ms {}: in {within} of {} rounds\n",
            if held { "held" } else { "did not hold" },
            rounds.len()
        ),
    ];
    let json = json!({
        "bound_ms": BOUND_MS,
        "held": held,
        "bare_ms": bare,
        "beamscope_ms": beamscope,
        "attach_ms": attach,
        "record_ms": record,
        "detach_ms": detach,
        "rounds": rounds,
    });
    Some(Section { text: lines.concat(), json })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_phase_counts_against_the_bound() {
        let quiet = Round { bare: 6.0, attach: 7.0, record: 6.5, detach: 8.0, span_ms: 6000.0 };
        let text = section(&[quiet, Round { detach: 30.5, ..quiet }]).unwrap().text;
        assert!(text.contains("the bound of 30 ms did not hold: in 1 of 2 rounds"), "{text}");
        assert!(section(&[quiet]).unwrap().text.contains("held: in 1 of 1 rounds"));
    }

    #[test]
    fn the_ticker_answers_in_microseconds() {
        assert_eq!(parse("ticker max_us=6250 ticks=80"), Some(6.25));
        assert_eq!(parse("error undef"), None);
    }
}
