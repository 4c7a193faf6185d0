//! Keeps a recording within its budget: asks what it has cost, has [`super::budget`] decide, and has the probes on allocation
//! functions taken away and brought back.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use beamscope_probe::Counter;

use super::{
    Options, Recorder,
    budget::{Controller, Decision, Reading},
};
use crate::{
    kernel::windows::Leaving,
    recording::{BlindSpan, BudgetStep, Cost, Mode},
};

/// How often the cost is asked for at most.
const EVERY: Duration = Duration::from_millis(15);

/// Steps that are kept; a recording of hours can have many windows.
const STEPS: usize = 1000;

/// Seconds in which the share of walks finds its place.
const MOMENT: f64 = 1.0;

/// Counters that tell of calls of which only a part was seen, which is no loss where probes came and went meanwhile.
const OF_PARTS: [Counter; 3] = [Counter::UnmatchedReturns, Counter::AbandonedCalls, Counter::MissedFrees];

/// What is followed, and what it has cost.
#[derive(Debug)]
pub(super) struct Windows {
    /// Decides; `None` where there is nothing to keep to.
    controller: Option<Controller>,
    state: State,
    asked: Instant,
    blind: Vec<BlindSpan>,
    steps: Vec<BudgetStep>,
    /// When the last step was noted, where it is one of walks, or the first of those that it stands for.
    thinned_at: Option<f64>,
    /// Seconds of processor time that it had cost the node when it was over.
    spent: f64,
    /// By the name of the counter.
    forgiven: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
enum State {
    Following,
    /// Since when nothing is followed, what of the processor it took before, and what the counters were.
    Blind {
        since: f64,
        took: f64,
        counters: Vec<u64>,
        /// Where the probes are not gone yet.
        leaving: Option<Leaving>,
    },
}

impl Windows {
    pub(super) fn new(options: &Options) -> Self {
        let controller = (options.mode == Mode::Auto).then(|| {
            let seconds = options.duration.map(|duration| duration.as_secs_f64());
            Controller::new(options.budget, seconds, options.walk_share)
        });
        Self {
            controller,
            state: State::Following,
            asked: Instant::now(),
            blind: Vec::new(),
            steps: Vec::new(),
            thinned_at: None,
            spent: 0.0,
            forgiven: BTreeMap::new(),
        }
    }

    /// Share of each processor's time that walks may take at the start.
    pub(super) fn walk_share(&self, options: &Options) -> f64 {
        self.controller.as_ref().map_or(options.walk_share, Controller::walk_share)
    }

    /// How much of a counter tells of probes that came and went.
    pub(super) fn forgiven(&self, counter: Counter) -> u64 {
        self.forgiven.get(counter.name()).copied().unwrap_or(0)
    }

    fn step(&mut self, at: f64, what: String) {
        match self.steps.len() {
            ..STEPS => self.steps.push(BudgetStep { at, what }),
            STEPS => self.steps.push(BudgetStep { at, what: "steps from here on are not listed".to_owned() }),
            _ => {}
        }
        self.thinned_at = None;
    }

    /// As [`Windows::step`], of how much is walked. What follows within a moment is one step.
    fn step_of_walks(&mut self, at: f64, what: String) {
        let began = self.thinned_at.filter(|began| at - began < MOMENT);
        if began.is_some() {
            self.steps.pop();
        }
        self.step(at, what);
        self.thinned_at = began.or(Some(at));
    }
}

impl Recorder {
    /// Does what it takes to stay within the budget. To be called every few ten milliseconds.
    pub(super) fn keep_budget(&mut self) -> anyhow::Result<()> {
        if self.windows.controller.is_none() || self.windows.asked.elapsed() < EVERY {
            return Ok(());
        }
        self.windows.asked = Instant::now();
        let spent = self.session.spent()?;
        let reading = Reading { at: self.elapsed(), spent: spent.seconds, walking: spent.walking };
        if let State::Blind { leaving, .. } = &mut self.windows.state
            && let Some(over) = leaving.take_if(|leaving| leaving.is_over())
        {
            self.settle(over);
            if let Some(controller) = &mut self.windows.controller {
                controller.blind(reading);
            }
        }
        let Some(controller) = &mut self.windows.controller else { return Ok(()) };
        match controller.observe(reading) {
            Decision::Stay => Ok(()),
            Decision::Walk(share) => {
                self.session.set_walk_share(share)?;
                let what = if share > 0.0 {
                    format!(
                        "the stacks of all allocations are walked for at most {:.1} % of each processor's time, beyond that \
                         those of sampled bytes",
                        share * 100.0
                    )
                } else {
                    "stacks are walked for sampled bytes only".to_owned()
                };
                self.windows.step_of_walks(reading.at, what);
                Ok(())
            }
            Decision::Blind(took) => self.go_blind(took),
            Decision::Follow => self.follow_again(),
        }
    }

    fn go_blind(&mut self, took: f64) -> anyhow::Result<()> {
        let counters = self.counters_of_parts()?;
        // At once, since each moment costs; what is still allocated until the counters are read is not much.
        let Some(leaving) = self.session.leave_blocks() else { return Ok(()) };
        let sites = self.session.sites()?;
        for (key, _) in sites.iter().filter(|(key, _)| key.is_stack != 0) {
            self.stacks.walked(key.caller, &self.session, &self.target, &mut self.ledger)?;
        }
        let since = self.elapsed();
        self.ledger.cut(since, &sites);
        self.windows.state = State::Blind { since, took, counters, leaving: Some(leaving) };
        self.windows.step(since, format!("allocations are not followed any more: that took {}", share(took)));
        Ok(())
    }

    /// Closes the window whose probes are gone or going.
    fn settle(&mut self, leaving: Leaving) {
        match self.session.left(leaving) {
            Ok(live) => self.ledger.settle(live.into_iter()),
            Err(error) => {
                self.ledger.settle(std::iter::empty());
                self.stop_following(&format!(
                    "the blocks that a window left are not known: {:#}",
                    anyhow::Error::new(error)
                ));
            }
        }
    }

    fn follow_again(&mut self) -> anyhow::Result<()> {
        if let Err(error) = self.session.follow_blocks() {
            // A process that is gone allocates nothing.
            if self.target.is_alive() {
                let error = anyhow::Error::new(error);
                self.stop_following(&format!("allocations could not be followed again: {error:#}"));
            }
            return Ok(());
        }
        let sites = self.session.sites()?;
        let at = self.elapsed();
        self.ledger.resume(at, &sites);
        let now = self.counters_of_parts()?;
        let state = std::mem::replace(&mut self.windows.state, State::Following);
        if let State::Blind { since, took, counters, .. } = state {
            for ((counter, now), before) in OF_PARTS.iter().zip(now).zip(counters) {
                *self.windows.forgiven.entry(counter.name()).or_default() += now.saturating_sub(before);
            }
            self.windows.blind.push(blind_span(since, at, took));
        }
        self.windows.step(at, "allocations are followed again".to_owned());
        if let Some(controller) = &mut self.windows.controller {
            controller.followed();
        }
        Ok(())
    }

    /// Nothing is decided any more; what is blind stays so.
    fn stop_following(&mut self, defect: &str) {
        self.windows.controller = None;
        self.defects.push(defect.to_owned());
    }

    fn counters_of_parts(&self) -> anyhow::Result<Vec<u64>> {
        OF_PARTS.iter().map(|counter| Ok(self.session.counter(*counter)?)).collect()
    }

    /// The recording is over after `seconds` and the tables stand still.
    pub(super) fn close_windows(&mut self, seconds: f64) -> anyhow::Result<()> {
        self.windows.spent = self.session.spent()?.seconds;
        self.windows.controller = None;
        let state = std::mem::replace(&mut self.windows.state, State::Following);
        if let State::Blind { since, took, leaving, .. } = state {
            if let Some(leaving) = leaving {
                self.settle(leaving);
            }
            self.windows.blind.push(blind_span(since, seconds, took));
        } else if self.options.mode == Mode::Auto {
            // What follows can take seconds.
            self.session.leave_blocks_alone();
        }
        Ok(())
    }

    /// What the recording has cost, and when it was blind.
    pub(super) fn cost(&mut self) -> anyhow::Result<(Cost, Vec<BlindSpan>)> {
        let is_auto = self.options.mode == Mode::Auto;
        // To take the probes away is part of what the budget has to bear.
        let spent = if is_auto { self.session.spent()?.seconds } else { self.windows.spent };
        let steps = std::mem::take(&mut self.windows.steps);
        let cost = Cost { budget: is_auto.then_some(self.options.budget), node_seconds: Some(spent), steps };
        Ok((cost, std::mem::take(&mut self.windows.blind)))
    }
}

fn blind_span(from: f64, until: f64, took: f64) -> BlindSpan {
    BlindSpan {
        from,
        until,
        reason: format!("to follow every allocation took {}, which is over the budget", share(took)),
    }
}

fn share(share: f64) -> String {
    format!("{:.0} % of one processor's time", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walks_that_are_thinned_step_by_step_are_one_step() {
        let mut windows = Windows::new(&Options::default());
        for (at, what) in [(1.0, "5 %"), (1.1, "3 %"), (1.9, "none"), (2.5, "4 %")] {
            windows.step_of_walks(at, what.to_owned());
        }
        windows.step(2.6, "blind".to_owned());
        windows.step_of_walks(2.7, "2 %".to_owned());
        let steps: Vec<(f64, &str)> = windows.steps.iter().map(|step| (step.at, step.what.as_str())).collect();
        assert_eq!(steps, [(1.9, "none"), (2.5, "4 %"), (2.6, "blind"), (2.7, "2 %")]);
    }
}
