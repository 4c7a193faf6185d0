//! How does a task start, steer and end an Erlang node? (The protocol is in `tests/nodes/node_control.erl`.)

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

/// A node of our own. It is killed when this value goes, and halts by itself when our end of its stdin closes, which
/// also covers a task that dies without running its destructors.
pub(crate) struct Node {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
    pid: u32,
}

const START: Duration = Duration::from_mins(1);

impl Node {
    /// Starts a node with the compiled fixtures in `code`, and returns when it is up.
    pub(crate) fn start(code: &Path, arguments: &[&str]) -> Result<Self> {
        Self::spawn(&mut Command::new("erl"), code, arguments)
    }

    /// The same with the Erlang in `root`, where the fixtures are at `code`. It sees `root` at `/mnt`, so that what is
    /// kept of it does not say where `root` is.
    pub(crate) fn start_in(root: &Path, code: &Path, arguments: &[&str]) -> Result<Self> {
        let enter = r#"mount --bind "$0" /mnt && exec chroot /mnt erl "$@""#;
        Self::spawn(Command::new("unshare").args(["--mount", "sh", "-c", enter]).arg(root), code, arguments)
    }

    fn spawn(erl: &mut Command, code: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = erl
            .args(["-noshell", "-pa"])
            .arg(code)
            .args(["-s", "node_control"])
            .args(arguments)
            .env("NODE_NIF_DIR", code)
            .env_remove("ERL_FLAGS")
            .env_remove("ERL_AFLAGS")
            .env_remove("ERL_ZFLAGS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the task; the node sees the end of its stdin.
            .process_group(0)
            .spawn()
            .context("erl does not start")?;
        let stdin = child.stdin.take().context("the node has no stdin")?;
        let stdout = child.stdout.take().context("the node has no stdout")?;
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            // An error means that nobody listens any more.
            lines.for_each(|line| drop(sender.send(line)));
        });
        let mut node = Self { pid: child.id(), child, stdin, answers };
        let ready = node.answer(START)?;
        if ready != "ready" {
            bail!("the node said {ready:?} and not that it is ready");
        }
        // `erl` may be a script that does not hand its process over.
        let pid = node.ask("pid", START)?;
        node.pid = pid.trim_start_matches("pid ").parse().with_context(|| format!("the node's pid is {pid:?}"))?;
        Ok(node)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends one command and returns its answer.
    pub(crate) fn ask(&mut self, command: &str, patience: Duration) -> Result<String> {
        writeln!(self.stdin, "{command}").with_context(|| format!("the node is gone before {command:?}"))?;
        let answer = self.answer(patience).with_context(|| format!("no answer to {command:?}"))?;
        if answer.starts_with("error ") {
            bail!("the node answered {command:?} with {answer:?}");
        }
        Ok(answer)
    }

    /// Calls an exported Erlang function and returns its result as text.
    pub(crate) fn call(&mut self, call: &str, patience: Duration) -> Result<String> {
        let answer = self.ask(&format!("call {call}"), patience)?;
        Ok(answer.strip_prefix("called ").unwrap_or(&answer).to_owned())
    }

    fn answer(&self, patience: Duration) -> Result<String> {
        let seconds = patience.as_secs();
        self.answers.recv_timeout(patience).with_context(|| format!("the node ended or was silent for {seconds} s"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Errors here mean that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
