//! Looks at a running node once: the place where the kernel's word, the node's memory and [`crate::explain`] meet.

use std::{
    sync::mpsc::{self, Receiver, TryRecvError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    erts::alloc::{Depth, Effort},
    explain::{self, model::Explanation},
    image::{Image, SavingMemory},
    target::{
        process::{Target, TargetError},
        resident::ResidentMemory,
        view::{self, Viewed},
    },
};

/// More threads than this would only wait for each other's memory.
const MOST_THREADS: usize = 4;

/// Looks at `target`. Blocks are walked for as long as `budget` says; `None`: to the end.
pub fn at(target: &Target, depth: Depth, budget: Option<Duration>) -> Result<Explanation, TargetError> {
    // The node needs the processors more than we do.
    let processors = thread::available_parallelism().map_or(1, usize::from);
    with_threads(target, depth, budget, (processors / 2).clamp(1, MOST_THREADS))
}

fn with_threads(
    target: &Target,
    depth: Depth,
    budget: Option<Duration>,
    threads: usize,
) -> Result<Explanation, TargetError> {
    let begin = Instant::now();
    let Viewed { view, files } = view::take(target)?;
    let memory = ResidentMemory::new(target.memory(), &view, target.folder(), files);
    let is_over = || budget.is_some_and(|budget| begin.elapsed() > budget);
    let explanation = explain::explain(&view, &memory, &Effort { depth, threads, is_over: &is_over });
    // An exiting process loses its memory before it is gone, and what was read meanwhile is no look at a node.
    if target.is_alive() && target.maps()?.mappings.iter().next().is_some() {
        Ok(explanation)
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
    /// What was found.
    pub explanation: Result<Explanation, TargetError>,
    /// How long it took, on one processor at most.
    pub took: Duration,
}

impl Looking {
    /// Looks at process `pid` in a thread of its own.
    pub fn begin(pid: u32, depth: Depth, budget: Duration) -> Self {
        let (sender, answer) = mpsc::channel();
        thread::spawn(move || {
            let begin = Instant::now();
            let explanation = Target::open(pid).and_then(|target| with_threads(&target, depth, Some(budget), 1));
            // Nobody waits for it where the recording has ended meanwhile.
            sender.send(Looked { explanation, took: begin.elapsed() }).unwrap_or_default();
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
