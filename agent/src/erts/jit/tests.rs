//! The table on lists that the tests made up.

use proptest::prelude::*;

use super::*;
use crate::erts::executable::tests::{CODE, DATA, HEAP, Node};

const DESCRIPTOR: u64 = DATA + 0x1fe0;
/// Where entries and symbol files of the made-up node lie, 0x1000 bytes each.
const SLOT: u64 = 0x1000;
const SLOTS: u64 = 16;

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u32(mut self, number: usize) -> Self {
        self.0.extend(u32::try_from(number).unwrap().to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// Length and text, as it is followed by padding.
    fn text(mut self, text: &str, padding: usize) -> Self {
        self.0.extend(u16::try_from(text.len() + 1).unwrap().to_le_bytes());
        self.0.extend(text.bytes());
        self.0.extend(vec![0; 1 + padding]);
        self
    }
}

type Lines<'a> = &'a [(usize, usize, &'a str)];

/// A `debug_info` of a module.
fn module(base: u64, size: usize, ranges: &[(usize, usize, &str, Lines<'_>)]) -> Vec<u8> {
    let mut bytes = Bytes::default().u32(1).u32(0xdead_beef).u64(base).u32(ranges.len()).u32(size).text("a_module", 6);
    for (start, end, name, lines) in ranges {
        bytes = bytes.u32(*start).u32(*end).u32(lines.len()).text(name, 2);
        for (offset, line, file) in *lines {
            bytes = bytes.u32(*offset).u32(*line).text(file, 2);
        }
    }
    bytes.0
}

fn emulator(frame_layout: usize) -> Vec<u8> {
    Bytes::default().u32(0).u32(7).u32(frame_layout).u32(9).u64(CODE + 0x10).u64(0).0
}

fn lists(base: u64, line: usize) -> Vec<u8> {
    let lines: Lines<'_> = &[(0x30, line, "lists.erl"), (0x60, line + 1, "lists.erl"), (0x70, 0, "lists.erl")];
    let header = "lists:map/2-CodeInfoPrologue";
    let ranges = [
        (0, 0x30, "lists::codeHeader", &[][..]),
        (0x30, 0x58, header, &[]),
        (0x58, 0x80, "lists:map/2", lines),
        (0x80, 0xa8, "'Elixir.A':'-f/1-fun-0-'/0-CodeInfoPrologue", &[]),
        (0xa8, 0xc0, "'Elixir.A':'-f/1-fun-0-'/0", &[(0xb0, 5, "a.ex"), (0xb8, 6, "b.ex")]),
        (0xc0, 0xd0, "lists::codeFooter", &[]),
    ];
    module(base, 0xd0, &ranges)
}

/// A node whose list has these symbol files, the newest first, at these places.
struct Listed {
    node: Node,
    list: Vec<u64>,
}

impl Listed {
    fn new(symfiles: &[Vec<u8>]) -> Self {
        let node = Node::new(SLOT * SLOTS);
        let mut listed = Self { node, list: Vec::new() };
        for (slot, symfile) in (0..).zip(symfiles.iter().rev()) {
            listed.load(slot, symfile);
        }
        listed
    }

    /// A new entry at `slot`.
    fn load(&mut self, slot: u64, symfile: &[u8]) {
        let at = HEAP + SLOT * slot;
        self.node.put(at + 64, symfile);
        self.node.put_words(at + 16, &[at + 64, symfile.len() as u64]);
        self.list.insert(0, at);
        self.link();
    }

    fn purge(&mut self, slot: u64) {
        let at = HEAP + SLOT * slot;
        self.list.retain(|entry| *entry != at);
        self.node.put(at, &[0x5a; 256]);
        self.link();
    }

    fn link(&mut self) {
        // The first entry's pointer to the one before it is never set.
        let mut before = 0x6b6b_6b6b;
        for (index, at) in self.list.iter().enumerate() {
            self.node.put_words(*at, &[self.list.get(index + 1).copied().unwrap_or(0), before]);
            before = *at;
        }
        let first = self.list.first().copied().unwrap_or(0);
        self.node.put_words(DESCRIPTOR, &[1 | 1 << 32, first, first]);
    }

    fn find(&self) -> Result<CodeTable, CodeTableError> {
        CodeTable::find(&self.node.view, &self.node.memory, None)
    }

    fn refresh(&self, table: &mut CodeTable) -> bool {
        table.refresh(&self.node.memory).unwrap()
    }
}

fn map_at(line: Option<u32>, offset: u32) -> Place {
    let mfa = Mfa { module: "lists".into(), function: "map".into(), arity: 2 };
    Place::Function { mfa, file: line.map(|_| "lists.erl".into()), line, offset }
}

fn line_at(table: &CodeTable, address: u64) -> Option<u32> {
    match table.lookup(Address(address)) {
        Some(Place::Function { line, .. }) => line,
        _ => None,
    }
}

#[test]
fn names_each_address() {
    let listed = Listed::new(&[lists(CODE, 2076), emulator(1)]);
    let table = listed.find().unwrap();
    let check = |offset: u64, expected: Option<Place>| assert_eq!(table.lookup(Address(CODE + offset)), expected);
    check(0, Some(Place::Fragment { name: "lists::codeHeader".into() }));
    let map = Mfa { module: "lists".into(), function: "map".into(), arity: 2 };
    check(0x30, Some(Place::Prologue { mfa: map.clone(), offset: 0 }));
    check(0x57, Some(Place::Prologue { mfa: map, offset: 0x27 }));
    check(0x58, Some(map_at(Some(2076), 0x28)));
    check(0x5f, Some(map_at(Some(2076), 0x2f)));
    check(0x60, Some(map_at(Some(2077), 0x30)));
    check(0x70, Some(map_at(None, 0x40)));
    let fun = Mfa { module: "Elixir.A".into(), function: "-f/1-fun-0-".into(), arity: 0 };
    let in_fun = |file: Option<&str>, line, offset| {
        Some(Place::Function { mfa: fun.clone(), file: file.map(str::to_owned), line, offset })
    };
    check(0xa8, in_fun(None, None, 0x28));
    check(0xb0, in_fun(Some("a.ex"), Some(5), 0x30));
    check(0xbf, in_fun(Some("b.ex"), Some(6), 0x3f));
    check(0xc0, Some(Place::Fragment { name: "lists::codeFooter".into() }));
    check(0xd0, None);
    assert_eq!(table.lookup(Address(CODE - 1)), None);
    assert_eq!(table.ranges(), [Address(CODE)..Address(CODE + 0xd0)]);
    assert_eq!(table.emulator(), Some(Emulator { frame_pointers: true, normal_exit: Address(CODE + 0x10) }));
    assert_eq!((table.losses(), table.size().modules, table.size().functions), (Losses::default(), 1, 4));
}

#[test]
fn otp_24_has_no_lines() {
    let named = |bytes: Bytes, name: &str| Bytes([&bytes.0, name.as_bytes(), &[0]].concat());
    let bytes = named(Bytes::default().u64(2).u64(CODE).u64(0x80), "lists");
    let bytes = named(bytes.u64(CODE).u64(CODE + 0x28), "lists:map/2-CodeInfoPrologue");
    let bytes = named(bytes.u64(CODE + 0x28).u64(CODE + 0x80), "lists:map/2");
    let table = Listed::new(&[bytes.0]).find().unwrap();
    assert_eq!(table.lookup(Address(CODE + 0x7f)), Some(map_at(None, 0x7f)));
    assert_eq!(table.emulator(), None);
}

#[test]
fn takes_the_symbol_where_it_is_right_and_else_looks_for_the_list() {
    let mut listed = Listed::new(&[lists(CODE, 1)]);
    let find = |listed: &Listed, symbol| CodeTable::find(&listed.node.view, &listed.node.memory, symbol);
    for symbol in [None, Some(DESCRIPTOR), Some(DATA), Some(8)] {
        assert_eq!(find(&listed, symbol.map(Address)).unwrap().descriptor, Address(DESCRIPTOR), "{symbol:?}");
    }
    let first = listed.list[0];
    listed.node.put_words(DATA + 0x100, &[1, first, first]);
    assert!(matches!(find(&listed, None), Err(CodeTableError::Ambiguous { count: 2 })));
    assert_eq!(find(&listed, Some(Address(DESCRIPTOR))).unwrap().descriptor, Address(DESCRIPTOR));
}

#[test]
fn says_why_there_is_none() {
    let mut listed = Listed::new(&[]);
    assert!(matches!(listed.find(), Err(CodeTableError::NoJit)));
    // Code that is nowhere.
    listed.load(0, &lists(HEAP, 1));
    assert!(matches!(listed.find(), Err(CodeTableError::NoJit)));
    listed.node.view.mappings[3].mapping.permissions.execute = true;
    assert!(listed.find().is_ok());
    listed.node.memory.0[2].1.truncate(0x1000);
    assert!(matches!(listed.find(), Err(CodeTableError::NotFound { unread: 0x1000 })));
}

#[test]
fn the_newest_entry_wins_and_purged_code_keeps_its_name() {
    let mut listed = Listed::new(&[lists(CODE, 10)]);
    let mut table = listed.find().unwrap();
    assert!(!listed.refresh(&mut table), "nothing is new");
    // OTP 25 removes no entry, and code takes the place of purged code.
    listed.load(1, &lists(CODE + 0x40, 20));
    assert!(listed.refresh(&mut table));
    assert_eq!(line_at(&table, CODE + 0x9f), Some(20), "of the newer, where they overlap");
    assert_eq!(
        table.lookup(Address(CODE + 0x3f)),
        Some(Place::Prologue { mfa: Mfa::parse("lists:map/2").unwrap(), offset: 15 })
    );
    assert_eq!(listed.find().unwrap().lookup(Address(CODE + 0x9f)), table.lookup(Address(CODE + 0x9f)));
    // OTP 27 frees entries, here the first and then all.
    listed.purge(1);
    assert!(listed.refresh(&mut table));
    assert_eq!(line_at(&table, CODE + 0x5f), Some(10), "of what is still there");
    assert_eq!(line_at(&table, CODE + 0xff), Some(6), "of what was there last");
    listed.purge(0);
    assert!(!listed.refresh(&mut table));
    assert_eq!(line_at(&table, CODE + 0x5f), Some(10), "of what was there last");
    assert_eq!(table.losses(), Losses::default());
}

#[test]
fn memory_of_a_freed_entry_may_be_that_of_another() {
    let mut listed = Listed::new(&[lists(CODE, 10), emulator(0)]);
    let mut table = listed.find().unwrap();
    listed.purge(1);
    listed.load(1, &lists(CODE, 30));
    assert!(listed.refresh(&mut table), "the same address, the same length, other lines");
    assert_eq!(line_at(&table, CODE + 0x5f), Some(30));
}

#[test]
fn other_compilers_use_the_list_too() {
    let elf = b"\x7fELF\x02\x01\x01 of a library".to_vec();
    let mut listed = Listed::new(&[elf.clone(), lists(CODE, 10), elf]);
    let mut table = listed.find().unwrap();
    assert_eq!(line_at(&table, CODE + 0x5f), Some(10));
    assert_eq!(table.losses(), Losses { foreign: 2, ..Losses::default() });
    assert!(!listed.refresh(&mut table));
    listed.load(3, &lists(CODE, 11));
    assert!(listed.refresh(&mut table));
    assert_eq!((line_at(&table, CODE + 0x5f), table.losses().foreign), (Some(11), 2));
}

#[test]
fn a_list_that_is_cut_is_read_again() {
    let mut listed = Listed::new(&[lists(CODE, 10), emulator(0)]);
    let (newest, oldest) = (listed.list[0], listed.list[1]);
    listed.node.put_words(oldest + 8, &[oldest]);
    let mut table = listed.find().unwrap();
    assert_eq!((table.losses().cut, table.emulator(), line_at(&table, CODE + 0x5f)), (true, None, Some(10)));
    listed.node.put_words(oldest, &[newest, newest]);
    assert!(listed.refresh(&mut table), "a circle");
    assert!(table.losses().cut);
    listed.link();
    assert!(listed.refresh(&mut table));
    assert!(!table.losses().cut && table.emulator().is_some());
    assert!(!listed.refresh(&mut table));
    listed.node.put_words(DESCRIPTOR, &[2]);
    assert!(matches!(table.refresh(&listed.node.memory), Err(CodeTableError::Implausible { .. })));
}

#[test]
fn a_symbol_file_that_cannot_be_read_is_counted() {
    let mut listed = Listed::new(&[lists(CODE, 10), emulator(0)]);
    listed.node.put_words(listed.list[1] + 16, &[8, 32]);
    let table = listed.find().unwrap();
    assert_eq!(table.losses(), Losses { unreadable: 1, ..Losses::default() });
    listed.node.put_words(listed.list[1] + 16, &[HEAP, u64::MAX]);
    assert_eq!(listed.find().unwrap().losses(), Losses { foreign: 1, ..Losses::default() });
}

#[test]
fn a_symbol_file_has_exactly_its_length() {
    let parse = |bytes: &[u8]| Symfile::parse(bytes, &mut Files::default()).is_some();
    let right = lists(CODE, 1);
    assert!(parse(&right) && parse(&emulator(0)) && !parse(&emulator(2)));
    for length in 0..right.len() {
        assert!(!parse(&right[..length]), "{length}");
    }
    assert!(!parse(&[right, vec![0]].concat()));
    assert!(!parse(&module(u64::MAX, 1, &[(0, 1, "a:b/1", &[])])), "behind the last address");
    assert!(!parse(&module(CODE, 1, &[(0, 2, "a:b/1", &[])])), "behind its own end");
    assert!(!parse(&module(CODE, 2, &[(2, 1, "a:b/1", &[])])), "ends before it begins");
    assert!(!parse(&module(CODE, 2, &[(1, 1, "a:b/1", &[])])), "no code");
}

proptest! {
    #[test]
    fn any_damage_is_survived(damage: Vec<(bool, u16, u8)>, more: Vec<(u16, u8)>) {
        let mut listed = Listed::new(&[lists(CODE + 0x80, 10), lists(CODE, 20), emulator(0)]);
        let mut table = listed.find().unwrap();
        listed.node.damage(&damage);
        for (offset, byte) in more {
            // Most of the node's memory is empty: this hits what is not.
            listed.node.put(HEAP + SLOT * u64::from(offset % 3) + u64::from(offset) / 3 % 0x200, &[byte]);
        }
        let _refreshed = table.refresh(&listed.node.memory);
        let _found = listed.find();
        for address in CODE..CODE + 0x200 {
            let _place = table.lookup(Address(address));
        }
        prop_assert!(table.size().bytes < 1 << 16);
    }

    #[test]
    fn any_symbol_file_is_survived(bytes: Vec<u8>, spoilt: Vec<(usize, u8)>) {
        let mut files = Files::default();
        let mut right = lists(CODE, 1);
        for (at, byte) in spoilt {
            let at = at % right.len();
            right[at] = byte;
        }
        for bytes in [bytes, right] {
            if let Some(Symfile::Module(module)) = Symfile::parse(&bytes, &mut files) {
                prop_assert!(module.bytes() <= 3 * bytes.len() + 256);
                let range = module.range();
                for address in [range.start, range.start / 2 + range.end / 2, range.end - 1, range.end] {
                    let _place = module.place(Address(address), &files);
                }
            }
        }
    }
}
