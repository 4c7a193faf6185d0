//! What is known of the Erlang side of a node: found and proven at attach, and kept up to date.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use beamscope_probe::{self as probe, ErlangEnd, ErlangOffsets};

use crate::{
    erts::{
        alloc::functions,
        atom::AtomTable,
        code,
        jit::{CodeTable, CodeTableError},
        names::ErlangNames,
        port,
        process::{
            layout::ProcessLayout,
            table::{ElementKind, ElementTable},
        },
        scheduler::{self, Scheduler, SchedulerKind},
        thread::{NamedThread, ThreadKind},
    },
    mapping::{Address, Backing, Mappings},
    stack::{Stack, raw::RawStack},
    target::{
        process::{Target, TargetError},
        resident::ResidentMemory,
        view::{self, Viewed},
    },
    view::ProcessView,
    words::read_word,
};

/// Ports that are looked at to learn where the driver of one is.
const PORTS: usize = 16;

/// Ports that are looked at for the driver of a library.
const PORTS_AT_ONCE: usize = 4096;

/// The Erlang side of one node.
#[derive(Debug)]
pub(super) struct Erlang {
    names: ErlangNames,
    offsets: ErlangOffsets,
    schedulers: Vec<Scheduler>,
    drivers: HashMap<Address, Option<String>>,
    ports: Option<ElementTable>,
    /// The driver in a library, by the library's path.
    of_library: HashMap<String, Option<String>>,
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
        let mut unproven = Vec::new();
        if let Some(processes) = &processes {
            let threads = target.named_threads().unwrap_or_else(|error| {
                lacks("the threads could not be listed", &error);
                Vec::new()
            });
            match scheduler::find(&view, &memory, &threads, processes) {
                Ok(found) => {
                    offsets.current_process = found.layout.current_process;
                    offsets.current_port = found.layout.current_port;
                    schedulers = found.all;
                    unproven = found.unproven;
                }
                Err(error) => {
                    lacks("which process runs on which thread is known only where it called native code", &error);
                }
            }
        }
        let ports = ElementTable::find(ElementKind::Port, &view, &memory);
        let ports = ports.map_err(|error| lacks("drivers have no names", &error)).ok();
        if let Some(ports) = &ports {
            let ports: Vec<Address> = ports.elements(&memory, PORTS).iter().map(|port| port.address).collect();
            offsets.driver = port::driver_offset(&view, &memory, &ports).unwrap_or(0);
        }
        let unknown = |thread: &NamedThread| format!("what runs on {} ({}) is not known", thread.name, thread.tid);
        missing.extend(unproven.iter().map(unknown));
        let names = ErlangNames::new(table, atoms);
        let allocators = functions::names(&view, &memory);
        Ok(Self {
            allocators,
            names,
            offsets,
            schedulers,
            drivers: HashMap::new(),
            ports,
            of_library: HashMap::new(),
            view,
            missing,
        })
    }

    /// The name of the allocator of this number, or the number.
    pub(super) fn allocator(&self, number: u32) -> String {
        self.allocators.get(&number).cloned().unwrap_or_else(|| format!("allocator {number}"))
    }

    /// Addresses of code that has no name.
    pub(super) fn nameless_addresses(&self) -> u64 {
        self.names.nameless()
    }

    /// Addresses of code whose stacks can be of either of two functions.
    pub(super) fn reused_addresses(&self) -> u64 {
        self.names.reused()
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
    pub(super) fn learn(
        &mut self,
        stacks: &[&RawStack],
        mappings: &Mappings,
        target: &Target,
    ) -> Result<(), CodeTableError> {
        for stack in stacks {
            if stack.driver.0 != 0 {
                self.learn_driver(stack.driver, target);
            } else if let Some(library) = library_of_callback(stack, mappings)
                && !self.of_library.contains_key(library)
            {
                let name = self.driver_in(library, mappings, target);
                self.of_library.insert(library.to_owned(), name);
            }
        }
        self.names.learn(stacks, &self.view, target.memory())
    }

    fn learn_driver(&mut self, driver: Address, target: &Target) {
        let Self { drivers, view, .. } = self;
        drivers.entry(driver).or_insert_with(|| {
            port::driver(view, target.memory(), driver).or_else(|| {
                // It has been loaded since its process was looked at. A process that is gone stays as it was.
                *view = view::take(target).ok()?.view;
                port::driver(view, target.memory(), driver)
            })
        });
    }

    /// The one driver, of the open ports and of those that were seen, whose code is in `library`.
    fn driver_in(&mut self, library: &str, mappings: &Mappings, target: &Target) -> Option<String> {
        self.view = view::take(target).ok()?.view;
        let memory = target.memory();
        let drivers = self.ports.as_ref()?.elements(memory, PORTS_AT_ONCE).into_iter().filter_map(|port| {
            let at = port.address.checked_add(self.offsets.driver.into())?;
            read_word(memory, at).ok()
        });
        // A port that is closed by now may have led to its driver before.
        let seen = self.drivers.keys().map(|driver| driver.0);
        let names: BTreeSet<String> = drivers
            .chain(seen)
            .collect::<BTreeSet<u64>>()
            .into_iter()
            .filter_map(|driver| port::driver_and_code(&self.view, memory, Address(driver)))
            .filter(|(_, code)| file_at(mappings, *code) == Some(library))
            .map(|(name, _)| name)
            .collect();
        names.first().filter(|_| names.len() == 1).cloned()
    }

    /// The stack with its Erlang frames.
    pub(super) fn complete(&self, raw: &RawStack, native: Stack) -> Stack {
        self.names.complete(raw, native)
    }

    /// Name of the driver that a scheduler worked for.
    pub(super) fn driver(&self, raw: &RawStack, mappings: &Mappings) -> Option<String> {
        match library_of_callback(raw, mappings) {
            Some(library) => self.of_library.get(library).cloned().flatten(),
            None => self.drivers.get(&raw.driver).cloned().flatten(),
        }
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

/// The library whose function a scheduler called between two processes, where the VM has not noted for which port:
/// `ready_async` is called so (`erts_check_async_ready`, `erts/emulator/beam/erl_async.c`, OTP 25.2.3).
fn library_of_callback<'a>(stack: &RawStack, mappings: &'a Mappings) -> Option<&'a str> {
    let between = stack.scheduler == Some(probe::SchedulerKind::Normal) && stack.erlang.end == ErlangEnd::NoProcess;
    if !between || stack.driver.0 != 0 {
        return None;
    }
    let mut files = stack.addresses.iter().map(|address| file_at(mappings, Address(address.0.saturating_sub(1))));
    let is_emulator = |path: &str| code::is_emulator(path.rsplit('/').next().unwrap_or(path));
    let mut above = None;
    while let Some(Some(file)) = files.next() {
        if is_emulator(file) {
            return above;
        }
        above = Some(file);
    }
    None
}

fn file_at(mappings: &Mappings, address: Address) -> Option<&str> {
    match &mappings.find(address)?.backing {
        Backing::File(path) => Some(path),
        _ => None,
    }
}
