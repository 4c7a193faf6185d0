//! The code of the process as it changes: mappings, unwind tables and names, brought up to date when a stack leads to
//! where nothing was before.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use beamscope_probe::{MappingEvent, MappingKind};

use super::erlang::Erlang;
use crate::{
    kernel::{object, plan::StackEngine, session::Session},
    mapping::{Backing, Mapping, Mappings},
    stack::{
        Frame, Stack,
        modules::{self, Modules},
        raw::{Captured, RawStack},
        rows,
        unwind::Unwinder,
    },
    symbol::NativeSymbols,
    target::{
        allocator,
        elf::ModuleFile,
        maps::{FileIdentity, Maps},
        process::{Target, TargetError},
        sections::UnwindSections,
    },
};

/// How often they are read again at most, where code has been mapped, or a stack leads out of what is known.
const REFRESH_CODE_EVERY: Duration = Duration::from_millis(5);

/// How long they are taken for good otherwise.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// What is known of the process's code.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) mappings: Mappings,
    /// Which file is mapped where: another one can come to the same place.
    files: BTreeMap<(u64, u64), FileIdentity>,
    attached: bool,
    /// Code has been mapped that is not known yet.
    outdated: bool,
    walker: Walker,
    /// Where the VM's code at run time lies.
    jit: Range<u64>,
    symbols: NativeSymbols,
    pub(super) erlang: Erlang,
    refreshed: Instant,
    /// Files whose unwind tables could not be read, one sentence each.
    pub(super) defects: Vec<String>,
}

/// Who walks the stacks, and with what tables.
#[derive(Debug)]
enum Walker {
    /// In the kernel. What leads into code that was not known there yet is walked here.
    Kernel {
        modules: Modules,
        images: Option<Box<Unwinder>>,
    },
    Images(Box<Unwinder>),
}

impl Walker {
    fn modules(&mut self) -> Option<&mut Modules> {
        match self {
            Self::Kernel { modules, .. } => Some(modules),
            Self::Images(_) => None,
        }
    }

    fn unwinder(&mut self) -> Option<&mut Unwinder> {
        match self {
            Self::Kernel { images, .. } => images.as_deref_mut(),
            Self::Images(unwinder) => Some(unwinder),
        }
    }
}

/// `PROT_EXEC` (mmap(2)).
const EXECUTABLE: u32 = 4;

impl Code {
    pub(super) fn new(target: &Target, map_files: bool, engine: StackEngine) -> Result<Self, TargetError> {
        Ok(Self {
            mappings: Mappings::default(),
            files: BTreeMap::new(),
            attached: false,
            outdated: false,
            walker: match engine {
                StackEngine::Kernel => Walker::Kernel { modules: Modules::default(), images: None },
                StackEngine::Images => Walker::Images(Box::default()),
            },
            jit: 0..0,
            symbols: NativeSymbols::new(target.pid(), map_files),
            erlang: Erlang::find(target)?,
            refreshed: Instant::now(),
            defects: Vec::new(),
        })
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

    /// Whether code has been mapped since the mappings were read. Files come a few mappings at a time, and each reading
    /// costs some milliseconds, so not every one is followed by a reading of its own.
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated && self.refreshed.elapsed() >= REFRESH_CODE_EVERY
    }

    /// Takes word of a mapping call.
    pub(super) fn note_mapping(&mut self, event: &MappingEvent) {
        self.outdated |= event.kind == MappingKind::Mapped as u32 && event.protection & EXECUTABLE != 0;
    }

    /// Pages of unwind rows that the kernel needs room for.
    pub(super) fn row_chunks(&mut self) -> u32 {
        self.walker.modules().map_or(0, Modules::reserve)
    }

    /// Bytes of unwind rows in the kernel.
    pub(super) fn row_bytes(&mut self) -> u64 {
        self.walker.modules().map_or(0, |modules| modules.row_bytes())
    }

    /// Tells the kernel what has changed.
    pub(super) fn publish(&mut self, session: &mut Session) -> anyhow::Result<()> {
        if let Some(update) = self.walker.modules().and_then(Modules::update) {
            session.publish(&update)?;
        }
        Ok(session.set_code(&self.jit)?)
    }

    /// Reads the mappings, and the tables of files that are new.
    pub(super) fn refresh(&mut self, target: &Target) -> anyhow::Result<()> {
        self.refreshed = Instant::now();
        self.outdated = false;
        let maps = target.maps()?;
        // What the kernel says of a process whose memory is gone and which is not.
        ensure!(maps.mappings.iter().next().is_some(), "process {} has no mappings left", target.pid());
        self.remove_unmapped(&maps);
        for mapping in maps.mappings.iter().filter(|mapping| mapping.permissions.execute) {
            let range = mapping.start.0..mapping.end.0;
            let identity = maps.files.get(&mapping.start).copied().unwrap_or_default();
            if self.files.get(&(range.start, range.end)) == Some(&identity) {
                continue;
            }
            self.files.retain(|(start, end), _| *end <= range.start || range.end <= *start);
            self.files.insert((range.start, range.end), identity);
            self.symbols.forget(&range);
            if let Err(defect) = self.add(target, &maps, mapping) {
                self.note_defect(format!("{defect:#}"));
            }
        }
        let jit = maps.mappings.iter().filter(|mapping| mapping.is_jit());
        let ends = jit.map(|mapping| (mapping.start.0, mapping.end.0));
        self.jit = ends
            .reduce(|(start, end), next| (start.min(next.0), end.max(next.1)))
            .map_or(0..0, |(start, end)| start..end);
        self.attached = true;
        if let Some(unwinder) = self.walker.unwinder() {
            unwinder.set_mappings(maps.mappings.clone());
        }
        self.mappings = maps.mappings;
        Ok(())
    }

    fn remove_unmapped(&mut self, maps: &Maps) {
        let is_there = |start: u64, end: u64| {
            let mapping = maps.mappings.find(crate::mapping::Address(start));
            mapping.is_some_and(|mapping| mapping.end.0 == end && mapping.permissions.execute)
        };
        let gone: Vec<(u64, u64)> = self.files.keys().copied().filter(|(start, end)| !is_there(*start, *end)).collect();
        for (start, end) in gone {
            self.files.remove(&(start, end));
            if let Some(modules) = self.walker.modules() {
                modules.remove(&(start..end));
            }
            if let Some(unwinder) = self.walker.unwinder() {
                unwinder.remove_modules(&(start..end));
            }
        }
    }

    fn add(&mut self, target: &Target, maps: &Maps, mapping: &Mapping) -> anyhow::Result<()> {
        let range = mapping.start.0..mapping.end.0;
        let opened = match &mapping.backing {
            Backing::File(_) => target.module(maps, mapping),
            Backing::Kernel(name) if name == "[vdso]" => target.vdso(mapping),
            backing => {
                if let Some(modules) = self.walker.modules() {
                    let is_trampoline = matches!(backing, Backing::Kernel(name) if name == "[uprobes]");
                    let what = match backing {
                        _ if mapping.is_jit() => modules::Code::Jit,
                        _ if is_trampoline => modules::Code::Trampoline,
                        _ => modules::Code::Unknown,
                    };
                    modules.add(range, what)?;
                }
                return Ok(());
            }
        };
        let name = mapping.file_name().unwrap_or("[vdso]").to_owned();
        let no_tables = || format!("no unwind tables of {name}");
        let opened = opened.and_then(|file| UnwindSections::of(&file).map(|sections| (file, sections)));
        let (file, sections) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if let Some(modules) = self.walker.modules() {
                    modules.add(range, modules::Code::Unknown)?;
                }
                return Err(error).with_context(no_tables);
            }
        };
        self.note_allocator(&file);
        if let Some(modules) = self.walker.modules() {
            let rows = rows::build(object::HOST, &sections, modules.rules()).with_context(no_tables)?;
            modules.add_file(range.clone(), file.bias, &rows).with_context(no_tables)?;
        }
        if let Some(unwinder) = self.walker.unwinder() {
            unwinder.add_module(file.name().to_owned(), range, file.bias, sections);
        }
        Ok(())
    }

    /// An unwinder for what the kernel could not walk.
    fn prepare_unwinder(&mut self, target: &Target) -> anyhow::Result<()> {
        let Walker::Kernel { images: images @ None, .. } = &mut self.walker else { return Ok(()) };
        let mut unwinder = Box::<Unwinder>::default();
        let maps = target.maps()?;
        let code = |mapping: &&Mapping| mapping.permissions.execute && matches!(mapping.backing, Backing::File(_));
        for mapping in maps.mappings.iter().filter(code) {
            // What cannot be opened is a defect already.
            let Ok(file) = target.module(&maps, mapping) else { continue };
            if let Ok(sections) = UnwindSections::of(&file) {
                let range = mapping.start.0..mapping.end.0;
                unwinder.add_module(file.name().to_owned(), range, file.bias, sections);
            }
        }
        unwinder.set_mappings(maps.mappings);
        *images = Some(unwinder);
        Ok(())
    }

    fn note_allocator(&mut self, file: &ModuleFile) {
        if self.attached && allocator::brings_its_own(file) {
            self.note_defect(format!(
                "{} was loaded during the recording and has a malloc of its own, which is not followed",
                file.name()
            ));
        }
    }

    /// Notes what had to be left out, once.
    pub(super) fn note_defect(&mut self, defect: String) {
        if !self.defects.contains(&defect) {
            self.defects.push(defect);
        }
    }

    /// Walks a captured stack; reads the mappings again where it leads out of those that are known.
    pub(super) fn unwind(&mut self, target: &Target, captured: &Captured<'_>, leaf_is_return: bool) -> RawStack {
        if let Err(error) = self.prepare_unwinder(target)
            && target.is_alive()
        {
            self.note_defect(format!("stacks that lead into new code are missing: {error:#}"));
        }
        let jit = self.jit.clone();
        let Some(unwinder) = self.walker.unwinder() else { return RawStack::default() };
        let (stack, left_at) = unwinder.unwind(captured, &jit, leaf_is_return);
        let out_of_date = left_at.is_some_and(|address| unwinder.is_unmapped(address));
        // A process that is gone has no mappings to read; what is known of it stays.
        if out_of_date
            && self.refreshed.elapsed() >= REFRESH_CODE_EVERY
            && self.refresh(target).is_ok()
            && let Some(unwinder) = self.walker.unwinder()
        {
            return unwinder.unwind(captured, &jit, leaf_is_return).0;
        }
        stack
    }

    /// Looks up the native names of new stacks.
    pub(super) fn learn(&mut self, stacks: &[&RawStack]) {
        self.symbols.learn(stacks, &self.mappings);
    }

    /// Looks up the Erlang names of new stacks, which takes much less time and can be put off much less.
    pub(super) fn learn_erlang(&mut self, stacks: &[&RawStack], target: &Target) {
        if let Err(error) = self.erlang.learn(stacks, &self.mappings, target)
            && target.is_alive()
        {
            self.note_defect(format!("code that was loaded during the recording has no names: {error}"));
        }
    }

    /// The stack with names, below the allocation function `leaf` where there is one.
    pub(super) fn name(&self, stack: &RawStack, leaf: Option<Frame>) -> Stack {
        self.erlang.complete(stack, self.symbols.name(stack, leaf, &self.mappings))
    }

    /// Addresses whose file could not be read for symbols.
    pub(super) fn unreadable_symbols(&self) -> u64 {
        self.symbols.unreadable
    }
}
