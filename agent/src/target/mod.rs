//! The traced process, seen through `/proc`.

pub mod elf;
pub mod maps;
pub mod memory;
pub mod sections;
