//! The ledger against what it must make of known calls.

use beamscope_probe::{COMMAND_BYTES, MappingKind};
use proptest::prelude::*;

use super::*;
use crate::{mapping::Address, stack::StackEnd};

const PAGE: u64 = 4096;
const ANONYMOUS: u32 = 0x20;

fn stack(stacks: &mut Stacks, address: u64) -> StackId {
    stacks.intern(RawStack { addresses: vec![Address(address)], leaf_is_return: true, end: StackEnd::Root }).0
}

fn key(caller: u64) -> SiteKey {
    SiteKey { caller, stack_pointer: 1, function: Function::Malloc as u32, reserved: 0 }
}

fn counters(allocated: (u64, u64), freed: (u64, u64)) -> beamscope_probe::Site {
    beamscope_probe::Site {
        allocated_bytes: allocated.0,
        allocated_blocks: allocated.1,
        freed_bytes: freed.0,
        freed_blocks: freed.1,
        introductions: 0,
    }
}

fn sample(key: SiteKey, address: u64, at: u64, size: u64, origin: SampleOrigin) -> SampleHeader {
    let mut command = [0; COMMAND_BYTES];
    command[..3].copy_from_slice(b"sch");
    SampleHeader { site: key, sequence: at, address, size, origin: origin as u32, command, ..SampleHeader::default() }
}

fn close(ledger: Ledger, stacks: &mut Stacks, live: Vec<(u64, Block)>) -> Vec<SiteTotals> {
    let missing = stack(stacks, u64::MAX);
    ledger.close(10.0, live.into_iter(), |_| missing)
}

#[test]
fn a_key_with_one_stack_is_exact() {
    let mut stacks = Stacks::default();
    let leak = stack(&mut stacks, 1);
    let mut ledger = Ledger::new(0, PAGE);
    ledger.sample(&sample(key(1), 0x100, 5, 100, SampleOrigin::Introduction), leak, 1 << 20);
    ledger.observe(5.0, &[(key(1), counters((100, 1), (0, 0)))]);
    ledger.observe(10.0, &[(key(1), counters((300, 3), (100, 1)))]);
    let block = |at| Block { size: 100, allocated_at: at, site: key(1) };
    let sites = close(ledger, &mut stacks, vec![(0x200, block(1_000_000_000)), (0x300, block(9_000_000_000))]);
    assert_eq!(sites.len(), 1);
    let site = &sites[0];
    assert!(site.exact);
    assert_eq!((site.stack, site.threads.as_slice()), (leak, &["sch".to_owned()][..]));
    assert_eq!(site.totals.outstanding_bytes(), 200);
    assert_eq!(site.survivors.bytes, [100, 0, 0, 100]);
    assert!((site.survivors.oldest_seconds - 9.0).abs() < 1e-9);
    assert_eq!(site.outstanding.slope(), Some(20.0));
}

#[test]
fn a_stack_that_frees_everything_is_not_charged_with_the_leak_beside_it() {
    let mut stacks = Stacks::default();
    let (leak, churn) = (stack(&mut stacks, 1), stack(&mut stacks, 2));
    let mut ledger = Ledger::new(0, PAGE);
    let mut live = Vec::new();
    for number in 0..100_u64 {
        let (leaked, gone) = (0x1000 + number, 0x9000 + number);
        ledger.sample(&sample(key(1), leaked, number, 1 << 20, SampleOrigin::Sampled), leak, 1);
        ledger.sample(&sample(key(1), gone, number, 1 << 20, SampleOrigin::Sampled), churn, 1);
        live.push((leaked, Block { size: 1 << 20, allocated_at: number, site: key(1) }));
    }
    ledger.observe(10.0, &[(key(1), counters((200 << 20, 200), (100 << 20, 100)))]);
    let sites = close(ledger, &mut stacks, live);
    let of = |id| sites.iter().find(|site| site.stack == id).expect("site");
    assert_eq!(of(leak).totals.outstanding_bytes(), 100 << 20);
    assert_eq!(of(churn).totals.outstanding_bytes(), 0);
    assert_eq!(of(churn).totals.freed_bytes, 100 << 20);
    assert!(!of(leak).exact);
}

#[test]
fn the_same_stack_of_two_threads_is_one_site() {
    let mut stacks = Stacks::default();
    let leak = stack(&mut stacks, 1);
    let mut ledger = Ledger::new(0, PAGE);
    for caller in [1, 2] {
        ledger.sample(&sample(key(caller), 0, caller, 8, SampleOrigin::Introduction), leak, 1 << 20);
    }
    ledger.observe(1.0, &[(key(1), counters((8, 1), (0, 0))), (key(2), counters((16, 2), (0, 0)))]);
    let sites = close(ledger, &mut stacks, vec![]);
    assert_eq!(sites.len(), 1);
    assert_eq!(sites[0].totals.allocated_bytes, 24);
}

#[test]
fn bytes_without_a_sample_keep_their_caller() {
    let mut stacks = Stacks::default();
    let mut ledger = Ledger::new(0, PAGE);
    ledger.observe(1.0, &[(key(7), counters((8, 1), (0, 0)))]);
    let lost = stack(&mut stacks, 7);
    let sites = ledger.close(10.0, std::iter::empty(), |key| {
        assert_eq!(key.caller, 7);
        lost
    });
    assert_eq!((sites.len(), sites[0].stack), (1, lost));
}

fn event(kind: MappingKind, thread: u32, address: u64, length: u64, sequence: u64) -> MappingEvent {
    MappingEvent {
        kind: kind as u32,
        thread,
        address,
        length,
        sequence,
        flags: ANONYMOUS,
        protection: 3,
        ..MappingEvent::default()
    }
}

/// Outstanding and allocated bytes of all sites after `events`, each of which is a stack of its own.
fn outstanding(events: &[MappingEvent]) -> (u64, u64) {
    let mut stacks = Stacks::default();
    let mut ledger = Ledger::new(0, PAGE);
    for event in events {
        ledger.mapping(event);
        if event.sequence != 0 {
            let id = stack(&mut stacks, event.sequence);
            let header =
                SampleHeader { thread: event.thread, ..sample(key(0), 0, event.sequence, 0, SampleOrigin::Mapping) };
            ledger.sample(&header, id, 1);
        }
    }
    assert_eq!(ledger.dropped_events, 0);
    let sites = close(ledger, &mut stacks, vec![]);
    let survivors: u64 = sites.iter().map(|site| site.survivors.bytes.iter().sum::<u64>()).sum();
    let bytes = sites.iter().map(|site| site.totals.outstanding_bytes()).sum();
    assert_eq!(bytes, survivors);
    (bytes, sites.iter().map(|site| site.totals.allocated_bytes).sum())
}

#[test]
fn a_part_of_a_mapping_can_be_given_back() {
    let whole = event(MappingKind::Mapped, 1, 0x10_000, 4 * PAGE, 1);
    let part = event(MappingKind::Unmapping, 2, 0x10_000 + PAGE, PAGE, 0);
    assert_eq!(outstanding(&[whole]), (4 * PAGE, 4 * PAGE));
    assert_eq!(outstanding(&[whole, part]), (3 * PAGE, 4 * PAGE));
    assert_eq!(outstanding(&[whole, part, part]), (3 * PAGE, 4 * PAGE));
    let rest = event(MappingKind::Unmapping, 2, 0, 0x100_000, 0);
    assert_eq!(outstanding(&[whole, part, rest]), (0, 4 * PAGE));
}

#[test]
fn lengths_count_in_whole_pages() {
    assert_eq!(outstanding(&[event(MappingKind::Mapped, 1, 0x10_000, 5, 1)]), (PAGE, PAGE));
}

#[test]
fn a_failed_unmap_changes_nothing() {
    let events = [
        event(MappingKind::Mapped, 1, 0x10_000, 2 * PAGE, 1),
        event(MappingKind::Unmapping, 2, 0x10_000, PAGE, 0),
        event(MappingKind::UnmapFailed, 2, 0, 0, 0),
    ];
    assert_eq!(outstanding(&events), (2 * PAGE, 2 * PAGE));
}

#[test]
fn mremap_moves_a_range_to_its_own_site() {
    let events = [
        event(MappingKind::Mapped, 1, 0x10_000, PAGE, 1),
        event(MappingKind::Unmapping, 1, 0x10_000, PAGE, 0),
        event(MappingKind::Moved, 1, 0x90_000, 3 * PAGE, 2),
    ];
    assert_eq!(outstanding(&events), (3 * PAGE, 4 * PAGE));
}

#[test]
fn a_range_that_another_thread_gets_meanwhile_is_its_own() {
    let events = [
        event(MappingKind::Mapped, 1, 0x10_000, PAGE, 1),
        event(MappingKind::Unmapping, 1, 0x10_000, PAGE, 0),
        event(MappingKind::Mapped, 2, 0x10_000, PAGE, 2),
        event(MappingKind::Unmapping, 1, 0x50_000, PAGE, 0),
    ];
    assert_eq!(outstanding(&events), (PAGE, 2 * PAGE));
}

#[test]
fn a_mapping_at_a_fixed_address_replaces_what_was_there() {
    let file = MappingEvent { flags: 0, sequence: 0, ..event(MappingKind::Mapped, 1, 0x10_000, PAGE, 0) };
    assert_eq!(outstanding(&[event(MappingKind::Mapped, 1, 0x10_000, 2 * PAGE, 1), file]), (PAGE, 2 * PAGE));
}

#[test]
fn address_space_without_access_is_no_memory() {
    let reserved = MappingEvent { protection: 0, ..event(MappingKind::Mapped, 1, 0x10_000, 1 << 30, 1) };
    assert_eq!(outstanding(&[reserved]), (0, 0));
}

#[test]
fn only_direct_moves_of_the_heap_end_count() {
    let end = |address, in_allocator, sequence| MappingEvent {
        in_allocator,
        ..event(MappingKind::Break, 1, address, 0, sequence)
    };
    assert_eq!(outstanding(&[end(0x1000, 0, 1), end(0x3000, 0, 2)]), (0x2000, 0x2000));
    assert_eq!(outstanding(&[end(0x1000, 0, 1), end(0x3000, 1, 0)]), (0, 0));
    assert_eq!(outstanding(&[end(0x1000, 0, 1), end(0x3000, 0, 2), end(0x2000, 0, 3)]), (0x1000, 0x2000));
}

proptest! {
    /// Against a model that keeps one owner for each page.
    #[test]
    fn ranges_agree_with_pages(steps in proptest::collection::vec((any::<bool>(), 0_u64..64, 1_u64..16), 0..60)) {
        let mut pages = [false; 80];
        let mut events = Vec::new();
        for (number, (maps, first, count)) in steps.into_iter().enumerate() {
            let kind = if maps { MappingKind::Mapped } else { MappingKind::Unmapping };
            let sequence = if maps { number as u64 + 1 } else { 0 };
            events.push(event(kind, 1, first * PAGE, count * PAGE, sequence));
            for page in first..first + count {
                pages[usize::try_from(page).expect("small")] = maps;
            }
        }
        let mapped = pages.iter().filter(|mapped| **mapped).count() as u64;
        prop_assert_eq!(outstanding(&events).0, mapped * PAGE);
    }
}
