//! What does it cost to walk the stack of each allocation, and how long does it take to attach?

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{NODE_ARGUMENTS, PATIENCE, Section, load, load::Measure, spread::Spread};
use crate::{
    node::Node,
    project::Project,
    watched::{Echo, Watched},
};

const ROUNDS: usize = 3;

/// Frames between the NIF and the loop: with the others, 14 and the boundary to Erlang.
const FRAMES: u32 = 8;

/// Mappings that the node is to have at least when it is attached to.
const MAPPINGS: usize = 150;

/// How the stacks are taken, and what `record` is asked for.
const WAYS: [(&str, &[&str]); 4] = [
    ("every stack walked", &["--walk-share", "100"]),
    ("as by default", &[]),
    ("sampled and walked", &["--walk-share", "0"]),
    ("sampled and copied", &["--stack-engine", "images"]),
];

/// One way in one round.
struct Round {
    pair_ns: f64,
    /// From the start of the command to its word that it records.
    attach: Duration,
    counts: Value,
}

pub(super) fn measure(project: &Project) -> Result<Section> {
    let mut bare = Vec::new();
    let mut rounds: [Vec<Round>; WAYS.len()] = Default::default();
    let mut mappings = 0;
    for round in 1..=ROUNDS {
        eprintln!("    stacks: round {round} of {ROUNDS}");
        let mut node = node(project)?;
        mappings = mappings_of(node.pid())?;
        bare.push(deep(&mut node)?.cpu_ns_each());
        for ((_, arguments), rounds) in WAYS.iter().zip(&mut rounds) {
            rounds.push(recorded(project, &mut node, arguments)?);
        }
    }
    section(&bare, &rounds, mappings).context("no rounds")
}

/// A node with the libraries of an ordinary one.
fn node(project: &Project) -> Result<Node> {
    // Each thread has a mapping for its stack.
    let arguments: Vec<&str> = NODE_ARGUMENTS.into_iter().chain(["+A", "16"]).collect();
    let mut node = Node::start(&project.target.join("bench"), &arguments)?;
    for application in ["crypto", "ssl", "inets"] {
        node.call(&format!("application ensure_all_started {application}"), PATIENCE)?;
    }
    deep(&mut node)?;
    let mappings = mappings_of(node.pid())?;
    ensure!(mappings >= MAPPINGS, "the node has only {mappings} mappings");
    Ok(node)
}

fn mappings_of(pid: u32) -> Result<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("cannot read maps of {pid}"))?;
    Ok(maps.lines().count())
}

fn deep(node: &mut Node) -> Result<Measure> {
    let call = format!("bench deep 1000 {FRAMES}");
    let answer = node.call(&call, PATIENCE)?;
    load::parse(&answer).with_context(|| format!("the node answered {call:?} with {answer:?}"))
}

fn recorded(project: &Project, node: &mut Node, arguments: &[&str]) -> Result<Round> {
    let file = project.target.join("bench/stacks.bscope");
    let mut command = Command::new(project.beamscope());
    command
        .args(["record", &node.pid().to_string(), "--mode", "exact", "-d", "120s", "--force", "-o"])
        .arg(&file)
        .args(arguments);
    let begin = Instant::now();
    let mut tool = Watched::start(&mut command, Echo::No)?;
    tool.await_line("recording", PATIENCE)?;
    let attach = begin.elapsed();
    let pair_ns = deep(node)?.cpu_ns_each();
    tool.interrupt()?;
    tool.succeed(PATIENCE)?;
    let report = Command::new(project.beamscope()).args(["report", "--format", "json"]).arg(&file).output()?;
    let report: Value = serde_json::from_slice(&report.stdout).context("the report is not JSON")?;
    let counts = report.get("counts").context("the report has no counts")?.clone();
    Ok(Round { pair_ns, attach, counts })
}

fn section(bare: &[f64], rounds: &[Vec<Round>; WAYS.len()], mappings: usize) -> Option<Section> {
    let pair = |rounds: &[Round]| Spread::of(rounds.iter().map(|round| round.pair_ns));
    let bare = Spread::of(bare.iter().copied())?;
    let mut lines = vec![
        format!("stacks of {} frames and Erlang's behind them: CPU time of a malloc and free pair\n", FRAMES + 6),
        format!("{:<34}{:>9}{:>9}\n", "", "ns", "to bare"),
        format!("{:<34}{:>9.0}{:>9.1}\n", "bare", bare.median, 1.0),
    ];
    let mut ways = serde_json::Map::new();
    for ((name, arguments), rounds) in WAYS.iter().zip(rounds) {
        let pair = pair(rounds)?;
        lines.push(format!("{name:<34}{:>9.0}{:>9.1}\n", pair.median, pair.median / bare.median));
        let counts: Vec<&Value> = rounds.iter().map(|round| &round.counts).collect();
        ways.insert((*name).to_owned(), json!({ "arguments": arguments, "pair_ns": pair, "counts": counts }));
    }
    let [walked, ..] = rounds;
    let per = |what: &'static str, of: &'static str| {
        let ratio = |round: &Round| Some(round.counts.get(what)?.as_f64()? / round.counts.get(of)?.as_f64()?);
        Spread::of(walked.iter().filter_map(ratio))
    };
    let (walk, frames) = (per("walk_nanoseconds", "walks")?, per("walked_frames", "walked_stacks")?);
    lines.push(format!(
        "a walk in the kernel takes {:.0} ns at {:.1} native frames ({:.0} to {:.0} ns)\n",
        walk.median, frames.median, walk.smallest, walk.largest
    ));
    let attach = Spread::of(rounds.iter().flatten().map(|round| round.attach.as_secs_f64()))?;
    lines.push(format!(
        "from start to recording, tables included, at {mappings} mappings: {:.2} s ({:.2} to {:.2} s)\n",
        attach.median, attach.smallest, attach.largest
    ));
    let json = json!({
        "bare_ns": bare,
        "ways": ways,
        "walk_ns": walk,
        "walk_frames": frames,
        "mappings": mappings,
        "attach_s": attach,
    });
    Some(Section { text: lines.concat(), json })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_a_walk_takes() {
        let round = || Round {
            pair_ns: 5000.0,
            attach: Duration::from_millis(500),
            counts: json!({ "walk_nanoseconds": 3000, "walks": 2, "walked_frames": 28, "walked_stacks": 2 }),
        };
        let rounds = [vec![round()], vec![round()], vec![round()], vec![round()]];
        let section = section(&[50.0], &rounds, 151).unwrap();
        assert!(section.text.contains("1500 ns at 14.0 native frames"), "{}", section.text);
        assert_eq!(section.json["attach_s"]["median"], 0.5);
    }
}
