//! What does the VM look like from outside? All knowledge of ERTS' structures and names lives here.

pub mod alloc;
pub mod carrier;
pub mod code;
