//! What may following cost the node now? A token bucket over the recording, in seconds of processor time: values in,
//! decisions out.
//!
//! The bucket fills at the budget's rate and holds what one window of following costs, or a burst at the start, so that a
//! recording sees something however short it is and however much the node allocates. What the whole recording may cost is
//! never passed: the end is planned for.

/// What the bucket holds at the start, in seconds of processor time: a node whose allocations cost no more than a little
/// above the budget is followed in full for as long as most recordings last.
const BURST: f64 = 0.5;
/// Shortest window that following is resumed for, in seconds: blocks that live longer than it can be told from others.
const WINDOW: f64 = 1.0;
/// Seconds between the decision to go blind and the moment when the last probe of the busiest functions is gone. The kernel
/// waits about 0.1 s for readers each time that it takes a probe away (`perf_uprobe_destroy` in
/// `kernel/trace/trace_event_perf.c`, under `event_mutex`), and three of them are on `malloc` and `free`.
const LEAVING: f64 = 0.25;
/// Time over which rates are averaged, in seconds.
const AVERAGED: f64 = 0.5;
/// A share of walks below this part of the budget shows no more than samples do.
const LEAST_WALKS: f64 = 0.02;

/// What has been measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    /// Seconds since the start.
    pub(super) at: f64,
    /// Seconds of processor time that the probes have cost the node by now.
    pub(super) spent: f64,
    /// The part of it for walking stacks.
    pub(super) walking: f64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Decision {
    /// Nothing.
    Stay,
    /// Walking may take this share of each processor's time from now on.
    Walk(f64),
    /// Allocations are not to be followed any more. With the share of one processor's time that following takes.
    Blind(f64),
    /// They are to be followed again.
    Follow,
}

/// Keeps one recording within its budget.
#[derive(Clone, Debug)]
pub(super) struct Controller {
    /// Share of one processor's time.
    budget: f64,
    /// What the whole recording may cost; infinite where its length is not known.
    most: f64,
    tokens: f64,
    last: Reading,
    following: bool,
    /// Share of one processor's time that following takes without walks, and that walks take.
    traps: Rate,
    walks: Rate,
    /// Largest share of each processor's time that walks may take, and what they may take now.
    most_walks: f64,
    walk_share: f64,
    /// By how much less than they may the walks of one processor are to take, so that all together keep to it.
    walk_factor: f64,
    /// Seconds that going blind takes.
    leaving: f64,
    /// When and at which cost it was last decided to go blind.
    left: Option<Reading>,
}

/// A rate that is averaged over time.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    value: f64,
    /// Seconds that it has been measured for.
    seen: f64,
}

impl Rate {
    fn take(&mut self, amount: f64, seconds: f64) {
        self.seen += seconds;
        // At first all that was seen counts alike.
        let weight = (seconds / self.seen.min(AVERAGED)).min(1.0);
        self.value += (amount / seconds - self.value) * weight;
    }
}

impl Controller {
    /// For a recording of `seconds` that may take `budget` of one processor's time, in which allocations are followed from
    /// the start, and walks may take `most_walks` of each processor's time.
    pub(super) fn new(budget: f64, seconds: Option<f64>, most_walks: f64) -> Self {
        let most = seconds.map_or(f64::INFINITY, |seconds| budget * seconds);
        Self {
            budget,
            most,
            tokens: BURST.min(most),
            last: Reading::default(),
            following: true,
            traps: Rate::default(),
            walks: Rate::default(),
            most_walks,
            walk_share: most_walks.min(budget),
            walk_factor: 1.0,
            leaving: LEAVING,
            left: None,
        }
    }

    /// Share of each processor's time that walks may take now.
    pub(super) fn walk_share(&self) -> f64 {
        self.walk_share
    }

    /// Takes a reading. After [`Decision::Blind`] it goes on with [`Controller::blind`] and after [`Decision::Follow`] with
    /// [`Controller::followed`].
    pub(super) fn observe(&mut self, reading: Reading) -> Decision {
        let seconds = reading.at - self.last.at;
        if seconds <= 0.0 {
            return Decision::Stay;
        }
        if self.last == Reading::default() {
            // What it has cost to attach counts, but says nothing of the rate: that was before the start.
            self.tokens -= reading.spent;
            self.last = reading;
            return Decision::Stay;
        }
        let spent = (reading.spent - self.last.spent).max(0.0);
        let walking = (reading.walking - self.last.walking).clamp(0.0, spent);
        self.last = reading;
        let capacity = BURST.max(self.window_cost());
        // What was saved for a window stays when it begins.
        self.tokens = (self.tokens + self.budget * seconds).min(capacity.max(self.tokens)) - spent;
        if self.left.is_some() {
            return Decision::Stay;
        }
        if !self.following {
            return if self.available() >= self.window_cost() { Decision::Follow } else { Decision::Stay };
        }
        self.traps.take(spent - walking, seconds);
        self.walks.take(walking, seconds);
        if self.available() <= self.rate() * self.leaving {
            self.left = Some(reading);
            return Decision::Blind(self.rate());
        }
        self.thin()
    }

    /// Allocations are not followed any more since `reading`.
    pub(super) fn blind(&mut self, reading: Reading) {
        if let Some(left) = self.left.take() {
            // What it has cost to leave says how long that takes at the rate of following.
            let seconds = (reading.spent - left.spent) / self.rate().max(f64::MIN_POSITIVE);
            self.leaving = seconds.clamp(LEAVING, WINDOW).max(self.leaving * 0.5);
        }
        self.following = false;
    }

    /// Allocations are followed since now.
    pub(super) fn followed(&mut self) {
        self.following = true;
        (self.traps, self.walks) = (Rate::default(), Rate::default());
    }

    /// Share of one processor's time that following takes.
    fn rate(&self) -> f64 {
        self.traps.value + self.walks.value
    }

    fn available(&self) -> f64 {
        self.tokens.min(self.most - self.last.spent)
    }

    /// What a window costs, with the end of it.
    fn window_cost(&self) -> f64 {
        self.rate() * (WINDOW + self.leaving)
    }

    /// Leaves to walks what the traps leave of the budget.
    fn thin(&mut self) -> Decision {
        let left = (self.budget - self.traps.value).max(0.0);
        if self.walks.value > left {
            self.walk_factor *= (left / self.walks.value).max(0.5);
        } else {
            self.walk_factor = (self.walk_factor * 1.1).min(1.0);
        }
        let mut share = self.most_walks.min(left) * self.walk_factor;
        if share < self.budget * LEAST_WALKS {
            share = 0.0;
        }
        // Each change is a step that is told of.
        if (share - self.walk_share).abs() <= 0.3 * self.walk_share.max(share) {
            return Decision::Stay;
        }
        self.walk_share = share;
        Decision::Walk(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a simulated recording came to.
    struct Outcome {
        spent: f64,
        /// When following began and ended.
        windows: Vec<(f64, f64)>,
        walk_share: f64,
    }

    /// A node that spends `traps(at)` of a processor's time in traps while it is followed, and as much of another
    /// processor's share in walks as it may, up to `walks`; probes go `leaving` seconds after the decision, and tables are
    /// ready for a window 2 s later.
    fn simulate(budget: f64, seconds: f64, leaving: f64, walks: f64, traps: impl Fn(f64) -> f64) -> Outcome {
        const STEP: f64 = 0.02;
        let mut controller = Controller::new(budget, Some(seconds), 0.1);
        let mut reading = Reading::default();
        let mut windows = vec![(0.0, f64::NAN)];
        let mut silent_at = f64::INFINITY;
        let mut ready_at = f64::INFINITY;
        let mut steps = 0;
        while reading.at < seconds {
            reading.at += STEP;
            if reading.at < silent_at {
                let walking = controller.walk_share().min(walks) * STEP;
                reading.walking += walking;
                reading.spent += traps(reading.at) * STEP + walking;
            }
            if reading.at >= ready_at {
                controller.blind(reading);
                ready_at = f64::INFINITY;
            }
            match controller.observe(reading) {
                Decision::Stay => {}
                Decision::Walk(_) => steps += 1,
                Decision::Blind(_) => {
                    windows.last_mut().expect("a window").1 = reading.at;
                    silent_at = reading.at + leaving;
                    ready_at = silent_at + 2.0;
                }
                Decision::Follow => {
                    windows.push((reading.at, f64::NAN));
                    silent_at = f64::INFINITY;
                    controller.followed();
                }
            }
        }
        if let Some((_, end)) = windows.last_mut().filter(|(_, end)| end.is_nan()) {
            *end = seconds;
        }
        assert!(steps < 50, "{steps} steps");
        Outcome { spent: reading.spent, windows, walk_share: controller.walk_share() }
    }

    fn followed(outcome: &Outcome) -> f64 {
        outcome.windows.iter().map(|(begin, end)| end - begin).sum()
    }

    #[test]
    fn a_quiet_node_is_followed_in_full() {
        let outcome = simulate(0.15, 60.0, 0.25, 0.01, |_| 0.02);
        assert_eq!(outcome.windows.len(), 1);
        assert!((followed(&outcome) - 60.0).abs() < 1e-9);
        assert!((outcome.walk_share - 0.1).abs() < 1e-9, "{}", outcome.walk_share);
    }

    #[test]
    fn a_node_a_little_above_the_budget_is_followed_nearly_in_full() {
        let outcome = simulate(0.15, 15.0, 0.25, 1.0, |_| 0.165);
        assert!(followed(&outcome) > 12.5, "{:?}", outcome.windows);
        assert!(outcome.spent <= 0.15 * 15.0 * 1.02, "{}", outcome.spent);
        // There is nothing left for walks.
        assert!(outcome.walk_share.abs() < 1e-9);
    }

    #[test]
    fn walks_get_what_the_traps_leave() {
        let outcome = simulate(0.15, 20.0, 0.25, 1.0, |_| 0.11);
        assert_eq!(outcome.windows.len(), 1);
        assert!(outcome.walk_share > 0.02 && outcome.walk_share < 0.045, "{}", outcome.walk_share);
    }

    #[test]
    fn a_tight_loop_is_followed_in_windows() {
        let outcome = simulate(0.15, 30.0, 0.25, 1.0, |_| 0.95);
        assert!(outcome.windows.len() >= 3, "{:?}", outcome.windows);
        assert!(outcome.windows.iter().skip(1).all(|(begin, end)| end - begin > 0.7), "{:?}", outcome.windows);
        assert!(outcome.spent <= 0.15 * 30.0 * 1.02, "{}", outcome.spent);
        assert!(outcome.spent >= 0.15 * 30.0 * 0.6, "{}", outcome.spent);
    }

    #[test]
    fn a_budget_that_carries_no_window_is_kept() {
        let outcome = simulate(0.01, 30.0, 0.25, 1.0, |_| 0.95);
        assert_eq!(outcome.windows.len(), 1);
        assert!(outcome.spent <= 0.01 * 30.0 * 1.05, "{}", outcome.spent);
    }

    #[test]
    fn a_load_that_is_over_is_followed_again_in_full() {
        let outcome = simulate(0.15, 60.0, 0.25, 1.0, |at| if at < 10.0 { 0.95 } else { 0.01 });
        let (begin, end) = *outcome.windows.last().expect("a window");
        assert!(begin < 20.0 && end > 59.9, "{:?}", outcome.windows);
    }

    #[test]
    fn what_attaching_has_cost_is_no_rate() {
        let mut controller = Controller::new(0.05, Some(6.0), 0.1);
        assert_eq!(controller.observe(Reading { at: 0.002, spent: 0.07, walking: 0.0 }), Decision::Stay);
        assert_eq!(controller.observe(Reading { at: 0.022, spent: 0.0702, walking: 0.0 }), Decision::Stay);
        assert!((controller.available() - (0.3 - 0.0702 + 0.001)).abs() < 0.002, "{}", controller.available());
    }

    proptest! {
        /// Whatever the node does, it loses no more than the budget and what going blind takes once more than was planned.
        #[test]
        fn the_budget_is_kept(
            budget in 0.01_f64..0.5,
            seconds in 5.0_f64..120.0,
            leaving in 0.05_f64..0.4,
            walks in 0.0_f64..1.0,
            loads in prop::collection::vec(0.0_f64..1.0, 1..6),
        ) {
            let load = |at: f64| {
                let part = seconds / loads.len() as f64;
                let begun = (0_u32..).zip(&loads).take_while(|(number, _)| f64::from(*number) * part <= at);
                begun.last().map_or(0.0, |(_, load)| *load)
            };
            let outcome = simulate(budget, seconds, leaving, walks, load);
            prop_assert!(outcome.spent <= budget * seconds + 0.35, "{} of {}", outcome.spent, budget * seconds);
        }
    }
}
