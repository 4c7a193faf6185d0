//! What does a recording say? The model that all renderings share.

pub mod flame;
mod header;
pub mod json;
mod legend;
pub mod loss;
pub mod markdown;
pub mod memory;
mod page;
pub mod text;
pub(crate) mod verdict;

use std::{cmp::Reverse, collections::BTreeMap};

use self::memory::Memory;
use crate::{
    attribute::{Class, RankedSite, attribute},
    judge::{self, Case, Verdict},
    recording::{Asked, CarrierSeen, FaultSite, Recording, Snapshot},
    wording::{
        label,
        unit::{self, Units},
    },
};

/// What of a report for people is shown, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rows of a table at most.
    pub top: usize,
    /// How bytes are written.
    pub units: Units,
}

impl Default for Options {
    fn default() -> Self {
        Self { top: 10, units: Units::Iec }
    }
}

/// A recording, with an owner for each site, ranked.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// What it is made of.
    pub recording: &'a Recording,
    /// The answers, one for each question.
    pub verdicts: Vec<Verdict>,
    /// The kernel's figures at the start and at the end.
    pub rss: Option<Rss>,
    /// Where the resident memory belonged at the end, and how that grew.
    pub memory: Option<Memory<'a>>,
    /// Sum of the native sites.
    pub native: Total,
    /// Sum of the VM's sites.
    pub vm: Total,
    /// Sum of the sites that are neither.
    pub unknown: Total,
    /// All sites at which the system was asked for memory, by falling outstanding bytes.
    pub sites: Vec<RankedSite<'a>>,
    /// Those at which native code asked the VM, in the same order. Their bytes lie in carriers, so they are in no sum.
    pub vm_api: Vec<RankedSite<'a>>,
    /// The stacks that touched memory first, by falling bytes.
    pub faults: Vec<&'a FaultSite>,
    /// Those at which the VM's allocators asked for carriers, by falling bytes. Which of them are still there is not known.
    pub carriers: Vec<RankedSite<'a>>,
}

/// Resident memory at both ends of the recording.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rss {
    /// At the start.
    pub start: Snapshot,
    /// At the end.
    pub end: Snapshot,
    /// Bytes per second between the two. `None` where they were taken at the same moment.
    pub growth_per_second: Option<f64>,
}

/// Sum over sites.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Total {
    /// Sites.
    pub sites: usize,
    /// Bytes allocated during the recording and not freed by its end.
    pub outstanding_bytes: u64,
    /// Blocks of these bytes.
    pub outstanding_blocks: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// The freed part of them: temporary memory.
    pub freed_bytes: u64,
    /// Growth of the outstanding bytes, where it is known for a site at least.
    pub growth_per_second: Option<f64>,
}

impl<'a> Report<'a> {
    /// Attributes and ranks the sites of `recording`.
    pub fn new(recording: &'a Recording) -> Self {
        let mut carriers: BTreeMap<usize, Vec<&CarrierSeen>> = BTreeMap::new();
        for carrier in &recording.carriers {
            carriers.entry(carrier.site).or_default().push(carrier);
        }
        let mut sites: Vec<_> = recording
            .sites
            .iter()
            .enumerate()
            .map(|(index, site)| {
                let carriers = carriers.get(&index).map_or(&[][..], Vec::as_slice);
                let attribution = attribute(site, carriers);
                RankedSite { site, attribution, growth_per_second: site.outstanding.slope() }
            })
            .collect();
        sites.sort_by(|one, other| {
            let rank =
                |ranked: &RankedSite<'_>| Reverse((ranked.site.outstanding_bytes(), ranked.site.allocated_bytes));
            rank(one).cmp(&rank(other)).then_with(|| one.site.stack.cmp(&other.site.stack))
        });
        let vm_api: Vec<_> = sites.extract_if(.., |ranked| ranked.site.asked == Asked::Vm).collect();
        let carriers = sites.extract_if(.., |ranked| matches!(ranked.site.asked, Asked::Carriers { .. })).collect();
        let verdicts = judge::judge(&Case {
            node: &recording.node,
            interval: Some(&recording.interval),
            followed_seconds: recording.followed_seconds(),
            snapshots: &recording.snapshots,
            looks: Case::with_owners(&recording.looks),
            sites: &sites,
            vm_api: &vm_api,
            faults: &recording.faults,
            losses: &recording.losses,
            counts: &recording.counts,
        });
        let mut faults: Vec<_> = recording.faults.iter().collect();
        faults.sort_by(|one, other| other.bytes.cmp(&one.bytes).then_with(|| one.stack.cmp(&other.stack)));
        let mut report = Self {
            recording,
            verdicts,
            rss: Rss::of(&recording.snapshots),
            memory: Memory::of(&recording.looks),
            native: Total::default(),
            vm: Total::default(),
            unknown: Total::default(),
            sites,
            vm_api,
            faults,
            carriers,
        };
        for ranked in &report.sites {
            match ranked.attribution.class {
                Class::Native { .. } => report.native.add(ranked),
                Class::Vm => report.vm.add(ranked),
                Class::Unknown => report.unknown.add(ranked),
            }
        }
        report
    }

    /// Allocations and frees per second.
    pub fn calls_per_second(&self) -> Option<f64> {
        let names = ["allocated_blocks", "freed_blocks", "failed_allocations", "unknown_frees"];
        let known = names.iter().filter_map(|name| self.recording.counts.get(*name));
        let calls = known.copied().reduce(u64::saturating_add)?;
        let seconds = self.recording.interval.seconds;
        (seconds > 0.0).then(|| calls as f64 / seconds)
    }
}

impl Rss {
    fn of(snapshots: &[Snapshot]) -> Option<Self> {
        let (start, end) = (*snapshots.first()?, *snapshots.last()?);
        let seconds = end.at - start.at;
        let growth_per_second = (seconds > 0.0).then(|| (end.rss as f64 - start.rss as f64) / seconds);
        Some(Self { start, end, growth_per_second })
    }
}

impl Total {
    fn add(&mut self, ranked: &RankedSite<'_>) {
        let site = ranked.site;
        let Self { sites, outstanding_bytes, outstanding_blocks, allocated_bytes, freed_bytes, growth_per_second } =
            self;
        *sites = sites.saturating_add(1);
        *outstanding_bytes = outstanding_bytes.saturating_add(site.outstanding_bytes());
        *outstanding_blocks = outstanding_blocks.saturating_add(site.outstanding_blocks());
        *allocated_bytes = allocated_bytes.saturating_add(site.allocated_bytes);
        *freed_bytes = freed_bytes.saturating_add(site.freed_bytes);
        if let Some(growth) = ranked.growth_per_second {
            *growth_per_second = Some(growth_per_second.unwrap_or(0.0) + growth);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{recording::Site, sample};

    #[test]
    fn every_outstanding_byte_has_one_owner() {
        let recording = sample::recording();
        let report = Report::new(&recording);
        let owned = [report.native, report.vm, report.unknown];
        let all = recording.sites.iter().map(Site::outstanding_bytes).sum::<u64>();
        assert_eq!(owned.iter().map(|total| total.outstanding_bytes).sum::<u64>(), all);
        assert_eq!(owned.map(|total| total.sites), [4, 1, 1]);
    }

    #[test]
    fn the_order_of_the_sites_in_the_recording_does_not_matter() {
        let recording = sample::recording();
        let mut reversed = recording.clone();
        reversed.sites.reverse();
        for carrier in &mut reversed.carriers {
            carrier.site = recording.sites.len() - 1 - carrier.site;
        }
        let stacks = |recording| {
            let sites = Report::new(recording).sites;
            sites.iter().map(|ranked| (ranked.site.clone(), ranked.attribution.clone())).collect::<Vec<_>>()
        };
        assert_eq!(stacks(&recording), stacks(&reversed));
    }

    #[test]
    fn an_empty_recording_has_a_report() {
        let recording =
            Recording { snapshots: Vec::new(), sites: Vec::new(), counts: BTreeMap::new(), ..sample::recording() };
        let report = Report::new(&recording);
        assert_eq!(report.rss, None);
        assert_eq!(report.calls_per_second(), None);
        assert_eq!(report.native, Total::default());
    }
}
