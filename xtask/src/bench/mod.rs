//! What does a malloc and free pair cost a node: alone, under beamscope, and under its peers? And what else does
//! beamscope do to it: does it stall, does it pay where it calls no malloc, does it recover from a kill, and
//! what is a look at all of a node's memory?

mod beside;
mod budget;
mod condition;
mod copy;
mod cost;
mod explain;
mod growth;
mod kill;
mod load;
mod look;
mod spread;
mod stacks;
mod stall;
mod table;
mod vm_api;
mod without_malloc;

use std::{collections::BTreeMap, ffi::OsString, fs, iter, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
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

/// A measurement of beamscope alone, beside the table.
struct Section {
    text: String,
    json: Value,
}

type Measurement = fn(&Project) -> Result<Section>;

/// What there is beside the table, by its key in the JSON.
const SECTIONS: [(&str, Measurement); 8] = [
    ("without_malloc", without_malloc::measure),
    ("growth", growth::measure),
    ("vm_api", vm_api::measure),
    ("stall", stall::measure),
    ("after_kill", kill::measure),
    ("explain", explain::measure),
    ("budget", budget::measure),
    ("stacks", stacks::measure),
];

/// The table, by its key in the JSON.
const TABLE: &str = "conditions";

/// What can be run alone.
pub(crate) fn parts() -> impl Iterator<Item = &'static str> {
    iter::once(TABLE).chain(SECTIONS.map(|(key, _)| key))
}

/// The hidden task that [`cost::of`] starts.
pub(crate) fn cost(command: &[OsString]) -> Result<()> {
    cost::run(command)
}

/// Prints the table and the sections, and leaves the numbers in `target/bench/bench.json`; where only one of them is
/// asked for, in a file of that name.
pub(crate) fn run(project: &Project, only: Option<&str>) -> Result<()> {
    setup::ensure(Job::Bench)?;
    let shell = project.shell()?;
    cmd!(shell, "cargo build --release --locked --package beamscope").quiet().run()?;
    let folder = project.target.join("bench");
    fixtures::build(project, &fixtures::BENCH, &folder)?;

    let is_asked = |key: &str| only.is_none_or(|only| only == key);
    let mut report = Map::from_iter([
        ("schema".to_owned(), json!("beamscope.bench/1")),
        ("beamscope_command".to_owned(), json!(condition::COMMAND)),
    ]);
    let mut missing = Vec::new();
    if is_asked(TABLE) {
        let (table, is_measured) = conditions(project);
        print!("{}", table.text());
        report.insert(TABLE.to_owned(), table.json());
        if !is_measured {
            missing.push(TABLE);
        }
    }
    for (key, measure) in SECTIONS.into_iter().filter(|(key, _)| is_asked(key)) {
        let Section { text, json } = measure(project).unwrap_or_else(|error| {
            missing.push(key);
            let reason = format!("{error:#}");
            Section { text: format!("not run: {key}: {reason}\n"), json: json!({ "not_run": reason }) }
        });
        print!("\n{text}");
        report.insert(key.to_owned(), json);
    }
    let path = folder.join(only.unwrap_or("bench")).with_extension("json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    ensure!(missing.is_empty(), "beamscope itself was not measured for: {}", missing.join(", "));
    Ok(())
}

/// All rounds of all conditions, and whether beamscope was measured.
fn conditions(project: &Project) -> (Table, bool) {
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
    (Table::new(&measures, &refusals), !refusals.contains_key(&Condition::Beamscope))
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
