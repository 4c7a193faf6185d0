//! How a figure went over the recording: a bounded list of points, and the slope through them.

use serde::{Deserialize, Serialize};

use super::apportion::part;

/// Points kept at most; a power of two, so that halving the resolution is exact.
const CAPACITY: usize = 256;

/// One point: seconds since the start, and the figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds since the start.
    pub at: f64,
    /// The figure.
    pub value: u64,
}

/// A figure over time. Where it grows past 256 points, every second one is dropped and from then on only every
/// second one is taken, so that the points always cover the whole recording evenly. The newest point is always there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    points: Vec<Point>,
    stride: u32,
    /// Points pushed since the last one that stays. Above 0, the last of `points` is only the newest, for now.
    skipped: u32,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::new(), stride: 1, skipped: 0 }
    }
}

impl Series {
    /// Appends a point.
    pub fn push(&mut self, at: f64, value: u64) {
        if self.skipped > 0 {
            self.points.pop();
        }
        self.skipped += 1;
        if self.skipped >= self.stride || self.points.is_empty() {
            self.skipped = 0;
        }
        if self.points.len() >= CAPACITY {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride = self.stride.saturating_mul(2);
        }
        self.points.push(Point { at, value });
    }

    /// The points, by rising time.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Adds another figure to this one. Before its first point a figure counts as 0, between points it keeps its value.
    pub fn add(&mut self, other: &Self) {
        let mut sum = Self::default();
        let (mut left, mut right) = (self.points.iter().peekable(), other.points.iter().peekable());
        let (mut left_value, mut right_value) = (0_u64, 0_u64);
        while let Some(at) = match (left.peek(), right.peek()) {
            (Some(one), Some(two)) => Some(one.at.min(two.at)),
            (one, two) => one.or(two).map(|point| point.at),
        } {
            if let Some(point) = left.next_if(|point| point.at <= at) {
                left_value = point.value;
            }
            if let Some(point) = right.next_if(|point| point.at <= at) {
                right_value = point.value;
            }
            sum.push(at, left_value.saturating_add(right_value));
        }
        *self = sum;
    }

    /// The figure times `share`, a number from 0 to 1.
    #[must_use]
    pub fn scaled(&self, share: f64) -> Self {
        let scale = |point: &Point| Point { at: point.at, value: part(point.value, share) };
        Self { points: self.points.iter().map(scale).collect(), ..*self }
    }

    /// Units per second: the least-squares slope through the points. `None` with fewer than two moments.
    pub fn slope(&self) -> Option<f64> {
        let count = self.points.len() as f64;
        let mean_at = self.points.iter().map(|point| point.at).sum::<f64>() / count;
        let mean_value = self.points.iter().map(|point| point.value as f64).sum::<f64>() / count;
        let (mut covariance, mut variance) = (0.0, 0.0);
        for point in &self.points {
            covariance += (point.at - mean_at) * (point.value as f64 - mean_value);
            variance += (point.at - mean_at).powi(2);
        }
        (variance > 0.0).then(|| covariance / variance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slope_of_too_few_points_is_unknown() {
        let mut series = Series::default();
        assert_eq!(series.slope(), None);
        series.push(0.0, 5);
        assert_eq!(series.slope(), None);
        series.push(0.0, 7);
        assert_eq!(series.slope(), None);
    }

    #[test]
    fn sum_carries_values_between_points() {
        let series = |points: &[(f64, u64)]| {
            let mut series = Series::default();
            for (at, value) in points {
                series.push(*at, *value);
            }
            series
        };
        let mut sum = series(&[(0.0, 1), (1.0, 2), (3.0, 4)]);
        sum.add(&series(&[(1.0, 10), (2.0, 20)]));
        assert_eq!(sum.points(), series(&[(0.0, 1), (1.0, 12), (2.0, 22), (3.0, 24)]).points());
    }

    proptest! {
        #[test]
        fn slope_of_a_line_is_its_gradient(gradient in 0_u32..1000, count in 2_u32..2000) {
            let mut series = Series::default();
            for at in 0..count {
                series.push(f64::from(at), u64::from(at * gradient));
            }
            let newest = series.points().last().expect("points");
            prop_assert_eq!(newest.value, u64::from((count - 1) * gradient));
            let slope = series.slope().expect("two points");
            prop_assert!((slope - f64::from(gradient)).abs() < 1e-6 * f64::from(gradient.max(1)));
            prop_assert!(series.points().len() <= CAPACITY + 1);
        }
    }
}
