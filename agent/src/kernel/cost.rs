//! What has the probe cost the node's threads by now?
//!
//! The kernel counts how often each BPF program ran, and for how long (`BPF_ENABLE_STATS`, Linux 5.8, kernel/bpf/syscall.c);
//! what leads there, a trap mostly, is priced by [`super::calibrate`].

use std::{collections::BTreeMap, os::fd::OwnedFd};

use aya::{Ebpf, programs::Program};
use beamscope_probe::Counter;

use super::{
    calibrate::{self, Calibration, Prices},
    plan::{AttachPlan, StackEngine},
    session::{Session, SessionError},
};

/// Time of the programs of an allocation and of a free, without walks, in seconds, where the kernel does not count it.
/// Measured on `x86_64` with Linux 6.18.
const ALLOCATION_PROGRAMS: f64 = 0.9e-6;
const FREE_PROGRAM: f64 = 0.25e-6;
/// Time of a program at a tracepoint for a process that is not followed, in seconds.
const FOREIGN: f64 = 0.06e-6;

/// What the probe has cost by now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Seconds of processor time of the node's threads.
    pub seconds: f64,
    /// The part of it for walking the stacks of allocations.
    pub walking: f64,
}

/// How often a program ran, and for how many nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Runs {
    count: u64,
    nanoseconds: u64,
}

/// What leads to a program.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// A probe on a function; with the share of its points at which the kernel carries out the instruction by itself.
    Entry(f64),
    /// The return of a function whose entry has a probe as well.
    Return,
    Tracepoint,
    /// A perf event.
    Event,
}

/// Measures the cost.
pub(super) struct Meter {
    /// While it is open, the kernel counts.
    statistics: Option<OwnedFd>,
    prices: Prices,
    /// Probes on beamscope itself that are being taken away.
    calibration: Option<Calibration>,
    ways: BTreeMap<String, Way>,
    /// What the programs had run before the recording.
    before: BTreeMap<String, Runs>,
    notes: Vec<String>,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Meter({:?})", self.prices)
    }
}

impl Meter {
    /// Begins to count, and finds out what the traps cost here. The programs of the plan's points are loaded.
    pub(super) fn new(ebpf: &mut Ebpf, plan: &AttachPlan) -> Self {
        let mut notes = Vec::new();
        let statistics = match aya::sys::enable_stats(aya::sys::Stats::RunTime) {
            Ok(statistics) => Some(statistics),
            Err(error) => {
                notes.push(format!(
                    "what recording costs the node is estimated from what was followed ({:#}): it takes CAP_SYS_ADMIN and \
                     Linux 5.8 to have the kernel measure it",
                    anyhow::Error::new(error)
                ));
                None
            }
        };
        let mut points: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for point in &plan.points {
            let (emulated, all) = points.entry(point.program).or_default();
            *emulated += f64::from(u8::from(point.emulated));
            *all += 1.0;
        }
        let way = |(program, (emulated, all)): (&str, (f64, f64))| {
            let is_return = ["allocated", "vm_allocated", "mapped"]
                .iter()
                .any(|other| StackEngine::Kernel.program(other) == program || *other == program);
            (program.to_owned(), if is_return { Way::Return } else { Way::Entry(emulated / all) })
        };
        let ways: BTreeMap<String, Way> = points.into_iter().map(way).collect();
        let (mut prices, mut calibration) = (Prices::MEASURED_ELSEWHERE, None);
        if ways.contains_key("free") {
            match calibrate::run(ebpf, plan.engine, statistics.is_some()) {
                Ok((here, probes)) => (prices, calibration) = (here, Some(probes)),
                Err(error) => notes.push(format!(
                    "what a probe costs was not measured here but taken from another machine: {:#}",
                    anyhow::Error::new(error)
                )),
            }
        }
        let before = runs(ebpf);
        Self { statistics, prices, calibration, ways, before, notes }
    }

    /// Waits until the probes on beamscope itself are gone: while they go, others cannot be attached.
    pub(super) fn settle(&mut self) {
        if let Some(calibration) = self.calibration.take() {
            calibration.wait();
        }
    }

    /// How often each program has run.
    pub(super) fn hits(&self, ebpf: &Ebpf) -> BTreeMap<String, u64> {
        self.since(ebpf).into_iter().map(|(program, (_, runs))| (program, runs.count)).collect()
    }

    fn since(&self, ebpf: &Ebpf) -> BTreeMap<String, (Way, Runs)> {
        let all = ebpf.programs().filter_map(|(name, program)| {
            let way = match program {
                Program::UProbe(_) => self.ways.get(name).copied()?,
                Program::TracePoint(_) => Way::Tracepoint,
                Program::PerfEvent(_) => Way::Event,
                _ => return None,
            };
            let now = runs_of(program)?;
            let before = self.before.get(name).copied().unwrap_or_default();
            let since = Runs {
                count: now.count.saturating_sub(before.count),
                nanoseconds: now.nanoseconds.saturating_sub(before.nanoseconds),
            };
            Some((name.to_owned(), (way, since)))
        });
        all.collect()
    }
}

impl Session {
    /// What the probe has cost the node since it was attached.
    pub fn spent(&self) -> Result<Spent, SessionError> {
        let walking = self.counter(Counter::WalkNanoseconds)? as f64 / 1e9;
        let Meter { statistics, prices, ways, .. } = &self.meter;
        if statistics.is_none() {
            let (mut allocated, mut freed) = (0, self.counter(Counter::UnknownFrees)?);
            for (_, site) in self.sites()? {
                allocated += site.allocated_blocks;
                freed += site.freed_blocks;
            }
            let entries: Vec<f64> = ways.values().filter_map(|way| prices.of_entry(*way)).collect();
            let entry = entries.iter().sum::<f64>() / (entries.len() as f64).max(1.0);
            let seconds = allocated as f64 * (entry + prices.on_return + ALLOCATION_PROGRAMS)
                + freed as f64 * (entry + FREE_PROGRAM)
                + walking;
            return Ok(Spent { seconds, walking });
        }
        let since = self.meter.since(&self.attached);
        let seconds = since.values().map(|(way, runs)| prices.of(*way, *runs, self.mapping_events)).sum::<f64>();
        Ok(Spent { seconds, walking: walking.min(seconds) })
    }

    /// What was decided for the measurement, and what the prices are: one sentence each.
    pub fn cost_notes(&self) -> Vec<String> {
        self.meter.notes.iter().cloned().chain(self.meter.calibration_note()).collect()
    }
}

impl Meter {
    fn calibration_note(&self) -> Option<String> {
        let Prices { emulated, stepped, on_return, is_measured } = self.prices;
        is_measured.then(|| {
            format!(
                "measured here before the recording: a probe costs a thread {:.2} us each time that it is hit{}, and {:.2} \
                 us more where the return is followed, and its program besides",
                emulated * 1e6,
                stepped.map_or(String::new(), |stepped| format!(
                    " ({:.1} us where the kernel cannot emulate the instruction)",
                    stepped * 1e6
                )),
                on_return * 1e6
            )
        })
    }
}

impl Prices {
    fn of_entry(&self, way: Way) -> Option<f64> {
        let Way::Entry(emulated) = way else { return None };
        let stepped = self.stepped.unwrap_or(self.emulated);
        Some(emulated * self.emulated + (1.0 - emulated) * stepped)
    }

    /// Seconds that `runs` of a program have cost the node, which has made `mapping_events` mapping calls.
    fn of(&self, way: Way, runs: Runs, mapping_events: u64) -> f64 {
        let (count, seconds) = (runs.count as f64, runs.nanoseconds as f64 / 1e9);
        match way {
            Way::Entry(_) => seconds + count * self.of_entry(way).unwrap_or(0.0),
            Way::Return => seconds + count * self.on_return,
            // Tracepoints are hit by every process: the node's calls are those that events tell of, at their begin and end.
            Way::Tracepoint => {
                let own = count.min(2.0 * mapping_events as f64);
                (seconds - (count - own) * FOREIGN).max(0.0) + own * Self::TRACEPOINT
            }
            Way::Event => seconds + count * Self::EVENT,
        }
    }
}

fn runs(ebpf: &Ebpf) -> BTreeMap<String, Runs> {
    ebpf.programs().filter_map(|(name, program)| Some((name.to_owned(), runs_of(program)?))).collect()
}

/// `None` where the program is not loaded.
pub(super) fn runs_and_time(program: &Program) -> Option<(u64, f64)> {
    runs_of(program).map(|runs| (runs.count, runs.nanoseconds as f64 / 1e9))
}

fn runs_of(program: &Program) -> Option<Runs> {
    let information = program.info().ok()?;
    let nanoseconds = u64::try_from(information.run_time().as_nanos()).unwrap_or(u64::MAX);
    Some(Runs { count: information.run_count(), nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: Prices = Prices { emulated: 1e-6, stepped: Some(10e-6), on_return: 0.5e-6, is_measured: true };

    fn check(way: Way, count: u64, nanoseconds: u64, events: u64, expected: f64) {
        let cost = PRICES.of(way, Runs { count, nanoseconds }, events);
        assert!((cost - expected).abs() < 1e-12, "{way:?}: {cost}");
    }

    #[test]
    fn runs_cost_their_time_and_the_way_to_them() {
        check(Way::Entry(1.0), 1000, 200_000, 0, 1.2e-3);
        check(Way::Entry(0.0), 1000, 200_000, 0, 10.2e-3);
        check(Way::Entry(0.5), 1000, 0, 0, 5.5e-3);
        check(Way::Return, 1000, 500_000, 0, 1e-3);
    }

    #[test]
    fn system_calls_of_others_cost_the_node_nothing() {
        let own = Prices::TRACEPOINT * 10.0;
        check(Way::Tracepoint, 10, 5000, 5, own + 5e-6);
        check(Way::Tracepoint, 1010, 5000 + 60_000, 5, own + 5e-6);
        check(Way::Tracepoint, 1000, 40_000, 0, 0.0);
    }
}
