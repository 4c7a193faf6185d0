//! Runs the built `beamscope`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _},
    mem,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// The built command.
pub(crate) fn beamscope() -> Command {
    Command::new(env!("CARGO_BIN_EXE_beamscope"))
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    beamscope().args(arguments).output().expect("beamscope runs")
}

/// What recorders have said that failed after they had written the recording.
static FAILED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A `beamscope record` that is recording.
pub(crate) struct Recording {
    child: Child,
    folder: TempDir,
    log: BufReader<std::process::ChildStderr>,
    seen: String,
}

impl Recording {
    /// Starts it on process `pid` in exact mode and waits until it records.
    pub(crate) fn start(pid: u32, arguments: &[&str]) -> Self {
        Self::start_as(pid, "exact", "120s", arguments)
    }

    /// The same in another mode, or for another time.
    pub(crate) fn start_as(pid: u32, mode: &str, duration: &str, arguments: &[&str]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "live tests need root: run `cargo xtask test` as root");
        assert_eq!(*FAILED.lock().expect("no thread fails with it"), [""; 0], "an earlier recorder failed");
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = beamscope()
            .args(["record", &pid.to_string(), "--mode", mode, "-d", duration, "-o"])
            .arg(folder.path().join("node.bscope"))
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("beamscope runs");
        let mut log = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut seen = String::new();
        while !seen.lines().last().is_some_and(|line| line.starts_with("recording process")) {
            let read = log.read_line(&mut seen).expect("its log");
            assert!(read > 0, "beamscope ended before it recorded:\n{seen}");
        }
        Self { child, folder, log, seen }
    }

    /// Ends it as Ctrl-C does and returns its report.
    pub(crate) fn stop(self) -> Report {
        self.interrupt();
        self.wait()
    }

    /// Ends it without a chance to clean up.
    pub(crate) fn murder(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }

    /// Waits until it is written and returns its report.
    pub(crate) fn wait(self) -> Report {
        let (_folder, file) = self.into_file();
        Report::of(&file)
    }

    /// Waits until it is written and returns the recording, which goes with its folder. The probes are taken away meanwhile.
    pub(crate) fn into_file(mut self) -> (TempDir, PathBuf) {
        while !self.seen.lines().last().is_some_and(|line| line.starts_with("wrote ")) {
            let read = self.log.read_line(&mut self.seen).expect("its log");
            assert!(read > 0, "beamscope ended before it wrote the recording:\n{}", self.seen);
        }
        let folder = mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("node.bscope");
        thread::spawn(move || {
            let mut log = mem::take(&mut self.seen);
            self.log.read_to_string(&mut log).expect("its log");
            let status = self.child.wait().expect("it is our child");
            if !status.success() {
                FAILED.lock().expect("no thread fails with it").push(format!("{status}\n{log}"));
            }
        });
        (folder, file)
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).expect("it runs");
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Only after a failed test: the child has ended otherwise, and then this does nothing.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// A report as JSON.
#[derive(Debug)]
pub(crate) struct Report(pub Value);

impl Report {
    pub(crate) fn of(recording: &Path) -> Self {
        let output = run(&["report", &recording.to_string_lossy(), "--format", "json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// The sites that have a frame of `function` in their stack.
    pub(crate) fn sites(&self, function: &str) -> Vec<&Value> {
        let has = |site: &&Value| {
            site["stack"].as_array().is_some_and(|stack| {
                stack.iter().any(|frame| frame["function"].as_str().is_some_and(|name| name == function))
            })
        };
        self.all_sites().iter().filter(has).collect()
    }

    pub(crate) fn all_sites(&self) -> &[Value] {
        self.0["sites"].as_array().expect("sites")
    }

    /// Sum of a figure over the sites of `function`.
    pub(crate) fn sum(&self, function: &str, figure: &str) -> u64 {
        sum(&self.sites(function), figure)
    }

    /// Sum of a figure over the sites of a kind: `native`, `carrier`.
    pub(crate) fn sum_of_kind(&self, kind: &str, figure: &str) -> u64 {
        let sites: Vec<&Value> = self.all_sites().iter().filter(|site| site["kind"] == kind).collect();
        sum(&sites, figure)
    }

    /// Fails where the recording lost anything.
    pub(crate) fn assert_no_loss(&self) {
        assert_eq!(self.0["losses"], serde_json::json!({}), "losses");
        assert_eq!(self.0["defects"], serde_json::json!([]), "defects");
    }
}

fn sum(sites: &[&Value], figure: &str) -> u64 {
    sites.iter().map(|site| site[figure].as_u64().unwrap_or_else(|| panic!("no {figure} in {site}"))).sum()
}

/// Runs a program to its end; its output where it succeeded.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs what is needed"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A path in the folder of the tests.
pub(crate) fn in_tests(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path)
}

/// Whole content of a file in `/proc`.
pub(crate) fn proc_file(path: &str) -> String {
    let mut text = String::new();
    File::open(path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .unwrap_or_else(|error| panic!("{path}: {error}"));
    text
}
