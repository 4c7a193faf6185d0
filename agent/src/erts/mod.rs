//! What does the VM look like from outside? All knowledge of ERTS' structures and names lives here.

pub mod alloc;
pub mod allocation_type;
pub mod atom;
pub mod carrier;
pub mod code;
mod executable;
pub mod jit;
pub mod mfa;
pub mod mmapper;
pub mod mseg;
pub mod names;
pub mod port;
pub mod process;
pub mod scheduler;
pub mod tag;
pub mod thread;
