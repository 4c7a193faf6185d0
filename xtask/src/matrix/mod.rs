//! Does what beamscope knows of the VM hold on the OTP releases that people run, each as the binary of a Debian suite?

mod outcome;
mod release;
mod root;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    fixtures::{self, Set},
    project::Project,
    setup::{self, Job},
};
use outcome::{Cell, Outcome, Row};
pub(crate) use release::{FIXTURES, Suite, bring_up, host};

/// The tests that a release has to pass, by the modules of `tests/live` that hold them.
const TESTS: [&str; 4] = ["explain::", "code_table::", "processes::", "stacks::"];

/// What they need.
const SETS: [&Set; 2] = [&fixtures::ALLOCATORS, &fixtures::STACKS];

/// Runs the tests on this machine's own Erlang and on that of each suite, and fails unless all that was asked for
/// was run and passed.
pub(crate) fn run(project: &Project, suites: &[Suite], full: bool) -> Result<()> {
    setup::ensure(Job::Matrix)?;
    let nodes = project.target.join("nodes");
    SETS.iter().try_for_each(|set| fixtures::build(project, set, &nodes))?;
    let tests = tests(project)?;
    let mut rows =
        vec![row("this machine", host().context("this machine's Erlang"), |()| cells(project, &tests, None, full))?];
    for suite in suites {
        eprintln!("==> {}", suite.name());
        let root = bring_up(project, *suite, &SETS);
        rows.push(row(suite.name(), root, |root| cells(project, &tests, Some(&root), full))?);
    }
    print!("{}", outcome::table(&rows));
    let folder = project.target.join("matrix");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = folder.join("matrix.json");
    let json = serde_json::to_vec_pretty(&rows)?;
    fs::write(&file, json).with_context(|| format!("cannot write {}", file.display()))?;
    println!("written to {}", file.display());
    let open: Vec<_> = rows.iter().filter(|row| !row.is_well()).map(|row| row.release.as_str()).collect();
    ensure!(open.is_empty(), "not all is well on {}", open.join(", "));
    Ok(())
}

/// A release that is not there is a row without cells, with the reason.
fn row<T>(name: &str, release: Result<(String, T)>, cells: impl FnOnce(T) -> Result<Vec<Cell>>) -> Result<Row> {
    Ok(match release {
        Ok((otp, place)) => Row { release: name.to_owned(), otp: Some(otp), not_run: None, cells: cells(place)? },
        Err(error) => {
            eprintln!("    not run: {error:#}");
            Row { release: name.to_owned(), otp: None, not_run: Some(format!("{error:#}")), cells: Vec::new() }
        }
    })
}

fn suite_command(project: &Project) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&project.root).args(["test", "--package", "beamscope", "--test", "live", "--locked", "--"]);
    command.args(TESTS);
    command
}

/// The names of all tests of the suite.
fn tests(project: &Project) -> Result<Vec<String>> {
    let output =
        suite_command(project).arg("--list").stderr(Stdio::inherit()).output().context("cargo does not start")?;
    ensure!(output.status.success(), "the tests on live nodes cannot be built");
    let listed = String::from_utf8_lossy(&output.stdout);
    let names: Vec<_> = listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "there are no tests named {TESTS:?}");
    Ok(names)
}

/// Runs the suite on the Erlang in `root`, or on the machine's own.
fn cells(project: &Project, tests: &[String], root: Option<&Path>, full: bool) -> Result<Vec<Cell>> {
    let mut command = suite_command(project);
    command.arg("--test-threads=1");
    if full {
        command.arg("--include-ignored");
    }
    match root {
        Some(root) => command.env("BEAMSCOPE_TEST_ROOT", root),
        None => command.env_remove("BEAMSCOPE_TEST_ROOT"),
    };
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cargo does not start")?;
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().context("no stdout")?).lines() {
        let line = line.context("the tests print what is no text")?;
        eprintln!("    {line}");
        lines.push(line);
    }
    let status = child.wait()?;
    let cells = outcome::cells(tests, &lines);
    let failed = cells.iter().any(|cell| matches!(cell.outcome, Outcome::Fail | Outcome::NotReached));
    if status.success() == failed {
        bail!("the tests ended with {status}, and their lines say otherwise");
    }
    Ok(cells)
}
