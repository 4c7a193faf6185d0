//! What is lost where a kernel, a user or a node does not permit something, and what can be done about it?

use serde::Serialize;

use crate::kernel::features::{Capabilities, Fact, KernelFeatures, Lockdown, Tracefs};

/// What could be done with a node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeAccess {
    pub(super) pid: u32,
    pub(super) name: Option<String>,
    /// Whether its memory can be read.
    pub(super) memory: Fact,
    /// The objects that serve its allocations.
    pub(super) allocators: Result<Vec<String>, String>,
    /// Whether its own pointers said so.
    pub(super) resolved: bool,
    /// Objects that could not be read, and why.
    pub(super) unread: Vec<String>,
}

/// The answer to one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) check: &'static str,
    pub(super) answer: Answer,
    /// What was found, where it says more than the answer.
    pub(super) detail: Option<String>,
    /// Whether there is no recording without it.
    pub(super) needed: bool,
    /// What is lost, unless the answer is yes.
    pub(super) lost: Option<&'static str>,
    /// What the user can do.
    pub(super) next: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    Yes,
    No,
    Unknown,
}

/// Most locked memory with which kernels before 5.11 refuse the maps of a recording.
const LITTLE_LOCKED_MEMORY: u64 = 256 << 20;

/// Judges what was found out.
pub(super) fn findings(features: &KernelFeatures, node: Option<&NodeAccess>) -> Vec<Finding> {
    let capabilities = features.capabilities.clone().unwrap_or_default();
    let mut findings = vec![
        Finding::of("BPF programs", &features.programs)
            .needed()
            .without("nothing can be recorded", programs_next(features, capabilities)),
        Finding::of("ring buffers", &features.ring_buffer)
            .needed()
            .without("nothing can be recorded", same_or("use a kernel from 5.8 on", &features.programs)),
        Finding::of("uprobes", &features.uprobes)
            .needed()
            .without("nothing can be recorded", "use a kernel with CONFIG_UPROBE_EVENTS"),
        Finding::of("page faults", &page_faults(features)).without(
            "who is first to touch new memory (--mode growth, and a part of --mode auto)",
            same_or("run beamscope on the host, or in a container with --pid=host", &features.programs),
        ),
        tracefs(features),
        Finding::of("registers at system calls", &features.task_registers).without(
            "mmap is followed in the C library and not at the system call: callers that go around it are not seen",
            same_or("use a kernel from 5.15 on, with CONFIG_DEBUG_INFO_BTF", &features.programs),
        ),
        Finding::of("loops in BPF programs", &features.loops).without(
            "stacks are sampled and walked outside the kernel: figures of single stacks are estimates",
            same_or("use a kernel from 5.17 on", &features.programs),
        ),
        Finding::of("kernel type information", &features.btf)
            .without("registers at system calls", "use a kernel with CONFIG_DEBUG_INFO_BTF"),
        Finding::of("pids of the host", &features.initial_pid_namespace).without(
            "system calls of the node cannot be told from others: mmap is followed in the C library instead",
            "run beamscope on the host, or in a container with --pid=host",
        ),
        Finding::of("memory of other users' processes", &memory_of_others(features, capabilities))
            .without("nodes that another user runs", "run beamscope as root, or with CAP_SYS_PTRACE"),
        Finding::of(
            "files of running processes",
            &features.capabilities.clone().map(Capabilities::can_open_mapped_files),
        )
        .without(
            "names of functions in libraries that were replaced since the node started",
            "run beamscope as root, or with CAP_CHECKPOINT_RESTORE",
        ),
    ];
    if let Some(node) = node {
        findings.extend(of_node(node, features));
    }
    findings
}

/// Whether a recording can be made, as far as can be known without making one.
pub(super) fn can_record(findings: &[Finding]) -> bool {
    !findings.iter().any(|finding| finding.needed && finding.answer == Answer::No)
}

impl Finding {
    fn of(check: &'static str, fact: &Fact) -> Self {
        let (answer, detail) = match fact {
            Ok(true) => (Answer::Yes, None),
            Ok(false) => (Answer::No, None),
            Err(reason) => (Answer::Unknown, Some(reason.clone())),
        };
        Self { check, answer, detail, needed: false, lost: None, next: None }
    }

    fn needed(self) -> Self {
        Self { needed: true, ..self }
    }

    fn detailed(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    fn without(self, lost: &'static str, next: impl Into<String>) -> Self {
        if self.answer == Answer::Yes { self } else { Self { lost: Some(lost), next: Some(next.into()), ..self } }
    }
}

fn programs_next(features: &KernelFeatures, capabilities: Capabilities) -> &'static str {
    if features.initial_user_namespace == Ok(false) {
        "run beamscope on the host: in a user namespace no capability counts for BPF"
    } else if !capabilities.can_trace() {
        "run beamscope as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE"
    } else if features.lockdown == Ok(Lockdown::Confidentiality) {
        "the kernel is locked down: boot it with lockdown=integrity"
    } else if matches!(features.locked_memory, Ok(Some(bytes)) if bytes < LITTLE_LOCKED_MEMORY) {
        "raise the limit of locked memory: ulimit -l unlimited"
    } else {
        "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS, and a container without a filter on bpf(2)"
    }
}

/// A refusal to load anything makes every other test by loading fail as well.
fn same_or(next: &'static str, programs: &Fact) -> &'static str {
    if *programs == Ok(true) { next } else { "see BPF programs" }
}

fn tracefs(features: &KernelFeatures) -> Finding {
    const CHECK: &str = "tracepoints at system calls";
    const LOST: &str = "mmap is followed in the C library instead; calls that go around it are missed";
    match &features.tracefs {
        Ok(Tracefs::Mountable) if features.syscall_tracepoints == Ok(true) => {
            Finding::of(CHECK, &Ok(true)).detailed("tracefs is not mounted; beamscope mounts it for itself alone")
        }
        Ok(Tracefs::Mountable) => Finding::of(CHECK, &features.syscall_tracepoints)
            .without(LOST, "mount -t tracefs tracefs /sys/kernel/tracing"),
        Ok(Tracefs::Absent) | Err(_) => {
            Finding::of(CHECK, &features.syscall_tracepoints).without(LOST, "use a kernel with CONFIG_FTRACE_SYSCALLS")
        }
        Ok(Tracefs::Mounted(at)) => {
            let next = if features.syscall_tracepoints.is_err() {
                format!("run beamscope as root, or let it read {}", at.display())
            } else {
                "use a kernel with CONFIG_FTRACE_SYSCALLS".to_owned()
            };
            Finding::of(CHECK, &features.syscall_tracepoints).without(LOST, next)
        }
    }
}

fn page_faults(features: &KernelFeatures) -> Fact {
    match (&features.perf_programs, &features.initial_pid_namespace) {
        (Ok(true), Ok(true)) => Ok(true),
        (Ok(false), _) | (_, Ok(false)) => Ok(false),
        (Err(reason), _) | (_, Err(reason)) => Err(reason.clone()),
    }
}

fn memory_of_others(features: &KernelFeatures, capabilities: Capabilities) -> Fact {
    features.capabilities.clone()?;
    Ok(capabilities.sys_ptrace)
}

fn of_node(node: &NodeAccess, features: &KernelFeatures) -> [Finding; 3] {
    let memory_next = match features.ptrace_scope {
        Ok(scope) if scope > 0 => {
            "run beamscope as root, or with CAP_SYS_PTRACE, or set sysctl kernel.yama.ptrace_scope=0"
        }
        _ => "run beamscope as root, or with CAP_SYS_PTRACE",
    };
    let found = node.allocators.as_ref().map(|names| names.join(", "));
    let allocators = match &found {
        Ok(names) if node.resolved => {
            Finding::of("allocation functions of the node", &Ok(true)).detailed(names.clone())
        }
        Ok(names) => Finding::of("allocation functions of the node", &Ok(true))
            .detailed(format!("{names}, by the order of its libraries; its own pointers could not be read")),
        Err(reason) => Finding::of("allocation functions of the node", &Ok(false)).detailed((*reason).clone()),
    };
    let libraries = Finding::of("libraries of the node", &Ok(node.unread.is_empty()));
    let libraries = match node.unread.first() {
        Some(reason) => libraries.detailed(reason.clone()),
        None => libraries,
    };
    [
        Finding::of("memory of the node", &node.memory).needed().without("nothing can be recorded", memory_next),
        allocators.needed().without("exact recordings", "use a node whose malloc has a symbol"),
        libraries.without("names of their functions, and allocators inside them", "run beamscope as root"),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::command) fn everything() -> KernelFeatures {
        KernelFeatures {
            programs: Ok(true),
            perf_programs: Ok(true),
            ring_buffer: Ok(true),
            uprobes: Ok(true),
            perf_event_paranoid: Ok(2),
            tracefs: Ok(Tracefs::Mounted("/sys/kernel/tracing".into())),
            syscall_tracepoints: Ok(true),
            task_registers: Ok(true),
            loops: Ok(true),
            btf: Ok(true),
            initial_pid_namespace: Ok(true),
            initial_user_namespace: Ok(true),
            lockdown: Ok(Lockdown::None),
            locked_memory: Ok(None),
            capabilities: Ok(Capabilities::from_bits(u64::MAX)),
            ptrace_scope: Ok(0),
        }
    }

    pub(in crate::command) fn nothing() -> KernelFeatures {
        KernelFeatures {
            programs: Ok(false),
            perf_programs: Ok(false),
            ring_buffer: Ok(false),
            tracefs: Ok(Tracefs::Mounted("/sys/kernel/tracing".into())),
            syscall_tracepoints: Err("permission denied".to_owned()),
            task_registers: Ok(false),
            loops: Ok(false),
            capabilities: Ok(Capabilities::default()),
            ptrace_scope: Ok(1),
            ..everything()
        }
    }

    fn next_of(check: &str, features: &KernelFeatures) -> Option<String> {
        let finding = findings(features, None).into_iter().find(|finding| finding.check == check).unwrap();
        assert_eq!(finding.next.is_some(), finding.lost.is_some());
        finding.next
    }

    #[test]
    fn where_everything_is_permitted_nothing_is_lost() {
        let findings = findings(&everything(), None);
        assert!(findings.iter().all(|finding| finding.answer == Answer::Yes && finding.next.is_none()), "{findings:?}");
        assert!(can_record(&findings));
    }

    #[test]
    fn the_next_step_follows_the_cause() {
        let check = |features: KernelFeatures, part: &str| {
            let next = next_of("BPF programs", &features).unwrap();
            assert!(next.contains(part), "{next}");
        };
        let refused = || KernelFeatures { programs: Ok(false), ..everything() };
        check(nothing(), "CAP_BPF");
        check(KernelFeatures { initial_user_namespace: Ok(false), ..nothing() }, "on the host");
        check(KernelFeatures { lockdown: Ok(Lockdown::Confidentiality), ..refused() }, "lockdown=integrity");
        check(KernelFeatures { locked_memory: Ok(Some(65536)), ..refused() }, "ulimit -l");
        check(refused(), "CONFIG_BPF_SYSCALL");
    }

    #[test]
    fn tracepoints_can_be_seen_by_a_private_mount() {
        let unmounted = KernelFeatures { tracefs: Ok(Tracefs::Mountable), ..everything() };
        assert_eq!(next_of("tracepoints at system calls", &unmounted), None);
        let unprivileged = KernelFeatures { syscall_tracepoints: Err("not permitted".to_owned()), ..unmounted };
        assert!(next_of("tracepoints at system calls", &unprivileged).unwrap().starts_with("mount -t tracefs"));
    }

    #[test]
    fn what_is_unknown_does_not_forbid_a_recording() {
        let unsure = KernelFeatures { programs: Err("out of memory".to_owned()), ..everything() };
        assert!(can_record(&findings(&unsure, None)));
        assert!(!can_record(&findings(&nothing(), None)));
    }

    #[test]
    fn a_node_that_cannot_be_read_forbids_it() {
        let node = NodeAccess {
            pid: 7,
            name: None,
            memory: Ok(false),
            allocators: Ok(vec!["libc.so.6".to_owned()]),
            resolved: false,
            unread: Vec::new(),
        };
        let findings = findings(&KernelFeatures { ptrace_scope: Ok(1), ..everything() }, Some(&node));
        let memory = findings.iter().find(|finding| finding.check == "memory of the node").unwrap();
        assert!(memory.next.as_deref().unwrap().contains("ptrace_scope=0"));
        assert!(!can_record(&findings));
    }
}
