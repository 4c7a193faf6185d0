//! What does a loss or a count mean for the figures?

/// Said of a loss that another version of beamscope has counted.
const UNKNOWN: &str = "the figures may be incomplete";

/// Which figures a loss touches, and how.
///
/// The names are those that `recorder::finish` gives to the probe's counters and to its own.
pub fn effect(counter: &str) -> &'static str {
    match counter {
        "live_table_full" => "blocks were not followed: outstanding is too low; raise --max-live",
        "live_table_full_bytes" => "bytes of the blocks that were not followed: outstanding is too low by up to this",
        "site_table_full" => "allocations are counted under a coarser site: totals are right, their stacks are not",
        "call_table_full" | "unmatched_returns" | "abandoned_calls" => "calls were not followed: totals are too low",
        "missed_frees" => "frees were not seen: outstanding was too high until the address was used again",
        "failed_reads" => "sizes or results could not be read: those calls are left out",
        "lost_samples" | "dropped_samples" => {
            "stacks were lost: how a site divides among its stacks is less certain; totals are right"
        }
        "lost_mappings" | "mapping_call_table_full" | "dropped_mapping_events" => {
            "mmap or munmap calls were lost: mapped bytes are uncertain"
        }
        "truncated_stacks" => "stacks reach further than what was captured: callers may be missing; bytes are right",
        "stacks_without_unwind_information" => {
            "stacks end at code that does not say how to unwind it: callers may be missing; bytes are right"
        }
        "unlocated_vm_blocks" => "blocks of the VM's functions were not followed: their outstanding bytes are too low",
        "addresses_without_readable_symbols" => "frames are shown as library and offset; bytes are right",
        "stacks_that_leave_known_code" => {
            "stacks lead into memory that is no known code: callers may be missing; bytes are right"
        }
        "stacks_with_unsupported_unwind_rules" => {
            "stacks end at code that is unwound in a way that is not followed: callers may be missing; bytes are right"
        }
        "stacks_too_deep" => "stacks have more native frames than are kept: the outermost are missing; bytes are right",
        "implausible_stacks" => "stacks contradict their unwind tables: callers may be missing; bytes are right",
        "stacks_behind_probed_returns" => {
            "stacks end at the return of a probed function: callers are missing; bytes are right"
        }
        "erlang_stacks_too_deep" => {
            "Erlang stacks have more frames than are kept: the first functions are missing; bytes are right"
        }
        "unreadable_erlang_stacks" | "implausible_erlang_stacks" => {
            "Erlang processes were being changed, or could not be read: their frames are missing; bytes are right"
        }
        "stacks_without_erlang_frames" => "stacks have no Erlang frames; the notes say why; bytes are right",
        "stack_table_full" | "stack_collisions" | "walkers_busy" => {
            "stacks could not be kept in the kernel and were sampled instead: how a site divides is less certain"
        }
        "faults_without_room" => "page faults on more pages than are kept: whose these pages are is not known",
        "stacks_without_room" => {
            "stacks were too many to keep: their bytes are counted without callers; totals are right"
        }
        "nameless_code_addresses" => {
            "Erlang code was purged before its names were read: it stands in stacks without them"
        }
        "reused_code_addresses" => {
            "Erlang code was loaded where other code had been: functions at these places can be the older ones"
        }
        "malformed_records" => "events that could not be understood were left out",
        _ => UNKNOWN,
    }
}

/// What a count that is no loss tells.
pub fn meaning(counter: &str) -> Option<&'static str> {
    Some(match counter {
        "allocated_blocks" => "blocks and mappings allocated",
        "freed_blocks" => "of them freed",
        "failed_allocations" => "allocations that returned no memory",
        "unknown_frees" => "frees of memory from before the recording, or that the C library took for itself",
        "allocator_mappings" => "mappings that malloc made for itself; its blocks are counted instead",
        "thread_stack_bytes" => "bytes of address space mapped for the stacks of threads",
        "walked_stacks" => "stacks walked, those that ended early as well",
        "complete_stacks" => "stacks walked to the first function of the thread or of the Erlang process",
        "unwind_row_bytes" => "bytes of unwind tables in the kernel",
        "walks" => "allocations whose stack was walked, each for itself",
        "walked_frames" => "native frames of all stacks that were walked in the kernel",
        "walk_nanoseconds" => "nanoseconds that these walks took",
        "unwalked_allocations" => {
            "allocations divided among stacks by samples: to keep to --walk-share, or in new code"
        }
        "page_faults" => "page faults of the node, estimated from every 16th",
        "sampled_faults" => "of them those whose stack was taken; they stand for the others",
        "fault_nanoseconds" => "nanoseconds that this took",
        "reserved_bytes" => "bytes of address space set aside; what has become accessible counts as memory instead",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use beamscope_probe::Counter;

    use super::*;

    #[test]
    fn every_counter_of_the_probe_is_explained() {
        for counter in Counter::ALL {
            let name = counter.name();
            assert_eq!(counter.is_loss(), effect(name) != UNKNOWN, "{name}");
            assert_eq!(counter.is_loss(), meaning(name).is_none(), "{name}");
        }
    }
}
