//! The kernel's side of a recording.

pub mod features;
