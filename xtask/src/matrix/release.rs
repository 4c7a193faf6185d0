//! Which releases are there, and how does one become ready for the tests?

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::root;
use crate::{
    fixtures::{self, Set},
    project::Project,
};

/// A suite of Debian, with the release of OTP that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// OTP 23, the last without the JIT
    Bullseye,
    /// OTP 25
    Bookworm,
    /// OTP 27
    Trixie,
    /// OTP 29 or later, without the VM's symbols
    Sid,
}

impl Suite {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// Where the compiled fixtures are in a root.
pub(crate) const FIXTURES: &str = "/nodes";

const SAY_RELEASE: [&str; 3] = ["-noshell", "-eval", "io:put_chars(erlang:system_info(otp_release)), halt()."];

/// The release of the machine's own Erlang.
pub(crate) fn host() -> Result<(String, ())> {
    Ok((run(Command::new("erl").args(SAY_RELEASE))?, ()))
}

/// The release of this suite, and its root with the compiled fixtures where the tests look for them.
pub(crate) fn bring_up(project: &Project, suite: Suite, sets: &[&Set]) -> Result<(String, PathBuf)> {
    let root = root::make(project, suite.name())?;
    let otp = run(Command::new("chroot").arg(&root).arg("erl").args(SAY_RELEASE))?;
    for set in sets {
        compile(project, &root, set)?;
    }
    root::ensure_nothing_mounted(&root)?;
    Ok((otp, root))
}

/// The modules by the compiler of that release, because a newer one's code may not load.
fn compile(project: &Project, root: &Path, set: &Set) -> Result<()> {
    let folder = root.join(FIXTURES.trim_start_matches('/'));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for original in fixtures::erlang_sources(project, set)? {
        let name = original.file_name().context("a source has a name")?;
        fs::copy(&original, folder.join(name)).with_context(|| format!("cannot copy {}", original.display()))?;
    }
    for name in set.modules() {
        let inside = format!("{FIXTURES}/{name}.erl");
        run(Command::new("chroot").arg(root).args(["erlc", "-Wall", "-Werror", "-o", FIXTURES, &inside]))?;
    }
    fixtures::build_libraries(project, set, &folder, Some(root))
}

/// What a command prints.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?} does not start"))?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}: {said}{errors}", output.status);
    Ok(said.trim().to_owned())
}
