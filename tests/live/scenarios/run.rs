//! What does a report say of a scenario?

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use super::{
    Scenario,
    outcome::{Counted, Outcome, write},
};
use crate::{
    agent::{Recording, Report},
    subject::Subject,
};

/// Nodes that run at a time.
const NODES: usize = 3;

/// Names of the scenarios to run, separated by commas, or `all`; without it, all but [`LEFT_OUT`] are.
const ONLY: &str = "BEAMSCOPE_SCENARIOS_ONLY";

/// What is left to `cargo xtask scenarios`, since the test command has little time: each is near one that is not.
const LEFT_OUT: [&str; 37] = [
    "operator_new",
    "driver_alloc",
    "two_causes_enif_alloc_and_fragmentation",
    "malloc_without_allocators",
    "fragmented_table",
    "lazily_freed",
    "binaries",
    "atoms",
    "realloc",
    "dirty_nif",
    "opened_library",
    "malloc_with_four_schedulers",
    "malloc_with_a_super_carrier",
    "fragmented_heaps",
    "processes",
    "heaps",
    "table",
    "ports",
    "warm_before",
    "leak_before",
    "sessions_that_begin",
    "mappings_in_balance",
    "threads_in_balance",
    "four_schedulers",
    "super_carrier_in_use",
    "binaries_that_stay",
    "rows_that_level_off",
    "tables_in_balance",
    "processes_in_balance",
    "messages_in_balance",
    "enif_alloc_in_balance",
    "driver_alloc_in_balance",
    "timers",
    "ports_in_balance",
    "modules_loaded_once",
    "known_atoms",
    "text",
];

/// Seconds to record each, in the stead of its own.
const SECONDS: &str = "BEAMSCOPE_SCENARIOS_SECONDS";

/// How long what was begun goes on before the recording begins.
const WARM_UP: Duration = Duration::from_secs(1);

/// Fails where one of the answers is not the one that is deserved.
pub(super) fn run_all(scenarios: &[Scenario]) {
    let only = env::var(ONLY).ok();
    let asked_for = |name: &str| match only.as_deref() {
        None => !LEFT_OUT.contains(&name),
        Some("all") => true,
        Some(names) => names.split(',').any(|only| only == name),
    };
    let left = Mutex::new(scenarios.iter().filter(|scenario| asked_for(scenario.name)));
    let next = || left.lock().expect("no thread fails with it").next();
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..NODES {
            scope.spawn(|| {
                while let Some(scenario) = next() {
                    let run = catch_unwind(AssertUnwindSafe(|| run(scenario)));
                    let outcome = run.unwrap_or_else(|cause| Outcome::not_judged(scenario, &*cause));
                    write(&outcome);
                    if !outcome.is_right() {
                        wrong.lock().expect("no thread fails with it").push(outcome);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no thread fails with it");
    let texts: Vec<String> = wrong.iter().map(Outcome::to_string).collect();
    assert!(wrong.is_empty(), "{} scenarios were judged wrong:\n{}", wrong.len(), texts.concat());
}

fn run(scenario: &Scenario) -> Outcome {
    let mut node = Subject::node(scenario.arguments);
    for question in scenario.before {
        node.ask(question);
    }
    sleep(WARM_UP);
    let recording = Recording::start_as(node.pid(), "auto", "120s", &[]);
    for question in scenario.during {
        node.ask(question);
    }
    let seconds = env::var(SECONDS).map_or(scenario.seconds, |text| text.parse().expect("seconds"));
    let name = scenario.leak.map(|leak| leak.counter);
    let begin = name.map(|name| (Instant::now(), node.figure("counters", name)));
    sleep(Duration::from_secs(seconds));
    let counted = begin.zip(name).map(|((since, before), name)| {
        let bytes = node.figure("counters", name) - before;
        Counted { bytes, seconds: since.elapsed().as_secs_f64() }
    });
    // A node whose work has failed has ended.
    node.ask("pid");
    if scenario.killed {
        node.kill();
    } else {
        recording.interrupt();
    }
    let (_folder, file) = recording.into_file();
    Outcome::of(scenario, counted, &Report::of(&file), &file)
}
