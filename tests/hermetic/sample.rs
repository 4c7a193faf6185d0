//! A recording as `beamscope record` could have made it of a node with leaks of several kinds, built from values.

use std::collections::BTreeMap;

use beamscope::{
    erts::{
        alloc::{Depth, tally::Sizes},
        thread::ThreadKind,
    },
    explain::{
        model::{DepthReached, Explanation, InstanceFacts, Owned, Tagged, Walked},
        owner::Owner,
    },
    ledger::{Series, Survivors},
    mapping::{Address, Mappings},
    recording::{
        Asked, CarrierSeen, Cost, Emulator, Ended, FaultSite, Interval, Look, Mode, Node, Probe, Recording, Site,
        Snapshot,
    },
    stack::{Frame, FrameKind, Stack, StackEnd},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECONDS: f64 = 60.0;

pub(crate) fn recording() -> Recording {
    Recording {
        beamscope: "0.1.0".into(),
        node: node(),
        interval: Interval {
            start_unix: 1_767_225_600,
            seconds: SECONDS,
            mode: Mode::Exact,
            sample_interval_bytes: MIB,
            ended: Ended::Duration,
        },
        snapshots: vec![snapshot(0.0, 180 * MIB), snapshot(SECONDS, 812 * MIB)],
        looks: vec![look(0.0, [12, 60, 9]), look(SECONDS, [588, 96, 17])],
        mappings: Mappings::default(),
        sites: sites(),
        carriers: vec![
            CarrierSeen { site: 3, allocator: "ets_alloc".into(), bytes: 32 * MIB },
            CarrierSeen { site: 3, allocator: "binary_alloc".into(), bytes: 8 * MIB },
            CarrierSeen { site: 3, allocator: "ets_alloc".into(), bytes: 8 * MIB },
        ],
        faults: vec![FaultSite {
            stack: Stack {
                frames: vec![
                    frame("libc.so.6", "memset", None),
                    frame("leaky.so", "leak_block", Some(("/build/leaky/c_src/leaky.c", 43))),
                    erlang("thumbnails", "scale/2", None),
                ],
                end: StackEnd::Erlang,
            },
            owner: Some(Owner::NativeUsed),
            thread: Some(kind("erts_sched_1")),
            threads: vec!["erts_sched_1".into()],
            faults: 130_000,
            bytes: 508 * MIB,
            sampled: 650,
        }],
        blind: Vec::new(),
        cost: Cost { budget: None, node_seconds: Some(1.5), steps: Vec::new() },
        losses: BTreeMap::from([("lost_samples".into(), 12), ("missed_frees".into(), 3)]),
        counts: BTreeMap::from([
            ("allocated_blocks".into(), 844_020),
            ("freed_blocks".into(), 709_901),
            ("unknown_frees".into(), 4711),
            ("walked_stacks".into(), 844_020),
            ("complete_stacks".into(), 843_977),
        ]),
        probes: vec![Probe { place: "malloc in libc.so.6".into(), emulated: true }],
        notes: vec!["malloc and free are followed in libc.so.6, one probe each for entry and return".into()],
        defects: vec!["libcrypto.so.3 has no symbols; its frames are shown as offsets".into()],
    }
}

fn node() -> Node {
    Node {
        pid: 4242,
        name: Some("shop@db1.example".into()),
        otp_release: Some("27".into()),
        erts_version: Some("15.2.7".into()),
        emulator: Some(Emulator::Jit),
        arch: "x86_64".into(),
        libc: Some("glibc".into()),
        kernel: "6.12.0".into(),
        container: None,
    }
}

pub(crate) fn frame(module: &str, function: &str, place: Option<(&str, u32)>) -> Frame {
    Frame {
        address: Address(0x7f00_0000_1000),
        kind: FrameKind::Native,
        module: Some(module.into()),
        function: Some(function.into()),
        offset: Some(0x25),
        file: place.map(|(file, _)| file.into()),
        line: place.map(|(_, line)| line),
        inlined: false,
    }
}

pub(crate) fn stripped(module: &str, offset: u64) -> Frame {
    Frame { function: None, offset: Some(offset), ..frame(module, "", None) }
}

pub(crate) fn erlang(module: &str, function: &str, place: Option<(&str, u32)>) -> Frame {
    Frame { kind: FrameKind::Erlang, offset: None, ..frame(module, function, place) }
}

pub(crate) fn jit() -> Frame {
    Frame { kind: FrameKind::Jit, module: None, function: None, offset: None, ..frame("", "", None) }
}

fn sites() -> Vec<Site> {
    let malloc = || frame("libc.so.6", "malloc", None);
    let nif = || frame("beam.smp", "beam_jit_call_nif", None);
    let inlined = Frame { inlined: true, ..frame("leaky.so", "keep", Some(("/build/leaky/c_src/leaky.c", 31))) };
    vec![
        site(
            vec![
                malloc(),
                inlined,
                frame("leaky.so", "leak_block", Some(("/build/leaky/c_src/leaky.c", 42))),
                frame("leaky.so", "leak_nif", Some(("/build/leaky/c_src/leaky.c", 77))),
                nif(),
                erlang("thumbnails", "scale/2", None),
                erlang("MyApp.Worker", "run/2", Some(("lib/my_app/worker.ex", 41))),
                erlang("proc_lib", "init_p_do_apply/3", Some(("proc_lib.erl", 241))),
            ],
            StackEnd::Erlang,
            &["erts_sched_1", "erts_sched_2"],
            Figures { allocated: (512 * MIB, 131_072), freed: (0, 0), oldest: 59.5, quarters: [128; 4] },
        ),
        site(
            vec![
                malloc(),
                frame("libstdc++.so.6", "operator new(unsigned long)", None),
                frame("cache.so", "std::vector<Entry, std::allocator<Entry> >::push_back(Entry const&)", None),
                frame("cache.so", "cache::Table::insert(Entry const&)", Some(("cache.cc", 118))),
                nif(),
                jit(),
            ],
            StackEnd::Jit,
            &["erts_dcpus_1"],
            Figures { allocated: (96 * MIB, 3000), freed: (32 * MIB, 1000), oldest: 58.0, quarters: [40, 24, 0, 0] },
        ),
        site(
            vec![
                malloc(),
                stripped("libcrypto.so.3", 0x1a_2b3c),
                stripped("libcrypto.so.3", 0x1a_1000),
                frame("crypto.so", "ec_generate_key_nif", None),
                nif(),
                jit(),
            ],
            StackEnd::Jit,
            &["erts_sched_1"],
            Figures { allocated: (900 * KIB, 9000), freed: (890 * KIB, 8900), oldest: 0.2, quarters: [0; 4] },
        ),
        site(
            vec![
                frame("libc.so.6", "mmap", None),
                frame("beam.smp", "erts_mmap", None),
                frame("beam.smp", "erts_mseg_alloc_opt", None),
                frame("beam.smp", "create_carrier", None),
                frame("beam.smp", "erts_db_alloc", None),
                frame("beam.smp", "db_put_hash", None),
                jit(),
            ],
            StackEnd::Jit,
            &["erts_sched_2"],
            Figures { allocated: (56 * MIB, 4), freed: (8 * MIB, 1), oldest: 41.0, quarters: [16, 16, 8, 8] },
        ),
        site(
            vec![
                frame("libc.so.6", "posix_memalign", None),
                frame("pool.so", "worker", Some(("pool.c", 9))),
                frame("libc.so.6", "start_thread", None),
            ],
            StackEnd::Root,
            &["pool_worker"],
            Figures { allocated: (3 << 30, 700_000), freed: (3 << 30, 700_000), oldest: 0.0, quarters: [0; 4] },
        ),
        site(
            Vec::new(),
            StackEnd::Missing,
            &[],
            Figures { allocated: (MIB, 16), freed: (0, 0), oldest: 12.0, quarters: [0, 0, 0, 1] },
        ),
    ]
}

#[derive(Clone, Copy)]
struct Figures {
    allocated: (u64, u64),
    freed: (u64, u64),
    oldest: f64,
    quarters: [u64; 4],
}

fn site(frames: Vec<Frame>, end: StackEnd, threads: &[&str], figures: Figures) -> Site {
    let Figures { allocated: (allocated_bytes, allocated_blocks), freed: (freed_bytes, freed_blocks), .. } = figures;
    let mut outstanding = Series::default();
    outstanding.push(0.0, 0);
    outstanding.push(SECONDS / 2.0, (allocated_bytes - freed_bytes) / 2);
    outstanding.push(SECONDS, allocated_bytes - freed_bytes);
    Site {
        stack: Stack { frames, end },
        asked: Asked::System,
        thread: threads.first().map(|name| kind(name)),
        creator: None,
        driver: None,
        threads: threads.iter().map(|name| (*name).into()).collect(),
        allocated_bytes,
        allocated_blocks,
        freed_bytes,
        freed_blocks,
        outstanding,
        survivors: Survivors { oldest_seconds: figures.oldest, bytes: figures.quarters.map(|mib| mib * MIB) },
        exact: true,
    }
}

fn kind(thread: &str) -> ThreadKind {
    ThreadKind::of_name(thread).unwrap_or_else(|| ThreadKind::Native { name: thread.into() })
}

fn snapshot(at: f64, rss: u64) -> Snapshot {
    Snapshot {
        at,
        rss,
        pss: rss - 4 * MIB,
        anon: rss - 40 * MIB,
        file: 40 * MIB,
        shmem: 0,
        swap: 0,
        lazy_free: 2 * MIB,
    }
}

/// A look that finds so many MiB of malloc'ed memory, of blocks in `ets_alloc`, which has a third of them free beside them,
/// and of freed memory that libc keeps.
fn look(at: f64, [native, ets, retained]: [u64; 3]) -> Look {
    let owners = [
        (Owner::NativeUsed, native * MIB),
        (Owner::VmUsed("ets_alloc".into()), ets * MIB),
        (Owner::VmUnused("ets_alloc".into()), ets * MIB / 3),
        (Owner::NativeRetained, retained * MIB),
        (Owner::Files("beam.smp".into()), 40 * MIB),
        (Owner::VmCode, 38 * MIB),
        (Owner::Stacks, MIB),
    ];
    let mut owners = owners.map(|(owner, bytes)| Owned { owner, bytes }).to_vec();
    owners.sort_by_key(|owned| std::cmp::Reverse(owned.bytes));
    let resident = owners.iter().map(|owned| owned.bytes).sum::<u64>();
    let carriers = Walked { carriers: 12, carrier_bytes: ets * MIB * 4 / 3, blocks: Some((90_000, ets * MIB)) };
    let ets_alloc = InstanceFacts {
        allocator: "ets_alloc".into(),
        number: 3,
        instance: 1,
        mbcs: carriers,
        sbcs: Walked::none(),
        pool: Walked::none(),
        dying: Walked::none(),
        free_bytes: ets * MIB / 3,
        free_blocks: Some(4000),
        largest_free_block: Some(300 * KIB),
        resident: ets * MIB * 4 / 3,
        resident_free: ets * MIB / 3,
        ..InstanceFacts::default()
    };
    let tag = |origin: &str, kind: &str, blocks, bytes| Tagged {
        origin: Some(origin.into()),
        kind: Some(kind.into()),
        blocks,
        bytes,
        sizes: Sizes::default(),
    };
    Look {
        at,
        explanation: Explanation {
            node: node(),
            taken_unix: 1_767_225_600,
            figures: snapshot(at, resident),
            resident,
            depth: DepthReached { asked: Depth::Full, reached: Depth::Full, carriers: 12, walked: 12, gone: 0 },
            owners,
            instances: vec![ets_alloc],
            tags: vec![tag("prim_file", "drv_binary", 12, 280 * KIB), tag("leaky", "nif_internal", 3, 262)],
            untagged: vec!["ets_alloc".into()],
            threads: 24,
            ..Explanation::default()
        },
    }
}
