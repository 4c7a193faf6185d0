//! Does each stack go from the function that takes memory to the Erlang process's, or the thread's, first function, with
//! nothing missing and nothing wrong? (The cases are described in `tests/nodes/stacks*`.)

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use crate::{
    agent::Report,
    cases::{
        PROCESS, VM,
        c::{CALLS, RELOADS},
        cpp::CPP_CASES,
        driver::DRIVER_CASES,
        libcrypto::SSL_CASES,
        rust::RUST_CASES,
        vm_api::VM_CASES,
    },
    pattern::{Marks, mismatch},
    scene::{Stage, check},
};

#[test]
fn nif() {
    let mut stage = Stage::new(false);
    stage.load("stacks");
    check(&mut stage, &CALLS, "native", &[]);
}

#[test]
fn stripped_nif() {
    let mut stage = Stage::new(true);
    stage.load("stacks");
    check(&mut stage, &CALLS, "native", &[]);
}

#[test]
fn nif_that_is_loaded_during_the_recording() {
    check(&mut Stage::new(false), &CALLS, "native", &[]);
    check(&mut Stage::new(true), &CALLS[..1], "native", &[]);
}

/// Every version of a module keeps its functions and lines, also when it has been purged.
#[test]
fn modules_that_are_loaded_anew_during_the_recording() {
    check(&mut Stage::new(false), &RELOADS, "native", &[]);
}

#[test]
fn nif_of_cpp() {
    for stripped in [false, true] {
        check(&mut Stage::new(stripped), &CPP_CASES, "native", &[]);
    }
}

#[test]
fn nif_of_rust() {
    for stripped in [false, true] {
        check(&mut Stage::new(stripped), &RUST_CASES, "native", &[]);
    }
}

#[test]
fn callbacks_through_libcrypto() {
    for stripped in [false, true] {
        let mut stage = Stage::new(stripped);
        // libcrypto starts up with a flood, and its tables are the largest: what passes meanwhile is sampled.
        stage.load("stacks_ssl");
        check(&mut stage, &SSL_CASES, "native", &[]);
    }
}

/// Erlang's own crypto, of which nothing is known but who called it.
#[test]
fn nif_of_somebody_else() {
    let mut stage = Stage::new(false);
    stage.load("stacks_ssl");
    let recording = stage.record(&[]);
    stage.run("stacks_ssl", "key", 50, 32);
    stage.run("stacks_ssl", "random", 50, 32);
    let marks = stage.marks();
    let report = recording.stop();
    let through = |frame: &Value| frame["module"].as_str().is_some_and(|module| module == "crypto.so");
    let has = |site: &&Value| site["stack"].as_array().is_some_and(|stack| stack.iter().any(through));
    let sites: Vec<_> = report.all_sites().iter().filter(has).collect();
    assert!(!sites.is_empty(), "crypto takes memory");
    let jit = report.0["node"]["emulator"] == "jit";
    let patterns = ["stacks_ssl:key/1@key", "stacks_ssl:random/2@random"].map(|caller| {
        let erlang = if jit { format!("+ crypto:*\n {caller}\n {PROCESS}") } else { "...".to_owned() };
        format!("libc.so.6!*\n * *!*\n + crypto.so!*\n {VM}\n * libc.so.6!*\n {erlang}")
    });
    let fits = |stage: &mut Stage, site: &Value, marks: &Marks| {
        let frames = stage.frames(&site["stack"]);
        let said: Vec<_> = patterns.iter().map(|pattern| mismatch(pattern, &frames, marks)).collect();
        if said.iter().any(Option::is_none) { Ok(()) } else { Err(said.into_iter().flatten().collect::<String>()) }
    };
    let wrong: Vec<_> = sites.iter().filter_map(|site| fits(&mut stage, site, &marks).err()).collect();
    // One of them says enough.
    assert!(wrong.is_empty(), "{} of {} sites:\n{}", wrong.len(), sites.len(), wrong[0]);
}

#[test]
fn linked_in_driver() {
    for stripped in [false, true] {
        check(&mut Stage::new(stripped), &DRIVER_CASES, "native", &[]);
    }
}

#[test]
fn memory_of_the_interface_of_the_vm() {
    let mut stage = Stage::new(false);
    let report = check(&mut stage, &VM_CASES, "vm_api", &["--vm-api"]);
    let of_nif = |site: &&Value| site["kind"] == "vm_api" && site["library"] == "stacks.so";
    let outstanding = report.all_sites().iter().filter(of_nif).filter_map(|site| site["outstanding_bytes"].as_u64());
    assert_eq!(outstanding.sum::<u64>(), stage.held(), "{:#?}", report.all_sites());
}

/// What is freed again is nobody's leak, and its stack is known all the same.
#[test]
fn freed_memory_is_not_outstanding() {
    let (blocks, bytes) = (500, 4200);
    let mut stage = Stage::new(false);
    let recording = stage.record(&[]);
    assert_eq!(stage.run("stacks", "freed", blocks, bytes), 0);
    let marks = stage.marks();
    let report = recording.stop();
    let sites = report.sites("churn_two");
    assert_eq!(report.sum("churn_two", "allocated_bytes"), blocks * bytes, "{sites:#?}");
    assert_eq!(report.sum("churn_two", "outstanding_bytes"), 0, "{sites:#?}");
    let jit = report.0["node"]["emulator"] == "jit";
    let erlang = if jit { format!("stacks:leak/3\n stacks:direct/3@direct\n {PROCESS}") } else { "...".to_owned() };
    let pattern = format!(
        "libc.so.6!malloc\n stacks.so!churn_two@malloc(bytes)\n stacks.so!churn_one@LINK(churn_one,\n \
         stacks.so!leak@.take(bytes)\n {VM}\n {erlang}"
    );
    for site in sites {
        let mismatch = mismatch(&pattern, &stage.frames(&site["stack"]), &marks);
        assert!(mismatch.is_none(), "{}", mismatch.unwrap_or_default());
    }
}

/// Both engines, at the same time on the same node, see the same stacks: the one that walks in the kernel by its own rows,
/// and the one that unwinds copies of the stack by somebody else's code.
#[test]
fn both_engines_see_the_same_stacks() {
    let mut stage = Stage::new(false);
    let all = || CALLS.iter().chain(&CPP_CASES).chain(&RUST_CASES).chain(&SSL_CASES).chain(&DRIVER_CASES);
    // Its frames are larger than a copy of the stack.
    let cases = || all().filter(|case| case.name != "large");
    // Libraries that are loaded meanwhile are seen by each a little later, and not at the same moment.
    for case in cases() {
        stage.run(case.module, case.name, 1, 100);
    }
    let kernel = stage.record(&["--walk-share", "100"]);
    let images = stage.record(&["--stack-engine", "images", "--sample-bytes", "1"]);
    // Few at a time, since each copy of a stack takes its room in the ring buffer until it is walked.
    for case in cases() {
        stage.run(case.module, case.name, 2, 5000);
        std::thread::sleep(Duration::from_millis(50));
    }
    let (kernel, images) = (kernel.stop(), images.stop());
    for (report, losses) in [(&kernel, "stack_"), (&images, "lost_samples")] {
        let lost =
            report.0["losses"].as_object().expect("losses").keys().filter(|name| name.starts_with(losses)).count();
        assert_eq!(lost, 0, "{}", report.0["losses"]);
    }
    let (kernel, images) = (stacks_of_fixtures(&kernel), stacks_of_fixtures(&images));
    assert!(kernel.len() >= 30, "{kernel:#?}");
    let only_in = |these: &BTreeSet<String>, those: &BTreeSet<String>| -> Vec<String> {
        these.difference(those).cloned().collect()
    };
    let (by_kernel, by_images) = (only_in(&kernel, &images), only_in(&images, &kernel));
    assert!(by_kernel.is_empty() && by_images.is_empty(), "kernel only: {by_kernel:#?}\nimages only: {by_images:#?}");
}

/// Each stack that passes through a fixture, frame by frame.
fn stacks_of_fixtures(report: &Report) -> BTreeSet<String> {
    let frame =
        |frame: &Value| format!("{} {} {} {}", frame["module"], frame["function"], frame["offset"], frame["line"]);
    let stack = |site: &Value| {
        let frames = site["stack"].as_array().map(Vec::as_slice).unwrap_or_default();
        let frames: Vec<String> = frames.iter().map(frame).collect();
        format!("{} {}\n  {}", site["thread_kind"], site["stack_end"], frames.join("\n  "))
    };
    let has_fixture = |site: &&Value| {
        let frames = site["stack"].as_array().map(Vec::as_slice).unwrap_or_default();
        frames.iter().any(|frame| frame["module"].as_str().is_some_and(|name| name.starts_with("stacks")))
    };
    report.all_sites().iter().filter(has_fixture).map(stack).collect()
}

/// Of all stacks of a recording, hardly any ends early, and of each that does, the reason is counted.
#[test]
fn stacks_are_complete() {
    let mut stage = Stage::new(false);
    // Libraries that are loaded meanwhile are sampled until they are known; that is another test.
    let cases = || CALLS.iter().chain(&CPP_CASES).chain(&RUST_CASES).chain(&SSL_CASES).chain(&DRIVER_CASES);
    for case in cases() {
        stage.run(case.module, case.name, 1, 100);
    }
    let recording = stage.record(&["--walk-share", "100"]);
    for round in 0..20 {
        for case in cases() {
            stage.run(case.module, case.name, 10 + round, 5000);
        }
        stage.run("stacks_ssl", "key", 5, 32);
        stage.run("stacks", "loaded_first", 5, 5000);
        stage.run("stacks", "loaded_second", 5, 5000);
    }
    let report = recording.stop();
    let count = |name: &str| report.0["counts"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {}", report.0));
    let (walked, complete) = (count("walked_stacks"), count("complete_stacks"));
    // None is left out of the count.
    let unwalked = report.0["counts"]["unwalked_allocations"].as_u64().unwrap_or(0);
    let walked = walked + unwalked;
    assert!(walked > 10_000, "{walked}");
    // Without the JIT, the Erlang part is not known, and that is said.
    let unknown = report.0["losses"]["stacks_without_erlang_frames"].as_u64().unwrap_or(0);
    let jit = report.0["node"]["emulator"] == "jit";
    assert_eq!(unknown == 0, jit, "{}", report.0["losses"]);
    let complete = complete + unknown;
    assert!(complete <= walked && complete * 1000 >= walked * 995, "{complete} of {walked}: {}", report.0["losses"]);
    assert!(
        reasons(&report) + unwalked >= walked - count("complete_stacks"),
        "{complete} of {walked}: {}",
        report.0["losses"]
    );
}

/// How many stacks the losses account for.
fn reasons(report: &Report) -> u64 {
    let losses = report.0["losses"].as_object().expect("losses");
    losses.iter().filter(|(name, _)| name.contains("stack")).filter_map(|(_, number)| number.as_u64()).sum()
}
