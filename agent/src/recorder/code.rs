//! The code of the process as it changes: mappings, unwind tables and names, brought up to date when a stack leads to
//! where nothing was before.

use std::time::{Duration, Instant};

use beamscope_probe::SampleHeader;

use crate::{
    ledger::RawStack,
    mapping::{Backing, Mappings},
    stack::{Frame, Stack, unwind::Unwinder},
    symbol::NativeSymbols,
    target::{process::Target, sections::UnwindSections},
};

/// How often the mappings are read again at most.
const REFRESH_EVERY: Duration = Duration::from_millis(100);

/// What is known of the process's code.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) mappings: Mappings,
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
            unwinder: Unwinder::default(),
            symbols: NativeSymbols::new(target.pid(), map_files),
            refreshed: Instant::now(),
            defects: Vec::new(),
        }
    }

    /// Reads the mappings, and the tables of files that are new.
    pub(super) fn refresh(&mut self, target: &Target) -> anyhow::Result<()> {
        self.refreshed = Instant::now();
        let maps = target.maps()?;
        let code = maps
            .mappings
            .iter()
            .filter(|mapping| mapping.permissions.execute && matches!(mapping.backing, Backing::File(_)));
        for mapping in code {
            let range = mapping.start.0..mapping.end.0;
            if self.unwinder.knows(&range) {
                continue;
            }
            let opened = target
                .module(&maps, mapping)
                .and_then(|file| UnwindSections::of(&file).map(|sections| (file, sections)));
            match opened {
                Ok((file, sections)) => {
                    self.unwinder.add_module(file.name().to_owned(), range, file.bias, sections);
                }
                Err(error) => {
                    let name = mapping.file_name().unwrap_or_default();
                    let defect = format!("no unwind tables of {name}: {:#}", anyhow::Error::new(error));
                    if !self.defects.contains(&defect) {
                        self.defects.push(defect);
                    }
                }
            }
        }
        self.unwinder.set_mappings(maps.mappings.clone());
        self.mappings = maps.mappings;
        Ok(())
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
