//! Where does the resident memory belong while the recording goes on? One look at the start, one at the end, and some
//! between, beside the other work: the ring buffers must not wait for it.

use std::time::Duration;

use crate::{
    erts::alloc::Depth,
    explain::{
        model::Explanation,
        whose::{Owners, Pages},
    },
    look::{self, Answer, Looking},
    recording::Look,
    target::process::{Target, TargetError},
};

/// Seconds between two looks.
const EVERY: f64 = 10.0;
/// How long blocks are walked at the start and at the end.
const BUDGET: Duration = Duration::from_secs(1);
/// And where the pages have to be given their owners, which needs at least the carriers.
const BUDGET_OF_OWNERS: Duration = Duration::from_secs(4);

/// The looks of a recording.
#[derive(Debug, Default)]
pub(super) struct Looks {
    done: Vec<Look>,
    /// The one that goes on, and when it began.
    going_on: Option<(f64, Looking)>,
    last: f64,
    /// Whose the pages were that the last look was asked about.
    pub(super) owners: Owners,
}

impl Looks {
    /// Looks now, at every block that there is time for; asks about `pages`.
    pub(super) fn take(&mut self, target: &Target, at: f64, pages: Pages, defects: &mut Vec<String>) {
        self.collect(target, defects);
        let budget = if pages.is_empty() { BUDGET } else { BUDGET_OF_OWNERS };
        let answer = look::and_ask(target, Depth::Full, Some(budget), pages);
        self.keep(target, at, answer, defects);
    }

    /// Begins a look when it is time, which asks about `pages`, and takes in one that is done. To be called about once a
    /// second.
    pub(super) fn go_on(&mut self, target: &Target, at: f64, pages: impl FnOnce() -> Pages, defects: &mut Vec<String>) {
        self.collect(target, defects);
        if self.going_on.is_none() && at - self.last >= EVERY {
            self.last = at;
            // The carriers and their headers tell who grows, at a small part of the cost.
            self.going_on = Some((at, Looking::begin(target.pid(), Depth::Headers, BUDGET, pages())));
        }
    }

    /// The looks in the order of time.
    pub(super) fn into_list(self) -> Vec<Look> {
        self.done
    }

    fn collect(&mut self, target: &Target, defects: &mut Vec<String>) {
        let Some((at, looking)) = self.going_on.take() else { return };
        match looking.answer() {
            Answer::Ready(answer) => self.keep(target, at, answer, defects),
            Answer::Pending => self.going_on = Some((at, looking)),
            Answer::Never => say(defects, "a look at the owners of the memory was lost: its thread ended early".into()),
        }
    }

    fn keep(
        &mut self,
        target: &Target,
        at: f64,
        answer: Result<(Explanation, Owners), TargetError>,
        defects: &mut Vec<String>,
    ) {
        match answer {
            Ok((explanation, owners)) => {
                self.done.push(Look { at, explanation });
                self.owners = owners;
            }
            // A process that is gone has no memory; the looks before it stay.
            Err(_) if !target.is_alive() => {}
            Err(error) => {
                say(defects, format!("a look at the owners of the memory is missing: {:#}", anyhow::Error::new(error)));
            }
        }
    }
}

fn say(defects: &mut Vec<String>, defect: String) {
    if !defects.contains(&defect) {
        defects.push(defect);
    }
}
