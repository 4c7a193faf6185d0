//! Looks at a running node once: the place where the kernel's word, the node's memory and [`crate::explain`] meet.

use std::{
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};

use crate::{
    erts::alloc::{Depth, Effort},
    explain::{
        self,
        model::Explanation,
        whose::{Owners, Pages},
    },
    image::{Image, SavingMemory},
    target::{
        process::{Target, TargetError},
        resident::ResidentMemory,
        view::{self, Viewed},
    },
};

/// More threads than this would only wait for each other's memory.
const MOST_THREADS: usize = 4;

/// Looks at `target`. Carriers are listed and blocks walked for as long as `budget` says, from when the allocators were
/// found; `None`: to the end.
pub fn at(target: &Target, depth: Depth, budget: Option<Duration>) -> Result<Explanation, TargetError> {
    Ok(with_threads(target, depth, budget, threads(), Pages::default())?.0)
}

fn threads() -> usize {
    // The node needs the processors more than we do.
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, MOST_THREADS)
}

fn with_threads(
    target: &Target,
    depth: Depth,
    budget: Option<Duration>,
    threads: usize,
    pages: Pages,
) -> Result<(Explanation, Owners), TargetError> {
    let Viewed { view, files } = view::take(target)?;
    let memory = ResidentMemory::new(target.memory(), &view, target.folder(), files);
    // It is asked first when the allocators were found. A machine that is slow in that is no reason to look no further.
    let begin = OnceLock::new();
    let is_over = || budget.is_some_and(|budget| begin.get_or_init(Instant::now).elapsed() > budget);
    let found = explain::explain_and_ask(&view, &memory, &Effort { depth, threads, is_over: &is_over }, pages);
    // An exiting process loses its memory before it is gone, and what was read meanwhile is no look at a node.
    if target.is_alive() && target.maps()?.mappings.iter().next().is_some() {
        Ok(found)
    } else {
        Err(TargetError::Gone { pid: target.pid() })
    }
}

/// Looks at `target` and keeps what was looked at.
pub fn keep(target: &Target, depth: Depth) -> Result<Image, TargetError> {
    let Viewed { view, files } = view::take(target)?;
    let memory = SavingMemory::new(ResidentMemory::new(target.memory(), &view, target.folder(), files));
    explain::explain(&view, &memory, &Effort { depth, threads: 1, is_over: &|| false });
    let memory = memory.saved();
    Ok(Image { beamscope: env!("CARGO_PKG_VERSION").to_owned(), depth, view, memory })
}

/// A look that goes on beside other work.
#[derive(Debug)]
pub struct Looking {
    answer: Receiver<Looked>,
}

/// A look that has ended.
#[derive(Debug)]
pub struct Looked {
    /// What was found, and whose the pages are that it was asked about.
    pub found: Result<(Explanation, Owners), TargetError>,
    /// Processor time that it took.
    pub took: Duration,
}

impl Looked {
    /// Looks at `target` now, with all threads that there are for it.
    pub fn now(target: &Target, depth: Depth, budget: Duration, pages: Pages) -> Self {
        let watch = Stopwatch::start(ClockId::CLOCK_PROCESS_CPUTIME_ID);
        let found = with_threads(target, depth, Some(budget), threads(), pages);
        Self { found, took: watch.took() }
    }
}

/// Measures processor time: on a busy machine a look waits more than it works.
struct Stopwatch {
    clock: ClockId,
    began: Instant,
    before: Option<Duration>,
}

impl Stopwatch {
    fn start(clock: ClockId) -> Self {
        Self { clock, began: Instant::now(), before: clock_gettime(clock).ok().map(Duration::from) }
    }

    /// Processor time since the start, or all time where the kernel has no such clock.
    fn took(&self) -> Duration {
        let now = clock_gettime(self.clock).ok().map(Duration::from);
        now.zip(self.before).map_or_else(|| self.began.elapsed(), |(now, before)| now.saturating_sub(before))
    }
}

impl Looking {
    /// Looks at `target` in a thread of its own.
    pub fn begin(target: Arc<Target>, depth: Depth, budget: Duration, pages: Pages) -> Self {
        let (sender, answer) = mpsc::channel();
        thread::spawn(move || {
            let watch = Stopwatch::start(ClockId::CLOCK_THREAD_CPUTIME_ID);
            let found = with_threads(&target, depth, Some(budget), 1, pages);
            // Nobody waits for it where the recording has ended meanwhile.
            sender.send(Looked { found, took: watch.took() }).unwrap_or_default();
        });
        Self { answer }
    }

    /// The answer, when there is one.
    pub fn answer(&self) -> Answer {
        match self.answer.try_recv() {
            Ok(answer) => Answer::Ready(answer),
            Err(TryRecvError::Empty) => Answer::Pending,
            Err(TryRecvError::Disconnected) => Answer::Never,
        }
    }
}

/// What has become of a look.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Answer {
    /// It is done.
    Ready(Looked),
    /// It goes on.
    Pending,
    /// Its thread has ended without an answer.
    Never,
}
