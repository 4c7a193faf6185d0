//! Where does a file say how its functions are to be unwound?

use std::{
    ops::{Deref, Range},
    sync::Arc,
};

use object::{Object as _, ObjectSection as _, elf, read::elf::ProgramHeader as _};

use super::elf::{Elf, ElfAddress, FileOffset, ModuleError, ModuleFile, file_offset};

/// What an unwinder needs of a file.
#[derive(Clone, Debug, Default)]
pub struct UnwindSections {
    /// `.eh_frame`
    pub eh_frame: Option<Section>,
    /// `.eh_frame_hdr`
    pub eh_frame_hdr: Option<Section>,
    /// `.debug_frame`, unless it is compressed.
    pub debug_frame: Option<Section>,
    /// `.text`; the first executable segment where the file has no section headers.
    pub text: Option<Section>,
    /// `.plt`
    pub plt: Option<Section>,
    /// `.got`
    pub got: Option<Section>,
}

/// A part of a file.
#[derive(Clone, Debug)]
pub struct Section {
    /// Where it stands in the file's addresses.
    pub addresses: Range<u64>,
    /// What it holds.
    pub bytes: SectionBytes,
}

/// Bytes of a [`ModuleFile`], not copied.
#[derive(Clone, Debug, Default)]
pub struct SectionBytes {
    file: Arc<[u8]>,
    range: Range<usize>,
}

impl From<Vec<u8>> for SectionBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { file: bytes.into(), range }
    }
}

impl Deref for SectionBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.file.get(self.range.clone()).unwrap_or_default()
    }
}

/// `DW_EH_PE_pcrel | DW_EH_PE_sdata4`, the form in which every linker writes the pointer to `.eh_frame`.
const POINTER_FORM: u8 = 0x1b;

impl UnwindSections {
    /// Finds them by the section headers, or by the program headers where the file has no others.
    pub fn of(module: &ModuleFile) -> Result<Self, ModuleError> {
        let elf = module.elf()?;
        let named = |name| section(module, &elf, name);
        let mut found = Self {
            eh_frame: named(".eh_frame"),
            eh_frame_hdr: named(".eh_frame_hdr"),
            debug_frame: named(".debug_frame"),
            text: named(".text"),
            plt: named(".plt"),
            got: named(".got"),
        };
        if found.eh_frame_hdr.is_none() {
            found.eh_frame_hdr = segment(module, &elf, |kind, _| kind == elf::PT_GNU_EH_FRAME);
        }
        if found.eh_frame.is_none() {
            found.eh_frame = found.eh_frame_hdr.as_ref().and_then(|header| behind(module, &elf, header));
        }
        if found.text.is_none() {
            found.text = segment(module, &elf, |kind, flags| kind == elf::PT_LOAD && flags.contains(elf::PF_X));
        }
        Ok(found)
    }
}

fn section(module: &ModuleFile, elf: &Elf<'_>, name: &str) -> Option<Section> {
    let section = elf.section_by_name(name)?;
    // Unwinders cannot read a compressed section; only `.debug_frame` is ever compressed.
    let range = section.compressed_file_range().ok()?;
    if range.format != object::CompressionFormat::None {
        return None;
    }
    part(module, section.address(), range.offset, range.compressed_size)
}

/// The first segment that `wanted` takes by type and flags.
fn segment(
    module: &ModuleFile,
    elf: &Elf<'_>,
    wanted: impl Fn(elf::ProgramType, elf::ProgramFlags) -> bool,
) -> Option<Section> {
    let endian = elf.endian();
    let header =
        elf.elf_program_headers().iter().find(|header| wanted(header.p_type(endian), header.p_flags(endian)))?;
    part(module, header.p_vaddr(endian), header.p_offset(endian), header.p_filesz(endian))
}

/// `.eh_frame`, to which `.eh_frame_hdr` points. It ends with a terminator, so that the end of its segment will do as
/// its own.
fn behind(module: &ModuleFile, elf: &Elf<'_>, header: &Section) -> Option<Section> {
    let [1, POINTER_FORM, _, _, pointer @ ..] = header.bytes.first_chunk::<8>()? else { return None };
    let start = header.addresses.start.checked_add(4)?.checked_add_signed(i64::from(i32::from_le_bytes(*pointer)))?;
    let (FileOffset(offset), length) = file_offset(elf, ElfAddress(start))?;
    part(module, start, offset, length)
}

fn part(module: &ModuleFile, address: u64, offset: u64, length: u64) -> Option<Section> {
    let from = usize::try_from(offset).ok()?;
    let range = from..from.checked_add(usize::try_from(length).ok()?)?;
    module.bytes.get(range.clone())?;
    let addresses = address..address.checked_add(length)?;
    Some(Section { addresses, bytes: SectionBytes { file: Arc::clone(&module.bytes), range } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ModuleFile {
        let bytes: Arc<[u8]> = std::fs::read("/proc/self/exe").unwrap().into();
        ModuleFile { path: "/proc/self/exe".into(), attach_path: "/proc/self/exe".into(), bytes, bias: 0 }
    }

    #[test]
    fn finds_the_sections_of_this_program() {
        let found = UnwindSections::of(&own()).unwrap();
        let header = found.eh_frame_hdr.unwrap();
        assert_eq!(header.bytes[..2], [1, POINTER_FORM]);
        assert!(found.eh_frame.is_some_and(|frame| frame.bytes.len() > 1000));
        assert!(found.text.is_some_and(|text| text.addresses.end - text.addresses.start == text.bytes.len() as u64));
    }

    #[test]
    fn a_file_without_section_headers_has_them_as_well() {
        let module = own();
        let with = UnwindSections::of(&module).unwrap();
        let mut bytes = module.bytes.to_vec();
        // e_shoff, then e_shnum and e_shstrndx.
        bytes[0x28..0x30].fill(0);
        bytes[0x3c..0x40].fill(0);
        let without = UnwindSections::of(&ModuleFile { bytes: bytes.into(), ..module }).unwrap();
        let (known, derived) = (with.eh_frame.unwrap(), without.eh_frame.unwrap());
        assert_eq!(known.addresses.start, derived.addresses.start);
        assert!(derived.bytes.starts_with(&known.bytes));
        assert_eq!(with.eh_frame_hdr.unwrap().addresses, without.eh_frame_hdr.unwrap().addresses);
        let (known, derived) = (with.text.unwrap().addresses, without.text.unwrap().addresses);
        assert!(derived.start <= known.start && known.end <= derived.end);
    }
}
