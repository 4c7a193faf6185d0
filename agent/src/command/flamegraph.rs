//! `beamscope flamegraph`: which stacks hold the memory?

use anyhow::Context as _;

use super::report::read;
use crate::{
    cli::{Common, FlamegraphArgs},
    output::{self, Output},
    report::{Report, flame},
};

pub(super) fn run(args: &FlamegraphArgs, common: Common) -> anyhow::Result<()> {
    let FlamegraphArgs { file, output, measure, force } = args;
    let recording = read(file)?;
    let svg = flame::render(&Report::new(&recording), (*measure).into())
        .with_context(|| format!("no flame graph of {}", file.display()))?;
    Output::create(output, *force)?.commit(|out| Ok(out.write_all(svg.as_bytes())?))?;
    if common.quiet {
        return Ok(());
    }
    output::print(&format!("{}\n", output.display()), common.color.into())
}
