//! What does a loss or a count mean for the figures?

/// Which figures a loss touches, and how. The names are those of `beamscope_probe::Counter` in snake case, and those
/// that the agent counts itself.
pub fn effect(counter: &str) -> &'static str {
    match counter {
        "live_table_full" => "blocks were not followed: outstanding is too low; raise --max-live",
        "live_table_full_bytes" => "bytes of the blocks that were not followed: outstanding is too low by up to this",
        "site_table_full" => "allocations are counted under a coarser site: totals are right, their stacks are not",
        "call_table_full" | "unmatched_returns" | "abandoned_calls" => "calls were not followed: totals are too low",
        "missed_frees" => "frees were not seen: outstanding was too high until the address was used again",
        "failed_reads" => "sizes or results could not be read: those calls are left out",
        "lost_samples" => "stacks were lost: the division of a site among its stacks is less certain, totals are right",
        "lost_mappings" | "mapping_call_table_full" => "mmap or munmap calls were lost: mapped bytes are uncertain",
        "truncated_stacks" => "stacks end before their root: the caller may be missing, the bytes are right",
        _ => "the figures may be incomplete",
    }
}

/// What a count that is no loss tells.
pub fn meaning(counter: &str) -> Option<&'static str> {
    Some(match counter {
        "calls" => "calls of allocation functions and free",
        "failed_allocations" => "allocations that returned no memory",
        "unknown_frees" => "frees of memory from before the recording",
        "allocator_mappings" => "mappings that malloc made for itself; its blocks are counted instead",
        _ => return None,
    })
}
