//! Does the probe understand each allocation function, on a program that knows what it holds?

use std::path::{Path, PathBuf};

use crate::{
    agent::{Recording, Report},
    subject::{Subject, compile, figure},
};

const CASES: [&str; 22] = [
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
    "mapping_from_before",
    "set_aside",
    "brk",
    "other_thread_frees",
    "fork",
    "depths",
    "threads",
    "contention",
];

/// The function whose blocks a case is about.
fn function_of(case: &str) -> String {
    match case {
        // The threads' blocks have the threads' stacks.
        "threads" => "thread_main".to_owned(),
        "contention" => "contend".to_owned(),
        "deep" => "sink_in".to_owned(),
        _ => format!("case_{case}"),
    }
}

/// Runs all cases and compares each with what the program says of it.
fn check(program: &Path, environment: &[(&str, &Path)], arguments: &[&str]) -> Report {
    check_cases(program, environment, arguments, &CASES)
}

fn check_cases(program: &Path, environment: &[(&str, &Path)], arguments: &[&str], cases: &[&str]) -> Report {
    let mut subject = Subject::program(program, environment);
    let recording = Recording::start(subject.pid(), arguments);
    let answers: Vec<String> = cases.iter().map(|case| subject.ask(case)).collect();
    let report = recording.stop();
    for (case, answer) in cases.iter().zip(&answers) {
        let function = function_of(case);
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
    let own = (1 << 30) + (1 << 28);
    assert!((own - (1 << 20)..own + (1 << 30)).contains(&reserved), "{reserved}");
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
    // Threads that do nothing but allocate send more stacks than anybody can take in.
    let (_, calm) = CASES.split_last().expect("cases");
    check_cases(&program, &[], &["--sample-bytes", "1"], calm).assert_no_loss();
}

/// Where there are more heights of the stack than the table has room for, the rest is counted at its caller.
#[test]
fn more_sites_than_the_table_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("gcc", "allocations", folder.path(), &[]);
    let mut subject = Subject::program(&program, &[]);
    // Walked stacks of this depth are cut, and so the same.
    let recording = Recording::start(subject.pid(), &["--walk-share", "0"]);
    let answer = subject.ask("deep");
    let report = recording.stop();
    assert!(report.0["losses"]["site_table_full"].as_u64().is_some_and(|full| full > 0), "{:?}", report.0["losses"]);
    let native = report.sum_of_kind("native", "outstanding_bytes");
    assert_eq!(native, figure(&answer, "outstanding"));
}

/// What the C library maps for itself in `free` holds blocks that are counted already.
#[test]
fn a_thread_whose_first_call_is_free() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("gcc", "allocations", folder.path(), &[]);
    for arguments in [&[][..], &["--no-tracepoints"]] {
        let mut subject = Subject::program(&program, &[]);
        let recording = Recording::start(subject.pid(), arguments);
        let answer = subject.ask("frees_first");
        let report = recording.stop();
        report.assert_no_loss();
        assert_eq!(report.sum("frees_first", "outstanding_bytes"), figure(&answer, "outstanding"), "{arguments:?}");
    }
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
    let report = check(&program, &[("LD_PRELOAD", &jemalloc())], &[]);
    report.assert_no_loss();
    let malloc = report.sites("case_malloc");
    assert!(malloc[0]["stack"][0]["module"].as_str().is_some_and(|name| name.starts_with("libjemalloc")), "{malloc:?}");
}

/// jemalloc's operators do not pass through its malloc.
#[test]
fn operators_of_a_preloaded_allocator() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = compile("g++", "objects", folder.path(), &[]);
    for environment in [&[][..], &[("LD_PRELOAD", jemalloc().as_path())]] {
        let mut subject = Subject::program(&program, environment);
        let recording = Recording::start(subject.pid(), &[]);
        let answer = subject.ask("objects");
        let report = recording.stop();
        report.assert_no_loss();
        for (seen, truth) in
            [("outstanding_bytes", "outstanding"), ("outstanding_blocks", "blocks"), ("allocated_bytes", "allocated")]
        {
            assert_eq!(
                report.sum("make_objects", seen),
                figure(&answer, truth),
                "{seen} {environment:?}: {:#?}",
                report.all_sites()
            );
        }
    }
}

fn jemalloc() -> PathBuf {
    let found = crate::agent::tool("/sbin/ldconfig", &["-p"]);
    let path =
        found.lines().find_map(|line| line.split(" => ").nth(1).filter(|path| path.contains("libjemalloc.so.2")));
    PathBuf::from(path.expect("libjemalloc.so.2; `cargo xtask test` installs it"))
}
