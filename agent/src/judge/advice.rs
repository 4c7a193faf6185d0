//! What can be done about it, in words to paste?
//!
//! Flags are those of `erts_alloc(3)` (erts/doc, OTP 25 to 27), with the letter of the allocator in them; calls are of OTP or
//! of recon.

/// The letter that stands for an allocator in the flags of `erts_alloc(3)`; `None` where flags do not apply.
fn letter(allocator: &str) -> Option<char> {
    Some(match allocator {
        "binary_alloc" => 'B',
        "std_alloc" => 'D',
        "ets_alloc" => 'E',
        "fix_alloc" => 'F',
        "eheap_alloc" => 'H',
        "literal_alloc" => 'I',
        "ll_alloc" => 'L',
        "driver_alloc" => 'R',
        "sl_alloc" => 'S',
        "temp_alloc" => 'T',
        _ => return None,
    })
}

/// What makes `allocator` less fragmented.
pub(super) fn fragmented(allocator: &str) -> Vec<String> {
    let now = match allocator {
        "binary_alloc" => Some("recon:bin_leak(5).  % garbage collects every process and says who let binaries go"),
        "eheap_alloc" => {
            Some("recon:proc_count(memory, 5).  % who has large heaps; hibernate or garbage collect these")
        }
        "ets_alloc" => Some(
            "[{T, ets:info(T, size), ets:info(T, memory)} || T <- ets:all()].  % a table that shrank can be copied into a new one",
        ),
        _ => None,
    };
    let flags = letter(allocator).map(|letter| {
        [
            format!(
                "+M{letter}acul 80  # carriers that are less used than this are offered to other schedulers; costs a \
                 little CPU for each carrier that moves"
            ),
            format!(
                "+M{letter}lmbcs 1024  # carriers of at most 1 MiB: one block keeps less; costs more calls of mmap, and \
                 needs more than one restart to be sure"
            ),
            format!(
                "+M{letter}as aobf  # lowest addresses first, best fit: denser; costs CPU with many free blocks, and carriers \
                 no longer move between schedulers"
            ),
        ]
    });
    now.map(str::to_owned).into_iter().chain(flags.into_iter().flatten()).collect()
}

/// What makes the C library give memory back.
pub(super) fn retained() -> Vec<String> {
    vec![
        "MALLOC_ARENA_MAX=2  # in the node's environment: fewer arenas; costs waiting where many threads allocate"
            .into(),
        "MALLOC_TRIM_THRESHOLD_=131072  # gives the end of the heap back from 128 KiB on; costs more brk and madvise"
            .into(),
        "LD_PRELOAD=libjemalloc.so.2  # another malloc that gives pages back by itself".into(),
    ]
}

/// What makes memory go that is only kept.
pub(super) fn reclaimable(cached: bool) -> Vec<String> {
    if cached {
        vec![
            "+MMmcs 0  # mseg keeps no segments for use again; costs an mmap for each carrier".into(),
            "without +MMscs the VM gives segments back to the kernel; a super carrier keeps what it has used".into(),
        ]
    } else {
        vec![
            "subtract LazyFree from the RSS in alarms: the kernel takes these pages as soon as it needs them".into(),
            "+Mumadtn true  # from OTP 28 on: MADV_DONTNEED gives pages back at once; costs page faults".into(),
        ]
    }
}

/// The call that shows inside the node who holds memory of `class`.
pub(super) fn holder(class: &str) -> Vec<String> {
    let call = match class {
        "processes" => "recon:proc_count(memory, 5).  % the largest processes",
        "messages" => "recon:proc_count(message_queue_len, 5).  % the longest queues",
        "binaries" => "recon:bin_leak(5).  % who lets binaries go when it is garbage collected",
        "ets" => {
            "lists:sublist(lists:reverse(lists:keysort(2, [{T, ets:info(T, memory)} || T <- ets:all()])), 5).  % the largest tables"
        }
        "atoms" => {
            "{erlang:system_info(atom_count), erlang:system_info(atom_limit)}.  % and where the node makes atoms of input"
        }
        "code" => "{erlang:memory(code), length(code:all_loaded())}.  % and who loads modules",
        "ports" => "recon:port_types().  % which drivers they are of",
        "driver" => "instrument:allocations().  % who asked, by type and size",
        _ => "{erlang:memory(system), recon_alloc:memory(allocated_types)}.  % which allocator it is in",
    };
    vec![call.to_owned()]
}
