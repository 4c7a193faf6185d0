//! Has a leak through the VM's own functions for native code a stack, and the right size?

use serde_json::Value;

use crate::{
    agent::{Recording, Report},
    subject::Subject,
};

/// Ways of `tests/nodes/vm_api.c` to keep memory for good: number, function of the fixture's, function of the VM's.
const WAYS: [(u32, &str, &str); 10] = [
    (0, "take_enif_alloc", "enif_alloc"),
    (1, "take_enif_realloc", "enif_realloc"),
    (2, "take_enif_alloc_resource", "enif_alloc_resource"),
    (3, "take_watched_resource", "enif_alloc_resource"),
    (4, "take_enif_alloc_binary", "enif_alloc_binary"),
    (5, "take_enif_realloc_binary", "enif_realloc_binary"),
    (7, "take_driver_alloc", "driver_alloc"),
    (8, "take_driver_realloc", "driver_realloc"),
    (9, "take_driver_alloc_binary", "driver_alloc_binary"),
    (10, "take_driver_realloc_binary", "driver_realloc_binary"),
];

/// Ways whose blocks terms can hold.
const HELD: [(u32, &str); 5] = [
    (2, "take_enif_alloc_resource"),
    (3, "take_watched_resource"),
    (4, "take_enif_alloc_binary"),
    (5, "take_enif_realloc_binary"),
    (6, "take_enif_make_new_binary"),
];

const BLOCKS: u64 = 200;

/// The number that the node answers.
fn called(node: &mut Subject, question: &str) -> u64 {
    let answer = node.ask(&format!("call vm_api {question}"));
    answer.strip_prefix("called ").and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
}

/// A node that has the library, and the ways in it warm.
fn node() -> Subject {
    let mut node = Subject::node(&[]);
    called(&mut node, "churn 0 100 1");
    node
}

/// Sums of figures over the `vm_api` sites that pass through `function` of the fixture's.
fn sum<const N: usize>(report: &Report, function: &str, figures: [&str; N]) -> [u64; N] {
    let sites = report.sites(function);
    let of_api = sites.iter().filter(|site| site["kind"] == "vm_api");
    figures.map(|figure| of_api.clone().map(|site| site[figure].as_u64().expect("a figure")).sum())
}

/// The functions on a site's stack.
fn names(site: &Value) -> impl Iterator<Item = &str> {
    site["stack"].as_array().into_iter().flatten().filter_map(|frame| frame["function"].as_str())
}

const OUTSTANDING: [&str; 2] = ["outstanding_bytes", "outstanding_blocks"];

fn leaks(arguments: &[&str]) {
    let mut node = node();
    node.ask("churn on");
    let recording = Recording::start(node.pid(), &[&["--vm-api"], arguments].concat());
    let mut counted = Vec::new();
    for (way, ..) in WAYS {
        called(&mut node, &format!("churn {way} 3000 500"));
        counted.push(called(&mut node, &format!("take {way} 1000 {BLOCKS}")));
        called(&mut node, &format!("churn {way} 700 500"));
    }
    let report = recording.stop();
    for ((_, function, of_vm), counted) in WAYS.into_iter().zip(counted) {
        assert_eq!(sum(&report, function, OUTSTANDING), [counted, BLOCKS], "{:#?}", report.sites(function));
        for site in report.sites(function).iter().filter(|site| site["outstanding_bytes"] != 0) {
            assert_eq!(site["kind"] == "vm_api", site["library"] == "vm_api.so", "{site:#}");
            if site["kind"] == "vm_api" {
                assert_eq!([&site["function"], &site["stack"][0]["function"]], [function, of_vm], "{site:#}");
                assert!(names(site).any(|name| name.starts_with("beam_jit_call_nif")), "{site:#}");
            }
        }
        let [allocated] = sum(&report, function, ["allocated_bytes"]);
        assert!(allocated >= counted + 3700 * 500, "{function}: {allocated}");
    }
    assert!(report.0["losses"].get("unlocated_vm_blocks").is_none(), "{}", report.0["losses"]);
    // None of it is native memory of the process.
    let of_library = |site: &&Value| site["kind"] == "native" && site["library"] == "vm_api.so";
    assert_eq!(report.all_sites().iter().filter(of_library).count(), 0);
    assert!(report.0["notes"].to_string().contains("--vm-api"), "the cost is said: {}", report.0["notes"]);
}

#[test]
fn every_way_to_leak_has_a_stack_and_its_bytes() {
    leaks(&[]);
}

#[test]
fn stacks_walked_outside_the_kernel_say_the_same() {
    leaks(&["--stack-engine", "images"]);
}

#[test]
fn what_the_garbage_collector_frees_is_not_outstanding() {
    let mut node = node();
    let recording = Recording::start(node.pid(), &["--vm-api"]);
    let held = HELD.map(|(way, _)| called(&mut node, &format!("hold {way} 777 {BLOCKS}")));
    for (way, _) in HELD.into_iter().step_by(2) {
        assert_eq!(called(&mut node, &format!("drop {way}")), BLOCKS);
    }
    // On a process's heap.
    called(&mut node, "hold 6 10 1");
    let report = recording.stop();
    for (index, ((_, function), held)) in HELD.into_iter().zip(held).enumerate() {
        let expected = if index % 2 == 0 { [0, 0] } else { [held, BLOCKS] };
        assert_eq!(sum(&report, function, OUTSTANDING), expected, "{function}: {:#?}", report.sites(function));
        let [allocated] = sum(&report, function, ["allocated_bytes"]);
        assert!(allocated >= held, "{function}: {allocated} of {held}");
    }
}

/// A carrier that is asked for inside a call of the VM's functions has a stack that goes on behind that call.
#[test]
fn stacks_go_on_behind_a_probed_return() {
    for engine in ["kernel", "images"] {
        let mut node = node();
        let recording = Recording::start(node.pid(), &["--vm-api", "--stack-engine", engine]);
        let counted = called(&mut node, "take 0 3000000 4");
        let report = recording.stop();
        let sites = report.sites("take_enif_alloc");
        let carriers: Vec<_> = sites.iter().filter(|site| site["kind"] == "carrier").collect();
        let mapped: u64 = carriers.iter().map(|site| site["outstanding_bytes"].as_u64().expect("bytes")).sum();
        assert!(mapped >= counted, "{engine}: {mapped} of {counted}: {sites:#?}");
        let goes_on = |site: &&&Value| names(site).any(|name| name.starts_with("beam_jit_call_nif"));
        assert!(carriers.iter().all(goes_on), "{engine}: {carriers:#?}");
        assert_eq!(sum(&report, "take_enif_alloc", OUTSTANDING), [counted, 4], "{engine}");
    }
}

#[test]
fn nothing_of_it_is_probed_unasked() {
    let mut node = node();
    let recording = Recording::start(node.pid(), &[]);
    called(&mut node, "take 0 1000 10");
    let report = recording.stop();
    assert!(!report.0["probes"].to_string().contains("enif_"), "{}", report.0["probes"]);
    assert_eq!(report.sum_of_kind("vm_api", "allocated_bytes"), 0);
    assert!(!report.0["notes"].to_string().contains("vm-api"), "{}", report.0["notes"]);
}

/// With the VM's allocators switched off, its blocks are those of malloc: both are counted, each for itself.
#[test]
fn allocators_that_are_switched_off() {
    let mut node = Subject::node(&["+Mea", "min"]);
    called(&mut node, "churn 0 100 1");
    let recording = Recording::start(node.pid(), &["--vm-api"]);
    let counted = called(&mut node, "take 0 1000 100");
    called(&mut node, "churn 2 1000 100");
    called(&mut node, "hold 2 1000 10");
    called(&mut node, "drop 2");
    let report = recording.stop();
    assert_eq!(sum(&report, "take_enif_alloc", OUTSTANDING), [counted, 100]);
    assert_eq!(report.sum("take_enif_alloc", "outstanding_bytes"), 2 * counted);
    assert_eq!(sum(&report, "take_enif_alloc_resource", OUTSTANDING), [0, 0]);
}

/// Tables, heaps and binaries each ask for carriers of their allocator, from their own code.
#[test]
fn carriers_have_an_allocator_and_who_asked() {
    const MIB: u64 = 1 << 20;
    let mut node = node();
    let recording = Recording::start(node.pid(), &[]);
    for work in ["tables 40", "heaps 40", "binaries 40"] {
        called(&mut node, work);
    }
    let report = recording.stop();
    report.assert_no_loss();
    for (allocator, of_vm, of_erlang) in [
        ("ets_alloc", "db_put_hash", "insert_rows/2"),
        ("eheap_alloc", "erts_garbage_collect_nobump", "grow_list/2"),
        ("binary_alloc", "erts_alcu_alloc_thr_pref", "make_binaries/2"),
    ] {
        let asked = |site: &&Value| {
            let passes = |function: &str| names(site).any(|name| name == function);
            let by_it = site["requests"].as_u64().is_some() && passes(of_vm) && passes(of_erlang);
            site["kind"] == "carrier" && site["allocator"] == allocator && by_it
        };
        let sites: Vec<_> = report.all_sites().iter().filter(asked).collect();
        let sum = |figure: &str| sites.iter().filter_map(|site| site[figure].as_u64()).sum::<u64>();
        // What carriers had room for before is not asked for.
        assert!(sum("requested_bytes") > 20 * MIB, "{allocator}: {:#?}", report.sites(of_erlang));
        assert!(sum("requests") >= 3, "{allocator}: {sites:#?}");
        assert_eq!(sum("outstanding_bytes"), 0, "it is no memory beside the carriers: {sites:#?}");
    }
    assert!(report.0["notes"].to_string().contains("erts_mseg_alloc_opt"), "{}", report.0["notes"]);
}
