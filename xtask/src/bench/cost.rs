//! What does one run of a program cost: time, CPU time and memory?
//!
//! `getrusage(RUSAGE_CHILDREN)` sums up the CPU time of all children that were waited for, and of their peaks of memory
//! it tells the largest (getrusage(2)). Both are exact for one child of a process that has had no other, so the program
//! is run by such a process: this executable once more, as `cargo xtask cost`. What /proc tells of a peak goes when the
//! program ends, so that reading it there is a race.

use std::{
    ffi::OsString,
    fs,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::{TimeVal, TimeValLike as _},
};
use serde::{Deserialize, Serialize};

/// What one run cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cost {
    pub(super) wall_ms: f64,
    pub(super) user_ms: f64,
    pub(super) system_ms: f64,
    /// The most resident memory it had at a time.
    pub(super) peak_bytes: u64,
}

/// Runs `command` in the way that is said above. What it prints to stdout is lost.
pub(super) fn of(command: &Command) -> Result<Cost> {
    // The name of the file may be that of a newer build by now.
    let mut runner = Command::new("/proc/self/exe");
    runner.arg("cost").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    let output = runner.output().context("this task's executable does not start once more")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}", command.get_program().display(), said.trim());
    serde_json::from_slice(&output.stdout).context("the cost of a run is not readable")
}

/// The other side of [`of`]: runs the program, and prints what it cost.
pub(super) fn run(command: &[OsString]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program to run")?;
    let begin = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("{} does not start", program.display()))?;
    let wall_ms = begin.elapsed().as_secs_f64() * 1e3;
    ensure!(status.success(), "it ended with {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let peak_bytes = peak(&usage)?;
    // Before its exec a child is in its parent's memory, and the kernel counts that as its own (`exec_mmap`).
    let floor = status_bytes("self", "VmHWM")?;
    ensure!(peak_bytes > floor, "it had no more memory than the {floor} bytes of the process that started it");
    let cost = Cost { wall_ms, user_ms: ms(usage.user_time()), system_ms: ms(usage.system_time()), peak_bytes };
    println!("{}", serde_json::to_string(&cost)?);
    Ok(())
}

fn peak(usage: &Usage) -> Result<u64> {
    let kib = u64::try_from(usage.max_rss()).context("a negative peak of memory")?;
    Ok(kib * 1024)
}

fn ms(time: TimeVal) -> f64 {
    time.num_microseconds() as f64 / 1e3
}

/// A figure in kB from `/proc/PID/status`.
fn status_bytes(pid: &str, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    kib(&text, name).map(|kib| kib * 1024).with_context(|| format!("{path} has no {name}"))
}

/// Reads a line `NAME:  N kB`, as several files of /proc have them.
pub(super) fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_proc_are_found_by_their_whole_name() {
        let text = "VmHWMax:\t    1 kB\nVmHWM:\t    7812 kB\nThreads:\t1\n";
        assert_eq!(kib(text, "VmHWM"), Some(7812));
        assert_eq!(kib(text, "VmHW"), None);
        assert_eq!(kib(text, "Threads"), None);
    }
}
