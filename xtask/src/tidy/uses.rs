//! Which paths does a source file name, in `use` trees and in expressions, tests and comments left out?

/// Every `a::b::c` of the text, with the braces of `use` taken apart.
pub(super) fn paths(text: &str) -> Vec<String> {
    let code = code(text);
    let mut paths = Vec::new();
    for statement in code.split_inclusive([';', '\n']).filter(|part| !is_use(part)) {
        paths.extend(words(statement));
    }
    let mut rest = code.as_str();
    while let Some(start) = rest.find("use ") {
        let (before, from) = rest.split_at(start);
        let end = from.find(';').unwrap_or(from.len());
        let (statement, after) = from.split_at(end);
        if before.chars().next_back().is_none_or(char::is_whitespace) {
            let tree: String = statement.trim_start_matches("use ").split_whitespace().collect();
            expand("", &tree, &mut paths);
        }
        rest = after;
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

fn is_use(part: &str) -> bool {
    part.contains("use ")
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
