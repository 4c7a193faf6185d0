//! What does the kernel say of a node at this moment? Gathers [`ProcessView`].

use std::{collections::BTreeMap, io, sync::Arc, time::SystemTime};

use object::{Object as _, ObjectSymbol as _};

use super::{
    elf::ModuleFile,
    limits,
    maps::Maps,
    node::Libc,
    pagemap::{self, Pagemap},
    process::{Target, TargetError},
};
use crate::{
    extents::Extents,
    mapping::{Address, Mapping},
    view::{MappedMemory, ProcessView, Residency, Symbol},
};

/// Symbols of the VM that tell where a structure is (OTP-23.2.6 to OTP-27.3.4.1; hidden since OTP 29).
const SYMBOLS: [&str; 4] = ["erts_allctrs_info", "erts_alc_n2td", "erts_dflt_mmapper", "erts_literal_mmapper"];

/// What is known of a node at one moment, and the contents of the files in which its structures lie.
#[derive(Debug)]
pub struct Viewed {
    /// What the kernel says.
    pub view: ProcessView,
    /// Contents of the VM's executable and of the C library, by their paths in the mappings.
    pub files: Vec<(String, Arc<[u8]>)>,
}

/// Looks at `target`.
pub fn take(target: &Target) -> Result<Viewed, TargetError> {
    let mut defects = Vec::new();
    let mappings = target.mapped_memory()?;
    let maps = target.maps()?;
    let beam = target.beam();
    let libc = libc(target, &maps, &mut defects);
    let mut files = vec![(beam.path.clone(), Arc::clone(&beam.bytes))];
    files.extend(libc.as_ref().map(|file| (file.path.clone(), Arc::clone(&file.bytes))));
    let pages = pages(target, &mappings, &mut defects);
    let figures = target.snapshot(0.0)?;
    let threads = target.threads().unwrap_or_else(|error| {
        defects.push(format!("the node's threads cannot be listed, so their stacks have no owner: {error}"));
        Vec::new()
    });
    let limits = Some(limits::take(target.folder(), &mut defects));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let view = ProcessView {
        node: target.node().clone(),
        taken_unix: now.map_or(0, |since| since.as_secs()),
        page_size: procfs::page_size(),
        figures,
        resident: pages.resident,
        swapped: pages.swapped,
        lazily_freed: pages.lazily_freed,
        mappings,
        threads,
        beam: beam.path.clone(),
        libc: libc.map(|file| file.path),
        symbols: symbols(beam),
        limits,
        defects,
    };
    Ok(Viewed { view, files })
}

fn libc(target: &Target, maps: &Maps, defects: &mut Vec<String>) -> Option<ModuleFile> {
    let is_libc = |mapping: &&Mapping| mapping.file_name().is_some_and(|name| Libc::of(name).is_some());
    let mapping = maps.mappings.iter().filter(|mapping| mapping.permissions.execute).find(is_libc)?;
    match target.module(maps, mapping) {
        Ok(file) => Some(file),
        Err(error) => {
            defects.push(format!("the C library cannot be read: {:#}", anyhow::Error::new(error)));
            None
        }
    }
}

pub(super) fn symbols(beam: &ModuleFile) -> BTreeMap<String, Symbol> {
    let Ok(elf) = beam.elf() else { return BTreeMap::new() };
    elf.dynamic_symbols()
        .chain(elf.symbols())
        .filter(object::ObjectSymbol::is_definition)
        .filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| SYMBOLS.contains(name))?;
            let address = Address(symbol.address().wrapping_add(beam.bias));
            Some((name.to_owned(), Symbol { address, size: symbol.size() }))
        })
        .collect()
}

struct Pages {
    resident: Residency,
    swapped: Extents,
    lazily_freed: Option<Extents>,
}

fn pages(target: &Target, mappings: &[MappedMemory], defects: &mut Vec<String>) -> Pages {
    match by_page(target, mappings, defects) {
        Ok(pages) => pages,
        Err(error) => {
            defects.push(format!(
                "which pages are resident cannot be read ({error}): each mapping's resident bytes are taken to be spread \
                 evenly over it; run beamscope as root"
            ));
            let whole = |memory: &MappedMemory| (memory.mapping.start.0, memory.mapping.end.0, memory.rss);
            Pages {
                resident: Residency::Mappings(mappings.iter().map(whole).collect()),
                swapped: Extents::default(),
                lazily_freed: None,
            }
        }
    }
}

fn by_page(target: &Target, mappings: &[MappedMemory], defects: &mut Vec<String>) -> io::Result<Pages> {
    let pagemap = Pagemap::open(target.folder())?;
    let (mut resident, mut swapped) = (Extents::default(), Extents::default());
    let mut frames = Vec::new();
    let mut frames_are_known = true;
    for memory in mappings {
        let MappedMemory { mapping, rss, swap, lazy_free, .. } = memory;
        // Reservations are long and empty; what was not resident a moment ago is not looked at.
        if *rss == 0 && *swap == 0 {
            continue;
        }
        let mut pages = match pagemap.pages(mapping.start.0..mapping.end.0, *lazy_free > 0) {
            Ok(pages) => pages,
            // The last page of the address space has none, and a mapping may have gone.
            Err(_) if matches!(&mapping.backing, crate::mapping::Backing::Kernel(_)) => continue,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                defects.push(format!("{rss} bytes in the mapping at {} have no owner: {error}", mapping.start));
                continue;
            }
            Err(error) => return Err(error),
        };
        // The page of zeros is not in the mapping's RSS: where that is what is too much, the doubtful pages are it.
        if pages.resident.total() > *rss && pages.doubtful.total() > 0 {
            let sure = pages.resident.iter().flat_map(|range| without(range, &pages.doubtful));
            pages.resident = sure.collect();
        }
        for range in &pages.resident {
            resident.push(range.clone());
        }
        // Markers of guard pages and of pages that are being moved look like swapped ones, and are not in `Swap`.
        for range in pages.swapped.iter().filter(|_| *swap > 0) {
            swapped.push(range.clone());
        }
        frames_are_known &= *lazy_free == 0 || !pages.frames.is_empty();
        frames.append(&mut pages.frames);
    }
    let lazily_freed = match frames_are_known.then(|| pagemap::lazily_freed(frames, procfs::page_size())) {
        Some(Ok(pages)) => Some(pages),
        Some(Err(error)) => {
            defects.push(format!("which pages are lazily freed cannot be read from /proc/kpageflags: {error}"));
            None
        }
        None => None,
    };
    Ok(Pages { resident: Residency::Pages(resident), swapped, lazily_freed })
}

/// The parts of `range` that are not in `taken`.
fn without(range: &std::ops::Range<u64>, taken: &Extents) -> Vec<std::ops::Range<u64>> {
    let mut parts = Vec::new();
    let mut at = range.start;
    for part in taken.parts_in(range.clone()) {
        parts.push(at..part.start);
        at = part.end;
    }
    parts.push(at..range.end);
    parts
}
