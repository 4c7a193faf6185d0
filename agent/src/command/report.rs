//! `beamscope report`: what does a recording say?

use std::{fs::File, path::Path};

use anyhow::Context as _;

use super::ending::{Ending, ending};
use crate::{
    cli::{Common, ReportArgs, ReportFormat, Writing},
    output::{self, Output},
    recording::Recording,
    report::{Options, Report, json, markdown, text},
    stored,
    wording::unit::Units,
};

pub(super) fn run(args: &ReportArgs, common: Common) -> anyhow::Result<Ending> {
    let ReportArgs { file, writing, fail_on, force } = args;
    let recording = read(file)?;
    let report = Report::new(&recording);
    let options = writing.options(Options::default().top);
    let rendered = match writing.format {
        ReportFormat::Json => json::render(&report, writing.top),
        ReportFormat::Markdown => markdown::of_recording(&report, options),
        ReportFormat::Text => text::render(&report, options),
    };
    writing.write(&rendered, *force, common)?;
    Ok(ending(fail_on, &report.verdicts))
}

/// Reads the recording at `path`.
pub(super) fn read(path: &Path) -> anyhow::Result<Recording> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    stored::read(file).with_context(|| format!("cannot read {}", path.display()))
}

impl Writing {
    fn units(&self) -> Units {
        if self.bytes { Units::Exact } else { Units::Iec }
    }

    /// What to show, where `rows` are the rows of a table unless something else was asked for.
    pub(super) fn options(&self, rows: usize) -> Options {
        Options { top: self.top.unwrap_or(rows), units: self.units() }
    }

    /// Writes the report to where it was asked for.
    pub(super) fn write(&self, rendered: &str, force: bool, common: Common) -> anyhow::Result<()> {
        match &self.output {
            None => output::print(rendered, common.color.into()),
            Some(path) => {
                let plain = output::plain(rendered);
                Output::create(path, force)?.commit(|out| Ok(out.write_all(plain.as_bytes())?))
            }
        }
    }
}
