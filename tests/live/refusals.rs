//! Is what cannot be done refused with one clear message that names the thing and the next step?

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use crate::{
    agent::{beamscope, run},
    subject::Subject,
};

/// Runs `beamscope` and expects exit code 1 and one message on stderr that has all `words`.
fn refused(arguments: &[&str], words: &[&str]) {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    // Other nodes on the host are listed behind it.
    assert_eq!(errors.matches("error: ").count(), 1, "{arguments:?}: {errors}");
    assert!(errors.starts_with("error: "), "{arguments:?}: {errors}");
    for word in words {
        assert!(errors.contains(word), "{arguments:?}: no {word:?} in {errors:?}");
    }
}

fn out() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.bscope").to_string_lossy().into_owned();
    (folder, path)
}

#[test]
fn a_pid_that_nobody_has() {
    let (folder, path) = out();
    refused(&["record", "4194304", "-d", "1s", "-o", &path], &["4194304"]);
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "a file was left");
}

#[test]
fn a_process_that_is_no_vm() {
    let (_folder, path) = out();
    let mut child = Command::new("sleep").arg("60").spawn().expect("sleep runs");
    let pid = child.id().to_string();
    refused(&["record", &pid, "-d", "1s", "-o", &path], &[&pid, "not an Erlang VM", "sleep", "beamscope ps"]);
    child.kill().expect("it runs");
    child.wait().expect("it is our child");
}

#[test]
fn a_name_that_no_node_has() {
    let (_folder, path) = out();
    refused(&["record", "nobody@nowhere", "-d", "1s", "-o", &path], &["nobody@nowhere"]);
}

#[test]
fn an_output_that_exists() {
    let node = Subject::node(&[]);
    let (_folder, path) = out();
    std::fs::write(&path, "older").expect("is written");
    refused(&["record", &node.pid().to_string(), "-d", "1s", "-o", &path], &[&path, "--force"]);
    assert_eq!(std::fs::read_to_string(&path).expect("is there"), "older");
}

#[test]
fn a_folder_that_does_not_exist() {
    let node = Subject::node(&[]);
    refused(
        &["record", &node.pid().to_string(), "-d", "1s", "-o", "/nonexistent/x.bscope"],
        &["/nonexistent/x.bscope"],
    );
}

/// A file system that is full when the recording is written.
#[test]
fn a_full_disk() {
    let node = Subject::node(&[]);
    let (folder, _) = out();
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).expect("is made");
    let place = mount.to_string_lossy().into_owned();
    // In a mount namespace of its own, so that nothing stays mounted.
    let script = format!(
        "mount -t tmpfs -o size=16k tmpfs {place} && head -c 16384 /dev/zero > {place}/filler && exec {} record {} -d 1s -o {place}/x.bscope --quiet",
        env!("CARGO_BIN_EXE_beamscope"),
        node.pid()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().expect("unshare runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("x.bscope") && errors.contains("space"), "{errors}");
}

/// Without capabilities the node is left alone, and the message says what would help.
#[test]
fn a_user_without_rights() {
    let node = Subject::node(&[]);
    let folder = tempfile::Builder::new().prefix("beamscope-test-").tempdir_in("/tmp").expect("a folder");
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).expect("is root");
    // The built command lies where that user may not look.
    let copy = folder.path().join("beamscope");
    std::fs::copy(env!("CARGO_BIN_EXE_beamscope"), &copy).expect("is copied");
    let output = Command::new(&copy)
        .args(["record", &node.pid().to_string(), "-d", "1s", "-o"])
        .arg(folder.path().join("x.bscope"))
        .uid(65534)
        .gid(65534)
        .output()
        .expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains(&node.pid().to_string()) && errors.contains("root"), "{errors}");
}

#[test]
fn words_that_are_no_command() {
    for arguments in [&["frobnicate"][..], &["record", "1"], &["record", "1", "-o", "x", "-d", "tomorrow"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn ps_and_doctor_know_the_node() {
    let node = Subject::node(&[]);
    let pid = node.pid().to_string();
    let listing = run(&["ps"]);
    assert!(String::from_utf8_lossy(&listing.stdout).contains(&pid), "{listing:?}");
    let diagnosis = beamscope().args(["doctor", &pid]).stdin(Stdio::null()).output().expect("it runs");
    assert!(diagnosis.status.success(), "{diagnosis:?}");
}
