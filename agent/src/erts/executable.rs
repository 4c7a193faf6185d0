//! What stands in the constants and variables of the VM's executable?
//!
//! Structures whose symbols are hidden are found here: a table knows its own name, so the name's text leads to the
//! pointer to it, and that lies in the table.

use std::ops::Range;

use crate::{
    mapping::{Address, Backing},
    target::memory::{ReadMemory, Unreadable},
    view::{MappedMemory, ProcessView},
    words::words_of,
};

/// Bytes that are read in one go. A piece with a page that cannot be read is read again by [`PAGE`].
const PIECE: u64 = 64 << 10;
/// The smallest page of any machine: a page that cannot be read spoils no more than it has to.
const PAGE: u64 = 4096;
/// Bytes of a word.
const WORD: u64 = 8;

/// Bytes at addresses, in runs without a hole.
struct Bytes {
    runs: Vec<(u64, Vec<u8>)>,
    unread: u64,
}

/// Words of some ranges, in runs without a hole.
#[derive(Debug)]
pub(super) struct Variables {
    runs: Vec<(u64, Vec<u64>)>,
    /// Bytes of the ranges that could not be read. A structure in them is not found.
    pub(super) unread: u64,
}

impl Variables {
    /// The writable data of the executable, `.bss` included.
    pub(super) fn writable(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Self {
        Self::read(view.data_of(&view.beam), memory)
    }

    /// The constants of the executable, those that were relocated included, and its code.
    pub(super) fn constant(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Self {
        Self::read(files_of(view).filter(|memory| !memory.mapping.permissions.write).map(range), memory)
    }

    fn read(ranges: impl IntoIterator<Item = Range<u64>>, memory: &(impl ReadMemory + ?Sized)) -> Self {
        let Bytes { runs, unread } = read(ranges, memory);
        Self { runs: runs.into_iter().map(|(start, bytes)| (start, words_of(&bytes))).collect(), unread }
    }

    /// Each word's address, with the words from there to the next hole.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Address, &[u64])> {
        self.runs.iter().flat_map(|(start, words)| {
            let addresses = (*start..).step_by(8).map(Address);
            addresses.zip((0..words.len()).map(|from| words.get(from..).unwrap_or_default()))
        })
    }

    /// The words from `at` to the next hole.
    pub(super) fn from(&self, at: Address) -> &[u64] {
        let after = self.runs.partition_point(|(start, _)| *start <= at.0);
        let words = after.checked_sub(1).and_then(|index| self.runs.get(index)).and_then(|(start, words)| {
            let offset = at.0.checked_sub(*start).filter(|offset| offset.is_multiple_of(WORD))?;
            words.get(usize::try_from(offset / WORD).ok()?..)
        });
        words.unwrap_or_default()
    }

    /// Where one of `values` stands.
    pub(super) fn holding<'a>(&'a self, values: &'a [Address]) -> impl Iterator<Item = Address> + 'a {
        let holds = |words: &[u64]| words.first().is_some_and(|word| values.contains(&Address(*word)));
        self.iter().filter(move |(_, words)| holds(words)).map(|(at, _)| at)
    }
}

/// Where the NUL-terminated `text` begins in the executable's files, and how many bytes of them could not be read.
///
/// It may be the end of a longer text: linkers merge them.
pub(super) fn find_text(view: &ProcessView, memory: &(impl ReadMemory + ?Sized), text: &str) -> (Vec<Address>, u64) {
    let mut pattern = text.as_bytes().to_vec();
    pattern.push(0);
    let mut found = Vec::new();
    let mut unread = 0_u64;
    for range in files_of(view).map(range) {
        let mut seen = 0_u64;
        // What was shown last, with the end of what was shown before it.
        let (mut start, mut shown) = (range.start, Vec::new());
        memory.scan(range.clone(), &mut |at, bytes| {
            seen = seen.saturating_add(bytes.len() as u64);
            let end = start.saturating_add(shown.len() as u64);
            let kept = if end == at.0 { shown.len().min(pattern.len() - 1) } else { 0 };
            shown.drain(..shown.len() - kept);
            shown.extend_from_slice(bytes);
            start = at.0.saturating_sub(kept as u64);
            let windows = (start..).zip(shown.windows(pattern.len()));
            for (at, _) in windows.filter(|(_, window)| *window == pattern.as_slice()) {
                memory.used(Address(at), &pattern);
                found.push(Address(at));
            }
        });
        unread = unread.saturating_add((range.end - range.start).saturating_sub(seen));
    }
    (found, unread)
}

/// Whether `address` lies in the executable's code.
pub(super) fn is_code(view: &ProcessView, address: Address) -> bool {
    view.mapping_at(address).is_some_and(|memory| memory.mapping.permissions.execute && is_of_beam(view, memory))
}

/// The bytes from `at` to the first NUL, if there are at most `most`.
pub(super) fn read_text(
    memory: &(impl ReadMemory + ?Sized),
    at: Address,
    most: usize,
) -> Result<Option<Vec<u8>>, Unreadable> {
    let mut text = Vec::new();
    let mut at = at;
    while text.len() <= most {
        // The text may end right before a page that cannot be read.
        let in_page = usize::try_from(PAGE - at.0 % PAGE).unwrap_or(1).min(most + 1 - text.len());
        let mut bytes = vec![0; in_page];
        memory.read(at, &mut bytes)?;
        if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
            text.extend(bytes.drain(..end));
            return Ok(Some(text));
        }
        text.append(&mut bytes);
        let Some(next) = at.checked_add(in_page as u64) else { break };
        at = next;
    }
    Ok(None)
}

fn files_of(view: &ProcessView) -> impl Iterator<Item = &MappedMemory> {
    view.mappings.iter().filter(|memory| memory.mapping.permissions.read && is_of_beam(view, memory))
}

fn is_of_beam(view: &ProcessView, memory: &MappedMemory) -> bool {
    matches!(&memory.mapping.backing, Backing::File(path) if *path == view.beam)
}

fn range(memory: &MappedMemory) -> Range<u64> {
    memory.mapping.start.0..memory.mapping.end.0
}

fn read(ranges: impl IntoIterator<Item = Range<u64>>, memory: &(impl ReadMemory + ?Sized)) -> Bytes {
    let mut bytes = Bytes { runs: Vec::new(), unread: 0 };
    for range in ranges {
        for piece in split(range, PIECE) {
            if !bytes.take(piece.clone(), memory) {
                for page in split(piece, PAGE) {
                    if !bytes.take(page.clone(), memory) {
                        bytes.unread = bytes.unread.saturating_add(page.end - page.start);
                    }
                }
            }
        }
    }
    bytes
}

impl Bytes {
    /// Adds the content of `range`, if it can be read.
    fn take(&mut self, range: Range<u64>, memory: &(impl ReadMemory + ?Sized)) -> bool {
        let Ok(length) = usize::try_from(range.end - range.start) else { return false };
        let mut content = vec![0; length];
        if memory.read(Address(range.start), &mut content).is_err() {
            return false;
        }
        match self.runs.last_mut() {
            Some((start, bytes)) if start.checked_add(bytes.len() as u64) == Some(range.start) => {
                bytes.append(&mut content);
            }
            _ => self.runs.push((range.start, content)),
        }
        true
    }
}

fn split(range: Range<u64>, length: u64) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = start.saturating_add(length).min(range.end);
        let piece = start..end;
        start = end;
        (piece.start < piece.end).then_some(piece)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        mapping::{Mapping, Permissions},
        target::memory::MemoryImage,
    };

    const BEAM: &str = "/usr/lib/erlang/erts/bin/beam.smp";
    /// Code of the executable that [`Node`] makes up.
    pub(in crate::erts) const CODE: u64 = 0x5500_0000_0000;
    /// Its constants.
    pub(in crate::erts) const CONSTANTS: u64 = CODE + PAGE;
    /// Its variables.
    pub(in crate::erts) const DATA: u64 = CONSTANTS + PAGE;
    /// Private memory.
    pub(in crate::erts) const HEAP: u64 = 0x7f00_0000_0000;

    /// A VM with four mappings, the first three of its executable.
    #[derive(Clone, Debug)]
    pub(in crate::erts) struct Node {
        pub(in crate::erts) view: ProcessView,
        pub(in crate::erts) memory: MemoryImage,
    }

    impl Node {
        pub(in crate::erts) fn new(heap: u64) -> Self {
            let ranges = [(CODE, PAGE, "rx"), (CONSTANTS, PAGE, "r"), (DATA, 2 * PAGE, "rw"), (HEAP, heap, "rw")];
            let mappings = ranges.map(|(start, length, letters)| {
                let has = |letter| letters.contains(letter);
                let permissions = Permissions { read: has('r'), write: has('w'), execute: has('x'), shared: false };
                let backing = if start == HEAP { Backing::Anonymous } else { Backing::File(BEAM.into()) };
                let end = Address(start + length);
                let mapping = Mapping { start: Address(start), end, file_offset: 0, permissions, backing };
                MappedMemory { mapping, rss: 0, pss: 0, anonymous: 0, swap: 0, lazy_free: 0, huge: 0 }
            });
            let image = mappings.iter().map(|memory| {
                let length = usize::try_from(memory.mapping.length()).unwrap();
                (memory.mapping.start, vec![0; length])
            });
            let memory = MemoryImage(image.collect());
            let view = ProcessView { mappings: mappings.into(), beam: BEAM.into(), ..ProcessView::default() };
            Self { view, memory }
        }

        pub(in crate::erts) fn put(&mut self, at: u64, bytes: &[u8]) {
            let holds =
                |(start, content): &&mut (Address, Vec<u8>)| (start.0..start.0 + content.len() as u64).contains(&at);
            let (start, content) = self.memory.0.iter_mut().find(holds).expect("mapped");
            let from = usize::try_from(at - start.0).unwrap();
            content[from..from + bytes.len()].copy_from_slice(bytes);
        }

        pub(in crate::erts) fn put_words(&mut self, at: u64, words: &[u64]) {
            for (at, word) in (at..).step_by(8).zip(words) {
                self.put(at, &word.to_le_bytes());
            }
        }

        /// Spoils bytes of the variables and of the private memory.
        pub(in crate::erts) fn damage(&mut self, damage: &[(bool, u16, u8)]) {
            for &(heap, offset, byte) in damage {
                let content = &mut self.memory.0[if heap { 3 } else { 2 }].1;
                let at = usize::from(offset) % content.len();
                content[at] = byte;
            }
        }
    }

    #[test]
    fn finds_a_text_and_the_pointer_to_it() {
        let mut node = Node::new(PAGE);
        node.put(CONSTANTS + 100, b"an_atom_tab\0");
        node.put_words(DATA + 40, &[CONSTANTS + 103]);
        let (found, unread) = find_text(&node.view, &node.memory, "atom_tab");
        assert_eq!((found.as_slice(), unread), (&[Address(CONSTANTS + 103)][..], 0));
        let variables = Variables::writable(&node.view, &node.memory);
        assert_eq!(variables.holding(&found).collect::<Vec<_>>(), [Address(DATA + 40)]);
        assert_eq!(variables.from(Address(DATA + 40))[..2], [CONSTANTS + 103, 0]);
        assert!(variables.from(Address(DATA + 41)).is_empty() && variables.from(Address(0)).is_empty());
        assert!(is_code(&node.view, Address(CODE)) && !is_code(&node.view, Address(HEAP)));
    }

    #[test]
    fn says_what_it_could_not_read() {
        let mut node = Node::new(PAGE);
        node.memory.0[2].1.truncate(usize::try_from(PAGE).unwrap());
        let variables = Variables::writable(&node.view, &node.memory);
        assert_eq!((variables.unread, variables.iter().count()), (PAGE, 512));
    }

    #[test]
    fn reads_a_text_that_ends_with_its_mapping() {
        let mut node = Node::new(PAGE);
        node.put(HEAP + PAGE - 5, b"heap\0");
        let text = |at, most| read_text(&node.memory, Address(at), most);
        assert_eq!(text(HEAP + PAGE - 5, 255).unwrap().as_deref(), Some(&b"heap"[..]));
        assert_eq!(text(HEAP + PAGE - 5, 4).unwrap().as_deref(), Some(&b"heap"[..]));
        assert_eq!(text(HEAP + PAGE - 5, 3).unwrap(), None);
        assert!(text(HEAP + PAGE, 10).is_err() && text(u64::MAX, 10).is_err());
    }
}
