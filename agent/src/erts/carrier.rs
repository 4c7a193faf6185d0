//! Does a carrier of the VM lie at an address?
//!
//! A carrier begins with four words, and the last of them points to the allocator that owns it. The owner says its own
//! name, so a carrier proves itself: no other structure has a plausible size in its first word and, behind its fourth,
//! a string such as `eheap_` followed by a small allocator number, a known strategy and an instance.
//!
//! What has been a carrier and was given back to libc can still look like one; the caller asks only for live blocks and
//! mappings, and [`find`] refuses a carrier that does not fit into the one it asks for.

use crate::{mapping::Address, target::memory::ReadMemory};

/// Bytes at the begin of a carrier that [`recognise`] looks at.
pub const HEADER_BYTES: usize = 32;

/// Low bits of a size or pointer word that are flags: `ERTS_ALC_ALIGN_BYTES - 1` is 7 on 64-bit Linux
/// (`erts/emulator/beam/erl_alloc_util.h`, OTP 23.2.6 to 27.3.4.1).
const FLAGS: u64 = 7;
/// `chdr`: from mmap by mseg, else from malloc (ibid.).
const FROM_MSEG: u64 = 1 << 0;
/// `chdr`: holds a single block (ibid.).
const SINGLE_BLOCK: u64 = 1 << 1;

/// A carrier of less than a page would hold no block that is worth one.
const SMALLEST: u64 = 4096;
/// The address space of a process.
const LARGEST: u64 = 1 << 47;
/// mseg hands out whole pages of at least this size.
const PAGE: u64 = 4096;

/// Offset in `Allctr_t` of `name_prefix`. Read at run time in OTP 23.2.6, 24.2.1, 25.2.3, 27.3.4.1 and 29.1.2, and in
/// the source of the first, third and fourth (`erts/emulator/beam/erl_alloc_util.h`).
const NAME_PREFIX: u64 = 0x78;
/// Offset in `Allctr_t` of `alloc_no`, `alloc_strat` and `ix`, 32 bits each; same releases and source.
const NUMBERS: u64 = NAME_PREFIX + 8;
/// `ERTS_ALC_A_MAX` is 12; `HiPE` adds one (`erts/emulator/beam/erl_alloc_types.h`, OTP 23 to 27). Room for a few more.
const LARGEST_NUMBER: u32 = 20;
/// `GOODFIT`, `BESTFIT`, `AFIT` and `FIRSTFIT`, numbered from 1 (`erl_alloc_util.h`).
const LARGEST_STRATEGY: u32 = 4;
/// Schedulers at most (`ERTS_MAX_NO_OF_SCHEDULERS` is 1024), normal and dirty, and the global instance.
const LARGEST_INSTANCE: u32 = 4096;
/// Bytes of a name at most, the end included. The longest is `literal_`.
const NAME_BYTES: usize = 16;

/// A carrier, as its header and its owner describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Name of the allocator that owns it: `ets_alloc`, `binary_alloc`, …
    pub allocator: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// What it holds.
    pub kind: CarrierKind,
    /// Where it came from.
    pub source: CarrierSource,
}

/// What a carrier holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierKind {
    /// Many blocks.
    MultiBlock,
    /// One block.
    SingleBlock,
}

/// Where the VM got a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierSource {
    /// mmap, through `erts_mseg` and `erts_mmap`.
    Mseg,
    /// malloc or `posix_memalign`, through `sys_alloc`.
    Sys,
}

/// The carrier at the begin of the block or mapping `at`, which is `length` bytes long. What cannot be read is none.
pub fn find(at: Address, length: u64, memory: &(impl ReadMemory + ?Sized)) -> Option<Carrier> {
    let mut header = [0; HEADER_BYTES];
    memory.read(at, &mut header).ok()?;
    recognise(&header, memory).filter(|carrier| carrier.bytes <= length)
}

/// The carrier that begins with `header`.
pub fn recognise(header: &[u8; HEADER_BYTES], memory: &(impl ReadMemory + ?Sized)) -> Option<Carrier> {
    let word = |index| Some(u64::from_le_bytes(*header.as_chunks::<8>().0.get(index)?));
    let chdr = word(0)?;
    let bytes = chdr & !FLAGS;
    let source = if chdr & FROM_MSEG != 0 { CarrierSource::Mseg } else { CarrierSource::Sys };
    let whole_pages = source == CarrierSource::Sys || bytes.is_multiple_of(PAGE);
    if !(SMALLEST..LARGEST).contains(&bytes) || !whole_pages {
        return None;
    }
    // `Allctr_t *`, with the carrier's state in the low bits.
    let owner = Address(word(3)? & !FLAGS);
    check_numbers(owner, memory)?;
    let prefix = read_word(owner.checked_add(NAME_PREFIX)?, memory)?;
    let allocator = format!("{}alloc", read_name(Address(prefix), memory)?);
    let kind = if chdr & SINGLE_BLOCK != 0 { CarrierKind::SingleBlock } else { CarrierKind::MultiBlock };
    Some(Carrier { allocator, bytes, kind, source })
}

fn check_numbers(owner: Address, memory: &(impl ReadMemory + ?Sized)) -> Option<()> {
    let mut bytes = [0; 12];
    memory.read(owner.checked_add(NUMBERS)?, &mut bytes).ok()?;
    let (numbers, _) = bytes.as_chunks::<4>();
    let number = |index| Some(u32::from_le_bytes(*numbers.get(index)?));
    let plausible = (1..=LARGEST_NUMBER).contains(&number(0)?)
        && (1..=LARGEST_STRATEGY).contains(&number(1)?)
        && number(2)? <= LARGEST_INSTANCE;
    plausible.then_some(())
}

fn read_word(at: Address, memory: &(impl ReadMemory + ?Sized)) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// A name of the form `[a-z]{2,}_`, NUL at its end.
pub(in crate::erts) fn read_name(at: Address, memory: &(impl ReadMemory + ?Sized)) -> Option<String> {
    let mut bytes = [0; NAME_BYTES];
    // The name may end right before a page that cannot be read.
    let in_page = usize::try_from(PAGE - at.0 % PAGE).ok()?.min(NAME_BYTES);
    let (first, second) = bytes.split_at_mut(in_page);
    memory.read(at, first).ok()?;
    if !first.contains(&0) {
        memory.read(at.checked_add(first.len() as u64)?, second).ok()?;
    }
    let name = bytes.split(|byte| *byte == 0).next().filter(|name| name.len() < NAME_BYTES)?;
    let letters = name.strip_suffix(b"_")?;
    let plausible = letters.len() >= 2 && letters.iter().all(u8::is_ascii_lowercase);
    plausible.then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io};

    use proptest::prelude::*;

    use super::*;
    use crate::target::memory::Unreadable;

    /// Bytes at addresses; everything else cannot be read.
    #[derive(Clone, Default)]
    struct Image(BTreeMap<u64, u8>);

    impl Image {
        fn put(&mut self, at: u64, bytes: &[u8]) {
            self.0.extend((at..).zip(bytes.iter().copied()));
        }
    }

    impl ReadMemory for Image {
        fn peek_many(&self, ranges: &[(Address, usize)]) -> Vec<Result<Vec<u8>, Unreadable>> {
            crate::target::memory::read_each(self, ranges)
        }

        fn read_ahead(&self, at: Address, into: &mut [u8]) -> Result<usize, Unreadable> {
            self.read(at, into).map(|()| into.len())
        }

        fn read(&self, at: Address, into: &mut [u8]) -> Result<(), Unreadable> {
            let length = into.len();
            let unreadable = || Unreadable { at, length, cause: io::ErrorKind::InvalidInput.into() };
            for (index, byte) in (0..).zip(into) {
                let at = at.checked_add(index).ok_or_else(unreadable)?;
                *byte = *self.0.get(&at.0).ok_or_else(unreadable)?;
            }
            Ok(())
        }
    }

    const OWNER: u64 = 0x5555_0000_1000;
    const NAME: u64 = 0x5555_0000_2000;
    const MIB: u64 = 1 << 20;

    fn allocator(name: &[u8], numbers: [u32; 3]) -> Image {
        let mut image = Image::default();
        image.put(OWNER + NAME_PREFIX, &NAME.to_le_bytes());
        image.put(OWNER + NUMBERS, numbers.map(u32::to_le_bytes).as_flattened());
        // What follows a string can be read as well.
        image.put(NAME, &[0xff; 32]);
        image.put(NAME, name);
        image
    }

    fn header(chdr: u64, owner: u64) -> [u8; HEADER_BYTES] {
        let words = [chdr, 0x7f00_0000, 0, owner].map(u64::to_le_bytes);
        words.as_flattened().try_into().expect("four words")
    }

    fn check(chdr: u64, owner: u64, image: &Image, expected: Option<(&str, u64, CarrierKind, CarrierSource)>) {
        let expected =
            expected.map(|(name, bytes, kind, source)| Carrier { allocator: name.into(), bytes, kind, source });
        assert_eq!(recognise(&header(chdr, owner), image), expected, "{chdr:#x} of {owner:#x}");
    }

    #[test]
    fn reads_kind_source_size_and_owner() {
        use {CarrierKind::*, CarrierSource::*};
        let ets = allocator(b"ets_\0", [7, 4, 2]);
        check(MIB | FROM_MSEG, OWNER, &ets, Some(("ets_alloc", MIB, MultiBlock, Mseg)));
        check(MIB | FROM_MSEG | SINGLE_BLOCK, OWNER, &ets, Some(("ets_alloc", MIB, SingleBlock, Mseg)));
        check(MIB | SINGLE_BLOCK, OWNER, &ets, Some(("ets_alloc", MIB, SingleBlock, Sys)));
        check((MIB + 8) | SINGLE_BLOCK, OWNER, &ets, Some(("ets_alloc", MIB + 8, SingleBlock, Sys)));
        // In the pool, and busy.
        check(MIB, OWNER | 3, &ets, Some(("ets_alloc", MIB, MultiBlock, Sys)));
        let literal = allocator(b"literal_\0", [9, 2, 0]);
        check(MIB, OWNER, &literal, Some(("literal_alloc", MIB, MultiBlock, Sys)));
    }

    #[test]
    fn refuses_implausible_sizes() {
        let ets = allocator(b"ets_\0", [7, 4, 2]);
        for chdr in [0, 7, 4088, LARGEST, u64::MAX, (MIB + 8) | FROM_MSEG] {
            check(chdr, OWNER, &ets, None);
        }
    }

    #[test]
    fn refuses_owners_that_do_not_say_who_they_are() {
        for name in [&b"\0"[..], b"_\0", b"e_\0", b"ets\0", b"Ets_\0", b"e1s_\0", b"a_very_long_name_\0", b"ets_"] {
            check(MIB, OWNER, &allocator(name, [7, 4, 2]), None);
        }
        for numbers in [[0, 4, 2], [21, 4, 2], [7, 0, 2], [7, 5, 2], [7, 4, u32::MAX]] {
            check(MIB, OWNER, &allocator(b"ets_\0", numbers), None);
        }
        for owner in [0, 8, OWNER + 8, u64::MAX, !FLAGS] {
            check(MIB, owner, &allocator(b"ets_\0", [7, 4, 2]), None);
        }
    }

    #[test]
    fn reads_a_name_that_ends_with_its_page() {
        let mut image = allocator(b"", [7, 4, 2]);
        let at = NAME + PAGE - 7;
        image.put(OWNER + NAME_PREFIX, &at.to_le_bytes());
        image.put(at, b"eheap_\0");
        check(MIB, OWNER, &image, Some(("eheap_alloc", MIB, CarrierKind::MultiBlock, CarrierSource::Sys)));
    }

    #[test]
    fn fits_into_its_block() {
        let mut image = allocator(b"ets_\0", [7, 4, 2]);
        image.put(0x1000, &header(MIB, OWNER));
        assert!(find(Address(0x1000), MIB, &image).is_some());
        assert!(find(Address(0x1000), MIB - 1, &image).is_none(), "what is left of an older carrier");
        assert!(find(Address(0x1008), MIB, &image).is_none(), "ends in unreadable memory");
        assert!(find(Address(u64::MAX), MIB, &image).is_none());
    }

    proptest! {
        #[test]
        fn any_header_is_refused_or_plausible(header: [u8; HEADER_BYTES], to_owner: bool) {
            let mut header = header;
            if to_owner {
                header[24..].copy_from_slice(&OWNER.to_le_bytes());
            }
            if let Some(carrier) = recognise(&header, &allocator(b"ets_\0", [7, 4, 2])) {
                prop_assert!((SMALLEST..LARGEST).contains(&carrier.bytes));
            }
        }
    }
}
