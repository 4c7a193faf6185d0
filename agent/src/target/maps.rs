//! What is mapped into the process, and how much of it is resident?

use std::{collections::BTreeMap, io};

use procfs::{
    FromBufRead as _, ProcError,
    process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps},
};
use thiserror::Error;

use crate::{
    mapping::{Address, Backing, Mapping, Mappings, Permissions},
    recording::Snapshot,
    view::MappedMemory,
};

/// `/proc/PID/maps`: the mappings, and which files they are of.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    /// The mappings.
    pub mappings: Mappings,
    /// Identity of the file behind a mapping, by the mapping's first address.
    pub files: BTreeMap<Address, FileIdentity>,
}

/// Device and inode number of a file, as `/proc/PID/maps` gives them.
///
/// On overlayfs and btrfs they differ from what `stat` says of the same file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIdentity {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Inode number on it.
    pub inode: u64,
}

/// Text from `/proc` that could not be understood.
#[derive(Debug, Error)]
pub enum MapsError {
    /// A file of mappings has an unknown form.
    #[error("the list of mappings has an unknown form")]
    Form(#[source] ProcError),
    /// A figure is missing.
    #[error("the kernel gives no {field} for the mappings")]
    Missing {
        /// Its name in proc(5).
        field: &'static str,
    },
}

/// Parses `/proc/PID/maps`.
pub fn parse(text: &[u8]) -> Result<Maps, MapsError> {
    let mut files = BTreeMap::new();
    let mut mappings = Vec::new();
    for line in lines(text)? {
        let mapping = mapping(&line);
        let device = (u32::try_from(line.dev.0), u32::try_from(line.dev.1));
        if let (Backing::File(_) | Backing::Memory(_), (Ok(major), Ok(minor))) = (&mapping.backing, device) {
            files.insert(mapping.start, FileIdentity { device: (major, minor), inode: line.inode });
        }
        mappings.push(mapping);
    }
    Ok(Maps { mappings: Mappings::new(mappings), files })
}

/// Parses `/proc/PID/smaps`. A figure that the kernel does not give is 0, but for `Rss`.
pub fn parse_smaps(text: &[u8]) -> Result<Vec<MappedMemory>, MapsError> {
    let memory = |line: &MemoryMap| {
        let figure = |field: &str| line.extension.map.get(field).copied();
        let or_none = |field: &str| figure(field).unwrap_or_default();
        Ok(MappedMemory {
            mapping: mapping(line),
            rss: figure("Rss").ok_or(MapsError::Missing { field: "Rss" })?,
            pss: or_none("Pss"),
            anonymous: or_none("Anonymous"),
            swap: or_none("Swap"),
            lazy_free: or_none("LazyFree"),
            huge: or_none("AnonHugePages"),
        })
    };
    let mut all = lines(text)?.iter().map(memory).collect::<Result<Vec<_>, _>>()?;
    all.sort_by_key(|memory| memory.mapping.start);
    Ok(all)
}

/// The figures of `smaps_rollup`, or of the sum of `smaps` where the roll-up leaves one out.
///
/// `shmem` is `RssShmem` of `/proc/PID/status`, which has no counterpart in `smaps`; what is neither anonymous nor
/// shared memory is from files, so that the three make up the RSS.
pub fn snapshot(
    at: f64,
    rollup: Option<&[u8]>,
    smaps: impl FnOnce() -> io::Result<Vec<u8>>,
    shmem: u64,
) -> Result<Snapshot, MapsError> {
    if let Some(rollup) = rollup
        && let Ok(figures) = figures(at, &lines(rollup)?, shmem)
    {
        return Ok(figures);
    }
    let smaps = smaps().map_err(|cause| MapsError::Form(ProcError::Io(cause, None)))?;
    figures(at, &lines(&smaps)?, shmem)
}

fn figures(at: f64, lines: &[MemoryMap], shmem: u64) -> Result<Snapshot, MapsError> {
    let sum = |field: &'static str| {
        let mut values = lines.iter().filter_map(|line| line.extension.map.get(field).copied()).peekable();
        values.peek().ok_or(MapsError::Missing { field })?;
        Ok(values.fold(0_u64, u64::saturating_add))
    };
    let (rss, anon) = (sum("Rss")?, sum("Anonymous")?);
    let shmem = shmem.min(rss.saturating_sub(anon));
    Ok(Snapshot {
        at,
        rss,
        pss: sum("Pss")?,
        anon,
        file: rss.saturating_sub(anon).saturating_sub(shmem),
        shmem,
        swap: sum("Swap")?,
        lazy_free: sum("LazyFree")?,
    })
}

fn lines(text: &[u8]) -> Result<Vec<MemoryMap>, MapsError> {
    // A path may hold any byte, and procfs 0.18 panics on one that begins with `/SYSV` and is not as long as the name
    // of a System V segment.
    let text = String::from_utf8_lossy(text).replace(" /SYSV", " /\u{1}SYSV");
    MemoryMaps::from_buf_read(text.as_bytes()).map(|maps| maps.0).map_err(MapsError::Form)
}

fn mapping(line: &MemoryMap) -> Mapping {
    let has = |letter| line.perms.contains(letter);
    Mapping {
        start: Address(line.address.0),
        end: Address(line.address.1),
        file_offset: line.offset,
        permissions: Permissions {
            read: has(MMPermissions::READ),
            write: has(MMPermissions::WRITE),
            execute: has(MMPermissions::EXECUTE),
            shared: has(MMPermissions::SHARED),
        },
        backing: backing(&line.pathname),
    }
}

fn backing(path: &MMapPath) -> Backing {
    let kernel = |name: &str| Backing::Kernel(format!("[{name}]"));
    match path {
        MMapPath::Path(path) => file(&path.to_string_lossy().replace("/\u{1}SYSV", "/SYSV")),
        MMapPath::Heap => Backing::Heap,
        MMapPath::Stack | MMapPath::TStack(_) => Backing::Stack,
        MMapPath::Vdso => kernel("vdso"),
        MMapPath::Vvar => kernel("vvar"),
        MMapPath::Vsyscall => kernel("vsyscall"),
        MMapPath::Rollup => kernel("rollup"),
        // A name that the program has given to fresh pages (`PR_SET_VMA_ANON_NAME`).
        MMapPath::Other(name) if name.starts_with("anon:") => Backing::Anonymous,
        MMapPath::Other(name) if name.starts_with("anon_shmem:") => Backing::Memory(format!("[{name}]")),
        MMapPath::Other(name) => kernel(name),
        MMapPath::Anonymous => Backing::Anonymous,
        MMapPath::Vsys(key) => Backing::Memory(format!("/SYSV{key:08x}")),
    }
}

fn file(path: &str) -> Backing {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    // Files without a place in the file system: `memfd_create`, System V segments, shared anonymous memory, and
    // names such as `anon_inode:[io_uring]`.
    let placeless = ["/memfd:", "/SYSV", "/dev/zero", "/anon_hugepage"].iter().any(|name| path.starts_with(name));
    if placeless || !path.starts_with('/') {
        Backing::Memory(path.to_owned())
    } else {
        // The kernel writes a newline in a name as `\012`, and nothing else.
        Backing::File(path.replace("\\012", "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
555555554000-5555555ba000 r--p 00000000 fe:01 393331                     /usr/lib/erlang/erts-13.1.5/bin/beam.smp
5555555ba000-555555845000 r-xp 00066000 fe:01 393331                     /usr/lib/erlang/erts-13.1.5/bin/beam.smp
555555a00000-555555b00000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000100000 r-xs 00000000 00:01 1027                       /memfd:vmem (deleted)
7f0000200000-7f0000300000 rw-p 00000000 00:00 0 
7f0000300000-7f0000301000 rw-p 00000000 00:00 0                          [anon: glibc: malloc]
7f0000301000-7f0000302000 r--p 00002000 103:02 77                        /srv/my app/priv/nif.so (deleted)
7f0000302000-7f0000303000 rw-s 00000000 00:01 5                          /SYSV0000beef (deleted)
7f0000303000-7f0000304000 rw-s 00000000 00:01 6                          /SYSVx
7f0000304000-7f0000305000 r--p 00000000 fe:01 9                          /tmp/\xff.so
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
7ffff7fc1000-7ffff7fc5000 r--p 00000000 00:00 0                          [vvar_vclock]
7ffff7fc5000-7ffff7fc7000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn tells_what_stands_behind_each_mapping() {
        let maps = parse(MAPS).unwrap();
        let seen: Vec<_> = maps.mappings.iter().map(|mapping| mapping.backing.clone()).collect();
        let beam = Backing::File("/usr/lib/erlang/erts-13.1.5/bin/beam.smp".into());
        let memory = |name: &str| Backing::Memory(name.into());
        let kernel = |name: &str| Backing::Kernel(name.into());
        assert_eq!(
            seen,
            [
                beam.clone(),
                beam,
                Backing::Heap,
                memory("/memfd:vmem"),
                Backing::Anonymous,
                Backing::Anonymous,
                Backing::File("/srv/my app/priv/nif.so".into()),
                memory("/SYSV0000beef"),
                memory("/SYSVx"),
                Backing::File("/tmp/\u{fffd}.so".into()),
                kernel("[vvar_vclock]"),
                kernel("[vdso]"),
                Backing::Stack,
                kernel("[vsyscall]"),
            ]
        );
    }

    #[test]
    fn keeps_offset_letters_and_identity() {
        let maps = parse(MAPS).unwrap();
        let text = maps.mappings.find(Address(0x5555_555b_b000)).unwrap();
        assert_eq!(text.file_offset, 0x66000);
        assert_eq!(text.permissions, Permissions { read: true, write: false, execute: true, shared: false });
        assert_eq!(maps.files[&text.start], FileIdentity { device: (0xfe, 1), inode: 393_331 });
        assert!(maps.mappings.find(Address(0x7f00_0000_0000)).unwrap().is_jit());
        assert!(!maps.files.contains_key(&Address(0x7f00_0020_0000)));
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(matches!(parse(b"not a mapping\n"), Err(MapsError::Form(_))));
    }

    const ROLLUP: &[u8] = b"\
555555554000-7ffffffff000 ---p 00000000 00:00 0                          [rollup]
Rss:               52036 kB
Pss:               49130 kB
Anonymous:         40000 kB
LazyFree:             64 kB
Swap:                  8 kB
";

    #[test]
    fn figures_of_the_roll_up() {
        let figures = snapshot(1.5, Some(ROLLUP), || panic!("not needed"), 2048 * 1024).unwrap();
        let expected = Snapshot {
            at: 1.5,
            rss: 52036 * 1024,
            pss: 49130 * 1024,
            anon: 40000 * 1024,
            file: (52036 - 40000 - 2048) * 1024,
            shmem: 2048 * 1024,
            swap: 8 * 1024,
            lazy_free: 64 * 1024,
        };
        assert_eq!(figures, expected);
    }

    #[test]
    fn a_field_that_the_roll_up_leaves_out_is_summed_up() {
        let old: Vec<u8> = String::from_utf8_lossy(ROLLUP).replace("LazyFree:             64 kB\n", "").into();
        let two = [ROLLUP, ROLLUP].concat();
        let figures = snapshot(0.0, Some(&old), || Ok(two), 0).unwrap();
        assert_eq!((figures.rss, figures.lazy_free), (2 * 52036 * 1024, 2 * 64 * 1024));
        let missing = snapshot(0.0, None, || Ok(old), 0).unwrap_err();
        assert!(matches!(missing, MapsError::Missing { field: "LazyFree" }));
    }
}
