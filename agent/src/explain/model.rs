//! What is known of a node's memory at one moment? The result that reports and recordings share.

use serde::{Deserialize, Serialize};

use super::owner::Owner;
use crate::{
    erts::alloc::{Depth, statistics::Counters, tally::Sizes},
    libc::glibc::LibcHeap,
    limits::LimitFacts,
    recording::{Node, Snapshot},
};

/// Where each resident byte of a node belongs. All figures are in bytes unless they say otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The node.
    pub node: Node,
    /// Seconds since 1970.
    pub taken_unix: u64,
    /// The kernel's sums for the process.
    pub figures: Snapshot,
    /// Resident bytes in transparent huge pages.
    pub huge: u64,
    /// Resident bytes as they were found, page by page: the sum of the owners and of what has none.
    pub resident: u64,
    /// How deep the look went.
    pub depth: DepthReached,
    /// The owners, by falling bytes.
    pub owners: Vec<Owned>,
    /// Resident bytes without an owner.
    pub unattributed: u64,
    /// Where they are, by falling bytes.
    pub unowned: Vec<Place>,
    /// Where the memory is that native code has mapped, by falling bytes.
    pub mapped: Vec<Place>,
    /// Bytes of `vm.code` that count twice in the RSS, since the VM maps its code twice.
    pub counted_twice: u64,
    /// The allocator instances.
    pub instances: Vec<InstanceFacts>,
    /// Allocators that are switched off, by number: what would be theirs is asked of libc.
    pub disabled: Vec<u32>,
    /// Blocks by their allocation tags, by falling bytes.
    pub tags: Vec<Tagged>,
    /// Allocators whose blocks carry no tags.
    pub untagged: Vec<String>,
    /// What mseg keeps for later.
    pub mseg: Vec<MsegFacts>,
    /// Address space that the VM reserved at its start.
    pub super_carriers: Vec<SuperCarrierFacts>,
    /// The C library's heap. `None`: it could not be walked.
    pub libc: Option<LibcFacts>,
    /// Threads.
    pub threads: usize,
    /// Processes, ports and atoms.
    #[serde(default)]
    pub vm: VmFacts,
    /// The limits that hold for the process, and how much of them it uses. `None`: a core dump or an old image says nothing
    /// of them.
    #[serde(default)]
    pub limits: Option<LimitFacts>,
    /// What is to be known of the figures, one sentence each.
    pub notes: Vec<String>,
    /// Where the tool had to stop, one sentence each.
    pub defects: Vec<String>,
}

/// How deep a look was meant to go, and went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepthReached {
    /// Asked for.
    pub asked: Depth,
    /// What was reached for at least one carrier.
    pub reached: Depth,
    /// Carriers.
    pub carriers: u64,
    /// Those whose blocks were walked.
    pub walked: u64,
    /// Those that the node gave back meanwhile.
    pub gone: u64,
}

impl Default for DepthReached {
    fn default() -> Self {
        Self { asked: Depth::Counters, reached: Depth::Counters, carriers: 0, walked: 0, gone: 0 }
    }
}

/// An owner and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// The owner.
    pub owner: Owner,
    /// Resident bytes.
    pub bytes: u64,
}

/// Resident memory at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What is mapped there, or what is known of it.
    pub what: String,
    /// Resident bytes.
    pub bytes: u64,
}

/// What one allocator instance holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFacts {
    /// `ets_alloc`
    pub allocator: String,
    /// Number of the allocator in this release.
    pub number: u32,
    /// Instance: 0 is the global one, or the only one.
    pub instance: u32,
    /// Multi-block carriers in its hands, as walked.
    pub mbcs: Walked,
    /// Single-block carriers, as walked.
    pub sbcs: Walked,
    /// Carriers in the pool that are its own, as walked.
    pub pool: Walked,
    /// Carriers that are about to go, which the VM counts nowhere.
    pub dying: Walked,
    /// Headers of carriers, and what is left behind the last block.
    pub overhead: u64,
    /// Free bytes in carriers: what is neither block nor header.
    pub free_bytes: u64,
    /// Free blocks; `None` where not all carriers were walked.
    pub free_blocks: Option<u64>,
    /// The largest free block of the walked carriers; `None` where not all of them were.
    pub largest_free_block: Option<u64>,
    /// Free blocks by size, of the walked carriers.
    pub free_sizes: Sizes,
    /// Resident bytes of its carriers.
    pub resident: u64,
    /// Resident free bytes. Where a carrier was not walked: what is resident beyond its blocks.
    pub resident_free: u64,
    /// The part of them that is given up (`MADV_FREE`).
    pub lazily_freed: u64,
    /// The VM's own counters.
    pub counters: Option<Counters>,
    /// Multi-block carriers that few blocks keep from going back.
    #[serde(default)]
    pub pinned: Pinned,
    /// Multi-block carriers without any block, in its hands or in the pool.
    #[serde(default)]
    pub empty: EmptyCarriers,
}

/// Multi-block carriers whose blocks fill less than [`Pinned::BELOW`] of them: all of a carrier stays for the sake of a few
/// blocks. Those that are about to go are not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Carriers.
    pub carriers: u64,
    /// Their bytes.
    pub carrier_bytes: u64,
    /// The resident part of their free bytes: what could go if the blocks lay elsewhere.
    pub resident_free: u64,
    /// Their blocks.
    pub blocks: u64,
    /// The bytes of these, headers included.
    pub block_bytes: u64,
    /// Carriers of which the blocks were walked. What follows is of these alone.
    pub walked: u64,
    /// Sizes of the blocks.
    pub sizes: Sizes,
    /// What the blocks are for, where they carry tags: those with the most blocks, at most [`Pinned::KINDS`].
    pub kinds: Vec<Tagged>,
}

impl Pinned {
    /// The share of a carrier that its blocks fill less of. A carrier goes into the pool when less than 60 to 70 % of it
    /// are used (`+M<S>acul`, `erts_alloc(3)`); what has less than a quarter has been all but given up by the node.
    pub const BELOW: f64 = 0.25;
    /// Kinds of blocks that are named at most.
    pub const KINDS: usize = 5;
}

/// Multi-block carriers without any block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyCarriers {
    /// Carriers.
    pub carriers: u64,
    /// Their bytes.
    pub carrier_bytes: u64,
    /// The resident part, headers included.
    pub resident: u64,
}

/// Carriers and their blocks, as counted from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walked {
    /// Carriers.
    pub carriers: u64,
    /// Their bytes.
    pub carrier_bytes: u64,
    /// Allocated blocks and their bytes, headers included; `None` where those of a carrier are not known.
    pub blocks: Option<(u64, u64)>,
}

/// Blocks with the same tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tagged {
    /// Module of the NIF, name of the driver, or `system`. `None`: the name could not be read.
    pub origin: Option<String>,
    /// Allocation type. `None`: the name could not be read.
    pub kind: Option<String>,
    /// Blocks.
    pub blocks: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Their sizes.
    pub sizes: Sizes,
}

/// How many there are of what the VM has tables of. `None`: the table was not found, or not looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// Processes.
    pub processes: Option<TableFacts>,
    /// Ports.
    pub ports: Option<TableFacts>,
    /// Atoms.
    pub atoms: Option<AtomFacts>,
}

/// The table of processes or of ports, which has its full size from the start of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFacts {
    /// Processes or ports that exist, those that are about to end included.
    pub used: u64,
    /// How many there can be (`+P`, `+Q`).
    pub limit: u64,
    /// Bytes of the table itself: so much is in use even where there are none.
    pub table_bytes: u64,
}

/// The table of atoms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtomFacts {
    /// Atoms.
    pub used: u64,
    /// How many there can be (`+t`): the VM ends when there would be one more.
    pub limit: u64,
}

/// What an instance of mseg keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsegFacts {
    /// Instance.
    pub instance: u32,
    /// Cached segments.
    pub cached_segments: u64,
    /// Their bytes.
    pub cached_bytes: u64,
    /// Requests that the cache served.
    pub cache_hits: u64,
    /// Requests.
    pub calls: u64,
}

/// A super carrier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperCarrierFacts {
    /// `carriers`, `literals`, `unknown`
    pub kind: String,
    /// Reserved bytes.
    pub reserved: u64,
    /// Bytes in use.
    pub used: u64,
}

/// The heap of the C library.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibcFacts {
    /// What was walked.
    pub heap: LibcHeap,
    /// Bytes of the VM's own carriers that lie in its chunks.
    pub vm_bytes: u64,
    /// Resident bytes in chunks in use, without the VM's carriers.
    pub resident_used: u64,
    /// Resident free bytes.
    pub resident_free: u64,
}

impl Explanation {
    /// Whether carriers were looked at. Else no owner is known, and what is not known is not 0.
    pub fn knows_owners(&self) -> bool {
        self.depth.reached > Depth::Counters && !self.owners.is_empty()
    }
}

impl InstanceFacts {
    /// Carriers in its hands, in the pool, and about to go, with their blocks where those of all are known.
    pub fn all(&self) -> Walked {
        [self.mbcs, self.sbcs, self.pool, self.dying].into_iter().fold(Walked::none(), Walked::plus)
    }
}

impl Walked {
    /// No carrier, and so no block.
    pub fn none() -> Self {
        Self { carriers: 0, carrier_bytes: 0, blocks: Some((0, 0)) }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let blocks = self.blocks.zip(other.blocks);
        Self {
            carriers: self.carriers.saturating_add(other.carriers),
            carrier_bytes: self.carrier_bytes.saturating_add(other.carrier_bytes),
            blocks: blocks.map(|(one, two)| (one.0.saturating_add(two.0), one.1.saturating_add(two.1))),
        }
    }
}
