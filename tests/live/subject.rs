//! Processes to look at: they answer each line of their stdin with one line.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// A running process.
pub(crate) struct Subject {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pid: u32,
}

impl Subject {
    /// An Erlang node that can leak (`tests/nodes/node_control.erl`), with more arguments for `erl`.
    pub(crate) fn node(arguments: &[&str]) -> Self {
        let mut command = Command::new("erl");
        command.arg("-noshell").arg("-pa").arg(fixtures()).args(arguments).args(["-s", "node_control"]);
        Self::started_by(&mut command)
    }

    /// The node of `tests/nodes/node_control.erl` that `command` becomes.
    pub(crate) fn started_by(command: &mut Command) -> Self {
        let mut subject = Self::spawn(command);
        assert_eq!(subject.line(), "ready", "{command:?}");
        let pid = subject.ask("pid");
        subject.pid = pid.strip_prefix("pid ").and_then(|pid| pid.parse().ok()).expect("a pid");
        subject
    }

    /// A program that says `ready PID` when it is up.
    pub(crate) fn program(path: &Path, environment: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(path);
        command.envs(environment.iter().copied());
        let mut subject = Self::spawn(&mut command);
        let ready = subject.line();
        subject.pid = ready.strip_prefix("ready ").and_then(|pid| pid.parse().ok()).expect("a pid");
        subject
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .env_remove("ERL_FLAGS")
            .env_remove("ERL_AFLAGS")
            .env_remove("ERL_ZFLAGS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; `cargo xtask test` installs what is needed"));
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output, pid: 0 }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    /// Its answer.
    pub(crate) fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").expect("it listens");
        let answer = self.line();
        assert!(!answer.is_empty() && !answer.starts_with("error"), "{question}: {answer:?}");
        answer
    }

    /// A figure `NAME=NUMBER` of its answer.
    pub(crate) fn figure(&mut self, question: &str, name: &str) -> u64 {
        figure(&self.ask(question), name)
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        // `erl` is a script that becomes the VM, so the child is the process itself.
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// The Erlang that is under test: the machine's own, or that of another system.
pub(crate) struct Release {
    /// Starts it.
    pub(crate) command: Command,
    /// Where it finds the compiled fixtures.
    pub(crate) code: PathBuf,
    /// The root of the other system.
    pub(crate) root: Option<PathBuf>,
}

/// Names the root of another system in which `cargo xtask matrix` has put the compiled fixtures. Without it, the
/// machine's own Erlang is the one under test.
const ROOT: &str = "BEAMSCOPE_TEST_ROOT";

/// Where the fixtures are in such a root.
const FIXTURES_IN_ROOT: &str = "nodes";

impl Release {
    pub(crate) fn under_test() -> Self {
        let Some(root) = env::var_os(ROOT).map(PathBuf::from) else {
            return Self { command: Command::new("erl"), code: fixtures(), root: None };
        };
        let mut command = Command::new("chroot");
        command.arg(&root).arg("erl");
        Self { command, code: Path::new("/").join(FIXTURES_IN_ROOT), root: Some(root) }
    }

    /// Where this process finds the compiled fixtures.
    pub(crate) fn fixtures(&self) -> PathBuf {
        self.root.as_ref().map_or_else(|| self.code.clone(), |root| root.join(FIXTURES_IN_ROOT))
    }
}

/// The folder of the compiled `tests/nodes`.
pub(crate) fn fixtures() -> PathBuf {
    // Beside the profile's folder in the target folder, wherever that is.
    let profile = Path::new(env!("CARGO_BIN_EXE_beamscope")).parent().expect("the profile's folder");
    let folder = profile.parent().expect("the target folder").join("nodes");
    let beam = folder.join("node_control.beam");
    assert!(beam.exists(), "{} is missing; `cargo xtask fixtures` makes it", beam.display());
    folder
}

/// A figure `NAME=NUMBER` of an answer.
pub(crate) fn figure(answer: &str, name: &str) -> u64 {
    let pair = answer.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    pair.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {answer:?}"))
}

/// Compiles `tests/programs/NAME.c`, or `.cc`, with `compiler`.
pub(crate) fn compile(compiler: &str, name: &str, folder: &Path, arguments: &[&str]) -> PathBuf {
    let program = folder.join(name);
    let ending = if compiler == "g++" { "cc" } else { "c" };
    let source = crate::agent::in_tests(&format!("programs/{name}.{ending}"));
    let mut all = vec!["-Wall", "-Wextra", "-Werror", "-O1", "-g", "-fno-builtin", "-rdynamic", "-pthread"];
    let (source, output) = (source.to_string_lossy(), program.to_string_lossy());
    all.extend([&*source, "-o", &*output]);
    all.extend(arguments);
    crate::agent::tool(compiler, &all);
    program
}
