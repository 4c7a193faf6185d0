//! The edge to the kernel: what it can do, what is attached, and what comes back.

mod calibrate;
mod cost;
mod draws;
pub mod faults;
pub mod features;
pub mod object;
pub mod placement;
pub mod plan;
pub mod session;
mod tracefs;
pub mod windows;
pub mod wire;
