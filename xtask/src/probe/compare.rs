//! Do two BPF objects hold the same programs, relocations and maps? Debug information is not compared.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionFlags, SectionIndex, SymbolIndex, elf,
};

/// What differs between the object that is checked in and the one just built, one line for each thing.
pub(super) fn differences(name: &str, checked_in: &[u8], built: &[u8]) -> Result<Vec<String>> {
    let old = Parts::of(checked_in).with_context(|| format!("the checked-in {name} is not an ELF object"))?;
    let new = Parts::of(built).with_context(|| format!("the built {name} is not an ELF object"))?;
    let mut lines = Vec::new();
    compare(name, "section", &old.sections, &new.sections, &mut lines);
    compare(name, "relocations of section", &old.relocations, &new.relocations, &mut lines);
    compare(name, "symbol", &old.symbols, &new.symbols, &mut lines);
    Ok(lines)
}

/// What the kernel or the loader sees of an object.
struct Parts {
    /// Contents by name; the zeroes of a section without contents count as its length.
    sections: BTreeMap<String, Vec<u8>>,
    /// Where each points to: offset, type, target.
    relocations: BTreeMap<String, Vec<(u64, u32, String)>>,
    /// Section, address and size of global symbols: programs and maps.
    symbols: BTreeMap<String, (String, u64, u64)>,
}

impl Parts {
    fn of(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes)?;
        let mut parts = Self { sections: BTreeMap::new(), relocations: BTreeMap::new(), symbols: BTreeMap::new() };
        for section in file.sections() {
            let name = section.name()?.to_owned();
            let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
            if !sh_flags.contains(elf::SHF_ALLOC) && name != "maps" && name != ".maps" {
                continue;
            }
            let mut content = section.size().to_le_bytes().to_vec();
            content.extend(section.data()?);
            let relocations = section.relocations().map(|(offset, relocation)| {
                let object::RelocationFlags::Elf { r_type, .. } = relocation.flags() else {
                    anyhow::bail!("a relocation that is not of ELF");
                };
                Ok((offset, r_type.0, target_name(&file, relocation.target())?))
            });
            let mut relocations = relocations.collect::<Result<Vec<_>>>()?;
            relocations.sort();
            parts.relocations.insert(name.clone(), relocations);
            parts.sections.insert(name, content);
        }
        for symbol in file.symbols().filter(|symbol| symbol.is_global() && symbol.is_definition()) {
            let section = section_name(&file, symbol.section_index())?;
            parts.symbols.insert(symbol.name()?.to_owned(), (section, symbol.address(), symbol.size()));
        }
        Ok(parts)
    }
}

/// Local symbols carry a hash of the compiler and of the build in their names, so they are named by their place.
fn target_name(file: &object::File<'_>, target: RelocationTarget) -> Result<String> {
    match target {
        RelocationTarget::Symbol(index) => symbol_name(file, index),
        RelocationTarget::Section(index) => section_name(file, Some(index)),
        other => Ok(format!("{other:?}")),
    }
}

fn symbol_name(file: &object::File<'_>, index: SymbolIndex) -> Result<String> {
    let symbol = file.symbol_by_index(index)?;
    if symbol.is_global() {
        return Ok(symbol.name()?.to_owned());
    }
    Ok(format!("{}+{:#x}", section_name(file, symbol.section_index())?, symbol.address()))
}

fn section_name(file: &object::File<'_>, index: Option<SectionIndex>) -> Result<String> {
    Ok(match index {
        Some(index) => file.section_by_index(index)?.name()?.to_owned(),
        None => "no section".to_owned(),
    })
}

fn compare<T: PartialEq>(
    file: &str,
    kind: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    lines: &mut Vec<String>,
) {
    for (name, old) in old {
        match new.get(name) {
            None => lines.push(format!("{file}: {kind} {name} is checked in, but not built")),
            Some(new) if new != old => lines.push(format!("{file}: {kind} {name} differs")),
            Some(_) => {}
        }
    }
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        lines.push(format!("{file}: {kind} {name} is built, but not checked in"));
    }
}
