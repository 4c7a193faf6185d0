//! What the command says when something is wrong: one message that names the thing and the next step.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use snapbox::Data;

use crate::{beamscope, bytes_of, folder_with, sample};

fn check(at: &Path, arguments: &[&str], code: i32, message: &str) {
    beamscope(at).args(arguments).assert().code(code).stdout_eq("").stderr_eq(Data::text(format!("{message}\n")).raw());
}

#[test]
fn no_recording() {
    let folder = folder_with(&sample::recording());
    let at = folder.path();
    check(
        at,
        &["report", "absent.bscope"],
        1,
        "error: cannot open absent.bscope: No such file or directory (os error 2)",
    );
    fs::write(at.join("text"), "hello").expect("is written");
    check(at, &["report", "text"], 1, "error: cannot read text: not a beamscope recording");
    check(
        at,
        &["flamegraph", ".", "-o", "a.svg"],
        1,
        "error: cannot read .: the file cannot be read: Is a directory (os error 21)",
    );
    assert!(!at.join("a.svg").exists());
}

#[test]
fn broken_recordings() {
    let folder = folder_with(&sample::recording());
    let at = folder.path();
    let mut bytes = bytes_of(&sample::recording());
    fs::write(at.join("cut"), &bytes[..bytes.len() / 2]).expect("is written");
    check(
        at,
        &["report", "cut"],
        1,
        "error: cannot read cut: the file is truncated: it ends before its last byte was written",
    );
    fs::write(at.join("old"), b"beamscope-recording 0 0.0.1\n...").expect("is written");
    check(
        at,
        &["report", "old"],
        1,
        "error: cannot read old: a recording of format 0, written by beamscope 0.0.1; this beamscope reads format 4",
    );
    let last = bytes.len() - 6;
    bytes[last] ^= 1;
    fs::write(at.join("flipped"), &bytes).expect("is written");
    check(
        at,
        &["report", "flipped"],
        1,
        "error: cannot read flipped: the file is damaged: corrupt gzip stream does not have a matching checksum",
    );
}

#[test]
fn nothing_to_draw() {
    let mut recording = sample::recording();
    recording.sites.clear();
    recording.carriers.clear();
    let folder = folder_with(&recording);
    check(
        folder.path(),
        &["flamegraph", "node.bscope", "-o", "a.svg"],
        1,
        "error: no flame graph of node.bscope: nothing to draw: the recording has no outstanding bytes in 0 sites",
    );
    assert!(!folder.path().join("a.svg").exists());
}

#[test]
fn output_that_exists() {
    let folder = folder_with(&sample::recording());
    let at = folder.path();
    fs::write(at.join("a.svg"), "mine").expect("is written");
    let arguments = ["flamegraph", "node.bscope", "-o", "a.svg"];
    check(at, &arguments, 1, "error: a.svg exists; choose another name, or replace it with --force");
    assert_eq!(fs::read_to_string(at.join("a.svg")).expect("is there"), "mine");
    beamscope(at).args(arguments).arg("--force").assert().success();
    assert!(fs::read_to_string(at.join("a.svg")).expect("is there").starts_with("<?xml"));
    check(
        at,
        &["report", "node.bscope", "-o", "no/such/folder"],
        1,
        "error: cannot create no/such/folder: No such file or directory (os error 2)",
    );
}

#[test]
fn usage() {
    let folder = folder_with(&sample::recording());
    for arguments in [
        &["nonsense"][..],
        &["report"],
        &["report", "node.bscope", "--format", "xml"],
        &["report", "node.bscope", "--force"],
        &["flamegraph", "node.bscope"],
        &["record", "1", "-o", "a", "-d", "1y"],
        &["record", "1", "-o", "a", "--sample-bytes", "0"],
        &["record", "1", "-o", "a", "--max-live", "0"],
        &["record", "1"],
        &["record", "1", "-o", "a", "--fail-on", "any>1MiB/s"],
        &["report", "node.bscope", "--fail-on", "leak"],
        &["explain", "1", "--fail-on", "native_leak>1MiB"],
        &["ps", "--format", "markdown"],
    ] {
        let assert = beamscope(folder.path()).args(arguments).assert().code(2).stdout_eq("");
        let message = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(message.starts_with("error: "), "{arguments:?}: {message}");
    }
    assert!(!folder.path().join("a").exists());
}

fn report_to(stdout: impl Into<Stdio>) -> std::process::Output {
    let folder = folder_with(&sample::recording());
    Command::new(env!("CARGO_BIN_EXE_beamscope"))
        .current_dir(folder.path())
        .args(["report", "node.bscope"])
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
        .wait_with_output()
        .expect("and ends")
}

#[test]
fn a_reader_that_has_gone_away() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = report_to(writer);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"");
}

#[test]
fn a_full_disk() {
    let output = report_to(File::create("/dev/full").expect("is always full"));
    assert_eq!(output.status.code(), Some(1));
    let message = "error: cannot write to standard output: No space left on device (os error 28)\n";
    assert_eq!(String::from_utf8_lossy(&output.stderr), message);
}
