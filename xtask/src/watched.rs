//! How does a task run a program beside others, wait for what it prints, and end it?

use std::{
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// A child process whose output is read line by line. It is killed when this value goes.
pub(crate) struct Watched {
    name: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    echo: Echo,
}

/// As much of a program's output as an error message repeats.
const LAST_LINES: usize = 20;

/// What becomes of the lines that a child prints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// They also go to our stderr.
    Stderr,
    /// They are kept for an error message.
    No,
}

impl Watched {
    pub(crate) fn start(command: &mut Command, echo: Echo) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} does not start"))?;
        let (sender, lines) = mpsc::channel();
        read_lines(child.stdout.take().context("no stdout")?, sender.clone(), echo);
        read_lines(child.stderr.take().context("no stderr")?, sender, echo);
        Ok(Self { name, child, lines, seen: Vec::new(), echo })
    }

    /// Returns when a line begins with `text`.
    pub(crate) fn await_line(&mut self, text: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.starts_with(text);
                    self.seen.push(line);
                    if found {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("{} did not say {text:?} in {patience:?}", self.name),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended before it said {text:?}{}", self.name, self.said())
                }
            }
        }
    }

    /// Fails if the program has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        self.seen.extend(self.lines.try_iter());
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}{}", self.name, self.said());
        }
        Ok(())
    }

    fn said(&self) -> String {
        let Self { seen, echo, .. } = self;
        if *echo == Echo::Stderr {
            return String::new();
        }
        let last = seen.get(seen.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
        last.iter().map(|line| format!("\n    {line}")).collect::<Vec<_>>().concat()
    }

    /// Asks the program to end as Ctrl-C would.
    pub(crate) fn interrupt(&mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-INT", &pid]).status().context("cannot run kill")?;
        Ok(())
    }

    /// Ends the program by SIGKILL, which it cannot prepare for.
    pub(crate) fn murder(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until the program ends, and fails unless it ended well.
    pub(crate) fn succeed(&mut self, patience: Duration) -> Result<()> {
        let status = self.wait(patience)?;
        self.seen.extend(self.lines.try_iter());
        ensure!(status.success(), "{} ended with {status}{}", self.name, self.said());
        Ok(())
    }

    /// Waits until the program ends; kills it when that takes too long.
    pub(crate) fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        self.child.wait()?;
        bail!("{} did not end in {patience:?} and was killed", self.name)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Errors here mean that it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn read_lines(stream: impl Read + Send + 'static, sender: Sender<String>, echo: Echo) {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if echo == Echo::Stderr {
                eprintln!("{line}");
            }
            // Nobody may be waiting for lines any more.
            drop(sender.send(line));
        }
    });
}
