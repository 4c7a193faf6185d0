//! Which pages of a process are resident, which are swapped out, and which has it given up?
//!
//! `/proc/PID/pagemap` says it page by page (kernel: `Documentation/admin-guide/mm/pagemap.rst`). Without
//! `CAP_SYS_ADMIN` it hides the page frame numbers, and only they tell the kernel's page of zeros from others, which
//! counts in no RSS.

use std::{fs::File, hint, io, ops::Range, os::unix::fs::FileExt as _};

use procfs::{
    PhysicalPageFlags,
    process::{MemoryPageFlags, PageInfo},
};

use crate::extents::Extents;

/// Bytes of an entry.
const ENTRY: usize = 8;
/// Entries that are read at a time.
const ENTRIES: usize = 8 << 10;
/// Most address space of a mapping that is looked at page by page: 1 TiB. Larger ones are reservations.
const LONGEST: u64 = 1 << 40;
/// Page frames between two that are asked for, over which is read rather than asking twice.
const GAP: u64 = 64;
/// Frames of a huge page on `x86_64` and arm64 with pages of 4 KiB.
const HUGE_FRAMES: u64 = 512;

/// Bytes that malloc takes from the kernel and not from what it keeps at hand (`DEFAULT_MMAP_THRESHOLD_MAX` is 32 MiB
/// in glibc), and no multiple of a huge page.
const MAPPED_ALONE: usize = (33 << 20) + (512 << 10);

/// `/proc/PID/pagemap` of a process.
#[derive(Debug)]
pub(super) struct Pagemap {
    file: File,
    page: u64,
    zeros: Zeros,
}

/// What is at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// A page of its own, in this frame; `None` where the kernel does not tell.
    Resident(Option<u64>),
    /// It may be a page of its own or the kernel's page of zeros.
    MaybeZeros,
    /// The kernel's page of zeros.
    Zeros,
    /// In swap.
    Swapped,
    /// Nothing.
    Absent,
}

/// Pages of a range of addresses.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pub(super) resident: Extents,
    /// Of `resident`: those that may be the page of zeros.
    pub(super) doubtful: Extents,
    pub(super) swapped: Extents,
    /// Address and frame of the resident pages, where asked for.
    pub(super) frames: Vec<(u64, u64)>,
}

/// Frames of the kernel's pages of zeros.
#[derive(Clone, Debug, Default)]
struct Zeros {
    small: Option<u64>,
    huge: Option<Range<u64>>,
}

impl Pagemap {
    /// Opens the file in `folder`, a process's in `/proc`.
    pub(super) fn open(folder: &str) -> io::Result<Self> {
        let page = procfs::page_size();
        Ok(Self { file: File::open(format!("{folder}/pagemap"))?, page, zeros: Zeros::find(page) })
    }

    /// What is at the page of `address` now.
    pub(super) fn at(&self, address: u64) -> io::Result<Page> {
        let mut entry = [0; ENTRY];
        self.file.read_exact_at(&mut entry, address / self.page * ENTRY as u64)?;
        Ok(self.page_of(u64::from_ne_bytes(entry)))
    }

    /// The pages of `range`; of reservations that no machine could hold, none.
    pub(super) fn pages(&self, range: Range<u64>, with_frames: bool) -> io::Result<Pages> {
        let mut pages = Pages::default();
        if range.end.saturating_sub(range.start) > LONGEST {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than 1 TiB of address space"));
        }
        let mut buffer = vec![0; ENTRIES * ENTRY];
        let mut at = range.start;
        while at < range.end {
            let wanted = usize::try_from((range.end - at).div_ceil(self.page)).unwrap_or(ENTRIES).min(ENTRIES);
            let chunk = buffer.get_mut(..wanted * ENTRY).unwrap_or_default();
            self.file.read_exact_at(chunk, at / self.page * ENTRY as u64)?;
            for entry in chunk.as_chunks::<ENTRY>().0 {
                let next = at.saturating_add(self.page);
                match self.page_of(u64::from_ne_bytes(*entry)) {
                    Page::Absent | Page::Zeros => {}
                    Page::Swapped => pages.swapped.push(at..next),
                    Page::MaybeZeros => {
                        pages.resident.push(at..next);
                        pages.doubtful.push(at..next);
                    }
                    Page::Resident(frame) => {
                        pages.resident.push(at..next);
                        pages.frames.extend(frame.filter(|_| with_frames).map(|frame| (at, frame)));
                    }
                }
                at = next;
            }
        }
        Ok(pages)
    }

    fn page_of(&self, entry: u64) -> Page {
        let PageInfo::MemoryPage(flags) = PageInfo::parse_info(entry) else { return Page::Swapped };
        if !flags.contains(MemoryPageFlags::PRESENT) {
            return Page::Absent;
        }
        match flags.get_page_frame_number().0 {
            // Not told. The page of zeros belongs to nobody; so does a page that a fork shares.
            0 if flags.intersects(MemoryPageFlags::MMAP_EXCLUSIVE | MemoryPageFlags::FILE) => Page::Resident(None),
            0 => Page::MaybeZeros,
            frame if self.zeros.contains(frame) => Page::Zeros,
            frame => Page::Resident(Some(frame)),
        }
    }
}

impl Zeros {
    /// The frames behind fresh memory of our own that was read and never written.
    ///
    /// The end of a mapping lies in no huge page, and its middle does where the kernel makes huge pages unasked.
    fn find(page: u64) -> Self {
        let fresh = vec![0_u8; MAPPED_ALONE];
        let frame_at = |index: usize| {
            let byte = fresh.get(index)?;
            hint::black_box(*byte);
            let address = std::ptr::from_ref(byte).addr() as u64;
            let mut entry = [0; ENTRY];
            let file = File::open("/proc/self/pagemap").ok()?;
            file.read_exact_at(&mut entry, address / page * ENTRY as u64).ok()?;
            match PageInfo::parse_info(u64::from_ne_bytes(entry)) {
                PageInfo::MemoryPage(flags) if !flags.contains(MemoryPageFlags::MMAP_EXCLUSIVE) => {
                    Some(flags.get_page_frame_number().0).filter(|frame| *frame != 0)
                }
                _ => None,
            }
        };
        let small = frame_at(MAPPED_ALONE - 1);
        let huge = frame_at(MAPPED_ALONE / 2).filter(|frame| Some(*frame) != small);
        let huge = huge.map(|frame| frame / HUGE_FRAMES * HUGE_FRAMES..(frame / HUGE_FRAMES + 1) * HUGE_FRAMES);
        Self { small, huge }
    }

    fn contains(&self, frame: u64) -> bool {
        self.small == Some(frame) || self.huge.as_ref().is_some_and(|huge| huge.contains(&frame))
    }
}

/// Which of the pages at `frames` (address and frame) the process has given up by `MADV_FREE`: anonymous ones that
/// the kernel need not write to swap (`Documentation/admin-guide/mm/pagemap.rst`, `/proc/kpageflags`).
pub(super) fn lazily_freed(mut frames: Vec<(u64, u64)>, page: u64) -> io::Result<Extents> {
    let file = File::open("/proc/kpageflags")?;
    frames.sort_unstable_by_key(|(_, frame)| *frame);
    let mut found = Vec::new();
    let mut rest = frames.as_slice();
    while let Some((_, first)) = rest.first().copied() {
        let mut last = first;
        let near = rest.iter().take_while(|(_, frame)| {
            let is_near = frame - last <= GAP && frame - first < ENTRIES as u64;
            last = if is_near { *frame } else { last };
            is_near
        });
        let (group, behind) = rest.split_at_checked(near.count()).unwrap_or((rest, &[]));
        let mut flags = vec![0; usize::try_from(last - first + 1).unwrap_or(1) * ENTRY];
        file.read_exact_at(&mut flags, first * ENTRY as u64)?;
        for (address, frame) in group {
            let entry = usize::try_from(frame - first).ok().and_then(|at| flags.as_chunks::<ENTRY>().0.get(at));
            let flags = PhysicalPageFlags::parse_info(entry.map_or(0, |entry| u64::from_ne_bytes(*entry)));
            if flags.contains(PhysicalPageFlags::ANON) && !flags.contains(PhysicalPageFlags::SWAPBACKED) {
                found.push((*address, address.saturating_add(page)));
            }
        }
        rest = behind;
    }
    Ok(Extents::from(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_pages_are_told_from_fresh_ones_and_from_zeros() {
        let pagemap = Pagemap::open("/proc/self").unwrap();
        let page = usize::try_from(pagemap.page).unwrap();
        // Three pages of a fresh mapping: written, only read, not touched.
        let mut fresh = vec![0_u8; MAPPED_ALONE];
        fresh[32 * page] = 1;
        hint::black_box(fresh[40 * page]);
        let at = |index: usize| pagemap.at(fresh.as_ptr().addr() as u64 + (index * page) as u64).unwrap();
        assert!(matches!(at(32), Page::Resident(_)), "{:?}", at(32));
        assert!(matches!(at(40), Page::Zeros | Page::MaybeZeros | Page::Absent), "{:?}", at(40));
        assert_eq!(at(50), Page::Absent);
        let start = fresh.as_ptr().addr() as u64 / page as u64 * page as u64;
        let pages = pagemap.pages(start..start + 60 * page as u64, true).unwrap();
        assert!(
            pages.resident.find(crate::mapping::Address(fresh.as_ptr().addr() as u64 + 32 * page as u64)).is_some()
        );
    }

    #[test]
    fn a_reservation_is_not_walked() {
        assert!(Pagemap::open("/proc/self").unwrap().pages(0..1 << 46, false).is_err());
    }
}
