//! The traced process, seen through `/proc`.

pub mod allocator;
mod cgroup;
pub mod core_dump;
pub mod elf;
mod facts;
pub mod find;
mod limits;
pub mod maps;
pub mod memory;
pub mod node;
mod pagemap;
pub mod process;
pub mod resident;
pub mod sections;
pub mod view;
pub mod vm_api;
