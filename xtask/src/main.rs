//! Which task does `cargo xtask NAME` run?
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task talks to the person who started it")]

mod demo;
mod fixtures;
mod node;
mod project;
mod setup;
mod watched;

use std::process::ExitCode;

use clap::Parser;

use project::Project;

/// Tasks of the beamscope project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Start a small leaky Erlang node, record it, and show the report and the flame graph.
    Demo,
    /// Compile the Erlang and C fixtures of `tests/nodes` into `target/nodes`.
    Fixtures,
}

fn main() -> ExitCode {
    let task = Task::parse();
    let result = Project::find().and_then(|project| match task {
        Task::Demo => demo::run(&project),
        Task::Fixtures => fixtures::run(&project),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
