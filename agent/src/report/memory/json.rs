//! Where does each resident byte belong? For a program: the parts of `beamscope.report/1` that one look gives.

use serde_json::{Map, Value, json};

use super::{
    Memory,
    recon::{self, Window},
};
use crate::{
    erts::alloc::{
        Depth,
        statistics::{Counted, Extremes},
        tally::Sizes,
    },
    explain::model::{
        EmptyCarriers, Explanation, InstanceFacts, LibcFacts, MsegFacts, Owned, Pinned, Place, Tagged, Walked,
    },
    judge::Verdict,
    recording::Node,
    report::{json::SCHEMA, verdict},
};

/// Renders a look, and what it answers, as a report of its own.
pub fn render(explanation: &Explanation, verdicts: &[Verdict]) -> String {
    let Explanation { node, taken_unix, notes, defects, .. } = explanation;
    let mut report = Map::new();
    let mut put = |key: &str, value: Value| report.insert(key.to_owned(), value);
    put("schema", json!(SCHEMA));
    put("beamscope", json!(env!("CARGO_PKG_VERSION")));
    put("node", self::node(node));
    put(
        "interval",
        json!({ "start_unix": taken_unix, "seconds": 0.0, "snapshots": 1, "mode": "explain", "followed_seconds": 0.0 }),
    );
    put("rss", rss(explanation));
    for (key, value) in sections(&Memory::once(explanation)) {
        put(key, value);
    }
    put("sites", json!([]));
    put("verdicts", json!(verdict::json::verdicts(verdicts)));
    put("thresholds", json!(verdict::json::thresholds()));
    put("blind", json!([]));
    put("losses", json!({}));
    put("cost", json!({ "node_cpu_share": null, "events_per_s": null, "budget": null, "steps": [] }));
    put("notes", json!(notes));
    put("defects", json!(defects));
    format!("{:#}\n", Value::Object(report))
}

/// What is known of the node.
pub(in crate::report) fn node(node: &Node) -> Value {
    json!({
        "pid": node.pid,
        "name": node.name,
        "otp_release": node.otp_release,
        "erts_version": node.erts_version,
        "emulator": node.emulator,
        "arch": node.arch,
        "libc": node.libc,
        "kernel": node.kernel,
        "container": node.container,
    })
}

/// The sections that a look fills.
pub(in crate::report) fn sections(memory: &Memory<'_>) -> [(&'static str, Value); 12] {
    let explanation = memory.explanation;
    let Explanation { instances, depth, mseg, super_carriers, tags, untagged, threads, disabled, .. } = explanation;
    let is_full = depth.reached == Depth::Full;
    let instance = |facts| instance(facts, depth.reached > Depth::Counters);
    [
        ("depth", json!(depth)),
        ("allocators", instances.iter().map(instance).collect()),
        ("libc", explanation.libc.as_ref().map_or(Value::Null, libc)),
        ("tags", tags.iter().map(|one| tag(one, memory.tag_growth(one))).collect()),
        ("untagged", if is_full { json!(untagged) } else { Value::Null }),
        ("mseg", mseg_sums(explanation)),
        ("super_carriers", json!(super_carriers)),
        ("threads", json!(threads)),
        ("vm", json!(explanation.vm)),
        ("limits", json!(explanation.limits)),
        ("erlang_memory", json!(recon::erlang_memory(instances, disabled))),
        (
            "recon",
            json!({
                "memory": both(|window| json!(recon::memory(instances, window))),
                "fragmentation": both(|window| json!(recon::fragmentation(instances, window))),
                "average_block_sizes": both(|window| json!(recon::average_block_sizes(instances, window))),
                "sbcs_to_mbcs": both(|window| json!(recon::sbcs_to_mbcs(instances, window))),
                "cache_hit_rates": recon::cache_hit_rates(mseg),
            }),
        ),
    ]
}

fn both(answer: impl Fn(Window) -> Value) -> Value {
    json!({ "current": answer(Window::Current), "max": answer(Window::Max) })
}

/// Resident memory and its owners.
fn rss(explanation: &Explanation) -> Value {
    let Explanation { figures, resident, huge, unattributed, counted_twice, .. } = explanation;
    json!({
        "total": resident,
        "kernel_total": figures.rss,
        "pss": figures.pss,
        "anon": figures.anon,
        "file": figures.file,
        "shmem": figures.shmem,
        "swap": figures.swap,
        "lazy_free": figures.lazy_free,
        "huge": huge,
        "counted_twice": counted_twice,
        "owners": owners(&Memory::once(explanation)),
        "unattributed": unattributed,
        "unattributed_places": places(&explanation.unowned),
        "mapped_places": places(&explanation.mapped),
    })
}

/// The owners, with the growth of each where it is known.
pub(in crate::report) fn owners(memory: &Memory<'_>) -> Vec<Value> {
    let owner = |owned: &Owned| {
        let name = owned.owner.to_string();
        json!({ "growth_per_s": memory.growth(&name), "owner": name, "bytes": owned.bytes })
    };
    memory.explanation.owners.iter().map(owner).collect()
}

/// Places, with their resident bytes.
pub(in crate::report) fn places(places: &[Place]) -> Vec<Value> {
    let place =
        |Place { start, end, what, bytes }: &Place| json!({ "start": start, "end": end, "what": what, "bytes": bytes });
    places.iter().map(place).collect()
}

/// An allocator instance; `looked`: whether its carriers were looked at.
fn instance(facts: &InstanceFacts, looked: bool) -> Value {
    let all = facts.all();
    let (blocks, block_bytes) = all.blocks.unzip();
    let utilisation = block_bytes.filter(|_| all.carrier_bytes > 0);
    let kinds = [("mbcs", facts.mbcs), ("sbcs", facts.sbcs), ("mbcs_pool", facts.pool), ("dying", facts.dying)];
    let walked: Map<_, _> = kinds.into_iter().map(|(kind, walked)| (kind.to_owned(), self::walked(walked))).collect();
    let counters = facts.counters.as_ref().map(|counters| {
        json!({
            "mbcs": counted(&counters.mbcs),
            "sbcs": counted(&counters.sbcs),
            "mbcs_pool": counters.pool.as_ref().map(counted),
        })
    });
    json!({
        "allocator": facts.allocator,
        "instance": facts.instance,
        "carriers": {
            "multi": facts.mbcs.carriers.saturating_add(facts.pool.carriers).saturating_add(facts.dying.carriers),
            "single": facts.sbcs.carriers,
        },
        "carrier_bytes": all.carrier_bytes,
        "block_bytes": block_bytes,
        "blocks": blocks,
        "free_bytes": facts.free_bytes,
        "free_blocks": facts.free_blocks,
        "overhead_bytes": facts.overhead,
        "resident_bytes": facts.resident,
        "resident_free_bytes": facts.resident_free,
        "lazily_freed_bytes": facts.lazily_freed,
        "largest_free_block": facts.largest_free_block,
        "free_block_sizes": sizes(&facts.free_sizes),
        "pooled_carriers": facts.pool.carriers,
        "utilisation": utilisation.map(|used| used as f64 / all.carrier_bytes as f64),
        "counters": counters,
        "walked": walked,
        "pinned": looked.then(|| pinned(&facts.pinned)),
        "empty_carriers": looked.then(|| empty(facts.empty)),
    })
}

fn pinned(pinned: &Pinned) -> Value {
    let Pinned { carriers, carrier_bytes, resident_free, blocks, block_bytes, walked, sizes: histogram, kinds } =
        pinned;
    json!({
        "below": Pinned::BELOW,
        "carriers": carriers,
        "carrier_bytes": carrier_bytes,
        "resident_free_bytes": resident_free,
        "blocks": blocks,
        "block_bytes": block_bytes,
        "walked_carriers": walked,
        "block_sizes": sizes(histogram),
        "kinds": kinds.iter().map(kind).collect::<Vec<_>>(),
    })
}

fn kind(Tagged { origin, kind, blocks, bytes, sizes: histogram }: &Tagged) -> Value {
    json!({ "origin": origin, "type": kind, "blocks": blocks, "bytes": bytes, "sizes": sizes(histogram) })
}

fn empty(EmptyCarriers { carriers, carrier_bytes, resident }: EmptyCarriers) -> Value {
    json!({ "carriers": carriers, "carrier_bytes": carrier_bytes, "resident_bytes": resident })
}

fn walked(walked: Walked) -> Value {
    let (blocks, bytes) = walked.blocks.unzip();
    json!({
        "carriers": walked.carriers,
        "carrier_bytes": walked.carrier_bytes,
        "blocks": blocks,
        "block_bytes": bytes,
    })
}

fn counted(counted: &Counted) -> Value {
    let (blocks, bytes) = (counted.all_blocks(), counted.all_block_bytes());
    let most = |figure: Extremes| figure.most;
    json!({
        "carriers": counted.carriers.now,
        "carrier_bytes": counted.carrier_bytes.now,
        "blocks": blocks.now,
        "block_bytes": bytes.now,
        "max_carriers": most(counted.carriers),
        "max_carrier_bytes": most(counted.carrier_bytes),
        "max_blocks": most(blocks),
        "max_block_bytes": most(bytes),
    })
}

fn sizes(sizes: &Sizes) -> Vec<Value> {
    sizes.iter().map(|(from, blocks, bytes)| json!({ "from": from, "blocks": blocks, "bytes": bytes })).collect()
}

fn tag(tag: &Tagged, growth: Option<f64>) -> Value {
    let Tagged { origin, kind, blocks, bytes, sizes: histogram } = tag;
    json!({
        "origin": origin,
        "type": kind,
        "blocks": blocks,
        "bytes": bytes,
        "sizes": sizes(histogram),
        "growth_per_s": growth,
    })
}

fn mseg_sums(explanation: &Explanation) -> Value {
    let sum = |figure: fn(&MsegFacts) -> u64| explanation.mseg.iter().map(figure).fold(0, u64::saturating_add);
    json!({
        "cached_segments": sum(|facts| facts.cached_segments),
        "cached_bytes": sum(|facts| facts.cached_bytes),
        "instances": explanation.mseg,
    })
}

fn libc(facts: &LibcFacts) -> Value {
    let LibcFacts { heap, vm_bytes, resident_used, resident_free } = facts;
    json!({
        "arenas": heap.arenas.len(),
        "system_bytes": heap.system_bytes,
        "in_use_bytes": heap.in_use_bytes,
        "free_bytes": heap.free_bytes.saturating_add(heap.fastbin_bytes).saturating_add(heap.top_bytes),
        "resident_free_bytes": resident_free,
        "resident_used_bytes": resident_used,
        "mmapped_bytes": heap.mapped_bytes,
        "mmapped_chunks": heap.mapped_chunks,
        "top_bytes": heap.top_bytes,
        "fastbin_bytes": heap.fastbin_bytes,
        "tcache_bytes": heap.tcache_bytes,
        "vm_carrier_bytes": vm_bytes,
        "heap": heap,
    })
}
