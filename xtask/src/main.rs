//! Which task does `cargo xtask NAME` run?
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a task talks to the person who started it")]

mod bench;
mod demo;
mod fixtures;
mod images;
mod matrix;
mod node;
mod probe;
mod project;
mod scenarios;
mod setup;
mod test;
mod tidy;
mod watched;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, builder::PossibleValuesParser};

use matrix::Suite;
use project::Project;

/// Tasks of the beamscope project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Measure what beamscope costs a node: a malloc and free pair, bare, under beamscope and under its peers; a stall; a
    /// look.
    Bench {
        /// Run this part alone; its figures go into a file of its own, `target/bench/PART.json`.
        #[arg(long, value_name = "PART", value_parser = PossibleValuesParser::new(bench::parts()))]
        only: Option<String>,
    },
    /// Run one program and print what it cost; for `bench`, which runs it in a process of its own.
    #[command(hide = true)]
    Cost {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Start a small leaky Erlang node, record it, and show the report and the flame graph.
    Demo,
    /// Compile the Erlang, C, C++ and Rust fixtures of `tests/nodes` into `target/nodes`.
    Fixtures,
    /// Record the memory images of `tests/hermetic/images` anew, of this machine's own Erlang and of other releases.
    Images {
        /// The suites of Debian whose Erlang is taken, beside this machine's own.
        #[arg(value_enum, default_values_t = [Suite::Bullseye, Suite::Trixie, Suite::Sid])]
        suites: Vec<Suite>,
    },
    /// Run the live tests of `explain`, of stacks and of what they are made of on other OTP releases, each in a root of a
    /// Debian suite; needs root.
    ///
    /// Roots are made by mmdebstrap in `target/roots` and kept; remove one to have it made anew. The table is also
    /// written to `target/matrix/matrix.json`. Fails unless all that was asked for was run and passed.
    Matrix {
        /// Also run what needs 3 GB of memory.
        #[arg(long)]
        full: bool,
        /// The suites to run on, after this machine's own Erlang.
        #[arg(value_enum, default_values_t = [Suite::Bullseye, Suite::Trixie, Suite::Sid])]
        suites: Vec<Suite>,
    },
    /// Build the BPF objects into `probe/prebuilt`.
    Probe {
        /// Fail if the checked-in objects are not those of the sources; writes nothing into the project.
        #[arg(long)]
        check: bool,
    },
    /// Run workloads whose truth is known, judge them, and print how often each answer was right; needs root.
    ///
    /// Fails unless all answers were right.
    Scenarios {
        /// How often to run the suite.
        #[arg(long, value_name = "N", default_value_t = 1)]
        times: u32,
        /// The scenarios to run.
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        only: Vec<String>,
        /// Seconds to record each, in the stead of its own.
        #[arg(long, value_name = "S")]
        seconds: Option<u32>,
    },
    /// Check and test everything; needs root. CI runs this.
    Test,
    /// Check the rules that no compiler checks: length of files, I/O in the core, licences.
    Tidy,
}

fn main() -> ExitCode {
    let task = Task::parse();
    let result = Project::find().and_then(|project| match task {
        Task::Bench { only } => bench::run(&project, only.as_deref()),
        Task::Cost { command } => bench::cost(&command),
        Task::Demo => demo::run(&project),
        Task::Fixtures => fixtures::run(&project),
        Task::Images { suites } => images::run(&project, &suites),
        Task::Matrix { full, suites } => matrix::run(&project, &suites, full),
        Task::Scenarios { times, only, seconds } => scenarios::run(&project, times, &only, seconds),
        Task::Test => test::run(&project),
        Task::Tidy => tidy::run(&project),
        Task::Probe { check: true } => probe::check(&project),
        Task::Probe { check: false } => probe::build(&project),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
