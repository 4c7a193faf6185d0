//! Where do the fields of the VM's allocators lie in this VM? Derived at run time and proven by invariants.
//!
//! What stands here as a constant is the same in OTP 23.2.6, 24.2.1, 25.2.3, 27.3.4.1 and 29.1.2
//! (`erts/emulator/beam/erl_alloc_util.{h,c}`); offsets are in bytes.

use std::ops::Range;

use super::{block::Form, instance::Instance};

/// Low bits of sizes and pointers that are flags: `ERTS_ALC_ALIGN_BYTES - 1` is 7 on 64-bit Linux.
pub(super) const FLAGS: u64 = 7;

/// `Carrier_t`: `chdr`, `next`, `prev`, `allctr`, one word each.
pub(super) const CARRIER_WORDS: usize = 4;
/// Begin of the only block of a single-block carrier, and of `cpool` in a multi-block one.
pub(super) const CPOOL: u64 = 32;
/// `cpool.next` in `ErtsAlcCPoolData_t`; `prev` follows.
pub(super) const POOL_NEXT: u64 = 16;
/// Marks in the links of the pool: `ERTS_ALC_CPOOL_PTR_MOD_MRK` and `…_DEL_MRK`.
pub(super) const POOL_MARKS: u64 = 3;
/// `chdr`: from mmap by mseg, else from malloc.
pub(super) const FROM_MSEG: u64 = 1 << 0;
/// `chdr`: holds a single block.
pub(super) const SINGLE_BLOCK: u64 = 1 << 1;

/// From `mbc_list` to `sbc_list`, to `cpool.dc_list` and to `cpool.sentinel` in `Allctr_t`.
pub(super) const SBC_LIST: usize = 16;
pub(super) const DC_LIST: usize = 40;
pub(super) const SENTINEL: usize = 56;

/// Sizes that `mbc_header_size` can have: it holds a `Carrier_t` with its counters, 360 to 440 bytes in OTP 23 to 29.
pub(super) const HEADER_SIZES: Range<u64> = 64..2048;

/// Offsets in the structures of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `name_prefix` in `Allctr_t`; `alloc_no`, `alloc_strat` and `ix` follow, 32 bits each.
    pub name: usize,
    /// `mbc_header_size` in `Allctr_t`; 0: not known yet.
    pub header_size: usize,
    /// `mbc_list` in `Allctr_t`; `sbc_list`, `pooled_tree`, `dc_list` and `sentinel` follow.
    pub carrier_lists: usize,
    /// Whether this VM has a carrier pool.
    pub has_pool: bool,
    /// Numbers of allocators that a counter is kept for in a carrier: `ERTS_ALC_A_COUNT`.
    pub types: usize,
    /// `cpool.blocks` in `Carrier_t`; `blocks_size` and `total_blocks_size` follow. `None`: not confirmed.
    pub carrier_blocks: Option<usize>,
    /// `sbcs` in `Allctr_t`; `mbcs` follows. `None`: not confirmed.
    pub statistics: Option<usize>,
    /// `cpool.stat` in `Allctr_t`. `None`: not confirmed.
    pub pool_statistics: Option<usize>,
    /// Logarithm of the size to which carriers are aligned (`ERTS_SUPER_ALIGN_BITS`). `None`: no block lies far
    /// enough behind the begin of its carrier to tell.
    pub alignment: Option<u32>,
    /// Bytes from an allocation tag to the end of its block: a word, and since OTP 27 two, since a term follows
    /// (`alcu_atag_t` in `erl_alloc_util.c`, OTP-25.2.3 and OTP-27.3.4.1).
    /// `None`: no tag was seen that names a type and an atom, and then none is read.
    pub tag_bytes: Option<u64>,
}

impl Layout {
    /// Size of a `CarriersStats_t`: carriers of three kinds, their maximum and the one of all times, and three pairs
    /// for the blocks of each type.
    pub(super) fn statistics_bytes(&self) -> usize {
        statistics_bytes(self.types)
    }

    /// Whether all counters were found.
    pub(super) fn is_complete(&self) -> bool {
        let pool = self.pool_statistics.is_some() || !self.has_pool;
        self.carrier_blocks.is_some() && self.statistics.is_some() && pool
    }

    /// What the walk through the carriers of `instance` needs.
    pub(super) fn form(&self, instance: &Instance) -> Form {
        let Self { alignment, tag_bytes, .. } = *self;
        Form { header: self.header_of(instance), alignment, tag_bytes }
    }

    /// Bytes before the first block of the multi-block carriers of `instance`; 0 where that is not known yet.
    pub(super) fn header_of(&self, instance: &Instance) -> u64 {
        let size = if self.header_size == 0 { None } else { instance.word(self.header_size) };
        size.filter(|size| HEADER_SIZES.contains(size)).unwrap_or(0)
    }
}

pub(super) fn statistics_bytes(types: usize) -> usize {
    types.saturating_mul(48).saturating_add(80)
}
