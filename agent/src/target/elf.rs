//! Which file is behind a mapping, as the process sees it, and where did it land?

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::stat::{major, minor};
use object::{Endianness, Object as _, ObjectSegment as _, read::elf::ElfFile64};
use thiserror::Error;

use super::{
    maps::{FileIdentity, Maps},
    memory::{ReadMemory, Unreadable},
};
use crate::mapping::{Address, Backing, Mapping};

/// An address as the ELF file states it, before the file is loaded somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElfAddress(pub u64);

/// An offset in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(pub u64);

/// A parsed 64-bit ELF file.
pub type Elf<'data> = ElfFile64<'data, Endianness>;

/// An ELF file that is mapped into a process.
#[derive(Clone, Debug)]
pub struct ModuleFile {
    /// Its path in the process's mount namespace.
    pub path: String,
    /// A path to the same file from here, which the kernel takes for uprobes.
    pub attach_path: PathBuf,
    /// What it holds.
    pub bytes: Arc<[u8]>,
    /// What is added to an [`ElfAddress`] to get an [`Address`], modulo 2^64.
    pub bias: u64,
}

/// Why the file behind a mapping cannot be used.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// The mapping is not of a file.
    #[error("the mapping at {start} is not of a file")]
    NoFile {
        /// Its first address.
        start: Address,
    },
    /// The file cannot be opened.
    #[error("cannot read {path} as the process sees it: run beamscope as root, or with CAP_CHECKPOINT_RESTORE")]
    Unreachable {
        /// Its path in the process's mount namespace.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What the kernel has mapped cannot be read.
    #[error("cannot read {path} in the process's memory")]
    Memory {
        /// Its name in the mappings.
        path: String,
        /// Why.
        #[source]
        cause: Unreadable,
    },
    /// Another file is there now.
    #[error(
        "{path} has been replaced since the process mapped it: run beamscope as root, or with CAP_CHECKPOINT_RESTORE, \
         to read the old file, or restart the node"
    )]
    Replaced {
        /// Its path in the process's mount namespace.
        path: String,
    },
    /// The file is longer than any sensible library.
    #[error("{path} is too long to be read ({bytes} bytes)")]
    TooLong {
        /// Its path in the process's mount namespace.
        path: String,
        /// Its length.
        bytes: u64,
    },
    /// The file is not a 64-bit ELF file.
    #[error("{path} is not an ELF file that can be read")]
    Form {
        /// Its path in the process's mount namespace.
        path: String,
        /// Why.
        #[source]
        cause: object::Error,
    },
    /// The mapping is of no part of the file that is to be loaded.
    #[error("{path} has no loadable segment at offset {offset:#x}")]
    NoSegment {
        /// Its path in the process's mount namespace.
        path: String,
        /// Offset of the mapping in the file.
        offset: u64,
    },
}

/// Longest file that is read.
const LONGEST_FILE: u64 = 1 << 30;

/// Longest image of the kernel's that is read: the vdso has two pages.
const LONGEST_IMAGE: u64 = 1 << 20;

/// Bytes at the beginning of a file that tell it from another: headers, and the build id in nearly all files.
const HEAD: usize = 4096;

impl ModuleFile {
    /// Opens the file behind `mapping`, a line of `maps`, in the process whose `/proc` folder is `folder`.
    pub fn open(folder: &str, maps: &Maps, mapping: &Mapping, memory: &impl ReadMemory) -> Result<Self, ModuleError> {
        let Backing::File(path) = &mapping.backing else {
            return Err(ModuleError::NoFile { start: mapping.start });
        };
        let (attach_path, bytes) = read_file(folder, path, maps, mapping, memory)?;
        let bias = {
            let elf = Elf::parse(&*bytes).map_err(|cause| ModuleError::Form { path: path.clone(), cause })?;
            bias(&elf, mapping, procfs::page_size())
                .ok_or_else(|| ModuleError::NoSegment { path: path.clone(), offset: mapping.file_offset })?
        };
        Ok(Self { path: path.clone(), attach_path, bytes: bytes.into(), bias })
    }

    /// The file that was mapped from `path` as `mapping` says, and lies at `place` now.
    pub fn beside(path: &str, place: &Path, mapping: &Mapping) -> Result<Self, ModuleError> {
        let path = path.to_owned();
        let file = File::open(place).map_err(|cause| ModuleError::Unreachable { path: path.clone(), cause })?;
        let bytes = contents(&path, file)?;
        let elf = Elf::parse(&*bytes).map_err(|cause| ModuleError::Form { path: path.clone(), cause })?;
        let bias = bias(&elf, mapping, procfs::page_size())
            .ok_or_else(|| ModuleError::NoSegment { path: path.clone(), offset: mapping.file_offset })?;
        Ok(Self { path, attach_path: place.to_owned(), bytes: bytes.into(), bias })
    }

    /// The ELF file that the kernel itself has mapped, all of it, with no file behind it: the vdso. It has no
    /// [`ModuleFile::attach_path`].
    pub fn of_kernel(mapping: &Mapping, memory: &impl ReadMemory) -> Result<Self, ModuleError> {
        let Backing::Kernel(path) = &mapping.backing else {
            return Err(ModuleError::NoFile { start: mapping.start });
        };
        let path = path.clone();
        let length = usize::try_from(mapping.length().min(LONGEST_IMAGE)).unwrap_or_default();
        let mut bytes = vec![0; length];
        memory.read(mapping.start, &mut bytes).map_err(|cause| ModuleError::Memory { path: path.clone(), cause })?;
        let elf = Elf::parse(&*bytes).map_err(|cause| ModuleError::Form { path: path.clone(), cause })?;
        let bias = bias(&elf, mapping, procfs::page_size())
            .ok_or_else(|| ModuleError::NoSegment { path: path.clone(), offset: mapping.file_offset })?;
        Ok(Self { path, attach_path: PathBuf::new(), bytes: bytes.into(), bias })
    }

    /// Whether what is mapped from `offset` of the file on is code.
    pub fn is_code_at(&self, offset: u64) -> bool {
        let Ok(elf) = self.elf() else { return false };
        elf.segments().any(|segment| {
            let (start, length) = segment.file_range();
            let first_page = start / procfs::page_size() * procfs::page_size();
            segment.permissions().executable() && (first_page..start.saturating_add(length)).contains(&offset)
        })
    }

    /// The file, parsed.
    pub fn elf(&self) -> Result<Elf<'_>, ModuleError> {
        Elf::parse(&*self.bytes).map_err(|cause| ModuleError::Form { path: self.path.clone(), cause })
    }

    /// Last component of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Where `at` of the file is in the process.
    pub fn address(&self, at: ElfAddress) -> Address {
        Address(at.0.wrapping_add(self.bias))
    }

    /// Where `at` of the process is in the file.
    pub fn elf_address(&self, at: Address) -> ElfAddress {
        ElfAddress(at.0.wrapping_sub(self.bias))
    }
}

/// Where the bytes at `at` are in the file, and how many of them follow in the same segment.
pub fn file_offset(elf: &Elf<'_>, at: ElfAddress) -> Option<(FileOffset, u64)> {
    elf.segments().find_map(|segment| {
        let (offset, length) = segment.file_range();
        let inside = at.0.checked_sub(segment.address())?;
        let left = length.checked_sub(inside).filter(|&left| left > 0)?;
        Some((FileOffset(offset.checked_add(inside)?), left))
    })
}

/// Bytes of the file at `at`: `length`, or as many as the segment has.
pub fn bytes_at<'data>(elf: &Elf<'data>, at: ElfAddress, length: u64) -> Option<&'data [u8]> {
    let (FileOffset(offset), left) = file_offset(elf, at)?;
    let from = usize::try_from(offset).ok()?;
    let to = from.checked_add(usize::try_from(length.min(left)).ok()?)?;
    elf.data().get(from..to)
}

/// What was added to the file's addresses when `mapping` was made of it.
fn bias(elf: &Elf<'_>, mapping: &Mapping, page: u64) -> Option<u64> {
    let candidates = elf.segments().filter_map(|segment| {
        let (offset, length) = segment.file_range();
        let first_page = offset.checked_sub(offset.checked_rem(page)?)?;
        let mapped = first_page..offset.checked_add(length)?;
        // Where the mapping begins in the file's addresses; below the segment when that begins inside a page.
        let start = segment.address().wrapping_add(mapping.file_offset).wrapping_sub(offset);
        // Two segments may share a page of the file: the mapping is of the one with the same letters, or of the one
        // that begins there.
        let same_kind = segment.permissions().executable() == mapping.permissions.execute;
        let fit = (same_kind, first_page == mapping.file_offset);
        mapped.contains(&mapping.file_offset).then_some((fit, mapping.start.0.wrapping_sub(start)))
    });
    candidates.max_by_key(|candidate| candidate.0).map(|candidate| candidate.1)
}

/// The bytes of a mapped file and the path they were read from.
fn read_file(
    folder: &str,
    path: &str,
    maps: &Maps,
    mapping: &Mapping,
    memory: &impl ReadMemory,
) -> Result<(PathBuf, Vec<u8>), ModuleError> {
    let unreachable = |cause| ModuleError::Unreachable { path: path.to_owned(), cause };
    // A link to the mapped file itself: also right for files that were deleted or replaced.
    let link = format!("{folder}/map_files/{:x}-{:x}", mapping.start.0, mapping.end.0);
    if let Ok(file) = File::open(&link) {
        return Ok((link.into(), contents(path, file)?));
    }
    // The kernel writes a path as it leads from our root when that is in the process's mount namespace (also for a
    // process in a chroot), and as it leads from the namespace's root when it is not.
    let mut refusal = None;
    for candidate in [PathBuf::from(format!("{folder}/root{path}")), PathBuf::from(path)] {
        let file = match File::open(&candidate) {
            Ok(file) => file,
            Err(cause) => {
                refusal.get_or_insert(unreachable(cause));
                continue;
            }
        };
        let identity = identity(&file).map_err(unreachable)?;
        let bytes = contents(path, file)?;
        if maps.files.get(&mapping.start) == Some(&identity) || has_same_head(&bytes, path, maps, memory) {
            return Ok((candidate, bytes));
        }
        refusal = Some(ModuleError::Replaced { path: path.to_owned() });
    }
    Err(refusal.unwrap_or_else(|| ModuleError::Replaced { path: path.to_owned() }))
}

fn contents(path: &str, file: File) -> Result<Vec<u8>, ModuleError> {
    let mut bytes = Vec::new();
    file.take(LONGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| ModuleError::Unreachable { path: path.to_owned(), cause })?;
    let length = bytes.len() as u64;
    if length > LONGEST_FILE {
        return Err(ModuleError::TooLong { path: path.to_owned(), bytes: length });
    }
    Ok(bytes)
}

fn identity(file: &File) -> io::Result<FileIdentity> {
    let metadata = file.metadata()?;
    let part = |number: u64| u32::try_from(number).map_err(|_too_high| io::Error::from(io::ErrorKind::InvalidData));
    let device = metadata.dev();
    Ok(FileIdentity { device: (part(major(device))?, part(minor(device))?), inode: metadata.ino() })
}

/// Whether `bytes` begin like what is mapped from `path`. Decides on overlayfs and btrfs, where device and inode of one
/// file are not the same in `stat` and in `/proc/PID/maps`.
fn has_same_head(bytes: &[u8], path: &str, maps: &Maps, memory: &impl ReadMemory) -> bool {
    let is_first = |mapping: &&Mapping| {
        mapping.file_offset == 0 && matches!(&mapping.backing, Backing::File(mapped) if mapped == path)
    };
    let Some(first) = maps.mappings.iter().find(is_first) else { return false };
    let mut mapped = vec![0; bytes.len().min(HEAD)];
    memory.read(first.start, &mut mapped).is_ok() && bytes.starts_with(&mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{maps, memory::ProcessMemory};

    fn own() -> (Maps, ProcessMemory) {
        let maps = maps::parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        (maps, ProcessMemory::new(nix::unistd::Pid::this()))
    }

    fn code() -> Address {
        Address((code as *const ()).addr() as u64)
    }

    #[test]
    fn finds_its_own_code_in_its_own_file() {
        let (maps, memory) = own();
        let mapping = maps.mappings.find(code()).unwrap();
        let module = ModuleFile::open("/proc/self", &maps, mapping, &memory).unwrap();
        let elf = module.elf().unwrap();
        let mut live = [0; 16];
        memory.read(code(), &mut live).unwrap();
        assert_eq!(bytes_at(&elf, module.elf_address(code()), 16), Some(&live[..]));
        assert_eq!(module.address(module.elf_address(code())), code());
        // Every mapping that the loader made of the file leads to the same place. A backtrace in another test maps the
        // whole file once more, to be read.
        let whole_file = |other: &Mapping| other.length() >= module.bytes.len() as u64;
        for other in &maps.mappings {
            if other.backing == mapping.backing && !whole_file(other) {
                assert_eq!(bias(&elf, other, procfs::page_size()), Some(module.bias), "{other:?}");
            }
        }
    }

    #[test]
    fn a_file_is_known_by_its_head_where_the_numbers_differ() {
        let (maps, memory) = own();
        let mapping = maps.mappings.find(code()).unwrap();
        let Backing::File(path) = &mapping.backing else { panic!("code is in a file") };
        let mut bytes = std::fs::read(path).unwrap();
        assert_eq!(maps.files[&mapping.start], identity(&File::open(path).unwrap()).unwrap());
        assert!(has_same_head(&bytes, path, &maps, &memory));
        bytes[64] ^= 1;
        assert!(!has_same_head(&bytes, path, &maps, &memory));
    }

    #[test]
    fn the_vdso_is_a_file() {
        let (maps, memory) = own();
        let is_vdso = |mapping: &&Mapping| mapping.backing == Backing::Kernel("[vdso]".to_owned());
        let mapping = maps.mappings.iter().find(is_vdso).unwrap();
        let vdso = ModuleFile::of_kernel(mapping, &memory).unwrap();
        assert_eq!((vdso.name(), vdso.bias), ("[vdso]", mapping.start.0));
        let sections = crate::target::sections::UnwindSections::of(&vdso).unwrap();
        assert!(sections.eh_frame.is_some() && sections.text.is_some());
        let file = maps.mappings.find(code()).unwrap();
        assert!(matches!(ModuleFile::of_kernel(file, &memory), Err(ModuleError::NoFile { .. })));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let (maps, memory) = own();
        let stack = maps.mappings.iter().find(|mapping| mapping.backing == Backing::Stack).unwrap();
        let refused = ModuleFile::open("/proc/self", &maps, stack, &memory).unwrap_err();
        assert!(matches!(refused, ModuleError::NoFile { .. }));
    }
}
