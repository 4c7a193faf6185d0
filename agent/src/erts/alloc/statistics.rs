//! What do the VM's own counters say of an allocator instance? They are what `erlang:system_info({allocator, A})`
//! prints, and what `recon_alloc` computes with.

use serde::{Deserialize, Serialize};

use super::{instance::Instance, layout::Layout};

/// Counters of an allocator instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Multi-block carriers in the instance's hands.
    pub mbcs: Counted,
    /// Single-block carriers.
    pub sbcs: Counted,
    /// Carriers that the instance made and that lie in the pool. `None`: the place of these counters is not confirmed.
    pub pool: Option<Counted>,
}

/// Carriers and blocks of one kind, now and at their maximum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Carriers.
    pub carriers: Extremes,
    /// Their bytes.
    pub carrier_bytes: Extremes,
    /// Blocks in them, by the number of the allocator whose type they have, from 1 on.
    pub blocks: Vec<Extremes>,
    /// Bytes of these blocks, headers included.
    pub block_bytes: Vec<Extremes>,
}

/// A figure now, and the largest that it has been since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extremes {
    /// Now.
    pub now: u64,
    /// At most. `None`: the VM does not keep it.
    pub most: Option<u64>,
}

impl Extremes {
    fn now(now: u64) -> Self {
        Self { now, most: None }
    }

    /// Adds another figure: the sum of maxima is what `recon_alloc` prints, though they need not have been at a time.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let most = self.most.unwrap_or(self.now).checked_add(other.most.unwrap_or(other.now));
        let known = self.most.is_some() || other.most.is_some();
        Self { now: self.now.saturating_add(other.now), most: most.filter(|_| known) }
    }
}

impl Counted {
    /// Blocks of all types.
    pub fn all_blocks(&self) -> Extremes {
        self.blocks.iter().fold(Extremes::default(), |sum, blocks| sum.plus(*blocks))
    }

    /// Bytes of all blocks.
    pub fn all_block_bytes(&self) -> Extremes {
        self.block_bytes.iter().fold(Extremes::default(), |sum, bytes| sum.plus(*bytes))
    }
}

impl Counters {
    /// The counters of `instance`; `None` where their place is not confirmed.
    pub fn of(instance: &Instance, layout: &Layout) -> Option<Self> {
        let statistics = layout.statistics?;
        let of_kind = |offset: usize| carriers_stats(instance, offset, layout.types);
        Some(Self {
            sbcs: of_kind(statistics)?,
            mbcs: of_kind(statistics.checked_add(layout.statistics_bytes())?)?,
            pool: layout.pool_statistics.and_then(|offset| pool_stats(instance, offset, layout.types)),
        })
    }
}

/// `CarriersStats_t` (`erl_alloc_util.h`): `carriers` by source, `max`, `max_ever`, and blocks by type with
/// `curr`, `max` and `max_ever`; always number and size.
fn carriers_stats(instance: &Instance, offset: usize, types: usize) -> Option<Counted> {
    let word = |index: usize| instance.word(offset.checked_add(index.checked_mul(8)?)?);
    // `max` is that of the time since the last call that resets it, `max_ever` of the times before: the VM prints the
    // larger one.
    let most = |max: usize, ever: usize| Some(word(max)?.max(word(ever)?));
    let sum = |one: usize, two: usize| Some(word(one)?.saturating_add(word(two)?));
    let mut counted = Counted {
        carriers: Extremes { now: sum(0, 2)?, most: most(6, 8) },
        carrier_bytes: Extremes { now: sum(1, 3)?, most: most(7, 9) },
        blocks: Vec::with_capacity(types),
        block_bytes: Vec::with_capacity(types),
    };
    for number in 0..types {
        let at = 10 + 6 * number;
        counted.blocks.push(Extremes { now: word(at)?, most: most(at + 2, at + 4) });
        counted.block_bytes.push(Extremes { now: word(at + 1)?, most: most(at + 3, at + 5) });
    }
    Some(counted)
}

/// `cpool.stat`: `blocks_size` and `no_blocks` by type, `carriers_size`, `no_carriers` (`erl_alloc_util.h`).
pub(super) fn pool_stats(instance: &Instance, offset: usize, types: usize) -> Option<Counted> {
    let word = |index: usize| instance.word(offset.checked_add(index.checked_mul(8)?)?);
    let figures = |from: usize| -> Option<Vec<Extremes>> {
        (from..from + types).map(|index| word(index).map(Extremes::now)).collect()
    };
    Some(Counted {
        block_bytes: figures(0)?,
        blocks: figures(types)?,
        carrier_bytes: Extremes::now(word(2 * types)?),
        carriers: Extremes::now(word(2 * types + 1)?),
    })
}
