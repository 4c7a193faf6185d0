//! How is a report for people set: headings, tables, running text?
//!
//! It fits a terminal of 100 columns. Headings are styled with ANSI sequences; who writes the text takes them out where
//! they are not wanted.

use std::fmt::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};

pub(super) const HEADING: Style = Style::new().bold();
/// What needs attention, what may, and what need not be read.
pub(super) const ALARM: Style = AnsiColor::Red.on_default().bold();
pub(super) const DOUBT: Style = AnsiColor::Yellow.on_default();
pub(super) const QUIET: Style = Style::new().dimmed();
/// What can be pasted.
pub(super) const PASTE: Style = AnsiColor::Cyan.on_default();

/// Letters in a line of running text.
const WIDTH: usize = 96;

/// A text that grows.
pub(super) struct Page<'a> {
    out: &'a mut String,
}

impl Write for Page<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.out.write_str(text)
    }
}

impl<'a> Page<'a> {
    pub(super) fn new(out: &'a mut String) -> Self {
        Self { out }
    }

    /// A heading, after an empty line.
    pub(super) fn heading(&mut self, heading: &str) -> fmt::Result {
        writeln!(self, "\n{HEADING}{heading}{HEADING:#}")
    }

    /// A name and what is to be said of it, in two columns.
    pub(super) fn field(&mut self, name: &str, value: &str) -> fmt::Result {
        writeln!(self, "{name:<10} {value}")
    }

    /// `text` in lines of [`WIDTH`] letters, after `indent`, with `mark` before the first.
    pub(super) fn wrapped(&mut self, indent: &str, mark: &str, text: &str) -> fmt::Result {
        let lead = format!("{}{mark}", indent.get(mark.len()..).unwrap_or_default());
        self.hanging(&lead, indent.chars().count(), text)
    }

    /// `text` in lines of [`WIDTH`] letters: the first behind `lead`, the others below it. `indent` is how many letters of
    /// `lead` are seen.
    pub(super) fn hanging(&mut self, lead: &str, indent: usize, text: &str) -> fmt::Result {
        let mut lead = lead.to_owned();
        for line in lines(text, WIDTH.saturating_sub(indent)) {
            writeln!(self, "{}", format_args!("{lead}{line}").to_string().trim_end())?;
            lead = " ".repeat(indent);
        }
        Ok(())
    }

    /// The lines of `table`, without space at their ends.
    pub(super) fn table(&mut self, table: &Table) -> fmt::Result {
        for line in table.lines() {
            writeln!(self, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `text` in lines of `width` letters. Words are not broken, and neither is what stands between backticks, so that it can
/// be pasted: a line is longer where it must be. There is one line at least.
pub(super) fn lines(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words(text) {
        let Some(line) = lines.last_mut() else { break };
        let length = line.chars().count().saturating_add(1).saturating_add(word.chars().count());
        if line.is_empty() {
            line.push_str(&word);
        } else if length > width {
            lines.push(word);
        } else {
            line.push(' ');
            line.push_str(&word);
        }
    }
    lines
}

/// The words of `text`; what stands between backticks is one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for word in text.split_whitespace() {
        match words.last_mut().filter(|_| is_open) {
            Some(open) => {
                open.push(' ');
                open.push_str(word);
            }
            None => words.push(word.to_owned()),
        }
        is_open ^= word.matches('`').count() % 2 == 1;
    }
    words
}

/// A table with this header; the columns `right` hold numbers.
pub(super) fn table(header: &[&str], right: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// How much of a list is shown, where that is not all.
pub(super) fn of(shown: usize, all: usize) -> String {
    if shown < all { format!(", the first {shown} of {all}") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_long_as_they_may_be() {
        assert_eq!(lines("one two three", 7), ["one two", "three"]);
        assert_eq!(lines("one two three", 6), ["one", "two", "three"]);
        assert_eq!(lines(" unbroken ", 3), ["unbroken"]);
        assert_eq!(lines("", 3), [""]);
    }

    #[test]
    fn what_can_be_pasted_is_not_broken() {
        assert_eq!(lines("do `erl +MBas aobf`: it", 8), ["do", "`erl +MBas aobf`:", "it"]);
        // A backtick that is never closed.
        assert_eq!(lines("a `b c d", 3), ["a", "`b c d"]);
    }

    #[test]
    fn later_lines_stand_below_the_first() {
        let mut text = String::new();
        Page::new(&mut text).hanging("\x1b[1m*\x1b[0m ", 2, &"word ".repeat(30)).expect("a String takes everything");
        let rest: Vec<_> = text.lines().skip(1).collect();
        assert!(!rest.is_empty() && rest.iter().all(|line| line.starts_with("  word")), "{text}");
    }
}
