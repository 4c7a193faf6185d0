//! Which code has which unwind rows, in the form in which the kernel holds them: what to write, and where.
//!
//! Rows lie one after another in pages; a module has a run of whole pages. The list of modules is written anew, beside
//! the one in use, whenever it changes.

use std::{collections::BTreeMap, mem, ops::Range};

use beamscope_probe::{MODULES, Module, ROWS_PER_CHUNK, Row, Rule, RuleKind};

use super::rows::{FileRows, Rules};

/// Rows that are kept at most: 8 bytes each.
const MOST_ROWS: u32 = 1 << 23;
/// Room for the rows of files that are mapped later.
const SPARE_CHUNKS: u32 = 1024;

/// What is told of a range of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The VM made it at run time.
    Jit,
    /// The kernel's, for functions whose return is probed.
    Trampoline,
    /// A file's, without unwind tables.
    Unknown,
}

/// The modules of one process, and where their rows are.
#[derive(Debug)]
pub struct Modules {
    rules: Rules,
    /// By first address.
    placed: BTreeMap<u64, Placed>,
    /// Pages of rows that nobody uses, sorted.
    free: Vec<Range<u32>>,
    /// Pages that a walk in progress may still read.
    leaving: Vec<Range<u32>>,
    chunks: u32,
    generation: u32,
    changed: bool,
    new_chunks: Vec<(u32, Vec<Row>)>,
    written_rules: usize,
}

#[derive(Debug)]
struct Placed {
    module: Module,
    chunks: Range<u32>,
}

/// What has to be written into the kernel's maps, in this order.
#[derive(Debug)]
pub struct Update<'a> {
    /// Pages of rows: where, and what.
    pub chunks: Vec<(u32, Vec<Row>)>,
    /// Rules that are new, and the index of the first.
    pub rules: (usize, &'a [Rule]),
    /// Index of the first element of the list of modules.
    pub first_module: u32,
    /// The list.
    pub modules: Vec<Module>,
    /// What makes it known: [`Control::modules`](beamscope_probe::Control::modules).
    pub in_use: u64,
}

/// There is no room for a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModulesError {
    /// For its rows.
    #[error("there is no room for {rows} rows of unwind tables")]
    Rows {
        /// How many it has.
        rows: usize,
    },
    /// In the list.
    #[error("there is no room for more than {MODULES} ranges of code")]
    Modules,
}

impl Default for Modules {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            placed: BTreeMap::new(),
            free: Vec::new(),
            leaving: Vec::new(),
            chunks: MOST_ROWS / CHUNK,
            generation: 0,
            changed: true,
            new_chunks: Vec::new(),
            written_rules: 0,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a page has some hundred rows")]
const CHUNK: u32 = ROWS_PER_CHUNK as u32;

impl Modules {
    /// The rules that rows refer to.
    pub fn rules(&mut self) -> &mut Rules {
        &mut self.rules
    }

    /// Pages of rows that the kernel needs room for, what is mapped later included. After it, no more are used.
    pub fn reserve(&mut self) -> u32 {
        let used = self.placed.values().map(|placed| placed.chunks.end).max().unwrap_or(0);
        self.chunks = used.saturating_add(used / 4).saturating_add(SPARE_CHUNKS).min(self.chunks);
        self.chunks
    }

    /// Bytes of rows that are in use.
    pub fn row_bytes(&self) -> u64 {
        self.placed.values().map(|placed| u64::from(placed.module.rows) * 8).sum()
    }

    /// Adds the code at `code`, whose rows are `rows`; addresses in memory are `bias` above those in the file.
    pub fn add_file(&mut self, code: Range<u64>, bias: u64, rows: &FileRows) -> Result<(), ModulesError> {
        self.remove(&code);
        let count = rows.rows.len();
        let (Ok(length), false) = (u32::try_from(count), count == 0) else {
            return self.add(code, Code::Unknown);
        };
        let Some(chunks) = self.place(length.div_ceil(CHUNK)) else {
            // Stacks that pass through it are counted as cut there.
            self.add(code, Code::Unknown)?;
            return Err(ModulesError::Rows { rows: count });
        };
        let module = Module {
            start: code.start,
            end: code.end,
            base: rows.base.wrapping_add(bias),
            first_row: chunks.start.saturating_mul(CHUNK),
            rows: length,
            rule: 0,
            reserved: 0,
        };
        let pages = chunks.clone().zip(rows.rows.chunks(ROWS_PER_CHUNK)).map(|(at, rows)| (at, rows.to_vec()));
        self.new_chunks.extend(pages);
        self.insert(module, chunks)
    }

    /// Adds code that has no rows.
    pub fn add(&mut self, code: Range<u64>, what: Code) -> Result<(), ModulesError> {
        self.remove(&code);
        let kind = match what {
            Code::Jit => RuleKind::Jit,
            Code::Trampoline => RuleKind::Trampoline,
            Code::Unknown => RuleKind::Gap,
        };
        let rule = self.rules.intern(Rule { kind: kind as u32, ..Rule::default() });
        let module = Module { start: code.start, end: code.end, rule, ..Module::default() };
        self.insert(module, 0..0)
    }

    /// Takes away what was added for addresses in `code`.
    pub fn remove(&mut self, code: &Range<u64>) {
        let overlaps = |placed: &Placed| placed.module.start < code.end && code.start < placed.module.end;
        let old: Vec<u64> = self.placed.iter().filter(|(_, placed)| overlaps(placed)).map(|(at, _)| *at).collect();
        for at in old {
            if let Some(Placed { chunks, .. }) = self.placed.remove(&at) {
                self.changed = true;
                if !chunks.is_empty() {
                    self.new_chunks.retain(|(at, _)| !chunks.contains(at));
                    self.leaving.push(chunks);
                }
            }
        }
    }

    /// What changed since the last time; `None`: nothing.
    pub fn update(&mut self) -> Option<Update<'_>> {
        if !mem::take(&mut self.changed) {
            return None;
        }
        // Whoever read these pages when the last list was made has long finished.
        self.free.append(&mut self.leaving);
        self.free.sort_by_key(|run| run.start);
        self.generation = self.generation.wrapping_add(1);
        let modules: Vec<Module> = self.placed.values().map(|placed| placed.module).collect();
        let count = u32::try_from(modules.len()).unwrap_or(MODULES).min(MODULES);
        let rules = self.rules.list();
        let first = mem::replace(&mut self.written_rules, rules.len());
        Some(Update {
            chunks: mem::take(&mut self.new_chunks),
            rules: (first, rules.get(first..).unwrap_or_default()),
            first_module: if self.generation.is_multiple_of(2) { 0 } else { MODULES },
            modules,
            in_use: u64::from(self.generation) << 32 | u64::from(count),
        })
    }

    fn insert(&mut self, module: Module, chunks: Range<u32>) -> Result<(), ModulesError> {
        if self.placed.len() >= MODULES as usize {
            return Err(ModulesError::Modules);
        }
        self.changed = true;
        self.placed.insert(module.start, Placed { module, chunks });
        Ok(())
    }

    /// A run of `length` pages.
    fn place(&mut self, length: u32) -> Option<Range<u32>> {
        for run in &mut self.free {
            if run.end.saturating_sub(run.start) >= length {
                let found = run.start..run.start.saturating_add(length);
                run.start = found.end;
                return Some(found);
            }
        }
        let in_use = self.placed.values().map(|placed| placed.chunks.end);
        let given_up = self.free.iter().chain(&self.leaving).map(|run| run.end);
        let start = in_use.chain(given_up).max().unwrap_or(0);
        let end = start.checked_add(length).filter(|end| *end <= self.chunks)?;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u32) -> FileRows {
        FileRows {
            base: 0x1000,
            end: 0x1000 + u64::from(count),
            rows: (0..count).map(|at| Row::new(at, 1)).collect(),
            ..FileRows::default()
        }
    }

    fn first_rows(modules: &mut Modules) -> Vec<(u64, u32, u32)> {
        let update = modules.update().expect("something has changed");
        update.modules.iter().map(|module| (module.start, module.first_row, module.rows)).collect()
    }

    #[test]
    fn each_file_has_pages_of_its_own() {
        let mut modules = Modules::default();
        modules.add_file(0x9000..0xa000, 0x8000, &rows(513)).unwrap();
        modules.add_file(0x2000..0x3000, 0x1000, &rows(1)).unwrap();
        modules.add(0x5000..0x6000, Code::Jit).unwrap();
        assert_eq!(modules.row_bytes(), 514 * 8);
        let update = modules.update().unwrap();
        let starts: Vec<_> = update.modules.iter().map(|module| (module.start, module.first_row)).collect();
        assert_eq!(starts, [(0x2000, 1024), (0x5000, 0), (0x9000, 0)]);
        assert_eq!(update.modules[2].base, 0x9000);
        let pages: Vec<_> = update.chunks.iter().map(|(at, rows)| (*at, rows.len())).collect();
        assert_eq!(pages, [(0, 512), (1, 1), (2, 1)]);
        assert_eq!((update.first_module, update.in_use), (MODULES, 1 << 32 | 3));
        assert!(modules.update().is_none());
    }

    #[test]
    fn code_that_comes_to_the_place_of_other_code_replaces_it() {
        let mut modules = Modules::default();
        modules.add_file(0x2000..0x4000, 0, &rows(600)).unwrap();
        assert_eq!(first_rows(&mut modules), [(0x2000, 0, 600)]);
        // Its pages are not given away before a list without it has been in use.
        modules.add_file(0x3000..0x5000, 0, &rows(5)).unwrap();
        assert_eq!(first_rows(&mut modules), [(0x3000, 1024, 5)]);
        modules.add_file(0x7000..0x8000, 0, &rows(7)).unwrap();
        assert_eq!(first_rows(&mut modules), [(0x3000, 1024, 5), (0x7000, 0, 7)]);
    }

    #[test]
    fn what_has_no_room_is_known_to_have_none() {
        let mut modules = Modules::default();
        modules.add_file(0x1000..0x2000, 0, &rows(1)).unwrap();
        assert_eq!(modules.reserve(), SPARE_CHUNKS + 1);
        let large = rows(CHUNK * (SPARE_CHUNKS + 1));
        let refused = modules.add_file(0x5000..0x6000, 0, &large);
        assert!(matches!(refused, Err(ModulesError::Rows { .. })));
        assert_eq!(first_rows(&mut modules), [(0x1000, 0, 1), (0x5000, 0, 0)]);
    }
}
