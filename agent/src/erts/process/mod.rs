//! Which processes does the VM have, and where are the heap and the stack of one?

pub mod layout;
mod rules;
pub mod table;

#[cfg(test)]
pub(super) mod tests;
