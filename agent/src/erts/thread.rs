//! What is a thread of the VM there for?
//!
//! The VM names its threads. A thread that is given no name has that of the thread that created it, so the name alone
//! proves nothing: of threads with the same name, the first one is the VM's, and of schedulers, the one that the
//! scheduler's own data names.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::scheduler::Scheduler;

/// The most bytes of a thread's name: `TASK_COMM_LEN` is 16, with the NUL (`include/linux/sched.h`). The VM cuts names
/// the same way (`ETHR_THR_NAME_MAX`, `erts/lib_src/pthread/ethread.c`).
const LONGEST_NAME: usize = 15;

/// A thread, as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedThread {
    /// Its number, as beamscope's `/proc` has it.
    pub tid: u32,
    /// Its number in the process's own pid namespace.
    pub inner: u32,
    /// Its name, `/proc/PID/task/TID/comm`: at most 15 bytes.
    pub name: String,
}

/// What a thread is there for. Numbers are those that the VM gives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThreadKind {
    /// The first thread, which starts the others and then only waits for signals.
    Main,
    /// A normal scheduler.
    Scheduler(u32),
    /// A dirty CPU scheduler.
    DirtyCpu(u32),
    /// A dirty IO scheduler.
    DirtyIo(u32),
    /// A thread of the pool for drivers (`driver_async`).
    Async(u32),
    /// A thread that waits for file descriptors.
    Poll(u32),
    /// A thread for the schedulers' auxiliary work. Its number is 1 where there is one without a number.
    Aux(u32),
    /// The thread that delivers signals of the operating system.
    Signal,
    /// The thread that delivers trace and system messages.
    Message,
    /// The thread that looks after run queues that do not get on.
    RunQueueSupervisor,
    /// The thread that extends a clock of the operating system that wraps.
    TimeExtender,
    /// A thread that a NIF, a driver or a library made, with the name that it was given, cut to 15 bytes.
    Native {
        /// The name.
        name: String,
    },
    /// A thread that a NIF, a driver or a library made without a name: it has the name of the thread that made it.
    Unnamed {
        /// What the thread is there for that made it, or one that that one made.
        creator: Box<ThreadKind>,
    },
}

impl fmt::Display for ThreadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main thread"),
            Self::Scheduler(number) => write!(f, "normal scheduler {number}"),
            Self::DirtyCpu(number) => write!(f, "dirty CPU scheduler {number}"),
            Self::DirtyIo(number) => write!(f, "dirty IO scheduler {number}"),
            Self::Async(number) => write!(f, "async thread {number}"),
            Self::Poll(number) => write!(f, "poll thread {number}"),
            Self::Aux(number) => write!(f, "auxiliary thread {number}"),
            Self::Signal => f.write_str("signal dispatcher"),
            Self::Message => f.write_str("system message dispatcher"),
            Self::RunQueueSupervisor => f.write_str("run queue supervisor"),
            Self::TimeExtender => f.write_str("time extender"),
            Self::Native { name } => write!(f, "NIF thread `{name}`"),
            Self::Unnamed { creator } => write!(f, "unnamed thread created by {creator}"),
        }
    }
}

/// The kind of a thread with a number.
type OfNumber = fn(u32) -> ThreadKind;
/// Begins of names before a number, OTP 27.3.4.1 (`erts_start_schedulers` in `erts/emulator/beam/erl_process.c`,
/// `erts_init_async` in `erl_async.c`); the same in 29.1.2, read at run time. The last one is that of OTP 23.2.6 and 25.2.3
/// (`erl_async.c`).
const PREFIXES: [(&str, OfNumber); 7] = [
    ("erts_sched_", ThreadKind::Scheduler),
    ("erts_dcpus_", ThreadKind::DirtyCpu),
    ("erts_dios_", ThreadKind::DirtyIo),
    ("erts_aux_", ThreadKind::Aux),
    ("erts_poll_", ThreadKind::Poll),
    ("erts_async_", ThreadKind::Async),
    ("async_", ThreadKind::Async),
];
/// Ends of names behind a number, OTP 23.2.6 and 25.2.3 (`erts_start_schedulers`, `erl_process.c`). A long number cuts
/// them, and leaves what tells the dirty schedulers apart.
const SUFFIXES: [(&str, &str, OfNumber); 5] = [
    ("_scheduler", "_scheduler", ThreadKind::Scheduler),
    ("_dirty_cpu_scheduler", "_dirty_c", ThreadKind::DirtyCpu),
    ("_dirty_io_scheduler", "_dirty_i", ThreadKind::DirtyIo),
    ("_aux", "_aux", ThreadKind::Aux),
    ("_poller", "_poller", ThreadKind::Poll),
];
/// Names without a number, before they are cut. First those of OTP 27.3.4.1 (`erts/emulator/sys/unix/sys.c`,
/// `erts/emulator/beam/erl_trace.c`, `erl_process.c`), then those of 23.2.6 and 25.2.3, `aux` of 23.2.6 only, then one of
/// all (`erts/emulator/sys/common/erl_os_monotonic_time_extender.c`).
const NAMES: [(&str, ThreadKind); 8] = [
    ("erts_ssig_disp", ThreadKind::Signal),
    ("erts_smsg_disp", ThreadKind::Message),
    ("erts_runq_sup", ThreadKind::RunQueueSupervisor),
    ("sys_sig_dispatcher", ThreadKind::Signal),
    ("sys_msg_dispatcher", ThreadKind::Message),
    ("runq_supervisor", ThreadKind::RunQueueSupervisor),
    ("aux", ThreadKind::Aux(1)),
    ("os_monotonic_time_extender", ThreadKind::TimeExtender),
];

impl ThreadKind {
    /// What it is there for, without a number or a name.
    pub fn role(&self) -> &'static str {
        match self {
            Self::Main => "main thread",
            Self::Scheduler(_) => "normal scheduler",
            Self::DirtyCpu(_) => "dirty CPU scheduler",
            Self::DirtyIo(_) => "dirty IO scheduler",
            Self::Async(_) => "async thread",
            Self::Poll(_) => "poll thread",
            Self::Aux(_) => "auxiliary thread",
            Self::Signal => "signal dispatcher",
            Self::Message => "system message dispatcher",
            Self::RunQueueSupervisor => "run queue supervisor",
            Self::TimeExtender => "time extender",
            Self::Native { .. } | Self::Unnamed { .. } => "NIF thread",
        }
    }

    /// What the VM would name so. `None`: nothing.
    pub fn of_name(name: &str) -> Option<Self> {
        let number = |digits: &str| {
            let canonical =
                digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
            digits.parse().ok().filter(|_| canonical)
        };
        let prefixed = PREFIXES.into_iter().find_map(|(prefix, kind)| Some(kind(number(name.strip_prefix(prefix)?)?)));
        let suffixed = || {
            let digits = name.find('_')?;
            let (digits, rest) = name.split_at_checked(digits)?;
            let number = number(digits)?;
            let fits = |&(whole, least, _): &(&str, &str, _)| {
                whole.starts_with(rest) && rest.starts_with(least) && (rest == whole || name.len() == LONGEST_NAME)
            };
            SUFFIXES.into_iter().find(fits).map(|(.., kind)| kind(number))
        };
        let whole = || NAMES.into_iter().find_map(|(whole, kind)| (cut(whole) == name).then_some(kind));
        prefixed.or_else(suffixed).or_else(whole)
    }
}

/// What a name becomes that is too long.
fn cut(name: &str) -> &str {
    name.get(..LONGEST_NAME).unwrap_or(name)
}

/// What each thread is there for, by its [`NamedThread::tid`]. `main` is the number of the first thread, that of the
/// process. `schedulers` are those whose data was found.
pub fn kinds(threads: &[NamedThread], main: u32, schedulers: &[Scheduler]) -> BTreeMap<u32, ThreadKind> {
    let proven: BTreeMap<u32, ThreadKind> =
        schedulers.iter().map(|scheduler| (scheduler.thread, scheduler.thread_kind())).collect();
    let mut taken: BTreeSet<ThreadKind> = proven.values().cloned().collect();
    let main_name = threads.iter().find(|thread| thread.tid == main).map(|thread| thread.name.as_str());
    let mut sorted: Vec<&NamedThread> = threads.iter().collect();
    sorted.sort();
    let mut kinds = BTreeMap::new();
    for thread in sorted {
        let unnamed = |creator| ThreadKind::Unnamed { creator: Box::new(creator) };
        let kind = if thread.tid == main {
            ThreadKind::Main
        } else if let Some(kind) = proven.get(&thread.tid) {
            kind.clone()
        } else if let Some(kind) = ThreadKind::of_name(&thread.name) {
            // The VM's own threads are created before any other.
            if taken.insert(kind.clone()) { kind } else { unnamed(kind) }
        } else if Some(thread.name.as_str()) == main_name {
            unnamed(ThreadKind::Main)
        } else {
            ThreadKind::Native { name: thread.name.clone() }
        };
        kinds.insert(thread.tid, kind);
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{erts::scheduler::SchedulerKind, mapping::Address};

    fn named(tid: u32, name: &str) -> NamedThread {
        NamedThread { tid, inner: tid, name: name.into() }
    }

    #[test]
    fn knows_the_names_of_each_release() {
        let check = |name: &str, expected: &str| {
            assert_eq!(ThreadKind::of_name(name).unwrap().to_string(), expected, "{name}");
        };
        check("1_scheduler", "normal scheduler 1");
        check("1024_scheduler", "normal scheduler 1024");
        check("1_dirty_cpu_sch", "dirty CPU scheduler 1");
        check("10_dirty_io_sch", "dirty IO scheduler 10");
        check("1024_dirty_io_s", "dirty IO scheduler 1024");
        check("1024_dirty_cpu_", "dirty CPU scheduler 1024");
        check("async_2", "async thread 2");
        check("1_aux", "auxiliary thread 1");
        check("aux", "auxiliary thread 1");
        check("0_poller", "poll thread 0");
        check("sys_sig_dispatc", "signal dispatcher");
        check("sys_msg_dispatc", "system message dispatcher");
        check("runq_supervisor", "run queue supervisor");
        check("os_monotonic_ti", "time extender");
        check("erts_sched_3", "normal scheduler 3");
        check("erts_dcpus_1024", "dirty CPU scheduler 1024");
        check("erts_dios_10", "dirty IO scheduler 10");
        check("erts_async_1", "async thread 1");
        check("erts_aux_1", "auxiliary thread 1");
        check("erts_poll_0", "poll thread 0");
        check("erts_ssig_disp", "signal dispatcher");
        check("erts_smsg_disp", "system message dispatcher");
        check("erts_runq_sup", "run queue supervisor");
    }

    #[test]
    fn other_names_are_not_the_vms() {
        let names = [
            "",
            "_",
            "beam.smp",
            "my_worker",
            "scheduler",
            "_scheduler",
            "x_scheduler",
            "01_scheduler",
            "1_schedule",
            "1_schedulers",
            "1_dirty_cpu",
            "1_dirty_io_sche1",
            "erts_sched_",
            "erts_sched_1x",
            "erts_sched_+1",
            "async_",
            "4294967296_scheduler",
            "sys_sig_dispatcher",
            "1_aux_",
            "erts_dcpus_ 1",
        ];
        for name in names {
            assert_eq!(ThreadKind::of_name(name), None, "{name}");
        }
    }

    #[test]
    fn a_thread_without_a_name_is_not_its_creator() {
        let threads = [
            named(7, "erts_sched_1"),
            named(1, "beam.smp"),
            named(2, "erts_sched_1"),
            named(3, "erts_async_1"),
            named(8, "erts_async_1"),
            named(9, "my_worker"),
            named(10, "beam.smp"),
        ];
        let words = |schedulers: &[Scheduler]| {
            kinds(&threads, 1, schedulers).into_iter().map(|(tid, kind)| (tid, kind.to_string())).collect::<Vec<_>>()
        };
        let expected = |two: &str, seven: &str| {
            let kinds = [
                (1, "main thread"),
                (2, two),
                (3, "async thread 1"),
                (7, seven),
                (8, "unnamed thread created by async thread 1"),
                (9, "NIF thread `my_worker`"),
                (10, "unnamed thread created by main thread"),
            ];
            kinds.map(|(tid, kind)| (tid, kind.to_owned())).to_vec()
        };
        let (real, copy) = ("normal scheduler 1", "unnamed thread created by normal scheduler 1");
        assert_eq!(words(&[]), expected(real, copy));
        // Numbers of threads start anew where they are used up.
        let scheduler = Scheduler { thread: 7, data: Address(64), kind: SchedulerKind::Normal, number: 1 };
        assert_eq!(words(&[scheduler]), expected(copy, real));
    }

    #[test]
    fn kinds_are_stored_by_name() {
        let stored = |kind: ThreadKind| serde_json::to_string(&kind).unwrap();
        assert_eq!(stored(ThreadKind::DirtyCpu(2)), r#"{"dirty_cpu":2}"#);
        assert_eq!(stored(ThreadKind::Signal), r#""signal""#);
        assert_eq!(stored(ThreadKind::Native { name: "w".into() }), r#"{"native":{"name":"w"}}"#);
    }
}
