//! Makes a recording of a process: the one place where target, kernel, stacks, symbols and ledger meet.

mod code;
mod finish;
mod looks;

use std::{
    num::NonZeroU32,
    ops::Range,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use beamscope_probe::SampleOrigin;

use crate::{
    kernel::{
        features::{Capabilities, KernelFeatures},
        object,
        plan::{self, AttachPlan, MappingCalls, SystemCallTracing},
        session::{Session, Settings},
    },
    ledger::{Ledger, RawStack, StackId, Stacks},
    recording::Snapshot,
    stack::StackEnd,
    target::{
        allocator::{self, Allocator, Allocators, Located},
        process::Target,
    },
};
use code::Code;
use looks::Looks;

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Mean distance of two sampled bytes.
    pub sample_interval: u64,
    /// Blocks that can be followed at a time.
    pub live_blocks: u32,
    /// Follows mapping calls at the C library's functions even where the kernel has tracepoints.
    pub no_tracepoints: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { sample_interval: 1 << 20, live_blocks: 1 << 20, no_tracepoints: false }
    }
}

/// Records passed on at most in one go, so that a flood cannot keep the recorder from its other work.
const RECORDS_AT_ONCE: usize = 4096;

/// How often new names are looked up: often enough to have them when the node exits.
const LEARN_EVERY: Duration = Duration::from_millis(250);

/// A recording in progress.
#[derive(Debug)]
pub struct Recorder {
    target: Target,
    options: Options,
    plan: AttachPlan,
    allocators: Vec<Allocator>,
    /// Where their functions are in memory.
    allocator_code: Vec<Range<u64>>,
    session: Session,
    code: Code,
    stacks: Stacks,
    unnamed: Vec<StackId>,
    ledger: Ledger,
    started: Instant,
    start_unix: u64,
    learned: Instant,
    snapshots: Vec<Snapshot>,
    looks: Looks,
    stack_ends: StackEnds,
    malformed: u64,
    defects: Vec<String>,
}

/// Samples by how far their stack could be walked.
#[derive(Clone, Copy, Debug, Default)]
struct StackEnds {
    samples: u64,
    truncated: u64,
    no_unwind_information: u64,
}

impl Recorder {
    /// Attaches to `target`. Nothing is recorded before [`Recorder::start`].
    pub fn attach(target: Target, features: &KernelFeatures, options: Options) -> anyhow::Result<Self> {
        let Allocators { serving: allocators, resolved, unread } = allocator::find(&target, &target.maps()?)?;
        let mut defects: Vec<String> = unread
            .into_iter()
            .map(|error| format!("calls of one library were not looked at: {:#}", anyhow::Error::new(error)))
            .collect();
        if !resolved {
            defects.push("which malloc the process calls could not be read from its memory, only from the order in which its libraries were loaded".to_owned());
        }
        let tracing = if options.no_tracepoints {
            SystemCallTracing::Unavailable { reason: "asked for by --no-tracepoints".to_owned() }
        } else if target.node().libc.as_deref().is_some_and(|libc| libc.starts_with("musl")) {
            SystemCallTracing::Unavailable {
                reason: "musl has no unwind tables, so a stack that begins inside it would end there".to_owned(),
            }
        } else {
            SystemCallTracing::of(features)
        };
        let plan = AttachPlan::new(object::HOST, &allocators, &tracing, target.pid());
        let mut code = Code::new(&target, features.capabilities.clone().is_ok_and(Capabilities::can_open_mapped_files));
        code.refresh(&target)?;
        let pid = NonZeroU32::new(target.pid()).context("process 0 is the kernel's idle task")?;
        let heap_end = code.heap_end();
        let settings =
            Settings { sample_interval: options.sample_interval, live_blocks: options.live_blocks, heap_end };
        let session = Session::attach(&plan, pid, &settings)
            .with_context(|| format!("cannot follow the allocations of process {pid}"))?;
        Ok(Self {
            target,
            options,
            plan,
            allocator_code: allocators.iter().flat_map(code_of).collect(),
            allocators,
            session,
            code,
            stacks: Stacks::default(),
            unnamed: Vec::new(),
            ledger: Ledger::new(0, procfs::page_size(), heap_end),
            started: Instant::now(),
            start_unix: 0,
            learned: Instant::now(),
            snapshots: Vec::new(),
            looks: Looks::default(),
            stack_ends: StackEnds::default(),
            malformed: 0,
            defects,
        })
    }

    /// Begins to record.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.looks.take(&self.target, 0.0, &mut self.defects);
        self.snapshots.push(self.target.snapshot(0.0)?);
        self.start_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.ledger = Ledger::new(monotonic()?, procfs::page_size(), self.code.heap_end());
        self.started = Instant::now();
        self.session.start()?;
        Ok(())
    }

    /// Whether the process still exists.
    pub fn is_alive(&self) -> bool {
        self.target.is_alive()
    }

    /// The process.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Takes in what the probe has sent; true where there is more. To be called every few ten milliseconds: the ring
    /// buffer holds about two thousand stacks.
    pub fn poll(&mut self) -> bool {
        let Self { session, ledger, malformed, .. } = self;
        let events = session.read_mappings(RECORDS_AT_ONCE, malformed, |event| ledger.mapping(event));
        let Self { session, ledger, malformed, code, target, stacks, unnamed, stack_ends, plan, options, .. } = self;
        let allocator_code = &self.allocator_code;
        let samples = session.read_samples(RECORDS_AT_ONCE, malformed, |header, image| {
            let from_system_call = header.origin == SampleOrigin::Mapping as u32
                && matches!(plan.mapping_calls, MappingCalls::SystemCalls { .. });
            let stack = code.unwind(target, header, image, !from_system_call);
            stack_ends.count(&stack);
            if header.origin == SampleOrigin::Mapping as u32 && is_in(allocator_code, &stack) {
                ledger.sample_of_allocator(header);
                return;
            }
            let (id, is_new) = stacks.intern(stack);
            if is_new {
                unnamed.push(id);
            }
            ledger.sample(header, id, options.sample_interval);
        });
        if self.learned.elapsed() >= LEARN_EVERY {
            self.learn();
        }
        events == RECORDS_AT_ONCE || samples == RECORDS_AT_ONCE
    }

    /// Takes the kernel's counters and figures. To be called about once a second.
    pub fn observe(&mut self) -> anyhow::Result<()> {
        self.poll();
        let at = self.elapsed();
        let sites = self.session.sites()?;
        self.session.prepare_for_full_sites(&sites)?;
        // A process that is gone has no mappings to read; what is known of it stays.
        if self.code.is_stale() && self.code.refresh(&self.target).is_ok() {
            self.ledger.prove(&self.code.mappings);
        }
        self.ledger.observe(at, &sites);
        self.looks.go_on(&self.target, at, &mut self.defects);
        match self.target.snapshot(at) {
            Ok(snapshot) => self.snapshots.push(snapshot),
            // A process that is gone has no figures; the snapshots before it stay.
            Err(_) if !self.target.is_alive() => {}
            Err(error) => {
                let defect = format!("a snapshot of the memory is missing: {:#}", anyhow::Error::new(error));
                if !self.defects.contains(&defect) {
                    self.defects.push(defect);
                }
            }
        }
        Ok(())
    }

    fn learn(&mut self) {
        self.learned = Instant::now();
        let Self { unnamed, stacks, code, .. } = self;
        if unnamed.is_empty() {
            return;
        }
        code.learn(&unnamed.iter().filter_map(|id| stacks.get(*id)).collect::<Vec<_>>());
        unnamed.clear();
    }
}

/// The allocation functions of an allocator in memory, as far as their sizes are known.
fn code_of(allocator: &Allocator) -> impl Iterator<Item = Range<u64>> + '_ {
    let of_blocks = |located: &&Located| !plan::is_mapping_call(located.function);
    allocator.functions.iter().filter(of_blocks).map(|located| {
        let begin = located.address.0.wrapping_add(allocator.bias);
        begin..begin.saturating_add(located.size)
    })
}

/// Whether a stack passes through `code`.
fn is_in(code: &[Range<u64>], stack: &RawStack) -> bool {
    // Return addresses: the call stands before them.
    stack.addresses.iter().any(|address| code.iter().any(|range| range.contains(&address.0.saturating_sub(1))))
}

impl StackEnds {
    fn count(&mut self, stack: &RawStack) {
        self.samples += 1;
        self.truncated += u64::from(stack.end == StackEnd::Truncated);
        self.no_unwind_information += u64::from(stack.end == StackEnd::NoUnwindInformation);
    }
}

/// Nanoseconds of the clock that the probe stamps its records with.
fn monotonic() -> anyhow::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).context("cannot read CLOCK_MONOTONIC")?;
    u64::try_from(Duration::from(now).as_nanos()).context("CLOCK_MONOTONIC is out of range")
}
