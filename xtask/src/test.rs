//! Is everything in order? What CI runs, and the README's command for it.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use xshell::{Shell, cmd};

use crate::{
    fixtures, probe,
    project::Project,
    setup::{self, Job, on_path},
    tidy,
};

/// Stops at the first step that fails.
pub(crate) fn run(project: &Project) -> Result<()> {
    let shell = project.shell()?;
    setup::ensure(Job::Test)?;
    step("parts of the Rust tool chain", || {
        component(&shell, "fmt", "rustfmt")?;
        component(&shell, "clippy", "clippy")
    })?;
    step("format", || Ok(cmd!(shell, "cargo fmt --check").quiet().run()?))?;
    step("rules of the house", || tidy::run(project))?;
    step("BPF objects", || probe::check(project))?;
    step("clippy", || {
        Ok(cmd!(shell, "cargo clippy --workspace --all-targets --locked -- -D warnings").quiet().run()?)
    })?;
    step("documentation", || {
        let command = cmd!(shell, "cargo doc --workspace --no-deps --locked");
        Ok(command.env("RUSTDOCFLAGS", "-D warnings").quiet().run()?)
    })?;
    step("tests", || Ok(cmd!(shell, "cargo test --workspace --locked").quiet().run()?))?;
    step("tests on live nodes", || {
        fixtures::build_all(project, &project.target.join("nodes"))?;
        let command = cmd!(shell, "cargo test --package beamscope --test live --locked -- --test-threads=1");
        Ok(command.quiet().run()?)
    })?;
    println!("all is well");
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let begin = Instant::now();
    let result = work();
    let seconds = begin.elapsed().as_secs_f64();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    println!("    {name}: {outcome} after {seconds:.1} s");
    result.with_context(|| format!("step \"{name}\""))
}

/// Adds a part of the Rust tool chain that a minimal rustup profile leaves out.
fn component(shell: &Shell, command: &str, name: &str) -> Result<()> {
    if cmd!(shell, "cargo {command} --version").quiet().ignore_stdout().ignore_stderr().run().is_ok() {
        return Ok(());
    }
    if !on_path("rustup") {
        bail!("cargo {command} is missing: install the part {name} of your Rust tool chain");
    }
    cmd!(shell, "rustup component add {name}").run().with_context(|| format!("{name} is missing and cannot be added"))
}
