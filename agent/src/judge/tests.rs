//! Are the answers right for nodes with a known truth, given as values?

use std::collections::BTreeMap;

use super::*;
use crate::{
    attribute,
    erts::alloc::{Depth, tally::Sizes},
    explain::model::{DepthReached, InstanceFacts, LibcFacts, Owned, Tagged, Walked},
    ledger::{Series, Survivors},
    limits::{GroupFacts, GroupLimit, LimitFacts},
    recording::{Ended, Site},
    sample,
    stack::{Stack, StackEnd},
};

const MIB: f64 = 1_048_576.0;
const SECONDS: u32 = 10;

/// A node as it is after a part of the recording, from 0 to 1.
type State = dyn Fn(f64) -> Explanation;

/// Judges a recording of ten seconds with eleven looks.
fn verdicts(state: &State, sites: &[Site]) -> Vec<Verdict> {
    let looks: Vec<Look> = (0..=SECONDS)
        .map(|at| Look { at: at.into(), explanation: state(f64::from(at) / f64::from(SECONDS)) })
        .collect();
    judged(&looks, sites, Mode::Exact, f64::from(SECONDS))
}

fn judged(looks: &[Look], sites: &[Site], mode: Mode, followed_seconds: f64) -> Vec<Verdict> {
    let ranked: Vec<RankedSite<'_>> = sites
        .iter()
        .map(|site| RankedSite { site, attribution: attribute::attribute(site, &[]), growth_per_second: None })
        .collect();
    let interval = Interval {
        start_unix: 0,
        seconds: f64::from(SECONDS),
        mode,
        sample_interval_bytes: 1 << 20,
        ended: Ended::Duration,
    };
    let none = BTreeMap::new();
    judge(&Case {
        node: &Node { pid: 7, ..Node::default() },
        interval: (looks.len() > 1).then_some(&interval),
        followed_seconds,
        snapshots: &[],
        looks: Case::with_owners(looks),
        sites: &ranked,
        vm_api: &[],
        faults: &[],
        losses: &none,
        counts: &none,
    })
}

/// A node at rest with these owners beside 40 MiB of files and code.
fn node(owners: &[(Owner, f64)]) -> Explanation {
    let base = [(Owner::Files("beam.smp".into()), 8.0), (Owner::VmUsed("eheap_alloc".into()), 32.0)];
    let owners: Vec<Owned> =
        base.iter().chain(owners).map(|(owner, mib)| Owned { owner: owner.clone(), bytes: whole(mib * MIB) }).collect();
    Explanation {
        resident: owners.iter().map(|owned| owned.bytes).sum(),
        instances: vec![instance("eheap_alloc", 40.0, 32.0)],
        owners,
        depth: DepthReached { asked: Depth::Full, reached: Depth::Full, carriers: 1, walked: 1, gone: 0 },
        tags: vec![tag("system", "binary", 1.0)],
        libc: Some(LibcFacts::default()),
        ..Explanation::default()
    }
}

fn instance(allocator: &str, carriers: f64, blocks: f64) -> InstanceFacts {
    InstanceFacts {
        allocator: allocator.into(),
        mbcs: Walked { carriers: 1, carrier_bytes: whole(carriers * MIB), blocks: Some((1000, whole(blocks * MIB))) },
        sbcs: Walked::none(),
        pool: Walked::none(),
        dying: Walked::none(),
        ..InstanceFacts::default()
    }
}

fn tag(origin: &str, kind: &str, mib: f64) -> Tagged {
    let bytes = whole(mib * MIB);
    Tagged {
        origin: Some(origin.into()),
        kind: Some(kind.into()),
        blocks: bytes / 1024,
        bytes,
        sizes: Sizes::default(),
    }
}

/// A native site whose outstanding bytes were `course` of the part of the recording.
fn site(course: impl Fn(f64) -> f64, survivors: [f64; 4]) -> Site {
    let mut outstanding = Series::default();
    for at in 0..=SECONDS {
        outstanding.push(at.into(), whole(course(f64::from(at) / f64::from(SECONDS)) * MIB));
    }
    let left = whole(course(1.0) * MIB);
    let frames = vec![
        sample::frame("libc.so.6", "malloc", None),
        sample::frame("leaky.so", "leak", None),
        sample::erlang("shop", "sell/1", None),
    ];
    Site {
        stack: Stack { frames, end: StackEnd::Erlang },
        allocated_bytes: left + (64 << 20),
        allocated_blocks: 70_000,
        freed_bytes: 64 << 20,
        freed_blocks: 60_000,
        outstanding,
        survivors: Survivors { oldest_seconds: 10.0, bytes: survivors.map(|mib| whole(mib * MIB)) },
        ..sample::recording().sites.swap_remove(0)
    }
}

/// The verdicts that are not ruled out.
fn not_ruled_out(verdicts: &[Verdict]) -> Vec<(VerdictId, Answer)> {
    let others = verdicts.iter().filter(|verdict| verdict.answer != Answer::RuledOut);
    others.map(|verdict| (verdict.id, verdict.answer)).collect()
}

fn of(verdicts: &[Verdict], id: VerdictId) -> &Verdict {
    verdicts.iter().find(|verdict| verdict.id == id).expect("each question has an answer")
}

#[test]
fn a_node_at_rest_has_nothing() {
    let verdicts = verdicts(&|_| node(&[]), &[]);
    assert_eq!(not_ruled_out(&verdicts), [], "{verdicts:#?}");
    assert_eq!(verdicts.iter().map(|verdict| verdict.id).collect::<Vec<_>>(), VerdictId::ALL);
    assert!(verdicts.iter().all(|verdict| !verdict.summary.is_empty() && verdict.confidence.is_some()));
}

#[test]
fn a_leak_is_named_and_measured() {
    let leak = [site(|part| 20.0 * part, [5.0; 4])];
    let verdicts = verdicts(&|part| node(&[(Owner::NativeUsed, 4.0 + 20.0 * part)]), &leak);
    assert_eq!(not_ruled_out(&verdicts), [(VerdictId::NativeLeak, Answer::Confirmed)], "{verdicts:#?}");
    let verdict = of(&verdicts, VerdictId::NativeLeak);
    assert_eq!(verdict.subject.as_deref(), Some("leak in leaky.so, called by shop:sell/1"));
    assert_eq!(verdict.bytes, 20 << 20);
    assert!((verdict.growth_per_second.expect("a rate") / (2.0 * MIB) - 1.0).abs() < 0.01);
    assert!(!verdict.next.is_empty() && verdict.confidence == Some(Confidence::High));
}

#[test]
fn a_pool_and_a_cache_are_no_leaks() {
    let pool = [site(|part| if part < 0.1 { 0.0 } else { 50.0 }, [50.0, 0.0, 0.0, 0.0])];
    let filled = |part: f64| node(&[(Owner::NativeUsed, if part < 0.1 { 4.0 } else { 54.0 })]);
    assert_eq!(not_ruled_out(&verdicts(&filled, &pool)), []);
    let cache = [site(|part| 40.0 * (1.0 - (-6.0 * part).exp()), [31.0, 7.0, 1.6, 0.3])];
    let levelled = |part: f64| node(&[(Owner::NativeUsed, 4.0 + 40.0 * (1.0 - (-6.0 * part).exp()))]);
    assert_eq!(not_ruled_out(&verdicts(&levelled, &cache)), []);
}

/// Blocks that live longer than the recording: new ones stay, and as many old ones go.
#[test]
fn turnover_of_old_blocks_is_no_leak_for_sure() {
    let long_lived = [site(|part| 20.0 * part, [5.0; 4])];
    let looks: Vec<Look> =
        (0..=SECONDS).map(|at| Look { at: at.into(), explanation: node(&[(Owner::NativeUsed, 100.0)]) }).collect();
    let blind = judged(&looks, &long_lived, Mode::Auto, 4.0);
    assert_eq!(not_ruled_out(&blind), [(VerdictId::NativeLeak, Answer::Inconclusive)], "{blind:#?}");
}

#[test]
fn growth_mode_convicts_nobody() {
    let looks: Vec<Look> = (0..=SECONDS)
        .map(|at| Look { at: at.into(), explanation: node(&[(Owner::NativeUsed, 4.0 + 2.0 * f64::from(at))]) })
        .collect();
    let verdicts = judged(&looks, &[], Mode::Growth, 0.0);
    assert_eq!(not_ruled_out(&verdicts), [(VerdictId::NativeLeak, Answer::Inconclusive)]);
    assert!(of(&verdicts, VerdictId::NativeLeak).next.iter().any(|next| next.contains("--mode exact")));
    let flat: Vec<Look> = looks.iter().map(|look| Look { at: look.at, explanation: node(&[]) }).collect();
    assert_eq!(not_ruled_out(&judged(&flat, &[], Mode::Growth, 0.0)), []);
}

#[test]
fn lost_calls_leave_the_question_open() {
    let losses = BTreeMap::from([("live_table_full".to_owned(), 50_u64)]);
    let counts = BTreeMap::from([("allocated_blocks".to_owned(), 1000_u64)]);
    let looks = [Look { at: 0.0, explanation: node(&[]) }, Look { at: 10.0, explanation: node(&[]) }];
    let interval =
        Interval { start_unix: 0, seconds: 10.0, mode: Mode::Exact, sample_interval_bytes: 1, ended: Ended::Duration };
    let case = Case {
        node: &Node::default(),
        interval: Some(&interval),
        followed_seconds: 10.0,
        snapshots: &[],
        looks: Case::with_owners(&looks),
        sites: &[],
        vm_api: &[],
        faults: &[],
        losses: &losses,
        counts: &counts,
    };
    assert_eq!(of(&judge(&case), VerdictId::NativeLeak).answer, Answer::Inconclusive);
}

#[test]
fn tags_tell_a_nif_from_the_vm() {
    let leak = |part: f64| {
        let mut node = node(&[(Owner::VmUsed("driver_alloc".into()), 1.0 + 20.0 * part)]);
        node.instances.push(instance("driver_alloc", 30.0, 1.0 + 20.0 * part));
        node.tags.push(tag("leaky", "nif_internal", 0.5 + 20.0 * part));
        node
    };
    let found = verdicts(&leak, &[]);
    assert_eq!(not_ruled_out(&found), [(VerdictId::NifLeak, Answer::Confirmed)], "{found:#?}");
    assert_eq!(of(&found, VerdictId::NifLeak).subject.as_deref(), Some("leaky (nif_internal)"));
    let by_vm = |part: f64| {
        let mut node = node(&[(Owner::VmUsed("binary_alloc".into()), 1.0 + 20.0 * part)]);
        node.instances.push(instance("binary_alloc", 30.0, 1.0 + 20.0 * part));
        node.tags = vec![tag("system", "binary", 1.0 + 20.0 * part)];
        node
    };
    let found = verdicts(&by_vm, &[]);
    assert_eq!(not_ruled_out(&found), [(VerdictId::VmGrowth, Answer::Confirmed)], "{found:#?}");
    assert_eq!(of(&found, VerdictId::VmGrowth).subject.as_deref(), Some("binaries"));
}

#[test]
fn growth_of_the_vm_has_its_class() {
    for (allocator, class) in [
        ("eheap_alloc", "processes"),
        ("ets_alloc", "ets"),
        ("binary_alloc", "binaries"),
        ("ll_alloc", "code"),
        ("std_alloc", "system"),
    ] {
        let grows = |part: f64| {
            let mut node = node(&[]);
            node.instances = vec![instance(allocator, 60.0, 32.0 + 20.0 * part)];
            node
        };
        let found = verdicts(&grows, &[]);
        assert_eq!(not_ruled_out(&found), [(VerdictId::VmGrowth, Answer::Confirmed)], "{allocator}: {found:#?}");
        assert_eq!(of(&found, VerdictId::VmGrowth).subject.as_deref(), Some(class));
    }
}

/// Heaps that are collected go up and down.
#[test]
fn a_sawtooth_is_no_growth() {
    let saw = |part: f64| {
        let mut node = node(&[]);
        node.instances = vec![instance("eheap_alloc", 80.0, 32.0 + (30.0 * part * 10.0) % 40.0)];
        node
    };
    assert_eq!(not_ruled_out(&verdicts(&saw, &[])), []);
}

#[test]
fn waste_is_found_where_it_is() {
    let unused = |owner: Owner, mib: f64| move |_: f64| node(&[(owner.clone(), mib)]);
    let fragmented = |_: f64| {
        let mut node = node(&[(Owner::VmUnused("ets_alloc".into()), 200.0)]);
        node.instances.push(instance("ets_alloc", 240.0, 30.0));
        node
    };
    let found = verdicts(&fragmented, &[]);
    assert_eq!(not_ruled_out(&found), [(VerdictId::Fragmentation, Answer::Confirmed)], "{found:#?}");
    let verdict = of(&found, VerdictId::Fragmentation);
    assert_eq!((verdict.subject.as_deref(), verdict.bytes), (Some("ets_alloc"), 200 << 20));
    assert!(verdict.next.iter().any(|next| next.starts_with("+MEacul")), "{:?}", verdict.next);
    for (owner, id) in [
        (Owner::NativeRetained, VerdictId::LibcRetention),
        (Owner::VmCached, VerdictId::Reclaimable),
        (Owner::VmLazyfree, VerdictId::Reclaimable),
        (Owner::Stacks, VerdictId::Limits),
        (Owner::Files("big.db".into()), VerdictId::Limits),
    ] {
        let found = verdicts(&unused(owner.clone(), 200.0), &[]);
        assert_eq!(not_ruled_out(&found), [(id, Answer::Confirmed)], "{owner}: {found:#?}");
        assert_eq!(not_ruled_out(&verdicts(&unused(owner.clone(), 6.0), &[])), [], "{owner}");
    }
}

#[test]
fn what_is_free_for_a_moment_only_is_no_waste() {
    let busy = |part: f64| {
        let free = if (part * 10.0).round() % 2.0 == 0.0 { 200.0 } else { 5.0 };
        let mut node = node(&[(Owner::VmUnused("eheap_alloc".into()), free)]);
        node.instances = vec![instance("eheap_alloc", 240.0, 32.0)];
        node
    };
    assert_eq!(not_ruled_out(&verdicts(&busy, &[])), []);
}

#[test]
fn a_control_group_that_is_nearly_full_is_said() {
    let nearly_full = |_: f64| {
        let tightest = Some(GroupLimit { path: "/shop".into(), max: 100 << 20, current: Some(97 << 20) });
        let group = Some(GroupFacts { version: 2, tightest, ..GroupFacts::default() });
        Explanation { limits: Some(LimitFacts { group, ..LimitFacts::default() }), ..node(&[]) }
    };
    let found = verdicts(&nearly_full, &[]);
    assert_eq!(not_ruled_out(&found), [(VerdictId::Limits, Answer::Confirmed)]);
    assert!(of(&found, VerdictId::Limits).summary.contains("97.0 MiB of 100.0 MiB"), "{found:#?}");
}

#[test]
fn one_look_leaves_growth_open() {
    let looks = [Look { at: 0.0, explanation: node(&[(Owner::VmUnused("ets_alloc".into()), 200.0)]) }];
    let found = judged(&looks, &[], Mode::Exact, 0.0);
    let open: Vec<_> = not_ruled_out(&found).into_iter().map(|(id, _)| id).collect();
    assert_eq!(open, [VerdictId::NativeLeak, VerdictId::NifLeak, VerdictId::VmGrowth]);
    assert!(
        found.iter().filter(|verdict| verdict.answer == Answer::Inconclusive).all(|verdict| !verdict.next.is_empty())
    );
}

#[test]
fn nothing_known_is_nothing_ruled_out() {
    let found = judged(&[], &[], Mode::Exact, 0.0);
    assert!(found.iter().all(|verdict| verdict.answer == Answer::Inconclusive), "{found:#?}");
    assert!(found.iter().all(|verdict| !verdict.next.is_empty() && !verdict.summary.is_empty()));
}
