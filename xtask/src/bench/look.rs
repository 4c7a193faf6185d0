//! What does one run of `beamscope explain` cost, how far did it get, and what was there?

use std::{collections::BTreeMap, fs::File, io::BufReader, process::Command};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::cost::{self, Cost};
use crate::project::Project;

/// The values of `--depth`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Auto,
    Full,
    Headers,
    Counters,
}

/// One snapshot.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Look {
    pub(super) cost: Cost,
    pub(super) depth: DepthReport,
    pub(super) carrier_bytes: u64,
    /// Of the carriers with several blocks, which alone have something to walk.
    pub(super) multi_block_bytes: u64,
    pub(super) blocks: u64,
}

/// What of `beamscope.report/1` is asked for here.
#[derive(Debug, Deserialize)]
struct Report {
    depth: DepthReport,
    allocators: Vec<Instance>,
}

/// How deep a look was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DepthReport {
    pub(super) reached: String,
    pub(super) carriers: u64,
    pub(super) walked: u64,
    pub(super) gone: u64,
}

#[derive(Debug, Deserialize)]
struct Instance {
    carrier_bytes: u64,
    walked: BTreeMap<String, Walked>,
    /// Not there where only the allocators' own counters were read.
    blocks: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Walked {
    carrier_bytes: u64,
}

/// The kind of carriers that hold one block each.
const SINGLE_BLOCK: &str = "sbcs";

impl Depth {
    pub(super) const ALL: [Self; 4] = [Self::Auto, Self::Full, Self::Headers, Self::Counters];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
            Self::Headers => "headers",
            Self::Counters => "counters",
        }
    }
}

impl Look {
    /// Runs the command, and reads the report that it leaves in a file.
    pub(super) fn take(project: &Project, pid: u32, depth: Depth) -> Result<Self> {
        let file = project.target.join("bench/look.json");
        let mut command = Command::new(project.beamscope());
        command.args(["explain", &pid.to_string(), "--format", "json", "--depth", depth.name(), "--force", "--output"]);
        let cost = cost::of(command.arg(&file))?;
        let report = File::open(&file).with_context(|| format!("cannot open {}", file.display()))?;
        let Report { depth, allocators } = serde_json::from_reader(BufReader::new(report))
            .with_context(|| format!("{} is no report", file.display()))?;
        let multi_block = |(kind, walked): (&String, &Walked)| (kind != SINGLE_BLOCK).then_some(walked.carrier_bytes);
        let multi_block_bytes =
            allocators.iter().flat_map(|instance| instance.walked.iter().filter_map(multi_block)).sum();
        let carrier_bytes = allocators.iter().map(|instance| instance.carrier_bytes).sum();
        let blocks = allocators.iter().filter_map(|instance| instance.blocks).sum();
        Ok(Self { cost, depth, carrier_bytes, multi_block_bytes, blocks })
    }
}
