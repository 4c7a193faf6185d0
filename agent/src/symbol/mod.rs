//! Names for addresses: the edge to symbol tables and debug information.

mod native;

pub use native::NativeSymbols;
