//! Divides exact figures among parts of which only estimates are known.

/// Parts of `total` in proportion to `weights`; they add up to `total`. Equal parts where all weights are zero.
pub(super) fn apportion(total: u64, weights: &[f64]) -> Vec<u64> {
    let sum: f64 = weights.iter().sum();
    let even = 1.0 / weights.len() as f64;
    let share = |weight: f64| if sum > 0.0 { weight / sum } else { even };
    // Differences of cumulated parts, which never fall and end at the total.
    let mut given = 0;
    let mut cumulated = 0.0;
    let last = weights.len().saturating_sub(1);
    weights
        .iter()
        .enumerate()
        .map(|(index, weight)| {
            cumulated += share(*weight);
            let until = if index == last { total } else { part(total, cumulated).clamp(given, total) };
            let amount = until - given;
            given = until;
            amount
        })
        .collect()
}

/// The part of `total` that `share`, a number from 0 to 1, is.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and shares are not negative"
)]
pub(super) fn part(total: u64, share: f64) -> u64 {
    (total as f64 * share).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn divides_in_proportion() {
        assert_eq!(apportion(100, &[1.0, 3.0]), [25, 75]);
        assert_eq!(apportion(100, &[0.0, 0.0]), [50, 50]);
        assert_eq!(apportion(7, &[2.0]), [7]);
        assert_eq!(apportion(7, &[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn parts_add_up(total: u64, weights in proptest::collection::vec(0.0..1e12, 1..20)) {
            let parts = apportion(total, &weights);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(total));
        }
    }
}
