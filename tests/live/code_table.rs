//! Does an address of Erlang code get the name that the node itself gives it, by the line?

use std::collections::BTreeSet;

use beamscope::{
    erts::{
        jit::{CodeTable, CodeTableError, Losses, Place},
        mfa::Mfa,
    },
    mapping::Address,
    target::{process::Target, view},
};

use crate::view::Viewed;

/// `offsetof(ErtsCodeInfo, mfa)`: from where on the node counts offsets.
const MFA: u32 = 16;

/// A stack as the node tells it.
#[derive(Debug, Default)]
struct Told {
    /// Return addresses with the function, and how far from its begin they are.
    returns: Vec<(u64, u32, Mfa)>,
    /// Where a process's first function returns to.
    end: Option<u64>,
    /// The same functions as its stack trace has them, with their lines and files.
    lines: Vec<String>,
}

struct Places {
    node: Viewed,
    files: u32,
}

impl Places {
    fn new() -> Self {
        Self { node: Viewed::at_rest("idle", &[]), files: 0 }
    }

    fn call(&mut self, call: &str) {
        self.node.call_in("code_places", call);
    }

    /// Functions of some modules, and the stacks of the processes that wait; none if the node has no JIT.
    fn told(&mut self) -> Option<(BTreeSet<String>, Vec<Told>)> {
        self.files += 1;
        self.call(&format!("tell {}", self.files));
        let text = self.node.file(&format!("places-{}", self.files));
        let (flavor, rest) = text.split_once('\n').expect("a line");
        match flavor {
            "emulator emu" => None,
            "emulator jit" => {
                let (functions, stacks) = rest.split_at(rest.find("process ").expect("a process"));
                let functions = functions.lines().filter_map(|line| line.strip_prefix("function "));
                Some((functions.map(str::to_owned).collect(), self::stacks(stacks)))
            }
            _ => panic!("{flavor}"),
        }
    }

    fn find(&self) -> Result<(CodeTable, Target), CodeTableError> {
        let target = Target::open(self.node.pid()).expect("a node");
        let seen = view::take(&target).expect("a view");
        CodeTable::find(&seen.view, target.memory(), None).map(|table| (table, target))
    }
}

fn stacks(text: &str) -> Vec<Told> {
    let mut stacks = Vec::new();
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ').expect("two words");
        let address = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
        if kind == "process" {
            stacks.push(Told::default());
            continue;
        }
        let stack = stacks.last_mut().expect("a process");
        match kind {
            "return" => {
                let [at, offset, mfa] = *rest.splitn(3, ' ').collect::<Vec<_>>() else { panic!("{line}") };
                let mfa = Mfa::parse(mfa).unwrap_or_else(|| panic!("{line}"));
                stack.returns.push((address(at), offset.parse().expect("a number"), mfa));
            }
            "end" => stack.end = Some(address(rest)),
            "line" => stack.lines.push(rest.to_owned()),
            _ => panic!("{line}"),
        }
    }
    stacks
}

/// What the table says of the address before a return address, as the node would write it.
fn line(table: &CodeTable, address: u64) -> String {
    match table.lookup(Address(address - 1)) {
        Some(Place::Function { mfa, file, line, .. }) => {
            format!("{} {} {mfa}", line.unwrap_or(0), file.as_deref().unwrap_or("-"))
        }
        other => panic!("{address:#x}: {other:?}"),
    }
}

fn assert_agreement(table: &CodeTable, stacks: &[Told]) {
    for stack in stacks {
        let mut lines = Vec::new();
        let mut last = None;
        for (address, told_offset, told) in &stack.returns {
            match table.lookup(Address(address - 1)) {
                Some(Place::Function { mfa, offset, .. }) => {
                    assert_eq!((&mfa, offset + 1), (told, told_offset + MFA), "{address:#x}");
                }
                other => panic!("{told} is at {address:#x}, and not {other:?}"),
            }
            if last.replace(address) != Some(address) {
                lines.push(line(table, *address));
            }
        }
        assert_eq!(lines, stack.lines, "{stack:x?}");
        let exit = Mfa { module: "erts_beamasm".into(), function: "normal_exit".into(), arity: 0 };
        if let Some(end) = stack.end {
            let place = table.lookup(Address(end - 1));
            assert!(matches!(&place, Some(Place::Prologue { mfa, .. }) if *mfa == exit), "{place:?}");
            assert_eq!(table.emulator().map(|emulator| emulator.normal_exit), Some(Address(end)));
        }
        let ranges = table.ranges();
        let is_code = |address: u64| ranges.iter().any(|range| range.contains(&Address(address)));
        assert!(stack.returns.iter().all(|(address, ..)| is_code(*address)), "{ranges:?}");
    }
}

/// The return address to `replaced:run/1` of the process that runs the version with this line.
fn version(stacks: &[Told], line: u32) -> u64 {
    let line = format!("{line} replaced.erl replaced:run/1");
    let found = stacks.iter().find(|stack| stack.lines.contains(&line)).unwrap_or_else(|| panic!("{line}: {stacks:?}"));
    let is_run = |(_, _, mfa): &&(u64, u32, Mfa)| mfa.module == "replaced";
    found.returns.iter().find(is_run).expect("a return address").0
}

#[test]
fn each_return_address_is_named_as_the_node_names_it() {
    let mut places = Places::new();
    places.call("park");
    let Some((functions, stacks)) = places.told() else {
        assert!(matches!(places.find(), Err(CodeTableError::NoJit)));
        return;
    };
    let (mut table, target) = places.find().expect("a list of code");
    assert_agreement(&table, &stacks);
    assert_eq!(table.losses(), Losses::default());
    assert!(!table.refresh(target.memory()).expect("the list is still there"));
    let fun = |stack: &Told| stack.lines.iter().any(|line| line.ends_with(" code_places:middle/2"));
    assert!(stacks.len() > 20 && stacks.iter().any(fun), "{stacks:?}");
    let (seen, fragments) = all(&table);
    assert!(functions.contains("lists:map/2"), "{functions:?}");
    let of_told_modules =
        |name: &&String| ["lists:", "gen_server:", "code_places:"].iter().any(|of| name.starts_with(of));
    assert_eq!(seen.iter().filter(of_told_modules).collect::<Vec<_>>(), functions.iter().collect::<Vec<_>>());
    for name in ["global::call_nif_shared", "global::call_bif_shared", "global::call_light_bif_shared"] {
        assert!(fragments.contains(name), "{fragments:?}");
    }
}

/// All functions and all fragments.
fn all(table: &CodeTable) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut functions, mut fragments) = (BTreeSet::new(), BTreeSet::new());
    // No function is as short as its header of 40 bytes.
    let addresses = table.ranges().into_iter().flat_map(|range| (range.start.0..range.end.0).step_by(32));
    for address in addresses {
        match table.lookup(Address(address)) {
            Some(Place::Function { mfa, .. } | Place::Prologue { mfa, .. }) => {
                functions.insert(mfa.to_string());
            }
            Some(Place::Fragment { name }) => {
                fragments.insert(name);
            }
            None => {}
        }
    }
    (functions, fragments)
}

#[test]
fn names_survive_that_code_is_loaded_and_purged() {
    let mut places = Places::new();
    if places.told().is_none() {
        return;
    }
    let (mut table, target) = places.find().expect("a list of code");
    let refresh = |table: &mut CodeTable| table.refresh(target.memory()).expect("the list is still there");
    let mut versions = Vec::new();
    for number in 1..=6 {
        places.call(&format!("load {number}"));
        assert!(refresh(&mut table), "version {number}");
        let (_, stacks) = places.told().expect("a JIT");
        assert_agreement(&table, &stacks);
        let address = version(&stacks, 100 * number + 2);
        versions.retain(|(_, other)| *other != address);
        versions.push((number, address));
        for (number, address) in &versions {
            assert_eq!(line(&table, *address), format!("{} replaced.erl replaced:run/1", 100 * number + 2));
        }
        places.call("purge");
        refresh(&mut table);
        for (number, address) in &versions {
            assert_eq!(line(&table, *address), format!("{} replaced.erl replaced:run/1", 100 * number + 2));
        }
        let (anew, _target) = places.find().expect("a list of code");
        assert_agreement(
            &anew,
            &stacks
                .into_iter()
                .filter(|stack| stack.lines.iter().all(|line| !line.contains("replaced")))
                .collect::<Vec<_>>(),
        );
    }
    assert!(versions.len() > 1, "{versions:?}");
}
