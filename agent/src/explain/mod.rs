//! Where does each resident byte of a node belong? One look, from what the kernel says of the process and from its
//! memory.
//!
//! ```text
//! ProcessView ─┬─► erts::alloc (carriers, blocks) ─► erts::mseg, mmapper (kept) ─► libc (chunks, stacks) ─┬─► Explanation
//! ReadMemory ──┘                       account: each byte once, first come first served                    ┘
//! ```

mod account;
mod claims;
pub mod model;
pub mod owner;
mod pinned;
mod tables;
mod tags;
pub mod whose;

use std::collections::BTreeMap;

use crate::{
    erts::{
        alloc::{self, CarrierFound, Depth, Effort, Survey, list::Place as CarrierPlace, survey::whole, tally::Tally},
        carrier::CarrierKind,
        mmapper::{self, MapperKind, SuperCarrier},
        mseg::{self, MsegInstance},
    },
    extents::Extents,
    target::memory::ReadMemory,
    target::node::Libc,
    view::{ProcessView, Residency},
};
use account::Account;
use model::{DepthReached, Explanation, InstanceFacts, LibcFacts, MsegFacts, SuperCarrierFacts, Walked};
use whose::{Owners, Pages};

/// Explains the memory of the process that `view` is of.
pub fn explain<M: ReadMemory + Sync + ?Sized>(view: &ProcessView, memory: &M, effort: &Effort<'_>) -> Explanation {
    explain_and_ask(view, memory, effort, Pages::default()).0
}

/// Explains the memory of the process that `view` is of, and says whose the pages are that are asked about.
pub fn explain_and_ask<M: ReadMemory + Sync + ?Sized>(
    view: &ProcessView,
    memory: &M,
    effort: &Effort<'_>,
    pages: Pages,
) -> (Explanation, Owners) {
    let mut explanation = Explanation {
        node: view.node.clone(),
        taken_unix: view.taken_unix,
        figures: view.figures,
        huge: view.mappings.iter().fold(0, |sum, memory| memory.huge.saturating_add(sum)),
        resident: view.resident.total(),
        threads: view.threads.len(),
        limits: view.limits.clone(),
        defects: view.defects.clone(),
        ..Explanation::default()
    };
    let mut account = Account::new(view, pages);
    let survey = match alloc::survey(view, memory, effort) {
        Ok(survey) => Some(survey),
        Err(error) => {
            account.complete = false;
            explanation.defects.push(format!("the VM's allocators: {}", whole(&error)));
            None
        }
    };
    let mut vm: Vec<(u64, u64)> = Vec::new();
    if let Some(survey) = &survey {
        account.complete &= survey.defects.is_empty() && survey.depth > Depth::Counters;
        carriers(survey, view, &mut account, &mut explanation);
        pinned::fill(survey, view, memory, &mut explanation.instances);
        vm.extend(survey.carriers.iter().map(CarrierFound::range).map(|range| (range.start, range.end)));
        tags::name(survey, memory, &mut explanation);
    }
    tables::count(survey.as_ref(), view, memory, &mut explanation);
    kept(view, memory, &mut account, &mut vm, &mut explanation);
    if survey.as_ref().is_some_and(|survey| survey.depth == Depth::Counters) {
        explanation.notes.push(
            "carriers were not looked at, so neither they nor the C library's memory and the stacks have owners here"
                .to_owned(),
        );
    } else {
        explanation.libc = libc(view, memory, &Extents::from(vm), &mut account, &mut explanation.defects);
        let stacks = account.stacks(memory);
        if stacks.saturating_add(1) < view.threads.len() && account.complete {
            let threads = view.threads.len();
            explanation
                .notes
                .push(format!("stacks were found of {stacks} of {threads} threads, the main thread apart"));
        }
    }
    let closed = account.close();
    explanation.owners = closed.owners;
    explanation.unattributed = closed.unattributed;
    explanation.unowned = closed.unowned;
    explanation.mapped = closed.mapped;
    explanation.counted_twice = closed.counted_twice;
    remarks(view, &mut explanation);
    (explanation, closed.pages.owners(&view.resident))
}

/// The carriers, in the account and by instance.
fn carriers(survey: &Survey, view: &ProcessView, account: &mut Account<'_>, explanation: &mut Explanation) {
    let depth = DepthReached {
        asked: survey.depth,
        reached: survey.depth,
        carriers: survey.carriers.len() as u64,
        walked: survey.carriers.len().saturating_sub(survey.not_walked) as u64,
        gone: survey.gone as u64,
    };
    explanation.depth = DepthReached { asked: survey.asked, ..depth };
    explanation.defects.extend(survey.defects.iter().cloned());
    explanation.disabled.clone_from(&survey.located.disabled);
    let lazily = LazilyFreed::of(survey, view);
    // Where no carrier was looked at, none is known, and neither is a block.
    let none = if survey.depth == Depth::Counters { Walked::default() } else { Walked::none() };
    let mut instances: Vec<InstanceFacts> = survey
        .instances
        .iter()
        .map(|instance| InstanceFacts {
            allocator: instance.allocator.clone(),
            number: instance.number,
            instance: instance.instance,
            mbcs: none,
            sbcs: none,
            pool: none,
            dying: none,
            free_blocks: none.blocks.map(|_| 0),
            largest_free_block: none.blocks.map(|_| 0),
            counters: instance.counters.clone(),
            ..InstanceFacts::default()
        })
        .collect();
    for carrier in &survey.carriers {
        let Some(facts) = instances.get_mut(carrier.listed.owner) else { continue };
        let lazily_freed = lazily.part_of(carrier.tally.as_ref());
        account.carrier(carrier, &facts.allocator, lazily_freed);
        facts.add(carrier, view.resident.bytes_in(&carrier.range()), lazily_freed);
    }
    explanation.instances = instances;
}

/// How much of what the pages say is lazily freed still is.
///
/// The mark of a page stays when it is written to again; the kernel's sum for the process knows better, and is the
/// limit (kernel: `smaps_account` in `fs/proc/task_mmu.c`, which leaves dirty pages out).
struct LazilyFreed {
    found: u64,
    limit: u64,
}

impl LazilyFreed {
    fn of(survey: &Survey, view: &ProcessView) -> Self {
        let found = survey.carriers.iter().filter_map(|carrier| carrier.tally.as_ref());
        let found = found.fold(0_u64, |sum, tally| sum.saturating_add(tally.lazily_freed_bytes));
        Self { found, limit: view.figures.lazy_free }
    }

    fn part_of(&self, tally: Option<&Tally>) -> u64 {
        let bytes = tally.map_or(0, |tally| tally.lazily_freed_bytes);
        if self.found <= self.limit {
            return bytes;
        }
        let part = u128::from(bytes) * u128::from(self.limit) / u128::from(self.found.max(1));
        u64::try_from(part).unwrap_or(bytes)
    }
}

impl InstanceFacts {
    fn add(&mut self, carrier: &CarrierFound, resident: u64, lazily_freed: u64) {
        let into = match (carrier.listed.place, carrier.listed.kind) {
            (CarrierPlace::Pooled, _) => &mut self.pool,
            (CarrierPlace::Dying, _) => &mut self.dying,
            (CarrierPlace::Employed, CarrierKind::MultiBlock) => &mut self.mbcs,
            (CarrierPlace::Employed, CarrierKind::SingleBlock) => &mut self.sbcs,
        };
        *into = into.plus(Walked { carriers: 1, carrier_bytes: carrier.listed.bytes, blocks: carrier.used() });
        if let Some((_, used)) = carrier.used() {
            let beside = used.saturating_add(carrier.overhead);
            self.free_bytes = self.free_bytes.saturating_add(carrier.listed.bytes.saturating_sub(beside));
        }
        self.overhead = self.overhead.saturating_add(carrier.overhead);
        self.resident = self.resident.saturating_add(resident);
        self.lazily_freed = self.lazily_freed.saturating_add(lazily_freed);
        if let Some(split) = account::Split::of(carrier, resident) {
            self.resident_free = self.resident_free.saturating_add(split.unused);
        }
        let Some(tally) = &carrier.tally else {
            (self.free_blocks, self.largest_free_block) = (None, None);
            return;
        };
        self.free_blocks = self.free_blocks.map(|blocks| blocks.saturating_add(tally.free_blocks));
        self.largest_free_block = self.largest_free_block.map(|largest| largest.max(tally.largest_free_block));
        self.free_sizes.merge(&tally.free_sizes);
    }
}

/// What the VM keeps for new carriers: segments that mseg caches, and the rest of super carriers.
fn kept<M: ReadMemory + ?Sized>(
    view: &ProcessView,
    memory: &M,
    account: &mut Account<'_>,
    vm: &mut Vec<(u64, u64)>,
    explanation: &mut Explanation,
) {
    let Explanation { mseg: mseg_facts, super_carriers, defects, .. } = explanation;
    match mseg::find(view, memory) {
        Ok(found) => {
            defects.extend(found.defects.iter().map(|defect| format!("cached segments: {}", whole(defect))));
            account.complete &= found.defects.is_empty();
            for instance in &found.instances {
                account.cached(&instance.cached);
                vm.extend(instance.cached.iter().map(|range| (range.start, range.end)));
                mseg_facts.push(mseg_of(instance));
            }
        }
        Err(error) => {
            account.complete = false;
            defects.push(format!("cached segments: {}", whole(&error)));
        }
    }
    match mmapper::find(view, memory) {
        Ok(found) => {
            account.super_carriers(&found);
            vm.extend(found.iter().map(|carrier| (carrier.whole.start, carrier.whole.end)));
            super_carriers.extend(found.iter().map(super_carrier));
        }
        Err(error) => {
            account.complete = false;
            defects.push(format!("super carriers: {}", whole(&error)));
        }
    }
}

fn mseg_of(instance: &MsegInstance) -> MsegFacts {
    let bytes = instance.cached.iter().map(|segment| segment.end.saturating_sub(segment.start));
    MsegFacts {
        instance: instance.index,
        cached_segments: instance.cached.len() as u64,
        cached_bytes: bytes.fold(0, u64::saturating_add),
        cache_hits: instance.cache_hits,
        calls: instance.calls.alloc,
    }
}

fn super_carrier(carrier: &SuperCarrier) -> SuperCarrierFacts {
    let kind = match carrier.kind {
        MapperKind::Carriers => "carriers",
        MapperKind::Literals => "literals",
        MapperKind::Unknown => "unknown",
    };
    let reserved = carrier.whole.end.saturating_sub(carrier.whole.start);
    SuperCarrierFacts { kind: kind.to_owned(), reserved, used: carrier.used }
}

fn libc<M: ReadMemory + ?Sized>(
    view: &ProcessView,
    memory: &M,
    vm: &Extents,
    account: &mut Account<'_>,
    defects: &mut Vec<String>,
) -> Option<LibcFacts> {
    let name = view.libc.as_deref().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    if Libc::of(name) == Some(Libc::Musl) {
        defects.push(crate::libc::musl::walk().to_string());
        return None;
    }
    match account.glibc(memory, vm) {
        Ok(facts) => {
            defects.extend(facts.heap.defects.iter().map(|defect| format!("libc: {defect}")));
            Some(facts)
        }
        Err(error) => {
            account.complete = false;
            defects.push(format!("libc: {}", whole(&error)));
            None
        }
    }
}

/// What is to be known of the figures.
fn remarks(view: &ProcessView, explanation: &mut Explanation) {
    let Explanation { notes, disabled, counted_twice, figures, resident, .. } = explanation;
    if !disabled.is_empty() {
        notes.push(format!(
            "{} of the VM's allocators are switched off (+M..e false or +Mea): what would be in their carriers is \
             malloc'ed and counts as native.used",
            disabled.len()
        ));
    }
    if *counted_twice > 0 {
        notes.push(format!(
            "the VM maps its JIT code twice, and the kernel counts it twice: {counted_twice} bytes of vm.code are in the \
             RSS once more than in memory; PSS counts them once"
        ));
    }
    if view.lazily_freed.is_none() && figures.lazy_free > 0 {
        notes.push(format!(
            "{} bytes are given up (MADV_FREE) and still resident; which pages these are, the kernel says to root alone, \
             so they are part of vm.unused and vm.cached here",
            figures.lazy_free
        ));
    }
    if figures.swap > 0 {
        notes.push(format!("{} bytes are swapped out; they are in no owner's figure", figures.swap));
    }
    let Residency::Pages(_) = &view.resident else { return };
    // Two readings of a running process differ a little; more than that would be an error of ours.
    let apart = figures.rss.abs_diff(*resident);
    if apart > figures.rss / 20 {
        notes.push(format!(
            "the kernel's RSS ({}) and the pages found ({resident}) were read at two moments and are {apart} bytes apart",
            figures.rss
        ));
    }
}

/// Sums of a figure by allocator, in the order of their numbers.
pub fn by_allocator<T: Default>(
    instances: &[InstanceFacts],
    mut add: impl FnMut(&mut T, &InstanceFacts),
) -> Vec<(String, T)> {
    let mut sums: BTreeMap<u32, (String, T)> = BTreeMap::new();
    for facts in instances {
        let (_, sum) = sums.entry(facts.number).or_insert_with(|| (facts.allocator.clone(), T::default()));
        add(sum, facts);
    }
    sums.into_values().collect()
}
