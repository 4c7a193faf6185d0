//! Are groups found in hierarchies as kernels and containers show them?

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A container's process as its host sees it: Linux 6.1 with version 2 only.
const MOUNTS_2: &str = "24 30 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
    35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
/// Version 1, with an empty hierarchy of version 2 beside it: Linux 6.18.
const MOUNTS_1: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
    32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
    35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
/// Inside a container of version 1, where only its own part of the hierarchy is mounted.
const MOUNTS_PART: &str = "35 31 0:32 /docker/4f /sys/fs/cgroup/memory ro,nosuid master:11 - cgroup memory rw,memory\n";

const STAT_2: &str = "anon 314572800\nfile 41943040\nkernel 9437184\nkernel_stack 1048576\npagetables 2097152\nsock 65536\n\
    vmalloc 0\nshmem 4096\nfile_mapped 20480\nfile_dirty 0\ninactive_anon 314568704\nslab 5242880\npgfault 12345\n";
const EVENTS_2: &str = "low 0\nhigh 12\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n";

const STAT_1: &str = "cache 0\nrss 10\nhierarchical_memory_limit 536870912\nhierarchical_memsw_limit 9223372036854771712\n\
    total_cache 17935015\ntotal_rss 332304384\ntotal_shmem 9084928\ntotal_swap 4096\n";

fn mounts(text: &str) -> Vec<MountInfo> {
    text.lines().map(|line| MountInfo::from_line(line).expect("a line of mountinfo")).collect()
}

/// What a group says, given the files that there are.
fn facts(cgroup: &str, mountinfo: &str, files: &[(&str, &str)]) -> (Option<GroupFacts>, Vec<String>) {
    let files: BTreeMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
    let read = |path: &Path| match files.get(path) {
        Some(&"denied") => Err(io::ErrorKind::PermissionDenied.into()),
        Some(text) => Ok((*text).to_owned()),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    let mut defects = Vec::new();
    let group = group(cgroup).expect("lines as the kernel writes them").expect("a group");
    (group.facts(&mounts(mountinfo), &read, &mut defects), defects)
}

#[test]
fn the_hierarchy_that_counts_memory_is_taken() {
    let check = |text, expected: Option<(u8, &str)>| {
        let expected = expected.map(|(version, path)| Group { version, path: path.to_owned() });
        assert_eq!(group(text), Ok(expected), "{text}");
    };
    check("0::/system.slice/rabbit.service\n", Some((2, "/system.slice/rabbit.service")));
    check("9:name=systemd:/\n4:cpu,memory:/docker/4f\n0::/other\n", Some((1, "/docker/4f")));
    check("0::/a\n4:cpu,memory:/docker/4f\n", Some((1, "/docker/4f")));
    // A path may hold what divides the fields.
    check("0::/kubelet:pod:1\n", Some((2, "/kubelet:pod:1")));
    check("9:name=memory:/\n1:cpu:/\n", None);
    check("", None);
    for broken in ["0:/", "memory", "x:memory:/", "4:memory:nowhere"] {
        assert_eq!(group(broken), Err(CgroupError::Line), "{broken}");
    }
}

#[test]
fn version_2_with_a_limit_above() {
    let files = [
        ("/sys/fs/cgroup/k8s/pod1/c/memory.current", "365953024\n"),
        ("/sys/fs/cgroup/k8s/pod1/c/memory.max", "max\n"),
        ("/sys/fs/cgroup/k8s/pod1/c/memory.high", "1073741824\n"),
        ("/sys/fs/cgroup/k8s/pod1/c/memory.swap.current", "8192\n"),
        ("/sys/fs/cgroup/k8s/pod1/c/memory.swap.max", "0\n"),
        ("/sys/fs/cgroup/k8s/pod1/c/memory.stat", STAT_2),
        ("/sys/fs/cgroup/k8s/pod1/c/memory.events", EVENTS_2),
        ("/sys/fs/cgroup/k8s/pod1/memory.max", "536870912\n"),
        ("/sys/fs/cgroup/k8s/pod1/memory.current", "400000000\n"),
        ("/sys/fs/cgroup/k8s/memory.max", "8589934592\n"),
        ("/sys/fs/cgroup/memory.stat", STAT_2),
    ];
    let (facts, defects) = facts("0::/k8s/pod1/c\n", MOUNTS_2, &files);
    let tightest = GroupLimit { path: "/k8s/pod1".into(), max: 536_870_912, current: Some(400_000_000) };
    let expected = GroupFacts {
        version: 2,
        path: "/k8s/pod1/c".into(),
        current: Some(365_953_024),
        max: None,
        high: Some(1 << 30),
        swap_current: Some(8192),
        swap_max: Some(0),
        tightest: Some(tightest),
        stat: GroupStat {
            anon: Some(314_572_800),
            file: Some(41_943_040),
            shmem: Some(4096),
            sock: Some(65536),
            kernel: Some(9_437_184),
            slab: Some(5_242_880),
        },
        limit_hits: Some(7),
        oom: Some(3),
        oom_kill: Some(2),
    };
    assert_eq!((facts, defects), (Some(expected), Vec::new()));
}

#[test]
fn a_group_that_does_not_count_is_counted_above() {
    let files = [("/sys/fs/cgroup/user/memory.current", "1000"), ("/sys/fs/cgroup/user/memory.max", "2000")];
    let (facts, defects) = facts("0::/user/session/shell\n", MOUNTS_2, &files);
    let facts = facts.expect("the group above counts");
    assert_eq!((facts.path.as_str(), facts.current, facts.max), ("/user", Some(1000), Some(2000)));
    assert_eq!(defects, Vec::<String>::new());
}

#[test]
fn version_1_inside_and_outside_of_a_container() {
    for (mountinfo, folder) in [(MOUNTS_1, "/sys/fs/cgroup/memory/docker/4f"), (MOUNTS_PART, "/sys/fs/cgroup/memory")] {
        let file = |name| format!("{folder}/{name}");
        let names = [
            (file("memory.usage_in_bytes"), "350000000\n"),
            (file("memory.limit_in_bytes"), "9223372036854771712\n"),
            (file("memory.stat"), STAT_1),
            (file("memory.kmem.usage_in_bytes"), "5000\n"),
            (file("memory.failcnt"), "42\n"),
            (file("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        ];
        let files: Vec<_> = names.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let (facts, defects) = facts("4:memory:/docker/4f\n0::/\n", mountinfo, &files);
        assert_eq!(defects, Vec::<String>::new());
        let facts = facts.expect("a group");
        assert_eq!((facts.path.as_str(), facts.max, facts.current), ("/docker/4f", None, Some(350_000_000)));
        let tightest = facts.tightest.expect("the kernel says what is the limit above");
        assert_eq!((tightest.max, tightest.current), (536_870_912, None));
        assert_eq!((facts.stat.anon, facts.stat.file), (Some(332_304_384), Some(17_935_015)));
        assert_eq!((facts.stat.kernel, facts.swap_current), (Some(5000), Some(4096)));
        assert_eq!((facts.limit_hits, facts.oom, facts.oom_kill), (Some(42), None, Some(1)));
    }
}

#[test]
fn a_group_that_cannot_be_seen_is_said() {
    for (cgroup, mountinfo) in [("0::/../other", MOUNTS_2), ("4:memory:/docker/4fee", MOUNTS_PART), ("0::/a", "")] {
        let (facts, defects) = facts(cgroup, mountinfo, &[]);
        assert_eq!(facts, None);
        assert!(matches!(&defects[..], [one] if one.contains("cannot be seen from here")), "{defects:?}");
    }
    // Where there is no group there is nothing to be seen.
    assert_eq!(facts("0::/", "", &[]), (None, Vec::new()));
    assert_eq!(facts("0::/", MOUNTS_2, &[("/sys/fs/cgroup/memory.stat", STAT_2)]), (None, Vec::new()));
}

#[test]
fn a_file_that_cannot_be_read_is_said_and_the_rest_is_kept() {
    let files = [
        ("/sys/fs/cgroup/a/memory.current", "1000"),
        ("/sys/fs/cgroup/a/memory.max", "denied"),
        ("/sys/fs/cgroup/a/memory.stat", "anon one\n"),
        ("/sys/fs/cgroup/a/memory.events", "oom_kill 5\n"),
    ];
    let (facts, defects) = facts("0::/a", MOUNTS_2, &files);
    assert_eq!(facts.map(|facts| (facts.current, facts.oom_kill)), Some((Some(1000), Some(5))));
    assert!(defects.contains(&"memory.stat of the control group /a holds no figure".to_owned()), "{defects:?}");
    assert!(defects.iter().any(|defect| defect.contains("memory.max of the control group /a cannot be read")));
}

proptest! {
    #[test]
    fn any_text_is_survived(cgroup: String, text: String, bytes: u64) {
        if let Ok(Some(group)) = group(&cgroup) {
            let read = |_: &Path| Ok(text.clone());
            let mut defects = Vec::new();
            let facts = group.facts(&mounts(MOUNTS_2), &read, &mut defects);
            prop_assert!(facts.is_none_or(|facts| figure(&text) == Ok(facts.current)));
        }
        prop_assert_eq!(figure(&bytes.to_string()), Ok(Some(bytes).filter(|bytes| *bytes < UNLIMITED)));
        if let Some(figures) = keyed(&text) {
            prop_assert_eq!(figures.len(), text.lines().count());
        }
    }

    #[test]
    fn paths_of_any_names_stay_below_the_mount(parts in prop::collection::vec("[a-z.:]{1,8}", 0..6)) {
        let group = Group { version: 2, path: format!("/{}", parts.join("/")) };
        match group.folders(&mounts(MOUNTS_2)) {
            Ok(folders) => {
                prop_assert_eq!(folders.len(), parts.len() + 1);
                let up = |(_, folder): &(String, PathBuf)| folder.components().any(|part| part.as_os_str() == "..");
                prop_assert!(!folders.iter().any(up));
                prop_assert!(folders.iter().all(|(_, folder)| folder.starts_with("/sys/fs/cgroup")));
                prop_assert_eq!(&folders[0].0, &group.path);
            }
            Err(_) => prop_assert!(parts.iter().any(|part| part == "..")),
        }
    }
}
