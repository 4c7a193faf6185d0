//! Where are the project's folders, and how does a task run a command there?

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use xshell::Shell;

/// The work tree that this xtask was built from.
#[derive(Debug)]
pub(crate) struct Project {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target folder.
    pub(crate) target: PathBuf,
}

impl Project {
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no folder above it")?.to_owned();
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
        Ok(Self { root, target })
    }

    /// A shell in the project's root.
    pub(crate) fn shell(&self) -> Result<Shell> {
        let shell = Shell::new().context("the working folder is not readable")?;
        shell.change_dir(&self.root);
        Ok(shell)
    }

    /// The released command.
    pub(crate) fn beamscope(&self) -> PathBuf {
        self.target.join("release/beamscope")
    }
}
