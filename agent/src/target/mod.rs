//! The traced process, seen through `/proc`.

pub mod memory;
