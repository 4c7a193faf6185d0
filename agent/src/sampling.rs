//! Byte sampling: distances between the sampled bytes, and what a sampled block stands for.
//!
//! Points lie on the line of allocated bytes at exponential distances; a block is sampled when at least one point falls
//! into it. It then stands for `size / P(sampled)` bytes, which makes every sum of weights unbiased
//! (Horvitz and Thompson 1952; the same scheme as tcmalloc's and heapprofd's).

use beamscope_probe::EXPONENTIAL_DRAWS;

/// Draws from an exponential distribution of the given mean, in bytes: its quantiles at equal steps, scaled so that
/// their mean is the mean. The probe takes one at random for each distance.
pub fn exponential_draws(mean: u64) -> Vec<u64> {
    let quantile = |index: u32| -(1.0 - (f64::from(index) + 0.5) / f64::from(EXPONENTIAL_DRAWS)).ln();
    let sum: f64 = (0..EXPONENTIAL_DRAWS).map(quantile).sum();
    let scale = mean as f64 * f64::from(EXPONENTIAL_DRAWS) / sum;
    (0..EXPONENTIAL_DRAWS).map(|index| whole_bytes(quantile(index) * scale).max(1)).collect()
}

/// Bytes that a sampled block of `size` bytes stands for, where one byte in `mean` is sampled.
pub fn weight(size: u64, mean: u64) -> f64 {
    let size = size as f64;
    size / -(-size / (mean.max(1) as f64)).exp_m1()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and no distance is negative"
)]
fn whole_bytes(bytes: f64) -> u64 {
    bytes.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_mean_and_the_spread_of_an_exponential_distribution() {
        let mean = 1 << 20;
        let draws = exponential_draws(mean);
        assert_eq!(draws.len(), 4096);
        let average = draws.iter().sum::<u64>() as f64 / draws.len() as f64;
        assert!((average / mean as f64 - 1.0).abs() < 1e-4, "{average}");
        let variance = draws.iter().map(|draw| (*draw as f64 - average).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!((variance.sqrt() / mean as f64 - 1.0).abs() < 0.01, "{variance}");
    }

    #[test]
    fn a_large_block_stands_for_itself_and_a_small_one_for_the_mean() {
        assert!((weight(1 << 30, 1 << 20) / f64::from(1 << 30) - 1.0).abs() < 1e-9);
        assert!((weight(16, 1 << 20) / f64::from(1 << 20) - 1.0).abs() < 1e-4);
    }

    #[test]
    fn the_sum_of_weights_is_unbiased() {
        let mean = 4096;
        let draws = exponential_draws(mean);
        let sizes = [16_u64, 100, 1000, 5000, 40_000];
        let (mut allocated, mut estimated, mut countdown) = (0_u64, 0.0, 0_i64);
        let mut state = 1_u64;
        for step in 0..200_000_usize {
            let size = sizes[step % sizes.len()];
            allocated += size;
            countdown -= i64::try_from(size).expect("small");
            if countdown <= 0 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                countdown = i64::try_from(draws[usize::try_from(state >> 52).expect("12 bits")]).expect("small");
                estimated += weight(size, mean);
            }
        }
        assert!((estimated / allocated as f64 - 1.0).abs() < 0.01, "{estimated} of {allocated}");
    }
}
