//! How do the figures of several rounds become few?

use serde::Serialize;

/// What is said of the rounds of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) smallest: f64,
    pub(super) median: f64,
    pub(super) largest: f64,
}

impl Spread {
    /// Nothing of no rounds.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2)?;
        Some(Self { smallest: *values.first()?, median, largest: *values.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_rounds_is_nothing() {
        let expected = Spread { smallest: 1.0, median: 2.0, largest: 9.0 };
        assert_eq!(Spread::of([9.0, 1.0, 2.0]), Some(expected));
        assert_eq!(Spread::of([]), None);
    }
}
