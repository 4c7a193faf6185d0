//! Does auto mode keep its budget, and what does it see within it?

use std::{thread::sleep, time::Duration};

use crate::{
    agent::{Recording, Report},
    subject::Subject,
};

fn cost(report: &Report, key: &str) -> f64 {
    report.0["cost"][key].as_f64().unwrap_or_else(|| panic!("no {key} in {:#}", report.0["cost"]))
}

/// A tight loop of pairs is followed for a part of the time only, and a leak beside it is still seen there.
#[test]
fn a_tight_loop_is_followed_within_the_budget() {
    const BUDGET: f64 = 0.1;
    let mut node = Subject::node(&[]);
    node.ask("leak malloc 1000 10 50");
    let recording = Recording::start_as(node.pid(), "auto", "10s", &["--budget", "10"]);
    let before = node.figure("counters", "malloc");
    node.ask("call bench tight 9500 64 64");
    let leaked = (node.figure("counters", "malloc") - before) as f64;
    let report = recording.wait();
    report.assert_no_loss();

    let share = cost(&report, "node_cpu_share");
    assert!(share > 0.01 && share <= 1.3 * BUDGET, "{:#}", report.0["cost"]);
    assert!((cost(&report, "budget") - BUDGET).abs() < 1e-9);
    assert!(report.0["cost"]["steps"].as_array().is_some_and(|steps| !steps.is_empty()));
    let seconds = report.0["interval"]["seconds"].as_f64().expect("seconds");
    let blind = report.0["blind"].as_array().expect("blind spans");
    let blind_seconds: f64 =
        blind.iter().filter_map(|span| Some(span["until"].as_f64()? - span["from"].as_f64()?)).sum();
    let followed = report.0["interval"]["followed_seconds"].as_f64().expect("seconds");
    assert!(blind_seconds > 1.0 && (followed + blind_seconds - seconds).abs() < 1e-6, "{:#}", report.0["cost"]);

    let outstanding = report.sum("take_malloc", "outstanding_bytes") as f64;
    let (seen, counted) = (outstanding / followed, leaked / 9.5);
    assert!((seen / counted - 1.0).abs() < 0.4, "{seen} B/s seen, {counted} counted: {:#}", report.0["cost"]);
    let loop_allocated = report.sum("pairs", "allocated_bytes") as f64;
    assert!(loop_allocated > 1e6, "{loop_allocated} bytes of the loop");
    // What is in the loop's hands at the end of a window is a block or two.
    assert!(report.sum("pairs", "outstanding_bytes") < 64 * 64);
}

/// Where following costs less than the budget, nothing is left out.
#[test]
fn a_quiet_node_is_followed_in_full() {
    let mut node = Subject::node(&[]);
    node.ask("leak malloc 1000 10 50");
    let recording = Recording::start_as(node.pid(), "auto", "60s", &[]);
    sleep(Duration::from_secs(3));
    let report = recording.stop();
    // A page that a new thread touches first can have a stack that ends in `clone`, which has no unwind tables.
    let losses = report.0["losses"].as_object().expect("losses");
    assert!(losses.keys().all(|name| name == "stacks_without_unwind_information"), "{losses:?}");
    assert_eq!(report.0["blind"], serde_json::json!([]));
    let seconds = report.0["interval"]["seconds"].as_f64().expect("seconds");
    assert!((report.0["interval"]["followed_seconds"].as_f64().expect("seconds") - seconds).abs() < 1e-9);
    let share = cost(&report, "node_cpu_share");
    assert!(share > 0.0 && share < 0.15, "{:#}", report.0["cost"]);
    assert!(report.sum("take_malloc", "outstanding_bytes") > 500_000);
}
