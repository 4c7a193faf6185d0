//! How fast is the memory of a node copied, when nothing else is done with it? Against that rate a walk is judged.

use std::{
    fs::{self, File},
    io::IoSliceMut,
    os::unix::fs::FileExt as _,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::{Pid, SysconfVar, sysconf},
};
use serde::Serialize;

/// So much is copied at once: the buffer stays in the processor's cache, as what a walk has just read does.
const AT_ONCE: usize = 256 << 10;

/// The kernel takes no more (`UIO_MAXIOV`).
const MOST_RANGES: usize = 1024;

/// An entry of pagemap: the page is in memory.
const PRESENT: u64 = 1 << 63;

/// A copy of all private memory of a process.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Copied {
    pub(super) bytes: u64,
    /// What the node gave back to the kernel meanwhile, and what followed it in the same call.
    pub(super) missed_bytes: u64,
    pub(super) seconds: f64,
}

/// Copies the resident pages of what the process has mapped without a file, in one thread. Which they are is found out
/// before the time begins: to read others would make them resident.
pub(super) fn of(pid: u32) -> Result<Copied> {
    let batches = batches(&resident(pid)?);
    let mut buffer = vec![1; AT_ONCE];
    let pid = Pid::from_raw(pid.try_into().context("a pid is too large")?);
    let begin = Instant::now();
    let (mut bytes, mut missed_bytes) = (0, 0);
    for batch in &batches {
        let asked: usize = batch.iter().map(|range| range.len).sum();
        let got = match process_vm_readv(pid, &mut [IoSliceMut::new(&mut buffer)], batch) {
            // Not even the first page is mapped any more.
            Err(Errno::EFAULT) => 0,
            got => got.context("process_vm_readv")?,
        };
        bytes += u64::try_from(got)?;
        missed_bytes += u64::try_from(asked - got)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(missed_bytes <= bytes / 100, "of the node's memory {missed_bytes} bytes went while it was copied");
    Ok(Copied { bytes, missed_bytes, seconds })
}

/// Address and length of each run of resident pages.
fn resident(pid: u32) -> Result<Vec<(usize, usize)>> {
    let page = sysconf(SysconfVar::PAGE_SIZE)?.context("the size of a page is not known")?;
    let page = usize::try_from(page)?;
    let path = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let path = format!("/proc/{pid}/pagemap");
    let pagemap = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    let mut runs = Vec::new();
    for (start, end) in maps.lines().filter_map(private) {
        let mut entries = vec![0; (end - start) / page * 8];
        pagemap
            .read_exact_at(&mut entries, (start / page * 8) as u64)
            .with_context(|| format!("cannot read {path}"))?;
        let (entries, _) = entries.as_chunks();
        let present = |entry: &[u8; 8]| u64::from_ne_bytes(*entry) & PRESENT != 0;
        let mut address = start;
        for pages in entries.chunk_by(|one, other| present(one) == present(other)) {
            let length = pages.len() * page;
            if pages.first().is_some_and(present) {
                runs.push((address, length));
            }
            address += length;
        }
    }
    Ok(runs)
}

/// Reads a line of maps, if it is of readable memory without a file.
fn private(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let readable = words.next()?.starts_with('r');
    let what = words.nth(3);
    (readable && matches!(what, None | Some("[heap]" | "[stack]"))).then_some(())?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

/// What each call reads.
fn batches(runs: &[(usize, usize)]) -> Vec<Vec<RemoteIoVec>> {
    let mut batches = vec![Vec::new()];
    let mut room = AT_ONCE;
    for &(start, length) in runs {
        let (mut base, mut left) = (start, length);
        while left > 0 {
            if room == 0 || batches.last().is_some_and(|batch| batch.len() == MOST_RANGES) {
                batches.push(Vec::new());
                room = AT_ONCE;
            }
            let len = left.min(room);
            if let Some(batch) = batches.last_mut() {
                batch.push(RemoteIoVec { base, len });
            }
            base += len;
            left -= len;
            room -= len;
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_files_and_of_the_kernel_is_left_out() {
        assert_eq!(private("1000-3000 rw-p 00000000 00:00 0 "), Some((0x1000, 0x3000)));
        assert_eq!(private("1000-3000 rw-p 00000000 00:00 0          [heap]"), Some((0x1000, 0x3000)));
        assert_eq!(private("1000-3000 ---p 00000000 00:00 0 "), None);
        assert_eq!(private("1000-3000 r-xp 00000000 08:01 42         /bin/beam"), None);
        assert_eq!(private("1000-3000 r--p 00000000 00:00 0          [vvar]"), None);
    }

    #[test]
    fn every_byte_is_in_one_batch() {
        let runs = [(0x1000, 4096), (0x10_0000, 3 * AT_ONCE), (0x90_0000, 4096)];
        let batches = batches(&runs);
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.iter().map(|range| range.len).sum()).collect();
        assert_eq!(sizes, [AT_ONCE, AT_ONCE, AT_ONCE, 2 * 4096]);
    }

    #[test]
    fn a_process_copies_itself() {
        let held = vec![7_u8; 8 << 20];
        let runs = resident(std::process::id()).unwrap();
        let (start, end) = (held.as_ptr().addr(), held.as_ptr_range().end.addr());
        assert!(runs.iter().any(|(address, length)| *address <= start + 4096 && end - 4096 <= address + length));
    }
}
