//! What does the C library keep of a process's memory? All knowledge of its heaps and thread descriptors lives here.

pub mod glibc;
pub mod musl;
pub mod thread;
