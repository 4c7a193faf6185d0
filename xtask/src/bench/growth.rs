//! What does a recording in growth mode cost a node that allocates much? That is to be less than a hundredth, so the same
//! load is run in the same node by turns, bare and recorded, each recorded turn against the two bare ones beside it.

use std::{fmt::Write as _, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{NODE_ARGUMENTS, PATIENCE, Section, condition, load::Load, spread::Spread};
use crate::{
    node::Node,
    project::Project,
    watched::{Echo, Watched},
};

const ROUNDS: usize = 9;

/// In each turn.
const SLICES: usize = 21;

/// The kernel takes perf events away behind a process that has ended.
const GRACE: Duration = Duration::from_millis(300);

/// What the node does: pairs of malloc and free, and Erlang code whose carriers come and go.
const LOADS: [(&str, Load); 2] = [("malloc and free", Load::TightSlice), ("carriers that come and go", Load::Carriers)];

/// The turns of a load: CPU nanoseconds of one piece of work.
struct Turns {
    bare: Vec<f64>,
    recorded: Vec<f64>,
}

pub(super) fn measure(project: &Project) -> Result<Section> {
    let turns = LOADS.map(|(name, load)| Ok((name, measure_load(project, name, load)?)));
    let turns = turns.into_iter().collect::<Result<Vec<(&str, Turns)>>>()?;
    section(&turns).context("no rounds")
}

fn measure_load(project: &Project, name: &str, load: Load) -> Result<Turns> {
    let mut node = Node::start(&project.target.join("bench"), &NODE_ARGUMENTS)?;
    turn(&mut node, load)?;
    let mut turns = Turns { bare: vec![turn(&mut node, load)?], recorded: Vec::new() };
    for round in 1..=ROUNDS {
        eprintln!("    growth mode: {name}: round {round} of {ROUNDS}");
        let mut command = condition::record(project, node.pid(), "growth", Duration::from_mins(2));
        let mut tool = Watched::start(&mut command, Echo::No)?;
        tool.await_line("recording", PATIENCE)?;
        turns.recorded.push(turn(&mut node, load)?);
        tool.check_alive()?;
        tool.interrupt()?;
        tool.succeed(PATIENCE)?;
        thread::sleep(GRACE);
        turns.bare.push(turn(&mut node, load)?);
    }
    Ok(turns)
}

/// The median of many slices, so that what else the machine does for a moment moves it little.
fn turn(node: &mut Node, load: Load) -> Result<f64> {
    let slices = (0..SLICES).map(|_| Ok(load.run(node)?.cpu_ns_each())).collect::<Result<Vec<f64>>>()?;
    Ok(Spread::of(slices).context("no slices")?.median)
}

fn section(loads: &[(&str, Turns)]) -> Option<Section> {
    let mut text = "growth mode: CPU time of a node as a multiple, by turns in one node\n".to_owned();
    writeln!(text, "{:<34}{:>9}{:>9}{:>9}", "", "median", "smallest", "largest").ok()?;
    let mut json = serde_json::Map::new();
    for (name, Turns { bare, recorded }) in loads {
        let pairs = || bare.iter().zip(bare.iter().skip(1));
        let ratio = recorded.iter().zip(pairs()).map(|(recorded, (one, two))| recorded * 2.0 / (one + two));
        let ratio = Spread::of(ratio)?;
        // What two bare turns differ by is what cannot be told from nothing.
        let noise = Spread::of(pairs().map(|(one, two)| two / one))?;
        for (what, Spread { smallest, median, largest }) in [(*name, ratio), ("  bare / bare before it", noise)] {
            writeln!(text, "{what:<34}{median:>9.4}{smallest:>9.4}{largest:>9.4}").ok()?;
        }
        let figures = json!({
            "recorded_to_bare": ratio,
            "bare_to_bare": noise,
            "bare_ns": bare,
            "recorded_ns": recorded,
        });
        json.insert((*name).to_owned(), figures);
    }
    Some(Section { text, json: json.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drift_of_the_machine_is_no_cost() {
        let turns = |recorded| Turns { bare: vec![1.0, 2.0, 3.0], recorded };
        let section = section(&[("one", turns(vec![1.5, 2.5])), ("other", turns(vec![3.0, 5.0]))]).unwrap();
        assert_eq!(section.json["one"]["recorded_to_bare"]["median"], 1.0);
        assert_eq!(section.json["other"]["recorded_to_bare"]["largest"], 2.0);
        assert_eq!(section.text.lines().count(), 6);
    }
}
