//! What does each command do? Reads, asks the core, and lets [`crate::output`] write.

mod flamegraph;
mod pending;
mod record;
mod report;

use crate::cli::{Cli, Command};

/// Runs the command that was asked for.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    let Cli { common, command } = cli;
    match command {
        Command::Ps => pending::ps(),
        Command::Doctor(_) => pending::doctor(),
        Command::Record(args) => record::run(args, common),
        Command::Report(args) => report::run(args, common),
        Command::Flamegraph(args) => flamegraph::run(args, common),
    }
}
