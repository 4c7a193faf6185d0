//! Does the code keep the rules that no compiler checks?

mod licence;
mod uses;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::project::Project;

/// No file is longer.
const MOST_LINES: usize = 600;

/// Where all Rust sources stand.
const SOURCES: [&str; 4] = ["agent/src", "probe/src", "xtask/src", "tests"];

/// The modules of which `agent/src/lib.rs` says that they do no I/O.
const CORE: [&str; 21] = [
    "agent/src/limits.rs",
    "agent/src/wording",
    "agent/src/extents.rs",
    "agent/src/view.rs",
    "agent/src/words.rs",
    "agent/src/retry.rs",
    "agent/src/stored.rs",
    "agent/src/libc",
    "agent/src/explain",
    "agent/src/image",
    "agent/src/mapping.rs",
    "agent/src/mapping",
    "agent/src/stack",
    "agent/src/ledger",
    "agent/src/recording",
    "agent/src/erts",
    "agent/src/attribute.rs",
    "agent/src/attribute",
    "agent/src/judge.rs",
    "agent/src/judge",
    "agent/src/report",
];

/// What a module without I/O has no use for.
const IO: [&str; 9] = ["std::fs", "std::process", "std::net", "std::env", "std::time", "aya", "tokio", "procfs", "nix"];

/// `Duration` is a number.
const NO_IO: [&str; 1] = ["std::time::Duration"];

/// Fails with all violations, one line for each.
pub(crate) fn run(project: &Project) -> Result<()> {
    let mut violations = Vec::new();
    for path in sources(&project.root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&project.root).unwrap_or(&path);
        violations.extend(check(name, &text).into_iter().map(|what| format!("{}: {what}", name.display())));
    }
    violations.extend(licence::violations(project)?);
    ensure!(violations.is_empty(), "rules are broken:\n  {}", violations.join("\n  "));
    Ok(())
}

fn check(name: &Path, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    let lines = text.lines().count();
    if lines > MOST_LINES {
        violations.push(format!("has {lines} lines; {MOST_LINES} are the most"));
    }
    if !text.trim_start().starts_with("//!") {
        violations.push("does not start with //! and the question that it answers".to_owned());
    }
    if CORE.iter().any(|core| name.starts_with(core)) {
        let found = uses::paths(text).into_iter().filter(|path| is_io(path));
        violations.extend(found.map(|path| format!("uses {path}, but belongs to the core, which does no I/O")));
    }
    violations
}

fn is_io(path: &str) -> bool {
    let within =
        |prefix: &&str| path.strip_prefix(*prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    IO.iter().any(within) && !NO_IO.iter().any(within)
}

fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders: Vec<_> = SOURCES.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_that(name: &str, text: &str, expected: &[&str]) {
        assert_eq!(check(Path::new(name), text), expected);
    }

    #[test]
    fn the_core_does_no_io() {
        let expected = ["uses std::fs::File, but belongs to the core, which does no I/O"];
        check_that("agent/src/ledger/mod.rs", "//! Q?\nuse std::{fs::File, fmt};\n", &expected);
        check_that("agent/src/kernel/mod.rs", "//! Q?\nuse std::{fs::File, fmt};\n", &[]);
        check_that("agent/src/ledger/mod.rs", "//! Q?\nuse std::time::Duration;\n// std::fs\n", &[]);
        check_that("agent/src/reporter.rs", "//! Q?\nuse aya::Ebpf;\n", &[]);
    }

    #[test]
    fn a_module_says_what_it_answers() {
        check_that("probe/src/lib.rs", "use core::fmt;", &["does not start with //! and the question that it answers"]);
    }

    #[test]
    fn no_file_is_too_long() {
        let text = format!("//! Q?\n{}", "\n".repeat(600));
        check_that("probe/src/lib.rs", &text, &["has 601 lines; 600 are the most"]);
    }
}
