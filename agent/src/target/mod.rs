//! The traced process, seen through `/proc`.

pub mod allocator;
pub mod elf;
mod facts;
pub mod find;
pub mod maps;
pub mod memory;
pub mod node;
pub mod process;
pub mod sections;
