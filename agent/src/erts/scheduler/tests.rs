//! Are schedulers found in made-up images, and is what contradicts itself refused?

use proptest::prelude::*;

use super::*;
use crate::erts::{
    executable::tests::{DATA, HEAP},
    process::{
        table::ElementKind,
        tests::{Vm, process},
    },
};

const NORMAL: u64 = HEAP + 0x10000;
const DIRTY: u64 = HEAP + 0x14000;
const DESCRIPTORS: u64 = HEAP + 0x18000;
const SIZE: u64 = 1024;
const NAMES: [&str; 6] = ["erts_sched_1", "erts_sched_2", "erts_dcpus_1", "erts_dios_1", "erts_dios_2", "erts_sched_1"];

/// Two normal schedulers, three dirty ones, and a thread with a name that is not its own.
fn vm(tid: u64) -> (Vm, Vec<NamedThread>) {
    let mut vm = Vm::new(true);
    let threads: Vec<_> = NAMES.iter().zip(10..).map(|(name, tid)| thread(tid, name)).collect();
    vm.node.view.threads = threads.iter().map(|thread| thread.inner).collect();
    let descriptor = |index: u64| DESCRIPTORS + index * 0x1000;
    let count = NAMES.len() as u64;
    for index in 0..count {
        let at = descriptor(index);
        vm.node.put_words(at, &[at, 1, at]);
        let list = |index: u64| descriptor(index % count) + 704;
        vm.node.put_words(at + 704, &[list(index + 1), list(index + count - 1), thread_number(index)]);
    }
    let kinds = [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2)];
    for (index, (kind, number)) in (0..).zip(kinds) {
        let data = if index < 2 { NORMAL + index * SIZE } else { DIRTY + (index - 2) * SIZE };
        vm.node.put_words(data + tid, &[descriptor(index)]);
        let (normal, dirty) = if kind == 0 { (number, 0) } else { (0, number) };
        let running = if number == 1 { process(index).0 } else { 0 };
        vm.node.put_words(data + tid + 136, &[running, kind, normal, dirty, 0, 0, dirty * HEAP, 0]);
    }
    vm.node.put_words(DATA + 0x600, &[NORMAL, DIRTY, HEAP, 64]);
    (vm, threads)
}

fn thread_number(index: u64) -> u64 {
    index + 1010
}

fn thread(tid: u32, name: &str) -> NamedThread {
    NamedThread { tid, inner: tid + 1000, name: name.into() }
}

fn find_in(vm: &Vm, threads: &[NamedThread]) -> Result<Schedulers, SchedulerError> {
    find(&vm.node.view, &vm.node.memory, threads, &vm.table(ElementKind::Process).expect("a table"))
}

#[test]
fn finds_all_schedulers_by_their_threads() {
    for tid in TIDS {
        let (vm, threads) = vm(tid.into());
        let found = find_in(&vm, &threads).unwrap();
        let all: Vec<_> = found.all.iter().map(|one| (one.thread, one.thread_kind().to_string())).collect();
        let expected = [
            (10, "normal scheduler 1"),
            (11, "normal scheduler 2"),
            (12, "dirty CPU scheduler 1"),
            (13, "dirty IO scheduler 1"),
            (14, "dirty IO scheduler 2"),
        ];
        assert_eq!(all, expected.map(|(tid, kind)| (tid, kind.to_owned())));
        assert_eq!(found.unproven, [thread(15, "erts_sched_1")]);
        assert!(found.seen_running);
        let SchedulerLayout { current_process, current_nif, current_port, .. } = found.layout;
        assert_eq!([current_process, current_nif, current_port], [tid + 136, tid + 176, tid + 192]);
        assert_eq!(found.running(&found.all[2], &vm.node.memory).unwrap(), Some(process(2)));
        assert_eq!(found.running(&found.all[1], &vm.node.memory).unwrap(), None);
    }
}

#[test]
fn refuses_what_is_not_proven() {
    let (vm, threads) = vm(32);
    assert_eq!(find_in(&vm, &[thread(1, "beam.smp")]), Err(SchedulerError::NoNames { threads: 1 }));
    let check = |at: u64, word: u64, expected| {
        let mut vm = vm.clone();
        vm.node.put_words(at, &[word]);
        assert_eq!(find_in(&vm, &threads), Err(expected));
    };
    let layout = SchedulerError::Layout { schedulers: 5, places: 0 };
    check(NORMAL + 176, 1, layout);
    check(DIRTY + 176, 2, layout);
    check(NORMAL + SIZE + 184, 1, layout);
    check(NORMAL + 216, HEAP, layout);
    check(DIRTY + 216, 0, layout);
    let stranger = SchedulerError::NoProcess { kind: SchedulerKind::Normal, number: 1 };
    check(NORMAL + 168, HEAP, stranger);
    let mut gone = vm.clone();
    gone.node.put_words(DATA + 0x600, &[0, 0]);
    assert_eq!(find_in(&gone, &threads), Err(SchedulerError::NotFound { named: 6, unread: 0 }));
}

proptest! {
    #[test]
    fn any_damage_is_survived(damage: Vec<(u32, u8)>) {
        let (mut vm, threads) = vm(32);
        for (offset, byte) in damage {
            vm.node.put(NORMAL + u64::from(offset) % 0xe000, &[byte]);
        }
        if let Ok(found) = find_in(&vm, &threads) {
            prop_assert!(!found.all.is_empty() && found.all.len() <= threads.len());
        }
    }
}
