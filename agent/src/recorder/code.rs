//! The code of the process as it changes: mappings, unwind tables and names, brought up to date when a stack leads to
//! where nothing was before.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::ensure;

use beamscope_probe::SampleHeader;

use crate::{
    ledger::RawStack,
    mapping::{Backing, Mappings},
    stack::{Frame, Stack, unwind::Unwinder},
    symbol::NativeSymbols,
    target::{allocator, maps::FileIdentity, process::Target, sections::UnwindSections},
};

/// How often the mappings are read again at most, where a stack leads out of those that are known.
const REFRESH_EVERY: Duration = Duration::from_millis(100);

/// How long they are taken for good otherwise.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// What is known of the process's code.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) mappings: Mappings,
    /// Which file is mapped where: another one can come to the same place.
    files: BTreeMap<(u64, u64), FileIdentity>,
    attached: bool,
    unwinder: Unwinder,
    symbols: NativeSymbols,
    refreshed: Instant,
    /// Files whose unwind tables could not be read, one sentence each.
    pub(super) defects: Vec<String>,
}

impl Code {
    pub(super) fn new(target: &Target, map_files: bool) -> Self {
        Self {
            mappings: Mappings::default(),
            files: BTreeMap::new(),
            attached: false,
            unwinder: Unwinder::default(),
            symbols: NativeSymbols::new(target.pid(), map_files),
            refreshed: Instant::now(),
            defects: Vec::new(),
        }
    }

    /// Where the heap that `brk` moves ends; 0 where there is none.
    pub(super) fn heap_end(&self) -> u64 {
        self.mappings.iter().find(|mapping| mapping.backing == Backing::Heap).map_or(0, |heap| heap.end.0)
    }

    /// Whether the mappings should be read again although no stack has led out of them: another file can have come to
    /// the place of one, and what was set aside can have become memory.
    pub(super) fn is_stale(&self) -> bool {
        self.refreshed.elapsed() >= STALE_AFTER
    }

    /// Reads the mappings, and the tables of files that are new.
    pub(super) fn refresh(&mut self, target: &Target) -> anyhow::Result<()> {
        self.refreshed = Instant::now();
        let maps = target.maps()?;
        // What the kernel says of a process whose memory is gone and which is not.
        ensure!(maps.mappings.iter().next().is_some(), "process {} has no mappings left", target.pid());
        let code = maps
            .mappings
            .iter()
            .filter(|mapping| mapping.permissions.execute && matches!(mapping.backing, Backing::File(_)));
        for mapping in code {
            let range = mapping.start.0..mapping.end.0;
            let identity = maps.files.get(&mapping.start);
            if identity.is_some() && self.files.get(&(range.start, range.end)) == identity {
                continue;
            }
            self.files.retain(|(start, end), _| *end <= range.start || range.end <= *start);
            self.unwinder.remove_modules(&range);
            self.symbols.forget(&range);
            if let Some(identity) = identity {
                self.files.insert((range.start, range.end), *identity);
            }
            let opened = target
                .module(&maps, mapping)
                .and_then(|file| UnwindSections::of(&file).map(|sections| (file, sections)));
            match opened {
                Ok((file, sections)) => {
                    if self.attached && allocator::brings_its_own(&file) {
                        self.note_defect(format!(
                            "{} was loaded during the recording and has a malloc of its own, which is not followed",
                            file.name()
                        ));
                    }
                    self.unwinder.add_module(file.name().to_owned(), range, file.bias, sections);
                }
                Err(error) => {
                    let name = mapping.file_name().unwrap_or_default();
                    self.note_defect(format!("no unwind tables of {name}: {:#}", anyhow::Error::new(error)));
                }
            }
        }
        self.attached = true;
        self.unwinder.set_mappings(maps.mappings.clone());
        self.mappings = maps.mappings;
        Ok(())
    }

    fn note_defect(&mut self, defect: String) {
        if !self.defects.contains(&defect) {
            self.defects.push(defect);
        }
    }

    /// Walks a captured stack; reads the mappings again where it leads out of those that are known.
    pub(super) fn unwind(
        &mut self,
        target: &Target,
        header: &SampleHeader,
        image: &[u8],
        leaf_is_return: bool,
    ) -> RawStack {
        let (stack, left_at) = self.unwinder.unwind(header, image, leaf_is_return);
        let out_of_date = left_at.is_some_and(|address| self.unwinder.is_unmapped(address));
        // A process that is gone has no mappings to read; what is known of it stays.
        if out_of_date && self.refreshed.elapsed() >= REFRESH_EVERY && self.refresh(target).is_ok() {
            return self.unwinder.unwind(header, image, leaf_is_return).0;
        }
        stack
    }

    /// Looks up the names of new stacks.
    pub(super) fn learn(&mut self, stacks: &[&RawStack]) {
        self.symbols.learn(stacks, &self.mappings);
    }

    /// The stack with names, below the allocation function `leaf`.
    pub(super) fn name(&self, stack: &RawStack, leaf: Frame) -> Stack {
        self.symbols.name(stack, leaf, &self.mappings)
    }

    /// Addresses whose file could not be read for symbols.
    pub(super) fn unreadable_symbols(&self) -> u64 {
        self.symbols.unreadable
    }
}
