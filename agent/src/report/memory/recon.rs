//! What would `recon_alloc` answer inside the node? (recon 2.5, `recon_alloc`: its words and its definitions.)
//!
//! Everything here is computed from the VM's own counters, as `recon_alloc` does, and not from what was walked.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    erts::alloc::statistics::{Counted, Counters, Extremes},
    explain::model::{InstanceFacts, MsegFacts},
};

/// `recon_alloc:memory/2` for one window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Bytes of blocks.
    pub used: u64,
    /// Bytes of carriers.
    pub allocated: u64,
    /// Bytes of carriers that are in no block.
    pub unused: u64,
    /// Used by allocated.
    pub usage: Option<f64>,
    /// Bytes of carriers by allocator.
    pub allocated_types: BTreeMap<String, u64>,
    /// Bytes of carriers by instance number.
    pub allocated_instances: BTreeMap<u32, u64>,
}

/// `recon_alloc:fragmentation/1`, one row for an allocator instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fragmentation {
    /// `ets_alloc`
    pub allocator: String,
    /// Instance.
    pub instance: u32,
    /// Bytes of blocks by bytes of carriers, single-block ones; 1 where there are none.
    pub sbcs_usage: f64,
    /// The same of multi-block carriers, those in the pool included.
    pub mbcs_usage: f64,
    /// Bytes of blocks in single-block carriers.
    pub sbcs_block_size: u64,
    /// Bytes of single-block carriers.
    pub sbcs_carriers_size: u64,
    /// Bytes of blocks in multi-block carriers.
    pub mbcs_block_size: u64,
    /// Bytes of multi-block carriers.
    pub mbcs_carriers_size: u64,
}

/// `recon_alloc:average_block_sizes/1` for an allocator.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AverageBlockSizes {
    /// Mean bytes of a block in multi-block carriers; 0 where there are none.
    pub mbcs: f64,
    /// The same of single-block carriers.
    pub sbcs: f64,
}

/// `recon_alloc:sbcs_to_mbcs/1`, one row for an allocator instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SbcsToMbcs {
    /// `ets_alloc`
    pub allocator: String,
    /// Instance.
    pub instance: u32,
    /// Blocks in single-block carriers by those in multi-block ones. `None`: there are only the former.
    pub ratio: Option<f64>,
}

/// `recon_alloc:cache_hit_rates/0`, one row for an instance of mseg.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CacheHitRate {
    /// Instance.
    pub instance: u32,
    /// Requests that the cache served, of all; 0 where there were none.
    pub hit_rate: f64,
    /// Requests that it served.
    pub hits: u64,
    /// Requests.
    pub calls: u64,
}

/// Which value of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Now.
    Current,
    /// The largest since the node started. The sum of maxima may never have been reached at one time.
    Max,
}

/// `recon_alloc:memory/2`.
pub fn memory(instances: &[InstanceFacts], window: Window) -> Memory {
    let mut memory = Memory::default();
    for facts in instances.iter().filter(|facts| counts(&facts.allocator)) {
        for kind in kinds(facts, window) {
            let carriers = window.of(kind.carrier_bytes);
            memory.used = memory.used.saturating_add(window.of(kind.all_block_bytes()));
            memory.allocated = memory.allocated.saturating_add(carriers);
            let by_type = memory.allocated_types.entry(facts.allocator.clone()).or_default();
            *by_type = by_type.saturating_add(carriers);
            let by_instance = memory.allocated_instances.entry(facts.instance).or_default();
            *by_instance = by_instance.saturating_add(carriers);
        }
    }
    memory.unused = memory.allocated.saturating_sub(memory.used);
    memory.usage = ratio(memory.used, memory.allocated);
    memory
}

/// `recon_alloc:fragmentation/1`, the instance with most unused bytes first.
pub fn fragmentation(instances: &[InstanceFacts], window: Window) -> Vec<Fragmentation> {
    let mut rows: Vec<_> = instances
        .iter()
        .filter(|facts| counts(&facts.allocator))
        .filter_map(|facts| {
            let counters = facts.counters.as_ref()?;
            let multi = window.multi(counters);
            let sum = |figure: fn(&Counted) -> Extremes| {
                multi.iter().flatten().map(|kind| window.of(figure(kind))).fold(0, u64::saturating_add)
            };
            let mbcs = (sum(Counted::all_block_bytes), sum(|kind| kind.carrier_bytes));
            let sbcs = (window.of(counters.sbcs.all_block_bytes()), window.of(counters.sbcs.carrier_bytes));
            Some(Fragmentation {
                allocator: facts.allocator.clone(),
                instance: facts.instance,
                sbcs_usage: ratio(sbcs.0, sbcs.1).unwrap_or(1.0),
                mbcs_usage: ratio(mbcs.0, mbcs.1).unwrap_or(1.0),
                sbcs_block_size: sbcs.0,
                sbcs_carriers_size: sbcs.1,
                mbcs_block_size: mbcs.0,
                mbcs_carriers_size: mbcs.1,
            })
        })
        .collect();
    let unused = |row: &Fragmentation| {
        let carriers = row.mbcs_carriers_size.saturating_add(row.sbcs_carriers_size);
        carriers.saturating_sub(row.mbcs_block_size.saturating_add(row.sbcs_block_size))
    };
    // Stable: rows with the same figure stay in the order of the instances.
    rows.sort_by_key(|row| std::cmp::Reverse(unused(row)));
    rows
}

/// `recon_alloc:average_block_sizes/1`.
pub fn average_block_sizes(instances: &[InstanceFacts], window: Window) -> BTreeMap<String, AverageBlockSizes> {
    #[derive(Default)]
    struct Sums([(u64, u64); 2]);
    let add = |sums: &mut Sums, facts: &InstanceFacts| {
        let Some(counters) = &facts.counters else { return };
        for (sum, kinds) in sums.0.iter_mut().zip([&window.multi(counters)[..], &[Some(&counters.sbcs)]]) {
            for kind in kinds.iter().flatten() {
                sum.0 = sum.0.saturating_add(window.of(kind.all_block_bytes()));
                sum.1 = sum.1.saturating_add(window.of(kind.all_blocks()));
            }
        }
    };
    let sums = crate::explain::by_allocator::<Sums>(instances, add);
    sums.into_iter()
        .filter(|(allocator, _)| counts(allocator))
        .map(|(allocator, Sums([mbcs, sbcs]))| {
            let mean = |(bytes, blocks)| ratio(bytes, blocks).unwrap_or(0.0);
            (allocator, AverageBlockSizes { mbcs: mean(mbcs), sbcs: mean(sbcs) })
        })
        .collect()
}

/// `recon_alloc:sbcs_to_mbcs/1`.
pub fn sbcs_to_mbcs(instances: &[InstanceFacts], window: Window) -> Vec<SbcsToMbcs> {
    let row = |facts: &InstanceFacts| {
        let counters = facts.counters.as_ref()?;
        let blocks = |kind: &Counted| window.of(kind.all_blocks());
        let multi = window.multi(counters).into_iter().flatten().map(blocks).fold(0, u64::saturating_add);
        let single = blocks(&counters.sbcs);
        let ratio = if single == 0 { Some(0.0) } else { ratio(single, multi) };
        Some(SbcsToMbcs { allocator: facts.allocator.clone(), instance: facts.instance, ratio })
    };
    instances.iter().filter(|facts| counts(&facts.allocator)).filter_map(row).collect()
}

/// `recon_alloc:cache_hit_rates/0`.
pub fn cache_hit_rates(mseg: &[MsegFacts]) -> Vec<CacheHitRate> {
    let row = |facts: &MsegFacts| CacheHitRate {
        instance: facts.instance,
        hit_rate: ratio(facts.cache_hits, facts.calls).unwrap_or(0.0),
        hits: facts.cache_hits,
        calls: facts.calls,
    };
    mseg.iter().map(row).collect()
}

/// The classes of `erlang:memory/0` as far as the allocators give them, by the type of the blocks and not by the
/// allocator in whose carriers they lie (`erts_memory` in `erl_alloc.c`, OTP-25.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErlangMemory {
    /// Heaps of processes. `erlang:memory(processes)` adds the process table and the structures of processes.
    pub processes: u64,
    /// Binaries: `erlang:memory(binary)`.
    pub binary: u64,
    /// Tables: `erlang:memory(ets)`, which adds some static tables.
    pub ets: u64,
    /// Everything else in allocators, temporary memory left out.
    pub other: u64,
    /// All of it. `erlang:memory(total)` adds the code that the JIT made.
    pub total: u64,
    /// Bytes of blocks by the allocator of their type.
    pub by_type: BTreeMap<String, u64>,
}

/// The classes of `erlang:memory/0`. `None`: allocators are switched off, and then the node itself cannot tell them.
pub fn erlang_memory(instances: &[InstanceFacts], disabled: &[u32]) -> Option<ErlangMemory> {
    if !disabled.is_empty() {
        return None;
    }
    let names: BTreeMap<u32, &str> = instances.iter().map(|facts| (facts.number, facts.allocator.as_str())).collect();
    let mut memory = ErlangMemory::default();
    for kind in instances.iter().flat_map(|facts| kinds(facts, Window::Current)) {
        for (number, bytes) in (1..).zip(&kind.block_bytes) {
            let Some(name) = names.get(&number) else { continue };
            let sum = memory.by_type.entry((*name).to_owned()).or_default();
            *sum = sum.saturating_add(bytes.now);
        }
    }
    for (name, bytes) in &memory.by_type {
        let class = match name.as_str() {
            // Not counted by the VM either.
            "temp_alloc" | "test_alloc" => continue,
            "eheap_alloc" => &mut memory.processes,
            "binary_alloc" => &mut memory.binary,
            "ets_alloc" => &mut memory.ets,
            _ => &mut memory.other,
        };
        *class = class.saturating_add(*bytes);
        memory.total = memory.total.saturating_add(*bytes);
    }
    Some(memory)
}

impl Window {
    /// The pool's counters: the VM keeps no maximum of them.
    fn pool(self, counters: &Counters) -> Option<&Counted> {
        counters.pool.as_ref().filter(|_| self == Self::Current)
    }

    /// Multi-block carriers, those in the pool included.
    fn multi(self, counters: &Counters) -> [Option<&Counted>; 2] {
        [Some(&counters.mbcs), self.pool(counters)]
    }

    fn of(self, figure: Extremes) -> u64 {
        match self {
            Self::Current => figure.now,
            Self::Max => figure.most.unwrap_or(figure.now),
        }
    }
}

/// Whether `recon_alloc` counts an allocator: not the one of literals, nor the one of the VM's own tests.
fn counts(allocator: &str) -> bool {
    !matches!(allocator, "literal_alloc" | "test_alloc")
}

/// The counters of an instance by kind of carrier.
fn kinds(facts: &InstanceFacts, window: Window) -> impl Iterator<Item = &Counted> {
    let counters = facts.counters.iter();
    counters.flat_map(move |counters| [Some(&counters.mbcs), Some(&counters.sbcs), window.pool(counters)]).flatten()
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
