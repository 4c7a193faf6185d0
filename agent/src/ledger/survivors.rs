//! How old the outstanding blocks of a site are at the end of a recording.

use serde::{Deserialize, Serialize};

use super::apportion::part;

/// Parts into which the recording is divided by time.
pub(super) const PARTS: usize = 4;

/// Outstanding bytes by the quarter of the recording in which they were allocated, oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Survivors {
    /// Age of the oldest block in seconds.
    pub oldest_seconds: f64,
    /// Bytes by quarter of the recording.
    pub bytes: [u64; PARTS],
}

impl Survivors {
    /// Counts a block of `size` bytes that was allocated `at` seconds after the start of a recording of `seconds`.
    pub fn add(&mut self, at: f64, seconds: f64, size: u64) {
        self.oldest_seconds = self.oldest_seconds.max(seconds - at);
        let quarter = seconds / PARTS as f64;
        let part = (1..PARTS).take_while(|part| at >= quarter * *part as f64).count();
        if let Some(bytes) = self.bytes.get_mut(part) {
            *bytes = bytes.saturating_add(size);
        }
    }

    /// Adds those of another part of the same site.
    pub fn merge(&mut self, other: &Self) {
        self.oldest_seconds = self.oldest_seconds.max(other.oldest_seconds);
        for (bytes, more) in self.bytes.iter_mut().zip(other.bytes) {
            *bytes = bytes.saturating_add(more);
        }
    }

    /// The bytes times `share`, a number from 0 to 1.
    #[must_use]
    pub fn scaled(&self, share: f64) -> Self {
        Self { bytes: self.bytes.map(|bytes| part(bytes, share)), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_quarter() {
        let mut survivors = Survivors::default();
        for (at, size) in [(0.0, 1), (2.4, 2), (2.5, 4), (5.0, 8), (9.9, 16), (10.0, 32)] {
            survivors.add(at, 10.0, size);
        }
        assert_eq!(survivors.bytes, [3, 4, 8, 48]);
        assert!((survivors.oldest_seconds - 10.0).abs() < f64::EPSILON);
    }
}
