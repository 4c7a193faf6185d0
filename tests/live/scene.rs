//! What stacks does beamscope see of the cases of `tests/nodes/stacks*`, of which each is known?

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf};

use serde_json::Value;

use crate::{
    agent::{Recording, Report, tool},
    cases::Case,
    pattern::{self, Frame, Marks},
    subject::{Release, Subject},
};

/// How often each case takes memory.
const BLOCKS: u64 = 20;

/// A node of the release under test that runs cases.
pub(crate) struct Stage {
    node: Subject,
    symbols: Option<Symbols>,
}

impl Stage {
    /// A node whose libraries have their symbols, or not.
    pub(crate) fn new(stripped: bool) -> Self {
        let mut release = Release::under_test();
        let libraries = if stripped { release.code.join("stripped") } else { release.code.clone() };
        let symbols = stripped.then(|| Symbols { folder: release.fixtures(), of_file: BTreeMap::new() });
        release.command.env("NODE_NIF_DIR", libraries).arg("-noshell").arg("-pa").arg(&release.code);
        release.command.args(["-s", "node_control"]);
        Self { node: Subject::started_by(&mut release.command), symbols }
    }

    /// Has the node load the library of a module.
    pub(crate) fn load(&mut self, module: &str) {
        self.node.ask(&format!("call {module} lost"));
    }

    pub(crate) fn record(&self, arguments: &[&str]) -> Recording {
        Recording::start(self.node.pid(), arguments)
    }

    /// Runs a case; the bytes that were lost.
    pub(crate) fn run(&mut self, module: &str, name: &str, blocks: u64, bytes: u64) -> u64 {
        let answer = self.node.ask(&format!("call {module} run {name} {blocks} {bytes}"));
        let lost = answer.strip_prefix("called {lost,").and_then(|rest| rest.strip_suffix('}'));
        lost.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{module} {name}: {answer}"))
    }

    /// The bytes that the VM's interface gave to `stacks.c`.
    pub(crate) fn held(&mut self) -> u64 {
        let answer = self.node.ask("call stacks held");
        answer.strip_prefix("called ").and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    /// The lines of the marked calls so far.
    pub(crate) fn marks(&mut self) -> Marks {
        let answer = self.node.ask("call stacks_marks lines");
        let pairs = answer.split('{').skip(1).map(|pair| {
            let (mark, rest) = pair.split_once(',').expect("a pair");
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            (mark.to_owned(), digits.parse().expect("a line"))
        });
        pairs.collect()
    }

    /// The frames of a stack in a report, without those that a compiler has merged into others.
    pub(crate) fn frames(&mut self, stack: &Value) -> Vec<Frame> {
        let all = stack.as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|frame| frame["inlined"] != true).map(|frame| self.frame(frame)).collect()
    }

    fn frame(&mut self, frame: &Value) -> Frame {
        let text = |key: &str| frame[key].as_str().map(str::to_owned);
        let module = text("module").unwrap_or_default();
        let offset = frame["offset"].as_u64().unwrap_or(0);
        let (function, by_offset) = match (text("function"), &mut self.symbols) {
            (Some(function), _) => (function, false),
            (None, Some(symbols)) => match symbols.name(&module, offset) {
                Some(function) => (function, true),
                None => (format!("+{offset:#x}"), false),
            },
            (None, None) => (format!("+{offset:#x}"), false),
        };
        // Whether odd atoms are quoted is not what these tests are about.
        let function = function.replace('\'', "");
        // Until 2.33, the C library had the version in the names of its files, and threads in one of their own.
        let versioned = module.starts_with("libc-2.") || module.starts_with("libpthread-2.");
        let module = if versioned { "libc.so.6".to_owned() } else { module };
        let file = text("file").map(|path| path.rsplit('/').next().unwrap_or_default().to_owned());
        let kind = text("kind").unwrap_or_default();
        Frame { kind, module, function, file, line: frame["line"].as_u64(), by_offset }
    }
}

/// The functions of the libraries that were stripped, by their copies that were not.
struct Symbols {
    folder: PathBuf,
    of_file: BTreeMap<String, Vec<(u64, u64, String)>>,
}

impl Symbols {
    /// The function at an offset in a fixture.
    fn name(&mut self, module: &str, offset: u64) -> Option<String> {
        let path = self.folder.join(module);
        if !module.starts_with("stacks") || !path.exists() {
            return None;
        }
        let read = || tool("nm", &["-CnS", "--defined-only", &path.to_string_lossy()]);
        let symbols = self.of_file.entry(module.to_owned()).or_insert_with(|| functions(&read()));
        let found = symbols.iter().find(|(start, size, _)| (*start..=start + size).contains(&offset));
        found.map(|(_, _, name)| name.clone())
    }
}

/// Begin, size and name of what `nm -CnS` lists as code.
fn functions(listed: &str) -> Vec<(u64, u64, String)> {
    let function = |line: &str| {
        let (start, rest) = line.split_once(' ')?;
        let (size, rest) = rest.split_once(' ')?;
        let (kind, name) = rest.split_once(' ')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        matches!(kind, "t" | "T" | "w" | "W").then_some((number(start)?, number(size)?, name.to_owned()))
    };
    listed.lines().filter_map(function).collect()
}

/// What was wrong with each case, as one text; empty if nothing was.
#[derive(Default)]
pub(crate) struct Findings(String);

impl Findings {
    pub(crate) fn add(&mut self, case: &Case, what: &str) {
        writeln!(self.0, "{} {}: {what}", case.module, case.name).expect("a string");
    }

    pub(crate) fn assert_none(&self) {
        assert!(self.0.is_empty(), "stacks are not as expected\n{}", self.0);
    }
}

/// Sizes of the blocks of a case: no other case has the same, so that a report tells whose a block is even if its stack
/// is wrong. They are even, which two of the libraries need.
fn bytes(index: usize) -> u64 {
    7002 + 26 * u64::try_from(index).expect("few cases")
}

/// Runs cases while the node is recorded, and compares the sites of their memory with what is expected: their kind, all of
/// their bytes, their stacks from the leaf to the root, and who they are said to be.
pub(crate) fn check(stage: &mut Stage, cases: &[Case], kind: &str, arguments: &[&str]) -> Report {
    // What these tests are about is each stack, and not which of them are chosen where a library starts up with a flood.
    let recording = stage.record(&[arguments, &["--walk-share", "100"]].concat());
    for (index, case) in cases.iter().enumerate() {
        let lost = stage.run(case.module, case.name, BLOCKS, bytes(index));
        // What the VM gives is not counted as lost.
        let expected = if kind == "native" { BLOCKS * bytes(index) } else { 0 };
        assert_eq!(lost, expected, "{} {}", case.module, case.name);
    }
    let marks = stage.marks();
    let report = recording.stop();
    let jit = report.0["node"]["emulator"] == "jit";
    let mut findings = Findings::default();
    if !jit {
        compare_native(stage, cases, &report, kind, &marks, &mut findings);
        findings.assert_none();
        return report;
    }
    for (index, case) in cases.iter().enumerate() {
        let sites = sites_of(&report, kind, bytes(index));
        let blocks: u64 = sites.iter().filter_map(|site| site["outstanding_blocks"].as_u64()).sum();
        if blocks != BLOCKS {
            findings.add(case, &format!("{blocks} of {BLOCKS} blocks of {} bytes are outstanding", bytes(index)));
        }
        for site in sites {
            compare(stage, case, site, &marks, &mut findings);
        }
    }
    findings.assert_none();
    report
}

/// The sites that hold blocks of this size and nothing else.
fn sites_of<'a>(report: &'a Report, kind: &str, bytes: u64) -> Vec<&'a Value> {
    let holds = |site: &&Value| {
        let (held, blocks) = (site["outstanding_bytes"].as_u64(), site["outstanding_blocks"].as_u64());
        site["kind"] == kind && blocks > Some(0) && held == blocks.map(|blocks| blocks * bytes)
    };
    report.all_sites().iter().filter(holds).collect()
}

/// Without Erlang frames, cases that differ in nothing else share their sites, and so their bytes.
fn compare_native(
    stage: &mut Stage,
    cases: &[Case],
    report: &Report,
    kind: &str,
    marks: &Marks,
    findings: &mut Findings,
) {
    let mut groups: BTreeMap<String, (&Case, u64)> = BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let (_, expected) = groups.entry(native_part(case.stack)).or_insert((case, 0));
        *expected += BLOCKS * bytes(index);
    }
    for (pattern, (case, expected)) in groups {
        let mut found = 0;
        for site in report.all_sites().iter().filter(|site| site["kind"] == kind) {
            let frames = stage.frames(&site["stack"]);
            if pattern::mismatch(&pattern, &frames, marks).is_none() {
                found += site["outstanding_bytes"].as_u64().unwrap_or(0);
            }
        }
        if found != expected {
            findings.add(case, &format!("{found} of {expected} bytes are at stacks such as\n{pattern}"));
        }
    }
}

fn compare(stage: &mut Stage, case: &Case, site: &Value, marks: &Marks, findings: &mut Findings) {
    let Case { stack, site: texts, creator, .. } = case;
    for (key, parts) in [("stack", stack), ("creator", creator)] {
        if parts.is_empty() {
            continue;
        }
        let pattern = parts.join("\n");
        let frames = stage.frames(&site[key]);
        if let Some(mismatch) = pattern::mismatch(&pattern, &frames, marks) {
            findings.add(case, &format!("{key}\n{mismatch}"));
        }
    }
    for (key, expected) in *texts {
        let found = site[key].as_str();
        let fits = match expected {
            Some(expected) => found.is_some_and(|text| pattern::fits(expected, text)),
            None => site[key].is_null(),
        };
        if !fits {
            findings.add(case, &format!("{key} is {} and not {expected:?}", site[key]));
        }
    }
}

/// The pattern up to its first Erlang frame, without what need not be there before it, and then anything.
fn native_part(parts: &[&str]) -> String {
    let lines = parts.iter().flat_map(|part| part.lines()).map(str::trim);
    let mut native: Vec<&str> = lines.take_while(|line| line.is_empty() || line.contains('!')).collect();
    while native.pop_if(|line| line.is_empty() || line.starts_with('*')).is_some() {}
    native.join("\n") + "\n..."
}
