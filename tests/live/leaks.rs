//! Is a leak found, measured and named, amid balanced churn?

use std::{thread::sleep, time::Duration};

use crate::{
    agent::{Recording, Report},
    subject::Subject,
};

const SPAN: Duration = Duration::from_secs(3);

/// Leaks `kind` for a while amid churn; the report, and what the node counted.
fn leak(kind: &str, blocks: u32, arguments: &[&str]) -> (Report, u64) {
    let mut node = Subject::node(&[]);
    node.ask("churn on");
    let recording = Recording::start(node.pid(), arguments);
    node.ask(&format!("leak {kind} 1000 {blocks} 50"));
    sleep(SPAN);
    node.ask(&format!("leak {kind} off"));
    let counted = node.figure("counters", kind);
    let report = recording.stop();
    assert!(counted > 1_000_000, "{kind}: {counted}");
    (report, counted)
}

/// The leak's bytes stand at `function` of `library`, whole; the churn holds nothing; nothing was lost.
fn check(kind: &str, library: &str, function: &str, thread: &str) {
    let (report, counted) = leak(kind, 100, &[]);
    report.assert_no_loss();
    let outstanding = report.sum(function, "outstanding_bytes");
    let error = (outstanding as f64 / counted as f64 - 1.0).abs();
    assert!(error < 0.02, "{kind}: {outstanding} of {counted}: {:#?}", report.sites(function));
    for site in report.sites(function).iter().filter(|site| site["outstanding_bytes"] != 0) {
        assert_eq!(site["kind"], "native", "{site:#}");
        assert_eq!(site["library"], library, "{site:#}");
        let name = site["thread"].as_str().expect("a thread");
        assert!(name.contains(thread), "{site:#}");
    }
    // What churn holds at the end is at most what it holds at any moment.
    let churn = report.sum("churn_blocks", "outstanding_bytes");
    assert!(report.sum("churn_blocks", "allocated_bytes") > 10_000_000);
    assert!(churn < 100_000, "{churn} bytes of balanced churn are outstanding");
    // The leak comes first, and nothing else is near it.
    assert!(report.all_sites()[0]["outstanding_bytes"].as_u64().is_some_and(|bytes| bytes * 50 > counted * 49));
    assert!(report.sum_of_kind("native", "outstanding_bytes") < counted + counted / 50);
}

#[test]
fn malloc() {
    check("malloc", "leaky.so", "take_malloc", "scheduler");
}

#[test]
fn calloc() {
    check("calloc", "leaky.so", "take_calloc", "scheduler");
}

#[test]
fn realloc() {
    check("realloc", "leaky.so", "take_realloc", "scheduler");
}

#[test]
fn posix_memalign() {
    check("posix_memalign", "leaky.so", "take_posix_memalign", "scheduler");
}

#[test]
fn aligned_alloc() {
    check("aligned_alloc", "leaky.so", "take_aligned_alloc", "scheduler");
}

#[test]
fn operator_new() {
    check("new", "leaky_cpp.so", "add_entry", "scheduler");
}

#[test]
fn mmap() {
    check("mmap", "leaky.so", "take_mmap", "scheduler");
}

#[test]
fn dirty_nif() {
    check("dirty", "leaky.so", "leak_dirty", "dirty_cpu");
}

#[test]
fn thread_of_a_nif() {
    check("thread", "leaky.so", "thread_main", "leaky_thread");
}

/// Memory that the VM takes from the system for its own allocators is no native leak, whoever asked the VM for it.
#[test]
fn memory_of_the_vm_is_not_native() {
    for (kind, allocator) in [("enif_alloc", "driver_alloc"), ("ets", "ets_alloc"), ("binary", "binary_alloc")] {
        let (report, counted) = leak(kind, 400, &[]);
        report.assert_no_loss();
        let native = report.sum_of_kind("native", "outstanding_bytes");
        assert!(native < counted / 50, "{kind}: {native} native bytes: {:#?}", report.all_sites());
        let carriers = report.sum_of_kind("carrier", "outstanding_bytes");
        assert!(carriers > counted / 2, "{kind}: {carriers} of {counted}");
        let text = report.0["sites"].to_string();
        assert!(text.contains(allocator), "{kind}: no carrier of {allocator} was recognised: {text}");
    }
}

/// A library that is loaded while the recording goes on has names and unwind tables as well.
#[test]
fn a_nif_that_is_loaded_during_the_recording() {
    let mut node = Subject::node(&[]);
    let recording = Recording::start(node.pid(), &[]);
    node.ask("once malloc 1000 5000");
    let counted = node.figure("counters", "malloc");
    let report = recording.stop();
    report.assert_no_loss();
    assert_eq!(report.sum("take_malloc", "outstanding_bytes"), counted);
}

/// Blocks beyond the table are counted as lost, never as absent.
#[test]
fn a_full_table_is_said() {
    let (report, counted) = leak("malloc", 100, &["--max-live", "4096"]);
    let lost = report.0["losses"]["live_table_full_bytes"].as_u64().expect("a loss");
    let seen = report.sum("take_malloc", "outstanding_bytes");
    assert!(lost > 0 && seen < counted, "{seen} of {counted}, {lost} lost");
    assert!(seen + lost >= counted, "{seen} seen and {lost} lost of {counted}");
}

#[test]
fn a_node_that_exits_leaves_a_readable_recording() {
    let mut node = Subject::node(&[]);
    node.ask("once malloc 10 1");
    let recording = Recording::start(node.pid(), &[]);
    node.ask("once malloc 1000 2000");
    // Names are looked up while the process lives.
    sleep(Duration::from_secs(1));
    node.kill();
    let report = recording.wait();
    assert_eq!(report.0["interval"]["ended"], "node_exited");
    assert_eq!(report.sum("take_malloc", "outstanding_bytes"), 2_000_000);
}
