//! Page faults of a process: whether they can be followed here, and how the program is attached to them.
//!
//! The kernel has an event for them on each processor, for all processes at a time; the program leaves out what is not the
//! node's, by its thread group id. So threads that begin later are seen as well, and no thread is touched to attach.

use aya::{
    Ebpf,
    programs::perf_event::{PerfEvent, PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
};

use super::{
    features::KernelFeatures,
    plan::StackEngine,
    session::{SessionError, program_mut},
};

/// Share of each processor's time that looking at page faults may take; beyond it, some stand for the others.
const SHARE: f64 = 0.001;

/// Of as many page faults on a processor, whosever they are, the program is told of one, which stands for them. Telling it of
/// each costs a node whose carriers come and go some percent of its time (`cargo xtask bench --only growth`).
pub const PERIOD: u64 = 16;

/// Whether page faults can be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultTracing {
    /// Yes.
    Available,
    /// Nobody wants to know of them.
    NotAsked,
    /// No.
    Unavailable {
        /// Why not.
        reason: String,
    },
}

impl FaultTracing {
    /// What `features` permit.
    pub fn of(features: &KernelFeatures) -> Self {
        let missing = match (&features.initial_pid_namespace, &features.perf_programs) {
            (Ok(true), Ok(true)) => return Self::Available,
            (Ok(false), _) => "pids here are not the kernel's, so the node's cannot be told from others",
            (_, Ok(false)) => "the kernel takes no BPF programs at perf events",
            (Err(reason), _) | (_, Err(reason)) => reason,
        };
        Self::Unavailable { reason: missing.to_owned() }
    }

    /// What is lost where there are none.
    pub(super) fn note(&self) -> Option<String> {
        let Self::Unavailable { reason } = self else { return None };
        Some(format!("page faults are not followed ({reason}): who touches new memory is not known"))
    }
}

/// The share as the program counts it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a constant between 0 and 1")]
pub(super) fn share() -> u32 {
    (SHARE * 65536.0).round() as u32
}

/// Attaches on every processor that is there.
pub(super) fn attach(ebpf: &mut Ebpf, engine: StackEngine) -> Result<(), SessionError> {
    const PLACE: &str = "the kernel's event for page faults";
    let program = loaded(ebpf, engine)?;
    let processors = aya::util::online_cpus().map_err(|(_, error)| SessionError::Processors(error))?;
    for cpu in processors {
        let event = PerfEventConfig::Software(SoftwareEvent::PageFaults);
        program
            .attach(event, PerfEventScope::AllProcessesOneCpu { cpu }, SamplePolicy::Period(PERIOD), false)
            .map_err(|source| SessionError::Attach { place: PLACE.to_owned(), source })?;
    }
    Ok(())
}

/// The program that walks stacks, or the one that sends them: until Linux 6.1 the kernel takes no program at perf events
/// that uses a table like that of the walked stacks (`check_map_prog_compatibility`, kernel/bpf/verifier.c).
fn loaded(ebpf: &mut Ebpf, engine: StackEngine) -> Result<&mut PerfEvent, SessionError> {
    const PROGRAM: &str = "page_fault";
    let walking = engine.program(PROGRAM);
    let mut name = walking;
    if walking != PROGRAM {
        let program: &mut PerfEvent = program_mut(ebpf, walking)?;
        if program.load().is_err() {
            name = PROGRAM;
        }
    }
    let program: &mut PerfEvent = program_mut(ebpf, name)?;
    if name == PROGRAM {
        program.load().map_err(|source| SessionError::Program { program: PROGRAM, source })?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_what_it_says() {
        assert_eq!(share(), 66);
    }
}
