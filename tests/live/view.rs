//! What does a node itself see of its allocators? (The files are described in `tests/nodes/allocators.erl`.)

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    agent::proc_file,
    subject::{Release, Subject},
};

/// A node in a known state, which can tell its view of it.
pub(crate) struct Viewed {
    subject: Subject,
    folder: TempDir,
    files: u32,
}

impl Viewed {
    /// A node with these arguments for `erl`, of the release under test, when it has reached `state` and is at rest.
    pub(crate) fn at_rest(state: &str, arguments: &[&str]) -> Self {
        let mut viewed = Self::busy(state, arguments);
        viewed.settle();
        viewed
    }

    /// The same for a state in which a node never rests.
    pub(crate) fn busy(state: &str, arguments: &[&str]) -> Self {
        let Release { mut command, code, root } = Release::under_test();
        let folder = match &root {
            Some(root) => tempfile::tempdir_in(root.join("tmp")),
            None => tempfile::tempdir(),
        };
        let folder = folder.expect("a folder");
        let inside = root.as_ref().map(|root| folder.path().strip_prefix(root).expect("it is in there"));
        let views = inside.map_or_else(|| folder.path().to_owned(), |inside| Path::new("/").join(inside));
        command.env("NODE_VIEW_DIR", views).arg("-noshell").arg("-pa").arg(code);
        command.args(arguments).args(["-s", "node_control"]);
        let mut viewed = Self { subject: Subject::started_by(&mut command), folder, files: 0 };
        viewed.call(state);
        viewed
    }

    pub(crate) fn pid(&self) -> u32 {
        self.subject.pid()
    }

    pub(crate) fn subject(&mut self) -> &mut Subject {
        &mut self.subject
    }

    /// Calls a function of `allocators.erl`.
    pub(crate) fn call(&mut self, call: &str) {
        self.call_in("allocators", call);
    }

    /// Calls a function of another module.
    pub(crate) fn call_in(&mut self, module: &str, call: &str) {
        assert_eq!(self.subject.ask(&format!("call {module} {call}")), "called ok", "{module} {call}");
    }

    /// A file that the node has written.
    pub(crate) fn file(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn settle(&mut self) {
        self.call("settle");
        // The first look after the others leaves other free blocks than they did.
        self.call("look");
    }

    /// What `look` returns while the node is stopped at once after it took its figures, and these figures.
    pub(crate) fn compare<T>(&mut self, look: impl FnOnce(u32) -> T) -> (View, T) {
        self.call("look");
        let frozen = Frozen::new(self.pid());
        let seen = look(self.pid());
        drop(frozen);
        (self.told(), seen)
    }

    /// The figures of the last look.
    fn told(&mut self) -> View {
        self.files += 1;
        self.call(&format!("tell {}", self.files));
        View::read(&self.folder.path().join(format!("view-{}", self.files)))
    }
}

/// A stopped process; it goes on when this value goes.
pub(crate) struct Frozen(Pid);

impl Frozen {
    /// Returns when all threads stand still.
    pub(crate) fn new(pid: u32) -> Self {
        let frozen = Self(Pid::from_raw(pid.cast_signed()));
        kill(frozen.0, Signal::SIGSTOP).expect("it runs");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !threads_stand_still(pid) {
            assert!(Instant::now() < deadline, "process {pid} does not stop");
            thread::yield_now();
        }
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It cannot be gone: we are its parent, and have not waited for it.
        kill(self.0, Signal::SIGCONT).unwrap_or_default();
    }
}

fn threads_stand_still(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
    threads.map(|thread| thread.expect("an entry").path().join("stat")).all(|path| {
        let stat = proc_file(&path.to_string_lossy());
        // The name, in brackets, may have any character.
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}

/// Figures by their name, which is the line without its last word.
#[derive(Debug)]
pub(crate) struct View(BTreeMap<String, String>);

impl View {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let figure = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no figure: {line:?}"));
            (name.to_owned(), value.to_owned())
        };
        Self(text.lines().map(figure).collect())
    }

    /// A whole number; none where the node has no such figure.
    pub(crate) fn figure(&self, name: &str) -> Option<u64> {
        let value = self.0.get(name)?;
        Some(value.parse().unwrap_or_else(|error| panic!("{name} {value}: {error}")))
    }

    /// All figures whose names begin with `prefix`: the rest of the name, and the value.
    pub(crate) fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// Each allocator instance that the node has, once, in order.
    pub(crate) fn instances(&self) -> Vec<(String, u64)> {
        let first = |(rest, _): (&str, &str)| {
            let mut words = rest.strip_suffix(" mbcs carriers")?.split(' ');
            Some((words.next()?.to_owned(), words.next()?.parse().expect("an instance")))
        };
        self.below("allocator ").filter_map(first).collect()
    }
}
