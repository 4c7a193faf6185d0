//! Who asked for a tagged block, and what for?
//!
//! A tag holds the atom of the NIF's module or of the driver, or `system`, and the number of the allocation type
//! (`MAKE_ATAG` in `erl_alloc_util.c`, OTP-25.2.3; `PACK_ATAG_ID_TYPE`, OTP-27.3.4.1).

use super::{
    allocation_type::{AllocationTypes, AllocationTypesError},
    atom::{AtomTable, AtomTableError},
};
use crate::{target::memory::ReadMemory, view::ProcessView};

/// The names in allocation tags, as far as they were found.
#[derive(Debug)]
pub struct TagNames {
    /// Names of allocation types.
    pub types: Result<AllocationTypes, AllocationTypesError>,
    /// Names of NIFs and drivers.
    pub atoms: Result<AtomTable, AtomTableError>,
}

impl TagNames {
    /// Finds the tables of names.
    pub fn find(view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) -> Self {
        Self { types: AllocationTypes::find(view, memory), atoms: AtomTable::find(view, memory) }
    }

    /// Module of the NIF or name of the driver, and the allocation type.
    pub fn of(&self, tag: u64, memory: &(impl ReadMemory + ?Sized)) -> (Option<String>, Option<String>) {
        let Ok(types) = &self.types else { return (None, None) };
        let (atom, number) = types.decode(tag);
        let origin = self.atoms.as_ref().ok().and_then(|atoms| atoms.name(atom, memory));
        (origin, types.name(number).filter(|_| number > 0).map(str::to_owned))
    }
}
