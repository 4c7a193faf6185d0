//! Where does the resident memory belong while the recording goes on? One look at the start, one at the end, and as many
//! between as are cheap, beside the other work: the ring buffers must not wait for them.

use std::{sync::Arc, time::Duration};

use crate::{
    erts::alloc::Depth,
    explain::{
        model::Explanation,
        whose::{Owners, Pages},
    },
    look::{Answer, Looked, Looking},
    recording::Look,
    target::process::{Target, TargetError},
};

/// Seconds from the begin of a look to that of the next at least. It is asked about once a second whether it is time.
const SOONEST: f64 = 0.9;
/// From the begin of a look to that of the next there are this many times its processor time: looking takes a twentieth of a
/// processor at most.
const REST: f64 = 20.0;
/// How long blocks are walked at the start and at the end, and carriers listed in between.
const BUDGET: Duration = Duration::from_secs(1);
/// How long blocks are walked in between.
const QUICK: Duration = Duration::from_millis(250);
/// Looks at headers alone after one that did not come to the end of all blocks. The node may be smaller by then, or less
/// busy.
const HEADERS: u32 = 10;
/// Looks that are kept at most, an even number. Their figures are some 100 KiB of JSON each.
const KEPT: usize = 64;

/// The looks of a recording.
#[derive(Debug, Default)]
pub(super) struct Looks {
    done: Thinned<Look>,
    /// The node, for the threads that look.
    target: Option<Arc<Target>>,
    /// The one that goes on, and when it began.
    going_on: Option<(f64, Looking)>,
    plan: Plan,
    /// Whose the pages were that the last look was asked about.
    pub(super) owners: Owners,
}

/// When to look next, and how deep.
///
/// A look at headers knows of a carrier how much its blocks have, and takes what is resident beyond that for free; a full
/// one knows which pages hold a free block. So their figures for an owner differ a little, and [`Explanation::depth`] says
/// of which kind each is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Plan {
    /// Seconds since the start before which there is no look.
    next: f64,
    /// Looks at headers that are to come before one at blocks.
    headers: u32,
}

impl Plan {
    /// How deep to look at the moment `at`. `None`: it is not yet time.
    fn depth(&self, at: f64) -> Option<Depth> {
        (at >= self.next).then_some(if self.headers == 0 { Depth::Full } else { Depth::Headers })
    }

    /// Takes in that a look began at `at`, and the processor time that it took. `walked`: whether it came to the end of all blocks;
    /// `None`: it was not meant to.
    fn note(&mut self, at: f64, took: Duration, walked: Option<bool>) {
        self.next = at + SOONEST.max(REST * took.as_secs_f64());
        self.headers = match walked {
            Some(true) => 0,
            Some(false) => HEADERS,
            None => self.headers.saturating_sub(1),
        };
    }
}

impl Looks {
    /// Looks now, at every block that there is time for; asks about `pages`.
    pub(super) fn take(&mut self, target: &Target, at: f64, pages: Pages, defects: &mut Vec<String>) {
        self.collect(target, defects);
        self.keep(target, at, Looked::now(target, Depth::Full, BUDGET, pages), defects);
    }

    /// Begins a look when it is time, which asks about `pages`, and takes in one that is done. To be called about once a
    /// second.
    pub(super) fn go_on(&mut self, target: &Target, at: f64, pages: impl FnOnce() -> Pages, defects: &mut Vec<String>) {
        self.collect(target, defects);
        if self.going_on.is_none()
            && let Some(depth) = self.plan.depth(at)
        {
            let budget = if depth == Depth::Full { QUICK } else { BUDGET };
            let node = self.target.as_ref().map(Arc::clone);
            match node.map_or_else(|| Target::open(target.pid()).map(Arc::new), Ok) {
                Ok(node) => {
                    self.target = Some(Arc::clone(&node));
                    self.going_on = Some((at, Looking::begin(node, depth, budget, pages())));
                }
                Err(error) => missing(target, error, defects),
            }
        }
    }

    /// The looks in the order of time.
    pub(super) fn into_list(self) -> Vec<Look> {
        self.done.kept
    }

    fn collect(&mut self, target: &Target, defects: &mut Vec<String>) {
        let Some((at, looking)) = self.going_on.take() else { return };
        match looking.answer() {
            Answer::Ready(looked) => self.keep(target, at, looked, defects),
            Answer::Pending => self.going_on = Some((at, looking)),
            Answer::Never => say(defects, "a look at the owners of the memory was lost: its thread ended early".into()),
        }
    }

    fn keep(&mut self, target: &Target, at: f64, looked: Looked, defects: &mut Vec<String>) {
        let Looked { found, took } = looked;
        self.plan.note(at, took, found.as_ref().ok().and_then(|(explanation, _)| walked(explanation)));
        match found {
            Ok((explanation, owners)) => {
                self.done.push(Look { at, explanation });
                self.owners = owners;
            }
            Err(error) => missing(target, error, defects),
        }
    }
}

/// Says that a look is missing. A process that is gone has no memory; the looks before it stay.
fn missing(target: &Target, error: TargetError, defects: &mut Vec<String>) {
    if !matches!(error, TargetError::Gone { .. }) && target.is_alive() {
        say(defects, format!("a look at the owners of the memory is missing: {:#}", anyhow::Error::new(error)));
    }
}

/// Whether a look came to the end of all blocks; `None`: it was not meant to.
fn walked(explanation: &Explanation) -> Option<bool> {
    let depth = &explanation.depth;
    (depth.asked == Depth::Full).then_some(depth.walked == depth.carriers)
}

/// Things in the order of time: every one at first, and where there would be more than [`KEPT`], every second, fourth and so
/// on, so that they always cover the whole time evenly. The first and the newest are always there.
#[derive(Clone, Debug)]
struct Thinned<T> {
    kept: Vec<T>,
    /// Things seen.
    seen: u64,
    /// One in so many stays.
    stride: u64,
}

impl<T> Default for Thinned<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), seen: 0, stride: 1 }
    }
}

impl<T> Thinned<T> {
    fn push(&mut self, newest: T) {
        // The last one may have been there only because it was the newest.
        if self.seen.checked_sub(1).is_some_and(|last| !last.is_multiple_of(self.stride)) {
            self.kept.pop();
        }
        if self.kept.len() >= KEPT {
            let mut keep = false;
            self.kept.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride = self.stride.saturating_mul(2);
        }
        self.kept.push(newest);
        self.seen = self.seen.saturating_add(1);
    }
}

fn say(defects: &mut Vec<String>, defect: String) {
    if !defects.contains(&defect) {
        defects.push(defect);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_look_rests_for_twenty_times_its_duration() {
        let mut plan = Plan::default();
        assert_eq!(plan.depth(0.0), Some(Depth::Full), "the first look is at everything");
        plan.note(0.0, Duration::from_millis(30), Some(true));
        assert_eq!((plan.depth(0.8), plan.depth(1.0)), (None, Some(Depth::Full)));
        plan.note(1.0, Duration::from_millis(200), Some(true));
        assert_eq!((plan.depth(4.9), plan.depth(5.1)), (None, Some(Depth::Full)));
    }

    #[test]
    fn blocks_are_left_alone_for_a_while_where_they_are_many() {
        let mut plan = Plan::default();
        plan.note(0.0, Duration::from_millis(400), Some(false));
        for look in 1..=HEADERS {
            let at = 10.0 * f64::from(look);
            assert_eq!(plan.depth(at), Some(Depth::Headers), "{look}");
            plan.note(at, Duration::from_millis(10), None);
        }
        assert_eq!(plan.depth(200.0), Some(Depth::Full));
    }

    proptest! {
        #[test]
        fn looking_takes_a_twentieth_at_most(durations in prop::collection::vec(1_u64..3000, 1..50)) {
            let (mut plan, mut at, mut looked) = (Plan::default(), 0.0, 0.0);
            for took in durations {
                while plan.depth(at).is_none() {
                    at += 0.1;
                }
                // All looks but the last, which has not rested yet.
                prop_assert!(looked <= at / REST + 1e-6);
                let took = Duration::from_millis(took);
                looked += took.as_secs_f64();
                plan.note(at, took, None);
            }
        }

        #[test]
        fn what_is_kept_covers_the_whole_time(count in 1_usize..2000) {
            let mut things = Thinned::default();
            (0..count).for_each(|thing| things.push(thing));
            let kept = things.kept;
            prop_assert!(kept.len() <= KEPT);
            prop_assert_eq!((kept.first(), kept.last()), (Some(&0), Some(&(count - 1))));
            let gaps: Vec<usize> = kept.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let stride = gaps.first().copied().unwrap_or(1);
            // All are equally far apart but for the newest, and no farther than they have to be.
            prop_assert!(gaps.iter().rev().skip(1).all(|gap| *gap == stride), "{:?}", kept);
            prop_assert!(gaps.last().is_none_or(|gap| *gap <= stride), "{:?}", kept);
            prop_assert!(stride <= count.div_ceil(KEPT / 2), "{} of {}", stride, count);
        }
    }
}
