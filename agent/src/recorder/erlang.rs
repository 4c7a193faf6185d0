//! What is known of the Erlang side of a node: found and proven at attach, and kept up to date.

use std::collections::{BTreeMap, HashMap};

use beamscope_probe::{self as probe, ErlangOffsets};

use crate::{
    erts::{
        alloc::functions,
        atom::AtomTable,
        jit::{CodeTable, CodeTableError},
        names::ErlangNames,
        port,
        process::{
            layout::ProcessLayout,
            table::{ElementKind, ElementTable},
        },
        scheduler::{self, Scheduler, SchedulerKind},
        thread::ThreadKind,
    },
    mapping::Address,
    stack::{Stack, raw::RawStack},
    target::{
        process::{Target, TargetError},
        resident::ResidentMemory,
        view::{self, Viewed},
    },
    view::ProcessView,
};

/// Ports that are looked at to learn where the driver of one is.
const PORTS: usize = 16;

/// The Erlang side of one node.
#[derive(Debug)]
pub(super) struct Erlang {
    names: ErlangNames,
    offsets: ErlangOffsets,
    schedulers: Vec<Scheduler>,
    drivers: HashMap<Address, Option<String>>,
    /// Names of the VM's allocators, by number.
    allocators: BTreeMap<u32, String>,
    /// How the process looked at attach.
    view: ProcessView,
    /// What is not known, and why, one sentence each.
    pub(super) missing: Vec<String>,
}

impl Erlang {
    /// Looks for everything. What is not found is missing, and said.
    pub(super) fn find(target: &Target) -> Result<Self, TargetError> {
        let Viewed { view, files } = view::take(target)?;
        let memory = ResidentMemory::new(target.memory(), &view, target.folder(), files);
        let mut missing = Vec::new();
        let mut lacks = |what: &str, error: &dyn std::error::Error| missing.push(format!("{what}: {error}"));
        let table = CodeTable::find(&view, &memory, None);
        let table = table.map_err(|error| lacks("functions of Erlang have no names", &error)).ok();
        let atoms = AtomTable::find(&view, &memory);
        let atoms = atoms.map_err(|error| lacks("NIFs that were called have no names", &error)).ok();
        let processes = ElementTable::find(ElementKind::Process, &view, &memory);
        let processes = processes.map_err(|error| lacks("Erlang stacks are missing", &error)).ok();

        let mut offsets = ErlangOffsets::default();
        if let (Some(processes), Some(atoms)) = (&processes, &atoms) {
            match ProcessLayout::find(processes, atoms, &view, &memory) {
                Ok(ProcessLayout { htop, stop, heap, hend, current, .. }) => {
                    offsets = ErlangOffsets { htop, stop, heap, hend, current, ..offsets };
                }
                Err(error) => lacks("Erlang stacks are missing", &error),
            }
        }
        let mut schedulers = Vec::new();
        if let Some(processes) = &processes {
            let threads = target.named_threads().unwrap_or_default();
            match scheduler::find(&view, &memory, &threads, processes) {
                Ok(found) => {
                    offsets.current_process = found.layout.current_process;
                    offsets.current_port = found.layout.current_port;
                    schedulers = found.all;
                    for thread in found.unproven {
                        missing.push(format!("what runs on {} ({}) is not known", thread.name, thread.tid));
                    }
                }
                Err(error) => {
                    lacks("which process runs on which thread is known only where it called native code", &error)
                }
            }
        }
        if let Ok(ports) = ElementTable::find(ElementKind::Port, &view, &memory) {
            let ports: Vec<Address> = ports.elements(&memory, PORTS).iter().map(|port| port.address).collect();
            offsets.driver = port::driver_offset(&view, &memory, &ports).unwrap_or(0);
        }
        let names = ErlangNames::new(table, atoms);
        let allocators = functions::names(&view, &memory);
        Ok(Self { allocators, names, offsets, schedulers, drivers: HashMap::new(), view, missing })
    }

    /// The name of the allocator of this number, or the number.
    pub(super) fn allocator(&self, number: u32) -> String {
        self.allocators.get(&number).cloned().unwrap_or_else(|| format!("allocator {number}"))
    }

    /// Where the kernel finds things.
    pub(super) fn offsets(&self) -> ErlangOffsets {
        self.offsets
    }

    /// The threads that run Erlang processes, as the kernel takes them.
    pub(super) fn schedulers(&self) -> impl Iterator<Item = (u32, probe::Scheduler)> + '_ {
        self.schedulers.iter().map(|scheduler| {
            let kind = match scheduler.kind {
                SchedulerKind::Normal => probe::SchedulerKind::Normal,
                SchedulerKind::DirtyCpu => probe::SchedulerKind::DirtyCpu,
                SchedulerKind::DirtyIo => probe::SchedulerKind::DirtyIo,
            };
            (scheduler.thread, probe::Scheduler { data: scheduler.data.0, kind: kind as u32, reserved: 0 })
        })
    }

    /// Looks up the names of new stacks. Pages that are read here are those of names, which the VM made when it loaded the
    /// code; one that lies in swap comes back.
    pub(super) fn learn(&mut self, stacks: &[&RawStack], target: &Target) -> Result<(), CodeTableError> {
        let Self { names, view, drivers, .. } = self;
        for driver in stacks.iter().map(|stack| stack.driver).filter(|driver| driver.0 != 0) {
            drivers.entry(driver).or_insert_with(|| {
                port::driver(view, target.memory(), driver).or_else(|| {
                    // It has been loaded since its process was looked at. A process that is gone stays as it was.
                    *view = view::take(target).ok()?.view;
                    port::driver(view, target.memory(), driver)
                })
            });
        }
        names.learn(stacks, view, target.memory())
    }

    /// The stack with its Erlang frames.
    pub(super) fn complete(&self, raw: &RawStack, native: Stack) -> Stack {
        self.names.complete(raw, native)
    }

    /// Name of the driver that a scheduler worked for.
    pub(super) fn driver(&self, raw: &RawStack) -> Option<String> {
        self.drivers.get(&raw.driver).cloned().flatten()
    }

    /// What the thread with this number and name is there for.
    pub(super) fn thread_kind(&self, thread: Option<u32>, name: &str, process: u32) -> ThreadKind {
        let is_it = |scheduler: &&Scheduler| Some(scheduler.thread) == thread;
        if let Some(scheduler) = self.schedulers.iter().find(is_it) {
            return scheduler.thread_kind();
        }
        if thread == Some(process) {
            return ThreadKind::Main;
        }
        match ThreadKind::of_name(name) {
            // All schedulers are known, and this is none: a thread has the name of the one that made it, until it is given
            // another.
            Some(creator @ (ThreadKind::Scheduler(_) | ThreadKind::DirtyCpu(_) | ThreadKind::DirtyIo(_)))
                if !self.schedulers.is_empty() =>
            {
                ThreadKind::Unnamed { creator: Box::new(creator) }
            }
            Some(kind) => kind,
            None => ThreadKind::Native { name: name.to_owned() },
        }
    }
}
