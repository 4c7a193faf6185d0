//! Which stacks are expected of the cases of `tests/nodes/stacks*`?

pub(crate) mod c;
pub(crate) mod cpp;
pub(crate) mod driver;
pub(crate) mod libcrypto;
pub(crate) mod rust;
pub(crate) mod vm_api;

/// One case of a module in `tests/nodes`, and all that a report has to say of its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// The Erlang module.
    pub(crate) module: &'static str,
    /// Its case.
    pub(crate) name: &'static str,
    /// The pattern of the stack, in parts.
    pub(crate) stack: &'static [&'static str],
    /// Patterns of texts of the site by key; none for a key that is to be null.
    pub(crate) site: Site,
    /// The pattern of the stack that created the thread.
    pub(crate) creator: &'static [&'static str],
}

pub(crate) type Site = &'static [(&'static str, Option<&'static str>)];

/// From a NIF to the Erlang code that called it.
pub(crate) const VM: &str = "+ beam.smp!*";
/// The same on a dirty scheduler, whose thread has a stack of its own.
pub(super) const DIRTY: &str = "+ beam.smp!*\n * libc.so.6!*";
/// To the first function of a thread.
pub(super) const THREAD: &str = "+ beam.smp!*\n + libc.so.6!*";
/// A case's process begins here.
pub(crate) const PROCESS: &str = "stacks_marks:process/5@process";
