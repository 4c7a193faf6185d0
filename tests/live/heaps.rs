//! Does the walk through glibc's heaps find what glibc itself says of them?

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _, path::Path};

use beamscope::{
    extents::Extents,
    libc::{
        glibc::{self, ChunkKind, LibcHeap, LibraryCount},
        thread,
    },
    mapping::{Backing, Mapping},
    target::{maps, memory::ProcessMemory},
    view::{MappedMemory, ProcessView, Residency},
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

use crate::subject::{Subject, compile, figure};

const PAGE: u64 = 4096;

/// A process that stands still for as long as this lives.
struct Frozen(Pid);

impl Frozen {
    fn new(subject: &Subject) -> Self {
        let pid = Pid::from_raw(i32::try_from(subject.pid()).expect("a pid"));
        kill(pid, Signal::SIGSTOP).expect("our child");
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("our child");
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).expect("our child");
    }
}

/// What the walk needs of a view: mappings, resident pages, threads.
fn view_of(pid: u32) -> ProcessView {
    let text = crate::agent::proc_file(&format!("/proc/{pid}/maps"));
    let mappings: Vec<Mapping> = maps::parse(text.as_bytes()).expect("maps").mappings.iter().cloned().collect();
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).expect("a pagemap");
    let resident = mappings.iter().flat_map(|mapping| resident(&pagemap, mapping)).collect();
    let is_libc = |mapping: &&Mapping| mapping.file_name().is_some_and(|name| name.starts_with("libc"));
    let libc = mappings.iter().find(is_libc).and_then(|mapping| match &mapping.backing {
        Backing::File(path) => Some(path.clone()),
        _ => None,
    });
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let threads = tasks.map(|task| task.expect("a thread").file_name().to_string_lossy().parse().expect("a number"));
    let with_figures = |mapping| MappedMemory { mapping, rss: 0, pss: 0, anonymous: 0, swap: 0, lazy_free: 0, huge: 0 };
    ProcessView {
        page_size: PAGE,
        threads: threads.collect(),
        libc,
        resident: Residency::Pages(resident),
        mappings: mappings.into_iter().map(with_figures).collect(),
        ..ProcessView::default()
    }
}

/// Resident pages of a mapping (pagemap in the kernel's Documentation/admin-guide/mm/pagemap.rst: bit 63).
fn resident(pagemap: &File, mapping: &Mapping) -> Vec<Range<u64>> {
    let (start, end) = (mapping.start.0, mapping.end.0);
    // vsyscall lies above what pagemap covers.
    if start >= 1 << 47 {
        return Vec::new();
    }
    let mut bytes = vec![0; usize::try_from((end - start) / PAGE * 8).expect("a size")];
    pagemap.read_exact_at(&mut bytes, start / PAGE * 8).expect("pagemap of all pages");
    let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
    let pages = (start..end).step_by(4096).zip(entries);
    pages.filter(|(_, entry)| entry >> 63 == 1).map(|(page, _)| page..page + PAGE).collect()
}

/// A walk, and its pieces.
struct Seen {
    heap: LibcHeap,
    pieces: Vec<(ChunkKind, Range<u64>)>,
}

fn walk(subject: &Subject) -> Seen {
    let view = view_of(subject.pid());
    let memory = ProcessMemory::new(Pid::from_raw(i32::try_from(subject.pid()).expect("a pid")));
    let mut pieces = Vec::new();
    let mut visit = |kind, piece| pieces.push((kind, piece));
    let started = std::time::Instant::now();
    let heap = glibc::walk(&view, &memory, &Extents::default(), &mut visit).expect("a heap");
    println!("walked {} pieces in {:?}: {heap:#?}", pieces.len(), started.elapsed());
    Seen { heap, pieces }
}

/// The pieces cover the segments and the mapped chunks, without gap or overlap.
fn check_pieces(Seen { heap, pieces }: &Seen) {
    let mut pieces = pieces.iter();
    for segment in heap.arenas.iter().flat_map(|arena| &arena.segments) {
        let mut at = segment.start;
        while at < segment.end {
            let (kind, piece) = pieces.next().expect("a piece");
            assert_eq!(piece.start, at, "{kind:?} in {segment:x?}");
            at = piece.end;
        }
        assert_eq!(at, segment.end);
    }
    let mapped: u64 = pieces
        .map(|(kind, piece)| {
            assert_eq!(*kind, ChunkKind::Mapped);
            piece.end - piece.start
        })
        .sum();
    assert_eq!(mapped, heap.mapped_bytes);
}

/// Asks the process for its figures, freezes it, and compares them with those of a walk.
///
/// Between the answer and the walk the process only wrote a line through buffers of its own, so nothing may differ.
fn check(subject: &mut Subject) -> Seen {
    let answer = subject.ask("figures");
    println!("{answer}");
    let frozen = Frozen::new(subject);
    let seen = walk(subject);
    drop(frozen);
    let heap = &seen.heap;
    assert_eq!(heap.defects, Vec::<String>::new());
    check_pieces(&seen);
    assert_eq!(heap.system_bytes, figure(&answer, "arena"));
    assert_eq!(heap.fastbin_bytes, figure(&answer, "fsmblks"));
    // `fordblks` is what `malloc` could give out: bins, fastbins and top chunks. `uordblks` is all else that the arenas
    // have, so that what is the library's own is in it.
    assert_eq!(heap.free_bytes + heap.fastbin_bytes + heap.top_bytes, figure(&answer, "fordblks"));
    assert_eq!(heap.in_use_bytes + heap.header_bytes, figure(&answer, "uordblks"));
    assert_eq!(heap.mapped_chunks, figure(&answer, "hblks"));
    assert_eq!(heap.mapped_bytes, figure(&answer, "hblkhd") / PAGE * PAGE);
    assert_eq!(heap.mapped_count, LibraryCount::Agrees);
    let systems = answer.split(' ').find_map(|word| word.strip_prefix("systems=")).expect("arenas");
    let systems: Vec<u64> = systems.split(',').map(|number| number.parse().expect("a number")).collect();
    assert_eq!(heap.arenas.iter().map(|arena| arena.system_bytes).collect::<Vec<_>>(), systems);
    seen
}

fn subject(folder: &Path, tunables: &str) -> Subject {
    let program = compile("gcc", "heaps", folder, &[]);
    Subject::program(&program, &[("GLIBC_TUNABLES", Path::new(tunables))])
}

#[test]
fn arenas_fragments_and_mapped_chunks() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut subject = subject(folder.path(), "");
    check(&mut subject);
    for question in ["threads 4", "fragment", "mapped", "small", "figures", "sbrk", "small"] {
        subject.ask(question);
        check(&mut subject);
    }
    let seen = check(&mut subject);
    assert_eq!(seen.heap.arenas.len(), 5);
    assert!(seen.heap.arenas.iter().skip(1).all(|arena| arena.system_bytes > 20 << 20));
    assert!(seen.heap.fastbin_bytes > 0 && seen.heap.tcache_bytes.is_some_and(|bytes| bytes > 5 * 8 * 7 * 32));
}

/// Half a gigabyte in one fastbin, in an order that has nothing to do with addresses.
#[test]
fn hundreds_of_megabytes_in_fastbins() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut subject = subject(folder.path(), "glibc.malloc.tcache_count=0");
    subject.ask("shuffled 6000000");
    let seen = check(&mut subject);
    assert_eq!(seen.heap.fastbin_bytes, 6_000_000 * 80);
    assert_eq!(seen.heap.tcache_bytes, None);
}

/// Nothing is made up of a process that runs on: the pieces add up, and what does not agree is said.
#[test]
fn threads_that_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut subject = subject(folder.path(), "");
    subject.ask("threads 2");
    subject.ask("churn 2");
    for _ in 0..20 {
        let seen = walk(&subject);
        check_pieces(&seen);
        let LibcHeap { arenas, in_use_bytes, free_bytes, fastbin_bytes, top_bytes, header_bytes, .. } = &seen.heap;
        let segments: u64 = arenas.iter().flat_map(|arena| &arena.segments).map(|range| range.end - range.start).sum();
        assert_eq!(in_use_bytes + free_bytes + fastbin_bytes + top_bytes + header_bytes, segments);
        let system: u64 = arenas.iter().map(|arena| arena.system_bytes).sum();
        assert!(segments == system || !seen.heap.defects.is_empty());
    }
}

#[test]
fn threads_have_stacks() {
    let folder = tempfile::tempdir().expect("a folder");
    for compiler in ["gcc", "musl-gcc"] {
        let program = compile(compiler, "stacks", folder.path(), &[]);
        let mut subject = Subject::program(&program, &[]);
        let answer = subject.ask("threads 5");
        let frozen = Frozen::new(&subject);
        let view = view_of(subject.pid());
        let memory = ProcessMemory::new(Pid::from_raw(i32::try_from(subject.pid()).expect("a pid")));
        let anonymous = view.mappings.iter().filter(|memory| memory.mapping.backing == Backing::Anonymous);
        let unclaimed: Vec<_> = anonymous.map(|memory| memory.mapping.start.0..memory.mapping.end.0).collect();
        let stacks = thread::find(&view, &memory, &unclaimed);
        drop(frozen);
        println!("{answer}: {stacks:#x?}");
        for pair in answer.split(' ').filter_map(|word| word.strip_prefix("thread=")) {
            let (tid, local) = pair.split_once(':').expect("a pair");
            let (tid, local): (u32, u64) = (tid.parse().expect("a tid"), local.parse().expect("an address"));
            let stack = stacks.iter().find(|stack| stack.tid == tid).unwrap_or_else(|| panic!("{tid} of {compiler}"));
            assert!(
                stack.range.contains(&local) && stack.range.contains(&stack.descriptor.0),
                "{stack:#x?} {local:#x}"
            );
            // No other thread has it too.
            assert!(stacks.iter().filter(|other| other.range.contains(&local)).count() == 1);
        }
    }
}
