//! Which paths does a source file name, in `use` trees and in expressions, tests and comments left out?

/// Every `a::b::c` of the text, with the braces of `use` taken apart.
pub(super) fn paths(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for statement in code(text).split(';') {
        let (expression, tree) = split_at_use(statement);
        paths.extend(words(expression));
        let tree: String = tree.split_whitespace().collect();
        expand("", &tree, &mut paths);
    }
    paths.sort();
    paths.dedup();
    paths
}

/// Without comments, and without the tests at the end of the file.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |code, line| code + line + "\n")
}

/// What stands before a `use`, and its tree.
fn split_at_use(statement: &str) -> (&str, &str) {
    let mut starts = statement.match_indices("use ").map(|(at, _)| statement.split_at(at));
    let start = starts.find(|(before, _)| before.chars().next_back().is_none_or(char::is_whitespace));
    start.map_or((statement, ""), |(before, tree)| (before, tree.trim_start_matches("use ")))
}

fn words(code: &str) -> Vec<String> {
    let parts = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    parts.filter(|word| word.contains("::")).map(|word| word.trim_matches(':').to_owned()).collect()
}

/// `a::{b, c::{d, e}}` is `a::b`, `a::c::d` and `a::c::e`. The tree holds no white space.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    for branch in branches(tree) {
        match branch.split_once('{') {
            Some((head, inner)) => {
                let inner = inner.strip_suffix('}').unwrap_or(inner);
                expand(&format!("{prefix}{head}"), inner, paths);
            }
            None if !branch.is_empty() => paths.push(format!("{prefix}{branch}")),
            None => {}
        }
    }
}

/// Splits at the commas outside of braces.
fn branches(tree: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    tree.split(|c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(paths(text), expected, "{text}");
    }

    #[test]
    fn trees_are_taken_apart() {
        check("use std::{\n    fmt,\n    fs::{self, File},\n};\n", &["std::fmt", "std::fs::File", "std::fs::self"]);
        check("pub use event::Event;\n", &["event::Event"]);
    }

    #[test]
    fn expressions_count() {
        check("fn f() { std::fs::read(path) }\n", &["std::fs::read"]);
    }

    #[test]
    fn comments_and_tests_do_not() {
        check("/// `std::fs::read`\nfn f() {} // aya::Ebpf\n#[cfg(test)]\nmod tests { use std::fs; }\n", &[]);
    }
}
