//! What does a recording cost a node that calls no malloc? That is to be nothing, so the measure has to resolve little:
//! the same loop in the same node, by turns bare and recorded, each recorded turn against the two bare ones beside it.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{NODE_ARGUMENTS, PATIENCE, Section, condition, load::Load, spread::Spread};
use crate::{
    node::Node,
    project::Project,
    watched::{Echo, Watched},
};

const ROUNDS: usize = 9;

/// In each turn, of about 80 ms each: together longer than the second between two snapshots of the recorder.
const SLICES: usize = 21;

/// The kernel takes breakpoints away behind a process that has ended.
const GRACE: Duration = Duration::from_millis(300);

pub(super) fn measure(project: &Project) -> Result<Section> {
    let mut node = Node::start(&project.target.join("bench"), &NODE_ARGUMENTS)?;
    turn(&mut node)?;
    let mut bare = vec![turn(&mut node)?];
    let mut recorded = Vec::new();
    for round in 1..=ROUNDS {
        eprintln!("    without malloc: round {round} of {ROUNDS}");
        let mut command = condition::record(project, node.pid(), "exact", Duration::from_mins(2));
        let mut tool = Watched::start(&mut command, Echo::No)?;
        tool.await_line("recording", PATIENCE)?;
        recorded.push(turn(&mut node)?);
        tool.check_alive()?;
        tool.interrupt()?;
        tool.succeed(PATIENCE)?;
        thread::sleep(GRACE);
        bare.push(turn(&mut node)?);
    }
    section(&bare, &recorded).context("no rounds")
}

/// The median of many slices, so that what else the machine does for a moment moves it little.
fn turn(node: &mut Node) -> Result<f64> {
    let slices = (0..SLICES).map(|_| Ok(Load::ErlangSlice.run(node)?.cpu_ns_each())).collect::<Result<Vec<f64>>>()?;
    Ok(Spread::of(slices).context("no slices")?.median)
}

fn section(bare: &[f64], recorded: &[f64]) -> Option<Section> {
    let pairs = || bare.iter().zip(bare.iter().skip(1));
    let ratio = Spread::of(recorded.iter().zip(pairs()).map(|(recorded, (one, two))| recorded * 2.0 / (one + two)))?;
    // What two bare turns differ by is what cannot be told from nothing.
    let noise = Spread::of(pairs().map(|(one, two)| two / one))?;
    let line = |name: &str, Spread { smallest, median, largest }: Spread| {
        format!("{name:<34}{median:>9.4}{smallest:>9.4}{largest:>9.4}\n")
    };
    let lines = [
        "an Erlang loop without malloc: CPU time as a multiple, by turns in one node\n".to_owned(),
        format!("{:<34}{:>9}{:>9}{:>9}\n", "", "median", "smallest", "largest"),
        line("recorded / bare", ratio),
        line("bare / bare before it", noise),
    ];
    let json = json!({
        "recorded_to_bare": ratio,
        "bare_to_bare": noise,
        "bare_ns": bare,
        "recorded_ns": recorded,
    });
    Some(Section { text: lines.concat(), json })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drift_of_the_machine_is_no_cost() {
        let json = section(&[1.0, 2.0, 3.0], &[1.5, 2.5]).unwrap().json;
        assert_eq!(json["recorded_to_bare"]["median"], 1.0);
        assert_eq!(json["bare_to_bare"]["largest"], 2.0);
    }
}
