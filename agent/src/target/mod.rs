//! The traced process, seen through `/proc`.

pub mod maps;
pub mod memory;
