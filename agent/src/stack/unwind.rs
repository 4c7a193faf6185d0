//! Which return addresses lie on a captured stack: walks it by the unwind tables of the modules, without frame pointers.

use std::{fmt, ops::Range};

use beamscope_probe::{ErlangEnd, NATIVE_FRAMES, StackImage};
use framehop::{
    CacheNative, Error, ExplicitModuleSectionInfo, FrameAddress, MayAllocateDuringUnwind, Module, UnwindRegsNative,
    Unwinder as _, UnwinderNative,
};
use gimli::{DebugFrame, EhFrame, LittleEndian};

use super::{
    StackEnd, cfi,
    raw::{self, Captured, RawErlang, RawStack},
};
use crate::{
    mapping::{Address, Mappings},
    target::sections::{Section, SectionBytes, UnwindSections},
};

/// Walks the stacks of one process.
pub struct Unwinder {
    tables: UnwinderNative<SectionBytes, MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
    modules: Vec<CodeModule>,
    mappings: Mappings,
}

/// A file's code in memory.
struct CodeModule {
    code: Range<u64>,
    /// Addresses in memory that its unwind tables cover, sorted. Elsewhere framehop would take the frame pointer for one
    /// that code without frame pointers has long used for something else.
    covered: Vec<Range<u64>>,
}

impl fmt::Debug for Unwinder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unwinder({} modules)", self.modules.len())
    }
}

impl Default for Unwinder {
    fn default() -> Self {
        Self {
            tables: UnwinderNative::new(),
            cache: CacheNative::new(),
            modules: Vec::new(),
            mappings: Mappings::default(),
        }
    }
}

impl Unwinder {
    /// Adds a file's code that is mapped at `code`; addresses in memory are `bias` above those that the file states.
    /// A module that was there before and has been unmapped meanwhile is replaced.
    pub fn add_module(&mut self, name: String, code: Range<u64>, bias: u64, tables: UnwindSections) {
        self.remove_modules(&code);
        let covered = covered(&tables, bias);
        let UnwindSections { eh_frame, eh_frame_hdr, debug_frame, text, plt: _, got } = tables;
        let (eh_frame_svma, eh_frame) = split(eh_frame);
        let (eh_frame_hdr_svma, eh_frame_hdr) = split(eh_frame_hdr);
        let (_, debug_frame) = split(debug_frame);
        let (text_svma, text) = split(text);
        let sections = ExplicitModuleSectionInfo {
            eh_frame_svma,
            eh_frame,
            eh_frame_hdr_svma,
            eh_frame_hdr,
            debug_frame,
            text_svma,
            text,
            got_svma: got.map(|got| got.addresses),
            ..ExplicitModuleSectionInfo::default()
        };
        self.modules.push(CodeModule { code: code.clone(), covered });
        self.tables.add_module(Module::new(name, code, bias, sections));
    }

    /// Sets the mappings by which code is told from other addresses.
    pub fn set_mappings(&mut self, mappings: Mappings) {
        self.mappings = mappings;
    }

    /// Takes away what was added for addresses in `code`.
    pub fn remove_modules(&mut self, code: &Range<u64>) {
        let overlaps = |old: &mut CodeModule| old.code.start < code.end && code.start < old.code.end;
        let removed: Vec<CodeModule> = self.modules.extract_if(.., overlaps).collect();
        for old in removed {
            self.tables.remove_module(old.code.start);
        }
    }

    fn is_covered(&self, address: u64) -> bool {
        self.modules.iter().filter(|module| module.code.contains(&address)).any(|module| {
            let after = module.covered.partition_point(|range| range.start <= address);
            after.checked_sub(1).and_then(|at| module.covered.get(at)).is_some_and(|range| range.contains(&address))
        })
    }

    /// Whether `address` lies in no mapping that is known: the mappings are out of date then.
    pub fn is_unmapped(&self, address: u64) -> bool {
        self.mappings.find(Address(address)).is_none()
    }

    /// Walks a captured stack. `code` is where the VM's code at run time lies. Also says the address at which the walk ended
    /// because no code is known there.
    pub fn unwind(
        &mut self,
        captured: &Captured<'_>,
        code: &Range<u64>,
        leaf_is_return: bool,
    ) -> (RawStack, Option<u64>) {
        let Captured { image, stack, erlang } = captured;
        let (addresses, end, left_at) = self.walk(image, stack, leaf_is_return);
        let erlang_end = ErlangEnd::try_from(image.erlang_end).unwrap_or(ErlangEnd::Implausible);
        let stack = RawStack {
            leaf_is_return,
            end,
            erlang: RawErlang::of_words(image.current, erlang, erlang_end, code, addresses.len()),
            addresses,
            scheduler: raw::scheduler(image.scheduler),
            driver: Address(image.driver),
        };
        (stack, left_at)
    }

    /// Where a function returns to whose return is probed: the kernel's trampoline stands in place of it.
    fn behind_trampoline(&self, at: u64, image: &StackImage, stack_pointer: u64) -> Option<FrameAddress> {
        if self.is_covered(at) {
            return None;
        }
        let returns =
            image.returns.iter().find(|returns| returns.address != 0 && returns.stack_pointer == stack_pointer)?;
        FrameAddress::from_return_address(returns.address)
    }

    fn walk(
        &mut self,
        image: &StackImage,
        bytes: &[u8],
        leaf_is_return: bool,
    ) -> (Vec<Address>, StackEnd, Option<u64>) {
        let captured = usize::try_from(image.captured).unwrap_or(0).min(bytes.len());
        let bytes = bytes.get(..captured).unwrap_or_default();
        let mut addresses = Vec::new();
        let mut end = StackEnd::NoUnwindInformation;
        let mut truncated = false;
        let mut read = |address: u64| {
            let word = stack_word(bytes, image.stack_pointer, address);
            truncated |= word.is_none();
            word.ok_or(())
        };
        let Some(mut address) = frame_address(image.instruction_pointer, leaf_is_return) else {
            return (addresses, end, None);
        };
        let mut left_at = None;
        let mut trampolines = image.returns.len();
        let mut registers = registers(image);
        loop {
            let pc = address.address();
            let lookup = address.address_for_lookup();
            if trampolines > 0
                && let Some(next) = self.behind_trampoline(lookup, image, registers.sp())
            {
                trampolines -= 1;
                address = next;
                continue;
            }
            addresses.push(Address(pc));
            let Some(mapping) = self.mappings.find(Address(lookup)).filter(|mapping| mapping.permissions.execute)
            else {
                left_at = Some(lookup);
                break;
            };
            if mapping.is_jit() {
                end = StackEnd::Jit;
                break;
            }
            if !self.is_covered(lookup) {
                break;
            }
            if addresses.len() >= NATIVE_FRAMES {
                end = StackEnd::Truncated;
                break;
            }
            match self.tables.unwind_frame(address, &mut registers, &mut self.cache, &mut read) {
                Ok(Some(caller)) => match frame_address(caller, true) {
                    Some(next) => address = next,
                    None => break,
                },
                Ok(None) | Err(Error::ReturnAddressIsNull) => {
                    end = StackEnd::Root;
                    break;
                }
                Err(_) => break,
            }
        }
        if end == StackEnd::NoUnwindInformation && truncated {
            end = StackEnd::Truncated;
        }
        (addresses, end, left_at)
    }
}

/// The functions for which `tables` say how to unwind, by their addresses in memory.
fn covered(tables: &UnwindSections, bias: u64) -> Vec<Range<u64>> {
    let bases = cfi::bases(tables);
    let mut covered = Vec::new();
    let mut add = |function: &cfi::Function<'_>| {
        let begin = function.initial_address().wrapping_add(bias);
        if let Some(end) = begin.checked_add(function.len()) {
            covered.push(begin..end);
        }
    };
    if let Some(section) = &tables.eh_frame {
        cfi::functions(&EhFrame::new(&section.bytes, LittleEndian), &bases, &mut add);
    }
    if let Some(section) = &tables.debug_frame {
        cfi::functions(&DebugFrame::new(&section.bytes, LittleEndian), &bases, &mut add);
    }
    covered.sort_by_key(|range| range.start);
    covered
}

fn split(section: Option<Section>) -> (Option<Range<u64>>, Option<SectionBytes>) {
    section.map(|Section { addresses, bytes }| (addresses, bytes)).unzip()
}

fn frame_address(address: u64, is_return: bool) -> Option<FrameAddress> {
    if is_return {
        FrameAddress::from_return_address(address)
    } else {
        Some(FrameAddress::from_instruction_pointer(address))
    }
}

/// The word at `address` in an image that begins at the page of `stack_pointer` and is filled in from that on.
fn stack_word(image: &[u8], stack_pointer: u64, address: u64) -> Option<u64> {
    /// The probe reads in chunks of this many bytes, whatever the size of a page.
    const CHUNK: u64 = 4096;
    if address < stack_pointer {
        return None;
    }
    let begin = stack_pointer - stack_pointer % CHUNK;
    let offset = usize::try_from(address - begin).ok()?;
    let word = image.get(offset..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*word))
}

#[cfg(target_arch = "x86_64")]
fn registers(image: &StackImage) -> UnwindRegsNative {
    UnwindRegsNative::new(image.instruction_pointer, image.stack_pointer, image.frame_pointer)
}

#[cfg(target_arch = "aarch64")]
fn registers(image: &StackImage) -> UnwindRegsNative {
    // Addresses have 48 bits in user space; what lies above them in a return address authenticates it.
    let mask = framehop::aarch64::PtrAuthMask::from_max_known_address((1 << 48) - 1);
    UnwindRegsNative::new_with_ptr_auth_mask(mask, image.link_register, image.stack_pointer, image.frame_pointer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_only_what_was_captured() {
        let mut image = vec![0; 4096];
        image[0x10..0x18].copy_from_slice(&7_u64.to_le_bytes());
        assert_eq!(stack_word(&image, 0x7000_0010, 0x7000_0010), Some(7));
        assert_eq!(stack_word(&image, 0x7000_0010, 0x7000_0008), None);
        assert_eq!(stack_word(&image, 0x7000_0010, 0x7000_0ff8), Some(0));
        assert_eq!(stack_word(&image, 0x7000_0010, 0x7000_0ff9), None);
        assert_eq!(stack_word(&image, 0x7000_0010, u64::MAX), None);
        assert_eq!(stack_word(&[], 0x7000_0010, 0x7000_0010), None);
    }

    #[test]
    fn a_stack_outside_all_mappings_ends_at_once() {
        let image = StackImage { instruction_pointer: 0x1234, captured: 4096, ..StackImage::default() };
        let captured = Captured { image, stack: &[0; 4096], erlang: Vec::new() };
        let (stack, left_at) = Unwinder::default().unwind(&captured, &(0..0), true);
        assert_eq!((stack.addresses.as_slice(), stack.end), (&[Address(0x1234)][..], StackEnd::NoUnwindInformation));
        assert_eq!(left_at, Some(0x1233));
    }
}
