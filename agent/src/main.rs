//! The command `beamscope`: parses its arguments, runs, and says how it went by its exit code.

use std::process::ExitCode;

use beamscope::{cli::Cli, command};
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output and is no error; a reader that has gone away is none either.
            error.print().unwrap_or_default();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match command::run(&cli) {
        Ok(ending) => ending.into(),
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
