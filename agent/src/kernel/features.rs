//! What do this kernel and this user permit?

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, SyscallError, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::errno::Errno;
use procfs::process::Process;
use serde::Serialize;

use super::tracefs;

/// Whether something is so, or why that could not be found out. An error is never a `false`.
pub type Fact = Result<bool, String>;

/// What was found by trying, never by the kernel's version.
#[derive(Clone, Debug, Serialize)]
pub struct KernelFeatures {
    /// Whether BPF programs for uprobes can be loaded.
    pub programs: Fact,
    /// Whether BPF programs for perf events can be loaded.
    pub perf_programs: Fact,
    /// Whether there are ring buffers (Linux 5.8).
    pub ring_buffer: Fact,
    /// Whether uprobes can be made through perf events.
    pub uprobes: Fact,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Result<i64, String>,
    /// Where tracepoints are described.
    pub tracefs: Result<Tracefs, String>,
    /// Whether there are tracepoints at system calls.
    pub syscall_tracepoints: Fact,
    /// Whether a tracepoint's program can get at the registers of the program that made the call (Linux 5.15).
    pub task_registers: Fact,
    /// Whether programs can walk stacks by themselves (`bpf_loop`, Linux 5.17).
    pub loops: Fact,
    /// Whether the kernel describes its own types.
    pub btf: Fact,
    /// Whether pids here are those that the kernel itself uses.
    pub initial_pid_namespace: Fact,
    /// Whether capabilities here are those that the kernel asks for.
    pub initial_user_namespace: Fact,
    /// How far the kernel is closed against its own administrator.
    pub lockdown: Result<Lockdown, String>,
    /// Most bytes that may be locked into memory; none: without limit. Counts for BPF maps before Linux 5.11.
    pub locked_memory: Result<Option<u64>, String>,
    /// The capabilities that matter here.
    pub capabilities: Result<Capabilities, String>,
    /// `kernel.yama.ptrace_scope`, 0 where the kernel has no Yama.
    pub ptrace_scope: Result<i64, String>,
}

/// Where the file system with the tracepoints is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tracefs {
    /// Mounted at one of the usual places.
    Mounted(PathBuf),
    /// Not mounted at a usual place, and the kernel has it.
    Mountable,
    /// The kernel does not have it.
    Absent,
}

/// Kernel lockdown (`kernel_lockdown(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lockdown {
    /// Off, or not built in.
    None,
    /// The kernel cannot be changed. BPF programs can still read.
    Integrity,
    /// The kernel cannot be read either: helpers that read memory are refused.
    Confidentiality,
}

/// Effective capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent bits of one field in /proc/PID/status")]
pub struct Capabilities {
    /// `CAP_BPF`
    pub bpf: bool,
    /// `CAP_PERFMON`
    pub perfmon: bool,
    /// `CAP_SYS_ADMIN`
    pub sys_admin: bool,
    /// `CAP_SYS_PTRACE`
    pub sys_ptrace: bool,
    /// `CAP_CHECKPOINT_RESTORE`
    pub checkpoint_restore: bool,
}

/// `PROC_PID_INIT_INO` and `PROC_USER_INIT_INO` (`include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

impl KernelFeatures {
    /// Tries everything out. Nothing stays behind.
    pub fn detect() -> Self {
        let tracefs = find_tracefs();
        Self {
            programs: program(is_program_supported(ProgramType::KProbe)),
            perf_programs: program(is_program_supported(ProgramType::PerfEvent)),
            ring_buffer: map(is_map_supported(MapType::RingBuf)),
            uprobes: exists(Path::new("/sys/bus/event_source/devices/uprobe/type")),
            perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
            syscall_tracepoints: syscall_tracepoints(&tracefs),
            tracefs,
            loops: helper(BpfHelper::BPF_FUNC_loop),
            task_registers: both(
                helper(BpfHelper::BPF_FUNC_get_current_task_btf),
                helper(BpfHelper::BPF_FUNC_task_pt_regs),
            ),
            btf: exists(Path::new("/sys/kernel/btf/vmlinux")),
            initial_pid_namespace: namespace("pid", INITIAL_PID_NAMESPACE),
            initial_user_namespace: namespace("user", INITIAL_USER_NAMESPACE),
            lockdown: match fs::read_to_string("/sys/kernel/security/lockdown") {
                Ok(text) => lockdown(&text),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Lockdown::None),
                Err(error) => Err(because("/sys/kernel/security/lockdown", &error)),
            },
            locked_memory: locked_memory(),
            capabilities: capabilities(),
            ptrace_scope: match fs::exists("/proc/sys/kernel/yama") {
                Ok(false) => Ok(0),
                Ok(true) => number("/proc/sys/kernel/yama/ptrace_scope"),
                Err(error) => Err(because("/proc/sys/kernel/yama", &error)),
            },
        }
    }
}

impl Capabilities {
    /// Those whose bits are set in `CapEff` (`include/uapi/linux/capability.h`).
    pub fn from_bits(bits: u64) -> Self {
        let has = |bit: u32| bits.checked_shr(bit).is_some_and(|shifted| shifted & 1 == 1);
        Self { bpf: has(39), perfmon: has(38), sys_admin: has(21), sys_ptrace: has(19), checkpoint_restore: has(40) }
    }

    /// Whether they let programs for uprobes be loaded and attached.
    pub fn can_trace(self) -> bool {
        self.sys_admin || (self.bpf && self.perfmon)
    }

    /// Whether they let the files behind mappings be opened.
    pub fn can_open_mapped_files(self) -> bool {
        self.sys_admin || self.checkpoint_restore
    }
}

fn program(answer: Result<bool, ProgramError>) -> Fact {
    match answer {
        Ok(supported) => Ok(supported),
        Err(ProgramError::SyscallError(error)) => call(&error),
        Err(error) => Err(error.to_string()),
    }
}

fn map(answer: Result<bool, SyscallError>) -> Fact {
    answer.or_else(|error| call(&error))
}

/// A refusal for want of permission is an answer; another error is none.
fn call(SyscallError { call, io_error }: &SyscallError) -> Fact {
    match io_error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES | Errno::ENOSYS) => Ok(false),
        _ => Err(because(call, io_error)),
    }
}

fn helper(helper: BpfHelper) -> Fact {
    program(is_helper_supported(ProgramType::TracePoint, helper))
}

fn both(first: Fact, second: Fact) -> Fact {
    match (first, second) {
        (Ok(false), _) | (_, Ok(false)) => Ok(false),
        (Err(reason), _) | (_, Err(reason)) => Err(reason),
        (Ok(true), Ok(true)) => Ok(true),
    }
}

fn exists(path: &Path) -> Fact {
    fs::exists(path).map_err(|error| because(&path.display().to_string(), &error))
}

fn because(what: &str, error: &io::Error) -> String {
    format!("{what}: {error}")
}

fn number(path: &str) -> Result<i64, String> {
    let text = fs::read_to_string(path).map_err(|error| because(path, &error))?;
    text.trim().parse().map_err(|_not_a_number| format!("{path} is not a number"))
}

fn namespace(kind: &str, initial: u64) -> Fact {
    use std::os::unix::fs::MetadataExt as _;
    let path = format!("/proc/self/ns/{kind}");
    fs::metadata(&path).map(|metadata| metadata.ino() == initial).map_err(|error| because(&path, &error))
}

fn find_tracefs() -> Result<Tracefs, String> {
    let mounts = procfs::mounts().map_err(|error| error.to_string())?;
    let usual = |path: &str| path == tracefs::PLACE || path == "/sys/kernel/debug/tracing";
    let is_tracefs = |mount: &procfs::MountEntry| mount.fs_vfstype == "tracefs" && usual(&mount.fs_file);
    if let Some(mount) = mounts.into_iter().find(is_tracefs) {
        return Ok(Tracefs::Mounted(mount.fs_file.into()));
    }
    let path = "/proc/filesystems";
    let known = fs::read_to_string(path).map_err(|error| because(path, &error))?;
    let has = known.lines().any(|line| line.split_whitespace().last() == Some("tracefs"));
    Ok(if has { Tracefs::Mountable } else { Tracefs::Absent })
}

/// A file of the tracepoint at one of the system calls that are followed.
const TRACEPOINT: &str = "events/syscalls/sys_enter_mmap/id";

fn syscall_tracepoints(tracefs: &Result<Tracefs, String>) -> Fact {
    match tracefs {
        Ok(Tracefs::Mounted(at)) => exists(&at.join(TRACEPOINT)),
        // Where it cannot be mounted (no CAP_SYS_ADMIN, a chroot without /sys), nothing is known.
        Ok(Tracefs::Mountable) => tracefs::with(true, || exists(&Path::new(tracefs::PLACE).join(TRACEPOINT)))
            .unwrap_or_else(|error| Err(format!("tracefs is not mounted and cannot be: {error}"))),
        Ok(Tracefs::Absent) => Ok(false),
        Err(reason) => Err(reason.clone()),
    }
}

/// The chosen word of `none [integrity] confidentiality`.
fn lockdown(text: &str) -> Result<Lockdown, String> {
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some("none") => Ok(Lockdown::None),
        Some("integrity") => Ok(Lockdown::Integrity),
        Some("confidentiality") => Ok(Lockdown::Confidentiality),
        _ => Err(format!("unknown state of kernel lockdown: {}", text.trim())),
    }
}

fn locked_memory() -> Result<Option<u64>, String> {
    use procfs::process::LimitValue;
    let limits = Process::myself().and_then(|own| own.limits()).map_err(|error| error.to_string())?;
    Ok(match limits.max_locked_memory.soft_limit {
        LimitValue::Unlimited => None,
        LimitValue::Value(bytes) => Some(bytes),
    })
}

fn capabilities() -> Result<Capabilities, String> {
    let status = Process::myself().and_then(|own| own.status()).map_err(|error| error.to_string())?;
    Ok(Capabilities::from_bits(status.capeff))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_by_bit() {
        assert_eq!(Capabilities::from_bits(0), Capabilities::default());
        let least = Capabilities::from_bits(1 << 39 | 1 << 38);
        assert!(least.bpf && least.perfmon && least.can_trace() && !least.can_open_mapped_files());
        let root = Capabilities::from_bits(0x1ff_ffff_ffff);
        assert!(root.sys_admin && root.sys_ptrace && root.checkpoint_restore && root.can_open_mapped_files());
        assert!(!Capabilities::from_bits(1 << 39).can_trace());
    }

    #[test]
    fn lockdown_states() {
        assert_eq!(lockdown("none [integrity] confidentiality\n"), Ok(Lockdown::Integrity));
        assert_eq!(lockdown("[none] integrity confidentiality\n"), Ok(Lockdown::None));
        assert!(lockdown("none integrity").is_err());
    }

    #[test]
    fn only_a_refusal_is_a_no() {
        let answer = |errno: Errno| call(&SyscallError { call: "bpf_prog_load", io_error: errno.into() });
        assert_eq!(answer(Errno::EPERM), Ok(false));
        assert!(answer(Errno::ENOMEM).unwrap_err().starts_with("bpf_prog_load: "));
        assert_eq!(both(Err("?".into()), Ok(false)), Ok(false));
        assert_eq!(both(Ok(true), Err("?".into())), Err("?".into()));
    }

    #[test]
    fn without_a_view_of_the_tracepoints_nothing_is_said_of_them() {
        assert!(syscall_tracepoints(&Err("?".into())).is_err());
        assert_eq!(syscall_tracepoints(&Ok(Tracefs::Absent)), Ok(false));
    }
}
