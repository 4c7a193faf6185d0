//! Does growth mode say how much memory grows, whose it is, and who touches it first?

use std::{thread::sleep, time::Duration};

use serde_json::Value;

use crate::{
    agent::{Recording, Report},
    subject::Subject,
};

const SPAN: Duration = Duration::from_secs(3);

/// Records a node that leaks `kind`; the report, and what the node counted.
fn grow(kind: &str) -> (Report, u64) {
    let mut node = Subject::node(&[]);
    // What the first block brings with it is no growth.
    node.ask(&format!("once {kind} 1000 100"));
    let before = node.figure("counters", kind);
    let recording = Recording::start_as(node.pid(), "growth", "120s", &[]);
    node.ask(&format!("leak {kind} 8000 40 50"));
    sleep(SPAN);
    node.ask(&format!("leak {kind} off"));
    let counted = node.figure("counters", kind) - before;
    (recording.stop(), counted)
}

fn faults(report: &Report) -> impl Iterator<Item = &Value> {
    report.all_sites().iter().filter(|site| site["kind"] == "fault")
}

fn bytes(sites: Vec<&Value>) -> u64 {
    sites.into_iter().filter_map(|site| site["allocated_bytes"].as_u64()).sum()
}

/// Bytes of the pages that are `owner`'s.
fn owned(report: &Report, owner: &str) -> u64 {
    bytes(faults(report).filter(|site| site["owner"] == owner).collect())
}

/// Nothing is attached to malloc, mmap and the like: only where the VM asks for carriers.
fn check_quiet(report: &Report) {
    let probes = report.0["probes"].as_array().expect("probes");
    let places: Vec<&str> = probes.iter().filter_map(|probe| probe["place"].as_str()).collect();
    assert!(places.iter().all(|place| place.starts_with("erts_mseg_alloc_opt in ")), "{places:?}");
    assert_eq!(report.0["interval"]["mode"], "growth");
    assert!(report.all_sites().iter().all(|site| site["kind"] == "fault" || site["kind"] == "carrier"));
    assert_eq!(report.sum_of_kind("fault", "outstanding_bytes"), 0);
}

#[test]
fn a_native_leak_touches_what_it_keeps() {
    let (report, counted) = grow("malloc");
    check_quiet(&report);
    // Some pages are touched by malloc first, others by who writes to the block.
    let of_leak = |site: &&Value| site["library"] == "leaky.so" && site["owner"] == "native.used";
    let touched = bytes(faults(&report).filter(of_leak).collect());
    // The leak begins in memory that the C library has kept, which was touched before.
    let looks = report.0["looks"].as_array().expect("looks");
    let of_libc =
        |look: &Value| ["native.used", "native.retained"].map(|owner| look["owners"][owner].as_f64().unwrap_or(0.0));
    let sum = |look: Option<&Value>| of_libc(look.expect("a look")).iter().sum::<f64>();
    let grown = sum(looks.last()) - sum(looks.first());
    let error = (touched as f64 / grown - 1.0).abs();
    let shown: Vec<_> = faults(&report).take(5).collect();
    // Some 300 faults of 5000 are told of, by chance: four standard deviations.
    assert!(error < 0.25 && touched > counted / 2, "{touched} of {grown}, {counted} leaked: {shown:#?}");
    for site in faults(&report).filter(of_leak) {
        assert!(site["function"] == "take_malloc" || site["function"] == "lose", "{site:#}");
        assert!(site["mfa"].as_str().is_some_and(|mfa| mfa.starts_with("leaky:")), "{site:#}");
    }
}

/// What the VM uses itself is the VM's, whatever function was first to write there.
#[test]
fn a_growing_table_is_the_vms() {
    let (report, counted) = grow("ets");
    check_quiet(&report);
    let of_ets = owned(&report, "vm.used/ets_alloc");
    let native = owned(&report, "native.used");
    let shown: Vec<_> = faults(&report).take(5).collect();
    assert!(of_ets > counted / 2 && native < counted / 10, "{of_ets} and {native} of {counted}: {shown:#?}");
}
