//! Does auto mode keep its budget on a node that does nothing but allocate? What the node loses is measured by the CPU clock of
//! the thread that allocates, beside what beamscope says that it has cost.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    NODE_ARGUMENTS, PATIENCE, Section,
    load::{self, Load, Measure},
    spread::Spread,
};
use crate::{
    node::Node,
    project::Project,
    watched::{Echo, Watched},
};

/// In percent of one processor: the default, and what is advised for production.
const BUDGETS: [f64; 2] = [15.0, 1.0];

const ROUNDS: usize = 3;

const SECONDS: u64 = 30;

/// The loop goes on longer than the recording, so that the end of it falls on the loop as well.
const LOAD: &str = "bench tight 34000 64 64";

/// One recording.
#[derive(Clone, Copy, Debug, Serialize)]
struct Round {
    /// Share of one processor that the loop lost.
    lost: f64,
    /// What beamscope says of it.
    calculated: f64,
    /// Seconds in which allocations were followed.
    followed_s: f64,
    blind_spans: usize,
    /// What the loop's pairs cost bare after the recording, to before it: how well the loss can be told.
    bare_after_to_before: f64,
}

pub(super) fn measure(project: &Project) -> Result<Section> {
    let mut budgets = Vec::new();
    for budget in BUDGETS {
        let rounds = (1..=ROUNDS).map(|round| {
            eprintln!("    budget of {budget} %: round {round} of {ROUNDS}");
            measure_round(project, budget)
        });
        budgets.push((budget, rounds.collect::<Result<Vec<Round>>>()?));
    }
    section(&budgets).context("no rounds")
}

fn measure_round(project: &Project, budget: f64) -> Result<Round> {
    let mut node = Node::start(&project.target.join("bench"), &NODE_ARGUMENTS)?;
    Load::Warm.run(&mut node)?;
    let before = Load::Tight.run(&mut node)?.cpu_ns_each();
    let file = project.target.join("bench/budget.bscope");
    let mut command = Command::new(project.beamscope());
    command
        .args(["record", &node.pid().to_string(), "--mode", "auto", "-d", &format!("{SECONDS}s"), "--force"])
        .args(["--budget", &budget.to_string(), "-o"])
        .arg(&file);
    let mut tool = Watched::start(&mut command, Echo::No)?;
    tool.await_line("recording", PATIENCE)?;
    let answer = node.call(LOAD, Duration::from_mins(2))?;
    let loaded = load::parse(&answer).with_context(|| format!("the node answered {LOAD:?} with {answer:?}"))?;
    tool.succeed(PATIENCE)?;
    let after = Load::Tight.run(&mut node)?.cpu_ns_each();
    let report = Command::new(project.beamscope()).args(["report", "--format", "json"]).arg(&file).output()?;
    let report: Value = serde_json::from_slice(&report.stdout).context("the report is not JSON")?;
    let number = |place: &str| {
        report.pointer(place).and_then(Value::as_f64).with_context(|| format!("the report has no number at {place}"))
    };
    let seconds = number("/interval/seconds")?;
    Ok(Round {
        lost: lost_seconds(&loaded, f64::midpoint(before, after)) / seconds,
        calculated: number("/cost/node_cpu_share")?,
        followed_s: number("/interval/followed_seconds")?,
        blind_spans: report.pointer("/blind").and_then(Value::as_array).map_or(0, Vec::len),
        bare_after_to_before: after / before,
    })
}

/// Seconds of CPU time beyond those that as many pairs take where each takes `bare_ns`.
fn lost_seconds(loaded: &Measure, bare_ns: f64) -> f64 {
    (loaded.cpu_ns as f64 - loaded.count as f64 * bare_ns) / 1e9
}

fn section(budgets: &[(f64, Vec<Round>)]) -> Option<Section> {
    let mut lines = vec![
        format!("auto mode on a tight loop over {SECONDS} s: percent of one processor, medians of {ROUNDS}\n"),
        format!("{:<34}{:>9}{:>12}{:>12}{:>9}\n", "budget", "lost", "calculated", "followed s", "bare +-"),
    ];
    let mut parts = Vec::new();
    for (budget, rounds) in budgets {
        let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
        let (lost, calculated) = (spread(|round| round.lost)?, spread(|round| round.calculated)?);
        let followed = spread(|round| round.followed_s)?;
        let noise = spread(|round| (round.bare_after_to_before - 1.0).abs())?;
        lines.push(format!(
            "{:<34}{:>9.2}{:>12.2}{:>12.1}{:>8.1}%\n",
            format!("{budget} %"),
            lost.median * 100.0,
            calculated.median * 100.0,
            followed.median,
            noise.median * 100.0
        ));
        parts.push(json!({ "budget_percent": budget, "lost": lost, "calculated": calculated, "followed_s": followed, "rounds": rounds }));
    }
    Some(Section { text: lines.concat(), json: json!({ "seconds": SECONDS, "budgets": parts }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_what_the_pairs_do_not_explain() {
        let loaded = Measure { count: 1_000_000, cpu_ns: 30_000_000, wall_ns: 40_000_000 };
        assert!((lost_seconds(&loaded, 10.0) - 0.02).abs() < 1e-12);
    }

    #[test]
    fn a_budget_is_a_line() {
        let round =
            Round { lost: 0.141, calculated: 0.15, followed_s: 4.5, blind_spans: 4, bare_after_to_before: 0.98 };
        let text = section(&[(15.0, vec![round]), (1.0, vec![round])]).unwrap().text;
        assert_eq!(text.lines().count(), 4);
        assert!(text.contains("14.10") && text.contains("2.0%"), "{text}");
        assert!(section(&[(1.0, Vec::new())]).is_none());
    }
}
