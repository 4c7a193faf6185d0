//! What the commands print.

use beamscope::{judge::Answer, report::Report};
use snapbox::assert_data_eq;

use crate::{beamscope, folder_with, sample, snapshot};

fn check(arguments: &[&str], expected: &str) {
    let folder = folder_with(&sample::recording());
    beamscope(folder.path()).args(arguments).assert().success().stdout_eq(snapshot(expected)).stderr_eq("");
}

#[test]
fn help() {
    check(&["--help"], "help.txt");
    for command in ["ps", "doctor", "explain", "record", "report", "flamegraph"] {
        check(&[command, "--help"], &format!("help-{command}.txt"));
    }
}

#[test]
fn report_as_text() {
    check(&["report", "node.bscope"], "report.txt");
    check(&["report", "node.bscope", "--bytes", "--top", "2"], "report-bytes.txt");
}

#[test]
fn report_in_colour() {
    let folder = folder_with(&sample::recording());
    let run = |color| {
        let assert = beamscope(folder.path()).args(["report", "node.bscope", "--color", color]).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).expect("is UTF-8")
    };
    assert!(run("always").contains("\x1b[1m"));
    assert!(!run("never").contains('\x1b'));
    assert_eq!(run("auto"), run("never"), "standard output is no terminal here");
}

#[test]
fn report_as_json() {
    check(&["report", "node.bscope", "--format", "json"], "report.json.txt");
}

#[test]
fn report_as_markdown() {
    check(&["report", "node.bscope", "--format", "markdown"], "report.md.txt");
}

#[test]
fn a_verdict_that_was_named_is_the_exit_code() {
    let recording = sample::recording();
    let folder = folder_with(&recording);
    let report = Report::new(&recording);
    let run = |fail_on: &str| {
        let arguments = ["report", "node.bscope", "--quiet", "--fail-on", fail_on];
        let assert = beamscope(folder.path()).args(arguments).assert();
        let output = assert.get_output().clone();
        assert!(output.stdout.starts_with(b"Memory of shop@db1.example"), "the report is printed all the same");
        (output.status.code(), String::from_utf8(output.stderr).expect("is UTF-8"))
    };
    let code = |is_confirmed: bool| Some(if is_confirmed { 3 } else { 0 });
    for verdict in &report.verdicts {
        let is_confirmed = verdict.answer == Answer::Confirmed;
        let (found, errors) = run(verdict.id.name());
        assert_eq!(found, code(is_confirmed), "{}", verdict.id);
        let line = format!("--fail-on: {} is confirmed: ", verdict.id);
        assert_eq!(errors.lines().filter(|at| at.starts_with(&line)).count(), usize::from(is_confirmed), "{errors}");
        assert_eq!(errors.lines().count(), usize::from(is_confirmed), "{errors}");
    }
    let confirmed = report.verdicts.iter().filter(|verdict| verdict.answer == Answer::Confirmed).count();
    let (found, errors) = run("any");
    assert_eq!((found, errors.lines().count()), (code(confirmed > 0), confirmed), "{errors}");
    assert_eq!(run("native_leak>1GiB/s,vm_growth>1GiB/s,fragmentation>1024GiB").0, Some(0));
}

#[test]
fn report_to_a_file() {
    let folder = folder_with(&sample::recording());
    let arguments = ["report", "node.bscope", "-o", "report.txt", "--color", "always"];
    beamscope(folder.path()).args(arguments).assert().success().stdout_eq("").stderr_eq("");
    let written = std::fs::read_to_string(folder.path().join("report.txt")).expect("is written");
    assert_data_eq!(written, snapshot("report.txt"));
}

#[test]
fn flamegraph() {
    let folder = folder_with(&sample::recording());
    for measure in ["outstanding", "allocated", "temporary"] {
        let name = format!("{measure}.svg");
        let arguments = ["flamegraph", "node.bscope", "-o", &name, "--measure", measure];
        beamscope(folder.path()).args(arguments).assert().success().stdout_eq(format!("{name}\n")).stderr_eq("");
        let svg = std::fs::read_to_string(folder.path().join(&name)).expect("is written");
        assert_data_eq!(without_script(&svg), snapshot(&format!("{measure}.svg.txt")));
    }
}

#[test]
fn quiet_flamegraph() {
    let folder = folder_with(&sample::recording());
    let arguments = ["flamegraph", "node.bscope", "-o", "leak.svg", "--quiet"];
    beamscope(folder.path()).args(arguments).assert().success().stdout_eq("").stderr_eq("");
}

/// The script is inferno's and long; and one element stands on a line.
fn without_script(svg: &str) -> String {
    let (front, behind) = svg.split_once("<script").expect("has a script");
    let (_, behind) = behind.split_once("</script>").expect("which ends");
    format!("{front}{behind}\n").replace("><", ">\n<")
}
