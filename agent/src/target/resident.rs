//! What stands in a node's memory, without a trace of the look: no page becomes resident by it.
//!
//! A read of a page that is swapped out would bring it in, and one of a page that was never touched would map the
//! kernel's page of zeros. So pages are asked about first. One that was never touched is known without a look: zeros,
//! or the content of its file.

use std::{ops::Range, sync::Arc};

use nix::errno::Errno;

use super::{
    memory::{ProcessMemory, ReadMemory, Unreadable, read_each, scan_in_pieces},
    pagemap::{Page, Pagemap},
};
use crate::{
    mapping::{Address, Backing, Mapping},
    view::{ProcessView, Residency},
};

/// Memory of a live process, read page by page as it is.
#[derive(Debug)]
pub struct ResidentMemory<'a> {
    memory: &'a ProcessMemory,
    view: &'a ProcessView,
    /// `None`: the kernel does not tell which pages are resident, and then they are read as they come.
    pagemap: Option<Pagemap>,
    /// Contents of mapped files, by path.
    files: Vec<(String, Arc<[u8]>)>,
}

impl<'a> ResidentMemory<'a> {
    /// The memory of the process that `view` is of. `folder` is its own in `/proc`; `files` are contents of files that
    /// it has mapped, by path.
    pub fn new(
        memory: &'a ProcessMemory,
        view: &'a ProcessView,
        folder: &str,
        files: Vec<(String, Arc<[u8]>)>,
    ) -> Self {
        let known = matches!(view.resident, Residency::Pages(_));
        // Where it could not be opened for the view, it cannot be now.
        let pagemap = if known { Pagemap::open(folder).ok() } else { None };
        Self { memory, view, pagemap, files }
    }

    /// The resident bytes from `at` on, as far as `length`, by what was known when the view was made.
    fn known(&self, at: Address, length: usize) -> usize {
        let Residency::Pages(pages) = &self.view.resident else { return length };
        let left = pages.find(at).map_or(0, |range| range.end - at.0);
        usize::try_from(left).unwrap_or(usize::MAX).min(length)
    }

    /// A part of one page.
    fn read_in_page(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        let Some(pagemap) = &self.pagemap else { return self.memory.read(at, into) };
        let length = into.len();
        match pagemap.at(at.0) {
            Ok(Page::Resident(_)) => self.memory.read(at, into),
            Ok(Page::Zeros | Page::MaybeZeros) => {
                into.fill(0);
                Ok(())
            }
            Ok(Page::Swapped) => Err(Unreadable { at, length, cause: std::io::Error::other(SwappedOut) }),
            Ok(Page::Absent) => self.read_untouched(at, into),
            Err(cause) => Err(Unreadable { at, length, cause }),
        }
    }

    /// A part of a page that is not there.
    fn read_untouched(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        let length = into.len();
        let refused = || Unreadable { at, length, cause: Errno::EFAULT.into() };
        let mapping = &self.view.mapping_at(at).ok_or_else(refused)?.mapping;
        if !mapping.permissions.read {
            return Err(refused());
        }
        match &mapping.backing {
            Backing::Anonymous | Backing::Heap | Backing::Stack if !mapping.permissions.shared => {
                into.fill(0);
                Ok(())
            }
            Backing::File(path) => match self.file_bytes(path, mapping, at, length) {
                Some(bytes) => {
                    into.copy_from_slice(bytes);
                    Ok(())
                }
                None => Err(refused()),
            },
            _ => Err(refused()),
        }
    }

    fn file_bytes(&self, path: &str, mapping: &Mapping, at: Address, length: usize) -> Option<&[u8]> {
        let (_, bytes) = self.files.iter().find(|(name, _)| name == path)?;
        let offset = at.0.checked_sub(mapping.start.0)?.checked_add(mapping.file_offset)?;
        let from = usize::try_from(offset).ok()?;
        bytes.get(from..from.checked_add(length)?)
    }

    fn page_of(&self, at: u64) -> Range<u64> {
        let size = self.view.page_size.max(1);
        let start = at / size * size;
        start..start.saturating_add(size)
    }
}

/// Why a page is not looked at.
#[derive(Debug, thiserror::Error)]
#[error("the page is swapped out, and a look would bring it back")]
struct SwappedOut;

impl ReadMemory for ResidentMemory<'_> {
    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        let mut at = at;
        let mut rest = into;
        while !rest.is_empty() {
            let known = self.known(at, rest.len());
            let length = if known > 0 {
                let (part, _) = rest.split_at_mut(known);
                self.memory.read(at, part)?;
                known
            } else {
                let in_page = usize::try_from(self.page_of(at.0).end - at.0).unwrap_or(1).clamp(1, rest.len());
                let (part, _) = rest.split_at_mut(in_page);
                self.read_in_page(at, part)?;
                in_page
            };
            rest = rest.split_at_mut(length).1;
            at = at.checked_add(length as u64).ok_or_else(|| Unreadable { at, length, cause: Errno::EFAULT.into() })?;
        }
        Ok(())
    }

    fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable> {
        let known = self.known(at, into.len());
        if known > 0 {
            return self.memory.read_ahead(at, into.split_at_mut(known).0);
        }
        let in_page = usize::try_from(self.page_of(at.0).end - at.0).unwrap_or(1).min(into.len());
        self.read_in_page(at, into.split_at_mut(in_page).0)?;
        Ok(in_page)
    }

    fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
        let all_known = ranges.iter().all(|(at, length)| self.known(*at, *length) == *length);
        if all_known { self.memory.peek_many(ranges) } else { read_each(self, ranges) }
    }

    /// Fresh pages that are not there have nothing to show; of a file, its content has.
    fn scan(&self, range: Range<u64>, visit: &mut dyn FnMut(Address, &[u8])) {
        let Residency::Pages(pages) = &self.view.resident else {
            return scan_in_pieces(self.memory, range, visit);
        };
        let first = self.view.mappings.partition_point(|memory| memory.mapping.end.0 <= range.start);
        let mappings = self.view.mappings.get(first..).unwrap_or_default().iter().map(|memory| &memory.mapping);
        for mapping in mappings.take_while(|mapping| mapping.start.0 < range.end) {
            let part = mapping.start.0.max(range.start)..mapping.end.0.min(range.end);
            let is_known =
                matches!(&mapping.backing, Backing::File(path) if self.files.iter().any(|(name, _)| name == path));
            if is_known {
                scan_in_pieces(self, part, visit);
            } else {
                for part in pages.parts_in(part) {
                    scan_in_pieces(self.memory, part, visit);
                }
            }
        }
    }
}
