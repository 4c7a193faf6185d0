//! Which carriers has an allocator instance, and which lie in the pool?

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{
    block,
    instance::Instance,
    layout::{
        CARRIER_WORDS, CPOOL, DC_LIST, FLAGS, FROM_MSEG, Layout, POOL_MARKS, POOL_NEXT, SBC_LIST, SENTINEL,
        SINGLE_BLOCK,
    },
};
use crate::{
    erts::carrier::{CarrierKind, CarrierSource},
    mapping::Address,
    target::memory::{ReadMemory, Unreadable},
    words::{read_block, read_words},
};

/// A `Carrier_t` of a single-block carrier without its pool data, and the header of its block.
const SINGLE_HEADER: usize = 40;
/// Most carriers of a list: 16 TiB in carriers of 32 KiB are fewer than this.
const MOST: usize = 1 << 29;

/// A carrier, as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it begins.
    pub address: Address,
    /// Its size in bytes.
    pub bytes: u64,
    /// What it holds.
    pub kind: CarrierKind,
    /// Where it came from.
    pub source: CarrierSource,
    /// In whose hands it is.
    pub place: Place,
    /// The instance that it belongs to, as an index into the list of instances.
    pub owner: usize,
    /// Blocks and their bytes by the counters in its header, or by the header of its only block. `None`: where the
    /// counters are is not confirmed.
    pub counted: Option<(u64, u64)>,
}

/// Where a carrier is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the list of its allocator instance, which allocates from it.
    Employed,
    /// In the pool, offered to other instances.
    Pooled,
    /// Waiting for all threads to have seen that it is to go (`dc_list`); in no statistic of the VM.
    Dying,
}

/// Why a list could not be followed to its end. Most often the node changed it meanwhile.
#[derive(Debug, Error)]
pub enum ListError {
    /// A link contradicts the list.
    #[error("the list of carriers breaks at {at}: {what}")]
    Broken {
        /// The carrier.
        at: Address,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A carrier's header cannot be read.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

/// The two lists of `instance` and its carriers that are about to go.
pub fn of_instance(
    instance: &Instance,
    owner: usize,
    layout: &Layout,
    memory: &(impl ReadMemory + ?Sized),
) -> Result<Vec<Listed>, ListError> {
    let header = usize::try_from(layout.header_of(instance)).unwrap_or(0);
    let mut carriers = Vec::new();
    let lists = [
        (0, CarrierKind::MultiBlock, Place::Employed),
        (SBC_LIST, CarrierKind::SingleBlock, Place::Employed),
        (DC_LIST, CarrierKind::MultiBlock, Place::Dying),
    ];
    for (offset, kind, place) in lists {
        if place == Place::Dying && !layout.has_pool {
            continue;
        }
        // Read anew: the copy of the instance is older than what was walked so far.
        let at = instance.at.address.checked_add(layout.carrier_lists.saturating_add(offset) as u64);
        let Some(at) = at else { continue };
        let [first, last] = read_words::<2>(memory, at)?;
        let rules = Rules { owner: instance.at.address, kind, place, header, layout };
        rules.follow(owner, first, last, memory, &mut carriers)?;
    }
    Ok(carriers)
}

/// What holds for each carrier of a list.
struct Rules<'a> {
    owner: Address,
    kind: CarrierKind,
    place: Place,
    /// Bytes of a carrier's header that are read.
    header: usize,
    layout: &'a Layout,
}

impl Rules<'_> {
    fn follow(
        &self,
        owner: usize,
        first: u64,
        last: u64,
        memory: &(impl ReadMemory + ?Sized),
        into: &mut Vec<Listed>,
    ) -> Result<(), ListError> {
        let (mut at, mut previous) = (first, 0);
        for _ in 0..MOST {
            if at == 0 {
                break;
            }
            let broken = |what| Err(ListError::Broken { at: Address(at), what });
            let bytes = if self.kind == CarrierKind::MultiBlock { self.header } else { SINGLE_HEADER };
            let words = read_header(Address(at), bytes, memory)?;
            let Some(&[chdr, next, back, allctr]) = words.first_chunk::<CARRIER_WORDS>() else {
                return broken("is cut off");
            };
            // The list of those that go is linked forwards only.
            if self.place == Place::Employed && back != previous {
                return broken("its link back leads elsewhere");
            }
            if allctr & !FLAGS != self.owner.0 {
                return broken("it belongs to another allocator");
            }
            if kind_of(chdr) != self.kind {
                return broken("it is of the other kind");
            }
            // A scan by `instrument` puts dummies without a size into the lists.
            if chdr & !FLAGS != 0 {
                into.push(listed(at, &words, self.place, owner, self.layout));
            }
            (previous, at) = (at, next);
        }
        if previous == last || self.place == Place::Dying {
            Ok(())
        } else {
            Err(ListError::Broken { at: Address(previous), what: "it is not the last one" })
        }
    }
}

/// The carriers in the pools. `owners` maps the address of an instance to its index.
pub fn pooled(
    instances: &[Instance],
    owners: &BTreeMap<u64, usize>,
    layout: &Layout,
    memory: &(impl ReadMemory + ?Sized),
) -> Result<Vec<Listed>, ListError> {
    let mut carriers = Vec::new();
    if !layout.has_pool {
        return Ok(carriers);
    }
    let sentinels: BTreeSet<u64> = instances
        .iter()
        .filter_map(|instance| instance.word(layout.carrier_lists.saturating_add(SENTINEL)))
        .filter(|sentinel| *sentinel != 0)
        .collect();
    let header = instances.iter().map(|instance| layout.header_of(instance)).max();
    let header = usize::try_from(header.unwrap_or(0)).unwrap_or(0);
    for sentinel in sentinels {
        let next_of = |at: u64| {
            let at = Address(at).checked_add(POOL_NEXT).ok_or(ListError::Broken { at: Address(at), what: "wraps" })?;
            let [next] = read_words::<1>(memory, at)?;
            Ok::<u64, ListError>(next & !POOL_MARKS)
        };
        let mut at = next_of(sentinel)?;
        let mut seen = BTreeSet::new();
        while at != sentinel {
            let broken = |what| Err(ListError::Broken { at: Address(at), what });
            if seen.len() >= MOST || !seen.insert(at) {
                return broken("the pool is no ring");
            }
            let Some(carrier) = at.checked_sub(CPOOL) else { return broken("no carrier is there") };
            let words = read_header(Address(carrier), header, memory)?;
            let owner = words.get(3).and_then(|allctr| owners.get(&(allctr & !FLAGS)));
            let Some(&owner) = owner else { return broken("no known allocator owns it") };
            if words.first().is_none_or(|chdr| kind_of(*chdr) == CarrierKind::SingleBlock) {
                return broken("a single-block carrier is in the pool");
            }
            // A carrier that is being taken out has its link still there and no longer belongs to the pool.
            if words.first().is_some_and(|chdr| chdr & !FLAGS != 0) && words.get(3).is_some_and(|word| word & 1 != 0) {
                carriers.push(listed(carrier, &words, Place::Pooled, owner, layout));
            }
            at = next_of(at)?;
        }
    }
    Ok(carriers)
}

/// Reads again what the header of `carrier` says of its size and owner: is it still the same one?
pub fn is_still(carrier: &Listed, owner: Address, memory: &(impl ReadMemory + ?Sized)) -> bool {
    read_words::<CARRIER_WORDS>(memory, carrier.address).is_ok_and(|[chdr, _, _, allctr]| {
        chdr & !FLAGS == carrier.bytes && kind_of(chdr) == carrier.kind && allctr & !FLAGS == owner.0
    })
}

/// The header of a carrier: at least the words that say what it is, and `bytes` where as many can be read.
fn read_header(at: Address, bytes: usize, memory: &(impl ReadMemory + ?Sized)) -> Result<Vec<u64>, Unreadable> {
    let least = CARRIER_WORDS.saturating_mul(8);
    match read_block(memory, at, bytes.max(least)) {
        Err(_) if bytes > least => read_block(memory, at, least),
        answer => answer,
    }
}

fn kind_of(chdr: u64) -> CarrierKind {
    if chdr & SINGLE_BLOCK == 0 { CarrierKind::MultiBlock } else { CarrierKind::SingleBlock }
}

fn listed(at: u64, words: &[u64], place: Place, owner: usize, layout: &Layout) -> Listed {
    let chdr = words.first().copied().unwrap_or_default();
    let kind = kind_of(chdr);
    let counted = match kind {
        CarrierKind::MultiBlock => {
            layout.carrier_blocks.and_then(|offset| counted_blocks(words, offset / 8, layout.types))
        }
        CarrierKind::SingleBlock => {
            words.get(CARRIER_WORDS).and_then(|header| block::single_size(*header)).map(|size| (1, size))
        }
    };
    Listed {
        address: Address(at),
        bytes: chdr & !FLAGS,
        kind,
        source: if chdr & FROM_MSEG == 0 { CarrierSource::Sys } else { CarrierSource::Mseg },
        place,
        owner,
        counted,
    }
}

/// `cpool.blocks` and `blocks_size` of all types, where they agree with `total_blocks_size` behind them.
pub(super) fn counted_blocks(header: &[u64], at: usize, types: usize) -> Option<(u64, u64)> {
    let counters = header.get(at..)?;
    let sum = |words: &[u64]| words.iter().try_fold(0_u64, |sum, word| sum.checked_add(*word));
    let (blocks, rest) = counters.split_at_checked(types)?;
    let (bytes, rest) = rest.split_at_checked(types)?;
    let (blocks, bytes) = (sum(blocks)?, sum(bytes)?);
    (rest.first() == Some(&bytes)).then_some((blocks, bytes))
}
