//! What does each command do? Reads, asks the core, and lets [`crate::output`] write.

mod diagnosis;
mod doctor;
mod explain;
mod flamegraph;
mod ps;
mod record;
mod report;

use crate::{
    cli::{Cli, Command, ReportFormat},
    output,
};

/// Runs the command that was asked for.
pub fn run(cli: &Cli) -> anyhow::Result<()> {
    let Cli { common, command } = cli;
    match command {
        Command::Ps(args) => output::print(&ps::ps(args.format == ReportFormat::Json)?, common.color.into()),
        Command::Doctor(args) => doctor::run(args, *common),
        Command::Explain(args) => explain::run(args, *common),
        Command::Record(args) => record::run(args, *common),
        Command::Report(args) => report::run(args, *common),
        Command::Flamegraph(args) => flamegraph::run(args, *common),
    }
}
