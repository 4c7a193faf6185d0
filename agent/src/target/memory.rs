//! What stands at an address of the node's memory?

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};
use thiserror::Error;

use crate::mapping::Address;

/// Memory of a node: a live process, or a saved image.
pub trait ReadMemory {
    /// Fills `into` from `at` on, or says why not; never partly.
    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable>;

    /// Fills a beginning of `into` from `at` on, as much as is at hand, and says how many bytes that are: at least
    /// one, unless `into` is empty. What of it is looked at is told by [`ReadMemory::used`].
    fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable>;

    /// Reads many ranges, in as few calls as possible; the results are in the order of `ranges`. What of them is looked
    /// at is told by [`ReadMemory::used`].
    fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>>;

    /// Reads many ranges, and looks at all of them.
    fn read_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
        let results = self.peek_many(ranges);
        for ((at, _), result) in ranges.iter().zip(&results) {
            if let Ok(bytes) = result {
                self.used(*at, bytes);
            }
        }
        results
    }

    /// Shows what can be read of `range`, in pieces by rising address. What is found in them is told by
    /// [`ReadMemory::used`].
    fn scan(&self, range: Range<u64>, visit: &mut dyn FnMut(Address, &[u8])) {
        scan_in_pieces(self, range, visit);
    }

    /// Says that `bytes`, which were read ahead or scanned at `at`, were looked at. A memory that is being saved keeps
    /// them.
    #[inline]
    fn used(&self, _at: Address, _bytes: &[u8]) {}
}

/// Reads `ranges` one by one.
pub(crate) fn read_each(
    memory: &(impl ReadMemory + ?Sized),
    ranges: &[(Address, usize)],
) -> Vec<Result<Vec<u8>, Unreadable>> {
    let read = |&(at, length): &(Address, usize)| {
        let mut bytes = vec![0; length];
        memory.read(at, &mut bytes).map(|()| bytes)
    };
    ranges.iter().map(read).collect()
}

/// Reads `range` ahead piece by piece, and passes over the pages that cannot be read.
pub(super) fn scan_in_pieces(
    memory: &(impl ReadMemory + ?Sized),
    range: Range<u64>,
    visit: &mut dyn FnMut(Address, &[u8]),
) {
    let mut buffer = vec![0; SCANNED_AT_ONCE];
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(SCANNED_AT_ONCE);
        let piece = buffer.get_mut(..length).unwrap_or_default();
        match memory.read_ahead(Address(at), piece) {
            Ok(read) if read > 0 => {
                visit(Address(at), piece.get(..read).unwrap_or_default());
                at = at.saturating_add(read as u64);
            }
            // The next page may be readable again.
            _ => at = at.saturating_add(SMALLEST_PAGE - at % SMALLEST_PAGE),
        }
    }
}

/// Bytes of a piece that is shown by [`ReadMemory::scan`] at most.
const SCANNED_AT_ONCE: usize = 256 << 10;
/// Memory is readable or not by whole pages of at least this size.
const SMALLEST_PAGE: u64 = 4096;

/// A range that could not be read.
#[derive(Debug, Error)]
#[error("cannot read {length} bytes at {at} of the node's memory")]
pub struct Unreadable {
    /// Its first address.
    pub at: Address,
    /// Its length.
    pub length: usize,
    /// Why.
    #[source]
    pub cause: io::Error,
}

/// Memory of a live process.
///
/// It is read by `process_vm_readv`, and through `/proc/PID/mem` where the system call is filtered (container run
/// times refuse it by seccomp). Neither stops the process or writes to it.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: Pid,
    /// `/proc/PID/mem`, once the system call was refused. `None`: it cannot be opened either.
    file: OnceLock<Option<File>>,
}

/// `UIO_MAXIOV`, the most ranges that one call takes.
const RANGES_PER_CALL: usize = 1024;

/// The most bytes that [`ReadMemory::peek_many`] asks for in one call, unless a single range is longer.
const BYTES_PER_CALL: usize = 4 << 20;

impl ProcessMemory {
    /// The memory of process `pid`. Nothing is opened before the first read.
    pub fn new(pid: Pid) -> Self {
        Self { pid, file: OnceLock::new() }
    }

    /// Adds the results of the first ranges, at least one.
    fn read_batch(&self, ranges: &[(Address, usize)], results: &mut Vec<Result<Vec<u8>, Unreadable>>) {
        let total = ranges.iter().fold(0_usize, |sum, range| sum.saturating_add(range.1));
        let mut buffer = vec![0; total];
        let answer = self.call(ranges, &mut buffer);
        if matches!(answer, Err(Errno::EPERM | Errno::ENOSYS))
            && let Some(file) = self.file()
        {
            results.extend(ranges.iter().map(|&(at, length)| {
                let mut bytes = vec![0; length];
                read_file(file, at, &mut bytes).map(|()| bytes)
            }));
            return;
        }
        // The kernel stops at the first byte that it cannot read: what lies before is complete, the range with it
        // has failed, and those behind it have not been tried.
        let mut read = answer.unwrap_or(0);
        let mut buffer = buffer.as_slice();
        for (position, &(at, length)) in ranges.iter().enumerate() {
            match (read.checked_sub(length), buffer.split_at_checked(length)) {
                (Some(left), Some((bytes, behind))) => {
                    results.push(Ok(bytes.to_vec()));
                    (read, buffer) = (left, behind);
                }
                // Asked for again as the first range of the next call, which gives its error.
                _ if position > 0 => return,
                _ => {
                    let cause = answer.err().unwrap_or(Errno::EFAULT).into();
                    results.push(Err(Unreadable { at, length, cause }));
                    return;
                }
            }
        }
    }

    /// Bytes that were read into `buffer`.
    fn call(&self, ranges: &[(Address, usize)], buffer: &mut [u8]) -> Result<usize, Errno> {
        let remote = ranges
            .iter()
            .map(|&(at, len)| Ok(RemoteIoVec { base: usize::try_from(at.0).map_err(|_too_high| Errno::EFAULT)?, len }))
            .collect::<Result<Vec<_>, _>>()?;
        process_vm_readv(self.pid, &mut [IoSliceMut::new(buffer)], &remote)
    }

    fn file(&self) -> Option<&File> {
        self.file.get_or_init(|| File::open(format!("/proc/{}/mem", self.pid)).ok()).as_ref()
    }
}

impl ReadMemory for ProcessMemory {
    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        let length = into.len();
        let cause = match self.call(&[(at, length)], into) {
            Ok(read) if read == length => return Ok(()),
            Ok(_) => Errno::EFAULT,
            Err(refused @ (Errno::EPERM | Errno::ENOSYS)) => match self.file() {
                Some(file) => return read_file(file, at, into),
                None => refused,
            },
            Err(cause) => cause,
        };
        Err(Unreadable { at, length, cause: cause.into() })
    }

    fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
        let mut results = Vec::with_capacity(ranges.len());
        while let Some(rest) = ranges.get(results.len()..).filter(|rest| !rest.is_empty()) {
            self.read_batch(batch(rest), &mut results);
        }
        results
    }

    fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable> {
        let length = into.len();
        match self.call(&[(at, length)], into) {
            Ok(0) if length > 0 => Err(Unreadable { at, length, cause: Errno::EFAULT.into() }),
            Ok(read) => Ok(read),
            Err(refused @ (Errno::EPERM | Errno::ENOSYS)) => match self.file() {
                Some(file) => file.read_at(into, at.0).map_err(|cause| Unreadable { at, length, cause }),
                None => Err(Unreadable { at, length, cause: refused.into() }),
            },
            Err(cause) => Err(Unreadable { at, length, cause: cause.into() }),
        }
    }
}

/// The first ranges, as many as one call takes.
fn batch(ranges: &[(Address, usize)]) -> &[(Address, usize)] {
    let mut total = 0_usize;
    let fitting = ranges
        .iter()
        .take(RANGES_PER_CALL)
        .take_while(|range| {
            total = total.saturating_add(range.1);
            total <= BYTES_PER_CALL
        })
        .count();
    ranges.get(..fitting.max(1)).unwrap_or(ranges)
}

fn read_file(file: &File, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
    file.read_exact_at(into, at.0).map_err(|cause| Unreadable { at, length: into.len(), cause })
}

/// Memory that a test made up.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryImage(pub(crate) Vec<(Address, Vec<u8>)>);

#[cfg(test)]
impl ReadMemory for MemoryImage {
    fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
        read_each(self, ranges)
    }

    fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
        let piece = |(start, bytes): &(Address, Vec<u8>)| {
            let from = usize::try_from(at.0.checked_sub(start.0)?).ok()?;
            bytes.get(from..from.checked_add(into.len())?).map(<[u8]>::to_vec)
        };
        let found = self.0.iter().find_map(piece).ok_or_else(|| Unreadable {
            at,
            length: into.len(),
            cause: Errno::EFAULT.into(),
        })?;
        into.copy_from_slice(&found);
        Ok(())
    }

    fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable> {
        let piece = |(start, bytes): &(Address, Vec<u8>)| {
            let from = usize::try_from(at.0.checked_sub(start.0)?).ok()?;
            bytes.get(from..).filter(|rest| !rest.is_empty()).map(<[u8]>::to_vec)
        };
        let length = into.len();
        let found = self.0.iter().find_map(piece);
        let found = found.ok_or_else(|| Unreadable { at, length, cause: Errno::EFAULT.into() })?;
        let length = found.len().min(length);
        into[..length].copy_from_slice(&found[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(bytes: &[u8]) -> Address {
        Address(bytes.as_ptr().addr() as u64)
    }

    fn own() -> ProcessMemory {
        ProcessMemory::new(Pid::this())
    }

    #[test]
    fn reads_its_own_memory() {
        let bytes = *b"where did the memory go";
        let mut copy = [0; 23];
        own().read(address(&bytes), &mut copy).unwrap();
        assert_eq!(copy, bytes);
    }

    #[test]
    fn a_hole_is_an_error_and_does_not_spoil_its_neighbours() {
        let bytes = *b"carrier";
        let at = address(&bytes);
        let results = own().read_many(&[(Address(8), 4), (at, 7), (Address(8), 8), (Address(u64::MAX), 1), (at, 3)]);
        let seen: Vec<_> = results.iter().map(|result| result.as_deref().ok()).collect();
        assert_eq!(seen, [None, Some(&b"carrier"[..]), None, None, Some(&b"car"[..])]);
        let error = results[2].as_ref().unwrap_err();
        assert_eq!((error.at, error.length), (Address(8), 8));
        assert_eq!(error.cause.raw_os_error(), Some(Errno::EFAULT as i32));
    }

    #[test]
    fn more_ranges_than_one_call_takes() {
        let bytes: Vec<u8> = (0..=255).collect();
        let ranges: Vec<_> = (0..3000).map(|n| (address(&bytes).checked_add(n % 256).unwrap(), 1)).collect();
        let read: Vec<u8> = own().read_many(&ranges).into_iter().flat_map(Result::unwrap).collect();
        assert_eq!(read, (0..3000).map(|n| u8::try_from(n % 256).unwrap()).collect::<Vec<_>>());
    }

    #[test]
    fn the_file_serves_where_the_call_is_refused() {
        let bytes = *b"block";
        let file = own();
        let mut copy = [0; 5];
        read_file(file.file().unwrap(), address(&bytes), &mut copy).unwrap();
        assert_eq!(copy, bytes);
        assert!(read_file(file.file().unwrap(), Address(8), &mut copy).is_err());
    }

    #[test]
    fn an_image_has_edges() {
        let image = MemoryImage(vec![(Address(0x1000), vec![1, 2, 3])]);
        let mut two = [0; 2];
        assert!(image.read(Address(0x1001), &mut two).is_ok_and(|()| two == [2, 3]));
        assert!(image.read(Address(0x1002), &mut two).is_err());
        assert!(image.read(Address(0xfff), &mut two).is_err());
    }
}
