//! Is this process a node, is it still the same one, and may we look at it?

use std::{fs::File, io, io::Read as _};

use nix::unistd::Pid;
use object::{Object as _, ObjectSymbol as _, ReadCache, ReadRef, read::elf::ElfFile64};
use procfs::{
    ProcError,
    process::{Process, Stat, Task},
};
use thiserror::Error;

use super::{
    elf::{ModuleError, ModuleFile},
    facts,
    maps::{self, Maps, MapsError},
    memory::ProcessMemory,
};
use crate::{
    erts::thread::NamedThread,
    mapping::Mapping,
    recording::{Node, Snapshot},
    view::MappedMemory,
};

/// A running node.
#[derive(Debug)]
pub struct Target {
    /// Holds the folder `/proc/PID` open: when the pid goes to another process, reads through it fail.
    process: Process,
    folder: String,
    pid: u32,
    start_time: u64,
    memory: ProcessMemory,
    beam: ModuleFile,
    node: Node,
}

/// Why a process cannot be looked at.
#[derive(Debug, Error)]
pub enum TargetError {
    /// The pid is free.
    #[error("there is no process {pid}; `beamscope ps` lists the nodes on this host")]
    NoSuchProcess {
        /// What was asked for.
        pid: u32,
    },
    /// The id is one of a thread.
    #[error("{pid} is a thread of process {process}; ask for {process}")]
    Thread {
        /// What was asked for.
        pid: u32,
        /// The process that it belongs to.
        process: u32,
    },
    /// The process runs something else.
    #[error("process {pid} is not an Erlang VM ({exe}); `beamscope ps` lists the nodes on this host")]
    NotABeam {
        /// What was asked for.
        pid: u32,
        /// What it runs.
        exe: String,
    },
    /// The process has exited.
    #[error("the node with pid {pid} has exited")]
    Gone {
        /// The pid that it had.
        pid: u32,
    },
    /// The kernel does not let us.
    #[error("no permission to read {what} of process {pid}; {next}")]
    NoPermission {
        /// The process.
        pid: u32,
        /// What was refused.
        what: &'static str,
        /// What the user can do.
        next: &'static str,
    },
    /// A file in `/proc` could not be read.
    #[error("cannot read {what} of process {pid}")]
    Unreadable {
        /// The process.
        pid: u32,
        /// Which file.
        what: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Files of mappings could not be understood.
    #[error("cannot tell what process {pid} has mapped")]
    Mappings {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        cause: MapsError,
    },
    /// The VM's own file cannot be used.
    #[error("cannot read the Erlang VM of process {pid}")]
    Module {
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        cause: ModuleError,
    },
}

/// What helps where the kernel refuses.
pub(super) const NEXT: &str = "run beamscope as root, or as the user that runs the node";

impl Target {
    /// Looks at process `pid`, and refuses what is not a node.
    pub fn open(pid: u32) -> Result<Self, TargetError> {
        let id = i32::try_from(pid).ok().filter(|&id| id > 0).ok_or(TargetError::NoSuchProcess { pid })?;
        let process = Process::new(id).map_err(|error| match error {
            ProcError::NotFound(_) => TargetError::NoSuchProcess { pid },
            other => refusal(pid, "the folder in /proc", other),
        })?;
        let stat = process.stat().map_err(|error| refusal(pid, "stat", error))?;
        let status = process.status().map_err(|error| refusal(pid, "status", error))?;
        if status.tgid != id {
            return Err(TargetError::Thread { pid, process: status.tgid.unsigned_abs() });
        }
        if has_ended(&stat) {
            return Err(TargetError::Gone { pid });
        }
        let folder = format!("/proc/{pid}");
        let memory = ProcessMemory::new(Pid::from_raw(id));
        let exe = process.exe().map_err(|error| match error {
            // A kernel thread has none.
            ProcError::NotFound(_) => TargetError::NotABeam { pid, exe: format!("kernel thread {}", stat.comm) },
            other => refusal(pid, "the executable", other),
        })?;
        let exe = exe.to_string_lossy();
        let maps = read_maps(&process, pid)?;
        let beam = find_beam(pid, &folder, &exe, &maps, &memory)?;
        let node = facts::gather(&process, &folder, &maps, &beam, &memory);
        Ok(Self { process, folder, pid, start_time: stat.starttime, memory, beam, node })
    }

    /// Its process id, as we see it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its folder in `/proc`.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    /// What is known of the node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its command line; empty where it cannot be read.
    pub fn arguments(&self) -> Vec<String> {
        read(&self.process, self.pid, "cmdline").map(|text| facts::words(&text)).unwrap_or_default()
    }

    /// Its memory.
    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// The file of the VM itself, such as `beam.smp`.
    pub fn beam(&self) -> &ModuleFile {
        &self.beam
    }

    /// Whether the node still runs: not a zombie, and not another process with the same pid.
    pub fn is_alive(&self) -> bool {
        self.process.stat().is_ok_and(|stat| stat.starttime == self.start_time && !has_ended(&stat))
    }

    /// What is mapped now.
    pub fn maps(&self) -> Result<Maps, TargetError> {
        read_maps(&self.process, self.pid)
    }

    /// What is mapped now, with the kernel's figures for each mapping.
    pub fn mapped_memory(&self) -> Result<Vec<MappedMemory>, TargetError> {
        let Self { process, pid, .. } = self;
        maps::parse_smaps(&read(process, *pid, "smaps")?).map_err(|cause| TargetError::Mappings { pid: *pid, cause })
    }

    /// Its threads, by the numbers that they have in its own pid namespace. One that has ended meanwhile is left out.
    pub fn threads(&self) -> Result<Vec<u32>, ProcError> {
        Ok(self.named_threads()?.into_iter().map(|thread| thread.inner).collect())
    }

    /// Its threads with their names. One that has ended meanwhile is left out.
    pub fn named_threads(&self) -> Result<Vec<NamedThread>, ProcError> {
        let named = |task: Result<Task, ProcError>| {
            let task = task.ok()?;
            let status = task.status().ok()?;
            let inner = status.nspid.and_then(|numbers| numbers.last().copied()).unwrap_or(task.tid).unsigned_abs();
            Some(NamedThread { tid: task.tid.unsigned_abs(), inner, name: status.name })
        };
        Ok(self.process.tasks()?.filter_map(named).collect())
    }

    /// The name of one of its threads, by the number that it has here. A thread that has ended has none.
    pub fn thread_name(&self, thread: u32) -> Option<String> {
        let task = self.process.task_from_tid(i32::try_from(thread).ok()?).ok()?;
        task.stat().ok().map(|stat| stat.comm)
    }

    /// The ELF file of the kernel's in `mapping`.
    pub fn vdso(&self, mapping: &Mapping) -> Result<ModuleFile, ModuleError> {
        ModuleFile::of_kernel(mapping, &self.memory)
    }

    /// The file behind `mapping`, a line of `maps`.
    pub fn module(&self, maps: &Maps, mapping: &Mapping) -> Result<ModuleFile, ModuleError> {
        ModuleFile::open(&self.folder, maps, mapping, &self.memory)
    }

    /// The kernel's figures for its memory now, `at` seconds after the start.
    pub fn snapshot(&self, at: f64) -> Result<Snapshot, TargetError> {
        let Self { process, pid, .. } = self;
        let read = |name| read(process, *pid, name);
        let status = process.status().map_err(|error| refusal(*pid, "status", error))?;
        let shmem = status.rssshmem.unwrap_or_default().saturating_mul(1024);
        let rollup = match read("smaps_rollup") {
            Ok(text) => Some(text),
            // Since Linux 4.14, and not on every kernel then.
            Err(TargetError::Unreadable { .. }) => None,
            Err(other) => return Err(other),
        };
        let smaps = || read("smaps").map_err(io::Error::other);
        maps::snapshot(at, rollup.as_deref(), smaps, shmem).map_err(|cause| {
            if self.is_alive() { TargetError::Mappings { pid: *pid, cause } } else { TargetError::Gone { pid: *pid } }
        })
    }
}

/// Whether a file is one of an Erlang VM, by the interfaces that it must offer to NIFs and drivers.
pub(super) fn is_beam(file: File) -> bool {
    // Reads headers and symbols only: `ps` asks for every process on the host.
    let cache = ReadCache::new(file);
    ElfFile64::parse(&cache).is_ok_and(|elf| serves_native_code(&elf))
}

fn serves_native_code<'data>(elf: &ElfFile64<'data, object::Endianness, impl ReadRef<'data>>) -> bool {
    ["enif_alloc", "driver_alloc"].iter().all(|name| {
        elf.dynamic_symbols().any(|symbol| symbol.is_definition() && symbol.name_bytes() == Ok(name.as_bytes()))
    })
}

fn find_beam(
    pid: u32,
    folder: &str,
    exe: &str,
    maps: &Maps,
    memory: &ProcessMemory,
) -> Result<ModuleFile, TargetError> {
    let path = exe.strip_suffix(" (deleted)").unwrap_or(exe);
    let code = || maps.mappings.iter().filter(|mapping| mapping.permissions.execute);
    let of_file = |mapping: &&Mapping| matches!(&mapping.backing, crate::mapping::Backing::File(file) if file == path);
    // A loader that was called by its name (`ld.so beam.smp`) is the executable then, and the VM one of its libraries.
    let loaded = |mapping: &&Mapping| mapping.file_name().is_some_and(|name| name.starts_with("beam"));
    for mapping in code().find(of_file).into_iter().chain(code().filter(loaded)) {
        match ModuleFile::open(folder, maps, mapping, memory) {
            Ok(module) if module.elf().is_ok_and(|elf| serves_native_code(&elf)) => return Ok(module),
            Ok(_) | Err(ModuleError::Form { .. }) => {}
            Err(ModuleError::Unreachable { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied => {
                return Err(TargetError::NoPermission { pid, what: "the executable", next: NEXT });
            }
            Err(cause) => return Err(TargetError::Module { pid, cause }),
        }
    }
    Err(TargetError::NotABeam { pid, exe: exe.to_owned() })
}

fn has_ended(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x')
}

fn read_maps(process: &Process, pid: u32) -> Result<Maps, TargetError> {
    maps::parse(&read(process, pid, "maps")?).map_err(|cause| TargetError::Mappings { pid, cause })
}

fn read(process: &Process, pid: u32, name: &'static str) -> Result<Vec<u8>, TargetError> {
    let mut file = process.open_relative(name).map_err(|error| refusal(pid, name, error))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(|cause| refusal(pid, name, ProcError::from(cause)))?;
    Ok(text)
}

/// What a failed read of `/proc/PID` means.
fn refusal(pid: u32, what: &'static str, error: ProcError) -> TargetError {
    let cause = match error {
        ProcError::PermissionDenied(_) => return TargetError::NoPermission { pid, what, next: NEXT },
        ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        ProcError::Io(cause, _) if cause.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => {
            return TargetError::Gone { pid };
        }
        ProcError::Io(cause, _) => cause,
        other => io::Error::other(other),
    };
    TargetError::Unreadable { pid, what, cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_process_and_the_next_step() {
        let refused = |pid| Target::open(pid).unwrap_err().to_string();
        assert_eq!(refused(0), "there is no process 0; `beamscope ps` lists the nodes on this host");
        assert_eq!(
            refused(u32::MAX),
            format!("there is no process {}; `beamscope ps` lists the nodes on this host", u32::MAX)
        );
        let own = std::process::id();
        let exe = std::env::current_exe().unwrap();
        assert_eq!(
            refused(own),
            format!(
                "process {own} is not an Erlang VM ({}); `beamscope ps` lists the nodes on this host",
                exe.display()
            )
        );
    }

    #[test]
    fn a_thread_is_not_a_process() {
        let thread = nix::unistd::gettid().as_raw().unsigned_abs();
        let own = std::process::id();
        let refused = Target::open(thread).unwrap_err();
        assert!(
            matches!(refused, TargetError::Thread { pid, process } if pid == thread && process == own),
            "{refused}"
        );
    }

    #[test]
    fn what_a_failed_read_means() {
        let check = |error, expected: &str| assert_eq!(refusal(7, "maps", error).to_string(), expected);
        check(
            ProcError::PermissionDenied(None),
            "no permission to read maps of process 7; run beamscope as root, or as the user that runs the node",
        );
        check(ProcError::Io(nix::errno::Errno::ESRCH.into(), None), "the node with pid 7 has exited");
        check(ProcError::NotFound(None), "cannot read maps of process 7");
    }
}
