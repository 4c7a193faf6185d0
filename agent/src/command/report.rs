//! `beamscope report`: what does a recording say?

use std::{fs::File, path::Path};

use anyhow::Context as _;

use crate::{
    cli::{Common, ReportArgs, ReportFormat},
    output::{self, Output},
    recording::{Recording, file},
    report::{Report, json, text, unit::Units},
};

pub(super) fn run(args: &ReportArgs, common: Common) -> anyhow::Result<()> {
    let ReportArgs { file, format, top, bytes, output, force } = args;
    let recording = read(file)?;
    let report = Report::new(&recording);
    let rendered = match format {
        ReportFormat::Json => json::render(&report, *top),
        ReportFormat::Text => {
            let units = if *bytes { Units::Exact } else { Units::Iec };
            let defaults = text::Options::default();
            text::render(&report, text::Options { top: top.unwrap_or(defaults.top), units })
        }
    };
    match output {
        None => output::print(&rendered, common.color.into()),
        Some(path) => {
            let plain = output::plain(&rendered);
            Output::create(path, *force)?.commit(|out| Ok(out.write_all(plain.as_bytes())?))
        }
    }
}

/// Reads the recording at `path`.
pub(super) fn read(path: &Path) -> anyhow::Result<Recording> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file::read(file).with_context(|| format!("cannot read {}", path.display()))
}
