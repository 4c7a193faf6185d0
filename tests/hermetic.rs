//! Runs the built command on recordings made from values; needs no node, no root and no BPF.
//!
//! `SNAPSHOTS=overwrite` writes the expected output anew; read the difference before it is committed.
#![expect(clippy::expect_used, reason = "what fails in a helper of a test fails the test")]

#[path = "hermetic/errors.rs"]
mod errors;
#[path = "hermetic/images.rs"]
mod images;
#[path = "hermetic/renderings.rs"]
mod renderings;
#[path = "hermetic/rows/mod.rs"]
mod rows;
#[path = "hermetic/sample.rs"]
mod sample;

use std::path::{Path, PathBuf};

use beamscope::{recording::Recording, stored};
use snapbox::{Data, cmd::Command};
use tempfile::TempDir;

/// The command, in the folder `at`, with a fixed width and no colours of the environment.
fn beamscope(at: &Path) -> Command {
    Command::new(env!("CARGO_BIN_EXE_beamscope"))
        .current_dir(at)
        .env("COLUMNS", "90")
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .env_remove("RUST_BACKTRACE")
}

/// A folder with `recording` as `node.bscope`.
fn folder_with(recording: &Recording) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for the test");
    std::fs::write(folder.path().join("node.bscope"), bytes_of(recording)).expect("the recording is written");
    folder
}

fn bytes_of(recording: &Recording) -> Vec<u8> {
    let mut bytes = Vec::new();
    stored::write(recording, &mut bytes).expect("a vector takes everything");
    bytes
}

/// What is expected, letter by letter.
fn snapshot(name: &str) -> Data {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/hermetic/expected").join(name);
    Data::read_from(&path, Some(snapbox::data::DataFormat::Text)).raw()
}
