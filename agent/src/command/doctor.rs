//! Can a recording be made here, and what would be missing from it?

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

use super::diagnosis::{Answer, Finding, NodeAccess, can_record, findings};
use crate::{
    cli::{Common, DoctorArgs, ListFormat},
    kernel::features::{Fact, KernelFeatures},
    output,
    target::{
        allocator::{self, AllocatorError},
        elf::ElfAddress,
        find::{self, FindError},
        memory::ReadMemory as _,
        process::Target,
    },
};

#[derive(Serialize)]
struct Examination {
    schema: &'static str,
    can_record: bool,
    kernel: KernelFeatures,
    node: Option<NodeAccess>,
    /// Why no node was looked at.
    no_node: Option<String>,
    findings: Vec<Finding>,
}

/// Runs the command. Without a target it looks at the only node on the host, or at none.
/// It fails where nothing can be recorded.
pub(super) fn run(args: &DoctorArgs, common: Common) -> anyhow::Result<()> {
    let target = args.target.as_deref();
    let kernel = KernelFeatures::detect();
    let (node, no_node) = match find::resolve(target) {
        Ok(target) => (Some(access(&target)), None),
        Err(error @ (FindError::NoNodes { .. } | FindError::Ambiguous { .. })) if target.is_none() => {
            (None, Some(error.to_string()))
        }
        Err(error) => return Err(error.into()),
    };
    let examination = Examination::new(kernel, node, no_node);
    let text = match args.format {
        ListFormat::Json => examination.json()?,
        ListFormat::Text => examination.text(),
    };
    output::print(&text, common.color.into())?;
    if examination.can_record { Ok(()) } else { bail!("nothing can be recorded here; the table says why") }
}

fn access(target: &Target) -> NodeAccess {
    let found = target.maps().map_err(|error| error.to_string()).map(|maps| allocator::find(target, &maps));
    let (allocators, resolved, unread) = match found {
        Ok(Ok(found)) => {
            let names = found.serving.into_iter().map(|allocator| allocator.name).collect();
            (Ok(names), found.resolved, found.unread)
        }
        Ok(Err(error)) => {
            let reason = error.to_string();
            let AllocatorError::NoMalloc { unread, .. } = error;
            (Err(reason), false, unread)
        }
        Err(reason) => (Err(reason), false, Vec::new()),
    };
    NodeAccess {
        pid: target.pid(),
        name: target.node().name.clone(),
        memory: memory(target),
        allocators,
        resolved,
        unread: unread.iter().map(ToString::to_string).collect(),
    }
}

/// Whether the node's memory can be read: the first bytes of its own file are there.
fn memory(target: &Target) -> Fact {
    let beam = target.beam();
    let mut head = [0; 4];
    match target.memory().read(beam.address(ElfAddress(0)), &mut head) {
        Ok(()) => Ok(true),
        Err(error) if error.cause.kind() == std::io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(format!("{error}: {}", error.cause)),
    }
}

impl Examination {
    fn new(kernel: KernelFeatures, node: Option<NodeAccess>, no_node: Option<String>) -> Self {
        let findings = findings(&kernel, node.as_ref());
        Self { schema: "beamscope.doctor/1", can_record: can_record(&findings), kernel, node, no_node, findings }
    }

    fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self).context("cannot write what was found as JSON")? + "\n")
    }

    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING);
        for Finding { check, answer, detail, .. } in &self.findings {
            let answer = match answer {
                Answer::Yes => "yes",
                Answer::No => "no",
                Answer::Unknown => "unknown",
            };
            table.add_row([*check, answer, detail.as_deref().unwrap_or_default()]);
        }
        let mut text = table.trim_fmt().lines().map(str::trim).collect::<Vec<_>>().join("\n");
        text.push('\n');
        for Finding { check, lost, next, .. } in &self.findings {
            if let (Some(lost), Some(next)) = (lost, next) {
                // Writing to a String cannot fail.
                let _written = write!(text, "\n{check}\n  lost: {lost}\n  next: {next}\n");
            }
        }
        if let Some(NodeAccess { pid, name, .. }) = &self.node {
            let name = name.as_deref().unwrap_or("no name");
            let _written = write!(text, "\nnode: {pid} ({name})\n");
        }
        if let Some(reason) = &self.no_node {
            let _written = write!(text, "\nno node was looked at: {reason}\n");
        }
        text.push_str(if self.can_record { "\na recording can be made\n" } else { "\nno recording can be made\n" });
        text
    }
}

#[cfg(test)]
mod tests {
    use snapbox::{assert_data_eq, str};

    use super::{
        super::diagnosis::tests::{everything, nothing},
        *,
    };

    #[test]
    fn as_root_with_a_node() {
        let node = NodeAccess {
            pid: 42,
            name: Some("shop@host".to_owned()),
            memory: Ok(true),
            allocators: Ok(vec!["libc.so.6".to_owned(), "libjemalloc.so.2".to_owned()]),
            resolved: true,
            unread: Vec::new(),
        };
        assert_data_eq!(
            Examination::new(everything(), Some(node), None).text(),
            str![[r#"
BPF programs                      yes
ring buffers                      yes
uprobes                           yes
page faults                       yes
tracepoints at system calls       yes
registers at system calls         yes
loops in BPF programs             yes
kernel type information           yes
pids of the host                  yes
memory of other users' processes  yes
files of running processes        yes
memory of the node                yes
allocation functions of the node  yes  libc.so.6, libjemalloc.so.2
libraries of the node             yes

node: 42 (shop@host)

a recording can be made

"#]]
        );
    }

    #[test]
    fn as_a_user_without_rights() {
        let no_node = Some("no Erlang node runs on this host".to_owned());
        assert_data_eq!(
            Examination::new(nothing(), None, no_node).text(),
            str![[r#"
BPF programs                      no
ring buffers                      no
uprobes                           yes
page faults                       no
tracepoints at system calls       unknown  permission denied
registers at system calls         no
loops in BPF programs             no
kernel type information           yes
pids of the host                  yes
memory of other users' processes  no
files of running processes        no

BPF programs
  lost: nothing can be recorded
  next: run beamscope as root, or with CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_CHECKPOINT_RESTORE

ring buffers
  lost: nothing can be recorded
  next: see BPF programs

page faults
  lost: who is first to touch new memory (--mode growth, and a part of --mode auto)
  next: see BPF programs

tracepoints at system calls
  lost: mmap is followed in the C library instead; calls that go around it are missed
  next: run beamscope as root, or let it read /sys/kernel/tracing

registers at system calls
  lost: mmap is followed in the C library and not at the system call: callers that go around it are not seen
  next: see BPF programs

loops in BPF programs
  lost: stacks are sampled and walked outside the kernel: figures of single stacks are estimates
  next: see BPF programs

memory of other users' processes
  lost: nodes that another user runs
  next: run beamscope as root, or with CAP_SYS_PTRACE

files of running processes
  lost: names of functions in libraries that were replaced since the node started
  next: run beamscope as root, or with CAP_CHECKPOINT_RESTORE

no node was looked at: no Erlang node runs on this host

no recording can be made

"#]]
        );
    }

    #[test]
    fn json() {
        assert_data_eq!(
            Examination::new(nothing(), None, None).json().unwrap().lines().take(33).collect::<Vec<_>>().join("\n"),
            str![[r#"
{
  "schema": "beamscope.doctor/1",
  "can_record": false,
  "kernel": {
    "programs": {
      "Ok": false
    },
    "perf_programs": {
      "Ok": false
    },
    "ring_buffer": {
      "Ok": false
    },
    "uprobes": {
      "Ok": true
    },
    "perf_event_paranoid": {
      "Ok": 2
    },
    "tracefs": {
      "Ok": {
        "mounted": "/sys/kernel/tracing"
      }
    },
    "syscall_tracepoints": {
      "Err": "permission denied"
    },
    "task_registers": {
      "Ok": false
    },
"#]]
        );
    }
}
