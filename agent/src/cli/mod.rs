//! What can be asked of the command, and in which words?

mod fail_on;

use std::{path::PathBuf, time::Duration};

use anstream::ColorChoice;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{judge::Condition, kernel::plan::StackEngine, recording::Mode, report::flame::Measure};

/// The command line.
#[derive(Clone, Debug, Parser)]
#[command(name = "beamscope", version, about, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Clone, Copy, Debug, Args)]
pub struct Common {
    /// Show no progress and no hints
    #[arg(long, short, global = true, help_heading = "Common options")]
    pub quiet: bool,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN", help_heading = "Common options")]
    pub color: Color,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl From<Color> for ColorChoice {
    fn from(color: Color) -> Self {
        match color {
            Color::Auto => Self::Auto,
            Color::Always => Self::Always,
            Color::Never => Self::Never,
        }
    }
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// List the Erlang nodes on this host
    Ps(PsArgs),
    /// Say what this kernel, user and node permit, and what is lost by it
    Doctor(DoctorArgs),
    /// Say where each resident byte of a node belongs, by one look from outside
    Explain(ExplainArgs),
    /// Follow the native allocations of a node and write a recording
    Record(RecordArgs),
    /// Say who holds the memory, by a recording
    Report(ReportArgs),
    /// Draw the stacks of a recording as a flame graph
    Flamegraph(FlamegraphArgs),
}

/// Arguments of `ps`.
#[derive(Clone, Debug, Args)]
pub struct PsArgs {
    /// How to write the list
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
}

/// Arguments of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// How to write what was found
    #[arg(long, value_enum, default_value_t)]
    pub format: ListFormat,
    /// The node: a pid, node name, registered name or container id; may be left out where there is only one
    pub target: Option<String>,
}

/// Arguments of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The node: a pid, node name, registered name or container id; may be left out where there is only one.
    /// Or a file: a memory image that --save-image wrote, or a core dump of a node
    #[arg(value_name = "TARGET|FILE")]
    pub target: Option<String>,
    /// How deep to look into the VM's allocators
    #[arg(long, value_enum, default_value_t)]
    pub depth: ExplainDepth,
    /// How long to walk blocks with --depth auto; what is left then is told by counters
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    pub time_budget: Duration,
    /// Keep what was looked at in a file, to be explained on any machine; it holds no contents of terms, binaries,
    /// tables or messages
    #[arg(long, value_name = "FILE")]
    pub save_image: Option<PathBuf>,
    /// The `beam.smp` of a core dump, where it does not lie at its old path
    #[arg(long, value_name = "FILE")]
    pub executable: Option<PathBuf>,
    /// How the report is written
    #[command(flatten)]
    pub writing: Writing,
    /// Exit with code 3 where one of these verdicts is confirmed: a list such as
    /// `native_leak>1MiB/min,fragmentation`, or `any`. A bound is a rate for what grows, else a size; quote it for the
    /// shell
    #[arg(long, value_name = "VERDICT[>BOUND]", value_delimiter = ',', value_parser = fail_on::parse_condition)]
    pub fail_on: Vec<Condition>,
    /// Replace files where they exist
    #[arg(long)]
    pub force: bool,
}

/// How deep to look into the VM's allocators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExplainDepth {
    /// Every block, as far as the time budget goes
    #[default]
    Auto,
    /// Every block
    Full,
    /// Every carrier, by the counters in its header
    Headers,
    /// The counters of the allocators alone
    Counters,
}

/// How a report is written.
#[derive(Clone, Debug, Args)]
pub struct Writing {
    /// How to write the report
    #[arg(long, value_enum, default_value_t)]
    pub format: ReportFormat,
    /// Rows of a table to show [default: as many as are worth it as text, all as JSON]
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// Write bytes as whole numbers, not as KiB, MiB, GiB
    #[arg(long)]
    pub bytes: bool,
    /// Write to a file and not to standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `record`.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// The node: a pid, node name, registered name or container id; may be left out where there is only one
    pub target: Option<String>,
    /// How long to record; Ctrl-C stops early and still writes
    #[arg(long, short, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Where to write the recording
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// How to look at the node
    #[arg(long, value_enum, default_value_t)]
    pub mode: RecordMode,
    /// Share of one processor's time that --mode auto may cost the node, in percent; 1 for a careful look in production
    #[arg(long, value_name = "PERCENT", default_value = "15", value_parser = parse_percent)]
    pub budget: f64,
    /// Exit with code 3 where one of these verdicts is confirmed: a list such as
    /// `native_leak>1MiB/min,fragmentation`, or `any`. A bound is a rate for what grows, else a size; quote it for the
    /// shell
    #[arg(long, value_name = "VERDICT[>BOUND]", value_delimiter = ',', value_parser = fail_on::parse_condition)]
    pub fail_on: Vec<Condition>,
    /// Replace the file where it exists
    #[arg(long)]
    pub force: bool,
    /// Mean number of allocated bytes between two captured stacks
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = parse_bytes)]
    pub sample_bytes: u64,
    /// Blocks that can be followed at the same time; each takes about 100 bytes of kernel memory
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u32).range(1024..))]
    pub max_live: u32,
    /// Follow mapping calls at the C library's functions, even where the kernel has tracepoints for system calls
    #[arg(long)]
    pub no_tracepoints: bool,
    /// Share of each processor's time that walking the stack of every allocation may take, in percent; beyond it, stacks
    /// are sampled
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = parse_percent)]
    pub walk_share: f64,
    /// Where stacks are walked [default: in the kernel where it can]
    #[arg(long, value_name = "ENGINE")]
    pub stack_engine: Option<EngineArg>,
    /// Follow what native code asks the VM for as well (`enif_alloc`, `driver_alloc`, resources, binaries); each of these
    /// calls, and each block that the VM frees, costs the node a microsecond or several
    #[arg(long)]
    pub vm_api: bool,
}

/// Where stacks are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// In the kernel, by unwind tables
    Kernel,
    /// In beamscope, from samples of the stack's memory
    Images,
}

impl From<EngineArg> for StackEngine {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Kernel => Self::Kernel,
            EngineArg::Images => Self::Images,
        }
    }
}

/// Ways to record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RecordMode {
    /// Growth always, and every call of the allocation functions as far as the budget goes
    #[default]
    Auto,
    /// Pages that become resident and requests for carriers: costs next to nothing, names owners and candidates
    Growth,
    /// Every call of the allocation functions, whatever it costs the node
    Exact,
}

impl From<RecordMode> for Mode {
    fn from(mode: RecordMode) -> Self {
        match mode {
            RecordMode::Auto => Self::Auto,
            RecordMode::Growth => Self::Growth,
            RecordMode::Exact => Self::Exact,
        }
    }
}

/// Arguments of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// The recording
    pub file: PathBuf,
    /// How the report is written
    #[command(flatten)]
    pub writing: Writing,
    /// Exit with code 3 where one of these verdicts is confirmed: a list such as
    /// `native_leak>1MiB/min,fragmentation`, or `any`. A bound is a rate for what grows, else a size; quote it for the
    /// shell
    #[arg(long, value_name = "VERDICT[>BOUND]", value_delimiter = ',', value_parser = fail_on::parse_condition)]
    pub fail_on: Vec<Condition>,
    /// Replace the file where it exists
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// Forms of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people
    #[default]
    Text,
    /// For programs: `beamscope.report/1`
    Json,
    /// For an issue tracker
    Markdown,
}

/// Forms of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Arguments of `flamegraph`.
#[derive(Clone, Debug, Args)]
pub struct FlamegraphArgs {
    /// The recording
    pub file: PathBuf,
    /// Where to write the SVG
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// Which bytes to draw
    #[arg(long, value_enum, default_value_t)]
    pub measure: FlameMeasure,
    /// Replace the file where it exists
    #[arg(long)]
    pub force: bool,
}

/// Which bytes to draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FlameMeasure {
    /// Allocated and not freed by the end
    #[default]
    Outstanding,
    /// Allocated
    Allocated,
    /// Allocated and freed
    Temporary,
}

impl From<FlameMeasure> for Measure {
    fn from(measure: FlameMeasure) -> Self {
        match measure {
            FlameMeasure::Outstanding => Self::Outstanding,
            FlameMeasure::Allocated => Self::Allocated,
            FlameMeasure::Temporary => Self::Temporary,
        }
    }
}

/// A week: longer ones are more likely a mistake than a wish.
const LONGEST: Duration = Duration::from_hours(7 * 24);

fn parse_duration(text: &str) -> Result<Duration, String> {
    let wanted = "expected a time such as 500ms, 10s, 2m or 1h";
    let (number, unit) = split_unit(text).ok_or(wanted)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" | "min" => 60 * 1000,
        "h" => 3600 * 1000,
        _ => return Err(wanted.into()),
    };
    let duration = number.checked_mul(milliseconds).map(Duration::from_millis).filter(|duration| *duration <= LONGEST);
    match duration {
        Some(Duration::ZERO) => Err("a recording takes longer than that".into()),
        Some(duration) => Ok(duration),
        None => Err("longer than a week".into()),
    }
}

/// A share of the whole, from 0 to 1.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_not_a_number| "expected a number such as 10")?;
    if (0.0..=100.0).contains(&number) { Ok(number / 100.0) } else { Err("must lie between 0 and 100".into()) }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let wanted = "expected a size such as 4096, 512KiB, 1MiB or 2GiB";
    let (number, unit) = split_unit(text).ok_or(wanted)?;
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(wanted.into()),
    };
    match number.checked_mul(1 << shift) {
        Some(0) => Err("must be larger than 0".into()),
        Some(bytes) => Ok(bytes),
        None => Err("larger than any memory".into()),
    }
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn declares_nothing_twice() {
        Cli::command().debug_assert();
    }

    #[test]
    fn reads_durations() {
        let good =
            [("500ms", 500), ("10s", 10_000), ("10", 10_000), ("2m", 120_000), ("2 min", 120_000), ("1h", 3_600_000)];
        for (text, milliseconds) in good {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "10y", "0s", "8000000000000h", "169h", "99999999999999999999s", "١s"] {
            parse_duration(text).expect_err(text);
        }
    }

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [("4096", 4096), ("512KiB", 512 << 10), ("1MiB", 1 << 20), ("2g", 2 << 30), ("7B", 7)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "0", "1MB", "1.5MiB", "99999999999GiB"] {
            parse_bytes(text).expect_err(text);
        }
    }
}
