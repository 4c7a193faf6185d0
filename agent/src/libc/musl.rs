//! What can be known of musl's heap from outside?
//!
//! How much of it is resident, since it lies in the `brk` heap and in anonymous mappings; that is for the caller, who
//! has the residency. What of it is in use is not known: see [`NotKnown`].

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why bytes in use and free bytes of a musl heap are not told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum NotKnown {
    /// `mallocng` keeps its metadata apart from the slots, behind a context without a symbol in `.dynsym`
    /// (`src/malloc/mallocng/meta.h`, musl 1.2.1 and later); `oldmalloc` keeps bins of another form
    /// (`src/malloc/oldmalloc/malloc.c`). Neither is read yet.
    #[error(
        "musl's heap is not walked: its metadata has no symbol and no form that this beamscope reads, so its resident \
         bytes are known, but not which of them are in use"
    )]
    MetadataNotRead,
}

/// Tells bytes in use from free ones in a musl heap; for now it only says why that is not known.
pub fn walk() -> NotKnown {
    NotKnown::MetadataNotRead
}
