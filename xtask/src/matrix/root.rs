//! How is a suite of Debian unpacked into a folder, and that folder removed again?

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    project::Project,
    setup::{self, Need, Packages, Presence},
};

const MMDEBSTRAP: Need = Need {
    what: "mmdebstrap",
    presence: Presence::Command("mmdebstrap"),
    packages: Packages::everywhere("mmdebstrap"),
};

const ERLANG: &str = "erlang-base,erlang-crypto,erlang-runtime-tools,erlang-tools";

/// The root of a suite in `target/roots`; it is made once.
pub(super) fn make(project: &Project, suite: &str) -> Result<PathBuf> {
    let folder = project.target.join("roots");
    let root = folder.join(suite);
    if root.exists() {
        return Ok(root);
    }
    setup::try_install(&[MMDEBSTRAP]).map_err(anyhow::Error::msg)?;
    let mirror = mirror()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // A root has its name only when it is complete.
    let unfinished = folder.join(format!("{suite}.unfinished"));
    remove(&unfinished)?;
    let made = unpack(suite, &unfinished, &mirror);
    if made.is_err() {
        remove(&unfinished)?;
    }
    made?;
    fs::rename(&unfinished, &root).with_context(|| format!("cannot name {}", root.display()))?;
    Ok(root)
}

fn unpack(suite: &str, root: &Path, mirror: &str) -> Result<()> {
    let status = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--mode=root"])
        .arg(format!("--include={ERLANG}"))
        // A mirror may lag behind, and be complete all the same.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(["doc", "man", "locale"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")))
        .arg(suite)
        .arg(root)
        .arg(mirror)
        // Standard output is for results.
        .stdout(io::stderr())
        .status()
        .context("mmdebstrap does not start")?;
    ensure!(status.success(), "mmdebstrap of {suite} ended with {status}");
    ensure_nothing_mounted(root)
}

/// The mirror of Debian that this machine's apt uses.
fn mirror() -> Result<String> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
        .output()
        .context("apt-get does not start")?;
    ensure!(output.status.success(), "apt-get indextargets: {}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8_lossy(&output.stdout);
    // The archives of security updates have another label.
    let found = listed.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    found.map(str::to_owned).context("apt's sources have no mirror of Debian, or `apt-get update` was never run")
}

/// Removes the folder, but nothing that is mounted in it.
fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    ensure_nothing_mounted(folder)?;
    let status = Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(folder).status()?;
    ensure!(status.success(), "cannot remove {}", folder.display());
    Ok(())
}

/// Fails where a file system is mounted in the folder.
pub(super) fn ensure_nothing_mounted(folder: &Path) -> Result<()> {
    let folder = folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?;
    let table = fs::read_to_string("/proc/self/mountinfo").context("the table of mounts is not readable")?;
    let mounted: Vec<_> = mount_points(&table).filter(|point| Path::new(point).starts_with(&folder)).collect();
    ensure!(mounted.is_empty(), "still mounted: {}", mounted.join(", "));
    Ok(())
}

/// The fifth word of each line of `/proc/PID/mountinfo`, which proc(5) describes.
fn mount_points(table: &str) -> impl Iterator<Item = String> {
    let unescaped = |word: &str| word.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\134", r"\");
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_spaces() {
        let table = "21 1 0:5 / /proc rw - proc proc rw\n22 1 0:6 / /a\\040b/dev rw shared:1 - tmpfs none rw\n";
        assert_eq!(mount_points(table).collect::<Vec<_>>(), ["/proc", "/a b/dev"]);
    }
}
