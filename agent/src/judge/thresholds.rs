//! Where does an answer begin? Every number that a verdict compares a figure with, with the reason for it.

/// A number that figures are compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Its name: the question, and what is compared.
    pub name: &'static str,
    /// The number.
    pub value: f64,
    /// Its unit: `bytes`, `bytes/s`, `seconds`, `share` (from 0 to 1), or what is counted.
    pub unit: &'static str,
    /// Why it is this number, as a sentence without its full stop.
    pub reason: &'static str,
}

/// All of them, by question.
pub(super) const ALL: &[Threshold] = &[];
