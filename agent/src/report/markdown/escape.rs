//! How is text kept from being taken for Markdown?
//!
//! The names come from the node and the files that it has loaded, so anybody may have chosen them. In GitHub Flavored
//! Markdown (0.29) every ASCII punctuation letter can be escaped; mentions and references to issues are found in the text
//! that comes out, where no escape helps, so they are broken by a letter that is not seen.

use crate::report::label;

/// WORD JOINER: no width, no line break, and no letter of a name.
const JOINER: char = '\u{2060}';

/// `text` as running text or in a cell of a table: one line, without any markup.
pub(super) fn plain(text: &str) -> String {
    let text = label::clean(text);
    let mut out = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    let mut before = ' ';
    while let Some(letter) = letters.next() {
        let next = letters.peek().copied().unwrap_or(' ');
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '@' => out.extend(['@', JOINER]),
            '#' => out.extend(['\\', '#', JOINER]),
            // GH-12 is an issue as well.
            '-' if next.is_ascii_digit() && before.is_ascii_alphabetic() => out.extend(['-', JOINER]),
            '\\' | '`' | '*' | '{' | '}' | '[' | ']' | '|' | '~' | '$' | '!' => out.extend(['\\', letter]),
            // Inside a word it is no emphasis.
            '_' if !(before.is_alphanumeric() && next.is_alphanumeric()) => out.extend(['\\', '_']),
            // No link out of an address, no picture out of `:name:`.
            ':' if !next.is_whitespace() && !next.is_ascii_digit() => out.extend(['\\', ':']),
            '.' if matches!(before, 'w' | 'W') => out.extend(['\\', '.']),
            // At the beginning of a line it would be a list, a heading or a rule.
            '-' | '+' | '=' if out.trim().is_empty() => out.extend(['\\', letter]),
            '.' | ')'
                if next.is_whitespace()
                    && !out.is_empty()
                    && out.trim().chars().all(|digit| digit.is_ascii_digit()) =>
            {
                out.extend(['\\', letter]);
            }
            other => out.push(other),
        }
        before = letter;
    }
    out
}

/// `text` as code in a cell of a table, which ends at each bar, in code too, unless it is escaped.
pub(super) fn cell(text: &str) -> String {
    code(text).replace('|', "\\|")
}

/// `text` as code within a line that is no row of a table.
pub(super) fn code(text: &str) -> String {
    let text = label::clean(text);
    if text.trim().is_empty() {
        return String::new();
    }
    let fence = "`".repeat(longest_run(&text).saturating_add(1));
    // Spaces on both sides are taken away when it is shown.
    let space = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

/// Lines of code as a block.
pub(super) fn block(language: &str, lines: &[String]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| label::clean(line)).collect();
    let longest = lines.iter().map(|line| longest_run(line)).max().unwrap_or(0);
    let fence = "`".repeat(longest.saturating_add(1).max(3));
    format!("{fence}{language}\n{}\n{fence}\n", lines.join("\n"))
}

/// The most backticks in a row.
fn longest_run(text: &str) -> usize {
    text.split(|letter| letter != '`').map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_the_teeth_out_of_markup() {
        for (text, expected) in [
            ("copy_colour_profile in thumbnails.so", "copy_colour_profile in thumbnails.so"),
            ("_a_", "\\_a\\_"),
            ("thumbnails:render/1", "thumbnails\\:render/1"),
            ("note: 3.5 %", "note: 3.5 %"),
            ("<img src=x>", "&lt;img src=x&gt;"),
            ("[a](http://b)", "\\[a\\](http\\://b)"),
            ("![a](b)", "\\!\\[a\\](b)"),
            ("a | b", "a \\| b"),
            ("a ` b", "a \\` b"),
            ("www.evil.example", "www\\.evil.example"),
            ("&lt;b&gt;", "&amp;lt;b&amp;gt;"),
            ("- a", "\\- a"),
            ("1. a", "1\\. a"),
            ("1.5 a", "1.5 a"),
            ("a\n\n# b", "a\u{fffd}\u{fffd}\\#\u{2060} b"),
            ("@admins and GH-12", "@\u{2060}admins and GH-\u{2060}12"),
        ] {
            assert_eq!(plain(text), expected);
        }
    }

    #[test]
    fn code_has_a_fence_that_it_does_not_hold() {
        assert_eq!(code("a b"), "`a b`");
        assert_eq!(code("a``b"), "```a``b```");
        assert_eq!(code("`"), "`` ` ``");
        assert_eq!([code("a|b"), cell("a|b")], ["`a|b`", "`a\\|b`"]);
        assert_eq!(code(" "), "");
        assert_eq!(block("", &["a", "```"].map(str::to_owned)), "````\na\n```\n````\n");
    }

    proptest! {
        /// Nothing of what would begin markup is left without an escape, and everything stays on its line.
        #[test]
        fn no_markup_is_left(text in "[a-z<>|`\\[\\]()@#*!_:/.\\\\ \n&-]{0,40}") {
            let plain = plain(&text);
            prop_assert!(!plain.contains(['\n', '<', '>']), "{plain:?}");
            let mut letters = plain.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '\\' => drop(letters.next()),
                    '@' => prop_assert_eq!(letters.next(), Some(JOINER)),
                    '`' | '*' | '[' | ']' | '|' | '#' | '!' | '~' => prop_assert!(false, "{letter} in {plain:?}"),
                    _ => {}
                }
            }
        }

        #[test]
        fn code_ends_where_it_should(text in "[a-z`| \n]{0,40}") {
            let code = code(&text);
            let run = longest_run(&text);
            let fence = "`".repeat(run + 1);
            prop_assert!(code.is_empty() || code.starts_with(&fence) && code.ends_with(&fence), "{code:?}");
            let inside = code.trim_start_matches(&fence).trim_end_matches(&fence);
            prop_assert!(longest_run(inside) <= run && !code.contains('\n'), "{code:?}");
            let cell = cell(&text);
            prop_assert_eq!(cell.matches('|').count(), cell.matches("\\|").count());
        }
    }
}
