//! What does a malloc and free pair cost a node: alone, under beamscope, and under its peers?

mod condition;
mod load;
mod table;

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, bail};
use xshell::cmd;

use crate::{
    fixtures,
    node::Node,
    project::Project,
    setup::{self, Job},
};
use condition::Condition;
use load::{Load, Measure};
use table::Table;

/// Interleaved, so that what else the machine does falls on all conditions; the median of them counts.
const ROUNDS: usize = 3;

const PATIENCE: Duration = Duration::from_secs(30);

/// The emulator's threads sleep rather than spin, so that the node's CPU time is that of the load.
const NODE_ARGUMENTS: [&str; 6] = ["+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"];

/// Prints the table, and leaves the numbers in `target/bench/bench.json`.
pub(crate) fn run(project: &Project) -> Result<()> {
    setup::ensure(Job::Bench)?;
    let shell = project.shell()?;
    cmd!(shell, "cargo build --release --locked --package beamscope").quiet().run()?;
    let folder = project.target.join("bench");
    fixtures::build(project, &fixtures::BENCH, &folder)?;

    let mut refusals = BTreeMap::new();
    for condition in Condition::ALL {
        if let Err(reason) = condition.prepare() {
            refusals.insert(condition, reason);
        }
    }
    let mut measures: BTreeMap<(Condition, Load), Vec<Measure>> = BTreeMap::new();
    for round in 1..=ROUNDS {
        for condition in Condition::ALL {
            if refusals.contains_key(&condition) {
                continue;
            }
            eprintln!("    round {round} of {ROUNDS}: {}", condition.name());
            let bare = measures.get(&(Condition::Bare, Load::Tight)).and_then(|all| all.first().copied());
            match measure(project, condition, bare) {
                Ok(outcome) => {
                    for (load, measure) in outcome {
                        measures.entry((condition, load)).or_default().push(measure);
                    }
                }
                Err(error) => {
                    refusals.insert(condition, format!("{error:#}"));
                }
            }
        }
    }
    let table = Table::new(&measures, &refusals);
    print!("{}", table.text());
    let path = folder.join("bench.json");
    fs::write(&path, table.json()?).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    match refusals.get(&Condition::Beamscope) {
        Some(reason) => bail!("beamscope itself was not measured: {reason}"),
        None => Ok(()),
    }
}

/// All loads on one fresh node under one condition.
fn measure(project: &Project, condition: Condition, bare: Option<Measure>) -> Result<Vec<(Load, Measure)>> {
    let mut node = Node::start(&project.target.join("bench"), &NODE_ARGUMENTS)?;
    Load::Warm.run(&mut node)?;
    let mut tool = condition.attach(project, node.pid())?;
    if let (Some(tool), Some(bare)) = (&mut tool, bare) {
        condition::await_effect(tool, &mut node, bare)?;
    }
    let mut outcome = Vec::new();
    for load in Load::MEASURED {
        outcome.push((load, load.run(&mut node)?));
        if let Some(tool) = &mut tool {
            tool.check_alive().with_context(|| format!("{} did not last", condition.name()))?;
        }
    }
    // A tool ends with its target; one that does not is killed.
    drop(node);
    if let Some(mut tool) = tool {
        tool.interrupt()?;
        tool.wait(PATIENCE)?;
    }
    Ok(outcome)
}
