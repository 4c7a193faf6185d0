//! Do the blocks of a place stay for good? The question that leaks of native code and through the VM's interfaces share.

use std::collections::BTreeMap;

use super::{
    Amount, Case, Confidence, Fact,
    thresholds::{
        EVEN_AGES, EVEN_AGES_UNFREED, LEAK_BLOCKS, LEAK_BYTES, LEAK_RATE, LEAK_SECONDS, LEVEL, LOST_SHARE, STEADY,
        UNEVEN_AGES, UNFREED,
    },
    trend::{Course, Point, Trend},
};
use crate::{
    attribute::{Class, RankedSite},
    ledger::{Series, Survivors},
    stack::FrameKind,
    wording::label,
};

/// Sites with the same function to be looked at, called on behalf of the same Erlang function.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) place: Place,
    /// What each of its sites has allocated and freed.
    pub(super) allocated_bytes: u64,
    pub(super) freed_bytes: u64,
    pub(super) outstanding_bytes: u64,
    pub(super) outstanding_blocks: u64,
    pub(super) survivors: Survivors,
    series: Series,
    /// Seconds over which its sites were followed.
    seconds: f64,
}

/// Where memory is asked for, as far as its name goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The file of the code that asked. `None`: the VM's own, or not known.
    pub(super) library: Option<String>,
    pub(super) function: Option<String>,
    /// The Erlang function on whose behalf, else the thread.
    pub(super) caller: Option<String>,
}

/// What becomes of a group's blocks.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Finding {
    /// They stay, and more are made all the time.
    Leak(Trend),
    /// They may stay; why that is not sure, and what would tell.
    Suspect(Trend, &'static str),
    /// They do not pile up.
    Settled,
}

/// The `sites` by place, by falling outstanding bytes.
pub(super) fn groups<'a>(case: &Case<'_>, sites: impl Iterator<Item = &'a RankedSite<'a>>) -> Vec<Group> {
    let mut groups: BTreeMap<Place, Group> = BTreeMap::new();
    for ranked in sites {
        let place = Place::of(ranked);
        groups.entry(place.clone()).or_insert_with(|| Group::new(place)).add(ranked, case.seconds_of(ranked.site));
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    // Stable: those with the same bytes stay sorted by place.
    groups.sort_by_key(|group| std::cmp::Reverse(group.outstanding_bytes));
    groups
}

impl Place {
    fn of(ranked: &RankedSite<'_>) -> Self {
        let frames = &ranked.site.stack.frames;
        let library = match &ranked.attribution.class {
            Class::Native { library } => Some(label::clean(library)),
            Class::Vm | Class::Unknown => None,
        };
        let function = ranked.attribution.responsible.and_then(|index| frames.get(index)).map(label::function);
        let erlang = frames.iter().find(|frame| frame.kind == FrameKind::Erlang).map(label::function);
        let thread = || ranked.site.threads.first().map(|name| format!("thread {}", label::clean(name)));
        Self { library, function, caller: erlang.or_else(thread) }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { library, function, caller } = self;
        match (function, library) {
            // `library+0x123` names the library already.
            (Some(function), Some(library)) if function.starts_with(library.as_str()) => f.write_str(function)?,
            (Some(function), Some(library)) => write!(f, "{function} in {library}")?,
            (Some(function), None) => f.write_str(function)?,
            (None, Some(library)) => f.write_str(library)?,
            (None, None) => f.write_str("code without a name")?,
        }
        caller.as_ref().map_or(Ok(()), |caller| write!(f, ", called by {caller}"))
    }
}

impl Group {
    fn new(place: Place) -> Self {
        Self {
            place,
            allocated_bytes: 0,
            freed_bytes: 0,
            outstanding_bytes: 0,
            outstanding_blocks: 0,
            survivors: Survivors::default(),
            series: Series::default(),
            seconds: 0.0,
        }
    }

    fn add(&mut self, ranked: &RankedSite<'_>, seconds: f64) {
        let site = ranked.site;
        self.seconds = self.seconds.max(seconds);
        self.allocated_bytes = self.allocated_bytes.saturating_add(site.allocated_bytes);
        self.freed_bytes = self.freed_bytes.saturating_add(site.freed_bytes);
        self.outstanding_bytes = self.outstanding_bytes.saturating_add(site.outstanding_bytes());
        self.outstanding_blocks = self.outstanding_blocks.saturating_add(site.outstanding_blocks());
        self.survivors.merge(&site.survivors);
        self.series.add(&site.outstanding);
    }

    /// Whether its blocks stay.
    pub(super) fn finding(&self) -> Finding {
        let points: Vec<Point> = self.series.points().iter().map(|point| (point.at, point.value as f64)).collect();
        let Some(trend) = Trend::of(&points) else { return Finding::Settled };
        // The newest quarter is no evidence: all blocks are there for a while.
        let [oldest, older, old, _newest] = self.survivors.bytes;
        let aged = [oldest, older, old].map(|bytes| bytes as f64);
        let (all, least, most) = (
            aged.iter().sum::<f64>(),
            aged.into_iter().fold(f64::INFINITY, f64::min),
            aged.into_iter().fold(0.0, f64::max),
        );
        if all < LEAK_BYTES.value || trend.per_second < LEAK_RATE.value {
            return Finding::Settled;
        }
        if self.seconds < LEAK_SECONDS.value {
            return Finding::Suspect(
                trend,
                "the recording is too short to tell a leak from blocks that live for seconds",
            );
        }
        let evenness = least / most;
        match trend.course(LEAK_BYTES.value, LEAK_RATE.value) {
            Course::Flat | Course::AtOnce | Course::LevelsOff => return Finding::Settled,
            Course::TooFew | Course::Steady | Course::Unclear => {}
        }
        if (self.outstanding_blocks as f64) < LEAK_BLOCKS.value {
            return Finding::Suspect(trend, "there are too few blocks to see whether they stay for good");
        }
        let even = if self.freed_share() <= UNFREED.value { EVEN_AGES_UNFREED } else { EVEN_AGES };
        if evenness >= even.value && trend.late >= STEADY.value {
            // Nearer than the slope where the load is uneven, since a leak begins at nothing.
            Finding::Leak(Trend { per_second: self.outstanding_bytes as f64 / self.seconds, ..trend })
        } else if evenness < UNEVEN_AGES.value
            && oldest as f64 <= most * UNEVEN_AGES.value
            && trend.late < 2.0 * LEVEL.value
        {
            Finding::Settled
        } else {
            Finding::Suspect(trend, "what stays is not spread evenly over the recording")
        }
    }

    fn freed_share(&self) -> f64 {
        self.freed_bytes as f64 / self.allocated_bytes.max(1) as f64
    }

    /// What speaks for a leak, or against it.
    pub(super) fn evidence(&self, source: &'static str) -> Vec<Fact> {
        let Survivors { oldest_seconds, bytes: [oldest, older, old, newest] } = self.survivors;
        let mut facts = vec![
            Fact::new("bytes that were allocated and not freed", Amount::Bytes(self.outstanding_bytes), source),
            Fact::new("blocks that hold them", Amount::Count(self.outstanding_blocks), source),
            Fact::new("part of the allocated bytes that was freed", Amount::Share(self.freed_share()), source),
            Fact::new("age of the oldest block", Amount::Seconds(oldest_seconds), source),
        ];
        for (quarter, bytes) in [("first", oldest), ("second", older), ("third", old), ("last", newest)] {
            let fact = format!("allocated in the {quarter} quarter and still there");
            facts.push(Fact::new(fact, Amount::Bytes(bytes), source));
        }
        facts
    }
}

/// How much the evidence for a leak carries.
pub(super) fn confidence(trend: &Trend, blocks: u64) -> Confidence {
    // A relative error of 1/sqrt(n) is below a tenth from a hundred blocks on.
    let by_blocks = if blocks >= 100 { Confidence::High } else { Confidence::Medium };
    trend.confidence().min(by_blocks)
}

/// The part of the calls that was not followed for want of room, where that is enough to hide a leak.
pub(super) fn lost_share(case: &Case<'_>) -> Option<f64> {
    const CALLS: [&str; 6] = [
        "live_table_full",
        "call_table_full",
        "unmatched_returns",
        "lost_mappings",
        "mapping_call_table_full",
        "dropped_mapping_events",
    ];
    let lost =
        CALLS.iter().filter_map(|name| case.losses.get(*name)).fold(0_u64, |sum, lost| sum.saturating_add(*lost));
    let followed = case.counts.get("allocated_blocks").copied().unwrap_or(0);
    let share = lost as f64 / lost.saturating_add(followed).max(1) as f64;
    (share > LOST_SHARE.value).then_some(share)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A group whose outstanding bytes were `values` at each second, and whose survivors by quarter are `quarters`.
    pub(in crate::judge) fn group(values: &[u64], quarters: [u64; 4], blocks: u64) -> Group {
        let mut group = Group::new(Place { library: Some("x.so".into()), function: Some("f".into()), caller: None });
        for (at, value) in (0_u32..).zip(values) {
            group.series.push(f64::from(at), *value);
        }
        group.survivors = Survivors { oldest_seconds: values.len() as f64, bytes: quarters };
        group.outstanding_bytes = quarters.iter().sum();
        (group.allocated_bytes, group.freed_bytes) = (2 * group.outstanding_bytes, group.outstanding_bytes);
        group.outstanding_blocks = blocks;
        group.seconds = (values.len() - 1) as f64;
        group
    }

    fn is_leak(values: &[u64], quarters: [u64; 4]) -> Option<bool> {
        let values: Vec<u64> = values.iter().map(|kib| kib << 10).collect();
        match group(&values, quarters.map(|kib| kib << 10), 1000).finding() {
            Finding::Leak(_) => Some(true),
            Finding::Suspect(..) => None,
            Finding::Settled => Some(false),
        }
    }

    #[test]
    fn steady_survivors_are_a_leak() {
        assert_eq!(is_leak(&[0, 200, 400, 600, 800, 1000, 1200, 1400, 1600], [400; 4]), Some(true));
        // Amid churn of the same function.
        assert_eq!(is_leak(&[0, 210, 390, 610, 790, 1020, 1190, 1410, 1590], [390, 400, 410, 460]), Some(true));
    }

    #[test]
    fn what_only_looks_like_it_is_none() {
        // A pool that fills once.
        assert_eq!(is_leak(&[0, 1600, 1600, 1600, 1600, 1600, 1600, 1600, 1600], [1600, 0, 0, 0]), Some(false));
        // A cache that levels off.
        assert_eq!(is_leak(&[0, 700, 1100, 1350, 1500, 1570, 1600, 1600, 1600], [1100, 400, 100, 0]), Some(false));
        // Balanced churn.
        assert_eq!(is_leak(&[0, 90, 110, 95, 100, 105, 90, 110, 100], [0, 0, 0, 100]), Some(false));
        // Sessions that live for two seconds.
        assert_eq!(is_leak(&[0, 200, 400, 400, 400, 400, 400, 400, 400], [0, 0, 0, 400]), Some(false));
        // A burst at the end.
        assert_eq!(is_leak(&[0, 0, 0, 0, 0, 0, 0, 0, 1600], [0, 0, 0, 1600]), Some(false));
        // Too little.
        assert_eq!(is_leak(&[0, 10, 20, 30, 40, 50, 60, 70, 80], [20; 4]), Some(false));
    }

    #[test]
    fn what_could_be_either_is_open() {
        // It began in the middle of the recording.
        assert_eq!(is_leak(&[0, 0, 0, 0, 0, 400, 800, 1200, 1600], [0, 0, 800, 800]), None);
        // Few blocks.
        let few = group(&[0, 1 << 20, 2 << 20, 3 << 20, 4 << 20], [1 << 20; 4], 4);
        assert!(matches!(few.finding(), Finding::Suspect(..)), "{:?}", few.finding());
        // A short recording.
        let short = group(&[0, 1 << 20, 2 << 20], [1 << 20; 4], 400);
        assert!(matches!(short.finding(), Finding::Suspect(..)));
    }
}
