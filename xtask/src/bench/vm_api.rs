//! What does a pair of `enif_alloc` and `enif_free` cost a node: alone, recorded, and recorded with `--vm-api`? And what
//! does that cost code that never asks the VM for memory itself, but whose terms the VM frees?

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{NODE_ARGUMENTS, PATIENCE, Section, condition, spread::Spread};
use crate::{
    node::Node,
    project::Project,
    watched::{Echo, Watched},
};

const ROUNDS: usize = 3;
const PAIRS: u32 = 20_000;
const SPAWNS: u32 = 20_000;

/// CPU nanoseconds of one pair, and of a process that is spawned and ends.
#[derive(Clone, Copy)]
struct Turn {
    pair: f64,
    process: f64,
}

/// How the node is recorded: not at all, or with these arguments.
const CONDITIONS: [(&str, Option<&[&str]>); 4] = [
    ("bare", None),
    ("recorded", Some(&[])),
    ("recorded with --vm-api", Some(&["--vm-api"])),
    ("the same, all stacks walked", Some(&["--vm-api", "--walk-share", "100"])),
];

pub(super) fn measure(project: &Project) -> Result<Section> {
    let mut turns = CONDITIONS.map(|_| Vec::new());
    for round in 1..=ROUNDS {
        for ((name, arguments), turns) in CONDITIONS.iter().zip(&mut turns) {
            eprintln!("    the VM's own functions: round {round} of {ROUNDS}: {name}");
            let mut node = Node::start(&project.target.join("bench"), &NODE_ARGUMENTS)?;
            turn(&mut node)?;
            let Some(arguments) = arguments else {
                turns.push(turn(&mut node)?);
                continue;
            };
            let mut command = condition::record(project, node.pid(), "exact", Duration::from_mins(2));
            command.args(*arguments);
            let mut tool = Watched::start(&mut command, Echo::No)?;
            tool.await_line("recording", PATIENCE)?;
            turns.push(turn(&mut node)?);
            tool.check_alive()?;
            tool.interrupt()?;
            tool.succeed(PATIENCE)?;
        }
    }
    section(&turns).context("no rounds")
}

fn turn(node: &mut Node) -> Result<Turn> {
    let each = |answer: String, count: u32| {
        let ns: f64 = answer.parse().with_context(|| format!("no time in {answer:?}"))?;
        anyhow::Ok(ns / f64::from(count))
    };
    Ok(Turn {
        pair: each(node.call(&format!("vm_api pairs {PAIRS}"), PATIENCE)?, PAIRS)?,
        process: each(node.call(&format!("vm_api spawns {SPAWNS}"), PATIENCE)?, SPAWNS)?,
    })
}

fn section(turns: &[Vec<Turn>]) -> Option<Section> {
    let spread = |turns: &[Turn], of: fn(&Turn) -> f64| Spread::of(turns.iter().map(of));
    let heading = format!("{:<34}{:>24}{:>24}\n", "", "enif_alloc + enif_free", "process, begin to end");
    let mut lines = vec![format!("CPU ns in a node, median of {ROUNDS} rounds\n"), heading];
    let mut json = serde_json::Map::new();
    for ((name, _), turns) in CONDITIONS.iter().zip(turns) {
        let (pair, process) = (spread(turns, |turn| turn.pair)?, spread(turns, |turn| turn.process)?);
        lines.push(format!("{name:<34}{:>24.0}{:>24.0}\n", pair.median, process.median));
        json.insert((*name).to_owned(), json!({ "pair_ns": pair, "process_ns": process }));
    }
    Some(Section { text: lines.concat(), json: json.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_condition_has_a_line() {
        let turns = CONDITIONS.map(|_| vec![Turn { pair: 100.0, process: 2000.0 }]);
        let section = section(&turns).unwrap();
        assert_eq!(section.text.lines().count(), 2 + CONDITIONS.len());
        assert_eq!(section.json["bare"]["pair_ns"]["median"], 100.0);
    }
}
