//! Which implementation of `malloc` do the process's calls really reach, and where are its functions?

use std::{collections::BTreeSet, path::PathBuf};

use beamscope_probe::Function;
use object::{Object as _, ObjectSymbol as _, ObjectSymbolTable as _, RelocationTarget, SymbolKind};
use thiserror::Error;

use super::{
    elf::{Elf, ElfAddress, FileOffset, ModuleError, ModuleFile, bytes_at, file_offset},
    maps::Maps,
    memory::{ProcessMemory, ReadMemory as _},
    node::Libc,
    process::Target,
};
use crate::mapping::{Address, Backing};

/// Bytes of code that are reported of each function: enough to find a place for a probe in the prologue.
pub const CODE_BYTES: u64 = 64;

/// An object of the process that serves allocation functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Its path in the process's mount namespace.
    pub path: String,
    /// A path to the same file from here, which the kernel takes for uprobes.
    pub attach_path: PathBuf,
    /// Last component of its path: `libc.so.6`.
    pub name: String,
    /// What is added to an [`ElfAddress`] to get an address in the process, modulo 2^64.
    pub bias: u64,
    /// Its functions, in the order of [`Function::ALL`]; aliases of one function once.
    pub functions: Vec<Located>,
}

/// An allocation function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Which.
    pub function: Function,
    /// Where it begins in the file's addresses.
    pub address: ElfAddress,
    /// Where it begins in the file.
    pub offset: FileOffset,
    /// Its size, 0 where the file does not say.
    pub size: u64,
    /// Its first [`CODE_BYTES`] bytes, fewer where it or its segment is shorter.
    pub code: Vec<u8>,
}

/// What was found, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Allocators {
    /// The objects that serve the process's calls; the C library among them for `mmap` and its kin.
    pub serving: Vec<Allocator>,
    /// Whether the process's own pointers said so. If not, the order in which a loader looks for symbols did.
    pub resolved: bool,
    /// Objects that could not be read, and why.
    pub unread: Vec<ModuleError>,
}

/// Why allocations cannot be followed.
#[derive(Debug, Error)]
pub enum AllocatorError {
    /// No object has a symbol for `malloc`.
    #[error(
        "no object of process {pid} has a symbol for malloc, so that its calls cannot be followed; use a VM that is \
         linked dynamically or not stripped"
    )]
    NoMalloc {
        /// The process.
        pid: u32,
        /// Objects that could not be read: it may be in one of them.
        unread: Vec<ModuleError>,
    },
}

/// Finds the objects that the calls of `target` reach.
pub fn find(target: &Target, maps: &Maps) -> Result<Allocators, AllocatorError> {
    let (modules, unread) = modules(target, maps);
    match among(&modules, target.memory()) {
        Some((serving, resolved)) => Ok(Allocators { serving, resolved, unread }),
        None => Err(AllocatorError::NoMalloc { pid: target.pid(), unread }),
    }
}

/// The objects among `modules` that serve calls, and whether the process's pointers said so. None where none has a
/// `malloc`.
fn among(modules: &[ModuleFile], memory: &ProcessMemory) -> Option<(Vec<Allocator>, bool)> {
    let objects: Vec<_> = modules.iter().filter_map(Object::of).collect();
    let served = serving(&objects, memory);
    let resolved = !served.is_empty();
    let chosen = if resolved { served } else { first_definer(&objects) };
    let libc = libc(&objects);
    // An allocator that was put before the C library's may leave a function out, and its pointer is filled in only at
    // the first call: the C library serves it then.
    let left_out = |function| {
        let defines = |index: &usize| objects.get(*index).is_some_and(|object| object.defines(function));
        !chosen.iter().any(defines)
    };
    let serving: Vec<_> = objects
        .iter()
        .enumerate()
        .map(|(index, object)| {
            describe(object, |function| {
                let by_libc = libc == Some(index) && (is_mapping(function) || left_out(function));
                by_libc || (!is_mapping(function) && chosen.contains(&index))
            })
        })
        .filter(|allocator| !allocator.functions.is_empty())
        .collect();
    let mut functions = serving.iter().flat_map(|allocator| &allocator.functions);
    functions.any(|located| located.function == Function::Malloc).then_some((serving, resolved))
}

/// Whether a function is a system call's, which only the C library serves.
fn is_mapping(function: Function) -> bool {
    matches!(function, Function::Mmap | Function::Munmap | Function::Mremap | Function::Brk)
}

/// Every object with code in the process, the VM first.
fn modules(target: &Target, maps: &Maps) -> (Vec<ModuleFile>, Vec<ModuleError>) {
    let mut modules = vec![target.beam().clone()];
    let mut unread = Vec::new();
    for mapping in maps.mappings.iter().filter(|mapping| mapping.permissions.execute) {
        let Backing::File(path) = &mapping.backing else { continue };
        if modules.iter().all(|module| module.path != *path) {
            match target.module(maps, mapping) {
                Ok(module) => modules.push(module),
                // Other things are mapped executable as well.
                Err(ModuleError::Form { .. } | ModuleError::NoSegment { .. }) => {}
                Err(error) => unread.push(error),
            }
        }
    }
    (modules, unread)
}

/// A file of the process with code.
struct Object<'a> {
    module: &'a ModuleFile,
    elf: Elf<'a>,
    definitions: Vec<Definition>,
    /// Its C++ operators. Those of an allocator need not pass through its `malloc`.
    operators: Vec<Definition>,
}

/// A function that an object defines. There are several of one name where its versions differ.
#[derive(Clone, Copy)]
struct Definition {
    function: Function,
    address: ElfAddress,
    size: u64,
}

/// A pointer through which an object calls an allocation function.
struct Slot {
    at: Address,
    function: Function,
}

impl<'a> Object<'a> {
    fn of(module: &'a ModuleFile) -> Option<Self> {
        let elf = module.elf().ok()?;
        let defined = |named: fn(&[u8]) -> Option<Function>| {
            elf.dynamic_symbols()
                .chain(elf.symbols())
                .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
                .filter_map(|symbol| {
                    let function = named(symbol.name_bytes().ok()?)?;
                    Some(Definition { function, address: ElfAddress(symbol.address()), size: symbol.size() })
                })
                .collect()
        };
        let (definitions, operators) = (defined(named), defined(operator));
        Some(Self { module, elf, definitions, operators })
    }

    fn defines(&self, function: Function) -> bool {
        self.definitions.iter().any(|definition| definition.function == function)
    }

    fn defines_at(&self, function: Function, at: Address) -> bool {
        let at = self.module.elf_address(at);
        self.definitions.iter().any(|definition| definition.function == function && definition.address == at)
    }

    /// Where it keeps its pointers to allocation functions.
    fn slots(&self) -> Vec<Slot> {
        let Some(symbols) = self.elf.dynamic_symbol_table() else { return Vec::new() };
        let slot = |(at, relocation): (u64, object::Relocation)| {
            let RelocationTarget::Symbol(index) = relocation.target() else { return None };
            let function = named(symbols.symbol_by_index(index).ok()?.name_bytes().ok()?)?;
            let at = self.module.address(ElfAddress(at));
            (!is_mapping(function)).then_some(Slot { at, function })
        };
        self.elf.dynamic_relocations().into_iter().flatten().filter_map(slot).collect()
    }

    /// Whether it was linked to an allocator of its own, so that its calls need no pointer: a NIF with jemalloc inside.
    fn is_bound_to_itself(&self, slots: &[Slot]) -> bool {
        // The loader of glibc before 2.35 has a small `malloc` for the time before the C library is there.
        let is_loader = ["ld-linux", "ld64", "ld-2.", "ld.so"].iter().any(|name| self.module.name().starts_with(name));
        let has_pointer = slots.iter().any(|slot| slot.function == Function::Malloc);
        self.defines(Function::Malloc) && self.defines(Function::Free) && !has_pointer && !is_loader
    }
}

/// The objects that serve calls, by the pointers that the loader has filled in.
fn serving(objects: &[Object<'_>], memory: &ProcessMemory) -> Vec<usize> {
    let slots: Vec<_> = objects.iter().map(Object::slots).collect();
    let all: Vec<_> = slots.iter().flatten().collect();
    let ranges: Vec<_> = all.iter().map(|slot| (slot.at, size_of::<u64>())).collect();
    let values = memory.read_many(&ranges).into_iter().zip(all);
    let pointed = values.filter_map(|(value, slot)| {
        let value = Address(u64::from_le_bytes(value.ok()?.try_into().ok()?));
        // A pointer that is not filled in yet leads into its owner's linkage table, where nothing is defined.
        objects.iter().position(|object| object.defines_at(slot.function, value))
    });
    let mut serving: BTreeSet<_> = pointed.collect();
    // An object that nothing points to serves itself alone. Where nobody has a pointer, this finds nothing out.
    if !serving.is_empty() {
        let bound = objects.iter().zip(&slots).enumerate();
        serving.extend(bound.filter(|(_, (object, slots))| object.is_bound_to_itself(slots)).map(|(index, _)| index));
    }
    serving.into_iter().collect()
}

/// Whether `file` was linked to an allocator of its own, which its calls reach without a pointer.
pub fn brings_its_own(file: &ModuleFile) -> bool {
    Object::of(file).is_some_and(|object| object.is_bound_to_itself(&object.slots()))
}

/// The C++ operator that a symbol is, by the Itanium C++ ABI (5.1.4.1 and 5.1.5): all kinds of `new` have the size as
/// their first parameter, all kinds of `delete` the address.
fn operator(name: &[u8]) -> Option<Function> {
    let begins = |begins: [&[u8]; 2]| begins.iter().any(|begin| name.starts_with(begin));
    if begins([b"_Znwm", b"_Znam"]) {
        Some(Function::OperatorNew)
    } else {
        begins([b"_ZdlPv", b"_ZdaPv"]).then_some(Function::Free)
    }
}

fn named(name: &[u8]) -> Option<Function> {
    // What the VM serves goes through its own allocators.
    let of_libc = |function: &Function| !function.is_vm_api() && *function != Function::MsegAlloc;
    Function::ALL.into_iter().filter(of_libc).find(|function| function.name().as_bytes() == name)
}

/// What a loader would find first: the executable, then the libraries, the C library last.
fn first_definer(objects: &[Object<'_>]) -> Vec<usize> {
    let libc = libc(objects);
    let others = (0..objects.len()).filter(|&index| Some(index) != libc);
    let defines = |&index: &usize| objects.get(index).is_some_and(|object| object.defines(Function::Malloc));
    others.chain(libc).find(defines).into_iter().collect()
}

/// The object with the wrappers of system calls; the executable where it is static.
fn libc(objects: &[Object<'_>]) -> Option<usize> {
    let named = objects.iter().position(|object| Libc::of(object.module.name()).is_some());
    named.or_else(|| objects.iter().position(|object| object.defines(Function::Mmap)))
}

fn describe(object: &Object<'_>, wanted: impl Fn(Function) -> bool) -> Allocator {
    let Object { module, elf, definitions, operators } = object;
    let mut definitions: Vec<_> = definitions.iter().filter(|definition| wanted(definition.function)).collect();
    if definitions.iter().any(|definition| definition.function == Function::Malloc) {
        definitions.extend(operators);
    }
    definitions.sort_by_key(|definition| (definition.function, definition.address));
    let mut functions: Vec<Located> = Vec::new();
    for &&Definition { function, address, size } in &definitions {
        let Some(located) = located(elf, function, address, size) else { continue };
        if functions.iter().all(|other| other.address != address) {
            functions.push(located);
        }
    }
    Allocator {
        path: module.path.clone(),
        attach_path: module.attach_path.clone(),
        name: module.name().to_owned(),
        bias: module.bias,
        functions,
    }
}

/// The function at `address` of a file.
pub(super) fn located(elf: &Elf<'_>, function: Function, address: ElfAddress, size: u64) -> Option<Located> {
    let (offset, left) = file_offset(elf, address)?;
    let length = if size == 0 { left } else { size }.min(CODE_BYTES);
    let code = bytes_at(elf, address, length)?.to_vec();
    Some(Located { function, address, offset, size, code })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::maps;

    fn own() -> (Vec<ModuleFile>, ProcessMemory) {
        let maps = maps::parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        let memory = ProcessMemory::new(nix::unistd::Pid::this());
        let mut modules: Vec<ModuleFile> = Vec::new();
        for mapping in maps.mappings.iter().filter(|mapping| mapping.permissions.execute) {
            if let Ok(module) = ModuleFile::open("/proc/self", &maps, mapping, &memory) {
                modules.push(module);
            }
        }
        (modules, memory)
    }

    #[test]
    fn this_program_is_served_by_its_libc() {
        let (modules, memory) = own();
        let (serving, resolved) = among(&modules, &memory).unwrap();
        assert!(resolved);
        let [libc] = serving.as_slice() else { panic!("one C library, found {serving:?}") };
        assert!(Libc::of(&libc.name).is_some(), "{}", libc.name);
        let functions: Vec<_> = libc.functions.iter().map(|located| located.function).collect();
        for function in [Function::Malloc, Function::Free, Function::Realloc, Function::Mmap, Function::Brk] {
            assert!(functions.contains(&function), "{function:?} in {functions:?}");
        }
        for located in &libc.functions {
            let mut live = vec![0; located.code.len()];
            memory.read(Address(located.address.0.wrapping_add(libc.bias)), &mut live).unwrap();
            assert_eq!(live, located.code, "{:?}", located.function);
        }
    }

    #[test]
    fn aliases_are_reported_once() {
        let (modules, memory) = own();
        let (serving, _) = among(&modules, &memory).unwrap();
        let mut addresses: Vec<_> = serving[0].functions.iter().map(|located| located.address).collect();
        addresses.sort();
        assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn without_pointers_the_first_definer_is_taken() {
        let (modules, _) = own();
        let elsewhere = ProcessMemory::new(nix::unistd::Pid::from_raw(i32::MAX));
        let (serving, resolved) = among(&modules, &elsewhere).unwrap();
        assert!(!resolved);
        assert_eq!(serving.len(), 1);
        assert!(among(&modules[..1], &elsewhere).is_none(), "this program itself has no malloc");
    }

    #[test]
    fn without_a_symbol_the_next_step_is_said() {
        let error = AllocatorError::NoMalloc { pid: 7, unread: Vec::new() };
        assert_eq!(
            error.to_string(),
            "no object of process 7 has a symbol for malloc, so that its calls cannot be followed; use a VM that is \
             linked dynamically or not stripped"
        );
    }
}
