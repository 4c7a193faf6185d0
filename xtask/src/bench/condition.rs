//! What watches the node while it is measured, and how does it get there?

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    PATIENCE,
    load::{Load, Measure},
};
use crate::{
    node::Node,
    project::Project,
    setup::{self, Need, Packages, Presence},
    watched::{Echo, Watched},
};

/// What every figure of beamscope is of.
pub(super) const COMMAND: &str = "beamscope record --mode exact";

/// In the order in which they are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition {
    /// Nothing.
    Bare,
    /// [`COMMAND`].
    Beamscope,
    /// bpftrace with the sizes of live blocks by address: the least that finds a leak.
    Bpftrace,
    /// bpftrace that keeps each block's stack too: what is needed to name the leak.
    BpftraceStacks,
    /// bcc's memleak.
    Memleak,
    /// heaptrack, injected into the running node.
    Heaptrack,
}

impl Condition {
    pub(super) const ALL: [Self; 6] =
        [Self::Bare, Self::Beamscope, Self::Bpftrace, Self::BpftraceStacks, Self::Memleak, Self::Heaptrack];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Beamscope => "beamscope exact",
            Self::Bpftrace => "bpftrace live map",
            Self::BpftraceStacks => "bpftrace with stacks",
            Self::Memleak => "bcc memleak",
            Self::Heaptrack => "heaptrack attach",
        }
    }

    /// Installs what is needed where that is possible; else the reason why this condition cannot be run.
    pub(super) fn prepare(self) -> Result<(), String> {
        match self {
            Self::Bare | Self::Beamscope => Ok(()),
            Self::Bpftrace | Self::BpftraceStacks => setup::try_install(&[tool("bpftrace", "bpftrace")]),
            Self::Memleak => {
                kernel_headers()?;
                setup::try_install(&[tool("memleak-bpfcc", "bpfcc-tools")])
            }
            Self::Heaptrack => setup::try_install(&[tool("heaptrack", "heaptrack"), tool("gdb", "gdb")]),
        }
    }

    /// Starts the tool, if this condition has one.
    pub(super) fn attach(self, project: &Project, pid: u32) -> Result<Option<Watched>> {
        let folder = project.target.join("bench");
        let pid_text = pid.to_string();
        let mut command = match self {
            Self::Bare => return Ok(None),
            Self::Beamscope => record(project, pid, "exact", Duration::from_mins(2)),
            Self::Bpftrace | Self::BpftraceStacks => {
                let mut command = Command::new("bpftrace");
                command.env("BPFTRACE_MAP_KEYS_MAX", "1000000");
                command.args(["-p", &pid_text, "-e", &script(&libc_of(pid)?, self == Self::BpftraceStacks)]);
                command
            }
            Self::Memleak => {
                let mut command = Command::new("memleak-bpfcc");
                command.args(["-p", &pid_text, "600"]);
                command
            }
            Self::Heaptrack => {
                let mut command = Command::new("heaptrack");
                command.args(["--raw", "-o"]).arg(folder.join("heaptrack")).args(["--pid", &pid_text]);
                command
            }
        };
        let mut tool = Watched::start(&mut command, Echo::No)?;
        if self == Self::Beamscope {
            tool.await_line("recording", PATIENCE)?;
        }
        Ok(Some(tool))
    }
}

/// Records in `mode`, with all else as it is for a user who asks for nothing.
pub(super) fn record(project: &Project, pid: u32, mode: &str, duration: Duration) -> Command {
    let mut command = Command::new(project.beamscope());
    command.args(["record", &pid.to_string(), "--mode", mode]);
    command.args(["-d", &format!("{}s", duration.as_secs()), "--force", "-o"]);
    command.arg(project.target.join("bench/bench.bscope"));
    command
}

/// Returns when a pair costs more than it does in a bare node: only then is a tool really there, whatever it prints.
pub(super) fn await_effect(tool: &mut Watched, node: &mut Node, bare: Measure) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Load::Warm.run(node)?.cpu_ns_each() < 3.0 * bare.cpu_ns_each() {
        tool.check_alive()?;
        ensure!(Instant::now() < deadline, "it had no effect on the node in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(200));
    }
    // heaptrack's injection and bpftrace's last probe may still be under way.
    let settled = Instant::now() + Duration::from_secs(1);
    while Instant::now() < settled {
        Load::Warm.run(node)?;
    }
    tool.check_alive()
}

fn tool(command: &'static str, package: &'static str) -> Need {
    Need { what: command, presence: Presence::Command(command), packages: Packages::everywhere(package) }
}

/// memleak compiles its program against the headers of the running kernel.
fn kernel_headers() -> Result<(), String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let places = [format!("/lib/modules/{release}/build"), "/sys/kernel/kheaders.tar.xz".to_owned()];
    if places.iter().any(|place| Path::new(place).exists()) {
        return Ok(());
    }
    Err(format!("no headers of kernel {release}: neither {} exists", places.join(" nor ")))
}

/// The C library that the node has mapped.
fn libc_of(pid: u32) -> Result<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).with_context(|| format!("cannot read maps of {pid}"))?;
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let mut libc =
        paths.filter(|path| path.contains("/libc.so") || path.contains("/libc-") || path.contains("/ld-musl"));
    Ok(libc.next().context("the node has mapped no C library")?.to_owned())
}

fn script(libc: &str, stacks: bool) -> String {
    let (keep, forget) = if stacks { ("@stack[retval] = ustack(16);", "delete(@stack[arg0]);") } else { ("", "") };
    format!(
        "uprobe:{libc}:malloc {{ @asked[tid] = arg0; }}
         uretprobe:{libc}:malloc /@asked[tid]/ {{ @live[retval] = @asked[tid]; {keep} delete(@asked[tid]); }}
         uprobe:{libc}:free {{ delete(@live[arg0]); {forget} }}
         END {{ clear(@asked); clear(@live); {} }}",
        if stacks { "clear(@stack);" } else { "" }
    )
}
