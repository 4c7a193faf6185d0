//! How is a report for people set: headings, tables, running text?
//!
//! It fits a terminal of 100 columns. Headings are styled with ANSI sequences; who writes the text takes them out where
//! they are not wanted.

use std::fmt::{self, Write};

use anstyle::Style;
use comfy_table::{CellAlignment, Table, presets};

pub(super) const HEADING: Style = Style::new().bold();

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
        let mut line = format!("{}{mark}", indent.get(mark.len()..).unwrap_or_default());
        let mut empty = true;
        for word in text.split_whitespace() {
            let length = line.chars().count().saturating_add(word.chars().count());
            if !empty && length >= WIDTH {
                writeln!(self, "{}", line.trim_end())?;
                indent.clone_into(&mut line);
            }
            line.push_str(word);
            line.push(' ');
            empty = false;
        }
        writeln!(self, "{}", line.trim_end())
    }

    /// The lines of `table`, without space at their ends.
    pub(super) fn table(&mut self, table: &Table) -> fmt::Result {
        for line in table.lines() {
            writeln!(self, "{}", line.trim_end())?;
        }
        Ok(())
    }
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
