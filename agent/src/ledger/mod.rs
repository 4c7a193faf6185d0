//! Who holds what: turns the probe's counters, samples and events into sites.

mod series;
mod survivors;

pub use series::{Point, Series};
pub use survivors::Survivors;
