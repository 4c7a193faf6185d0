//! What do all allocators of a VM hold at this moment?

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use thiserror::Error;

use super::{
    block::{self, BlockSink as _, WalkError},
    calibrate::{CalibrationError, calibrate},
    instance::Instance,
    layout::{CPOOL, Layout},
    list::{self, Listed, Place},
    locate::{LocateError, Located, locate},
    statistics::Counters,
    tally::{Counter, Tally},
};
use crate::{
    erts::{carrier::CarrierKind, tag::TagNames},
    retry::{again, times},
    target::memory::{ReadMemory, Unreadable},
    view::ProcessView,
    words::Words,
};

/// Tries of a long walk, during which a running node may change something.
const TRIES: usize = 12;
/// Carriers that could not be walked and are named one by one.
const FAILURES_TOLD: usize = 8;

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// The VM's own counters.
    Counters,
    /// The lists of carriers and what their headers count.
    Headers,
    /// Every block.
    Full,
}

/// How to look, and for how long.
#[expect(missing_debug_implementations, reason = "a function has nothing to show")]
pub struct Effort<'a> {
    /// How deep at most.
    pub depth: Depth,
    /// Threads that walk blocks.
    pub threads: usize,
    /// Whether the time is over: carriers that are left then stay at the depth of headers.
    pub is_over: &'a (dyn Fn() -> bool + Sync),
}

/// What the allocators hold.
#[derive(Debug)]
pub struct Survey {
    /// How they were found.
    pub located: Located,
    /// Where the fields of their structures are.
    pub layout: Layout,
    /// The names in allocation tags.
    pub names: TagNames,
    /// The instances, as the indices in the carriers mean them.
    pub instances: Vec<Surveyed>,
    /// The carriers, by rising address.
    pub carriers: Vec<CarrierFound>,
    /// How deep the look was to go.
    pub asked: Depth,
    /// How deep the look went: full where the blocks of each carrier were walked.
    pub depth: Depth,
    /// Carriers whose blocks were not walked: there was no time, it was not asked for, or the walk failed.
    pub not_walked: usize,
    /// Carriers that the node gave back while they were looked at.
    pub gone: usize,
    /// Where the walk had to stop, one sentence each.
    pub defects: Vec<String>,
}

/// An allocator instance.
#[derive(Clone, Debug)]
pub struct Surveyed {
    /// `ets_alloc`
    pub allocator: String,
    /// Number of the allocator in this release.
    pub number: u32,
    /// Instance: 0 is the global one, or the only one.
    pub instance: u32,
    /// The VM's own counters, where their place was confirmed.
    pub counters: Option<Counters>,
    /// The begin of its `Allctr_t`.
    pub memory: Instance,
}

/// A carrier and what is in it.
#[derive(Clone, Debug)]
pub struct CarrierFound {
    /// What its header says.
    pub listed: Listed,
    /// Bytes of its header, and behind its last block.
    pub overhead: u64,
    /// Its blocks; `None`: not walked, and then `listed.counted` is what is known.
    pub tally: Option<Tally>,
    /// The resident part of its header, and of what lies behind the last block.
    pub resident_overhead: u64,
}

impl CarrierFound {
    /// The memory that it covers.
    pub fn range(&self) -> Range<u64> {
        let start = self.listed.address.0;
        start..start.saturating_add(self.listed.bytes)
    }

    /// Allocated blocks and their bytes, by the walk or else by the carrier's own counters, where these fit into it.
    pub fn used(&self) -> Option<(u64, u64)> {
        if let Some(tally) = &self.tally {
            return Some((tally.used_blocks, tally.used_bytes));
        }
        let room = self.listed.bytes.saturating_sub(self.overhead);
        self.listed.counted.filter(|(_, bytes)| *bytes <= room)
    }
}

/// Why nothing can be said of the allocators.
#[derive(Debug, Error)]
pub enum SurveyError {
    /// They were not found.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// Their structures are of an unknown kind.
    #[error("the structures of the VM's allocators are of an unknown form, and nothing is guessed of them")]
    Calibrate(#[from] CalibrationError),
    /// An allocator cannot be read.
    #[error("an allocator of the VM cannot be read")]
    Unreadable(#[from] Unreadable),
}

/// Looks at all allocators.
pub fn survey<M: ReadMemory + Sync + ?Sized>(
    view: &ProcessView,
    memory: &M,
    effort: &Effort<'_>,
) -> Result<Survey, SurveyError> {
    let located = locate(view, memory)?;
    let names = TagNames::find(view, memory);
    let layout = calibrated(&located, &names, memory)?;
    let mut defects = Vec::new();
    let instances = copies(&located, memory)?;
    // Carriers are few beside blocks, and without them no byte has an owner: they are looked at in any case.
    let asked = effort.depth;
    let (instances, mut carriers) = match asked {
        Depth::Counters => (instances, Vec::new()),
        Depth::Headers | Depth::Full => listed(&located, &layout, memory, &mut defects)?,
    };
    let gone = if asked == Depth::Full {
        let walk = Walk { view, memory, layout: &layout, instances: &instances };
        walk.all(&mut carriers, effort, &mut defects)
    } else {
        0
    };
    for carrier in &mut carriers {
        if carrier.tally.is_none() {
            let header = instances.get(carrier.listed.owner).map(|instance| layout.header_of(instance));
            carrier.overhead = header_bytes(&carrier.listed, header.unwrap_or(0));
            let start = carrier.listed.address.0;
            carrier.resident_overhead = view.resident.bytes_in(&(start..start.saturating_add(carrier.overhead)));
        }
    }
    let not_walked = carriers.iter().filter(|carrier| carrier.tally.is_none()).count();
    let depth = if not_walked == carriers.len() && !carriers.is_empty() { Depth::Headers } else { asked };
    let surveyed = |copy: Instance| Surveyed {
        allocator: copy.allocator(layout.name, memory).unwrap_or_default(),
        number: copy.at.number,
        instance: copy.at.instance,
        counters: Counters::of(&copy, &layout),
        memory: copy,
    };
    let instances = instances.into_iter().map(surveyed).collect();
    Ok(Survey { names, asked: effort.depth, located, instances, carriers, depth, not_walked, gone, defects, layout })
}

fn copies<M: ReadMemory + ?Sized>(located: &Located, memory: &M) -> Result<Vec<Instance>, Unreadable> {
    located.instances.iter().map(|at| Instance::read(*at, memory)).collect()
}

fn calibrated<M: ReadMemory + ?Sized>(located: &Located, names: &TagNames, memory: &M) -> Result<Layout, SurveyError> {
    let once =
        || -> Result<Layout, SurveyError> { Ok(calibrate(&copies(located, memory)?, located.records, names, memory)?) };
    let mut layout = again(once)?;
    // What a busy node hides once it may show the next time.
    for _ in 1..TRIES {
        if layout.is_complete() {
            break;
        }
        layout = again(once)?;
    }
    Ok(layout)
}

/// The instances and all of their carriers, by rising address.
///
/// A carrier can go to the pool, and from there to another instance, while the lists are read. So the pool is read
/// before and after them: what moved one way is in the first reading, what moved the other way in the second. What is
/// in the first alone has moved on to an instance or is gone, and then all is read again.
fn listed<M: ReadMemory + ?Sized>(
    located: &Located,
    layout: &Layout,
    memory: &M,
    defects: &mut Vec<String>,
) -> Result<(Vec<Instance>, Vec<CarrierFound>), SurveyError> {
    let mut tries = 1;
    loop {
        let instances = copies(located, memory)?;
        let owners: BTreeMap<u64, usize> =
            instances.iter().zip(0..).map(|(one, index)| (one.at.address.0, index)).collect();
        let mut failures = Vec::new();
        let mut pool = || {
            again(|| list::pooled(&instances, &owners, layout, memory)).unwrap_or_else(|error| {
                failures.push(format!("carriers in the pool are missing: {}", whole(&error)));
                Vec::new()
            })
        };
        let before = pool();
        let mut found: BTreeMap<u64, Listed> = BTreeMap::new();
        let mut broken = Vec::new();
        for (owner, instance) in instances.iter().enumerate() {
            match again(|| list::of_instance(instance, owner, layout, memory)) {
                Ok(list) => found.extend(list.into_iter().map(|carrier| (carrier.address.0, carrier))),
                Err(error) => {
                    let name = instance.allocator(layout.name, memory).unwrap_or_default();
                    let number = instance.at.instance;
                    broken.push(format!("carriers of {name} {number} are missing: {}", whole(&error)));
                }
            }
        }
        found.extend(pool().into_iter().map(|carrier| (carrier.address.0, carrier)));
        failures.append(&mut broken);
        let moved = before.iter().filter(|carrier| !found.contains_key(&carrier.address.0)).count();
        if moved > 0 {
            failures.push(format!("carriers that left the pool while it was read are missing: {moved}"));
        }
        if failures.is_empty() || tries == TRIES {
            defects.append(&mut failures);
            return Ok((instances, without_overlaps(found, defects)));
        }
        tries += 1;
    }
}

/// Two carriers never share memory: where they seem to, the second one is what is left of an older one.
fn without_overlaps(found: BTreeMap<u64, Listed>, defects: &mut Vec<String>) -> Vec<CarrierFound> {
    let mut carriers: Vec<CarrierFound> = Vec::with_capacity(found.len());
    let mut refused = 0_usize;
    for listed in found.into_values() {
        let end = carriers.last().map_or(0, |last| last.range().end);
        let wraps = listed.address.checked_add(listed.bytes).is_none();
        if listed.address.0 < end || wraps {
            refused += 1;
        } else {
            carriers.push(CarrierFound { listed, overhead: 0, tally: None, resident_overhead: 0 });
        }
    }
    if refused > 0 {
        defects.push(format!("carriers that overlap others were left out: {refused}"));
    }
    carriers
}

fn header_bytes(carrier: &Listed, multi_block: u64) -> u64 {
    let header = if carrier.kind == CarrierKind::MultiBlock { multi_block } else { CPOOL };
    header.min(carrier.bytes)
}

/// An error with its causes.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

struct Walk<'a, M: ?Sized> {
    view: &'a ProcessView,
    memory: &'a M,
    layout: &'a Layout,
    instances: &'a [Instance],
}

enum Outcome {
    Walked {
        tally: Tally,
        end: u64,
    },
    /// The node has given the carrier back meanwhile.
    Gone,
    Failed(WalkError),
}

impl<M: ReadMemory + Sync + ?Sized> Walk<'_, M> {
    /// Walks the carriers in the time that there is. Those that are gone are taken out, and their number returned.
    fn all(&self, carriers: &mut Vec<CarrierFound>, effort: &Effort<'_>, defects: &mut Vec<String>) -> usize {
        let next = AtomicUsize::new(0);
        let listed: &[CarrierFound] = carriers;
        let work = || {
            let mut words = Words::new(self.memory);
            let mut outcomes = Vec::new();
            while !(effort.is_over)() {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(carrier) = listed.get(index) else { break };
                outcomes.push((index, self.one(&mut words, &carrier.listed)));
            }
            outcomes
        };
        let mut outcomes = thread::scope(|scope| {
            let others: Vec<_> = (1..effort.threads.max(1)).map(|_| scope.spawn(work)).collect();
            let mut outcomes = work();
            for other in others {
                // A thread that has panicked has walked nothing that counts; its carriers stay unwalked.
                outcomes.append(&mut other.join().unwrap_or_default());
            }
            outcomes
        });
        outcomes.sort_by_key(|(index, _)| *index);
        let mut gone = Vec::new();
        let mut failures = Vec::new();
        for (index, outcome) in outcomes {
            let Some(carrier) = carriers.get_mut(index) else { continue };
            match outcome {
                Outcome::Walked { tally, end } => self.take_in(carrier, tally, end),
                Outcome::Gone => gone.push(index),
                Outcome::Failed(error) => failures.push(self.failure(&carrier.listed, &error)),
            }
        }
        let more = failures.len().saturating_sub(FAILURES_TOLD);
        defects.extend(failures.into_iter().take(FAILURES_TOLD));
        if more > 0 {
            defects.push(format!("blocks of {more} more carriers could not be walked to their end"));
        }
        let mut index = 0;
        carriers.retain(|_| {
            index += 1;
            gone.binary_search(&(index - 1)).is_err()
        });
        gone.len()
    }

    fn take_in(&self, carrier: &mut CarrierFound, tally: Tally, end: u64) {
        let range = carrier.range();
        let header = self.instances.get(carrier.listed.owner).map(|one| self.layout.header_of(one));
        let header = header_bytes(&carrier.listed, header.unwrap_or(0));
        let behind = if carrier.listed.kind == CarrierKind::MultiBlock { range.end.saturating_sub(end) } else { 0 };
        let resident = |range: Range<u64>| self.view.resident.bytes_in(&range);
        carrier.overhead = header.saturating_add(behind);
        carrier.resident_overhead = resident(range.start..range.start.saturating_add(header));
        if behind > 0 {
            carrier.resident_overhead = carrier.resident_overhead.saturating_add(resident(end..range.end));
        }
        carrier.tally = Some(tally);
    }

    fn one(&self, words: &mut Words<'_, M>, carrier: &Listed) -> Outcome {
        let Some(owner) = self.instances.get(carrier.owner) else { return Outcome::Gone };
        let mut gone = false;
        let walked = times(TRIES, || {
            words.forget();
            if gone {
                return Ok(None);
            }
            let attempt = self.attempt(words, carrier, owner);
            gone = attempt.is_err() && !self.is_still(carrier);
            attempt.map(Some)
        });
        match walked {
            Ok(Some((tally, end))) => Outcome::Walked { tally, end },
            Ok(None) => Outcome::Gone,
            Err(_) if gone => Outcome::Gone,
            Err(error) => Outcome::Failed(error),
        }
    }

    /// A carrier may have another owner since it was listed: it went through the pool.
    fn is_still(&self, carrier: &Listed) -> bool {
        self.instances.iter().any(|owner| list::is_still(carrier, owner.at.address, self.memory))
    }

    fn attempt(&self, words: &mut Words<'_, M>, carrier: &Listed, owner: &Instance) -> Result<(Tally, u64), WalkError> {
        let range = carrier.address.0..carrier.address.0.saturating_add(carrier.bytes);
        let view = self.view;
        let mut counter = Counter::new(&view.resident, view.lazily_freed.as_ref());
        if carrier.kind == CarrierKind::SingleBlock {
            let (block, tag) = block::single(words, &range, self.layout.tag_bytes)?;
            let behind = block.end..range.end;
            counter.used(block, tag);
            counter.behind(behind);
            return Ok((counter.tally(), range.end));
        }
        let end = block::walk(words, &range, self.layout.form(owner), &mut counter)?;
        Ok((counter.tally(), end))
    }

    fn failure(&self, carrier: &Listed, error: &WalkError) -> String {
        let owner = self.instances.get(carrier.owner);
        let name = owner.and_then(|owner| owner.allocator(self.layout.name, self.memory)).unwrap_or_default();
        let number = owner.map_or(0, |owner| owner.at.instance);
        let at = carrier.address;
        let place = if carrier.place == Place::Pooled { ", in the pool" } else { "" };
        format!("blocks of the carrier at {at} of {name} {number}{place} could not be walked: {}", whole(error))
    }
}
