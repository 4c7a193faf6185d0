//! How are the memory images made that the tests read? From a small node of each release, stopped while it is looked at.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use xshell::cmd;

use crate::{
    fixtures,
    matrix::{self, Suite},
    node::Node,
    project::Project,
    setup::{self, Job},
};

/// Where the tests find them.
const FOLDER: &str = "tests/hermetic/images";

const PATIENCE: Duration = Duration::from_mins(1);

/// Writes an image of this machine's own Erlang and of that of each suite.
pub(crate) fn run(project: &Project, suites: &[Suite]) -> Result<()> {
    setup::ensure(Job::Matrix)?;
    let shell = project.shell()?;
    cmd!(shell, "cargo build --release --locked --package beamscope").quiet().run()?;
    let nodes = project.target.join("nodes");
    fixtures::build(project, &fixtures::ALLOCATORS, &nodes)?;
    let folder = project.root.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (otp, ()) = matrix::host()?;
    image(project, Node::start(&nodes, &[])?, &otp, &folder)?;
    for suite in suites {
        let (otp, root) = matrix::bring_up(project, *suite, &[&fixtures::ALLOCATORS])?;
        image(project, Node::start_in(&root, Path::new(matrix::FIXTURES), &[])?, &otp, &folder)?;
    }
    Ok(())
}

fn image(project: &Project, mut node: Node, otp: &str, folder: &Path) -> Result<()> {
    node.call("allocators small", PATIENCE)?;
    node.call("allocators settle", PATIENCE)?;
    let file = folder.join(format!("otp-{otp}.image"));
    signal(node.pid(), "-STOP")?;
    let saved = Command::new(project.target.join("release/beamscope"))
        .args(["explain", "--quiet", "--force", &node.pid().to_string(), "--save-image"])
        .arg(&file)
        .output();
    // Before anything else: a node that stands still would not end by itself.
    signal(node.pid(), "-CONT")?;
    let saved = saved.context("beamscope does not start")?;
    ensure!(saved.status.success(), "no image of OTP {otp}: {}", String::from_utf8_lossy(&saved.stderr));
    println!("{}", file.display());
    Ok(())
}

fn signal(pid: u32, signal: &str) -> Result<()> {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status().context("cannot run kill")?;
    ensure!(status.success(), "kill {signal} {pid}: {status}");
    Ok(())
}
