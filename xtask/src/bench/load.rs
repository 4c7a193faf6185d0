//! What does the node do while it is measured, and how is a measure read? (The loads are in `tests/nodes/bench.c`.)

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::node::Node;

/// A load, in the order in which they are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Load {
    /// A short tight loop that is not reported.
    Warm,
    /// Pairs of 64 bytes, one after the other.
    Tight,
    /// Pairs of 64 to 4096 bytes, one after the other.
    TightVaried,
    /// Pairs of 64 bytes, 320,000 a second in bursts of a millisecond.
    Paced,
    /// A loop in Erlang that calls no malloc.
    Erlang,
    /// A short one.
    ErlangSlice,
    /// A short loop of pairs of 64 to 4096 bytes.
    TightSlice,
    /// Erlang code that builds and drops so much that carriers come and go.
    Carriers,
}

/// Pairs a second that [`Load::Paced`] aims at.
pub(super) const PACE: f64 = 320_000.0;

/// One run of a load: pairs, or iterations of the Erlang loop, and the time they took.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Measure {
    pub(super) count: u64,
    pub(super) cpu_ns: u64,
    pub(super) wall_ns: u64,
}

impl Load {
    pub(super) const MEASURED: [Self; 4] = [Self::Tight, Self::TightVaried, Self::Paced, Self::Erlang];

    /// Its key in the JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Tight => "tight_64",
            Self::TightVaried => "tight_64_4096",
            Self::Paced => "paced_64",
            Self::Erlang => "erlang",
            Self::ErlangSlice => "erlang_slice",
            Self::TightSlice => "tight_slice",
            Self::Carriers => "carriers",
        }
    }

    pub(super) fn run(self, node: &mut Node) -> Result<Measure> {
        let call = match self {
            Self::Warm => "bench tight 20 64 64",
            Self::Tight => "bench tight 1000 64 64",
            Self::TightVaried => "bench tight 1000 64 4096",
            Self::Paced => "bench paced 1000 320000 64 64",
            Self::Erlang => "bench reductions 400000000",
            Self::ErlangSlice => "bench reductions 40000000",
            Self::TightSlice => "bench tight 80 64 4096",
            Self::Carriers => "bench carriers 2",
        };
        let answer = node.call(call, Duration::from_mins(1))?;
        parse(&answer).with_context(|| format!("the node answered {call:?} with {answer:?}"))
    }
}

impl Measure {
    pub(super) fn cpu_ns_each(&self) -> f64 {
        self.cpu_ns as f64 / self.count as f64
    }

    pub(super) fn per_second(&self) -> f64 {
        self.count as f64 / self.wall_ns as f64 * 1e9
    }
}

/// Reads `{Count,CpuNs,WallNs}`.
pub(super) fn parse(answer: &str) -> Option<Measure> {
    let numbers = answer.strip_prefix('{')?.strip_suffix('}')?;
    let numbers: Vec<u64> = numbers.split(',').map(|number| number.trim().parse().ok()).collect::<Option<_>>()?;
    match numbers[..] {
        [count, cpu_ns, wall_ns] if count > 0 && wall_ns > 0 => Some(Measure { count, cpu_ns, wall_ns }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_erlang_tuples() {
        let measure = parse("{1000,5000,20000}").unwrap();
        assert!((measure.cpu_ns_each() - 5.0).abs() < f64::EPSILON);
        assert!((measure.per_second() - 5e7).abs() < 1.0);
        assert!(parse("{0,5000,20000}").is_none());
        assert!(parse("{error,enomem}").is_none());
    }
}
