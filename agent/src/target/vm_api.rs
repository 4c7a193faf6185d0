//! Where are the functions by which native code asks the VM for memory, and those that give it back?

use beamscope_probe::Function;
use object::{Object as _, ObjectSymbol};
use thiserror::Error;

use super::{
    allocator::{Allocator, Located, located},
    elf::{Elf, ModuleError, ModuleFile},
    process::{Target, TargetError},
    resident::ResidentMemory,
    view::{self, Viewed},
};
use crate::erts::alloc::functions::{FunctionsError, free_functions};

/// The allocators that serve these functions (`DRV`, `NIF`, `DRV_BINARY` and `BINARY` in
/// `erl_alloc.types`, OTP-23.2.6 to OTP-27.3.4.1).
const ALLOCATORS: [&str; 2] = ["driver_alloc", "binary_alloc"];

/// What was found.
#[derive(Debug)]
pub struct VmApi {
    /// The VM's executable with these functions.
    pub functions: Allocator,
    /// Why frees of binaries and resources are not seen; `None`: they are.
    pub unseen: Option<FunctionsError>,
}

/// Why none of them can be followed.
#[derive(Debug, Error)]
pub enum VmApiError {
    /// The process could not be looked at.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Its executable could not be read.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

/// Finds them in `target`.
pub fn find(target: &Target) -> Result<VmApi, VmApiError> {
    let beam = target.beam();
    let elf = beam.elf()?;
    let Viewed { view, files } = view::take(target)?;
    let memory = ResidentMemory::new(target.memory(), &view, target.folder(), files);
    let frees = free_functions(&ALLOCATORS, &view, &memory);
    let mut functions = exported(&elf, |function| {
        let frees_by_address = matches!(function, Function::EnifFree | Function::DriverFree);
        function.is_vm_api() && !(frees_by_address && frees.is_ok())
    });
    let unseen = match frees {
        Ok(addresses) => {
            let found = addresses.into_iter().map(|at| located(&elf, Function::VmFree, beam.elf_address(at), 0));
            functions.extend(found.flatten());
            None
        }
        Err(error) => Some(error),
    };
    Ok(VmApi { functions: of_beam(beam, functions), unseen })
}

/// The function by which the VM's allocators ask for carriers, where the VM exports it: up to OTP 28.
pub fn carrier_requests(target: &Target) -> Result<Option<Allocator>, ModuleError> {
    let beam = target.beam();
    let functions = exported(&beam.elf()?, |function| function == Function::MsegAlloc);
    Ok((!functions.is_empty()).then(|| of_beam(beam, functions)))
}

/// The VM's functions that it exports and that are `wanted`.
fn exported(elf: &Elf<'_>, wanted: impl Fn(Function) -> bool) -> Vec<Located> {
    let named = |name: &[u8]| Function::ALL.into_iter().find(|function| function.name().as_bytes() == name);
    let symbols = elf.dynamic_symbols().filter(ObjectSymbol::is_definition);
    let found = symbols.filter_map(|symbol| {
        let function = named(symbol.name_bytes().ok()?).filter(|function| wanted(*function))?;
        located(elf, function, super::elf::ElfAddress(symbol.address()), symbol.size())
    });
    let mut functions: Vec<Located> = found.collect();
    functions.sort_by_key(|located| located.function);
    functions.dedup_by_key(|located| located.function);
    functions
}

fn of_beam(beam: &ModuleFile, functions: Vec<Located>) -> Allocator {
    Allocator {
        path: beam.path.clone(),
        attach_path: beam.attach_path.clone(),
        name: beam.name().to_owned(),
        bias: beam.bias,
        functions,
    }
}
