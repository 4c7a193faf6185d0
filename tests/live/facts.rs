//! Do tables, limits and carriers that few blocks hold agree with what the node and the kernel say, and are there enough
//! looks in a recording?

use std::{fs, path::Path, time::Duration};

use beamscope::{erts::alloc::Depth, recording::Recording, stored};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    agent::{beamscope, proc_file},
    explained::{Explained, number},
    view::Viewed,
};

/// How often node and beamscope look again where something changed in between.
const LOOKS: usize = 12;

fn told(node: &mut Viewed, what: &str) -> u64 {
    let answer = node.subject().ask(&format!("call erlang system_info {what}"));
    answer.strip_prefix("called ").and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn tables_are_as_the_node_says() {
    let mut node = Viewed::at_rest("processes 500", &["+Q", "300000", "+P", "50000"]);
    let figures = [
        ("process_count", "/vm/processes/used"),
        ("process_limit", "/vm/processes/limit"),
        ("port_count", "/vm/ports/used"),
        ("port_limit", "/vm/ports/limit"),
        ("atom_count", "/vm/atoms/used"),
        ("atom_limit", "/vm/atoms/limit"),
    ];
    let seen = (0..LOOKS).find_map(|_| {
        let before = figures.map(|(name, _)| told(&mut node, name));
        let seen = Explained::process(node.pid());
        let after = figures.map(|(name, _)| told(&mut node, name));
        (before == after).then_some((before, seen))
    });
    let (told, seen) = seen.expect("a node at rest has the same figures twice");
    for ((name, pointer), told) in figures.into_iter().zip(told) {
        assert_eq!(seen.number(pointer), told, "{name}");
    }
    assert!(told[0] > 500, "{told:?}");
    // A slot has 8 bytes, and the list of free identifiers 4 or 8 for each.
    let (slots, bytes) = (seen.number("/vm/ports/limit"), seen.number("/vm/ports/table_bytes"));
    assert!(slots == 1 << 19 && [12 * slots, 16 * slots].contains(&bytes), "{slots} slots, {bytes} bytes");
    limits_are_as_the_kernel_says(&node, &seen);
}

fn limits_are_as_the_kernel_says(node: &Viewed, seen: &Explained) {
    let folder = format!("/proc/{}", node.pid());
    let open = fs::read_dir(format!("{folder}/fd")).expect("open files").count() as u64;
    assert_eq!(seen.number("/limits/open_files"), open);
    let limits = proc_file(&format!("{folder}/limits"));
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    let soft = line.split_whitespace().nth(3).expect("a soft limit");
    assert_eq!(seen.0["limits"]["most_open_files"].as_u64(), soft.parse().ok());
    let groups = proc_file(&format!("{folder}/cgroup"));
    let first = groups.lines().find_map(|line| line.split_once(":memory:"));
    let second = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let group = &seen.0["limits"]["group"];
    let (path, file) = match (first, second) {
        (Some((_, path)), _) => (path, format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
        (None, Some(path)) if path != "/" => (path, format!("/sys/fs/cgroup{path}/memory.max")),
        // The kernel counts no memory for what is in no group.
        _ => return assert!(group.is_null(), "{group}"),
    };
    assert_eq!(group["path"].as_str(), Some(path), "{group}");
    assert!(number(group, "/current") >= 1 << 20, "{group}");
    let max = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let max = max.trim().parse::<u64>().ok().filter(|max| *max < 1 << 62);
    assert_eq!(group["max"].as_u64(), max, "{group}");
}

/// The allocator with the most that few blocks hold, its carriers of that kind by instance, and how much of what is resident
/// and free is in them.
fn most_pinned(seen: &Explained) -> (String, Vec<&Value>, f64) {
    let free = |allocator: &&Value| number(allocator, "/pinned/resident_free_bytes");
    let most = seen.allocators().iter().max_by_key(free).expect("allocators");
    let name = most["allocator"].as_str().expect("a name");
    let of: Vec<&Value> = seen.allocators().iter().filter(|allocator| allocator["allocator"] == name).collect();
    let all: u64 = of.iter().map(|allocator| number(allocator, "/resident_free_bytes")).sum();
    let pinned: u64 = of.iter().map(free).sum();
    (name.to_owned(), of.iter().map(|allocator| &allocator["pinned"]).collect(), pinned as f64 / all as f64)
}

#[test]
fn few_rows_of_a_table_hold_its_carriers() {
    let node = Viewed::at_rest("ets 300000", &[]);
    let seen = Explained::process(node.pid());
    let (allocator, pinned, share) = most_pinned(&seen);
    assert_eq!(allocator, "ets_alloc");
    assert!(share > 0.5, "{share} of what is free is in carriers that are held by few blocks: {pinned:?}");
    let sum = |figure: &str| pinned.iter().map(|pinned| number(pinned, figure)).sum::<u64>();
    // Every tenth row is left.
    let (blocks, carriers) = (sum("/blocks"), sum("/carriers"));
    assert!((10_000..60_000).contains(&blocks) && carriers > 1, "{blocks} blocks in {carriers} carriers");
    let sizes = pinned.iter().flat_map(|pinned| pinned["block_sizes"].as_array().expect("sizes"));
    assert_eq!(sizes.map(|size| number(size, "/blocks")).sum::<u64>(), blocks);
    assert!(pinned.iter().all(|pinned| pinned["kinds"] == serde_json::json!([])), "ets_alloc carries no tags");
}

#[test]
fn few_binaries_hold_their_carriers() {
    let node = Viewed::at_rest("binary 30000", &[]);
    let seen = Explained::process(node.pid());
    let (allocator, pinned, share) = most_pinned(&seen);
    assert_eq!(allocator, "binary_alloc");
    assert!(share > 0.5, "{share} of what is free is in carriers that are held by few blocks: {pinned:?}");
    let most = pinned.iter().max_by_key(|pinned| number(pinned, "/blocks")).expect("an instance");
    let kind = &most["kinds"][0];
    assert_eq!((kind["origin"].as_str(), kind["type"].as_str()), (Some("system"), Some("binary")), "{most:#}");
    assert!(number(kind, "/blocks") * 10 >= number(most, "/blocks") * 9, "{most:#}");
}

fn recorded(file: &Path) -> Recording {
    stored::read(fs::File::open(file).expect("a recording")).expect("it was written by us")
}

/// The looks go on while the node runs, and those before its death stay.
#[test]
fn looks_until_the_node_dies() {
    let node = Viewed::at_rest("small", &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("node.bscope");
    let mut recording = beamscope()
        .args(["record", &node.pid().to_string(), "--quiet", "-d", "60s", "-o"])
        .arg(&file)
        .spawn()
        .expect("beamscope runs");
    std::thread::sleep(Duration::from_secs(15));
    kill(Pid::from_raw(node.pid().cast_signed()), Signal::SIGKILL).expect("it runs");
    assert!(recording.wait().expect("our child").success());
    let bytes = fs::metadata(&file).expect("a recording").len();
    let looks = recorded(&file).looks;
    let depths: Vec<_> = looks.iter().map(|look| (look.at, look.explanation.depth)).collect();
    println!("{bytes} bytes, looks: {depths:#?}");
    assert!(looks.len() >= 3, "{depths:?}");
    assert!(looks.windows(2).all(|pair| pair[0].at < pair[1].at), "{depths:?}");
    assert_eq!(looks[0].explanation.depth.reached, Depth::Full);
    for look in &looks {
        let seen = &look.explanation;
        assert!(seen.depth.reached >= Depth::Headers, "{depths:?}");
        assert!(seen.resident > 32 << 20 && seen.vm.processes.is_some(), "at {}: {:?}", look.at, seen.defects);
        let owned: u64 = seen.owners.iter().map(|owned| owned.bytes).sum();
        assert_eq!(owned + seen.unattributed, seen.resident, "at {}", look.at);
    }
    assert!(bytes < 1 << 20, "a short recording of {bytes} bytes");
}
