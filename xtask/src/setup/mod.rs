//! Is everything there that a task needs, and if not, can it be installed here?

mod need;
mod plan;

use std::{fs, io, os::unix::fs::MetadataExt as _, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) use need::{Job, Need, Packages, Presence, on_path};
use plan::{Machine, Plan};

/// Returns when everything that `job` needs is there. Changes nothing when it already is, or when it cannot all be had.
pub(crate) fn ensure(job: Job) -> Result<()> {
    match plan::plan(job, &machine(), &need::missing(job.needs())) {
        Plan::Ready => Ok(()),
        Plan::Refuse(message) => bail!(message),
        Plan::Install(packages) => {
            install(&packages)?;
            let left: Vec<_> = need::missing(job.needs()).iter().map(|need| need.what).collect();
            ensure!(left.is_empty(), "installed {}, and still missing: {}", packages.join(" "), left.join(", "));
            Ok(())
        }
    }
}

/// Installs the packages of what is missing of `needs`, if this machine is one where that can be done.
/// Returns why not otherwise, for tasks that can do without.
pub(crate) fn try_install(needs: &[Need]) -> Result<(), String> {
    let missing = need::missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let machine = machine();
    let names = missing.iter().map(|need| need.what).collect::<Vec<_>>().join(", ");
    if !machine.can_install() {
        return Err(format!("{names} missing, and installing needs Debian or Ubuntu, and root"));
    }
    install(&plan::packages(&machine, &missing)).map_err(|error| format!("{names} missing, and {error:#}"))?;
    let left: Vec<_> = need::missing(needs).iter().map(|need| need.what).collect();
    if left.is_empty() { Ok(()) } else { Err(format!("{} missing after the installation", left.join(", "))) }
}

fn machine() -> Machine {
    // The owner of /proc/self is our effective user; without /proc nothing of beamscope works anyway.
    let uid = fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid());
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    Machine::new(&os_release, uid)
}

fn install(packages: &[&str]) -> Result<()> {
    eprintln!("==> install {}", packages.join(" "));
    apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--"];
    arguments.extend(packages);
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(["-q", "-o", "DPkg::Lock::Timeout=600"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Standard output is for results.
        .stdout(io::stderr())
        .status()
        .context("apt-get does not start")?;
    ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
    Ok(())
}
