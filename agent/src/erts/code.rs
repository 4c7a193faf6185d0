//! Which code is the VM's own, and which part of it asks the operating system for memory?
//!
//! Names are evidence and wording, never the decision: most of these functions are static, and a stripped `beam.smp`
//! names none of them.

/// Begins of the names of functions between an Erlang allocation and the operating system, in OTP 23.2.6, 25.2.3 and
/// 27.3.4.1: `erts/emulator/sys/common/erl_{mmap,mseg}.c`, `erts/emulator/sys/unix/sys.c` and
/// `erts/emulator/beam/erl_alloc{,_util}.c` with the strategies `erl_{goodfit,bestfit,afit,ao_firstfit}_alloc.c`.
/// Compilers append `.constprop.0`, `.part.0` and the like.
const ALLOCATOR_FUNCTIONS: [&str; 28] = [
    "erts_mmap",
    "erts_munmap",
    "erts_mremap",
    "os_mmap",
    "os_mremap",
    "erts_mseg_",
    "mseg_",
    "erts_sys_alloc",
    "erts_sys_realloc",
    "erts_sys_aligned_",
    "erts_alcu_",
    "erts_aoffalc_",
    "erts_gfalc_",
    "erts_bfalc_",
    "erts_afalc_",
    "erts_alloc",
    "erts_realloc",
    "do_erts_alcu_",
    "do_erts_realloc",
    "alcu_",
    "create_carrier",
    "create_sbc",
    "mbc_alloc",
    "mbc_realloc",
    "cpool_",
    "realloc_thr_pref",
    "enif_alloc",
    "driver_alloc",
];

/// Whether a file of this name is the VM's executable: `beam.smp`, `beam.emu.smp`, `beam.debug.smp`, …
/// (`erts/emulator/Makefile.in`, `EMULATOR_EXECUTABLE`).
pub fn is_emulator(file_name: &str) -> bool {
    file_name == "beam" || (file_name.starts_with("beam.") && !file_name.contains(".so"))
}

/// Whether a function of the VM's executable belongs to its allocators.
pub fn is_allocator_function(name: &str) -> bool {
    ALLOCATOR_FUNCTIONS.iter().any(|begin| name.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_emulator_by_its_file_name() {
        for name in ["beam", "beam.smp", "beam.emu.smp", "beam.debug.smp"] {
            assert!(is_emulator(name), "{name}");
        }
        for name in ["", "beamer", "libbeam.so", "beam.so", "beam.so.1", "erlexec", "leaky.so"] {
            assert!(!is_emulator(name), "{name}");
        }
    }

    #[test]
    fn knows_the_allocators_functions() {
        for name in ["erts_mmap", "erts_mseg_alloc_opt", "create_carrier.constprop.0", "erts_alcu_alloc_thr_pref"] {
            assert!(is_allocator_function(name), "{name}");
        }
        for name in ["", "beam_jit_call_nif", "db_put_hash", "process_main", "erts_schedule"] {
            assert!(!is_allocator_function(name), "{name}");
        }
    }
}
