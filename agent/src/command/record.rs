//! `beamscope record`: makes a recording of a node.

use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::ending::{Ending, ending};
use crate::{
    cli::{Common, RecordArgs},
    kernel::features::KernelFeatures,
    output::Output,
    recorder::{Options, Recorder},
    recording::Ended,
    report::{Report, verdict},
    stored,
    target::find,
};

/// How often the ring buffers are emptied.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// How often counters and figures are taken.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// Records until the time is over, the user stops it or the node exits; always writes the file.
pub(super) fn run(args: &RecordArgs, common: Common) -> anyhow::Result<Ending> {
    let quiet = common.quiet;
    // A bad path must be known before the node is touched.
    let output = Output::create(&args.output, args.force)?;
    let target = find::resolve(args.target.as_deref())?;
    let options = Options {
        mode: args.mode.into(),
        budget: args.budget,
        duration: Some(args.duration),
        sample_interval: args.sample_bytes,
        live_blocks: args.max_live,
        no_tracepoints: args.no_tracepoints,
        stack_engine: args.stack_engine.map(Into::into),
        walk_share: args.walk_share,
        vm_api: args.vm_api,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    runtime.block_on(async {
        // From here on a signal ends the recording, however short it is, and leaves no empty file.
        let mut stop = Stop::listen()?;
        let progress = progress(quiet);
        progress.set_message("attaching");
        let mut recorder = Recorder::attach(target, &KernelFeatures::detect(), options)?;
        let say = |text: String| {
            if !quiet {
                progress.suspend(|| anstream::eprintln!("{text}"));
            }
        };
        recorder.start()?;
        say(format!("recording process {} for {:?}; Ctrl-C ends it early", recorder.target().pid(), args.duration));
        let ended = follow(&mut recorder, args.duration, &mut stop, &progress).await?;
        progress.set_message("reading the tables");
        let recording = recorder.finish(ended)?;
        output.commit(|into| Ok(stored::write(&recording, into)?))?;
        let verdicts = Report::new(&recording).verdicts;
        say(verdict::text::brief(&verdicts).trim_end().to_owned());
        say(format!("wrote {0}; `beamscope report {0}` shows the evidence", args.output.display()));
        // The kernel needs some seconds for it, in which the recording can be read already.
        progress.set_message("taking the probes away");
        drop(recorder);
        progress.finish_and_clear();
        Ok(ending(&args.fail_on, &verdicts))
    })
}

/// The signals by which a user ends a recording early.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal was closed.
    hang_up: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            hang_up: signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?,
        })
    }
}

async fn follow(
    recorder: &mut Recorder,
    duration: Duration,
    stop: &mut Stop,
    progress: &ProgressBar,
) -> anyhow::Result<Ended> {
    let mut poll = interval(POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut observe = interval(OBSERVE_EVERY);
    observe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    #[expect(deprecated, reason = "the sound successor is unsafe to call, and an OwnedFd keeps its descriptor")]
    let listen = |events| AsyncFd::with_interest(events, Interest::READABLE).context("cannot listen for events");
    let [new_code, new_stacks] = recorder.urgent()?.map(listen);
    let (new_code, new_stacks) = (new_code?, new_stacks?);
    let end = sleep_until(tokio::time::Instant::now() + duration);
    tokio::pin!(end);
    loop {
        tokio::select! {
            biased;
            _ = stop.interrupt.recv() => return Ok(Ended::Interrupted),
            _ = stop.terminate.recv() => return Ok(Ended::Interrupted),
            _ = stop.hang_up.recv() => return Ok(Ended::Interrupted),
            () = &mut end => return Ok(Ended::Duration),
            ready = new_code.readable() => {
                ready.context("cannot listen for events")?.clear_ready();
                recorder.poll()?;
            }
            ready = new_stacks.readable() => {
                ready.context("cannot listen for events")?.clear_ready();
                recorder.poll()?;
            }
            _ = observe.tick() => {
                recorder.observe()?;
                progress.set_message(format!("{:.0} of {:.0} s", recorder.elapsed(), duration.as_secs_f64()));
            }
            _ = poll.tick() => {
                recorder.poll()?;
                if !recorder.is_alive() {
                    return Ok(Ended::NodeExited);
                }
            }
        }
    }
}

fn progress(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar
}
