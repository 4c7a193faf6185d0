//! Does beamscope leave the node alone: while it attaches, while it records, and after its end, however it ends?

use std::{path::Path, thread::sleep, time::Duration};

use crate::{
    agent::{Recording, Report, proc_file, tool},
    subject::Subject,
};

/// Numbers of the BPF programs and links that exist.
fn bpf_objects() -> (Vec<String>, Vec<String>) {
    // The descriptors of other processes are not ours to close, but they would show that beamscope's outlived it.
    let of = |kind: &str| {
        let mut found = Vec::new();
        for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
            for descriptor in std::fs::read_dir(process.path().join("fdinfo")).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(descriptor.path()).unwrap_or_default();
                found.extend(text.lines().filter(|line| line.starts_with(kind)).map(str::to_owned));
            }
        }
        found.sort();
        found.dedup();
        found
    };
    (of("prog_id:"), of("link_id:"))
}

/// The first bytes of `malloc` in the process: a breakpoint is `cc`, or `brk` on arm64.
fn malloc_code(pid: u32) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let maps = proc_file(&format!("/proc/{pid}/maps"));
    let line = maps.lines().find(|line| line.contains("/libc.so.6") && line.contains("r-xp")).expect("libc");
    let field = |index: usize| line.split_whitespace().nth(index).expect("a field");
    let start = u64::from_str_radix(field(0).split('-').next().expect("a range"), 16).expect("hex");
    let offset = u64::from_str_radix(field(2), 16).expect("hex");
    let symbols = tool("nm", &["-D", "--defined-only", field(5)]);
    let malloc = symbols
        .lines()
        .find_map(|line| {
            let mut words = line.split(' ');
            let address = words.next()?;
            words.nth(1).filter(|name| name.split('@').next() == Some("malloc"))?;
            u64::from_str_radix(address, 16).ok()
        })
        .expect("malloc");
    let mut code = vec![0; 64];
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    // Text segments of shared libraries are mapped at their file offsets.
    memory.read_exact_at(&mut code, start + malloc - offset).expect("its code");
    code
}

/// The kernel takes breakpoints and programs away after a grace period, also behind a process that has ended.
fn assert_clean(node: &Subject, before: &(Vec<String>, Vec<String>), code: &[u8]) {
    let settled = (0..100).any(|_| {
        sleep(Duration::from_millis(50));
        bpf_objects() == *before && malloc_code(node.pid()) == code
    });
    assert!(settled, "{before:?} became {:?}; code {:x?}", bpf_objects(), malloc_code(node.pid()));
}

#[test]
fn nothing_stays_behind_when_beamscope_is_killed() {
    let mut node = Subject::node(&[]);
    node.ask("once malloc 10 1");
    let (before, code) = (bpf_objects(), malloc_code(node.pid()));
    let recording = Recording::start(node.pid(), &[]);
    assert_ne!(malloc_code(node.pid()), code, "no breakpoint was set");
    assert_ne!(bpf_objects(), before, "no program was loaded");
    recording.murder();
    assert_clean(&node, &before, &code);
    node.ask("once malloc 1000 10000");
}

#[test]
fn nothing_stays_behind_after_a_recording() {
    let mut node = Subject::node(&[]);
    node.ask("once malloc 10 1");
    let (before, code) = (bpf_objects(), malloc_code(node.pid()));
    Recording::start(node.pid(), &[]).stop();
    assert_clean(&node, &before, &code);
}

#[test]
fn two_recordings_at_once_see_the_same() {
    let mut node = Subject::node(&[]);
    let (one, two) = (Recording::start(node.pid(), &[]), Recording::start(node.pid(), &[]));
    node.ask("once malloc 1000 3000");
    let counted = node.figure("counters", "malloc");
    for report in [one.stop(), two.stop()] {
        assert_eq!(report.sum("take_malloc", "outstanding_bytes"), counted);
    }
}

#[test]
fn records_nothing_of_an_idle_node() {
    let node = Subject::node(&[]);
    let recording = Recording::start(node.pid(), &[]);
    sleep(Duration::from_secs(1));
    let report = recording.stop();
    report.assert_no_loss();
    assert!(report.sum_of_kind("native", "outstanding_bytes") < 100_000, "{:#?}", report.all_sites());
}

#[test]
fn each_probe_that_is_called_often_is_cheap() {
    let node = Subject::node(&[]);
    let report = Recording::start(node.pid(), &[]).stop();
    let probes = report.0["probes"].as_array().expect("probes");
    for function in ["malloc", "calloc", "realloc", "free", "posix_memalign", "aligned_alloc"] {
        let place = format!("{function} in libc.so.6");
        let probe =
            probes.iter().find(|probe| probe["place"] == *place).unwrap_or_else(|| panic!("{place}: {probes:?}"));
        assert_eq!(probe["emulated"], true, "{place}");
    }
}

/// Records a leaking node by a shell `script` that ends in `exec beamscope`, in a mount namespace of its own, so that
/// nothing stays mounted.
fn record_in(script: impl Fn(&Path, &str) -> String) -> Report {
    let mut node = Subject::node(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    node.ask("leak malloc 1000 10 50");
    tool("unshare", &["-m", "sh", "-ec", &script(folder.path(), &node.pid().to_string())]);
    let report = Report::of(&folder.path().join("x.bscope"));
    report.assert_no_loss();
    assert!(report.sum("take_malloc", "outstanding_bytes") > 100_000);
    report
}

/// Neither the agent nor the BPF programs need the kernel's type information where the C library's functions are followed.
#[test]
fn no_btf_is_needed() {
    record_in(|folder, pid| {
        let beamscope = env!("CARGO_BIN_EXE_beamscope");
        let folder = folder.display();
        format!(
            "mount -t tmpfs tmpfs /sys/kernel/btf
             exec {beamscope} record {pid} --no-tracepoints -d 2s -o {folder}/x.bscope"
        )
    });
}

/// In a chroot the root need not be a mount, and a node outside it has other paths.
#[test]
fn a_chroot_is_no_obstacle() {
    let report = record_in(|folder, pid| {
        let beamscope = env!("CARGO_BIN_EXE_beamscope");
        let folder = folder.display();
        format!(
            "mkdir {folder}/root
             for part in proc sys dev usr bin lib lib64; do
                 [ -e /$part ] || continue
                 mkdir {folder}/root/$part
                 mount --rbind /$part {folder}/root/$part
             done
             cp {beamscope} {folder}/root/beamscope
             chroot {folder}/root /beamscope record {pid} -d 2s -o /x.bscope
             mv {folder}/root/x.bscope {folder}"
        )
    });
    let notes = report.0["notes"].to_string();
    assert!(!notes.contains("mapping calls are followed"), "{notes}");
}
