//! What becomes of small tables made by hand?

use beamscope_probe::RuleKind;
use proptest::prelude::*;

use super::*;

const X86: Architecture = Architecture::X86_64;
const ARM: Architecture = Architecture::Aarch64;

/// What the common entry of every x86-64 compiler says: `def_cfa rsp 8`, `offset rip -8`.
const X86_COMMON: [u8; 5] = [0x0c, 7, 8, 0x90, 1];
/// The same of aarch64: `def_cfa sp 0`.
const ARM_COMMON: [u8; 3] = [0x0c, 31, 0];

/// An entry: its length, and padding to a whole word.
fn entry(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    while !(body.len() + 4).is_multiple_of(8) {
        body.push(0);
    }
    let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(body);
    bytes
}

/// A table with one common entry and functions of (start, length, instructions), all addresses absolute.
fn table(is_eh: bool, augmentation: &str, ra: u8, common: &[u8], functions: &[(u64, u64, &[u8])]) -> Vec<u8> {
    let id = if is_eh { 0 } else { u32::MAX };
    let mut body = id.to_le_bytes().to_vec();
    body.push(1);
    body.extend(augmentation.bytes());
    // Terminator, code alignment 1, data alignment -8, return address register, augmentation data.
    body.extend([0, 1, 0x78, ra, 1, 0]);
    body.extend(common);
    let mut bytes = entry(&body);
    for (start, length, instructions) in functions {
        let pointer = if is_eh { u32::try_from(bytes.len() + 4).unwrap() } else { 0 };
        let mut body = pointer.to_le_bytes().to_vec();
        body.extend(start.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.push(0);
        body.extend(*instructions);
        bytes.extend(entry(&body));
    }
    bytes
}

fn section(start: u64, bytes: Vec<u8>) -> Section {
    Section { addresses: start..start + bytes.len() as u64, bytes: bytes.into() }
}

fn eh(bytes: Vec<u8>) -> UnwindSections {
    UnwindSections { eh_frame: Some(section(0x9000, bytes)), ..UnwindSections::default() }
}

fn x86(functions: &[(u64, u64, &[u8])]) -> UnwindSections {
    eh(table(true, "zR", 16, &X86_COMMON, functions))
}

/// The rows as (address, rule), and the causes.
fn built(architecture: Architecture, sections: &UnwindSections) -> (Vec<(u64, Rule)>, BTreeMap<Cause, u64>) {
    let mut rules = Rules::default();
    let file = build(architecture, sections, &mut rules).unwrap();
    is_sound(&file, &rules);
    let row = |row: &Row| (file.base + u64::from(row.pc()), rules.list()[row.rule() as usize]);
    (file.rows.iter().map(row).collect(), file.causes)
}

fn is_sound(file: &FileRows, rules: &Rules) {
    for pair in file.rows.windows(2) {
        assert!(pair[0].pc() < pair[1].pc() && pair[0].rule() != pair[1].rule(), "{pair:?}");
    }
    assert!(file.rows.iter().all(|row| (row.rule() as usize) < rules.list().len()));
    if let (Some(first), Some(last)) = (file.rows.first(), file.rows.last()) {
        assert!(first.pc() == 0 && first.rule() != Rules::GAP, "{first:?}");
        assert_eq!((file.base + u64::from(last.pc()), last.rule()), (file.end, Rules::GAP));
    }
}

fn check(architecture: Architecture, sections: &UnwindSections, expected: &[(u64, Rule)]) {
    assert_eq!(built(architecture, sections).0, expected);
}

/// A function's only rule, or why it has none.
fn check_rule(architecture: Architecture, augmentation: &str, instructions: &[u8], expected: Result<Rule, Cause>) {
    let (ra, common) = match architecture {
        X86 => (16, &X86_COMMON[..]),
        ARM => (30, &ARM_COMMON[..]),
    };
    let sections = eh(table(true, augmentation, ra, common, &[(0x1000, 0x10, instructions)]));
    let (rows, causes) = built(architecture, &sections);
    assert_eq!(rows, [(0x1000, expected.unwrap_or(Rule::UNSUPPORTED)), (0x1010, Rule::GAP)]);
    assert_eq!(causes, expected.err().map(|cause| (cause, 1)).into_iter().collect());
}

fn rule(kind: RuleKind, cfa_offset: i32) -> Rule {
    Rule { kind: kind as u32, cfa_offset, return_address: -8, ..Rule::GAP }
}

fn sp(cfa_offset: i32) -> Rule {
    rule(RuleKind::StackPointer, cfa_offset)
}

#[test]
fn a_function_with_a_frame_pointer() {
    // advance 1; def_cfa_offset 16; offset rbp -16; advance 3; def_cfa_register rbp; advance 10; def_cfa rsp 8.
    let code = [0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6, 0x4a, 0x0c, 7, 8];
    let frame_pointer = -16;
    let expected = [
        (0x1000, sp(8)),
        (0x1001, Rule { frame_pointer, ..sp(16) }),
        (0x1004, Rule { frame_pointer, ..rule(RuleKind::FramePointer, 16) }),
        (0x100e, Rule { frame_pointer, ..sp(8) }),
        (0x1020, Rule::GAP),
    ];
    check(X86, &x86(&[(0x1000, 0x20, &code)]), &expected);
}

#[test]
fn neighbours_with_the_same_rule_are_one_row() {
    check(X86, &x86(&[(0x1000, 0x10, &[]), (0x1010, 0x10, &[])]), &[(0x1000, sp(8)), (0x1020, Rule::GAP)]);
    // advance 1; offset rbx -16: no register that is followed.
    check(X86, &x86(&[(0x1000, 0x10, &[0x41, 0x83, 2])]), &[(0x1000, sp(8)), (0x1010, Rule::GAP)]);
}

#[test]
fn padding_and_order() {
    let expected = [(0x1000, sp(8)), (0x1008, Rule::GAP), (0x1010, sp(24)), (0x1020, Rule::GAP)];
    check(X86, &x86(&[(0x1010, 0x10, &[0x0e, 24]), (0x1000, 8, &[])]), &expected);
}

#[test]
fn overlaps() {
    // The one that begins last holds, and none behind it.
    let expected = [(0x1000, sp(8)), (0x1008, sp(24)), (0x1010, Rule::GAP)];
    check(X86, &x86(&[(0x1000, 0x20, &[]), (0x1008, 8, &[0x0e, 24])]), &expected);
    // The first of two that begin at the same address.
    check(X86, &x86(&[(0x1000, 0x10, &[]), (0x1000, 0x20, &[0x0e, 24])]), &[(0x1000, sp(8)), (0x1010, Rule::GAP)]);
    // One of no length is none.
    check(X86, &x86(&[(0x1000, 0x10, &[]), (0x1008, 0, &[0x0e, 24])]), &[(0x1000, sp(8)), (0x1010, Rule::GAP)]);
    check(X86, &x86(&[(0x1000, 0, &[])]), &[]);
    check(X86, &x86(&[]), &[]);
    check(X86, &UnwindSections::default(), &[]);
}

#[test]
fn instructions_beyond_the_function_say_nothing() {
    // advance 16; def_cfa_offset 24: begins at the function's end.
    check(X86, &x86(&[(0x1000, 0x10, &[0x50, 0x0e, 24])]), &[(0x1000, sp(8)), (0x1010, Rule::GAP)]);
    // advance 0: the later rule holds.
    check(X86, &x86(&[(0x1000, 0x10, &[0x0e, 16, 0x40, 0x0e, 24])]), &[(0x1000, sp(24)), (0x1010, Rule::GAP)]);
}

#[test]
fn debug_frame_fills_the_gaps() {
    let debug = table(false, "zR", 16, &X86_COMMON, &[(0, 0x40, &[]), (0xff0, 0x40, &[0x0e, 32])]);
    let both = UnwindSections {
        debug_frame: Some(section(0, debug)),
        ..x86(&[(0x1000, 8, &[]), (0x1010, 8, &[0x0e, 16]), (0x1018, 4, &[0x0e, 32])])
    };
    let expected =
        [(0xff0, sp(32)), (0x1000, sp(8)), (0x1008, sp(32)), (0x1010, sp(16)), (0x1018, sp(32)), (0x1030, Rule::GAP)];
    check(X86, &both, &expected);
    check(X86, &UnwindSections { eh_frame: None, ..both }, &[(0xff0, sp(32)), (0x1030, Rule::GAP)]);
}

#[test]
fn a_broken_table_covers_what_stands_before() {
    let mut bytes = table(true, "zR", 16, &X86_COMMON, &[(0x1000, 8, &[]), (0x1008, 8, &[0x0e, 24])]);
    let expected = [(0x1000, sp(8)), (0x1008, sp(24)), (0x1010, Rule::GAP)];
    bytes.extend([0xff, 0, 0, 0, 1, 2, 3]);
    check(X86, &eh(bytes.clone()), &expected);
    bytes.truncate(bytes.len() - 10);
    check(X86, &eh(bytes), &expected[..1].iter().copied().chain([(0x1008, Rule::GAP)]).collect::<Vec<_>>());
    // advance 4; an instruction that does not exist.
    let expected = [(0x1000, sp(8)), (0x1004, Rule::UNSUPPORTED), (0x1010, sp(8)), (0x1020, Rule::GAP)];
    check(X86, &x86(&[(0x1000, 0x10, &[0x44, 0x3f]), (0x1010, 0x10, &[])]), &expected);
}

#[test]
fn a_file_wider_than_a_row_is_refused() {
    let wide = x86(&[(0x1000, 8, &[]), (0x1_0000_1000, 8, &[])]);
    let refused = build(X86, &wide, &mut Rules::default()).unwrap_err();
    assert_eq!(refused, RowsError::TooWide { range: 0x1000..0x1_0000_1008 });
    let far = x86(&[(0x1000, 8, &[]), (0x1_0000_0000, 0xfff, &[])]);
    assert_eq!(build(X86, &far, &mut Rules::default()).unwrap().end, 0x1_0000_0fff);
    check(X86, &x86(&[(u64::MAX - 3, 8, &[])]), &[]);
}

#[test]
fn x86_rules() {
    let ok = |instructions: &[u8], expected| check_rule(X86, "zR", instructions, Ok(expected));
    let no = |instructions: &[u8], cause| check_rule(X86, "zR", instructions, Err(cause));
    // undefined rip.
    ok(&[0x07, 16], Rule::END);
    // offset r13 -24; val_offset r13 -24; register r13 rbx.
    ok(&[0x8d, 3], Rule { process: -24, ..sp(8) });
    ok(&[0x14, 13, 3], sp(8));
    ok(&[0x09, 13, 3], sp(8));
    // same_value rbp; undefined rbp.
    ok(&[0x08, 6], sp(8));
    ok(&[0x07, 6], sp(8));
    // val_offset rbp -16; expression rbp {rsp + 0}; register rbp rbx.
    no(&[0x14, 6, 2], Cause::FramePointer);
    no(&[0x10, 6, 2, 0x77, 0], Cause::FramePointer);
    no(&[0x09, 6, 3], Cause::FramePointer);
    // offset rbp -40000; offset rbp 0; same_value rip; val_offset rip -8; def_cfa rsp 2^32.
    no(&[0x86, 0x88, 0x27], Cause::Offset);
    no(&[0x86, 0], Cause::Offset);
    no(&[0x08, 16], Cause::ReturnAddress);
    no(&[0x14, 16, 1], Cause::ReturnAddress);
    no(&[0x0e, 0x80, 0x80, 0x80, 0x80, 0x10], Cause::Offset);
    // def_cfa r10 0.
    no(&[0x0c, 10, 0], Cause::CfaRegister);
    // def_cfa_expression {rsp + 40, deref, plus 8}; {rsp + 16, deref}; {rsp + 32}; {rbp + 24}.
    ok(&[0x0f, 5, 0x77, 40, 0x06, 0x23, 8], Rule { addend: 8, ..rule(RuleKind::StackDereference, 40) });
    ok(&[0x0f, 3, 0x77, 16, 0x06], rule(RuleKind::StackDereference, 16));
    ok(&[0x0f, 2, 0x77, 32], sp(32));
    ok(&[0x0f, 2, 0x76, 24], rule(RuleKind::FramePointer, 24));
    // {rbp + 88, deref, plus 8}; {rsp, deref, plus 8, deref}; {rsp, lit8, plus}; {rsp, deref, plus 40000}; {}.
    no(&[0x0f, 6, 0x76, 0xd8, 0, 0x06, 0x23, 8], Cause::CfaExpression);
    no(&[0x0f, 6, 0x77, 0, 0x06, 0x23, 8, 0x06], Cause::CfaExpression);
    no(&[0x0f, 4, 0x77, 0, 0x38, 0x22], Cause::CfaExpression);
    no(&[0x0f, 7, 0x77, 0, 0x06, 0x23, 0xc0, 0xb8, 2], Cause::Offset);
    no(&[0x0f, 0], Cause::CfaExpression);
}

#[test]
fn plt() {
    let expression = |limit: u8| [0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, limit, 0x2a, 0x33, 0x24, 0x22];
    check_rule(X86, "zR", &expression(0x3b), Ok(rule(RuleKind::Plt, 0)));
    check_rule(X86, "zR", &expression(0x3a), Err(Cause::CfaExpression));
    check_rule(ARM, "zR", &expression(0x3b), Err(Cause::CfaExpression));
}

#[test]
fn x86_signal_frames() {
    // def_cfa_expression {rsp + 160, deref}; expression r13 {rsp + 80}, rbp {rsp + 120}, rip {rsp + 168}.
    let cfa = [0x0f, 4, 0x77, 0xa0, 1, 0x06];
    let process = [0x10, 13, 3, 0x77, 0xd0, 0];
    let frame_pointer = [0x10, 6, 3, 0x77, 0xf8, 0];
    let return_address = [0x10, 16, 3, 0x77, 0xa8, 1];
    let all = [&cfa[..], &process, &frame_pointer, &return_address].concat();
    check_rule(X86, "zRS", &all, Ok(trampoline(X86).rule));
    let without = [&cfa[..], &frame_pointer, &return_address].concat();
    check_rule(X86, "zRS", &without, Ok(Rule { process: 0, ..trampoline(X86).rule }));
    check_rule(X86, "zRS", &[&cfa[..], &frame_pointer].concat(), Err(Cause::ReturnAddress));
    check_rule(X86, "zRS", &[&cfa[..], &return_address].concat(), Err(Cause::FramePointer));
    check_rule(X86, "zR", &all, Err(Cause::ReturnAddress));
}

#[test]
fn aarch64_rules() {
    let in_register = Rule { kind: RuleKind::StackPointer as u32, ..Rule::GAP };
    let ok = |instructions: &[u8], expected| check_rule(ARM, "zR", instructions, Ok(expected));
    // A leaf; the same with negate_ra_state; undefined x30.
    ok(&[], in_register);
    ok(&[0x2d], in_register);
    ok(&[0x07, 30], Rule::END);
    // def_cfa_offset 48; offset x29 -48, x30 -40, x21 -24; def_cfa_register x29.
    let framed = [0x0e, 48, 0x9d, 6, 0x9e, 5, 0x95, 3];
    let expected = Rule { cfa_offset: 48, return_address: -40, frame_pointer: -48, process: -24, ..in_register };
    ok(&framed, expected);
    ok(&[&framed[..], &[0x0d, 29]].concat(), Rule { kind: RuleKind::FramePointer as u32, ..expected });
    // What arm64 kernels before 5.8 say: def_cfa x29 0; offset x29 0, x30 8.
    check_rule(ARM, "zRS", &[0x0c, 29, 0, 0x9d, 0, 0x11, 30, 0x7f], Err(Cause::Offset));
    check_rule(ARM, "zR", &[0x0c, 16, 0], Err(Cause::CfaRegister));
}

#[test]
fn another_return_address_register_is_unsupported() {
    let sections = eh(table(true, "zR", 16, &X86_COMMON, &[(0x1000, 0x10, &[])]));
    check(ARM, &sections, &[(0x1000, Rule::UNSUPPORTED), (0x1010, Rule::GAP)]);
}

#[test]
fn trampolines_are_known_by_their_code() {
    for architecture in [X86, ARM] {
        let Trampoline { code, rule } = trampoline(architecture);
        let mut text = vec![0x48; 16];
        text.extend(code);
        text.extend([0x68; 16]);
        text.extend(code);
        text.extend(code);
        text.extend(&code[..7]);
        let (first, length) = (0x2010, code.len() as u64);
        let (second, end) = (first + length + 16, first + 3 * length + 16);
        let alone = UnwindSections { text: Some(section(0x2000, text)), ..UnwindSections::default() };
        let gap = |at| (at, Rule::GAP);
        check(architecture, &alone, &[(first - 1, rule), gap(first + length), (second - 1, rule), gap(end)]);
        // It holds where a table says something else.
        let tables = x86(&[(0x2000, 0x18, &[])]);
        let (rows, _) = built(architecture, &UnwindSections { text: alone.text, ..tables });
        assert_eq!(rows[1], (first - 1, rule));
    }
}

#[test]
fn rules_are_looked_up_by_address() {
    let mut rules = Rules::default();
    let file = build(X86, &x86(&[(0x1000, 8, &[]), (0x1010, 8, &[0x0e, 24])]), &mut rules).unwrap();
    let found = [0, 0xfff, 0x1000, 0x1007, 0x1008, 0x1010, 0x1017, 0x1018, u64::MAX].map(|at| file.rule_at(at));
    assert_eq!(found, [0, 0, 2, 2, 0, 3, 3, 0, 0]);
    assert_eq!(FileRows::default().rule_at(0), Rules::GAP);
}

/// Tables that were right before some bytes of them changed.
fn hostile() -> impl Strategy<Value = (bool, Vec<u8>)> {
    let function = (0x1000_u64..0x3000, 0_u64..0x400, proptest::collection::vec(any::<u8>(), 0..40));
    let functions = proptest::collection::vec(function, 0..20);
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6);
    (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..20), functions, changes).prop_map(
        |(is_eh, common, functions, changes)| {
            let functions: Vec<_> = functions.iter().map(|(start, length, code)| (*start, *length, &**code)).collect();
            let mut bytes = table(is_eh, "zR", 16, &common, &functions);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            (is_eh, bytes)
        },
    )
}

proptest! {
    #[test]
    fn hostile_tables_make_sound_rows(
        tables in proptest::collection::vec(hostile(), 1..3),
        text in proptest::collection::vec(prop_oneof![Just(0x48_u8), Just(0x68), Just(0xd4), any::<u8>()], 0..64),
        is_arm: bool,
    ) {
        let mut sections = UnwindSections { text: Some(section(0x1f00, text)), ..UnwindSections::default() };
        for (is_eh, bytes) in tables {
            let which = if is_eh { &mut sections.eh_frame } else { &mut sections.debug_frame };
            *which = Some(section(0x9000, bytes));
        }
        let mut rules = Rules::default();
        if let Ok(file) = build(if is_arm { ARM } else { X86 }, &sections, &mut rules) {
            is_sound(&file, &rules);
        }
    }

    #[test]
    fn noise_makes_sound_rows(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let sections =
            UnwindSections { eh_frame: Some(section(0, bytes.clone())), debug_frame: Some(section(0, bytes)), ..eh(Vec::new()) };
        let mut rules = Rules::default();
        if let Ok(file) = build(X86, &sections, &mut rules) {
            is_sound(&file, &rules);
        }
    }
}
