//! What do saved memory images of nodes of several OTP releases say, and what when their bytes are broken?
//!
//! `cargo xtask images` records them anew; the releases are those of Debian's suites.

use beamscope::{
    erts::alloc::{Depth, Effort},
    explain::{self, model::Explanation},
    image::Image,
    stored,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::{beamscope, snapshot};

const RELEASES: [&str; 4] = ["23", "25", "27", "29"];

fn path(release: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/hermetic/images/otp-{release}.image"))
}

fn image(release: &str) -> Image {
    let bytes = std::fs::read(path(release)).expect("the image is checked in");
    stored::read(bytes.as_slice()).expect("it was written by us")
}

fn explanation(image: &Image, depth: Depth) -> Explanation {
    explain::explain(&image.view, &image.memory, &Effort { depth, threads: 1, is_over: &|| false })
}

/// Every byte has one owner, and what is said of an allocator adds up.
fn check_identities(explanation: &Explanation) {
    let owned: u64 = explanation.owners.iter().map(|owned| owned.bytes).sum();
    assert_eq!(owned + explanation.unattributed, explanation.resident);
    for facts in &explanation.instances {
        let all = facts.all();
        if let Some((_, used)) = all.blocks {
            assert_eq!(used + facts.free_bytes + facts.overhead, all.carrier_bytes, "{facts:#?}");
        }
        assert!(facts.resident_free <= facts.resident, "{facts:#?}");
        assert!(facts.lazily_freed <= facts.resident_free, "{facts:#?}");
        let pinned = &facts.pinned;
        assert!(pinned.resident_free <= facts.resident_free, "{facts:#?}");
        assert!(pinned.walked <= pinned.carriers && pinned.carriers <= pinned.blocks, "{facts:#?}");
        let held = pinned.carriers + facts.empty.carriers;
        assert!(held <= facts.mbcs.carriers + facts.pool.carriers, "{facts:#?}");
        if pinned.walked == pinned.carriers {
            let sizes = pinned.sizes.iter().fold((0, 0), |sum, (_, blocks, bytes)| (sum.0 + blocks, sum.1 + bytes));
            assert_eq!(sizes, (pinned.blocks, pinned.block_bytes), "{facts:#?}");
        }
    }
}

#[test]
fn every_release_is_explained() {
    for release in RELEASES {
        let seen = explanation(&image(release), Depth::Full);
        check_identities(&seen);
        assert_eq!(seen.node.otp_release.as_deref(), Some(release));
        assert_eq!(seen.defects, Vec::<String>::new(), "OTP {release}");
        assert_eq!(seen.depth.walked, seen.depth.carriers, "OTP {release}");
        assert!(seen.unattributed * 200 <= seen.resident, "OTP {release}: {} unattributed", seen.unattributed);
        // What was walked is what the VM has counted, though the two come from different places.
        for facts in &seen.instances {
            let counters = facts.counters.as_ref().expect("counters");
            let pool = counters.pool.clone().unwrap_or_default();
            for (kind, counted) in [(facts.mbcs, &counters.mbcs), (facts.sbcs, &counters.sbcs), (facts.pool, &pool)] {
                let (name, number) = (&facts.allocator, facts.instance);
                let blocks = Some((counted.all_blocks().now, counted.all_block_bytes().now));
                assert_eq!(kind.carriers, counted.carriers.now, "OTP {release}, {name} {number}");
                assert_eq!(kind.carrier_bytes, counted.carrier_bytes.now, "OTP {release}, {name} {number}");
                assert_eq!(kind.blocks, blocks, "OTP {release}, {name} {number}");
            }
        }
        let tags = seen.tags.iter().map(|tag| (tag.origin.as_deref(), tag.kind.as_deref()));
        assert!(tags.clone().all(|(origin, kind)| origin.is_some() && kind.is_some()), "OTP {release}");
        assert!(tags.clone().any(|tag| tag == (Some("prim_file"), Some("drv_binary"))), "OTP {release}");
    }
}

#[test]
fn the_report_of_each_release() {
    let folder = tempfile::tempdir().expect("a folder");
    for release in RELEASES {
        let file = path(release);
        let arguments = ["explain", "--quiet", &file.to_string_lossy()];
        let run = beamscope(folder.path()).args(arguments).assert().success();
        run.stdout_eq(snapshot(&format!("otp-{release}.txt"))).stderr_eq("");
    }
}

#[test]
fn a_look_as_markdown() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = path("27");
    let arguments = ["explain", "--quiet", "--format", "markdown", &file.to_string_lossy()];
    beamscope(folder.path()).args(arguments).assert().success().stdout_eq(snapshot("otp-27.md.txt")).stderr_eq("");
}

#[test]
fn counters_and_headers_say_the_same_where_they_say_anything() {
    for release in RELEASES {
        let image = image(release);
        let [full, headers, counters] =
            [Depth::Full, Depth::Headers, Depth::Counters].map(|depth| explanation(&image, depth));
        assert_eq!(headers.depth.reached, Depth::Headers);
        assert_eq!(counters.depth.reached, Depth::Counters);
        check_identities(&headers);
        check_identities(&counters);
        for ((deep, middle), shallow) in full.instances.iter().zip(&headers.instances).zip(&counters.instances) {
            assert_eq!((deep.mbcs, deep.sbcs, deep.pool), (middle.mbcs, middle.sbcs, middle.pool), "OTP {release}");
            assert_eq!(deep.free_bytes, middle.free_bytes, "OTP {release}");
            let has_carriers = middle.all().carriers > 0;
            assert_eq!(middle.largest_free_block.is_none(), has_carriers, "it is known of no carrier");
            assert_eq!(deep.counters, shallow.counters, "OTP {release}");
            assert_eq!(shallow.mbcs.blocks, None);
        }
    }
}

#[test]
fn time_that_is_over_ends_the_walk_and_is_said() {
    let image = image("25");
    let left = std::sync::atomic::AtomicI32::new(8);
    let is_over = || left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) <= 0;
    let seen =
        explain::explain(&image.view, &image.memory, &Effort { depth: Depth::Full, threads: 1, is_over: &is_over });
    check_identities(&seen);
    assert_eq!(seen.depth.reached, Depth::Full);
    assert!(0 < seen.depth.walked && seen.depth.walked < seen.depth.carriers, "{:?}", seen.depth);
    let unknown = seen.instances.iter().filter(|facts| facts.largest_free_block.is_none()).count();
    assert!(unknown > 0, "the largest free block of carriers that were not walked is not known");
}

#[test]
fn the_json_has_all_keys_of_the_schema() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = path("27");
    let arguments = ["explain", "--quiet", "--format", "json", &file.to_string_lossy()];
    let run = beamscope(folder.path()).args(arguments).assert().success();
    let json: Value = serde_json::from_slice(&run.get_output().stdout).expect("JSON");
    let schema = [
        (
            "",
            "schema node interval rss allocators libc tags vm limits sites verdicts thresholds blind losses cost defects",
        ),
        ("/node", "pid name otp_release erts_version emulator arch libc kernel container"),
        ("/interval", "start_unix seconds snapshots mode followed_seconds"),
        ("/rss", "total pss anon file shmem swap owners unattributed"),
        ("/rss/owners/0", "owner bytes growth_per_s"),
        (
            "/allocators/0",
            "allocator instance carriers carrier_bytes block_bytes blocks free_bytes resident_free_bytes \
             largest_free_block pooled_carriers utilisation pinned empty_carriers",
        ),
        (
            "/allocators/0/pinned",
            "carriers carrier_bytes resident_free_bytes blocks block_bytes walked_carriers block_sizes kinds",
        ),
        ("/vm", "processes ports atoms"),
        ("/allocators/0/carriers", "multi single"),
        ("/libc", "arenas system_bytes in_use_bytes free_bytes resident_free_bytes mmapped_bytes"),
        ("/cost", "node_cpu_share events_per_s budget steps"),
        ("/verdicts/6", "id answer confidence bytes growth_per_s subject summary evidence next"),
        ("/tags/0", "origin type blocks bytes growth_per_s"),
    ];
    for (at, expected) in schema {
        let object = json.pointer(at).and_then(Value::as_object).unwrap_or_else(|| panic!("{at} is missing"));
        for key in expected.split_whitespace() {
            assert!(object.contains_key(key), "{at}/{key} is missing");
        }
    }
    assert_eq!(json["schema"], "beamscope.report/1");
    assert_eq!(json["interval"]["mode"], "explain");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Bytes of the node are hostile: the look ends, and every byte has one owner all the same.
    #[test]
    fn broken_memory_is_survived(
        release in prop::sample::select(&RELEASES[..]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..64),
    ) {
        let mut image = image(release);
        let length = image.memory.length();
        image.memory.damage(changes.iter().map(|(at, byte)| (at.index(length), *byte)));
        for depth in [Depth::Full, Depth::Headers] {
            check_identities(&explanation(&image, depth));
        }
    }

    /// What the kernel says may contradict the memory: the process went on between the two.
    #[test]
    fn a_view_of_another_moment_is_survived(
        release in prop::sample::select(&RELEASES[..]),
        gone in prop::collection::vec(any::<prop::sample::Index>(), 1..24),
    ) {
        let mut image = image(release);
        for at in gone {
            let at = at.index(image.view.mappings.len());
            image.view.mappings.remove(at);
        }
        check_identities(&explanation(&image, Depth::Full));
    }
}
