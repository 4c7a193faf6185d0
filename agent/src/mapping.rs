//! Which addresses of a process belong to which file: the lines of `/proc/PID/maps` as values.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An address in the node's memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Address(pub u64);

impl Address {
    /// The address `bytes` further up, where there is one.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({:#x})", self.0)
    }
}

/// One mapping of the process: `[start, end)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First address.
    pub start: Address,
    /// First address behind it.
    pub end: Address,
    /// Offset in the file of the first address.
    pub file_offset: u64,
    /// Readable, writable, executable, shared.
    pub permissions: Permissions,
    /// What is mapped.
    pub backing: Backing,
}

/// The four letters of a line in `/proc/PID/maps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "four independent letters of one field in /proc/PID/maps")]
pub struct Permissions {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `x`
    pub execute: bool,
    /// `s`, not `p`
    pub shared: bool,
}

/// What stands behind a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Nothing: fresh pages.
    Anonymous,
    /// The heap that `brk` moves.
    Heap,
    /// The stack of the main thread.
    Stack,
    /// `[vdso]`, `[vvar]` and the like, with the name in brackets.
    Kernel(String),
    /// A file, by the path in the process's own mount namespace, ` (deleted)` taken off.
    File(String),
    /// A `memfd` or other file without a place in the file system, such as `/memfd:vmem`.
    Memory(String),
}

impl Mapping {
    /// Bytes of the mapping.
    pub fn length(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: Address) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether it can hold code that was made at run time: executable, and no file of the file system behind it.
    pub fn is_jit(&self) -> bool {
        self.permissions.execute && matches!(self.backing, Backing::Anonymous | Backing::Memory(_))
    }

    /// Last component of the file's path.
    pub fn file_name(&self) -> Option<&str> {
        match &self.backing {
            Backing::File(path) => path.rsplit('/').next(),
            _ => None,
        }
    }
}

/// The mappings of a process, sorted by address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings(Vec<Mapping>);

impl Mappings {
    /// Sorts `mappings` by address.
    pub fn new(mut mappings: Vec<Mapping>) -> Self {
        mappings.sort_by_key(|mapping| mapping.start);
        Self(mappings)
    }

    /// The mapping that holds `address`.
    pub fn find(&self, address: Address) -> Option<&Mapping> {
        let after = self.0.partition_point(|mapping| mapping.start <= address);
        self.0.get(after.checked_sub(1)?).filter(|mapping| mapping.contains(address))
    }

    /// All of them, by rising address.
    pub fn iter(&self) -> std::slice::Iter<'_, Mapping> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Mappings {
    type Item = &'a Mapping;
    type IntoIter = std::slice::Iter<'a, Mapping>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64) -> Mapping {
        Mapping {
            start: Address(start),
            end: Address(end),
            file_offset: 0,
            permissions: Permissions::default(),
            backing: Backing::Anonymous,
        }
    }

    #[test]
    fn finds_the_mapping_that_holds_an_address() {
        let mappings = Mappings::new(vec![mapping(0x3000, 0x5000), mapping(0x1000, 0x2000)]);
        let found = |address| mappings.find(Address(address)).map(|mapping| mapping.start.0);
        assert_eq!(found(0xfff), None);
        assert_eq!(found(0x1000), Some(0x1000));
        assert_eq!(found(0x1fff), Some(0x1000));
        assert_eq!(found(0x2000), None);
        assert_eq!(found(0x4fff), Some(0x3000));
        assert_eq!(found(u64::MAX), None);
    }
}
