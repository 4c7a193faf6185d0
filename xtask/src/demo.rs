//! What does beamscope do for a new user? Starts a leaky node, records it, and shows what was found.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xshell::cmd;

use crate::{
    fixtures,
    node::Node,
    project::Project,
    setup::{self, Job},
    watched::{Echo, Watched},
};

const SECONDS: u64 = 10;
const PATIENCE: Duration = Duration::from_mins(1);

/// Leaves the recording and the flame graph in `target/demo`, and no process behind.
pub(crate) fn run(project: &Project) -> Result<()> {
    setup::ensure(Job::Demo)?;
    let shell = project.shell()?;
    step("build beamscope");
    cmd!(shell, "cargo build --release --locked --package beamscope").quiet().run()?;
    let beamscope = project.beamscope();

    step("start a node with a NIF that leaks");
    let folder = project.target.join("demo");
    fixtures::build(project, &fixtures::DEMO, &folder)?;
    let mut node = Node::start(&folder, &[])?;
    node.call("thumbnails start", PATIENCE)?;
    let pid = node.pid().to_string();
    eprintln!("    pid {pid}: takes 1000 uploads a second, makes a thumbnail of each in C, keeps it in an ETS table");

    step(&format!("record it for {SECONDS} s"));
    let recording = folder.join("demo.bscope");
    let mut recorder = Watched::start(
        Command::new(&beamscope).args(["record", &pid, "-d", &format!("{SECONDS}s"), "--force", "-o"]).arg(&recording),
        Echo::Stderr,
    )?;
    recorder.await_line("recording", PATIENCE)?;
    let armed = Instant::now();
    let before = leaked(&mut node)?;
    thread::sleep(Duration::from_secs(SECONDS).saturating_sub(armed.elapsed()));
    let leaked = leaked(&mut node)?.saturating_sub(before);
    let status = recorder.wait(PATIENCE)?;
    ensure!(status.success(), "beamscope record ended with {status}");

    step("report");
    cmd!(shell, "{beamscope} report {recording}").quiet().run()?;
    let flamegraph = folder.join("leak.svg");
    cmd!(shell, "{beamscope} flamegraph {recording} -o {flamegraph} --force").quiet().ignore_stdout().run()?;
    drop(node);

    step("done; the node is stopped");
    println!("The NIF says that it leaked {leaked} bytes in these {SECONDS} s (copy_colour_profile in thumbnails.so).");
    println!("flame graph: {}   (open it in a browser)", flamegraph.display());
    println!("recording:   {}", recording.display());
    println!("try:         {} report {} --format json", beamscope.display(), recording.display());
    Ok(())
}

fn leaked(node: &mut Node) -> Result<u64> {
    let answer = node.call("thumbnails leaked", PATIENCE)?;
    answer.parse().with_context(|| format!("the NIF's count is {answer:?}"))
}

fn step(what: &str) {
    eprintln!("==> {what}");
}
