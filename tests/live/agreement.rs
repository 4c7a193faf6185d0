//! Does what beamscope saw of a stopped node agree with what the node saw just before, and with itself?

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    explained::{Explained, KINDS, entry, number},
    view::View,
};

/// Of a figure of blocks; the rest of the allowance is `Allowance::fixed`.
const TOLERANCE: f64 = 0.001;

/// Segments that a node asks for after it has counted them: 5 as seen.
const CALLS_OF_A_LOOK: f64 = 8.0;

/// RSS without an owner, as a share of all.
const UNATTRIBUTED: f64 = 0.005;

/// A node that reports its figures counts the message that carries them: one for each instance, of 2.9 kB as
/// measured. It is gone when the node is stopped.
struct Allowance {
    fixed: u64,
}

impl Allowance {
    fn of(view: &View) -> Self {
        let heaps = view.instances().iter().filter(|(allocator, _)| allocator == "eheap_alloc").count();
        Self { fixed: 8192 * u64::try_from(heaps.max(1)).expect("few") }
    }

    fn assert_near(&self, seen: u64, told: u64, what: &str) {
        let allowed = told as f64 * TOLERANCE + self.fixed as f64;
        let apart = seen.abs_diff(told);
        assert!(apart as f64 <= allowed, "{what}: seen {seen}, told {told}, {apart} apart, {allowed:.0} allowed");
    }
}

/// All of what follows.
pub(crate) fn assert_agreement(view: &View, seen: &Explained) {
    assert_eq!(seen.0["defects"], serde_json::json!([]), "defects");
    assert_eq!(seen.0["depth"]["reached"], "full", "{}", seen.0["depth"]);
    counters_are_the_vms_own(view, seen);
    maxima_are_the_vms_own(view, seen);
    walk_is_complete(seen);
    sums_add_up(seen);
    owners_add_up(seen);
    segment_cache(view, seen);
    classes_of_memory(view, seen);
    memory_by_recon(view, seen);
    tables_by_recon(view, seen);
}

fn counters_are_the_vms_own(view: &View, seen: &Explained) {
    let allowance = Allowance::of(view);
    let name = |allocator: &Value| {
        let name = allocator["allocator"].as_str().expect("a name").to_owned();
        (name, number(allocator, "/instance"))
    };
    let seen_instances: BTreeSet<_> = seen.allocators().iter().map(name).collect();
    let told_instances: BTreeSet<_> = view.instances().into_iter().collect();
    assert_eq!(seen_instances, told_instances, "instances");
    let mut told_bytes = 0;
    for (allocator, instance) in &told_instances {
        let counters = &seen.allocator(allocator, *instance)["counters"];
        for kind in KINDS {
            let what = format!("allocator {allocator} {instance} {kind}");
            // An allocator that does not share its carriers has no pool.
            let told = |figure: &str| view.figure(&format!("{what} {figure}")).unwrap_or(0);
            let seen = |figure: &str| number(counters, &format!("/{kind}/{figure}"));
            assert_eq!(seen("carriers"), told("carriers"), "{what} carriers");
            assert_eq!(seen("carrier_bytes"), told("carriers_size"), "{what} carrier bytes");
            allowance.assert_near(seen("block_bytes"), told("blocks_size"), &format!("{what} block bytes"));
            // A block of such a message is 2 kB or larger.
            let apart = seen("blocks").abs_diff(told("blocks"));
            let allowed = told("blocks") as f64 * TOLERANCE + (allowance.fixed / 2048) as f64;
            assert!(apart as f64 <= allowed, "{what} blocks: {} seen, {} told", seen("blocks"), told("blocks"));
            told_bytes += told("blocks_size");
        }
    }
    allowance.assert_near(seen.sum("counters", "block_bytes"), told_bytes, "block bytes of all");
}

fn maxima_are_the_vms_own(view: &View, seen: &Explained) {
    let allowance = Allowance::of(view);
    for (allocator, instance) in view.instances() {
        let counters = &seen.allocator(&allocator, instance)["counters"];
        for kind in ["mbcs", "sbcs"] {
            let what = format!("allocator {allocator} {instance} {kind}");
            let told = |figure: &str| view.figure(&format!("{what} {figure}_ever")).expect("a largest value ever");
            let seen = |figure: &str| number(counters, &format!("/{kind}/{figure}"));
            assert_eq!(seen("max_carriers"), told("carriers"), "{what} most carriers");
            assert_eq!(seen("max_carrier_bytes"), told("carriers_size"), "{what} most carrier bytes");
            allowance.assert_near(seen("max_block_bytes"), told("blocks_size"), &format!("{what} most block bytes"));
            allowance.assert_near(seen("max_blocks"), told("blocks"), &format!("{what} most blocks"));
        }
    }
}

fn walk_is_complete(seen: &Explained) {
    for allocator in seen.allocators() {
        for kind in KINDS {
            for figure in ["carriers", "carrier_bytes", "blocks", "block_bytes"] {
                let counted = number(allocator, &format!("/counters/{kind}/{figure}"));
                let walked = number(allocator, &format!("/walked/{kind}/{figure}"));
                let (name, instance) = (&allocator["allocator"], &allocator["instance"]);
                assert_eq!(walked, counted, "{name} {instance} {kind} {figure}: walked, and by the VM's counters");
            }
        }
    }
}

/// What the report says of an instance as a whole is what it says of its kinds of carriers.
fn sums_add_up(seen: &Explained) {
    for allocator in seen.allocators() {
        let of = |kind: &str, figure: &str| number(allocator, &format!("/walked/{kind}/{figure}"));
        let all = |figure: &str| KINDS.iter().map(|kind| of(kind, figure)).sum::<u64>();
        let whole = |figure: &str| number(allocator, figure);
        assert_eq!(whole("/carriers/multi"), of("mbcs", "carriers") + of("mbcs_pool", "carriers"), "{allocator:#}");
        assert_eq!(whole("/carriers/single"), of("sbcs", "carriers"), "{allocator:#}");
        assert_eq!(whole("/pooled_carriers"), of("mbcs_pool", "carriers"), "{allocator:#}");
        for figure in ["carrier_bytes", "block_bytes", "blocks"] {
            assert_eq!(whole(&format!("/{figure}")), all(figure), "{figure}: {allocator:#}");
        }
        let (carriers, blocks, free) = (whole("/carrier_bytes"), whole("/block_bytes"), whole("/free_bytes"));
        assert!(blocks + free <= carriers, "{allocator:#}");
        assert!(whole("/resident_free_bytes") <= free, "{allocator:#}");
        assert!(whole("/largest_free_block") <= free, "{allocator:#}");
        if carriers > 0 {
            assert_near_share(&allocator["utilisation"], blocks as f64 / carriers as f64, 1e-6, "utilisation");
        }
    }
}

fn owners_add_up(seen: &Explained) {
    let (total, unattributed) = (seen.number("/rss/total"), seen.number("/rss/unattributed"));
    let owners: u64 = seen.list("/rss/owners").iter().map(|owner| number(owner, "/bytes")).sum();
    assert_eq!(owners + unattributed, total, "owners and unattributed: {:#}", seen.0["rss"]);
    let allowed = total as f64 * UNATTRIBUTED;
    assert!(unattributed as f64 <= allowed, "{unattributed} of {total} have no owner: {:#}", seen.0["rss"]);
}

fn segment_cache(view: &View, seen: &Explained) {
    let cached = view.below("mseg ").filter(|(name, _)| name.ends_with(" cached_segments"));
    let told: u64 = cached.map(|(_, segments)| segments.parse::<u64>().expect("a number")).sum();
    assert_eq!(seen.number("/mseg/cached_segments"), told, "cached segments");
}

/// The node has none where allocators are off that they are summed up from.
fn classes_of_memory(view: &View, seen: &Explained) {
    let told = |class: &str| view.figure(&format!("memory {class}"));
    let Some(binary) = told("binary") else {
        return assert!(seen.0["erlang_memory"].is_null(), "the node cannot tell it");
    };
    let allowance = Allowance::of(view);
    let of = |class: &str| seen.number(&format!("/erlang_memory/{class}"));
    allowance.assert_near(of("binary"), binary, "binary");
    // The VM adds what lies outside of its allocators, and to the heaps what processes have beside them.
    let at_most = |class: &str, added: u64| {
        let (of, told) = (of(class), told(class).expect("a figure"));
        assert!(of <= told + allowance.fixed, "{class}: {of} seen, {told} told");
        assert!(
            told - of.min(told) <= added + allowance.fixed,
            "{class}: {of} seen, {told} told, {added} more at most"
        );
    };
    at_most("ets", 256 << 10);
    at_most("total", told("code").expect("a figure"));
    at_most("processes", told("processes").expect("a figure"));
}

fn memory_by_recon(view: &View, seen: &Explained) {
    let allowance = Allowance::of(view);
    for stage in ["current", "max"] {
        let told = |name: &str| view.figure(&format!("recon memory {stage} {name}")).expect("a figure");
        let pointer = |name: &str| format!("/recon/memory/{stage}/{name}");
        assert_eq!(seen.number(&pointer("allocated")), told("allocated"), "{stage} allocated");
        for name in ["used", "unused"] {
            // Both are off by what the used bytes are off by.
            let allowed = told("used") as f64 * TOLERANCE + allowance.fixed as f64;
            let apart = seen.number(&pointer(name)).abs_diff(told(name)) as f64;
            assert!(apart <= allowed, "{stage} {name}: {} told {}", seen.number(&pointer(name)), told(name));
        }
        let usage = seen.number(&pointer("used")) as f64 / seen.number(&pointer("allocated")) as f64;
        assert!((seen.share(&pointer("usage")) - usage).abs() < 1e-6, "{stage} usage is not {usage}");
        for list in ["allocated_types", "allocated_instances"] {
            let prefix = format!("recon memory {stage} {list} ");
            for (key, bytes) in view.below(&prefix) {
                let found = seen.number(&format!("/recon/memory/{stage}/{list}/{key}"));
                assert_eq!(found.to_string(), bytes, "{stage} {list} {key}");
            }
        }
    }
}

fn tables_by_recon(view: &View, seen: &Explained) {
    for (name, told) in view.below("recon fragmentation current ") {
        let [allocator, instance, figure] = words(name);
        let found = &entry(seen.list("/recon/fragmentation/current"), allocator, parsed(instance))[figure];
        match figure {
            "mbcs_carriers_size" | "sbcs_carriers_size" => assert_eq!(found.to_string(), told, "{name}"),
            "mbcs_usage" | "sbcs_usage" => {
                let kind = figure.strip_suffix("_usage").expect("it ends so");
                let carriers =
                    view.figure(&format!("recon fragmentation current {allocator} {instance} {kind}_carriers_size"));
                let allowed = Allowance::of(view).fixed as f64 / carriers.unwrap_or(0).max(1) as f64;
                assert_near_share(found, parsed(told), TOLERANCE + allowed, name);
            }
            _ => {
                let found = found.as_u64().unwrap_or_else(|| panic!("no {name}"));
                Allowance::of(view).assert_near(found, parsed(told), name);
            }
        }
    }
    for (name, told) in view.below("recon sbcs_to_mbcs current ") {
        let [allocator, instance] = words(name);
        let found = &entry(seen.list("/recon/sbcs_to_mbcs/current"), allocator, parsed(instance))["ratio"];
        // JSON has no infinity.
        if told == "infinity" {
            assert!(found.is_null(), "{name}: {found}");
        } else {
            let told: f64 = parsed(told);
            assert_near_share(found, told, told * (TOLERANCE + 16.0 / blocks_of(view, allocator).max(1) as f64), name);
        }
    }
    for (name, told) in view.below("recon average_block_sizes current ") {
        let [allocator, kind] = words(name);
        let found = seen.share(&format!("/recon/average_block_sizes/current/{allocator}/{kind}"));
        let told: f64 = parsed(told);
        // Five messages more or less are nothing to many blocks and much to few.
        let blocks = blocks_of(view, allocator).max(1) as f64;
        let allowed = told * (TOLERANCE + 16.0 / blocks) + Allowance::of(view).fixed as f64 / blocks;
        assert!((found - told).abs() <= allowed, "{name}: seen {found}, told {told}, {allowed} allowed");
    }
    for (name, told) in view.below("recon cache_hit_rates ") {
        let [instance, figure] = words(name);
        let rates = seen.list("/recon/cache_hit_rates");
        let rate = rates.iter().find(|rate| rate["instance"] == parsed::<u64>(instance));
        let rate = rate.unwrap_or_else(|| panic!("no hit rate of {instance}: {rates:?}"));
        // The node asks for a few segments more while it writes down how many it has asked for.
        let calls = number(rate, "/calls").max(1) as f64;
        let allowed = if figure == "hit_rate" { CALLS_OF_A_LOOK / calls } else { CALLS_OF_A_LOOK };
        assert_near_share(&rate[figure], parsed(told), allowed, name);
    }
}

fn blocks_of(view: &View, allocator: &str) -> u64 {
    let prefix = format!("allocator {allocator} ");
    let blocks = view.below(&prefix).filter(|(name, _)| name.ends_with(" blocks"));
    blocks.map(|(_, blocks)| parsed::<u64>(blocks)).sum()
}

fn assert_near_share(found: &Value, told: f64, allowed: f64, what: &str) {
    let found = found.as_f64().unwrap_or_else(|| panic!("{what}: {found} is no number"));
    assert!((found - told).abs() <= allowed, "{what}: seen {found}, told {told}, {allowed} allowed");
}

fn words<const N: usize>(name: &str) -> [&str; N] {
    let words: Vec<&str> = name.split(' ').collect();
    words.try_into().unwrap_or_else(|words| panic!("{words:?} are not {N} words"))
}

fn parsed<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("{word:?} is no number"))
}
