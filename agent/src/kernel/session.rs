//! The loaded probe: attaches it by plan, reads its tables, takes it away.
//!
//! Nothing of it outlives the process: programs, maps and breakpoints hang on file descriptors, which the kernel closes
//! however beamscope ends.

use std::{
    io,
    num::NonZeroU32,
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{ProgramError, TracePoint},
};
use beamscope_probe::{
    Block, Control, Counter, ERLANG_WORDS, ErlangOffsets, Function, MappingEvent, Module, ROWS_PER_CHUNK, Row, Rule,
    STACK_BYTES, SampleHeader, Scheduler, Site, SiteKey, StackImage, StoredStack, WALK_ENDS,
};
use thiserror::Error;

use super::{
    cost::Meter,
    draws::prepare_sampling,
    faults,
    object::{self, ObjectError},
    plan::{AttachPlan, MappingCalls, StackEngine},
    tracefs,
    windows::{BlockProbes, attach_point, load_uprobe},
    wire::{Wire, split_record},
};
use crate::stack::{modules::Update, raw::Captured};

/// What the user chose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Mean distance of two sampled bytes.
    pub sample_interval: u64,
    /// Blocks that can be followed at a time.
    pub live_blocks: u32,
    /// Where the heap that `brk` moves ends; 0 where there is none.
    pub heap_end: u64,
    /// Pages of unwind rows that there is room for.
    pub row_chunks: u32,
    /// Share of each processor's time that walking the stack of every allocation may take.
    pub walk_share: f64,
    /// Whether blocks of the VM's own functions are followed, as many as others.
    pub vm_api: bool,
}

/// Stacks that are captured for each site before sampling decides alone: one more than the two that show whether a
/// site merges several stacks.
const INTRODUCTIONS: u32 = 3;

/// Entries of the map `SITES`, as its definition in the program has it.
const SITES: usize = 1 << 16;

/// Entries of the map `CALLS`: for the threads of any node, and for the shares that the kernel gives each processor
/// (`LOCAL_FREE_TARGET` in `kernel/bpf/bpf_lru_list.c` is 128).
const CALLS: u32 = 16_384;
const CALLS_PER_PROCESSOR: u32 = 256;

/// Only makes a new entry (include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

/// Why the probe could not be loaded, attached or read.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The object is not for here.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel did not take the object.
    #[error("the kernel refused the BPF object; `beamscope doctor` shows what is missing")]
    Load(#[source] aya::EbpfError),
    /// The kernel did not take a program.
    #[error("the kernel refused the BPF program `{program}`; `beamscope doctor` shows what is missing")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// A program could not be attached.
    #[error("cannot attach a probe to {place}")]
    Attach {
        /// Function and library, or tracepoint.
        place: String,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The mount namespace for tracefs could not be made.
    #[error("cannot mount tracefs in a mount namespace of its own")]
    Tracefs(#[source] io::Error),
    /// A part of the object is not there.
    #[error("the BPF object has no {kind} `{name}`; rebuild it with `cargo xtask probe`")]
    Missing {
        /// `map` or `program`.
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// A table could not be read or written.
    #[error("cannot access the BPF map `{map}`")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// The number of processors is unknown.
    #[error("cannot find out how many processors there are")]
    Processors(#[source] io::Error),
}

/// The probe, loaded and attached.
pub struct Session {
    control: Array<MapData, Wire<Control>>,
    counters: PerCpuArray<MapData, u64>,
    sites: HashMap<MapData, Wire<SiteKey>, Wire<Site>>,
    live: HashMap<MapData, u64, Wire<Block>>,
    vm_live: HashMap<MapData, u64, Wire<Block>>,
    samples: RingBuf<MapData>,
    mappings: RingBuf<MapData>,
    new_stacks: RingBuf<MapData>,
    stacks: HashMap<MapData, u64, Wire<StoredStack>>,
    walks_by_end: PerCpuArray<MapData, u64>,
    schedulers: HashMap<MapData, u32, Wire<Scheduler>>,
    modules: Array<MapData, Wire<Module>>,
    rows: Array<MapData, Wire<[Row; ROWS_PER_CHUNK]>>,
    rules: Array<MapData, Wire<Rule>>,
    /// Why page faults are not followed although that was planned.
    without_faults: Option<SessionError>,
    pub(super) settings: Control,
    pub(super) meter: Meter,
    pub(super) mapping_events: u64,
    /// The probes on allocation functions. As the others, they go last.
    pub(super) blocks: BlockProbes,
    /// Programs and the other links. The kernel needs some hundredths of a second to take each away, in which a thread of the node
    /// that hits it can wait for a grace period. That is shortest while beamscope does nothing else, so it comes last.
    pub(super) attached: Ebpf,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({:?})", self.settings)
    }
}

impl Session {
    /// Loads the probe and attaches it to process `pid`, but for the allocation functions. It records nothing before
    /// [`Session::start`].
    pub fn attach(plan: &AttachPlan, pid: NonZeroU32, settings: &Settings) -> Result<Self, SessionError> {
        object::check(object::PREBUILT, object::HOST)?;
        let processors = aya::util::nr_cpus().map_err(|(_, error)| SessionError::Processors(error))?;
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        let calls = CALLS.max(processors.saturating_mul(CALLS_PER_PROCESSOR));
        let (vm_calls, vm_live) = if settings.vm_api { (calls, settings.live_blocks) } else { (1, 1) };
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("LIVE", settings.live_blocks)
            .map_max_entries("VM_LIVE", vm_live)
            .map_max_entries("CALLS", calls)
            .map_max_entries("VM_CALLS", vm_calls)
            .map_max_entries("ROWS", settings.row_chunks.max(1))
            .load(object::PREBUILT)
            .map_err(SessionError::Load)?;
        prepare_sampling(&mut ebpf, settings.sample_interval, processors)?;
        let mut heap_end: Array<_, u64> = borrow(&mut ebpf, "HEAP_END")?;
        heap_end.set(0, settings.heap_end, 0).map_err(in_map("HEAP_END"))?;
        for function in Function::ALL {
            // Where a site finds no room, its blocks are counted here.
            let key = SiteKey { function: function as u32, ..SiteKey::default() };
            let mut sites: HashMap<_, Wire<SiteKey>, Wire<Site>> = borrow(&mut ebpf, "SITES")?;
            sites.insert(Wire(key), Wire(Site::default()), 0).map_err(in_map("SITES"))?;
        }
        for point in &plan.points {
            load_uprobe(&mut ebpf, point.program)?;
        }
        let meter = Meter::new(&mut ebpf, plan);
        let (blocks, others) = BlockProbes::new(plan, pid, &ebpf)?;
        for point in others {
            attach_point(&mut ebpf, point, pid)?;
        }
        if let MappingCalls::SystemCalls { mount_tracefs } = plan.mapping_calls {
            tracefs::with(mount_tracefs, || attach_system_calls(&mut ebpf, plan.engine))
                .map_err(SessionError::Tracefs)??;
        }
        let without_faults = if plan.faults { faults::attach(&mut ebpf, plan.engine).err() } else { None };
        Ok(Self {
            without_faults,
            control: take(&mut ebpf, "CONTROL")?,
            counters: take(&mut ebpf, "COUNTERS")?,
            sites: take(&mut ebpf, "SITES")?,
            live: take(&mut ebpf, "LIVE")?,
            vm_live: take(&mut ebpf, "VM_LIVE")?,
            samples: take(&mut ebpf, "SAMPLES")?,
            mappings: take(&mut ebpf, "MAPPINGS")?,
            new_stacks: take(&mut ebpf, "NEW_STACKS")?,
            stacks: take(&mut ebpf, "STACKS")?,
            walks_by_end: take(&mut ebpf, "WALKS_BY_END")?,
            schedulers: take(&mut ebpf, "SCHEDULERS")?,
            modules: take(&mut ebpf, "MODULE_TABLE")?,
            rows: take(&mut ebpf, "ROWS")?,
            rules: take(&mut ebpf, "RULES")?,
            settings: Control {
                target: plan.target,
                introductions: INTRODUCTIONS,
                walk_share: share(settings.walk_share),
                fault_share: faults::share(),
                ..Control::default()
            },
            meter,
            mapping_events: 0,
            blocks,
            attached: ebpf,
        })
    }

    /// Why page faults are not followed although that was planned.
    pub fn without_faults(&self) -> Option<&SessionError> {
        self.without_faults.as_ref()
    }

    /// Begins to record, with all probes at once.
    pub fn start(&mut self) -> Result<(), SessionError> {
        self.follow_blocks()?;
        self.set_recording(1)
    }

    /// Ends it, with all probes at once: from here on the tables stand still. The probes go when the session is dropped.
    pub fn stop(&mut self) -> Result<(), SessionError> {
        self.set_recording(0)
    }

    fn set_recording(&mut self, recording: u32) -> Result<(), SessionError> {
        self.settings.recording = recording;
        self.write_settings()
    }

    pub(super) fn write_settings(&mut self) -> Result<(), SessionError> {
        self.control.set(0, Wire(self.settings), 0).map_err(in_map("CONTROL"))
    }

    /// Makes known where the VM's code at run time lies.
    pub fn set_code(&mut self, jit: &Range<u64>) -> Result<(), SessionError> {
        if (self.settings.code_start, self.settings.code_end) == (jit.start, jit.end) {
            return Ok(());
        }
        (self.settings.code_start, self.settings.code_end) = (jit.start, jit.end);
        self.write_settings()
    }

    /// Makes code known to the stack walk.
    pub fn publish(&mut self, update: &Update<'_>) -> Result<(), SessionError> {
        let Update { chunks, rules: (first_rule, rules), first_module, modules, in_use } = update;
        for (at, rows) in chunks {
            let mut chunk = [Row::default(); ROWS_PER_CHUNK];
            chunk.iter_mut().zip(rows).for_each(|(into, row)| *into = *row);
            self.rows.set(*at, Wire(chunk), 0).map_err(in_map("ROWS"))?;
        }
        for (index, rule) in (u32::try_from(*first_rule).unwrap_or(u32::MAX)..).zip(*rules) {
            self.rules.set(index, Wire(*rule), 0).map_err(in_map("RULES"))?;
        }
        for (index, module) in (*first_module..).zip(modules) {
            self.modules.set(index, Wire(*module), 0).map_err(in_map("MODULE_TABLE"))?;
        }
        self.settings.modules = *in_use;
        self.write_settings()
    }

    /// Makes known where the VM keeps what, and on which threads Erlang processes run.
    pub fn set_erlang(
        &mut self,
        offsets: ErlangOffsets,
        schedulers: impl IntoIterator<Item = (u32, Scheduler)>,
    ) -> Result<(), SessionError> {
        for (thread, scheduler) in schedulers {
            self.schedulers.insert(thread, Wire(scheduler), 0).map_err(in_map("SCHEDULERS"))?;
        }
        self.settings.erlang = offsets;
        self.write_settings()
    }

    /// Passes on the keys of stacks that are new, at most `limit`; says how many.
    pub fn read_new_stacks(&mut self, limit: usize, malformed: &mut u64, mut take: impl FnMut(u64)) -> usize {
        for read in 0..limit {
            let Some(record) = self.new_stacks.next() else { return read };
            match split_record::<u64>(&record) {
                Some((key, _)) => take(key),
                None => *malformed += 1,
            }
        }
        limit
    }

    /// The stack of a key; `None` where there is none.
    pub fn stack(&self, key: u64) -> Result<Option<StoredStack>, SessionError> {
        match self.stacks.get(&key, 0) {
            Ok(stack) => Ok(Some(stack.0)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(SessionError::Map { map: "STACKS", source }),
        }
    }

    /// Walks by [`walk_ends_index`](beamscope_probe::walk_ends_index).
    pub fn walks_by_end(&self) -> Result<Vec<u64>, SessionError> {
        let count = |index| {
            let values = self.walks_by_end.get(&index, 0).map_err(in_map("WALKS_BY_END"))?;
            Ok(values.iter().fold(0, |sum: u64, value| sum.saturating_add(*value)))
        };
        (0..WALK_ENDS).map(count).collect()
    }

    /// Become readable when the process has mapped new code, and when there is a new stack.
    pub fn urgent(&self) -> io::Result<[OwnedFd; 2]> {
        Ok([self.mappings.as_fd().try_clone_to_owned()?, self.new_stacks.as_fd().try_clone_to_owned()?])
    }

    /// Passes on the stack samples that have arrived, at most `limit`; says how many. Records that are too short are
    /// passed to nobody and counted in `malformed`.
    pub fn read_samples(
        &mut self,
        limit: usize,
        malformed: &mut u64,
        mut take: impl FnMut(&SampleHeader, Option<Captured<'_>>),
    ) -> usize {
        for read in 0..limit {
            let Some(record) = self.samples.next() else { return read };
            match split_record::<SampleHeader>(&record) {
                Some((header, rest)) if header.stack != 0 || rest.is_empty() => take(&header, None),
                Some((header, rest)) => match captured(rest) {
                    Some(captured) => take(&header, Some(captured)),
                    None => *malformed += 1,
                },
                None => *malformed += 1,
            }
        }
        limit
    }

    /// As [`Session::read_samples`], for mapping events.
    pub fn read_mappings(&mut self, limit: usize, malformed: &mut u64, mut take: impl FnMut(&MappingEvent)) -> usize {
        for read in 0..limit {
            let Some(record) = self.mappings.next() else { return read };
            match split_record::<MappingEvent>(&record) {
                Some((event, _)) => {
                    self.mapping_events += 1;
                    take(&event);
                }
                None => *malformed += 1,
            }
        }
        limit
    }

    /// The sites and what was allocated at them, sorted by their keys.
    pub fn sites(&self) -> Result<Vec<(SiteKey, Site)>, SessionError> {
        let entries = self.sites.iter().map(|entry| entry.map(|(key, site)| (key.0, site.0)).map_err(in_map("SITES")));
        let mut sites = entries.collect::<Result<Vec<_>, _>>()?;
        sites.sort_unstable_by_key(|(key, _)| *key);
        Ok(sites)
    }

    /// Prepares for a table of sites that is nearly full: gives each caller in it an entry for all heights of its stack,
    /// so that what finds no room of its own is still counted at its caller.
    pub fn prepare_for_full_sites(&mut self, sites: &[(SiteKey, Site)]) -> Result<(), SessionError> {
        if sites.len() < SITES / 10 * 8 {
            return Ok(());
        }
        let exists = |key: &SiteKey| sites.binary_search_by_key(key, |(key, _)| *key).is_ok();
        let callers = sites.iter().filter(|(key, _)| key.is_stack == 0);
        let mut coarse: Vec<SiteKey> = callers.map(|(key, _)| SiteKey { stack_pointer: 0, ..*key }).collect();
        coarse.sort_unstable();
        coarse.dedup();
        for key in coarse.into_iter().filter(|key| !exists(key)) {
            match self.sites.insert(Wire(key), Wire(Site::default()), BPF_NOEXIST) {
                Ok(()) => {}
                // The probe or an earlier call was faster, or the table has filled up meanwhile: both are counted there.
                Err(MapError::SyscallError(_)) => break,
                Err(source) => return Err(SessionError::Map { map: "SITES", source }),
            }
        }
        Ok(())
    }

    /// The live blocks, those of the VM's functions last: address and block. Complete only after [`Session::stop`].
    pub fn live_blocks(&self) -> impl Iterator<Item = Result<(u64, Block), SessionError>> + '_ {
        let of_libc = self.live.iter().map(|entry| entry.map_err(in_map("LIVE")));
        let of_vm = self.vm_live.iter().map(|entry| entry.map_err(in_map("VM_LIVE")));
        of_libc.chain(of_vm).map(|entry| entry.map(|(address, block)| (address, block.0)))
    }

    /// A counter, summed over the processors.
    pub fn counter(&self, counter: Counter) -> Result<u64, SessionError> {
        let values = self.counters.get(&(counter as u32), 0).map_err(in_map("COUNTERS"))?;
        Ok(values.iter().fold(0, |sum: u64, value| sum.saturating_add(*value)))
    }
}

/// The stack in a record, behind the header of its sample.
fn captured(record: &[u8]) -> Option<Captured<'_>> {
    let (image, rest) = split_record::<StackImage>(record)?;
    let (stack, rest) = rest.split_at_checked(STACK_BYTES)?;
    let words = usize::try_from(image.erlang_words).ok()?.min(ERLANG_WORDS);
    let (words, _) = rest.get(..words.checked_mul(8)?)?.as_chunks::<8>();
    Some(Captured { image, stack, erlang: words.iter().map(|word| u64::from_ne_bytes(*word)).collect() })
}

/// A share as the program counts it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, and the share is clamped")]
pub(super) fn share(share: f64) -> u32 {
    (share.clamp(0.0, 1.0) * 1024.0).round() as u32
}

pub(super) fn in_map(map: &'static str) -> impl Fn(MapError) -> SessionError {
    move |source| SessionError::Map { map, source }
}

fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, SessionError>
where
    M: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(SessionError::Missing { kind: "map", name })?;
    M::try_from(map).map_err(in_map(name))
}

pub(super) fn borrow<'a, M>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<M, SessionError>
where
    M: TryFrom<&'a mut aya::maps::Map, Error = MapError>,
{
    let map = ebpf.map_mut(name).ok_or(SessionError::Missing { kind: "map", name })?;
    M::try_from(map).map_err(in_map(name))
}

fn attach_system_calls(ebpf: &mut Ebpf, engine: StackEngine) -> Result<(), SessionError> {
    // Returns first, so that no call is entered whose return would be missed.
    for (program, category, name) in [
        ("sys_exit", "syscalls", "sys_exit_mmap"),
        ("sys_exit", "syscalls", "sys_exit_munmap"),
        ("sys_exit", "syscalls", "sys_exit_mremap"),
        ("sys_exit", "syscalls", "sys_exit_brk"),
        ("sys_enter_munmap", "syscalls", "sys_enter_munmap"),
        ("sys_enter_mremap", "syscalls", "sys_enter_mremap"),
        ("sys_enter_brk", "syscalls", "sys_enter_brk"),
        ("sys_enter_mmap", "syscalls", "sys_enter_mmap"),
        ("task_newtask", "task", "task_newtask"),
    ] {
        let program = engine.program(program);
        let tracepoint: &mut TracePoint = program_mut(ebpf, program)?;
        load(tracepoint.fd().is_ok(), || tracepoint.load(), program)?;
        tracepoint
            .attach(category, name)
            .map_err(|source| SessionError::Attach { place: format!("the tracepoint {category}:{name}"), source })?;
    }
    Ok(())
}

pub(super) fn load(
    loaded: bool,
    load: impl FnOnce() -> Result<(), ProgramError>,
    program: &'static str,
) -> Result<(), SessionError> {
    if loaded { Ok(()) } else { load().map_err(|source| SessionError::Program { program, source }) }
}

pub(super) fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, SessionError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(SessionError::Missing { kind: "program", name })?;
    program.try_into().map_err(|source| SessionError::Program { program: name, source })
}
