//! Makes a recording of a process: the one place where target, kernel, stacks, symbols and ledger meet.

mod budget;
mod code;
mod erlang;
mod faults;
mod finish;
mod looks;
mod stacks;
mod windows;

use std::{
    num::NonZeroU32,
    ops::Range,
    os::fd::OwnedFd,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use beamscope_probe::{MappingEvent, SampleHeader, SampleOrigin};

use crate::{
    explain::whose::Pages,
    kernel::{
        faults::FaultTracing,
        features::{Capabilities, KernelFeatures},
        object,
        plan::{self, AttachPlan, MappingCalls, StackEngine, SystemCallTracing},
        session::{Session, Settings},
    },
    ledger::Ledger,
    recording::{Mode, Snapshot},
    stack::raw::RawStack,
    target::{
        allocator::{self, Allocator, Allocators, Located},
        process::Target,
        vm_api::{self, VmApi},
    },
};
use code::Code;
use faults::Faults;
use looks::Looks;
use stacks::StackTable;
use windows::Windows;

/// What the user chose.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to look at the node.
    pub mode: Mode,
    /// Share of one processor's time that [`Mode::Auto`] may cost the node.
    pub budget: f64,
    /// How long the recording is to be, as far as that is known: [`Mode::Auto`] plans for it.
    pub duration: Option<Duration>,
    /// Mean distance of two sampled bytes.
    pub sample_interval: u64,
    /// Blocks that can be followed at a time.
    pub live_blocks: u32,
    /// Follows mapping calls at the C library's functions even where the kernel has tracepoints.
    pub no_tracepoints: bool,
    /// Where stacks are walked; `None`: in the kernel where that is possible.
    pub stack_engine: Option<StackEngine>,
    /// Share of each processor's time that walking the stack of every allocation may take.
    pub walk_share: f64,
    /// Follows what native code asks the VM for as well.
    pub vm_api: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            budget: 0.15,
            duration: None,
            sample_interval: 1 << 20,
            live_blocks: 1 << 20,
            no_tracepoints: false,
            stack_engine: None,
            walk_share: 0.1,
            vm_api: false,
        }
    }
}

/// Records passed on at most in one go, so that a flood cannot keep the recorder from its other work.
const RECORDS_AT_ONCE: usize = 4096;

/// How often new names are looked up: often enough to have them when the node exits.
const LEARN_EVERY: Duration = Duration::from_millis(250);

/// Said of what is known of who asked for carriers.
const CARRIERS_REQUESTED: &str = "carriers are counted where the VM's allocators ask for them (erts_mseg_alloc_opt), also \
                                  those that come from memory it keeps for use again; those from malloc are not";
const CARRIERS_SEEN: &str = "the VM does not export where its allocators ask for carriers: they are found in the memory \
                             that was mapped or allocated during the recording, so that one from memory which the VM \
                             had kept is not seen";

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
    stacks: StackTable,
    ledger: Ledger,
    started: Instant,
    start_unix: u64,
    learned: Instant,
    snapshots: Vec<Snapshot>,
    looks: Looks,
    faults: Faults,
    windows: Windows,
    malformed: u64,
    defects: Vec<String>,
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
        let follows_allocations = options.mode != Mode::Growth;
        let tracing = if !follows_allocations {
            SystemCallTracing::NotAsked
        } else if options.no_tracepoints {
            SystemCallTracing::Unavailable { reason: "asked for by --no-tracepoints".to_owned() }
        } else if target.node().libc.as_deref().is_some_and(|libc| libc.starts_with("musl")) {
            SystemCallTracing::Unavailable {
                reason: "musl has no unwind tables, so a stack that begins inside it would end there".to_owned(),
            }
        } else {
            SystemCallTracing::of(features)
        };
        let (engine, engine_note) = StackEngine::of(features, options.stack_engine);
        let mut probed = if follows_allocations { allocators.clone() } else { Vec::new() };
        if options.vm_api && follows_allocations {
            let VmApi { functions, unseen } =
                vm_api::find(&target).context("cannot follow what native code asks the VM for")?;
            probed.push(functions);
            defects.extend(unseen.map(|error| {
                format!("--vm-api: binaries and resources that the VM frees are not seen, so they count as outstanding: {error}")
            }));
        }
        let requests = vm_api::carrier_requests(&target).context("cannot read the VM's executable")?;
        let note = if requests.is_some() { CARRIERS_REQUESTED } else { CARRIERS_SEEN };
        probed.extend(requests);
        let faults = if options.mode == Mode::Exact { FaultTracing::NotAsked } else { FaultTracing::of(features) };
        let plan = AttachPlan::new(object::HOST, &probed, &tracing, engine, target.pid());
        let mut plan = plan.with_faults(&faults, target.pid());
        plan.notes.extend(engine_note);
        plan.notes.push(note.to_owned());
        let through_map_files = features.capabilities.clone().is_ok_and(Capabilities::can_open_mapped_files);
        let mut code = Code::new(&target, through_map_files, engine)?;
        plan.notes.append(&mut code.erlang.missing);
        code.refresh(&target)?;
        let pid = NonZeroU32::new(target.pid()).context("process 0 is the kernel's idle task")?;
        let heap_end = code.heap_end();
        let windows = Windows::new(&options);
        let settings = Settings {
            sample_interval: options.sample_interval,
            live_blocks: options.live_blocks,
            heap_end,
            row_chunks: code.row_chunks(),
            walk_share: windows.walk_share(&options),
            vm_api: options.vm_api,
        };
        let mut session = Session::attach(&plan, pid, &settings)
            .with_context(|| format!("cannot follow the allocations of process {pid}"))?;
        if let Some(error) = session.without_faults() {
            defects.push(format!("page faults are not followed: {}", crate::erts::alloc::survey::whole(error)));
        }
        code.publish(&mut session)?;
        session.set_erlang(code.erlang.offsets(), code.erlang.schedulers())?;
        Ok(Self {
            target,
            options,
            plan,
            allocator_code: allocators.iter().flat_map(code_of).collect(),
            allocators,
            session,
            code,
            stacks: StackTable::default(),
            ledger: Ledger::new(0, procfs::page_size(), heap_end),
            started: Instant::now(),
            start_unix: 0,
            learned: Instant::now(),
            snapshots: Vec::new(),
            looks: Looks::default(),
            faults: Faults::new(procfs::page_size()),
            windows,
            malformed: 0,
            defects,
        })
    }

    /// Begins to record.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.looks.take(&self.target, 0.0, Pages::default(), &mut self.defects);
        self.snapshots.push(self.target.snapshot(0.0)?);
        self.start_unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let pid = self.target.pid();
        self.session.start().with_context(|| format!("cannot follow the allocations of process {pid}"))?;
        self.ledger = Ledger::new(monotonic()?, procfs::page_size(), self.code.heap_end());
        self.started = Instant::now();
        Ok(())
    }

    /// Become readable when [`Recorder::poll`] should be called at once: there is new code, or a new stack.
    pub fn urgent(&self) -> anyhow::Result<[OwnedFd; 2]> {
        self.session.urgent().context("cannot listen for events of the BPF program")
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
    /// buffer holds about a thousand images of stacks.
    pub fn poll(&mut self) -> anyhow::Result<bool> {
        let mut keys = Vec::new();
        let new_stacks = self.session.read_new_stacks(RECORDS_AT_ONCE, &mut self.malformed, |key| keys.push(key));
        for key in keys {
            self.stacks.walked(key, &self.session, &self.target, &mut self.ledger)?;
        }
        let Self { stacks, code, target, .. } = self;
        stacks.learn_erlang(|new| code.learn_erlang(new, target));
        let mut events = Vec::new();
        self.session.read_mappings(RECORDS_AT_ONCE, &mut self.malformed, |event| events.push(*event));
        for event in &events {
            self.take_mapping(event)?;
        }
        if self.code.is_outdated() {
            // A process that is gone has no mappings to read; what is known of it stays.
            if let Err(error) = self.refresh()
                && self.target.is_alive()
            {
                self.code.note_defect(format!("code that was mapped meanwhile is not known: {error:#}"));
            }
        }
        let samples = self.take_samples()?;
        self.code.publish(&mut self.session)?;
        if self.learned.elapsed() >= LEARN_EVERY {
            self.learn();
        }
        self.keep_budget()?;
        Ok([new_stacks, events.len(), samples].contains(&RECORDS_AT_ONCE))
    }

    fn take_mapping(&mut self, event: &MappingEvent) -> anyhow::Result<()> {
        self.ledger.mapping(event);
        self.code.note_mapping(event);
        if event.stack == 0 {
            return Ok(());
        }
        let id = self.stacks.walked(event.stack, &self.session, &self.target, &mut self.ledger)?;
        if self.stacks.get(id).is_some_and(|stack| is_in(&self.allocator_code, stack)) {
            self.ledger.mapping_of_allocator(event.thread, event.sequence);
        } else {
            self.ledger.mapping_stack(event.thread, event.sequence, id);
        }
        Ok(())
    }

    fn take_samples(&mut self) -> anyhow::Result<usize> {
        let Self { session, ledger, malformed, code, target, stacks, plan, options, allocator_code, faults, .. } = self;
        let mut walked: Vec<SampleHeader> = Vec::new();
        let samples = session.read_samples(RECORDS_AT_ONCE, malformed, |header, captured| {
            let Some(captured) = captured else {
                walked.push(*header);
                return;
            };
            let is_mapping = header.origin == SampleOrigin::Mapping as u32;
            let is_thread = header.origin == SampleOrigin::Thread as u32;
            let is_fault = header.origin == SampleOrigin::Fault as u32;
            let from_system_call = is_mapping && matches!(plan.mapping_calls, MappingCalls::SystemCalls { .. });
            let stack = code.unwind(target, &captured, !from_system_call && !is_fault);
            stacks.count(&stack);
            if is_mapping && is_in(allocator_code, &stack) {
                ledger.mapping_of_allocator(header.thread, header.sequence);
                return;
            }
            let id = stacks.intern(stack);
            if is_thread {
                stacks.created(header.sequence, id);
                return;
            }
            stacks.thread(id, header.thread);
            ledger.thread(id, &captured.image.command);
            if is_fault {
                faults.take(header, id);
                return;
            }
            ledger.sample(header, id, options.sample_interval);
        });
        for header in walked {
            let id = self.stacks.walked(header.stack, &self.session, &self.target, &mut self.ledger)?;
            if header.origin == SampleOrigin::Thread as u32 {
                self.stacks.created(header.sequence, id);
            } else if header.origin == SampleOrigin::Fault as u32 {
                self.faults.take(&header, id);
            } else {
                self.ledger.sample(&header, id, self.options.sample_interval);
            }
        }
        Ok(samples)
    }

    fn refresh(&mut self) -> anyhow::Result<()> {
        self.code.refresh(&self.target)?;
        self.code.publish(&mut self.session)
    }

    /// Takes the kernel's counters and figures. To be called about once a second.
    pub fn observe(&mut self) -> anyhow::Result<()> {
        self.poll()?;
        let at = self.elapsed();
        let sites = self.session.sites()?;
        self.session.prepare_for_full_sites(&sites)?;
        for (key, _) in sites.iter().filter(|(key, _)| key.is_stack != 0) {
            self.stacks.walked(key.caller, &self.session, &self.target, &mut self.ledger)?;
        }
        // A process that is gone has no mappings to read; what is known of it stays.
        if self.code.is_stale() && self.refresh().is_ok() {
            self.ledger.prove(&self.code.mappings);
        }
        self.ledger.observe(at, &sites);
        self.looks.go_on(&self.target, at, || self.faults.pages(), &mut self.defects);
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
        let Self { stacks, code, target, .. } = self;
        stacks.learn_erlang(|new| code.learn_erlang(new, target));
        stacks.learn(|new| code.learn(new));
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

/// Nanoseconds of the clock that the probe stamps its records with.
fn monotonic() -> anyhow::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).context("cannot read CLOCK_MONOTONIC")?;
    u64::try_from(Duration::from(now).as_nanos()).context("CLOCK_MONOTONIC is out of range")
}
