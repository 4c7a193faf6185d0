//! Does a figure grow, and how: steadily, at once, or up to a level?

use super::{
    Confidence,
    thresholds::{AT_ONCE, CERTAIN_SLOPE, FEW_POINTS, LEVEL, STEADY},
};

/// A figure at a moment: seconds, and its value.
pub(super) type Point = (f64, f64);

/// How a figure went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Trend {
    /// Least-squares slope, per second.
    pub(super) per_second: f64,
    /// The last value less the first.
    pub(super) net: f64,
    /// The slope against its standard error; infinite where all points lie on a line.
    pub(super) certainty: f64,
    /// Slope of the second half against that of the whole.
    pub(super) late: f64,
    /// Share of the net growth that came in the interval with the most.
    pub(super) largest_step: f64,
    /// Points.
    pub(super) points: usize,
    /// Seconds from the first to the last.
    pub(super) seconds: f64,
}

/// What a trend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// No growth that matters or that stands above the noise.
    Flat,
    /// It grew and has stopped to.
    LevelsOff,
    /// It came in one step, not long ago.
    AtOnce,
    /// It grows as it did all the time.
    Steady,
    /// It grows; how is not clear.
    Unclear,
    /// It is larger; too few points to say how.
    TooFew,
}

impl Trend {
    /// The trend of points that are sorted by time; `None` with fewer than two moments.
    pub(super) fn of(points: &[Point]) -> Option<Self> {
        let (first, last) = (points.first()?, points.last()?);
        let seconds = last.0 - first.0;
        let (per_second, error) = line(points)?;
        let net = last.1 - first.1;
        let middle = first.0 + seconds / 2.0;
        let second_half: Vec<Point> = points.iter().copied().filter(|(at, _)| *at >= middle - 1e-9).collect();
        let late = line(&second_half).map_or(per_second, |(slope, _)| slope);
        let steps = points.iter().zip(points.iter().skip(1)).map(|(before, after)| after.1 - before.1);
        let largest = steps.fold(0.0, f64::max);
        Some(Self {
            per_second,
            net,
            certainty: if error > 0.0 { per_second / error } else { f64::INFINITY.copysign(per_second) },
            late: if per_second == 0.0 { 0.0 } else { late / per_second },
            largest_step: if net > 0.0 { largest / net } else { 0.0 },
            points: points.len(),
            seconds,
        })
    }

    /// What it is, where growth of less than `least`, or slower than `slowest` per second, does not matter.
    pub(super) fn course(&self, least: f64, slowest: f64) -> Course {
        // What goes up and down has steps that are larger than what comes of them.
        let in_one_step = (AT_ONCE.value..2.0 - AT_ONCE.value).contains(&self.largest_step);
        if self.net < least || self.per_second < slowest {
            Course::Flat
        } else if (self.points as f64) < FEW_POINTS.value {
            Course::TooFew
        } else if self.late < LEVEL.value {
            Course::LevelsOff
        } else if in_one_step {
            Course::AtOnce
        } else if self.certainty < CERTAIN_SLOPE.value {
            Course::Flat
        } else if self.late >= STEADY.value {
            Course::Steady
        } else {
            Course::Unclear
        }
    }

    /// How much it carries.
    pub(super) fn confidence(&self) -> Confidence {
        match (self.points, self.certainty) {
            (8.., certainty) if certainty >= 4.0 * CERTAIN_SLOPE.value => Confidence::High,
            (4.., certainty) if certainty >= CERTAIN_SLOPE.value => Confidence::Medium,
            _ => Confidence::Low,
        }
    }
}

/// Least-squares slope, and its standard error; `None` with fewer than two moments.
fn line(points: &[Point]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let mean_at = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_value = points.iter().map(|point| point.1).sum::<f64>() / count;
    let variance: f64 = points.iter().map(|point| (point.0 - mean_at).powi(2)).sum();
    let covariance: f64 = points.iter().map(|point| (point.0 - mean_at) * (point.1 - mean_value)).sum();
    if points.len() < 2 || variance <= 0.0 {
        return None;
    }
    let slope = covariance / variance;
    let residual: f64 = points.iter().map(|point| (point.1 - mean_value - slope * (point.0 - mean_at)).powi(2)).sum();
    let freedom = count - 2.0;
    let error = if freedom > 0.0 { (residual / freedom / variance).sqrt() } else { 0.0 };
    Some((slope, error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn course(values: &[f64]) -> Course {
        let points: Vec<Point> = (0_u32..).map(f64::from).zip(values.iter().copied()).collect();
        Trend::of(&points).expect("points").course(10.0, 1.0)
    }

    #[test]
    fn tells_courses_apart() {
        assert_eq!(course(&[0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]), Course::Steady);
        assert_eq!(course(&[0.0, 0.0, 60.0, 60.0, 60.0, 60.0, 60.0]), Course::LevelsOff);
        assert_eq!(course(&[0.0, 0.0, 0.0, 0.0, 0.0, 60.0, 60.0]), Course::AtOnce);
        assert_eq!(course(&[0.0, 30.0, 50.0, 57.0, 60.0, 60.0, 60.0]), Course::LevelsOff);
        // Ups and downs that end higher by chance.
        assert_eq!(course(&[50.0, 20.0, 60.0, 30.0, 55.0, 25.0, 62.0]), Course::Flat);
        assert_eq!(course(&[20.0, 50.0, 20.0, 50.0, 20.0, 50.0, 28.0]), Course::Flat);
        assert_eq!(course(&[50.0, 50.0, 50.0, 50.0]), Course::Flat);
        assert_eq!(course(&[60.0, 50.0, 40.0, 30.0]), Course::Flat);
        assert_eq!(course(&[0.0, 30.0, 60.0]), Course::TooFew);
        assert_eq!(Trend::of(&[(1.0, 5.0)]), None);
        assert_eq!(Trend::of(&[]), None);
        assert_eq!(Trend::of(&[(1.0, 5.0), (1.0, 9.0)]), None);
    }

    proptest! {
        #[test]
        fn steady_growth_amid_noise_is_steady(noise in proptest::collection::vec(-20.0..20.0, 12), rate in 20.0..1000.0) {
            let points: Vec<Point> = (0_u32..).map(f64::from).zip(&noise).map(|(at, noise)| (at, at * rate + noise)).collect();
            let trend = Trend::of(&points).expect("points");
            prop_assert_eq!(trend.course(10.0, 1.0), Course::Steady);
        }

        #[test]
        fn noise_alone_is_no_steady_growth_that_matters(noise in proptest::collection::vec(0.0..100.0, 5..50)) {
            let points: Vec<Point> = (0_u32..).map(f64::from).zip(noise).collect();
            let trend = Trend::of(&points).expect("points");
            prop_assert!(trend.course(101.0, 1.0) == Course::Flat, "{:?}", trend);
        }
    }
}
