//! Which functions do the unwind tables of a file describe?

use gimli::{BaseAddresses, CieOrFde, EndianSlice, FrameDescriptionEntry, LittleEndian, UnwindOffset, UnwindSection};

use crate::target::sections::{Section, UnwindSections};

/// Bytes of a table.
pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// What a table says of one function.
pub(super) type Function<'a> = FrameDescriptionEntry<Bytes<'a>>;

/// Longest common entry that is read. Those of compilers have some 30 bytes; it is run once for each function.
const LONGEST_COMMON_ENTRY: usize = 1024;

/// Bytes of an address in the files that are read.
const ADDRESS_SIZE: u8 = 8;

/// What addresses in the tables are relative to.
pub(super) fn bases(sections: &UnwindSections) -> BaseAddresses {
    let mut bases = BaseAddresses::default();
    let start = |section: &Option<Section>| section.as_ref().map(|section| section.addresses.start);
    if let Some(at) = start(&sections.eh_frame) {
        bases = bases.set_eh_frame(at);
    }
    if let Some(at) = start(&sections.text) {
        bases = bases.set_text(at);
    }
    if let Some(at) = start(&sections.got) {
        bases = bases.set_got(at);
    }
    bases
}

/// Shows all functions that `table` describes, in its order. What stands behind a place where it is broken is not
/// shown.
pub(super) fn functions<'a, S>(table: &S, bases: &BaseAddresses, mut visit: impl FnMut(&Function<'a>))
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    let mut entries = table.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else { continue };
        let function = partial.parse(|table, bases, at| {
            let common = table.cie_from_offset(bases, at)?;
            let is_usable = common.entry_len() <= LONGEST_COMMON_ENTRY && common.address_size() == ADDRESS_SIZE;
            if is_usable { Ok(common) } else { Err(gimli::Error::UnsupportedAddressSize(common.address_size())) }
        });
        if let Ok(function) = function {
            visit(&function);
        }
    }
}
