//! Are processes found in made-up images, and is what contradicts itself refused?

use proptest::prelude::*;

use super::{
    layout::{CodeMfa, Field, ProcessError, ProcessLayout, ProcessLayoutError},
    table::{Element, ElementKind, ElementTable, ElementTableError},
};
use crate::{
    erts::{
        atom::AtomTable,
        executable::tests::{CODE, DATA, HEAP, Node},
    },
    mapping::Address,
};

/// Bytes of the private memory.
const LENGTH: u64 = 0x40000;
/// The process table's variable: it lies across the end of a page.
const TABLE: u64 = DATA + 0xfc0;
const PORT_TABLE: u64 = DATA + 0x200;
const SLOTS: u64 = HEAP + 0x1000;
const PORT_SLOTS: u64 = HEAP + 0x3000;
const RESERVED: u64 = HEAP + 0x5000;
const PROCESSES: u64 = HEAP + 0x6000;
const PORT: u64 = HEAP + 0x5800;
const HEAPS: u64 = HEAP + 0x20000;
const SIZE: u64 = 776;
pub(in crate::erts) const COUNT: u64 = 40;
const ATOMS: u64 = 500;

/// A VM with processes.
#[derive(Clone, Debug)]
pub(in crate::erts) struct Vm {
    pub(in crate::erts) node: Node,
    wide: bool,
}

fn atom(index: u64) -> u64 {
    index << 6 | 0xb
}

pub(in crate::erts) fn process(index: u64) -> Address {
    Address(PROCESSES + index * 800)
}

impl Vm {
    pub(in crate::erts) fn new(wide: bool) -> Self {
        let mut vm = Self { node: Node::new(LENGTH), wide };
        vm.put_table(TABLE, SLOTS, SIZE);
        vm.put_table(PORT_TABLE, PORT_SLOTS, 634);
        for index in 0..COUNT {
            vm.put_process(index);
        }
        let port = vm.id(5, 7);
        vm.node.put_words(PORT_SLOTS + 8 * 5, &[PORT]);
        vm.node.put_words(PORT, &[port]);
        vm.node.put_words(SLOTS + 8 * 1000, &[RESERVED]);
        vm
    }

    fn id(&self, slot: u64, tag: u64) -> u64 {
        if self.wide { (slot | 3 << 10) << 4 | tag } else { slot << 32 | (slot + 70) << 4 | tag }
    }

    fn slot(index: u64) -> u64 {
        index * 8
    }

    fn put_table(&mut self, at: u64, slots: u64, size: u64) {
        let mask = 1023;
        if self.wide {
            let shifts = 3 | 7 << 32;
            let words = [slots, HEAP, 1024, mask, 127, 7, shifts, 127, 7, shifts, RESERVED, 0x2b, CODE, size];
            self.node.put_words(at, &words);
        } else {
            let (tab, free) = ([127 | 3 << 32, 7 | 7 << 32], [63 | 4 << 32, 15 | 6 << 32]);
            let words = [slots, HEAP, 1024 | mask << 32, tab[0], tab[1], free[0], free[1], RESERVED, 0x2b, CODE, size];
            self.node.put_words(at, &words);
        }
    }

    fn put_process(&mut self, index: u64) {
        let slot = Self::slot(index);
        let (at, heap) = (process(index).0, HEAPS + index * 0x800);
        let words = 100 + index;
        let (htop, stop, hend) = (heap + 8 * 20, heap + 8 * (words - 10), heap + 8 * words);
        self.node.put_words(SLOTS + 8 * slot, &[at]);
        self.node.put_words(at, &[self.id(slot, 3)]);
        self.node.put_words(at + 80, &[htop, stop]);
        self.node.put_words(at + 128, &[heap, hend, 0, words]);
        let current = if index.is_multiple_of(3) { at + 448 } else { 0 };
        let parent = self.id(0, 3);
        self.node.put_words(at + 448, &[atom(7), atom(index), 2, current, parent]);
    }

    pub(in crate::erts) fn table(&self, kind: ElementKind) -> Result<ElementTable, ElementTableError> {
        ElementTable::find(kind, &self.node.view, &self.node.memory)
    }

    fn layout(&self) -> Result<ProcessLayout, ProcessLayoutError> {
        let table = self.table(ElementKind::Process).expect("a table");
        ProcessLayout::find(&table, &AtomTable::without_names(ATOMS), &self.node.view, &self.node.memory)
    }

    fn element(&self, index: u64) -> Element {
        Element { address: process(index), id: self.id(Self::slot(index), 3) }
    }
}

#[test]
fn finds_the_elements_of_both_forms() {
    for wide in [false, true] {
        let vm = Vm::new(wide);
        let table = vm.table(ElementKind::Process).unwrap();
        assert_eq!(table.element_size(), 776);
        assert_eq!((table.slots(), table.bytes()), (1024, 1024 * if wide { 8 + 8 } else { 8 + 4 }));
        let expected: Vec<_> = (0..COUNT).map(|index| vm.element(index)).collect();
        assert_eq!(table.elements(&vm.node.memory, usize::MAX), expected);
        assert_eq!(table.elements(&vm.node.memory, 3), expected[..3]);
        let holds = |address| table.holds(address, &vm.node.memory).unwrap();
        assert!(holds(process(3)) && !holds(Address(PORT)) && !holds(Address(RESERVED)));
        assert!(table.holds(Address(HEAP + LENGTH), &vm.node.memory).is_err());
        let ports = vm.table(ElementKind::Port).unwrap();
        assert_eq!(ports.elements(&vm.node.memory, 10), [Element { address: Address(PORT), id: vm.id(5, 7) }]);
    }
}

#[test]
fn numbers_are_those_that_the_vm_prints() {
    let check = |wide, kind, id, expected| assert_eq!(Vm::new(wide).table(kind).unwrap().numbers(id), expected);
    check(false, ElementKind::Process, 9 << 32 | (85 << 4) | 3, (85, 0));
    check(false, ElementKind::Process, 9 << 32 | (2 << 15 | 0x55) << 4 | 3, (85, 2));
    check(false, ElementKind::Port, 9 << 32 | 5 << 4 | 7, (5, 0));
    // Slot 8 has the line 1 of 128, and so the number 1; 7 slots on in the same line, numbers are 128 apart.
    check(true, ElementKind::Process, 8 << 4 | 3, (1, 0));
    check(true, ElementKind::Process, 15 << 4 | 3, (1 + 7 * 128, 0));
    check(true, ElementKind::Process, (2 << 28 | 1 << 10 | 8) << 4 | 3, (1025, 2));
    check(true, ElementKind::Port, (1 << 28 | 8) << 4 | 7, ((1 << 28) + 1, 0));
}

#[test]
fn believes_no_table_that_contradicts_itself() {
    let kind = ElementKind::Process;
    let check = |change: &dyn Fn(&mut Vm), expected| {
        for wide in [false, true] {
            let mut vm = Vm::new(wide);
            change(&mut vm);
            assert_eq!(vm.table(kind).map(|table| table.element_size()), expected);
        }
    };
    let not_found = Err(ElementTableError::NotFound { kind, unread: 0 });
    check(&|vm| vm.put_process(COUNT), Ok(776));
    check(&|vm| vm.node.put_words(process(1).0, &[0]), Ok(776));
    check(&|vm| (0..9).for_each(|index| vm.node.put_words(process(index).0, &[vm.id(1, 3)])), not_found);
    check(&|vm| vm.node.put_words(TABLE, &[SLOTS + 4]), not_found);
    check(&|vm| vm.node.put_words(TABLE, &[HEAP + LENGTH]), not_found);
    check(&|vm| vm.put_table(TABLE, SLOTS, 8), not_found);
    check(&|vm| vm.put_table(DATA + 0x800, SLOTS, 776), Err(ElementTableError::Ambiguous { kind, count: 2 }));
}

#[test]
fn finds_the_layout() {
    for wide in [false, true] {
        let vm = Vm::new(wide);
        let layout = vm.layout().unwrap();
        let expected = ProcessLayout {
            id: 0,
            htop: 80,
            stop: 88,
            heap: 128,
            hend: 136,
            heap_size: 152,
            initial: 448,
            current: 472,
            instruction: None,
            element_size: 776,
        };
        assert_eq!(layout, expected);
        let atoms = AtomTable::without_names(ATOMS);
        let head = layout.head(vm.element(3), &atoms, &vm.node.memory).unwrap();
        let block = HEAPS + 3 * 0x800;
        assert_eq!((head.heap, head.htop), (Address(block), Address(block + 160)));
        assert_eq!((head.stop, head.hend), (Address(block + 8 * 93), Address(block + 8 * 103)));
        let own = CodeMfa { module: 7, function: 3, arity: 2 };
        assert_eq!((head.initial, head.current), (own, Some(own)));
        assert_eq!(layout.head(vm.element(4), &atoms, &vm.node.memory).unwrap().current, None);
    }
}

#[test]
fn says_which_field_is_not_as_it_should_be() {
    let check = |offset: u64, word: u64, expected: &str| {
        let mut vm = Vm::new(true);
        for index in 0..COUNT {
            vm.node.put_words(process(index).0 + offset, &[word]);
        }
        assert_eq!(vm.layout().unwrap_err().to_string(), expected);
    };
    check(152, 1, "there is no place in 40 processes at which hend - heap is heap_sz words");
    check(88, 0, "there is no place in 40 processes at which heap <= htop <= stop <= hend");
    check(448, 0x3b, "there is no place in 40 processes at which u.initial is two atoms and an arity");
    check(472, HEAP, "there is no place in 40 processes at which current is 0 or leads to two atoms and an arity");
}

/// In an idle VM none may be noted.
#[test]
fn current_functions_need_not_be_noted() {
    let mut vm = Vm::new(true);
    for index in 0..COUNT {
        vm.node.put_words(process(index).0 + 472, &[0]);
    }
    assert_eq!(vm.layout().unwrap().current, 472);
    for index in 0..COUNT {
        vm.node.put_words(process(index).0 + 480, &[0]);
    }
    let expected = ProcessLayoutError::NotFound { field: Field::Current, samples: 40 };
    assert_eq!(vm.layout().unwrap_err(), expected, "nothing tells that it is `current`");
}

#[test]
fn a_process_that_contradicts_itself_is_refused() {
    let check = |offset: u64, words: &[u64], expected: Field| {
        let mut vm = Vm::new(true);
        let layout = vm.layout().unwrap();
        vm.node.put_words(process(3).0 + offset, words);
        let refused = layout.head(vm.element(3), &AtomTable::without_names(ATOMS), &vm.node.memory).unwrap_err();
        assert!(matches!(refused, ProcessError::Implausible { field, .. } if field == expected), "{refused}");
    };
    check(0, &[3], Field::Heap);
    check(128, &[HEAPS + 4], Field::Heap);
    check(152, &[u64::MAX], Field::Heap);
    check(80, &[HEAPS], Field::Stack);
    check(88, &[HEAPS + 3 * 0x800 + 8 * 104], Field::Stack);
    check(456, &[atom(ATOMS)], Field::Initial);
    check(464, &[256], Field::Initial);
    check(472, &[HEAPS], Field::Current);
}

proptest! {
    #[test]
    fn any_damage_is_survived(damage: Vec<(bool, u16, u8)>, wide: bool) {
        let mut vm = Vm::new(wide);
        let layout = vm.layout().unwrap();
        vm.node.damage(&damage);
        for kind in [ElementKind::Process, ElementKind::Port] {
            let Ok(table) = vm.table(kind) else { continue };
            prop_assert!(table.elements(&vm.node.memory, 10).len() <= 10);
            for element in table.elements(&vm.node.memory, usize::MAX) {
                prop_assert!(table.holds(element.address, &vm.node.memory).is_ok());
                if let Ok(head) = layout.head(element, &AtomTable::without_names(ATOMS), &vm.node.memory) {
                    prop_assert!(head.heap <= head.htop && head.htop <= head.stop && head.stop <= head.hend);
                }
            }
            let atoms = AtomTable::without_names(ATOMS);
            let found = ProcessLayout::find(&table, &atoms, &vm.node.view, &vm.node.memory);
            prop_assert!(found.is_ok_and(|found| found.heap < found.hend) || found.is_err());
        }
    }
}
