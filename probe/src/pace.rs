//! Which of many events are looked at, so that looking takes no more than a share of the time, and each kind of event has
//! the same chance?

use bytemuck::{AnyBitPattern, NoUninit};

/// Time for which a processor saves up what it may spend, in nanoseconds.
const SAVED_UP: u64 = 1_000_000_000;
/// Bits of [`Pace::next`]'s share.
const SHARE_BITS: u32 = 16;
/// Longest mean distance of two events that are looked at, as a power of 2.
const LONGEST: u64 = 12;

/// How far it is to the next event that is looked at.
///
/// The distance is drawn before the events come, so that no kind of event is looked at more often than another; each one
/// that is looked at stands for those that it was the last of, and so all of them add up to what there was.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit, AnyBitPattern)]
pub struct Pace {
    /// Nanoseconds that may be spent; below 0: that were spent too many.
    left: i64,
    /// When the last one was looked at.
    at: u64,
    /// Events that the next one stands for.
    distance: u32,
    /// Those of them that have not come yet.
    to_come: u32,
}

impl Pace {
    /// Takes in an event; `Some`: it is to be looked at, and stands for as many.
    #[inline]
    pub fn event(&mut self) -> Option<u32> {
        if self.to_come > 1 {
            self.to_come -= 1;
            return None;
        }
        self.to_come = 0;
        Some(if self.distance == 0 { 1 } else { self.distance })
    }

    /// Decides which event is the next, when one was looked at from `began` to `ended`. `share` is what looking may take of
    /// the time, in 1/65536; `random` is any number.
    ///
    /// No division has a sign, which BPF has only since its fourth version.
    #[inline]
    pub fn next(&mut self, share: u32, began: u64, ended: u64, random: u32) {
        let share = u64::from(share);
        let mut took = ended.wrapping_sub(began);
        if took > SAVED_UP {
            took = SAVED_UP;
        }
        let mut elapsed = ended.wrapping_sub(self.at);
        if elapsed > SAVED_UP {
            elapsed = SAVED_UP;
        }
        self.at = ended;
        let most = ((SAVED_UP * share) >> SHARE_BITS).cast_signed();
        let earned = (elapsed * share) >> SHARE_BITS;
        let mut left = self.left.wrapping_add(earned.cast_signed());
        if left > most {
            left = most;
        }
        if left < -most {
            left = -most;
        }
        left -= took.cast_signed();
        self.left = left;
        // Nearly all where much is saved up, few where little is: so the distance comes to be that at which what is spent is
        // what is earned, however the events are bunched together.
        let mut doublings = LONGEST;
        if left > 0 {
            doublings = ((most - left).cast_unsigned() * (LONGEST + 1)) / (most.cast_unsigned() | 1);
        }
        if doublings > LONGEST {
            doublings = LONGEST;
        }
        let mean = 1_u64 << doublings;
        // Evenly from 1 to twice the mean less 1.
        self.distance = low(((u64::from(random) * (2 * mean - 1)) >> 32) + 1);
        self.to_come = self.distance;
    }
}

/// The lower half.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant; a distance has no other")]
const fn low(value: u64) -> u32 {
    value as u32
}

const _: () = assert!(size_of::<Pace>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    /// Three thousandths.
    const SHARE: u32 = 197;
    const COST: u64 = 3000;

    /// A generator of numbers that are random enough here (Steele, Lea and Flood, "Fast splittable pseudorandom number
    /// generators", 2014).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u32 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (word >> 32) as u32
        }
    }

    struct Outcome {
        looks: u64,
        /// What the looks stand for, by kind.
        estimated: [u64; 2],
        actual: [u64; 2],
    }

    /// Ten seconds of bursts of `burst` events of one kind, a microsecond apart, `pause` between two bursts; every fourth
    /// burst is of another kind.
    fn run(burst: u64, pause: u64) -> Outcome {
        let (mut pace, mut random) = (Pace::default(), Random(7));
        let mut outcome = Outcome { looks: 0, estimated: [0; 2], actual: [0; 2] };
        let (mut now, mut bursts) = (1_000_000_000, 0_u64);
        while now < 11_000_000_000 {
            let kind = usize::from(bursts.is_multiple_of(4));
            for _ in 0..burst {
                now += 1000;
                outcome.actual[kind] += 1;
                if let Some(weight) = pace.event() {
                    outcome.estimated[kind] += u64::from(weight);
                    outcome.looks += 1;
                    pace.next(SHARE, now, now + COST, random.next());
                    now += COST;
                }
            }
            now += pause;
            bursts += 1;
        }
        outcome
    }

    #[test]
    fn looking_stays_within_its_share() {
        for (burst, pause) in [(1, 10_000_000), (1, 100_000), (10, 1_000_000), (1000, 1_000_000), (100_000, 0)] {
            let looks = run(burst, pause).looks;
            let spent = looks * COST;
            // The share of ten seconds, and what was saved up before.
            assert!(spent < 38_000_000, "{burst} {pause}: {spent}");
            assert!(looks > 500, "{burst} {pause}: {looks}");
        }
    }

    #[test]
    fn rare_events_are_all_looked_at() {
        let outcome = run(1, 10_000_000);
        assert_eq!(outcome.looks, outcome.actual.iter().sum::<u64>());
    }

    #[test]
    fn what_was_looked_at_stands_for_all() {
        for (burst, pause) in [(1, 100_000), (10, 1_000_000), (1000, 1_000_000), (300, 20_000)] {
            let Outcome { estimated, actual, .. } = run(burst, pause);
            let all: u64 = actual.iter().sum();
            let missing = all.abs_diff(estimated.iter().sum());
            assert!(missing < 2 << LONGEST, "{burst} {pause}: {missing} of {all}");
            let share = |of: [u64; 2]| of[1] as f64 / of.iter().sum::<u64>() as f64;
            let error = (share(estimated) - share(actual)).abs();
            assert!(error < 0.03, "{burst} {pause}: {estimated:?} {actual:?}");
        }
    }

    #[test]
    fn any_state_is_taken() {
        for word in [0, 1, u64::MAX, 1 << 63, 0x5555_5555_5555_5555] {
            let mut pace = Pace { left: word.cast_signed(), at: !word, distance: low(word), to_come: 1 };
            for random in [0, 1, u32::MAX] {
                assert!(pace.event().is_some_and(|weight| weight > 0));
                pace.next(u32::MAX >> 16, word, word.wrapping_mul(3), random);
                assert!((1..2_u32 << LONGEST).contains(&pace.distance), "{pace:?}");
                pace.to_come = 1;
            }
        }
    }
}
