//! How often is each scenario of `tests/live/scenarios` judged right?

mod confusion;

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    fixtures,
    project::Project,
    setup::{self, Job},
};
use confusion::{Run, scenarios, table};

/// Runs the suite so many times, prints what came of each scenario and which answers were given, and fails unless all
/// were right.
pub(crate) fn run(project: &Project, times: u32, only: &[String], seconds: Option<u32>) -> Result<()> {
    setup::ensure(Job::Test)?;
    fixtures::build_all(project, &project.target.join("nodes"))?;
    let folder = project.target.join("scenarios");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut runs = Vec::new();
    for time in 1..=times {
        eprintln!("==> run {time} of {times}");
        let file = folder.join(format!("{time}.jsonl"));
        fs::write(&file, "").with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new("cargo");
        command.current_dir(&project.root).args(["test", "--package", "beamscope", "--test", "live", "--locked", "--"]);
        command.args(["scenarios::", "--test-threads=1"]).stdin(Stdio::null());
        command.env("BEAMSCOPE_SCENARIOS_OUTCOMES", &file);
        let names = if only.is_empty() { "all".to_owned() } else { only.join(",") };
        command.env("BEAMSCOPE_SCENARIOS_ONLY", names);
        if let Some(seconds) = seconds {
            command.env("BEAMSCOPE_SCENARIOS_SECONDS", seconds.to_string());
        }
        let status = command.status().context("cargo does not start")?;
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let found = text.lines().map(serde_json::from_str).collect::<Result<Vec<Run>, _>>();
        let found = found.with_context(|| format!("{} is not as the tests write it", file.display()))?;
        ensure!(!found.is_empty(), "no scenario was run: the tests ended with {status}");
        let failed = found.iter().any(|run| !run.is_right());
        ensure!(status.success() != failed, "the tests ended with {status}, and their outcomes say otherwise");
        for name in only {
            ensure!(found.iter().any(|run| run.scenario == *name), "there is no scenario {name}");
        }
        runs.extend(found);
    }
    print!("{}\n{}", scenarios(&runs), table(&runs));
    let wrong = runs.iter().filter(|run| !run.is_right()).count();
    ensure!(wrong == 0, "{wrong} of {} runs of scenarios were judged wrong", runs.len());
    Ok(())
}
