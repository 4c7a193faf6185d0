//! What does `beamscope explain` cost: itself, at each depth, and the node beside it? How does it grow with the node?

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    PATIENCE, Section,
    beside::{self, Beside, Change, SNAPSHOTS},
    copy::{self, Copied},
    cost::Cost,
    look::{Depth, DepthReport, Look},
    spread::Spread,
};
use crate::{node::Node, project::Project};

/// Interleaved, so that what else the machine does falls on all depths and on the copy.
const ROUNDS: usize = 7;

/// A state is there by then, or the section fails.
const LOADING: Duration = Duration::from_mins(3);

/// beamscope's own memory is to stay within this...
const MEMORY: u64 = 64_000_000;

/// ...and one part in so many of the node's.
const MEMORY_PART: u64 = 100;

const GB: u64 = 1_000_000_000;

/// What a node is filled with; see `tests/nodes/allocators.erl`.
struct State {
    key: &'static str,
    name: &'static str,
    call: &'static str,
    /// The node's memory at its highest, and as much again as the machine should keep.
    needs: u64,
}

const STATES: [State; 2] = [
    State { key: "ordinary", name: "an ordinary node", call: "allocators mixed 40", needs: 2 * GB },
    State { key: "blocks", name: "20 million blocks", call: "allocators blocks 20000000", needs: 4 * GB },
];

/// One of each.
#[derive(Clone, Debug, Serialize)]
struct Round {
    auto: Look,
    full: Look,
    headers: Look,
    counters: Look,
    copied: Copied,
}

/// All that is known of one node.
struct Measured {
    rss: u64,
    loaded_s: f64,
    rounds: Vec<Round>,
    beside: Beside,
}

pub(super) fn measure(project: &Project) -> Result<Section> {
    let mut texts = Vec::new();
    let mut states = Map::new();
    for state in STATES {
        let (text, json) = if let Some(reason) = shortage(&state, beside::available()?) {
            (format!("not run: explain: {}: {reason}\n", state.name), json!({ "not_run": reason }))
        } else {
            let measured = measure_state(project, &state)?;
            (text(&state, &measured).context("no rounds")?, measured.json(&state).context("no rounds")?)
        };
        texts.push(text);
        states.insert(state.key.to_owned(), json);
    }
    Ok(Section { text: texts.join("\n"), json: Value::Object(states) })
}

/// Why the state cannot be had here: a node that the kernel kills for want of memory may not die alone.
fn shortage(state: &State, available: u64) -> Option<String> {
    let reason = || format!("{:.1} GB of memory are available, and {} GB are needed", gb(available), gb(state.needs));
    (available < state.needs).then(reason)
}

fn measure_state(project: &Project, state: &State) -> Result<Measured> {
    // With the emulator's own settings, as a user's node has them.
    let mut node = Node::start(&project.target.join("bench"), &[])?;
    let begin = Instant::now();
    node.call(state.call, LOADING)?;
    let loaded_s = begin.elapsed().as_secs_f64();
    node.call("allocators settle", PATIENCE)?;
    let pid = node.pid();
    // Before anything has looked at it.
    let rss = beside::rss(pid)?;
    let rounds = (1..=ROUNDS)
        .map(|round| {
            eprintln!("    explain: {}: round {round} of {ROUNDS}", state.name);
            let [auto, full, headers, counters] = Depth::ALL.map(|depth| Look::take(project, pid, depth));
            Ok(Round { auto: auto?, full: full?, headers: headers?, counters: counters?, copied: copy::of(pid)? })
        })
        .collect::<Result<Vec<Round>>>()?;
    eprintln!("    explain: {}: {SNAPSHOTS} snapshots and {SNAPSHOTS} more", state.name);
    let beside = beside::measure(&mut node, || Look::take(project, pid, Depth::Auto).map(drop))?;
    Ok(Measured { rss, loaded_s, rounds, beside })
}

impl Round {
    fn at(&self, depth: Depth) -> &Look {
        match depth {
            Depth::Auto => &self.auto,
            Depth::Full => &self.full,
            Depth::Headers => &self.headers,
            Depth::Counters => &self.counters,
        }
    }

    /// GiB of carriers in each second of the whole command.
    fn command_rate(&self) -> f64 {
        gib(self.full.carrier_bytes) / (self.full.cost.wall_ms / 1e3)
    }

    /// What `full` does and `headers` does not; nothing where that is less than the two differ by chance.
    fn walk_ms(&self) -> Option<f64> {
        let ms = self.full.cost.wall_ms - self.headers.cost.wall_ms;
        (ms > 0.0).then_some(ms)
    }

    fn walk_rate(&self) -> Option<f64> {
        Some(gib(self.full.multi_block_bytes) / (self.walk_ms()? / 1e3))
    }

    fn copy_rate(&self) -> f64 {
        gib(self.copied.bytes) / self.copied.seconds
    }

    fn walk_to_copy(&self) -> Option<f64> {
        Some(self.walk_rate()? / self.copy_rate())
    }

    fn peak(&self) -> u64 {
        Depth::ALL.map(|depth| self.at(depth).cost.peak_bytes).into_iter().max().unwrap_or_default()
    }
}

impl Measured {
    fn spread(&self, of: impl Fn(&Round) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(of))
    }

    fn spread_of_some(&self, of: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(of))
    }

    fn peak(&self) -> u64 {
        self.rounds.iter().map(Round::peak).max().unwrap_or_default()
    }

    fn memory_bound(&self) -> u64 {
        MEMORY + self.rss / MEMORY_PART
    }

    fn json(&self, state: &State) -> Option<Value> {
        let mut depths = Map::new();
        for depth in Depth::ALL {
            let spread = |of: fn(&Cost) -> f64| self.spread(|round| of(&round.at(depth).cost));
            depths.insert(
                depth.name().to_owned(),
                json!({
                    "wall_ms": spread(|cost| cost.wall_ms)?,
                    "user_ms": spread(|cost| cost.user_ms)?,
                    "system_ms": spread(|cost| cost.system_ms)?,
                    "peak_bytes": spread(|cost| cost.peak_bytes as f64)?,
                }),
            );
        }
        Some(json!({
            "state": state.call,
            "rss_bytes": self.rss,
            "loaded_s": self.loaded_s,
            "depths": depths,
            "walk_ms": self.spread_of_some(Round::walk_ms),
            "walk_gib_per_s": self.spread_of_some(Round::walk_rate),
            "command_gib_per_s": self.spread(Round::command_rate)?,
            "copy_gib_per_s": self.spread(Round::copy_rate)?,
            "walk_to_copy": self.spread_of_some(Round::walk_to_copy),
            "memory_bound_bytes": self.memory_bound(),
            "memory_bound_held": self.peak() <= self.memory_bound(),
            "beside": self.beside,
            "rounds": self.rounds,
        }))
    }
}

fn text(state: &State, measured: &Measured) -> Option<String> {
    let Measured { rss, loaded_s, rounds, beside } = measured;
    let full = &rounds.first()?.full;
    let mut lines = vec![
        format!(
            "explain: {} (`{}`, loaded in {loaded_s:.1} s): RSS {:.0} MiB, {} carriers of {:.0} MiB, {:.0} MiB \
             of that with several blocks each, {} blocks\n",
            state.name,
            state.call,
            mib(*rss),
            full.depth.carriers,
            mib(full.carrier_bytes),
            mib(full.multi_block_bytes),
            full.blocks
        ),
        format!("{:<10}{:>27}{:>27}{:>27}{:>27}\n", "", "wall ms", "user ms", "system ms", "peak RSS MiB"),
        format!("{:<10}{}\n", "--depth", format!("{:>9}{:>9}{:>9}", "smallest", "median", "largest").repeat(4)),
    ];
    for depth in Depth::ALL {
        let cells = |of: fn(&Cost) -> f64| {
            let Spread { smallest, median, largest } = measured.spread(|round| of(&round.at(depth).cost))?;
            Some(format!("{smallest:>9.0}{median:>9.0}{largest:>9.0}"))
        };
        let wall = cells(|cost| cost.wall_ms)?;
        let (user, system) = (cells(|cost| cost.user_ms)?, cells(|cost| cost.system_ms)?);
        lines.push(format!("{:<10}{wall}{user}{system}{}\n", depth.name(), cells(|cost| mib(cost.peak_bytes))?));
    }
    lines.extend(rounds.iter().flat_map(shortfalls));
    lines.push(format!("{:<58}{:>9}{:>9}{:>9}\n", "", "smallest", "median", "largest"));
    let line = |name: &str, spread: Option<Spread>| match spread {
        None => format!("{name:<58}not told: full took no longer than headers\n"),
        Some(Spread { smallest, median, largest }) => {
            format!("{name:<58}{smallest:>9.2}{median:>9.2}{largest:>9.2}\n")
        }
    };
    lines.extend([
        line("all carriers, GiB/s of the whole command, full", measured.spread(Round::command_rate)),
        line("those of several blocks, GiB/s of full less headers", measured.spread_of_some(Round::walk_rate)),
        line("plain copy of the node's private memory, GiB/s", measured.spread(Round::copy_rate)),
        line("walk / plain copy", measured.spread_of_some(Round::walk_to_copy)),
        line(&format!("longest tick in {SNAPSHOTS} spans with a snapshot, ms"), Some(beside.looked_at_gap_ms)),
        line(&format!("longest tick in {SNAPSHOTS} spans as long without, ms"), Some(beside.bare_gap_ms)),
        change(&format!("the node at rest, while {SNAPSHOTS} snapshots were taken"), beside.looked_at),
        change("the node at rest, for as long without", beside.bare),
        format!(
            "the bound of {} MB + {} % of RSS, {:.0} MiB, {}: {:.0} MiB at the most\n",
            MEMORY / 1_000_000,
            100 / MEMORY_PART,
            mib(measured.memory_bound()),
            if measured.peak() <= measured.memory_bound() { "held" } else { "did not hold" },
            mib(measured.peak())
        ),
    ]);
    Some(lines.concat())
}

/// What a figure is not of, though its name says so.
fn shortfalls(round: &Round) -> Vec<String> {
    let line = |depth: Depth| {
        let DepthReport { reached, carriers, walked, gone } = &round.at(depth).depth;
        let asked = if depth == Depth::Auto { Depth::Full } else { depth };
        let missed = reached != asked.name() || *gone > 0 || (asked == Depth::Full && walked < carriers);
        let name = depth.name();
        missed.then(|| format!("{name} reached {reached}: {walked} of {carriers} carriers walked, {gone} gone\n"))
    };
    Depth::ALL.into_iter().filter_map(line).collect()
}

fn change(name: &str, change: Change) -> String {
    let Change { rss_before, rss_after, minor_faults, major_faults } = change;
    let grown = rss_after as f64 - rss_before as f64;
    format!(
        "{name:<58}RSS {:.0} MiB {:+.0} KiB, {minor_faults} minor and {major_faults} major faults\n",
        mib(rss_before),
        grown / 1024.0
    )
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / GB as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(reached: &str, wall_ms: f64) -> Look {
        let cost = Cost { wall_ms, user_ms: 1.0, system_ms: 1.0, peak_bytes: 30 << 20 };
        let depth = DepthReport { reached: reached.to_owned(), carriers: 9, walked: 9, gone: 0 };
        Look { cost, depth, carrier_bytes: 3 << 30, multi_block_bytes: 2 << 30, blocks: 1000 }
    }

    fn measured(full_ms: f64) -> Measured {
        let round = Round {
            auto: look("full", full_ms),
            full: look("full", full_ms),
            headers: look("headers", 100.0),
            counters: look("counters", 50.0),
            copied: Copied { bytes: 4 << 30, missed_bytes: 0, seconds: 1.0 },
        };
        let still = Change { rss_before: GB, rss_after: GB, minor_faults: 0, major_faults: 0 };
        let gap = Spread { smallest: 5.0, median: 6.0, largest: 7.0 };
        let beside = Beside { looked_at: still, bare: still, looked_at_gap_ms: gap, bare_gap_ms: gap };
        Measured { rss: GB, loaded_s: 1.0, rounds: vec![round], beside }
    }

    #[test]
    fn the_walk_is_what_full_does_and_headers_does_not() {
        let json = measured(1100.0).json(&STATES[0]).unwrap();
        assert_eq!(json["command_gib_per_s"]["median"], 3.0 / 1.1);
        assert_eq!(json["walk_gib_per_s"]["median"], 2.0);
        assert_eq!(json["walk_to_copy"]["median"], 0.5);
        let text = text(&STATES[0], &measured(90.0)).unwrap();
        assert!(text.contains("not told: full took no longer than headers"), "{text}");
    }

    #[test]
    fn a_state_needs_its_memory() {
        let [_, blocks] = STATES;
        assert_eq!(shortage(&blocks, 4 * GB), None);
        assert_eq!(shortage(&blocks, 3_500_000_000).unwrap(), "3.5 GB of memory are available, and 4 GB are needed");
    }

    #[test]
    fn what_is_above_the_bound_or_short_of_the_depth_is_said() {
        let mut measured = measured(1100.0);
        let before = text(&STATES[0], &measured).unwrap();
        assert!(before.contains("held: 30 MiB") && !before.contains("reached"), "{before}");
        measured.rounds[0].auto.depth.walked = 3;
        measured.rounds[0].counters.cost.peak_bytes = 80_000_000;
        let after = text(&STATES[0], &measured).unwrap();
        assert!(after.contains("auto reached full: 3 of 9 carriers walked"), "{after}");
        assert!(after.contains("did not hold: 76 MiB"), "{after}");
    }
}
