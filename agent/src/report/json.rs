//! What does the report look like to a program? JSON, `beamscope.report/1`.
//!
//! `looks` has the owners' bytes at each look of the recording, the last of which `rss` and the other sections are about.
//!
//! Keys are stable and all present; what this version does not find out is `null` or an empty list. Every site has a
//! `class` beside its `kind`: a site of kind `native` was seen at the allocation functions, and its class says whether
//! the memory is native code's or, for want of a stack, of unknown owner. A site of kind `vm_api` was seen at the VM's
//! own functions for native code: what they hand out lies in carriers and is in none of the `totals`. A site of kind
//! `carrier` has an `allocator`, and where the VM exports the function by which its allocators ask for carriers, there are
//! more of them with the number of `requests` and `requested_bytes`: these are no memory beside that of the others. A site of
//! kind `fault` has touched pages that became resident by it, `allocated_bytes` in all, and the `owner` that these had at
//! the end; whether it holds them is not known.

use serde_json::{Map, Value, json};

use super::{Report, Total, memory, verdict};
use crate::{
    attribute::{Attribution, Class, Evidence, RankedSite, attribute_touch},
    erts::thread::ThreadKind,
    recording::{Asked, FaultSite, Look},
    report::label,
    stack::{Frame, FrameKind},
};

/// Name and version of the schema.
pub const SCHEMA: &str = "beamscope.report/1";

/// Renders the report, with the first `top` sites or all of them.
pub fn render(report: &Report<'_>, top: Option<usize>) -> String {
    let recording = report.recording;
    let interval = &recording.interval;
    let top = top.unwrap_or(usize::MAX);
    let found: usize = [&report.sites, &report.vm_api, &report.carriers].map(Vec::len).iter().sum();
    let found = found.saturating_add(recording.faults.len());
    let asked_of_vm = report.vm_api.iter().take(top).chain(report.carriers.iter().take(top));
    let faults = recording.faults.iter().take(top).map(fault);
    let sites: Vec<_> = report.sites.iter().take(top).chain(asked_of_vm).map(site).chain(faults).collect();
    let mut json = json!({
        "schema": SCHEMA,
        "beamscope": recording.beamscope,
        "node": memory::json::node(&recording.node),
        "interval": {
            "start_unix": interval.start_unix,
            "seconds": interval.seconds,
            "snapshots": recording.snapshots.len(),
            "mode": interval.mode,
            "followed_seconds": recording.followed_seconds(),
            "ended": interval.ended,
        },
        "rss": rss(report),
        "looks": recording.looks.iter().map(look).collect::<Vec<_>>(),
        "totals": { "native": total(&report.native), "vm": total(&report.vm), "unknown": total(&report.unknown) },
        "sites_found": found,
        "sites": sites,
        "verdicts": verdict::json::verdicts(&report.verdicts),
        "thresholds": verdict::json::thresholds(),
        "blind": recording.blind,
        "losses": recording.losses,
        "counts": recording.counts,
        "cost": {
            "node_cpu_share": recording.cost_share(),
            "node_seconds": recording.cost.node_seconds,
            "events_per_s": report.calls_per_second(),
            "budget": recording.cost.budget,
            "steps": recording.cost.steps,
        },
        "probes": recording.probes,
        "notes": recording.notes,
        "defects": recording.defects,
    });
    if let Some(keys) = json.as_object_mut() {
        // What no look has found out is empty.
        let nothing = ["libc", "vm", "limits"].map(|key| (key, Value::Null));
        let none = ["allocators", "tags"].map(|key| (key, json!([]))).into_iter().chain(nothing);
        let looked = report.memory.iter().flat_map(memory::json::sections);
        keys.extend(none.chain(looked).map(|(key, value)| (key.to_owned(), value)));
    }
    format!("{json:#}\n")
}

/// Whose the resident bytes were at one moment of the recording.
fn look(look: &Look) -> Value {
    let Look { at, explanation } = look;
    let owners: Map<String, Value> =
        explanation.owners.iter().map(|owned| (owned.owner.to_string(), owned.bytes.into())).collect();
    json!({
        "at_s": at,
        "total": explanation.resident,
        "owners": owners,
        "unattributed": explanation.unattributed,
        "depth": explanation.depth.reached,
    })
}

fn rss(report: &Report<'_>) -> Value {
    let Some(rss) = report.rss else {
        let none = Value::Null;
        return json!({
            "total": none, "pss": none, "anon": none, "file": none, "shmem": none, "swap": none, "lazy_free": none,
            "start_total": none, "growth_per_s": none, "owners": [], "unattributed": none,
        });
    };
    let owned = report.memory.as_ref();
    json!({
        "total": rss.end.rss,
        "pss": rss.end.pss,
        "anon": rss.end.anon,
        "file": rss.end.file,
        "shmem": rss.end.shmem,
        "swap": rss.end.swap,
        "lazy_free": rss.end.lazy_free,
        "start_total": rss.start.rss,
        "growth_per_s": rss.growth_per_second,
        "owners": owned.map(memory::json::owners).unwrap_or_default(),
        "owners_total": owned.map(|memory| memory.explanation.resident),
        "unattributed": owned.map(|memory| memory.explanation.unattributed),
        "owner_defects": owned.map(|memory| &memory.explanation.defects),
    })
}

fn total(total: &Total) -> Value {
    let Total { sites, outstanding_bytes, outstanding_blocks, allocated_bytes, freed_bytes, growth_per_second } = total;
    json!({
        "sites": sites,
        "outstanding_bytes": outstanding_bytes,
        "outstanding_blocks": outstanding_blocks,
        "allocated_bytes": allocated_bytes,
        "freed_bytes": freed_bytes,
        "growth_per_s": growth_per_second,
    })
}

fn site(ranked: &RankedSite<'_>) -> Value {
    let RankedSite { site, attribution, growth_per_second } = ranked;
    let (kind, class, library) = match &attribution.class {
        Class::Native { library } => ("native", "native", Some(library)),
        Class::Vm => ("carrier", "vm", None),
        Class::Unknown => ("native", "unknown", None),
    };
    let kind = match site.asked {
        Asked::System => kind,
        Asked::Vm => "vm_api",
        Asked::Carriers { .. } => "carrier",
    };
    let frames = &site.stack.frames;
    let responsible = attribution.responsible.and_then(|index| frames.get(index));
    let erlang = frames.iter().find(|frame| frame.kind == FrameKind::Erlang);
    let (requested, allocator) = match &site.asked {
        Asked::Carriers { allocator } => (true, Some(allocator)),
        _ => (false, first_allocator(&attribution.evidence)),
    };
    let carriers = attribution.evidence.iter().find_map(|evidence| match evidence {
        Evidence::Carriers { count, bytes, allocators } => {
            Some(json!({ "count": count, "bytes": bytes, "allocators": allocators }))
        }
        _ => None,
    });
    json!({
        "kind": kind,
        "class": class,
        "carriers": carriers,
        "allocator": allocator,
        "requests": requested.then_some(site.allocated_blocks),
        "requested_bytes": requested.then_some(site.allocated_bytes),
        "outstanding_bytes": if requested { 0 } else { site.outstanding_bytes() },
        "outstanding_blocks": if requested { 0 } else { site.outstanding_blocks() },
        "allocated_bytes": if requested { 0 } else { site.allocated_bytes },
        "freed_bytes": site.freed_bytes,
        "growth_per_s": growth_per_second.filter(|_| !requested),
        "oldest_s": site.survivors.oldest_seconds,
        "survivors_by_quarter": site.survivors.bytes,
        "exact": site.exact,
        "library": library,
        "via": attribution.via,
        "function": responsible.map(label::function),
        "mfa": erlang.map(label::function),
        "driver": site.driver,
        "creator": site.creator.as_ref().map(|creator| creator.frames.iter().map(frame).collect::<Vec<_>>()),
        "thread_kind": site.thread.as_ref().map(ThreadKind::role),
        "thread": site.threads.first(),
        "threads": site.threads,
        "owner": null,
        "faults": null,
        "sampled_faults": null,
        "stack_end": site.stack.end,
        "stack": frames.iter().map(frame).collect::<Vec<_>>(),
    })
}

fn fault(site: &FaultSite) -> Value {
    let Attribution { class, responsible, via, .. } = attribute_touch(&site.stack);
    let frames = &site.stack.frames;
    let responsible = responsible.and_then(|index| frames.get(index));
    let erlang = frames.iter().find(|frame| frame.kind == FrameKind::Erlang);
    let (class, library) = match &class {
        Class::Native { library } => ("native", Some(library)),
        Class::Vm => ("vm", None),
        Class::Unknown => ("unknown", None),
    };
    json!({
        "kind": "fault",
        "class": class,
        "carriers": null,
        "allocator": null,
        "requests": null,
        "requested_bytes": null,
        "outstanding_bytes": 0,
        "outstanding_blocks": 0,
        "allocated_bytes": site.bytes,
        "freed_bytes": 0,
        "growth_per_s": null,
        "oldest_s": null,
        "survivors_by_quarter": null,
        "exact": site.faults == site.sampled,
        "library": library,
        "via": via,
        "function": responsible.map(label::function),
        "mfa": erlang.map(label::function),
        "driver": null,
        "creator": null,
        "thread_kind": site.thread.as_ref().map(ThreadKind::role),
        "thread": site.threads.first(),
        "threads": site.threads,
        "owner": site.owner.as_ref().map(ToString::to_string),
        "faults": site.faults,
        "sampled_faults": site.sampled,
        "stack_end": site.stack.end,
        "stack": frames.iter().map(frame).collect::<Vec<_>>(),
    })
}

/// The allocator of most of the carriers that were found in a site's memory.
fn first_allocator(evidence: &[Evidence]) -> Option<&String> {
    evidence.iter().find_map(|evidence| match evidence {
        Evidence::Carriers { allocators, .. } => allocators.first(),
        _ => None,
    })
}

fn frame(frame: &Frame) -> Value {
    let Frame { address: _, kind, module, function, offset, file, line, inlined } = frame;
    json!({
        "kind": kind,
        "module": module,
        "function": function,
        "offset": offset,
        "file": file,
        "line": line,
        "inlined": inlined,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{explain::owner::Owner, recording::Recording, sample, stack::Stack};

    fn keys(value: &Value) -> BTreeSet<&str> {
        value.as_object().expect("an object").keys().map(String::as_str).collect()
    }

    #[test]
    fn all_keys_of_the_schema_are_there() {
        let schema = [
            ("", "schema node interval rss allocators libc tags sites verdicts thresholds blind losses cost defects"),
            ("/node", "pid name otp_release erts_version emulator arch libc kernel container"),
            ("/interval", "start_unix seconds snapshots mode followed_seconds"),
            ("/rss", "total pss anon file shmem swap owners unattributed"),
            (
                "/sites/0",
                "kind outstanding_bytes outstanding_blocks allocated_bytes freed_bytes growth_per_s oldest_s library \
                 mfa thread stack",
            ),
            ("/sites/0/stack/0", "kind module function offset file line"),
            ("/cost", "node_cpu_share events_per_s budget steps"),
            ("/verdicts/6", "id answer confidence bytes growth_per_s subject summary evidence next"),
        ];
        let full = sample::recording();
        let bare = Recording { snapshots: Vec::new(), ..sample::recording() };
        for recording in [full, bare] {
            let json: Value = serde_json::from_str(&render(&Report::new(&recording), None)).expect("is JSON");
            for (at, expected) in schema {
                let found = keys(json.pointer(at).unwrap_or_else(|| panic!("{at} is missing")));
                for key in expected.split_whitespace() {
                    assert!(found.contains(key), "{at}/{key} is missing");
                }
            }
        }
    }

    #[test]
    fn who_touched_memory_is_a_site_as_well() {
        let mut recording = sample::recording();
        let stack = recording.sites[0].stack.clone();
        recording.faults.push(FaultSite {
            stack: Stack { frames: stack.frames[1..].to_vec(), ..stack },
            owner: Some(Owner::VmUsed("ets_alloc".to_owned())),
            thread: None,
            threads: vec!["1_scheduler".to_owned()],
            faults: 10,
            bytes: 40960,
            sampled: 3,
        });
        let json: Value = serde_json::from_str(&render(&Report::new(&recording), None)).expect("is JSON");
        let sites = json["sites"].as_array().expect("sites");
        let fault = sites.last().expect("a site");
        assert_eq!(json["sites_found"], sites.len());
        assert_eq!((&fault["kind"], &fault["owner"]), (&json!("fault"), &json!("vm.used/ets_alloc")));
        assert_eq!((&fault["allocated_bytes"], &fault["outstanding_bytes"]), (&json!(40960), &json!(0)));
        for key in ["library", "function", "mfa"] {
            assert_eq!(fault[key], json["sites"][0][key], "{key}");
        }
    }

    #[test]
    fn stacks_run_from_the_leaf() {
        let recording = sample::recording();
        let json: Value = serde_json::from_str(&render(&Report::new(&recording), Some(1))).expect("is JSON");
        assert_eq!(json["sites"].as_array().map(Vec::len), Some(2), "one that asked, and one that touched");
        assert_eq!(keys(&json["sites"][0]), keys(&json["sites"][1]));
        assert_eq!(json["sites"][1]["function"], "leak_block");
        assert_eq!(json["sites_found"], recording.sites.len() + recording.faults.len());
        assert_eq!(json["sites"][0]["stack"][0]["function"], "malloc");
        assert_eq!(json["sites"][0]["function"], "keep");
        assert_eq!(json["sites"][0]["library"], "leaky.so");
    }
}
