//! What does a core dump say of the node that left it? (core(5); kernel: `fs/binfmt_elf.c`, `elf_core_dump`)
//!
//! A dump holds the memory that was written to, the list of mapped files and the threads. It does not say which pages
//! were resident: a page counts as resident where it holds anything but zeros. Files that were mapped and not written
//! to are not in it, so the VM's executable is needed beside it.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use object::{
    Endianness, ReadCache, elf,
    read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _},
};
use thiserror::Error;

use super::{
    elf::{ModuleError, ModuleFile},
    memory::{ReadMemory, Unreadable, read_each},
    node::Libc,
    view::{Viewed, symbols},
};
use crate::{
    erts::code,
    extents::Extents,
    mapping::{Address, Backing, Mapping, Permissions},
    recording::{Node, Snapshot},
    view::{MappedMemory, ProcessView, Residency},
};

/// Most mappings and threads that are believed.
const MOST: usize = 1 << 20;
/// Bytes of a page: of the dumps that are read, `x86_64` has no others; arm64 can have larger ones, of which zeros are found as well.
const PAGE: u64 = 4096;
/// Bytes that are read at a time while zeros are looked for.
const AT_ONCE: usize = 1 << 20;
/// Offset of `pr_pid` in `elf_prstatus`, behind `elf_siginfo`, `pr_cursig` and two signal masks (64-bit Linux).
const PRSTATUS_PID: usize = 32;
/// Bytes of `pr_psargs` at the end of `elf_prpsinfo`.
const ARGUMENTS: usize = 80;
/// Bytes at the begin of a file that tell it from another one.
const HEAD: usize = 512;

/// The memory in a core dump.
#[derive(Debug)]
pub struct CoreMemory {
    file: File,
    segments: Vec<Segment>,
    /// What was mapped from files and is not in the dump: where, and what the file holds there.
    files: Vec<(Range<u64>, u64, Arc<[u8]>)>,
}

#[derive(Clone, Debug)]
struct Segment {
    /// Where its bytes were in memory, as far as they are in the dump.
    dumped: Range<u64>,
    /// All of it.
    whole: Range<u64>,
    offset: u64,
    permissions: Permissions,
}

/// A mapped file of the list in the dump.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MappedFile {
    range: Range<u64>,
    offset: u64,
    path: String,
}

/// Why a core dump cannot be explained.
#[derive(Debug, Error)]
pub enum CoreError {
    /// The file cannot be read.
    #[error("the core dump cannot be read")]
    Io(#[from] io::Error),
    /// It is no core dump of a 64-bit process.
    #[error("not a core dump of a 64-bit process")]
    Form(#[from] object::Error),
    /// It is something else than a core dump.
    #[error("an ELF file, but no core dump")]
    NoCore,
    /// It has no list of files.
    #[error("the core dump has no list of mapped files (NT_FILE), so its executable is not known")]
    NoFiles,
    /// It is of another program.
    #[error("the core dump is not of an Erlang VM: it has mapped {0}")]
    NotABeam(String),
    /// The VM's executable is not here.
    #[error("the VM's executable {path} of the core dump is needed; name it by --executable FILE")]
    NoExecutable {
        /// Where it was.
        path: String,
        /// Why it cannot be read.
        #[source]
        cause: ModuleError,
    },
    /// Another executable is there.
    #[error("{path} is not the executable of the core dump; name that one by --executable FILE")]
    OtherExecutable {
        /// What was looked at.
        path: String,
    },
}

/// Opens the core dump in `file`. `executable` is where the VM's lies, if not at its old place.
pub fn open(file: File, executable: Option<&Path>) -> Result<(Viewed, CoreMemory), CoreError> {
    let taken_unix = u64::try_from(file.metadata()?.mtime()).unwrap_or(0);
    let parsed = Parsed::of(&file)?;
    let Parsed { segments, mapped, threads, arguments, arch } = parsed;
    let mut memory = CoreMemory { file, segments, files: Vec::new() };
    let is_beam = |file: &&MappedFile| code::is_emulator(name_of(&file.path));
    let beam_path = match mapped.iter().find(is_beam) {
        Some(file) => file.path.clone(),
        None => return Err(CoreError::NotABeam(mapped.first().map(|file| file.path.clone()).unwrap_or_default())),
    };
    let mut mappings = memory.mappings(&mapped, &beam_path);
    let beam = memory.module(&beam_path, executable, &mappings)?;
    tell_code(&mut mappings, &beam);
    let mut defects = Vec::new();
    let libc_path = mapped.iter().find(|file| Libc::of(name_of(&file.path)).is_some()).map(|file| file.path.clone());
    let mut files = vec![(beam_path.clone(), Arc::clone(&beam.bytes))];
    memory.keep(&beam_path, &beam.bytes, &mapped);
    if let Some(path) = &libc_path {
        match memory.module(path, None, &mappings) {
            Ok(module) => {
                memory.keep(path, &module.bytes, &mapped);
                files.push((path.clone(), module.bytes));
            }
            Err(error) => defects.push(format!("the C library {path} cannot be read: {:#}", anyhow::Error::new(error))),
        }
    }
    let resident = memory.written()?;
    let mappings: Vec<_> = mappings.into_iter().map(|mapping| figures(mapping, &resident)).collect();
    let rss = resident.total();
    defects.push(
        "a core dump does not say which pages were resident: those count that hold anything but zeros, and files that \
         were only read are missing"
            .to_owned(),
    );
    let node = Node {
        arch: arch.to_owned(),
        pid: threads.first().copied().unwrap_or_default(),
        name: super::node::name(&arguments, None),
        ..super::facts::of_executable(&beam)
    };
    let view = ProcessView {
        node,
        taken_unix,
        page_size: PAGE,
        figures: Snapshot { rss, pss: rss, anon: rss, ..Snapshot::default() },
        mappings,
        resident: Residency::Pages(resident),
        swapped: Extents::default(),
        lazily_freed: None,
        threads,
        symbols: symbols(&beam),
        beam: beam_path,
        libc: libc_path,
        limits: None,
        defects,
    };
    Ok((Viewed { view, files }, memory))
}

/// What the headers and notes of a dump say.
struct Parsed {
    segments: Vec<Segment>,
    mapped: Vec<MappedFile>,
    threads: Vec<u32>,
    arguments: Vec<String>,
    arch: &'static str,
}

impl Parsed {
    fn of(file: &File) -> Result<Self, CoreError> {
        let cache = ReadCache::new(file);
        let core = ElfFile64::<Endianness, _>::parse(&cache)?;
        let (header, endian, data) = (core.elf_header(), core.endian(), core.data());
        if header.e_type(endian) != elf::ET_CORE {
            return Err(CoreError::NoCore);
        }
        let arch = match header.e_machine(endian) {
            elf::EM_X86_64 => "x86_64",
            elf::EM_AARCH64 => "aarch64",
            _ => "unknown",
        };
        let mut parsed =
            Self { segments: Vec::new(), mapped: Vec::new(), threads: Vec::new(), arguments: Vec::new(), arch };
        for header in core.elf_program_headers().iter().take(MOST) {
            if let Some(mut notes) = header.notes(endian, data)? {
                while let Some(note) = notes.next()? {
                    parsed.note(note.n_type(endian), note.desc());
                }
            } else if header.p_type(endian) == elf::PT_LOAD {
                parsed.segments.extend(segment(
                    header.p_vaddr(endian),
                    header.p_memsz(endian),
                    header.p_filesz(endian),
                    header.p_offset(endian),
                    header.p_flags(endian),
                ));
            }
        }
        parsed.segments.sort_by_key(|segment| segment.whole.start);
        if parsed.mapped.is_empty() {
            return Err(CoreError::NoFiles);
        }
        Ok(parsed)
    }

    fn note(&mut self, kind: elf::NoteType, bytes: &[u8]) {
        match kind {
            elf::NT_FILE => self.mapped = mapped_files(bytes).unwrap_or_default(),
            elf::NT_PRSTATUS if self.threads.len() < MOST => {
                let pid = bytes.get(PRSTATUS_PID..).and_then(<[u8]>::first_chunk::<4>);
                self.threads.extend(pid.map(|pid| u32::from_le_bytes(*pid)));
            }
            // `pr_psargs`: the last 80 bytes.
            elf::NT_PRPSINFO => {
                let arguments = bytes.get(bytes.len().saturating_sub(ARGUMENTS)..).unwrap_or_default();
                let text = String::from_utf8_lossy(arguments.split(|byte| *byte == 0).next().unwrap_or_default());
                self.arguments = text.split_whitespace().map(str::to_owned).collect();
            }
            _ => {}
        }
    }
}

fn segment(address: u64, memory: u64, dumped: u64, offset: u64, flags: elf::ProgramFlags) -> Option<Segment> {
    let end = address.checked_add(memory)?;
    offset.checked_add(dumped)?;
    let has = |flag| flags.contains(flag);
    let permissions =
        Permissions { read: has(elf::PF_R), write: has(elf::PF_W), execute: has(elf::PF_X), shared: false };
    let dumped = address..address.checked_add(dumped.min(memory))?;
    (memory > 0).then_some(Segment { dumped, whole: address..end, offset, permissions })
}

/// `NT_FILE`: count and page size, then begin, end and offset (in pages) of each, then all names.
fn mapped_files(bytes: &[u8]) -> Option<Vec<MappedFile>> {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |index: usize| words.get(index).copied().map(u64::from_le_bytes);
    let count = usize::try_from(word(0)?).ok().filter(|count| *count <= MOST)?;
    let unit = word(1)?;
    let mut names = bytes.get(16_usize.checked_add(count.checked_mul(24)?)?..)?.split(|byte| *byte == 0);
    (0..count)
        .map(|index| {
            let at = 2 + 3 * index;
            let path = String::from_utf8_lossy(names.next()?).into_owned();
            Some(MappedFile { range: word(at)?..word(at + 1)?, offset: word(at + 2)?.checked_mul(unit)?, path })
        })
        .collect()
}

impl CoreMemory {
    /// The mappings, with what is known of each.
    fn mappings(&self, mapped: &[MappedFile], beam: &str) -> Vec<Mapping> {
        let mut mappings = Vec::new();
        let beam_end = mapped.iter().filter(|file| file.path == beam).map(|file| file.range.end).max().unwrap_or(0);
        let next_file = mapped.iter().map(|file| file.range.start).filter(|start| *start >= beam_end).min();
        for Segment { whole, permissions, .. } in &self.segments {
            let file = mapped.iter().find(|file| file.range.start <= whole.start && whole.start < file.range.end);
            let is_heap = permissions.write && whole.start > beam_end && next_file.is_none_or(|next| whole.end <= next);
            let backing = match file {
                Some(file) if file.path.starts_with('/') && !file.path.starts_with("/memfd:") => {
                    Backing::File(file.path.strip_suffix(" (deleted)").unwrap_or(&file.path).to_owned())
                }
                Some(file) => Backing::Memory(file.path.clone()),
                // The heap that brk moves begins a little behind the executable; the list of files ends before it.
                None if is_heap && whole.start - beam_end < HEAP_DISTANCE => Backing::Heap,
                None => Backing::Anonymous,
            };
            let file_offset = file.map_or(0, |file| file.offset + (whole.start - file.range.start));
            mappings.push(Mapping {
                start: Address(whole.start),
                end: Address(whole.end),
                file_offset,
                permissions: *permissions,
                backing,
            });
        }
        // What was only read of a file may have no segment at all.
        let covered: Extents = self.segments.iter().map(|segment| segment.whole.clone()).collect();
        for file in mapped.iter().filter(|file| covered.bytes_in(&file.range) == 0) {
            let path = file.path.strip_suffix(" (deleted)").unwrap_or(&file.path);
            let is_file = path.starts_with('/') && !path.starts_with("/memfd:");
            mappings.push(Mapping {
                start: Address(file.range.start),
                end: Address(file.range.end),
                file_offset: file.offset,
                permissions: Permissions { read: true, ..Permissions::default() },
                backing: if is_file { Backing::File(path.to_owned()) } else { Backing::Memory(path.to_owned()) },
            });
        }
        mappings.sort_by_key(|mapping| mapping.start);
        mappings
    }

    /// The file that was mapped from `path`: at `instead`, or still there.
    fn module(&self, path: &str, instead: Option<&Path>, mappings: &[Mapping]) -> Result<ModuleFile, CoreError> {
        let place = instead.map_or_else(|| PathBuf::from(path), Path::to_path_buf);
        let of_file = |mapping: &&Mapping| matches!(&mapping.backing, Backing::File(file) if file == path);
        let code = mappings.iter().filter(of_file).find(|mapping| mapping.permissions.execute);
        let first = mappings.iter().filter(of_file).find(|mapping| mapping.file_offset == 0);
        let refused = |cause| CoreError::NoExecutable { path: path.to_owned(), cause };
        let Some(code) = code.or(first) else {
            return Err(refused(ModuleError::NoFile { start: Address(0) }));
        };
        let module = ModuleFile::beside(path, &place, code).map_err(refused)?;
        // The first page of a file is in the dump, with the build id.
        let mut head = vec![0; HEAD];
        let is_same = first
            .is_none_or(|first| self.read_dumped(first.start.0, &mut head).is_err() || module.bytes.starts_with(&head));
        if is_same { Ok(module) } else { Err(CoreError::OtherExecutable { path: place.display().to_string() }) }
    }

    /// Serves what was mapped from `path` and is not in the dump.
    fn keep(&mut self, path: &str, bytes: &Arc<[u8]>, mapped: &[MappedFile]) {
        let of_path = mapped.iter().filter(|file| file.path == path);
        self.files.extend(of_path.map(|file| (file.range.clone(), file.offset, Arc::clone(bytes))));
    }

    /// The pages in the dump that hold anything but zeros.
    fn written(&self) -> io::Result<Extents> {
        let mut written = Extents::default();
        let mut buffer = vec![0; AT_ONCE];
        for segment in &self.segments {
            let mut at = segment.dumped.start;
            while at < segment.dumped.end {
                let length = usize::try_from(segment.dumped.end - at).unwrap_or(AT_ONCE).min(AT_ONCE);
                let piece = buffer.get_mut(..length).unwrap_or_default();
                self.file.read_exact_at(piece, segment.offset.saturating_add(at - segment.dumped.start))?;
                for (page, start) in piece.chunks(4096).zip((at..).step_by(4096)) {
                    if page.iter().any(|byte| *byte != 0) {
                        written.push(start..start.saturating_add(page.len() as u64));
                    }
                }
                at = at.saturating_add(length as u64);
            }
        }
        Ok(written)
    }

    fn segment_at(&self, at: u64) -> Option<&Segment> {
        let after = self.segments.partition_point(|segment| segment.whole.start <= at);
        self.segments.get(after.checked_sub(1)?).filter(|segment| at < segment.whole.end)
    }

    /// Bytes that are in the dump from `at` on.
    fn dumped_from(&self, at: u64) -> Option<(u64, u64)> {
        let segment = self.segment_at(at).filter(|segment| at < segment.dumped.end)?;
        Some((segment.offset.checked_add(at - segment.dumped.start)?, segment.dumped.end - at))
    }

    fn read_dumped(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let found = self.dumped_from(at).filter(|(_, left)| into.len() as u64 <= *left);
        let (offset, _) = found.ok_or(io::ErrorKind::NotFound)?;
        self.file.read_exact_at(into, offset)
    }

    fn in_file(&self, at: u64) -> Option<&[u8]> {
        let (range, offset, bytes) = self.files.iter().find(|(range, ..)| range.contains(&at))?;
        let from = usize::try_from(offset.checked_add(at - range.start)?).ok()?;
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let rest = bytes.get(from..)?;
        Some(rest.get(..left).unwrap_or(rest)).filter(|rest| !rest.is_empty())
    }
}

/// How far behind the executable the heap begins at most (`arch_randomize_brk`: 32 MiB on `x86_64`, 1 GiB on arm64).
const HEAP_DISTANCE: u64 = 1 << 30;

impl ReadMemory for CoreMemory {
    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        let mut at = at;
        let mut rest = into;
        while !rest.is_empty() {
            let read = self.read_ahead(at, rest)?;
            rest = rest.split_at_mut(read).1;
            let length = rest.len();
            let wraps = || Unreadable { at, length, cause: io::ErrorKind::NotFound.into() };
            at = at.checked_add(read as u64).ok_or_else(wraps)?;
        }
        Ok(())
    }

    fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
        read_each(self, ranges)
    }

    fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable> {
        let length = into.len();
        let refused = |cause| Unreadable { at, length, cause };
        if let Some((offset, left)) = self.dumped_from(at.0) {
            let read = usize::try_from(left).unwrap_or(usize::MAX).min(length);
            self.file.read_exact_at(into.split_at_mut(read).0, offset).map_err(refused)?;
            return Ok(read);
        }
        let bytes = self.in_file(at.0);
        let not_there = || refused(io::Error::new(io::ErrorKind::NotFound, "not in the core dump"));
        let bytes = bytes.ok_or_else(not_there)?;
        let read = bytes.len().min(length);
        into.split_at_mut(read).0.copy_from_slice(bytes.split_at(read).0);
        Ok(read)
    }
}

/// Code has no segment in some dumps, and then only its file tells that it is code.
fn tell_code(mappings: &mut [Mapping], module: &ModuleFile) {
    let of_file = |mapping: &&mut Mapping| matches!(&mapping.backing, Backing::File(path) if *path == module.path);
    for mapping in mappings.iter_mut().filter(of_file).filter(|mapping| !mapping.permissions.write) {
        mapping.permissions.execute |= module.is_code_at(mapping.file_offset);
    }
}

fn figures(mapping: Mapping, resident: &Extents) -> MappedMemory {
    let rss = resident.bytes_in(&(mapping.start.0..mapping.end.0));
    MappedMemory { mapping, rss, pss: rss, anonymous: rss, swap: 0, lazy_free: 0, huge: 0 }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
