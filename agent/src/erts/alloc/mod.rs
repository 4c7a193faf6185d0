//! What do the VM's allocators hold, seen from outside?
//!
//! `locate` finds the instances, `calibrate` derives where their fields are, `list` follows their carriers and the
//! pool, `block` walks the blocks of a carrier, `tally` and `statistics` are what comes out: counted by us, and by the
//! VM. `survey` does all of it.

pub mod block;
mod calibrate;
pub mod functions;
pub mod instance;
pub mod layout;
pub mod list;
pub mod locate;
pub mod statistics;
pub mod survey;
pub mod tally;

pub use survey::{CarrierFound, Depth, Effort, Survey, Surveyed, survey};
