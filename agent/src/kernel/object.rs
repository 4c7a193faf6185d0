//! The BPF object that is built into beamscope, and whether it may be loaded here.

use beamscope_probe::{ABI_VERSION, Architecture, CONTRACT_SECTION, Contract};
use object::{Object as _, ObjectSection as _};
use thiserror::Error;

/// The object for the machine that beamscope was compiled for.
#[cfg(target_arch = "x86_64")]
pub static PREBUILT: &[u8] = aya::include_bytes_aligned!("../../../probe/prebuilt/beamscope-probe-x86_64.o");
/// The object for the machine that beamscope was compiled for.
#[cfg(target_arch = "aarch64")]
pub static PREBUILT: &[u8] = aya::include_bytes_aligned!("../../../probe/prebuilt/beamscope-probe-aarch64.o");

/// The architecture that beamscope was compiled for.
#[cfg(target_arch = "x86_64")]
pub const HOST: Architecture = Architecture::X86_64;
/// The architecture that beamscope was compiled for.
#[cfg(target_arch = "aarch64")]
pub const HOST: Architecture = Architecture::Aarch64;

/// Why an object is refused.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// Not an ELF file.
    #[error("the BPF object is no ELF file; rebuild it with `cargo xtask probe`")]
    NotElf(#[source] object::Error),
    /// Nothing says what it is.
    #[error("the BPF object has no section {CONTRACT_SECTION}; rebuild it with `cargo xtask probe`")]
    NoContract,
    /// Its types are not this agent's.
    #[error(
        "the BPF object speaks version {found} of the contract, this beamscope {expected}; rebuild it with `cargo xtask probe`"
    )]
    AbiVersion {
        /// The object's.
        found: u32,
        /// This agent's.
        expected: u32,
    },
    /// It would read another machine's registers.
    #[error(
        "the BPF object is for the machine with ELF number {found}, this one has {expected} (62: x86_64, 183: aarch64)"
    )]
    Architecture {
        /// The object's.
        found: u32,
        /// This machine's.
        expected: u32,
    },
}

/// Checks that `bytes` is an object for `architecture` that speaks this agent's version of the contract.
///
/// The kernel cannot check it: an object for another architecture loads and attaches, and reports garbage.
pub fn check(bytes: &[u8], architecture: Architecture) -> Result<(), ObjectError> {
    let file = object::File::parse(bytes).map_err(ObjectError::NotElf)?;
    let section = file.section_by_name(CONTRACT_SECTION).ok_or(ObjectError::NoContract)?;
    let data = section.data().map_err(ObjectError::NotElf)?;
    let (contract, _) = super::wire::split_record::<Contract>(data).ok_or(ObjectError::NoContract)?;
    if contract.abi_version != ABI_VERSION {
        return Err(ObjectError::AbiVersion { found: contract.abi_version, expected: ABI_VERSION });
    }
    if contract.architecture != architecture as u32 {
        return Err(ObjectError::Architecture { found: contract.architecture, expected: architecture as u32 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    static X86_64: &[u8] = aya::include_bytes_aligned!("../../../probe/prebuilt/beamscope-probe-x86_64.o");
    static AARCH64: &[u8] = aya::include_bytes_aligned!("../../../probe/prebuilt/beamscope-probe-aarch64.o");

    #[test]
    fn takes_the_object_of_its_architecture_only() {
        assert!(check(X86_64, Architecture::X86_64).is_ok());
        assert!(check(AARCH64, Architecture::Aarch64).is_ok());
        assert!(matches!(
            check(AARCH64, Architecture::X86_64),
            Err(ObjectError::Architecture { found: 183, expected: 62 })
        ));
        assert!(matches!(check(X86_64, Architecture::Aarch64), Err(ObjectError::Architecture { .. })));
    }

    #[test]
    fn refuses_another_version_of_the_contract() {
        let contract = Contract { abi_version: ABI_VERSION, architecture: Architecture::X86_64 as u32 };
        let needle = bytemuck::bytes_of(&contract);
        let at = X86_64.windows(needle.len()).position(|window| window == needle).expect("the contract");
        let mut other = X86_64.to_vec();
        other[at] = 99;
        assert!(matches!(check(&other, Architecture::X86_64), Err(ObjectError::AbiVersion { found: 99, .. })));
    }

    #[test]
    fn refuses_what_is_no_object() {
        assert!(matches!(check(b"not an object", HOST), Err(ObjectError::NotElf(_))));
        let this = std::fs::read(std::env::current_exe().expect("own path")).expect("own file");
        assert!(matches!(check(&this, HOST), Err(ObjectError::NoContract)));
    }
}
