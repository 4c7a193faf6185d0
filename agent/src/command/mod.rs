//! What does each command do? Reads, asks the core, and lets [`crate::output`] write.

mod diagnosis;
mod doctor;
mod ending;
mod explain;
mod flamegraph;
mod ps;
mod record;
mod report;

pub use self::ending::Ending;
use crate::{
    cli::{Cli, Command, ListFormat},
    output,
};

/// Runs the command that was asked for.
pub fn run(cli: &Cli) -> anyhow::Result<Ending> {
    let Cli { common, command } = cli;
    match command {
        Command::Ps(args) => output::print(&ps::ps(args.format == ListFormat::Json)?, common.color.into())?,
        Command::Doctor(args) => doctor::run(args, *common)?,
        Command::Explain(args) => return explain::run(args, *common),
        Command::Record(args) => return record::run(args, *common),
        Command::Report(args) => return report::run(args, *common),
        Command::Flamegraph(args) => flamegraph::run(args, *common)?,
    }
    Ok(Ending::Done)
}
