//! Do processes, schedulers and ports that were found from outside agree with what the node says of them?

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use beamscope::{
    erts::{
        atom::AtomTable,
        port,
        process::{
            layout::{CodeMfa, ProcessLayout},
            table::{ElementKind, ElementTable},
        },
        scheduler::{self, SchedulerKind, Schedulers},
        thread::{self, NamedThread, ThreadKind},
    },
    target::{
        process::Target,
        resident::ResidentMemory,
        view::{self, Viewed},
    },
    view::ProcessView,
};

use crate::view::{Frozen, Viewed as Node};

/// Enough for all of a node's processes.
const MANY: usize = 1 << 20;

/// A look from outside.
struct Seen {
    target: Target,
    view: ProcessView,
    files: Vec<(String, std::sync::Arc<[u8]>)>,
    threads: Vec<NamedThread>,
}

impl Seen {
    fn of(pid: u32) -> Self {
        let target = Target::open(pid).expect("a node");
        let Viewed { view, files } = view::take(&target).expect("a view");
        let threads = target.named_threads().expect("threads");
        Self { target, view, files, threads }
    }

    fn memory(&self) -> ResidentMemory<'_> {
        ResidentMemory::new(self.target.memory(), &self.view, self.target.folder(), self.files.clone())
    }

    fn table(&self, kind: ElementKind) -> ElementTable {
        ElementTable::find(kind, &self.view, &self.memory()).expect("a table")
    }

    fn schedulers(&self) -> Schedulers {
        let started = Instant::now();
        let processes = self.table(ElementKind::Process);
        let found = scheduler::find(&self.view, &self.memory(), &self.threads, &processes).expect("schedulers");
        println!("{} schedulers in {:?}: {:?}", found.all.len(), started.elapsed(), found.layout);
        found
    }
}

fn ask(node: &mut Node, function: &str) -> String {
    let answer = node.subject().ask(&format!("call processes {function}"));
    answer.strip_prefix("called ").expect("an answer").to_owned()
}

/// The identifiers `<0.A.B>` or `#Port<0.A>` in a text, in order.
fn identifiers(text: &str) -> Vec<(u64, u64)> {
    let inner = text.split('<').skip(1).filter_map(|rest| rest.split('>').next());
    let numbers = inner.map(|inner| {
        let mut parts = inner.split('.').skip(1).map(|part| part.parse().expect("a number"));
        (parts.next().expect("a number"), parts.next().unwrap_or(0))
    });
    numbers.collect()
}

/// The integers of a text that are parts of no name.
fn integers(text: &str) -> Vec<u64> {
    text.split(|character: char| !character.is_alphanumeric() && character != '_')
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[test]
fn processes_are_those_of_the_node() {
    let mut node = Node::busy("idle", &[]);
    ask(&mut node, "park");
    let mut differences = Vec::new();
    // Helper processes come and go.
    for _ in 0..10 {
        let told: BTreeSet<_> = identifiers(&ask(&mut node, "all")).into_iter().collect();
        let frozen = Frozen::new(node.pid());
        let seen = Seen::of(node.pid());
        let started = Instant::now();
        let table = seen.table(ElementKind::Process);
        let elements = table.elements(&seen.memory(), MANY);
        println!("{} processes of {} bytes in {:?}", elements.len(), table.element_size(), started.elapsed());
        assert!(elements.iter().all(|element| table.holds(element.address, &seen.memory()).expect("readable")));
        let found: BTreeSet<_> = elements.iter().map(|element| table.numbers(element.id)).collect();
        drop(frozen);
        if found == told {
            return;
        }
        differences = found.symmetric_difference(&told).copied().collect();
    }
    panic!("different: {differences:?}");
}

#[test]
fn heaps_and_stacks_are_those_of_the_node() {
    let mut node = Node::busy("idle", &[]);
    ask(&mut node, "park");
    // The atoms of the module are known from now on.
    let told = ask(&mut node, "parked");
    let seen = Seen::of(node.pid());
    let memory = seen.memory();
    let table = seen.table(ElementKind::Process);
    let atoms = AtomTable::find(&seen.view, &memory).expect("atoms");
    let started = Instant::now();
    let layout = ProcessLayout::find(&table, &atoms, &seen.view, &memory).expect("a layout");
    println!("{layout:?} in {:?}", started.elapsed());
    let ProcessLayout { htop, stop, heap, hend, heap_size, initial, current, instruction, element_size, .. } = layout;
    let found = [htop, stop, heap, hend, heap_size, initial, current, element_size];
    // Compiled from the headers of 25.2.3 and 27.3.4.1 for x86_64; those of other releases were found the same way.
    let known = match seen.view.node.otp_release.as_deref() {
        Some("23") => Some(([80, 88, 96, 104, 120, 432, 456, 736], None)),
        Some("25") => Some(([80, 88, 128, 136, 152, 448, 472, 776], Some(256))),
        Some("27") => Some(([80, 88, 192, 200, 216, 440, 464, 760], Some(248))),
        Some("29") => Some(([80, 88, 192, 200, 216, 440, 464, 768], Some(248))),
        _ => None,
    };
    if let Some(known) = known.filter(|_| cfg!(target_arch = "x86_64")) {
        assert_eq!((found, instruction), known);
    }
    let by_numbers: BTreeMap<_, _> =
        table.elements(&memory, MANY).into_iter().map(|element| (table.numbers(element.id), element)).collect();
    for text in told.trim_matches(['[', ']']).split("},{") {
        let pid = identifiers(text)[0];
        let element = by_numbers[&pid];
        let head = layout.head(element, &atoms, &memory).expect("a process");
        let words = |begin: beamscope::mapping::Address, end: beamscope::mapping::Address| (end.0 - begin.0) / 8;
        let [used, stack, block, arity] = integers(text.rsplit('>').next().expect("figures"))[..] else {
            panic!("{text}")
        };
        assert_eq!(words(head.heap, head.htop), used, "{text}");
        assert_eq!(words(head.stop, head.hend), stack, "{text}");
        assert_eq!(words(head.heap, head.hend), block, "{text}");
        let CodeMfa { module, function, arity: found } = head.current.expect("process_info notes it");
        let name = |index| atoms.read(index, &memory).expect("an atom");
        assert!(text.contains(&format!(",{},{},", name(module), name(function))), "{text}");
        assert_eq!(u64::from(found), arity);
        assert_eq!((name(head.initial.module), name(head.initial.function)), ("erlang".into(), "apply".into()));
    }
}

/// Nobody asked for `current_function`, which would note it.
#[test]
fn layouts_are_found_in_every_state() {
    let mut layouts = BTreeSet::new();
    for state in ["idle", "processes 20000", "churn 8"] {
        let node = Node::busy(state, &[]);
        for _ in 0..10 {
            let seen = Seen::of(node.pid());
            let memory = seen.memory();
            let table = seen.table(ElementKind::Process);
            let atoms = AtomTable::find(&seen.view, &memory).expect("atoms");
            let started = Instant::now();
            let layout = ProcessLayout::find(&table, &atoms, &seen.view, &memory)
                .unwrap_or_else(|error| panic!("{state}: {error}"));
            let elapsed = started.elapsed();
            let elements = table.elements(&memory, MANY);
            let heads = elements.iter().map(|element| layout.head(*element, &atoms, &memory));
            let wrong: Vec<_> = heads.filter_map(Result::err).collect();
            println!(
                "{state}: layout in {elapsed:?}; {} processes, {} wrong: {:?}",
                elements.len(),
                wrong.len(),
                wrong.first()
            );
            assert!(wrong.len() * 10 <= elements.len(), "{state}");
            layouts.insert(format!("{layout:?}"));
            seen.schedulers();
        }
    }
    assert_eq!(layouts.len(), 1, "{layouts:?}");
}

#[test]
fn schedulers_are_those_of_the_node() {
    for arguments in [&[][..], &["+S", "1", "+SDcpu", "1", "+SDio", "1"], &["+S", "4", "+SDcpu", "3", "+SDio", "2"]] {
        let mut node = Node::busy("idle", arguments);
        let told = integers(&ask(&mut node, "schedulers"));
        let seen = Seen::of(node.pid());
        let found = seen.schedulers();
        let count = |kind| found.all.iter().filter(|scheduler| scheduler.kind == kind).count() as u64;
        let counts = [SchedulerKind::Normal, SchedulerKind::DirtyCpu, SchedulerKind::DirtyIo].map(count);
        assert_eq!(counts.as_slice(), told, "{arguments:?}");
        assert_eq!(found.unproven, []);
        let kinds = thread::kinds(&seen.threads, node.pid(), &found.all);
        let own = |kind: &ThreadKind| !matches!(kind, ThreadKind::Native { .. } | ThreadKind::Unnamed { .. });
        let foreign: Vec<_> = kinds.values().filter(|kind| !own(kind)).collect();
        println!("{kinds:?}");
        assert!(foreign.is_empty(), "{foreign:?}");
        let names: BTreeMap<_, _> = seen.threads.iter().map(|thread| (thread.tid, &thread.name)).collect();
        for scheduler in &found.all {
            let claimed = ThreadKind::of_name(names[&scheduler.thread]);
            assert_eq!(claimed, Some(scheduler.thread_kind()));
            assert_eq!(kinds[&scheduler.thread], scheduler.thread_kind());
        }
    }
}

#[test]
fn busy_processes_are_seen_on_their_schedulers() {
    let mut node = Node::busy("idle", &[]);
    let busy = ask(&mut node, "busy");
    let told: Vec<BTreeSet<_>> = busy.split("],[").map(|pids| identifiers(pids).into_iter().collect()).collect();
    let seen = Seen::of(node.pid());
    let memory = seen.memory();
    let table = seen.table(ElementKind::Process);
    let found = seen.schedulers();
    let mut running =
        [SchedulerKind::Normal, SchedulerKind::DirtyCpu, SchedulerKind::DirtyIo].map(|kind| (kind, BTreeSet::new()));
    let (mut looks, mut strangers) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline && running.iter().zip(&told).any(|((_, running), told)| !running.is_superset(told))
    {
        for scheduler in &found.all {
            let Some(process) = found.running(scheduler, &memory).expect("readable") else { continue };
            looks += 1;
            if !table.holds(process, &memory).expect("readable") {
                strangers += 1;
                continue;
            }
            let [id] = beamscope::words::read_words(&memory, process).expect("readable");
            let kind = running.iter_mut().find(|(kind, _)| *kind == scheduler.kind).expect("a kind");
            kind.1.insert(table.numbers(id));
        }
    }
    println!("{looks} times running, {strangers} of them no process any more, {running:?}");
    assert!(looks > 0 && strangers * 100 <= looks);
    for ((kind, running), told) in running.iter().zip(&told) {
        assert!(running.is_superset(told), "{kind}: {running:?}, {told:?}");
        // Both ways: a dirty scheduler runs nothing else here.
        assert!(*kind == SchedulerKind::Normal || running == told, "{kind}: {running:?}, {told:?}");
    }
    ask(&mut node, "rest");
}

#[test]
fn ports_have_their_drivers() {
    let mut node = Node::busy("idle", &[]);
    ask(&mut node, "open");
    let told = ask(&mut node, "ports");
    let seen = Seen::of(node.pid());
    let memory = seen.memory();
    let table = seen.table(ElementKind::Port);
    let found: BTreeMap<_, _> = table
        .elements(&memory, MANY)
        .into_iter()
        .map(|element| (table.numbers(element.id), port::driver_name(&seen.view, &memory, element.address)))
        .collect();
    println!("{told}: {found:?}");
    let ports: Vec<&str> = told.split("#Port").skip(1).collect();
    assert_eq!(found.len(), ports.len());
    let mut drivers = BTreeSet::new();
    for told in ports {
        let name = told.split('"').nth(1).expect("a name");
        let driver = found[&identifiers(told)[0]].as_ref().expect("a driver");
        let expected = match name {
            "cat" | "sh -s disabled" => "spawn",
            "0/1" | "2/2" | "0/0" | "1/1" => "fd",
            "erl_child_setup" | "forker" => driver.as_str(),
            other => other,
        };
        assert_eq!(driver, expected, "{name}");
        drivers.insert(driver.clone());
    }
    for driver in ["spawn", "fd", "tcp_inet", "ram_file_drv"] {
        assert!(drivers.contains(driver), "{driver}: {drivers:?}");
    }
}
