//! What is attached where, and what that costs or loses: decided once, from facts, without touching the kernel.

use std::path::PathBuf;

use beamscope_probe::{Architecture, Function};

use super::{
    faults::FaultTracing,
    features::{Fact, KernelFeatures, Tracefs},
    placement::{Placement, place},
};
use crate::target::allocator::{Allocator, Located};

/// One probe on a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The BPF program.
    pub program: &'static str,
    /// The file, by a path that is valid here and not only in the target's mount namespace.
    pub path: PathBuf,
    /// Offset of the instruction in the file.
    pub offset: u64,
    /// Function and library, for messages.
    pub place: String,
    /// Whether the kernel carries out the instruction there by itself.
    pub emulated: bool,
}

/// How `mmap`, `munmap`, `mremap` and `brk` are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingCalls {
    /// At the system calls, whoever makes them.
    SystemCalls {
        /// Whether tracefs has to be mounted first, in a mount namespace of beamscope's own.
        mount_tracefs: bool,
    },
    /// At the C library's functions.
    Functions,
    /// Nowhere.
    NotFollowed,
}

/// What the kernel offers for system calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemCallTracing {
    /// Tracepoints, with the user's registers.
    Available {
        /// Whether tracefs has to be mounted first.
        mount_tracefs: bool,
    },
    /// Nothing that beamscope can use.
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// Nobody wants to know of them.
    NotAsked,
}

impl SystemCallTracing {
    /// What `features` permit.
    pub fn of(features: &KernelFeatures) -> Self {
        let unless = |fact: &Fact, reason: &str| match fact {
            Ok(true) => None,
            Ok(false) => Some(reason.to_owned()),
            Err(error) => Some(error.clone()),
        };
        let mount_tracefs = match &features.tracefs {
            Ok(Tracefs::Mounted(_)) => false,
            Ok(Tracefs::Mountable) => true,
            Ok(Tracefs::Absent) => return Self::Unavailable { reason: "the kernel has no tracefs".to_owned() },
            Err(error) => return Self::Unavailable { reason: error.clone() },
        };
        let tracepoints = unless(&features.syscall_tracepoints, "the kernel has no tracepoints at system calls");
        let missing = tracepoints
            .or_else(|| unless(&features.task_registers, "the kernel gives no registers at system calls"))
            .or_else(|| unless(&features.initial_pid_namespace, "pids here are not the kernel's"));
        match missing {
            Some(reason) => Self::Unavailable { reason },
            None => Self::Available { mount_tracefs },
        }
    }
}

/// Where stacks are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackEngine {
    /// In the kernel, by unwind rows.
    Kernel,
    /// Here, from images of the stack that the kernel sends.
    Images,
}

impl StackEngine {
    /// What `features` permit, or what the user asked for; and what is lost by it.
    pub fn of(features: &KernelFeatures, asked: Option<Self>) -> (Self, Option<String>) {
        let reason = match (&features.loops, asked) {
            (_, Some(Self::Images)) => "asked for by --stack-engine".to_owned(),
            (Ok(true), _) => return (Self::Kernel, None),
            (Ok(false), _) => "the kernel has no bpf_loop (Linux 5.17)".to_owned(),
            (Err(error), _) => error.clone(),
        };
        let note = format!(
            "stacks are sampled and walked outside the kernel ({reason}): where one place in the code has several stacks, \
             its bytes are divided among them by samples"
        );
        (Self::Images, Some(note))
    }
}

/// All that is attached for one recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachPlan {
    /// Probes on functions, in the order in which they are attached.
    pub points: Vec<Point>,
    /// How mapping calls are followed.
    pub mapping_calls: MappingCalls,
    /// Where stacks are walked.
    pub engine: StackEngine,
    /// Whether page faults are followed.
    pub faults: bool,
    /// Thread group id for tracepoints and page faults, in the initial pid namespace; 0 where they are not used.
    pub target: u32,
    /// What is lost or costs more than it should, one sentence each.
    pub notes: Vec<String>,
}

impl AttachPlan {
    /// Decides for a process `target` whose memory functions are those of `allocators`.
    pub fn new(
        architecture: Architecture,
        allocators: &[Allocator],
        tracing: &SystemCallTracing,
        engine: StackEngine,
        target: u32,
    ) -> Self {
        let mut notes = Vec::new();
        let mapping_calls = match tracing {
            SystemCallTracing::Available { mount_tracefs } => {
                MappingCalls::SystemCalls { mount_tracefs: *mount_tracefs }
            }
            SystemCallTracing::Unavailable { reason } => {
                notes.push(format!(
                    "mapping calls are followed at the C library's functions ({reason}): system calls that a library \
                     makes without them are not seen, nor what made a thread"
                ));
                MappingCalls::Functions
            }
            SystemCallTracing::NotAsked => MappingCalls::NotFollowed,
        };
        let mut points = Vec::new();
        for allocator in allocators {
            let mut dear = Vec::new();
            for located in &allocator.functions {
                if is_mapping_call(located.function) && mapping_calls != MappingCalls::Functions {
                    continue;
                }
                let programs = programs(located.function);
                let placement = place(architecture, &located.code, programs.arguments);
                let name = format!("{} in {}", located.function.name(), allocator.name);
                if !placement.emulated {
                    dear.push(located.function.name());
                }
                let on_return = programs.on_return.map(|program| engine.program(program));
                for program in [on_return, Some(engine.program(programs.on_entry))].into_iter().flatten() {
                    points.push(point(program, allocator, located, placement, &name));
                }
            }
            if allocator.functions.iter().any(|located| located.function.is_vm_api()) {
                notes.push(VM_API_COST.to_owned());
            }
            if !dear.is_empty() {
                notes.push(format!(
                    "the kernel cannot emulate the first instructions of {} in {}: a call of one of them costs the node \
                     about ten times as much as a call of another",
                    dear.join(", "),
                    allocator.name
                ));
            }
        }
        // Returns before entries: a call whose return is missed would look as if it never ended.
        points.sort_by_key(|point| !WITH_STACKS.iter().flatten().any(|program| *program == point.program));
        let target = if matches!(mapping_calls, MappingCalls::SystemCalls { .. }) { target } else { 0 };
        Self { points, mapping_calls, engine, faults: false, target, notes }
    }

    /// With the page faults of the process `target`, where that is possible.
    #[must_use]
    pub fn with_faults(mut self, tracing: &FaultTracing, target: u32) -> Self {
        self.notes.extend(tracing.note());
        self.faults = *tracing == FaultTracing::Available;
        if self.faults {
            self.target = target;
        }
        self
    }
}

/// Said where the VM's own functions are followed. Measured by `cargo xtask bench --only vm_api` with OTP 25.2.3.
const VM_API_COST: &str = "--vm-api: each call of the VM's functions for native code costs the node some microseconds \
                           more, up to 14 where the kernel cannot emulate their first instruction, and each block that \
                           the VM frees, also for itself, one";

/// Programs that need stacks, by the engine.
const WITH_STACKS: [[&str; 2]; 7] = [
    ["allocated", "allocated_walking"],
    ["vm_allocated", "vm_allocated_walking"],
    ["mapped", "mapped_walking"],
    ["sys_exit", "sys_exit_walking"],
    ["carrier_requested", "carrier_requested_walking"],
    ["task_newtask", "task_newtask_walking"],
    ["page_fault", "page_fault_walking"],
];

impl StackEngine {
    /// The program that does what `program` does, with this engine.
    pub fn program(self, program: &'static str) -> &'static str {
        let of_engine = WITH_STACKS.iter().find(|[images, _]| *images == program).map(|[images, kernel]| match self {
            Self::Images => *images,
            Self::Kernel => *kernel,
        });
        of_engine.unwrap_or(program)
    }
}

struct Programs {
    on_entry: &'static str,
    on_return: Option<&'static str>,
    /// Arguments that the entry program reads.
    arguments: usize,
}

fn programs(function: Function) -> Programs {
    let (on_return, arguments) = match function {
        Function::Malloc | Function::Valloc | Function::Pvalloc | Function::OperatorNew => (Some("allocated"), 1),
        Function::Calloc | Function::Realloc | Function::AlignedAlloc | Function::Memalign => (Some("allocated"), 2),
        Function::Reallocarray | Function::PosixMemalign => (Some("allocated"), 3),
        Function::Free | Function::EnifFree | Function::DriverFree => (None, 1),
        Function::Brk => (Some("mapped"), 1),
        Function::Munmap => (Some("mapped"), 2),
        Function::Mmap | Function::Mremap => (Some("mapped"), 4),
        Function::EnifAlloc | Function::DriverAlloc | Function::DriverAllocBinary => (Some("vm_allocated"), 1),
        Function::EnifRealloc
        | Function::EnifAllocResource
        | Function::EnifMakeNewBinary
        | Function::EnifAllocBinary
        | Function::EnifReallocBinary
        | Function::DriverRealloc
        | Function::DriverReallocBinary => (Some("vm_allocated"), 2),
        Function::VmFree => (None, 3),
        Function::MsegAlloc => (None, 4),
    };
    let on_entry = match function {
        Function::OperatorNew => "operator_new",
        Function::EnifFree | Function::DriverFree => "vm_api_free",
        Function::VmFree => "vm_free",
        Function::MsegAlloc => "carrier_requested",
        _ => function.name(),
    };
    Programs { on_entry, on_return, arguments }
}

/// Whether a function maps memory and allocates no blocks.
pub fn is_mapping_call(function: Function) -> bool {
    matches!(function, Function::Mmap | Function::Munmap | Function::Mremap | Function::Brk)
}

fn point(program: &'static str, allocator: &Allocator, located: &Located, placement: Placement, name: &str) -> Point {
    Point {
        program,
        path: allocator.attach_path.clone(),
        offset: located.offset.0.saturating_add(placement.offset),
        place: name.to_owned(),
        emulated: placement.emulated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::features::{Capabilities, Lockdown},
        target::elf::{ElfAddress, FileOffset},
    };

    const PUSH: &[u8] = &[0x55];
    const SUB: &[u8] = &[0x48, 0x83, 0xec, 0x18];

    fn allocator(functions: &[(Function, &[u8])]) -> Allocator {
        let located = |(number, (function, code)): (u64, &(Function, &[u8]))| Located {
            function: *function,
            address: ElfAddress(0x1000 * number),
            offset: FileOffset(0x1000 * number),
            size: 64,
            code: code.to_vec(),
        };
        Allocator {
            path: "/lib/libc.so.6".to_owned(),
            attach_path: "/proc/1/root/lib/libc.so.6".into(),
            name: "libc.so.6".to_owned(),
            bias: 0,
            functions: (0..).zip(functions).map(located).collect(),
        }
    }

    fn plan(functions: &[(Function, &[u8])], tracing: &SystemCallTracing) -> AttachPlan {
        AttachPlan::new(Architecture::X86_64, &[allocator(functions)], tracing, StackEngine::Images, 42)
    }

    fn features(
        tracefs: Result<Tracefs, String>,
        tracepoints: Fact,
        registers: Fact,
        host_pids: Fact,
    ) -> KernelFeatures {
        KernelFeatures {
            programs: Ok(true),
            perf_programs: Ok(true),
            ring_buffer: Ok(true),
            uprobes: Ok(true),
            perf_event_paranoid: Ok(2),
            tracefs,
            syscall_tracepoints: tracepoints,
            task_registers: registers,
            loops: Ok(true),
            btf: Ok(true),
            initial_pid_namespace: host_pids,
            initial_user_namespace: Ok(true),
            lockdown: Ok(Lockdown::None),
            locked_memory: Ok(None),
            capabilities: Ok(Capabilities::default()),
            ptrace_scope: Ok(0),
        }
    }

    #[test]
    fn system_calls_are_traced_only_where_all_of_it_is_there() {
        let check = |tracefs, tracepoints, registers, host_pids, expected: Result<bool, &str>| {
            let seen = match SystemCallTracing::of(&features(tracefs, tracepoints, registers, host_pids)) {
                SystemCallTracing::Available { mount_tracefs } => Ok(mount_tracefs),
                SystemCallTracing::Unavailable { reason } => Err(reason),
                SystemCallTracing::NotAsked => panic!("nobody was asked"),
            };
            match (seen, expected) {
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
                (seen, expected) => assert_eq!(seen, expected.map_err(str::to_owned)),
            }
        };
        let mounted = || Ok(Tracefs::Mounted("/sys/kernel/tracing".into()));
        check(mounted(), Ok(true), Ok(true), Ok(true), Ok(false));
        check(Ok(Tracefs::Mountable), Ok(true), Ok(true), Ok(true), Ok(true));
        check(Ok(Tracefs::Mountable), Err("not permitted".into()), Ok(true), Ok(true), Err("not permitted"));
        check(Ok(Tracefs::Absent), Ok(false), Ok(true), Ok(true), Err("no tracefs"));
        check(mounted(), Ok(false), Ok(true), Ok(true), Err("no tracepoints"));
        check(mounted(), Ok(true), Ok(false), Ok(true), Err("no registers"));
        check(mounted(), Ok(true), Ok(true), Ok(false), Err("pids here"));
        check(Err("unreadable".into()), Ok(true), Ok(true), Ok(true), Err("unreadable"));
    }

    const TRACEPOINTS: SystemCallTracing = SystemCallTracing::Available { mount_tracefs: true };

    #[test]
    fn returns_are_attached_before_entries() {
        let plan = plan(&[(Function::Malloc, PUSH), (Function::Free, PUSH), (Function::Calloc, PUSH)], &TRACEPOINTS);
        let programs: Vec<&str> = plan.points.iter().map(|point| point.program).collect();
        assert_eq!(programs, ["allocated", "allocated", "malloc", "free", "calloc"]);
        assert_eq!(plan.notes, [""; 0]);
        assert_eq!(plan.target, 42);
    }

    #[test]
    fn growth_needs_the_process_and_no_allocation_function() {
        let requests: [(Function, &[u8]); 1] = [(Function::MsegAlloc, PUSH)];
        let with = plan(&requests, &SystemCallTracing::NotAsked).with_faults(&FaultTracing::Available, 42);
        let programs: Vec<&str> = with.points.iter().map(|point| point.program).collect();
        assert_eq!((programs, with.mapping_calls), (vec!["carrier_requested"], MappingCalls::NotFollowed));
        assert_eq!((with.faults, with.target, with.notes), (true, 42, vec![]));
        let reason = "pids here are not the kernel's".to_owned();
        let without = plan(&requests, &SystemCallTracing::NotAsked);
        let without = without.with_faults(&FaultTracing::Unavailable { reason }, 42);
        assert_eq!((without.faults, without.target), (false, 0));
        assert!(without.notes.iter().any(|note| note.contains("page faults are not followed")), "{:?}", without.notes);
    }

    #[test]
    fn page_faults_are_followed_only_where_the_node_can_be_told_from_others() {
        let of = |perf: Fact, host_pids: Fact| {
            FaultTracing::of(&KernelFeatures {
                perf_programs: perf,
                ..features(Ok(Tracefs::Absent), Ok(true), Ok(true), host_pids)
            })
        };
        assert_eq!(of(Ok(true), Ok(true)), FaultTracing::Available);
        for (perf, host_pids) in [(Ok(false), Ok(true)), (Ok(true), Ok(false)), (Err("?".to_owned()), Ok(true))] {
            assert!(matches!(of(perf, host_pids), FaultTracing::Unavailable { .. }));
        }
    }

    #[test]
    fn entry_and_return_share_the_instruction() {
        let plan = plan(&[(Function::Free, PUSH), (Function::PosixMemalign, &[0x85, 0xff, 0x55])], &TRACEPOINTS);
        let offsets: Vec<(&str, u64)> = plan.points.iter().map(|point| (point.program, point.offset)).collect();
        assert_eq!(offsets, [("allocated", 0x1002), ("free", 0), ("posix_memalign", 0x1002)]);
    }

    #[test]
    fn functions_serve_where_the_kernel_has_no_tracepoints() {
        let functions: [(Function, &[u8]); 2] = [(Function::Mmap, PUSH), (Function::Malloc, PUSH)];
        let with = plan(&functions, &TRACEPOINTS);
        assert_eq!(with.points.len(), 2);
        assert_eq!(with.mapping_calls, MappingCalls::SystemCalls { mount_tracefs: true });
        let without = plan(&functions, &SystemCallTracing::Unavailable { reason: "no tracefs".to_owned() });
        assert_eq!(without.points.len(), 4);
        assert_eq!(without.mapping_calls, MappingCalls::Functions);
        assert_eq!(without.target, 0);
        assert!(without.notes[0].contains("no tracefs"), "{:?}", without.notes);
    }

    #[test]
    fn a_dear_place_is_said() {
        let plan = plan(&[(Function::Malloc, SUB)], &TRACEPOINTS);
        assert!(plan.notes[0].contains("of malloc in libc.so.6"), "{:?}", plan.notes);
        assert_eq!(plan.points[0].offset, 0);
    }
}
