//! Which code is only a way to allocate, so that its caller is the one to be looked at?

use crate::stack::{Frame, FrameKind, KERNEL_MODULE};

/// Names, without version and `.so`, of the C library in all its parts, the dynamic linker, the runtime of C++, and
/// allocators that take malloc's place.
const LIBRARIES: [&str; 20] = [
    "libc",
    "libpthread",
    "libdl",
    "librt",
    "libanl",
    "ld",
    "ld-linux",
    "ld-linux-x86-64",
    "ld-linux-aarch64",
    "libstdc++",
    "libc++",
    "libc++abi",
    "libgcc_s",
    "libjemalloc",
    "libtcmalloc",
    "libtcmalloc_minimal",
    "libmimalloc",
    "libsnmallocshim",
    "librpmalloc",
    "libc_malloc_debug",
];

/// Begins of the paths of functions of the standard libraries of C++ and Rust, which are compiled into their users.
const PATHS: [&str; 12] = [
    "std::",
    "__gnu_cxx::",
    "__cxxabiv1::",
    "core::",
    "alloc::",
    "hashbrown::",
    "__rust_",
    "__rustc::__rust_",
    "__rustc::__rdl_",
    "__rdl_",
    "__rg_",
    "__libc_",
];

/// Whether the frame lies in a library that allocates for others.
pub(super) fn is_in_wrapper_library(frame: &Frame) -> bool {
    let is_wrapper = |module: &str| module == KERNEL_MODULE || is_wrapper_library(module);
    frame.kind == FrameKind::Native && frame.module.as_deref().is_some_and(is_wrapper)
}

/// Whether the frame's function only allocates for its caller, wherever it lies.
pub(super) fn is_wrapper_function(frame: &Frame) -> bool {
    let Some(function) = frame.function.as_deref() else {
        return false;
    };
    let path = path(function);
    function.contains("operator new")
        || PATHS.iter().any(|begin| path.starts_with(begin))
        || matches!(path, "malloc" | "calloc" | "realloc" | "enif_alloc" | "enif_realloc")
}

fn is_wrapper_library(file_name: &str) -> bool {
    // `libc.so.6`, `libc-2.31.so`, `ld-musl-x86_64.so.1`, `libc.musl-x86_64.so.1`
    let name = file_name.split(".so").next().unwrap_or(file_name);
    let (stem, version) = name.rsplit_once('-').unwrap_or((name, ""));
    let versioned = version.starts_with(|letter: char| letter.is_ascii_digit());
    LIBRARIES.contains(&name)
        || (versioned && LIBRARIES.contains(&stem))
        || name.starts_with("ld-musl-")
        || name.starts_with("libc.musl-")
}

/// The path of a demangled function: what precedes it as its result, and what marks a Rust `impl`, taken off.
fn path(function: &str) -> &str {
    let (mut depth, mut begin) = (0_u32, 0);
    for (at, letter) in function.char_indices() {
        match letter {
            '<' => depth = depth.saturating_add(1),
            '>' => depth = depth.saturating_sub(1),
            '(' if depth == 0 => break,
            ' ' if depth == 0 => begin = at.saturating_add(1),
            _ => {}
        }
    }
    function.get(begin..).unwrap_or(function).trim_start_matches(['<', '&', '*'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_libraries_that_allocate_for_others() {
        for name in [
            "libc.so.6",
            "libc-2.31.so",
            "libc.so",
            "ld-linux-x86-64.so.2",
            "ld-2.31.so",
            "ld-musl-x86_64.so.1",
            "libc.musl-x86_64.so.1",
            "libpthread-2.31.so",
            "libstdc++.so.6.0.30",
            "libc++.so.1",
            "libgcc_s.so.1",
            "libjemalloc.so.2",
        ] {
            assert!(is_wrapper_library(name), "{name}");
        }
        for name in
            ["", "leaky.so", "libcrypto.so.3", "beam.smp", "libcache.so", "ldap.so", "libc-client.so", "ld-x.so"]
        {
            assert!(!is_wrapper_library(name), "{name}");
        }
    }

    #[test]
    fn knows_functions_that_allocate_for_their_caller() {
        let check = |name: &str, expected: bool| {
            let function = Some(name.to_owned());
            let frame = Frame { function, ..crate::sample::frame("leaky.so", "", None) };
            assert_eq!(is_wrapper_function(&frame), expected, "{name}");
        };
        for name in [
            "operator new(unsigned long)",
            "operator new[](unsigned long, std::nothrow_t const&)",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int>(int&&)",
            "__gnu_cxx::new_allocator<int>::allocate(unsigned long)",
            "alloc::raw_vec::RawVec<T,A>::reserve_for_push",
            "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            "__rust_alloc",
            "__rdl_alloc",
            "hashbrown::raw::RawTable<T>::reserve_rehash",
        ] {
            check(name, true);
        }
        for name in [
            "leak_block",
            "leak(std::vector<int>&)",
            "std_leak",
            "<leaky::Cache as core::clone::Clone>::clone",
            "leaky::keep::<alloc::vec::Vec<u8>>",
            "my_alloc::keep",
            "new_session",
            "",
        ] {
            check(name, false);
        }
    }
}
