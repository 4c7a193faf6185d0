//! What the entry points do with the arguments that they have taken.

pub(crate) mod allocation;
pub(crate) mod erlang;
pub(crate) mod fault;
pub(crate) mod keep;
pub(crate) mod lookup;
pub(crate) mod mapping;
pub(crate) mod maps;
pub(crate) mod registers;
pub(crate) mod sample;
pub(crate) mod thread;
pub(crate) mod vm;
pub(crate) mod walk;
