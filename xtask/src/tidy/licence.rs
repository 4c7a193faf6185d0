//! May everything that is linked into beamscope be given away with it?

use anyhow::{Context as _, Result};
use serde::Deserialize;
use xshell::cmd;

use crate::project::Project;

/// Licences that ask for no more than a notice.
const ALLOWED: [&str; 9] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates under other licences, each with the reason.
const EXCEPTIONS: [(&str, &str); 1] =
    // Copyleft by file: it binds changes to inferno's own files, and we make none.
    [("inferno", "CDDL-1.0")];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// One line for each package of `Cargo.lock` whose licence is not allowed.
pub(super) fn violations(project: &Project) -> Result<Vec<String>> {
    let shell = project.shell()?;
    let json = cmd!(shell, "cargo metadata --format-version 1 --locked").quiet().ignore_stderr().read()?;
    let metadata: Metadata = serde_json::from_str(&json).context("cargo metadata gave something else")?;
    let bad = metadata.packages.into_iter().filter(|package| !is_allowed(package));
    Ok(bad
        .map(|Package { name, version, license }| match license {
            Some(license) => format!("{name} {version} is under {license}, which is not an allowed licence"),
            None => format!("{name} {version} states no licence"),
        })
        .collect())
}

fn is_allowed(package: &Package) -> bool {
    let Some(license) = &package.license else { return false };
    EXCEPTIONS.contains(&(package.name.as_str(), license.as_str())) || satisfies(license)
}

/// Whether an SPDX expression can be met by allowed licences alone. `OR` binds weaker than `AND`; the slash is how
/// crates wrote `OR` before SPDX.
fn satisfies(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    any_of(&expression.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn any_of(expression: &str) -> bool {
    outside_parentheses(expression, " OR ").into_iter().any(all_of)
}

fn all_of(expression: &str) -> bool {
    outside_parentheses(expression, " AND ").into_iter().all(|part| {
        let part = part.trim();
        match part.strip_prefix('(').and_then(|part| part.strip_suffix(')')) {
            Some(inner) => any_of(inner),
            None => ALLOWED.contains(&part),
        }
    })
}

fn outside_parentheses<'a>(expression: &'a str, separator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut begin, mut depth) = (0, 0_usize);
    for (at, c) in expression.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && at >= begin && expression.get(at..).is_some_and(|rest| rest.starts_with(separator)) {
            parts.extend(expression.get(begin..at));
            begin = at + separator.len();
        }
    }
    parts.extend(expression.get(begin..));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: bool) {
        assert_eq!(satisfies(expression), expected, "{expression}");
    }

    #[test]
    fn one_way_to_comply_is_enough() {
        check("MIT", true);
        check("MIT/Apache-2.0", true);
        check("MIT OR Apache-2.0 OR LGPL-2.1-or-later", true);
        check("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true);
        check("(MIT OR Apache-2.0) AND Unicode-3.0", true);
    }

    #[test]
    fn every_part_of_a_conjunction_counts() {
        check("GPL-3.0-only", false);
        check("MIT AND GPL-3.0-only", false);
        check("(MIT OR GPL-3.0-only) AND (GPL-2.0-only OR MPL-2.0)", false);
        check("GPL-3.0-only OR MIT AND Zlib", true);
        check("", false);
    }

    #[test]
    fn exceptions_are_by_name_and_licence() {
        let package = |name: &str, license: &str| Package {
            name: name.to_owned(),
            version: "1".to_owned(),
            license: Some(license.to_owned()),
        };
        assert!(is_allowed(&package("inferno", "CDDL-1.0")));
        assert!(!is_allowed(&package("other", "CDDL-1.0")));
        assert!(!is_allowed(&package("inferno", "GPL-3.0-only")));
    }
}
