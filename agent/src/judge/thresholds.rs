//! What counts as much, as steady and as enough to judge by? All limits of the judgement, each with its reason.

/// A limit that a verdict was judged by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Its name in reports.
    pub name: &'static str,
    /// The limit.
    pub value: f64,
    /// `bytes`, `bytes/s`, `blocks`, `s`, `share`, `ratio`, `looks`
    pub unit: &'static str,
    /// Why it is what it is.
    pub reason: &'static str,
}

/// All of them, in the order of the questions.
pub(super) const ALL: &[Threshold] = &[
    LEAK_BYTES,
    LEAK_RATE,
    LEAK_BLOCKS,
    LEAK_SECONDS,
    EVEN_AGES,
    EVEN_AGES_UNFREED,
    UNFREED,
    UNEVEN_AGES,
    CERTAIN_SLOPE,
    STEADY,
    LEVEL,
    AT_ONCE,
    FEW_POINTS,
    NATIVE_GROWTH_BYTES,
    BACKED_BY_GROWTH,
    LOST_SHARE,
    VM_GROWTH_BYTES,
    VM_GROWTH_RATE,
    VM_GROWTH_SHARE,
    THINGS,
    QUEUED_BYTES,
    WASTE_BYTES,
    FRAGMENTED_SHARE,
    FRAGMENTED_USE,
    RETAINED_SHARE,
    RECLAIMABLE_SHARE,
    NEAR_LIMIT,
    STATIC_SHARE,
    FILES_SHARE,
];

/// Fewest bytes of old survivors that make a leak.
pub(super) const LEAK_BYTES: Threshold = Threshold {
    name: "leak_bytes",
    value: 131_072.0,
    unit: "bytes",
    reason: "what a library sets up for itself once, such as tables and buffers, is mostly smaller",
};
/// Slowest leak that is told from none.
pub(super) const LEAK_RATE: Threshold = Threshold {
    name: "leak_rate",
    value: 4096.0,
    unit: "bytes/s",
    reason: "350 MB a day; what is slower needs a recording of hours to stand out from caches",
};
/// Fewest blocks that make a leak.
pub(super) const LEAK_BLOCKS: Threshold = Threshold {
    name: "leak_blocks",
    value: 8.0,
    unit: "blocks",
    reason: "fewer cannot show that there are survivors of all ages",
};
/// Shortest time in which a leak can show.
pub(super) const LEAK_SECONDS: Threshold = Threshold {
    name: "leak_seconds",
    value: 2.5,
    unit: "s",
    reason: "in less time, blocks of ordinary requests look like survivors",
};
/// How even the survivors' ages must be: those of the poorest of the three older quarters against the richest.
pub(super) const EVEN_AGES: Threshold = Threshold {
    name: "even_ages",
    value: 0.5,
    unit: "ratio",
    reason: "a leak leaves as much behind in each quarter; a cache that fills leaves more in the first, blocks that are \
             freed late leave more in the last",
};
/// The same where next to nothing of what was allocated was freed.
pub(super) const EVEN_AGES_UNFREED: Threshold = Threshold {
    name: "even_ages_unfreed",
    value: 0.25,
    unit: "ratio",
    reason: "the load of a node varies; where nothing is freed, no lifetime explains what stays",
};
/// Freed part of the allocated bytes below which next to nothing was freed.
pub(super) const UNFREED: Threshold = Threshold {
    name: "unfreed",
    value: 0.1,
    unit: "share",
    reason: "blocks that live for half of a recording would be freed to more than a half by its end",
};
/// Less even than this, they are no sign of a leak at all where growth ends as well.
pub(super) const UNEVEN_AGES: Threshold = Threshold {
    name: "uneven_ages",
    value: 0.1,
    unit: "ratio",
    reason: "below it a quarter has next to no survivors, so that what was allocated then was freed",
};
/// How far the slope must stand above its standard error.
pub(super) const CERTAIN_SLOPE: Threshold = Threshold {
    name: "certain_slope",
    value: 4.0,
    unit: "ratio",
    reason: "chance reaches it in less than one of a thousand recordings, also with few points",
};
/// Growth in the second half against that of the whole, from which on it is steady.
pub(super) const STEADY: Threshold = Threshold {
    name: "steady",
    value: 0.5,
    unit: "ratio",
    reason: "what grows as fast in the second half as in the first has 1; what only fills up goes towards 0",
};
/// The same, below which it levels off.
pub(super) const LEVEL: Threshold = Threshold {
    name: "levels_off",
    value: 0.25,
    unit: "ratio",
    reason: "three quarters or more of the growth were in the first half",
};
/// Share of the growth in one interval between two points from which on it came at once.
pub(super) const AT_ONCE: Threshold = Threshold {
    name: "at_once",
    value: 0.7,
    unit: "share",
    reason: "a pool that is filled once, or one large request, is a step; a leak has many",
};
/// Fewest points that a course can be told from.
pub(super) const FEW_POINTS: Threshold = Threshold {
    name: "few_points",
    value: 4.0,
    unit: "looks",
    reason: "with three, a step in the middle and a steady slope look alike",
};
/// Smallest growth of all native memory that matters where no site explains it.
pub(super) const NATIVE_GROWTH_BYTES: Threshold = Threshold {
    name: "native_growth_bytes",
    value: 1_048_576.0,
    unit: "bytes",
    reason: "caches of threads and arenas of the C library come and go by some hundred KiB",
};
/// Growth of native memory in the looks, as a share of what the leaking sites say.
pub(super) const BACKED_BY_GROWTH: Threshold = Threshold {
    name: "backed_by_growth",
    value: 0.3,
    unit: "share",
    reason: "where blocks from before the recording are freed as fast as new ones stay, the sum does not grow; blocks \
             that nobody has touched are not resident",
};
/// Share of lost calls above which nothing is ruled out.
pub(super) const LOST_SHARE: Threshold = Threshold {
    name: "lost_share",
    value: 0.01,
    unit: "share",
    reason: "a leak of a hundredth of all calls could hide in what was lost",
};
/// Smallest growth of the VM's blocks.
pub(super) const VM_GROWTH_BYTES: Threshold = Threshold {
    name: "vm_growth_bytes",
    value: 1_048_576.0,
    unit: "bytes",
    reason: "heaps and buffers of an idle node come and go by some hundred KiB",
};
/// Slowest growth of the VM's blocks.
pub(super) const VM_GROWTH_RATE: Threshold =
    Threshold { name: "vm_growth_rate", value: 16_384.0, unit: "bytes/s", reason: "1.4 GB a day" };
/// Smallest part of all growth of the VM's blocks for which a class is named beside others.
pub(super) const VM_GROWTH_SHARE: Threshold = Threshold {
    name: "vm_growth_share",
    value: 0.2,
    unit: "share",
    reason: "what goes along with the growth of another class, such as the heap of the process that fills a table",
};
/// Fewest new atoms, ports or processes that are growth.
pub(super) const THINGS: Threshold = Threshold {
    name: "new_things",
    value: 50.0,
    unit: "things",
    reason: "a node that starts an application makes some dozens",
};
/// Smallest growth of `fix_alloc` beside growing heaps that tells messages in queues from heaps.
pub(super) const QUEUED_BYTES: Threshold = Threshold {
    name: "queued_bytes",
    value: 8192.0,
    unit: "bytes",
    reason: "some hundred messages, each with a block of 40 bytes and its header",
};
/// Smallest waste that matters.
pub(super) const WASTE_BYTES: Threshold = Threshold {
    name: "waste_bytes",
    value: 16_777_216.0,
    unit: "bytes",
    reason: "a node at rest has some MiB free in its carriers and in libc's arenas",
};
/// Share of the RSS from which on free memory in carriers is fragmentation.
pub(super) const FRAGMENTED_SHARE: Threshold = Threshold {
    name: "fragmented_share",
    value: 0.15,
    unit: "share",
    reason: "below it the node would hardly become smaller without",
};
/// Utilisation of an allocator's carriers above which it is not fragmented.
pub(super) const FRAGMENTED_USE: Threshold = Threshold {
    name: "fragmented_use",
    value: 0.6,
    unit: "ratio",
    reason: "the VM itself begins to abandon carriers at that utilisation (+M<S>acul in erts_alloc)",
};
/// Share of the RSS from which on freed memory of the C library is retention.
pub(super) const RETAINED_SHARE: Threshold = Threshold {
    name: "retained_share",
    value: 0.15,
    unit: "share",
    reason: "below it the node would hardly become smaller without",
};
/// Share of the RSS from which on it is misleading.
pub(super) const RECLAIMABLE_SHARE: Threshold = Threshold {
    name: "reclaimable_share",
    value: 0.15,
    unit: "share",
    reason: "below it the RSS says about what the node needs",
};
/// How much of a limit is near it.
pub(super) const NEAR_LIMIT: Threshold =
    Threshold { name: "near_limit", value: 0.9, unit: "share", reason: "what is left is one burst away" };
/// Share of the RSS from which on tables and stacks explain it.
pub(super) const STATIC_SHARE: Threshold = Threshold {
    name: "static_share",
    value: 0.25,
    unit: "share",
    reason: "they are set once by flags and limits, and rarely a tenth of a node",
};
/// Share of the RSS from which on files explain it.
pub(super) const FILES_SHARE: Threshold = Threshold {
    name: "files_share",
    value: 0.5,
    unit: "share",
    reason: "more than half is page cache, which the kernel takes back when it needs it",
};
