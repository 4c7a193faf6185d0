//! Does the probe understand each allocation function, on a program that knows what it holds?

use std::path::Path;

use crate::{
    agent::{Recording, Report},
    subject::{Subject, compile, figure},
};

const CASES: [&str; 18] = [
    "malloc",
    "failed",
    "calloc",
    "realloc_moved",
    "realloc_failed",
    "realloc_null",
    "realloc_zero",
    "realloc_from_before",
    "reallocarray",
    "posix_memalign",
    "aligned",
    "free_from_before",
    "mmap",
    "mremap",
    "other_thread_frees",
    "fork",
    "depths",
    "threads",
];

/// Runs all cases and compares each with what the program says of it.
fn check(program: &Path, environment: &[(&str, &Path)], arguments: &[&str]) -> Report {
    let mut subject = Subject::program(program, environment);
    let recording = Recording::start(subject.pid(), arguments);
    let answers: Vec<String> = CASES.iter().map(|case| subject.ask(case)).collect();
    let report = recording.stop();
    for (case, answer) in CASES.iter().zip(&answers) {
        // The threads' blocks have the threads' stacks.
        let function = if *case == "threads" { "thread_main".to_owned() } else { format!("case_{case}") };
        for (figure_in_report, figure_in_answer) in
            [("outstanding_bytes", "outstanding"), ("outstanding_blocks", "blocks"), ("allocated_bytes", "allocated")]
        {
            let (seen, truth) = (report.sum(&function, figure_in_report), figure(answer, figure_in_answer));
            assert_eq!(seen, truth, "{figure_in_report} of {case}: {:#?}", report.sites(&function));
        }
    }
    assert!(report.0["counts"]["unknown_frees"].as_u64().is_some_and(|frees| frees >= 1), "{:?}", report.0["counts"]);
    report
}

#[test]
fn glibc_at_system_calls() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("gcc", "allocations", folder.path(), &[]);
    let report = check(&program, &[], &[]);
    report.assert_no_loss();
    // What the program set aside, and an arena or two of the C library's.
    let reserved = report.0["counts"]["reserved_bytes"].as_u64().expect("a count");
    assert!((1 << 30..(1 << 30) + (256 << 20)).contains(&reserved), "{reserved}");
    assert!(report.0["counts"]["failed_allocations"].as_u64().is_some_and(|failed| failed >= 7));
    // A block of each depth of `descend` is a site of its own, and none is missing.
    assert_eq!(report.sites("case_depths").len(), 40);
}

#[test]
fn glibc_at_functions() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("gcc", "allocations", folder.path(), &[]);
    let report = check(&program, &[], &["--no-tracepoints"]);
    report.assert_no_loss();
    let notes = report.0["notes"].to_string();
    assert!(notes.contains("--no-tracepoints"), "{notes}");
}

#[test]
fn glibc_with_every_stack_sampled() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("gcc", "allocations", folder.path(), &[]);
    check(&program, &[], &["--sample-bytes", "1"]).assert_no_loss();
}

#[test]
fn musl() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("musl-gcc", "allocations", folder.path(), &[]);
    let report = check(&program, &[], &[]);
    assert_eq!(report.0["node"]["libc"], "musl");
    // musl has no unwind tables, so stacks end in it, above all that matters here.
    let losses: Vec<&String> = report.0["losses"].as_object().expect("losses").keys().collect();
    assert_eq!(losses, ["stacks_without_unwind_information"]);
}

/// Calls are followed where they really go: here into an allocator that was preloaded.
#[test]
fn preloaded_allocator() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("gcc", "allocations", folder.path(), &[]);
    let found = crate::agent::tool("ldconfig", &["-p"]);
    let jemalloc = found
        .lines()
        .find_map(|line| line.split(" => ").nth(1).filter(|path| path.contains("libjemalloc.so.2")))
        .expect("libjemalloc.so.2; `cargo xtask test` installs it");
    let report = check(&program, &[("LD_PRELOAD", Path::new(jemalloc))], &[]);
    report.assert_no_loss();
    let malloc = report.sites("case_malloc");
    assert!(malloc[0]["stack"][0]["module"].as_str().is_some_and(|name| name.starts_with("libjemalloc")), "{malloc:?}");
}
