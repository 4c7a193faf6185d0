//! beamscope: where did the memory of this Erlang node go, and who is to blame?
//!
//! # How data flows
//!
//! ```text
//! target ──► mappings, node facts, memory ─┐
//! kernel ──► sites, blocks, samples, events ├──► ledger ──► Recording ──► attribute ──► judge ──► report ──► text, JSON, SVG
//! symbol ──► frames ───────────────────────┘                   ▲                          ▲
//! target ──► ProcessView, memory ──► erts, libc ──► explain ──► Explanation ───────────────┘
//! ```
//!
//! Stacks are walked in the kernel by [`stack::rows`], which [`recorder`] makes of the files' unwind tables and
//! [`kernel::session`] puts into its maps; what it could not walk arrives as an image, for [`stack::unwind`]. Both give a
//! [`stack::raw::RawStack`] of addresses, native and Erlang, that [`symbol`] and [`erts::names`] turn into frames.
//!
//! The lower line is one look at a node: a live one ([`look`]), a saved [`image`] or a core dump. A recording holds
//! several.
//!
//! # Invariants
//!
//! * [`mapping`], [`extents`], [`limits`], [`view`], [`words`], [`stack`], [`ledger`], [`recording`], [`erts`], [`libc`],
//!   [`explain`], [`image`], [`attribute`], [`judge`], [`wording`] and [`report`] do no I/O: no file, no process, no clock,
//!   no kernel. What they need of the node arrives as values or through [`target::memory::ReadMemory`].
//! * A report is a function of a [`recording::Recording`] or an [`explain::model::Explanation`] and of nothing else.
//! * A look leaves no trace in the node: a page that is not resident is not read.
//! * Only [`kernel::plan`] decides what is attached; it is pure and says what each fallback costs.
//! * `unsafe` code stands in `kernel/wire.rs` and in the probe's program, nowhere else.
//! * Bytes from the node, from files and from the kernel are hostile: no indexing, no unchecked arithmetic, and a read
//!   that failed is an error, never a zero.

pub mod attribute;
pub mod cli;
pub mod command;
pub mod erts;
pub mod explain;
pub mod extents;
pub mod image;
pub mod judge;
pub mod kernel;
pub mod ledger;
pub mod libc;
pub mod limits;
pub mod look;
pub mod mapping;
pub mod output;
pub mod recorder;
pub mod recording;
pub mod report;
pub mod retry;
pub mod sampling;
pub mod stack;
pub mod stored;
pub mod symbol;
pub mod target;
pub mod view;
pub mod wording;
pub mod words;

// The sample recording is written against the library's name, since the hermetic tests use it too.
#[cfg(test)]
extern crate self as beamscope;
#[cfg(test)]
#[path = "../../tests/hermetic/sample.rs"]
mod sample;
