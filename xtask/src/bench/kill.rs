//! Does a node go on at full speed when beamscope is killed amid a recording?

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::json;

use super::{NODE_ARGUMENTS, Section, condition, load::Load, spread::Spread};
use crate::{
    node::Node,
    project::Project,
    watched::{Echo, Watched},
};

/// Each on a node of its own: what one kill left behind would be the "before" of the next.
const ROUNDS: usize = 5;

/// A pair that costs at most this much of one before is one without a breakpoint: a breakpoint makes it dozens of times.
const WITHOUT_BREAKPOINT: f64 = 1.5;

/// The kernel takes breakpoints away after a grace period; after this time they are taken to stay.
const PATIENCE: Duration = Duration::from_secs(10);

/// CPU ns of a pair.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    before: f64,
    recording: f64,
    after: f64,
    /// From the kill until a pair costs what it did; nothing if that never was.
    recovered_ms: Option<f64>,
}

pub(super) fn measure(project: &Project) -> Result<Section> {
    let rounds = (1..=ROUNDS)
        .map(|round| {
            eprintln!("    kill -9: round {round} of {ROUNDS}");
            measure_round(project)
        })
        .collect::<Result<Vec<Round>>>()?;
    section(&rounds).context("no rounds")
}

fn measure_round(project: &Project) -> Result<Round> {
    let mut node = Node::start(&project.target.join("bench"), &NODE_ARGUMENTS)?;
    Load::Warm.run(&mut node)?;
    let before = Load::Tight.run(&mut node)?.cpu_ns_each();
    let mut recorder =
        Watched::start(&mut condition::record(project, node.pid(), "exact", Duration::from_mins(2)), Echo::No)?;
    recorder.await_line("recording", super::PATIENCE)?;
    let recording = Load::Tight.run(&mut node)?.cpu_ns_each();
    recorder.check_alive()?;
    let killed = Instant::now();
    recorder.murder()?;
    let mut recovered_ms = None;
    while recovered_ms.is_none() && killed.elapsed() < PATIENCE {
        if Load::Warm.run(&mut node)?.cpu_ns_each() <= before * WITHOUT_BREAKPOINT {
            recovered_ms = Some(killed.elapsed().as_secs_f64() * 1e3);
        } else {
            thread::sleep(Duration::from_millis(10));
        }
    }
    let after = Load::Tight.run(&mut node)?.cpu_ns_each();
    Ok(Round { before, recording, after, recovered_ms })
}

fn section(rounds: &[Round]) -> Option<Section> {
    let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
    let (before, recording, after) =
        (spread(|round| round.before)?, spread(|round| round.recording)?, spread(|round| round.after)?);
    let ratio = spread(|round| round.after / round.before)?;
    let recovered = Spread::of(rounds.iter().filter_map(|round| round.recovered_ms));
    let stuck = rounds.iter().filter(|round| round.recovered_ms.is_none()).count();
    let line = |name: &str, spread: Spread, digits: usize| {
        let Spread { smallest, median, largest } = spread;
        format!("{name:<34}{median:>9.digits$}{smallest:>9.digits$}{largest:>9.digits$}\n")
    };
    let missed = match stuck {
        0 => String::new(),
        _ => format!("in {stuck} of {} rounds the breakpoints were there {PATIENCE:?} later\n", rounds.len()),
    };
    let lines = [
        "kill -9 of beamscope: CPU ns of a tight pair of 64 B\n".to_owned(),
        format!("{:<34}{:>9}{:>9}{:>9}\n", "", "median", "smallest", "largest"),
        line("before", before, 1),
        line("while recording", recording, 1),
        line("after the kill", after, 1),
        line("after / before", ratio, 3),
        recovered.map_or_else(String::new, |spread| line("ms until a pair cost as before", spread, 0)),
        missed,
    ];
    let json = json!({
        "before_ns": before,
        "recording_ns": recording,
        "after_ns": after,
        "after_to_before": ratio,
        "recovered_ms": recovered,
        "not_recovered_rounds": stuck,
        "rounds": rounds,
    });
    Some(Section { text: lines.concat(), json })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_that_stays_is_said() {
        let good = Round { before: 10.0, recording: 1000.0, after: 10.5, recovered_ms: Some(60.0) };
        let stuck = Round { after: 900.0, recovered_ms: None, ..good };
        let text = section(&[good, stuck]).unwrap().text;
        assert!(text.contains("in 1 of 2 rounds the breakpoints were there 10s later"), "{text}");
        assert!(!section(&[good]).unwrap().text.contains("breakpoints"));
    }
}
