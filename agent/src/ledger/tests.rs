//! The ledger against what it must make of known calls.

use beamscope_probe::MappingKind;
use proptest::prelude::*;

use super::*;
use crate::{
    mapping::{Address, Backing, Mapping, Permissions},
    stack::{StackEnd, raw::RawStack},
};

const PAGE: u64 = 4096;
const ANONYMOUS: u32 = 0x20;
const MREMAP_DONTUNMAP: u32 = 4;

fn stack(stacks: &mut Stacks, address: u64) -> StackId {
    stacks.intern(RawStack { addresses: vec![Address(address)], end: StackEnd::Root, ..RawStack::default() }).0
}

fn key(caller: u64) -> SiteKey {
    SiteKey { caller, stack_pointer: 1, function: Function::Malloc as u32, is_stack: 0 }
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
    SampleHeader { site: key, sequence: at, address, size, origin: origin as u32, ..SampleHeader::default() }
}

fn close(ledger: Ledger, stacks: &mut Stacks, live: Vec<(u64, Block)>) -> Vec<SiteTotals> {
    let missing = stack(stacks, u64::MAX);
    ledger.close(10.0, live.into_iter(), |_| missing)
}

#[test]
fn a_key_with_one_stack_is_exact() {
    let mut stacks = Stacks::default();
    let leak = stack(&mut stacks, 1);
    let mut ledger = Ledger::new(0, PAGE, 0);
    ledger.thread(leak, b"sch\0\0");
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
fn a_key_that_is_a_stack_needs_no_sample() {
    let mut stacks = Stacks::default();
    let (leak, missing) = (stack(&mut stacks, 1), stack(&mut stacks, 2));
    let walked = SiteKey { caller: 77, stack_pointer: 0, function: Function::Malloc as u32, is_stack: 1 };
    let mut ledger = Ledger::new(0, PAGE, 0);
    ledger.observe(10.0, &[(walked, counters((300, 3), (100, 1))), (key(5), counters((10, 1), (0, 0)))]);
    let sites = ledger.close(10.0, std::iter::empty(), |key| if key.is_stack == 1 { leak } else { missing });
    let seen: Vec<_> = sites.iter().map(|site| (site.stack, site.totals.outstanding_bytes(), site.exact)).collect();
    assert_eq!(seen, [(leak, 200, true), (missing, 10, false)]);
}

#[test]
fn a_stack_that_frees_everything_is_not_charged_with_the_leak_beside_it() {
    let mut stacks = Stacks::default();
    let (leak, churn) = (stack(&mut stacks, 1), stack(&mut stacks, 2));
    let mut ledger = Ledger::new(0, PAGE, 0);
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
    let mut ledger = Ledger::new(0, PAGE, 0);
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
    let mut ledger = Ledger::new(0, PAGE, 0);
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

/// Outstanding and allocated bytes of all sites after `events`, each of which is a stack of its own, in a process whose
/// heap ends at `0x1000`, and which has `mappings` at the end.
fn outstanding_with(events: &[MappingEvent], mappings: &Mappings) -> (u64, u64) {
    let mut stacks = Stacks::default();
    let mut ledger = Ledger::new(0, PAGE, 0x1000);
    for event in events {
        ledger.mapping(event);
        if event.sequence != 0 {
            let id = stack(&mut stacks, event.sequence);
            let header =
                SampleHeader { thread: event.thread, ..sample(key(0), 0, event.sequence, 0, SampleOrigin::Mapping) };
            ledger.sample(&header, id, 1);
        }
    }
    ledger.prove(mappings);
    ledger.observe(10.0, &[]);
    assert_eq!(ledger.dropped_events, 0);
    let sites = close(ledger, &mut stacks, vec![]);
    for site in &sites {
        let bytes = site.totals.outstanding_bytes();
        assert_eq!(bytes, site.survivors.bytes.iter().sum::<u64>(), "{site:?}");
        assert_eq!(Some(bytes), site.outstanding.points().last().map(|point| point.value), "{site:?}");
    }
    let bytes = sites.iter().map(|site| site.totals.outstanding_bytes()).sum();
    (bytes, sites.iter().map(|site| site.totals.allocated_bytes).sum())
}

fn outstanding(events: &[MappingEvent]) -> (u64, u64) {
    outstanding_with(events, &Mappings::default())
}

/// The beginning and the end of a `munmap` that succeeds.
fn unmap(thread: u32, address: u64, length: u64, at: u64) -> [MappingEvent; 2] {
    let begin = MappingEvent { at, ..event(MappingKind::Unmapping, thread, address, length, 0) };
    [begin, MappingEvent { began: at, ..event(MappingKind::Unmapped, thread, 0, 0, 0) }]
}

#[test]
fn a_part_of_a_mapping_can_be_given_back() {
    let whole = event(MappingKind::Mapped, 1, 0x10_000, 4 * PAGE, 1);
    let [begin, end] = unmap(2, 0x10_000 + PAGE, PAGE, 5);
    assert_eq!(outstanding(&[whole]), (4 * PAGE, 4 * PAGE));
    assert_eq!(outstanding(&[whole, begin, end]), (3 * PAGE, 4 * PAGE));
    assert_eq!(outstanding(&[whole, begin, end, begin, end]), (3 * PAGE, 4 * PAGE));
    let [rest, over] = unmap(2, 0, 0x100_000, 6);
    assert_eq!(outstanding(&[whole, begin, end, rest, over]), (0, 4 * PAGE));
}

#[test]
fn lengths_count_in_whole_pages() {
    assert_eq!(outstanding(&[event(MappingKind::Mapped, 1, 0x10_000, 5, 1)]), (PAGE, PAGE));
}

#[test]
fn a_failed_unmap_changes_nothing() {
    let map = event(MappingKind::Mapped, 1, 0x10_000, 2 * PAGE, 1);
    let [begin, _] = unmap(2, 0x10_000, PAGE, 5);
    let failed = MappingEvent { began: 5, ..event(MappingKind::UnmapFailed, 2, 0, 0, 0) };
    assert_eq!(outstanding(&[map, begin, failed]), (2 * PAGE, 2 * PAGE));
}

#[test]
fn a_failed_unmap_brings_nothing_else_back() {
    let map = event(MappingKind::Mapped, 1, 0x10_000, 2 * PAGE, 1);
    let [gone, _lost] = unmap(2, 0x10_000, 2 * PAGE, 5);
    let [impossible, _] = unmap(2, 0x10_001, u64::MAX, 6);
    let failed = MappingEvent { began: 6, ..event(MappingKind::UnmapFailed, 2, 0, 0, 0) };
    assert_eq!(outstanding(&[map, gone, impossible, failed]), (0, 2 * PAGE));
    assert_eq!(outstanding(&[map, gone, failed]), (0, 2 * PAGE));
}

fn moved(thread: u32, address: u64, length: u64, began: u64, sequence: u64) -> MappingEvent {
    MappingEvent { began, ..event(MappingKind::Moved, thread, address, length, sequence) }
}

#[test]
fn mremap_moves_a_range_to_its_own_site() {
    let map = event(MappingKind::Mapped, 1, 0x10_000, PAGE, 1);
    let [begin, _] = unmap(1, 0x10_000, PAGE, 5);
    assert_eq!(outstanding(&[map, begin, moved(1, 0x90_000, 3 * PAGE, 5, 2)]), (3 * PAGE, 4 * PAGE));
    let kept = MappingEvent { flags: MREMAP_DONTUNMAP, ..moved(1, 0x90_000, PAGE, 5, 2) };
    assert_eq!(outstanding(&[map, begin, kept]), (2 * PAGE, 2 * PAGE));
}

fn mapped(start: u64, end: u64, write: bool, backing: Backing) -> Mapping {
    let permissions = Permissions { read: write, write, ..Permissions::default() };
    Mapping { start: Address(start), end: Address(end), file_offset: 0, permissions, backing }
}

#[test]
fn of_a_mapping_that_nobody_saw_being_made_only_the_growth_is_new() {
    let [begin, _] = unmap(1, 0x10_000, 4 * PAGE, 5);
    let events = [begin, moved(1, 0x90_000, 6 * PAGE, 5, 2)];
    let at = |backing| Mappings::new(vec![mapped(0x90_000, 0x90_000 + 6 * PAGE, true, backing)]);
    assert_eq!(outstanding_with(&events, &at(Backing::Anonymous)), (2 * PAGE, 2 * PAGE));
    assert_eq!(outstanding_with(&events, &at(Backing::File("/data".to_owned()))), (0, 0));
    let [begin, _] = unmap(1, 0x10_000, 4 * PAGE, 5);
    assert_eq!(outstanding(&[begin, moved(1, 0x10_000, 2 * PAGE, 5, 2)]), (0, 0));
}

#[test]
fn a_range_that_another_thread_gets_meanwhile_is_its_own() {
    let [begin, end] = unmap(1, 0x10_000, PAGE, 5);
    let events = [
        event(MappingKind::Mapped, 1, 0x10_000, PAGE, 1),
        begin,
        event(MappingKind::Mapped, 2, 0x10_000, PAGE, 2),
        end,
    ];
    assert_eq!(outstanding(&events), (PAGE, 2 * PAGE));
}

#[test]
fn a_mapping_at_a_fixed_address_replaces_what_was_there() {
    let file = MappingEvent { flags: 0, sequence: 0, ..event(MappingKind::Mapped, 1, 0x10_000, PAGE, 0) };
    assert_eq!(outstanding(&[event(MappingKind::Mapped, 1, 0x10_000, 2 * PAGE, 1), file]), (PAGE, 2 * PAGE));
}

#[test]
fn address_space_without_access_is_memory_as_far_as_it_becomes_accessible() {
    let reserved = MappingEvent { protection: 0, ..event(MappingKind::Mapped, 1, 0x10_000, 64 * PAGE, 1) };
    assert_eq!(outstanding(&[reserved]), (0, 0));
    let mappings = Mappings::new(vec![
        mapped(0x10_000, 0x10_000 + 3 * PAGE, true, Backing::Anonymous),
        mapped(0x10_000 + 3 * PAGE, 0x10_000 + 64 * PAGE, false, Backing::Anonymous),
    ]);
    assert_eq!(outstanding_with(&[reserved], &mappings), (3 * PAGE, 3 * PAGE));
    let [begin, end] = unmap(1, 0x10_000, 64 * PAGE, 5);
    assert_eq!(outstanding_with(&[reserved, begin, end], &mappings), (0, 0));
}

#[test]
fn stacks_of_threads_and_pools_of_allocators_are_no_blocks() {
    const MAP_STACK: u32 = 0x2_0000;
    let stack = MappingEvent { flags: ANONYMOUS | MAP_STACK, ..event(MappingKind::Mapped, 1, 0x10_000, 8 * PAGE, 1) };
    assert_eq!(outstanding(&[stack]), (0, 0));
    for early in [true, false] {
        let mut ledger = Ledger::new(0, PAGE, 0);
        if early {
            ledger.mapping_of_allocator(1, 7);
        }
        ledger.mapping(&event(MappingKind::Mapped, 1, 0x10_000, PAGE, 7));
        ledger.mapping_of_allocator(1, 7);
        assert_eq!(close(ledger, &mut Stacks::default(), vec![]), []);
    }
}

#[test]
fn only_direct_moves_of_the_heap_end_count() {
    let end = |address, in_allocator, sequence| MappingEvent {
        in_allocator,
        ..event(MappingKind::Break, 1, address, 0, sequence)
    };
    assert_eq!(outstanding(&[end(0x3000, 0, 1)]), (0x2000, 0x2000));
    assert_eq!(outstanding(&[end(0x3000, 1, 0), end(0x4000, 0, 1)]), (0x1000, 0x1000));
    assert_eq!(outstanding(&[end(0x3000, 1, 0)]), (0, 0));
    assert_eq!(outstanding(&[end(0x3000, 0, 1), end(0x2000, 0, 0)]), (0x1000, 0x2000));
}

#[test]
fn of_many_samples_an_even_choice_is_kept() {
    let mut stacks = Stacks::default();
    let (early, late) = (stack(&mut stacks, 1), stack(&mut stacks, 2));
    let mut ledger = Ledger::new(0, PAGE, 0);
    let mut live = Vec::new();
    // Twice as many samples as are kept show the first stack before the second begins; half of its blocks stay.
    for number in 0..20_000_u64 {
        let (id, stays) = if number < 10_000 { (early, number % 2 == 0) } else { (late, true) };
        ledger.sample(&sample(key(1), number * 64, number, 1 << 20, SampleOrigin::Sampled), id, 1);
        if stays {
            live.push((number * 64, Block { size: 1 << 20, allocated_at: number, site: key(1) }));
        }
    }
    ledger.observe(10.0, &[(key(1), counters((20_000 << 20, 20_000), (5_000 << 20, 5_000)))]);
    let sites = close(ledger, &mut stacks, live);
    let of = |id| sites.iter().find(|site| site.stack == id).expect("site").totals.outstanding_bytes();
    assert!((4_700 << 20..5_300 << 20).contains(&of(early)), "{}", of(early) >> 20);
    assert_eq!(of(early) + of(late), 15_000 << 20);
}

proptest! {
    /// Against a model that keeps one owner for each page.
    #[test]
    fn ranges_agree_with_pages(steps in proptest::collection::vec((any::<bool>(), 0_u64..64, 1_u64..16), 0..60)) {
        let mut pages = [false; 80];
        let mut events = Vec::new();
        for (number, (maps, first, count)) in steps.into_iter().enumerate() {
            let sequence = number as u64 + 1;
            if maps {
                events.push(event(MappingKind::Mapped, 1, first * PAGE, count * PAGE, sequence));
            } else {
                events.extend(unmap(1, first * PAGE, count * PAGE, sequence));
            }
            for page in first..first + count {
                pages[usize::try_from(page).expect("small")] = maps;
            }
        }
        let mapped = pages.iter().filter(|mapped| **mapped).count() as u64;
        prop_assert_eq!(outstanding(&events).0, mapped * PAGE);
    }
}

/// Where a recording is blind for a while, each window counts what was allocated in it, and its time is followed time.
#[test]
fn windows_are_counted_each_by_itself() {
    let block = |tenth: u64| Block { size: 100, allocated_at: tenth * 100_000_000, site: key(1) };
    let mut stacks = Stacks::default();
    let leak = stack(&mut stacks, 1);
    let mut ledger = Ledger::new(0, PAGE, 0);
    ledger.sample(&sample(key(1), 0x100, 5, 100, SampleOrigin::Introduction), leak, 1 << 20);
    let at = |allocated: u64, freed: u64| vec![(key(1), counters((allocated * 100, allocated), (freed * 100, freed)))];
    ledger.observe(1.0, &at(10, 5));
    // A window of 4 s: of 20 blocks 4 are left; one more was allocated while the probes went.
    ledger.cut(4.0, &at(20, 12));
    ledger.observe(4.5, &at(21, 14));
    let left = [5, 15, 35, 36, 41].map(block);
    ledger.settle((0..).zip(left));
    // Half-followed calls while the probes come back are in no window.
    ledger.observe(8.0, &at(21, 14));
    ledger.resume(10.0, &at(25, 15));
    ledger.observe(11.0, &at(30, 18));
    ledger.observe(12.0, &at(35, 20));
    let missing = stack(&mut stacks, u64::MAX);
    let sites =
        ledger.close(12.0, [(0x10, block(99)), (0x20, block(101)), (0x30, block(119))].into_iter(), |_| missing);
    let [site] = sites.as_slice() else { panic!("{sites:?}") };
    let Totals { allocated_bytes, allocated_blocks, freed_bytes, freed_blocks } = site.totals;
    assert_eq!((allocated_blocks, freed_blocks), (20 + 10, 16 + 8));
    assert_eq!((allocated_bytes, freed_bytes), (3000, 2400));
    let points: Vec<(f64, u64)> = site.outstanding.points().iter().map(|point| (point.at, point.value)).collect();
    // What 1 s of the second window had freed was known by counters alone, until its blocks were looked at.
    assert_eq!(points, [(0.0, 0), (1.0, 500), (4.0, 400), (5.0, 600), (6.0, 900), (6.0, 600)]);
    // Quarters of each window: 0.5 s and 1.5 s of four, 3.5 s and 3.6 s; 0.1 s and 1.9 s of two.
    assert_eq!(site.survivors.bytes, [200, 100, 0, 300]);
    assert!((site.survivors.oldest_seconds - 3.5).abs() < 1e-9, "{}", site.survivors.oldest_seconds);
}

/// Requests for carriers are followed all the time.
#[test]
fn carriers_are_counted_in_blind_spans_too() {
    let carrier =
        SiteKey { caller: 9, stack_pointer: 0, function: Function::MsegAlloc as u32 | (3 << 16), is_stack: 1 };
    let mut ledger = Ledger::new(0, PAGE, 0);
    let requested = |count: u64| vec![(carrier, counters((count << 18, count), (0, 0)))];
    ledger.observe(1.0, &requested(1));
    ledger.cut(2.0, &requested(2));
    ledger.settle(std::iter::empty());
    ledger.observe(5.0, &requested(5));
    let mut stacks = Stacks::default();
    let sites = close(ledger, &mut stacks, Vec::new());
    assert_eq!(sites.len(), 1);
    assert_eq!((sites[0].totals.allocated_blocks, sites[0].totals.freed_blocks), (5, 0));
    assert_eq!(sites[0].outstanding.points().last().map(|point| point.at), Some(5.0));
}
