//! What does the kernel say of a process at one moment? All that `explain` needs beside the process's memory.

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{
    extents::Extents,
    limits::LimitFacts,
    mapping::{Address, Backing, Mapping},
    recording::{Node, Snapshot},
};

/// A process at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessView {
    /// The node.
    pub node: Node,
    /// Seconds since 1970.
    pub taken_unix: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// The kernel's sums for the process.
    pub figures: Snapshot,
    /// The mappings, by rising address.
    pub mappings: Vec<MappedMemory>,
    /// Which bytes of them are resident.
    pub resident: Residency,
    /// Pages that were swapped out; their content is not to be touched.
    pub swapped: Extents,
    /// Resident pages that the process has given up and the kernel has not yet taken (`MADV_FREE`). `None`: which
    /// pages these are is not known, only how many a mapping has.
    pub lazily_freed: Option<Extents>,
    /// Threads, by the number that they have in the process's own pid namespace.
    pub threads: Vec<u32>,
    /// Path of the VM's executable, as in the mappings.
    pub beam: String,
    /// Path of the C library, as in the mappings.
    pub libc: Option<String>,
    /// Symbols of the VM's executable that tell where its structures are, as far as it exports them.
    pub symbols: BTreeMap<String, Symbol>,
    /// The limits that hold for it. `None`: nothing was asked of them.
    #[serde(default)]
    pub limits: Option<LimitFacts>,
    /// What could not be found out, one sentence each.
    pub defects: Vec<String>,
}

/// A symbol of an object, in the process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbol {
    /// Where it is.
    pub address: Address,
    /// Its size in bytes; 0 where the object does not say.
    pub size: u64,
}

/// A mapping with the kernel's figures for it, in bytes (`smaps`, proc(5)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedMemory {
    /// The mapping.
    pub mapping: Mapping,
    /// Resident.
    pub rss: u64,
    /// Resident, pages in several mappings counted by their share.
    pub pss: u64,
    /// Resident and anonymous.
    pub anonymous: u64,
    /// Swapped out.
    pub swap: u64,
    /// Given up by `MADV_FREE` and still resident.
    pub lazy_free: u64,
    /// In transparent huge pages.
    pub huge: u64,
}

/// Which bytes are resident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Residency {
    /// Known page by page.
    Pages(Extents),
    /// Known for each mapping as a whole (its range, and how many of its bytes): within one, they are taken to be
    /// spread evenly.
    Mappings(Vec<(u64, u64, u64)>),
}

impl Default for Residency {
    fn default() -> Self {
        Self::Pages(Extents::default())
    }
}

impl Residency {
    /// Resident bytes of `range`. What is said of two neighbours adds up to what is said of both.
    pub fn bytes_in(&self, range: &Range<u64>) -> u64 {
        match self {
            Self::Pages(pages) => pages.bytes_in(range),
            Self::Mappings(mappings) => {
                let first = mappings.partition_point(|(_, end, _)| *end <= range.start);
                let touched = mappings.get(first..).unwrap_or_default().iter();
                let touched = touched.take_while(|(start, ..)| *start < range.end);
                touched.fold(0, |sum, &(start, end, resident)| {
                    let below = |at: u64| {
                        let part = u128::from(at.clamp(start, end) - start) * u128::from(resident);
                        u64::try_from(part / u128::from(end.saturating_sub(start).max(1))).unwrap_or(resident)
                    };
                    below(range.end).saturating_sub(below(range.start)).saturating_add(sum)
                })
            }
        }
    }

    /// Resident bytes of all.
    pub fn total(&self) -> u64 {
        self.bytes_in(&(0..u64::MAX))
    }
}

impl ProcessView {
    /// The mapping that holds `address`.
    pub fn mapping_at(&self, address: Address) -> Option<&MappedMemory> {
        let after = self.mappings.partition_point(|memory| memory.mapping.start <= address);
        self.mappings.get(after.checked_sub(1)?).filter(|memory| memory.mapping.contains(address))
    }

    /// Whether `address` lies in readable memory.
    pub fn is_readable(&self, address: Address) -> bool {
        self.mapping_at(address).is_some_and(|memory| memory.mapping.permissions.read)
    }

    /// The writable data of the object at `path`, joined with the fresh pages right behind it that hold the rest of
    /// its `.bss`. A structure may lie across both.
    pub fn data_of(&self, path: &str) -> Vec<Range<u64>> {
        let is_of = |mapping: &Mapping| matches!(&mapping.backing, Backing::File(file) if file == path);
        let mut found: Vec<Range<u64>> = Vec::new();
        for MappedMemory { mapping, .. } in &self.mappings {
            let range = mapping.start.0..mapping.end.0;
            let continues = found.last().is_some_and(|last| last.end == range.start);
            let writable = mapping.permissions.write && mapping.permissions.read;
            let fresh = matches!(mapping.backing, Backing::Anonymous);
            match found.last_mut() {
                Some(last) if writable && continues && (fresh || is_of(mapping)) => last.end = range.end,
                _ if writable && is_of(mapping) => found.push(range),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mapping::Permissions;

    fn memory(start: u64, end: u64, letters: &str, backing: Backing) -> MappedMemory {
        let has = |letter| letters.contains(letter);
        let permissions = Permissions { read: has('r'), write: has('w'), execute: has('x'), shared: has('s') };
        let mapping = Mapping { start: Address(start), end: Address(end), file_offset: 0, permissions, backing };
        MappedMemory { mapping, rss: 0, pss: 0, anonymous: 0, swap: 0, lazy_free: 0, huge: 0 }
    }

    #[test]
    fn data_goes_on_in_fresh_pages() {
        let beam = || Backing::File("/beam.smp".into());
        let view = ProcessView {
            mappings: vec![
                memory(0x1000, 0x2000, "r-x", beam()),
                memory(0x2000, 0x3000, "rw-", beam()),
                memory(0x3000, 0x5000, "rw-", Backing::Anonymous),
                memory(0x6000, 0x7000, "rw-", Backing::Anonymous),
                memory(0x7000, 0x8000, "rw-", Backing::File("/libc.so.6".into())),
            ],
            ..ProcessView::default()
        };
        let data = |path| view.data_of(path).into_iter().map(|range| (range.start, range.end)).collect::<Vec<_>>();
        assert_eq!(data("/beam.smp"), [(0x2000, 0x5000)]);
        assert_eq!(data("/libc.so.6"), [(0x7000, 0x8000)]);
        assert!(view.is_readable(Address(0x1fff)) && !view.is_readable(Address(0x5000)));
    }

    proptest! {
        #[test]
        fn even_spreading_loses_no_byte(resident in 0_u64..=100, cut in 0_u64..=100) {
            let residency = Residency::Mappings(vec![(1000, 1100, resident), (2000, 2100, 7)]);
            let parts = residency.bytes_in(&(0..1000 + cut)) + residency.bytes_in(&(1000 + cut..3000));
            prop_assert_eq!(parts, resident + 7);
            prop_assert_eq!(residency.total(), resident + 7);
        }
    }
}
