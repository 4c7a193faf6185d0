//! Which Erlang functions are on a stack? Names are looked up while the code is there, and kept.

use std::collections::{HashMap, HashSet};

use beamscope_probe::{ErlangEnd, SchedulerKind};

use super::{
    atom::{AtomError, AtomTable},
    code,
    jit::{CodeTable, CodeTableError, Place},
    mfa::{Mfa, MfaError},
};
use crate::{
    mapping::Address,
    stack::{Frame, FrameKind, Stack, StackEnd, raw::RawStack},
    target::memory::ReadMemory,
    view::ProcessView,
};

/// Fragments of JIT code that note in `Process.current` which function they call (`erts/emulator/beam/jit/{x86,arm}/
/// instr_bif.cpp` and `instr_call.cpp`, OTP 25.2.3 and 27.3.4.1). Others leave there what was called before.
const NOTING_FRAGMENTS: [&str; 4] = ["call_nif_shared", "call_nif_early", "call_bif_shared", "dispatch_nif"];

/// The function in which a dirty scheduler runs one job after the other: behind it is nothing of the process that asked
/// (`erts/emulator/beam/beam_common.c`, OTP 25.2.3; `erl_dirty_bif` and `beam_emu.c` before).
const DIRTY_LOOP: &str = "erts_dirty_process_main";

/// The interpreter of an emulator without a JIT (`erts/emulator/beam/beam_emu.c`, OTP 23.2.6).
const INTERPRETER: &str = "process_main";

/// Names of Erlang code in a node.
#[derive(Debug)]
pub struct ErlangNames {
    table: Option<CodeTable>,
    atoms: Option<AtomTable>,
    places: HashMap<Address, Option<Place>>,
    functions: HashMap<[u64; 3], Option<Mfa>>,
    /// Addresses at which other code has been seen since they were named: a stack with one of them can be of either.
    reused: HashSet<Address>,
}

impl ErlangNames {
    /// Names by what was found of the node: the list of code that was made at run time, and the atoms.
    pub fn new(table: Option<CodeTable>, atoms: Option<AtomTable>) -> Self {
        Self { table, atoms, places: HashMap::new(), functions: HashMap::new(), reused: HashSet::new() }
    }

    /// Looks up what is new in `stacks`. An error says why new code has no names; what is known keeps its own.
    pub fn learn(
        &mut self,
        stacks: &[&RawStack],
        view: &ProcessView,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<(), CodeTableError> {
        let refreshed = match &mut self.table {
            Some(table) => table.refresh(memory),
            None => Ok(false),
        };
        if matches!(refreshed, Ok(true)) {
            self.note_reused();
        }
        for stack in stacks {
            let boundary = (stack.end == StackEnd::Jit).then_some(stack.addresses.last()).flatten();
            for address in boundary.into_iter().chain(&stack.erlang.addresses) {
                let lookup = call_of(*address);
                if let Some(table) = &self.table {
                    self.places.entry(lookup).or_insert_with(|| table.lookup(lookup));
                }
            }
            self.learn_function(stack.erlang.current, view, memory);
        }
        refreshed.map(|_is_new| ())
    }

    /// Addresses of code that was gone before it could be asked for its name.
    pub fn nameless(&self) -> u64 {
        self.places.values().filter(|place| place.is_none()).count() as u64
    }

    /// Addresses that have been other code's since a stack with them was named.
    pub fn reused(&self) -> u64 {
        self.reused.len() as u64
    }

    fn note_reused(&mut self) {
        let Some(table) = &self.table else { return };
        let is_other = |(address, place): &(&Address, &Option<Place>)| {
            place.is_some() && table.lookup(**address).is_some_and(|now| Some(&now) != place.as_ref())
        };
        self.reused.extend(self.places.iter().filter(is_other).map(|(address, _)| *address));
    }

    fn learn_function(&mut self, words: [u64; 3], view: &ProcessView, memory: &(impl ReadMemory + ?Sized)) {
        let Self { atoms: Some(atoms), functions, .. } = self else { return };
        if words == [0; 3] || functions.contains_key(&words) {
            return;
        }
        let mut mfa = Mfa::of_words(words, atoms, memory);
        if let Err(MfaError::Atom(AtomError::Index { .. })) = mfa
            && let Ok(grown) = AtomTable::find(view, memory)
        {
            mfa = Mfa::of_words(words, &grown, memory);
            *atoms = grown;
        }
        functions.insert(words, mfa.ok());
    }

    /// Puts the Erlang frames of `raw` behind the native ones of `native`, whose last one may be the boundary to JIT code.
    pub fn complete(&self, raw: &RawStack, mut native: Stack) -> Stack {
        let mut frames = Vec::new();
        let mut noted = matches!(raw.scheduler, Some(SchedulerKind::DirtyCpu | SchedulerKind::DirtyIo));
        if raw.end == StackEnd::Jit
            && let Some(address) = raw.addresses.last()
        {
            match self.place(*address) {
                Some(Place::Function { .. }) => frames.extend(self.frame(*address)),
                Some(Place::Fragment { name }) => {
                    let name = name.strip_prefix("global::").unwrap_or(name);
                    noted = NOTING_FRAGMENTS.contains(&name);
                }
                Some(Place::Prologue { .. }) => {}
                None => return native,
            }
            native.frames.pop_if(|frame| frame.kind == FrameKind::Jit);
        }
        noted |= is_interpreters_nif(&native);
        if let Some(current) = self.functions.get(&raw.erlang.current).filter(|_| noted) {
            frames.extend(current.as_ref().map(|mfa| frame(Address(0), mfa, None, None)));
        }
        frames.extend(raw.erlang.addresses.iter().filter_map(|address| self.frame(*address)));
        if frames.is_empty() {
            return native;
        }
        if raw.scheduler.is_some_and(|kind| kind != SchedulerKind::Normal) {
            let is_loop = |frame: &Frame| {
                frame.module.as_deref().is_some_and(code::is_emulator) && frame.function.as_deref() == Some(DIRTY_LOOP)
            };
            if let Some(at) = native.frames.iter().position(is_loop) {
                native.frames.truncate(at);
            }
        }
        native.frames.append(&mut frames);
        native.end = match (raw.end, raw.erlang.end) {
            (StackEnd::Jit | StackEnd::Root, ErlangEnd::Complete) => StackEnd::Erlang,
            (end, ErlangEnd::Unknown) => end,
            (StackEnd::Jit | StackEnd::Root, _) => StackEnd::Truncated,
            (cut, _) => cut,
        };
        native
    }

    fn place(&self, address: Address) -> Option<&Place> {
        self.places.get(&call_of(address))?.as_ref()
    }

    /// The frame of a return address; `None` where no function is.
    fn frame(&self, address: Address) -> Option<Frame> {
        match self.place(address) {
            Some(Place::Function { mfa, file, line, .. }) => Some(frame(address, mfa, file.clone(), *line)),
            Some(Place::Prologue { .. } | Place::Fragment { .. }) => None,
            // Code that was gone before it could be asked for its name.
            None => Some(nameless(address)),
        }
    }
}

/// Whether a library's function stands above the emulator's interpreter: a NIF then, of which `call_nif` has noted who it is
/// (`erts/emulator/beam/instrs.tab`, OTP 23.2.6).
fn is_interpreters_nif(native: &Stack) -> bool {
    let is_emulator = |frame: &Frame| frame.module.as_deref().is_some_and(code::is_emulator);
    let is_interpreter = |frame: &Frame| is_emulator(frame) && frame.function.as_deref() == Some(INTERPRETER);
    let at = native.frames.iter().position(is_interpreter);
    let called = at.and_then(|at| native.frames.get(at.checked_sub(1)?));
    called.is_some_and(|frame| frame.kind == FrameKind::Native && !is_emulator(frame))
}

/// Where to look for what called: a return address can be the next function's first.
fn call_of(address: Address) -> Address {
    Address(address.0.saturating_sub(1))
}

fn nameless(address: Address) -> Frame {
    let (kind, module, function) = (FrameKind::Jit, None, None);
    Frame { address, kind, module, function, offset: None, file: None, line: None, inlined: false }
}

fn frame(address: Address, mfa: &Mfa, file: Option<String>, line: Option<u32>) -> Frame {
    let (module, function) = mfa.parts();
    Frame {
        address,
        kind: FrameKind::Erlang,
        module: Some(module),
        function: Some(function),
        offset: None,
        file,
        line,
        inlined: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        sample::{self, jit, stripped},
        stack::raw::RawErlang,
    };

    const NIF: [u64; 3] = [11, 12, 2];

    fn mfa(function: &str) -> Mfa {
        Mfa { module: "shop".into(), function: function.into(), arity: 1 }
    }

    fn function(name: &str, line: u32) -> Place {
        Place::Function { mfa: mfa(name), file: Some("shop.erl".into()), line: Some(line), offset: 8 }
    }

    /// 0x100 is `call_nif_shared`, 0x200 `call_light_bif_shared`, 0x300 and 0x400 are functions, 0x500 is the header behind
    /// which a process's first function returns.
    fn names() -> ErlangNames {
        let fragment = |name: &str| Place::Fragment { name: name.into() };
        let places = [
            (0xff, fragment("global::call_nif_shared")),
            (0x1ff, fragment("global::call_light_bif_shared")),
            (0x2ff, function("add", 7)),
            (0x3ff, function("run", 9)),
            (0x4ff, Place::Prologue { mfa: mfa("normal_exit"), offset: 40 }),
        ];
        let mut names = ErlangNames::new(None, None);
        names.places = places.into_iter().map(|(address, place)| (Address(address), Some(place))).collect();
        names.functions.insert(NIF, Some(mfa("nif")));
        names
    }

    fn raw(boundary: u64, end: StackEnd, erlang: &[u64], erlang_end: ErlangEnd) -> RawStack {
        RawStack {
            addresses: vec![Address(0x9000), Address(boundary)],
            end,
            erlang: RawErlang {
                current: NIF,
                addresses: erlang.iter().map(|address| Address(*address)).collect(),
                end: erlang_end,
            },
            ..RawStack::default()
        }
    }

    fn native(frames: Vec<Frame>, end: StackEnd) -> Stack {
        Stack { frames, end }
    }

    fn check(raw: &RawStack, native: Stack, expected: &[&str], end: StackEnd) {
        let stack = names().complete(raw, native);
        let seen = stack.frames.iter().map(|frame| {
            let line = frame.line.map(|line| format!(":{line}")).unwrap_or_default();
            format!(
                "{}!{}{line}",
                frame.module.as_deref().unwrap_or_default(),
                frame.function.as_deref().unwrap_or_default()
            )
        });
        assert_eq!((seen.collect::<Vec<_>>(), stack.end), (expected.iter().map(ToString::to_string).collect(), end));
    }

    fn leak() -> Vec<Frame> {
        vec![sample::frame("leaky.so", "leak", None), jit()]
    }

    #[test]
    fn a_nif_stands_before_its_caller() {
        let stack = raw(0x100, StackEnd::Jit, &[0x300, 0x400, 0x500], ErlangEnd::Complete);
        let expected = ["leaky.so!leak", "shop!nif/1", "shop!add/1:7", "shop!run/1:9"];
        check(&stack, native(leak(), StackEnd::Jit), &expected, StackEnd::Erlang);
    }

    #[test]
    fn what_a_light_bif_has_not_noted_is_not_believed() {
        let stack = raw(0x200, StackEnd::Jit, &[0x300, 0x500], ErlangEnd::Complete);
        check(&stack, native(leak(), StackEnd::Jit), &["leaky.so!leak", "shop!add/1:7"], StackEnd::Erlang);
    }

    #[test]
    fn code_that_calls_the_vm_itself_is_the_innermost_function() {
        let stack = raw(0x400, StackEnd::Jit, &[0x300], ErlangEnd::TooDeep);
        let expected = ["leaky.so!leak", "shop!run/1:9", "shop!add/1:7"];
        check(&stack, native(leak(), StackEnd::Jit), &expected, StackEnd::Truncated);
    }

    #[test]
    fn a_cut_native_stack_stays_cut() {
        let stack = raw(0x9100, StackEnd::NoUnwindInformation, &[0x300], ErlangEnd::Complete);
        let cut = native(vec![stripped("leaky.so", 1)], StackEnd::NoUnwindInformation);
        check(&stack, cut, &["leaky.so!", "shop!add/1:7"], StackEnd::NoUnwindInformation);
    }

    #[test]
    fn of_a_dirty_scheduler_only_what_the_process_asked_for_is_shown() {
        let dirty = RawStack {
            scheduler: Some(SchedulerKind::DirtyCpu),
            ..raw(0x9100, StackEnd::Root, &[0x300], ErlangEnd::Complete)
        };
        let frames = ["erts_call_dirty_nif", DIRTY_LOOP, "sched_dirty_cpu_thread_func"];
        let frames = frames.map(|name| sample::frame("beam.smp", name, None)).to_vec();
        let expected = ["beam.smp!erts_call_dirty_nif", "shop!nif/1", "shop!add/1:7"];
        check(&dirty, native(frames, StackEnd::Root), &expected, StackEnd::Erlang);
    }

    #[test]
    fn an_interpreters_nif_is_named_and_its_callers_are_not() {
        let stack = raw(0x9100, StackEnd::Root, &[], ErlangEnd::Unknown);
        let frames = |callee: Frame| vec![callee, sample::frame("beam.smp", INTERPRETER, None)];
        let nif = native(frames(sample::frame("leaky.so", "leak", None)), StackEnd::Root);
        check(&stack, nif, &["leaky.so!leak", "beam.smp!process_main", "shop!nif/1"], StackEnd::Root);
        let own = native(frames(sample::frame("beam.smp", "ets_insert_2", None)), StackEnd::Root);
        check(&stack, own, &["beam.smp!ets_insert_2", "beam.smp!process_main"], StackEnd::Root);
    }

    #[test]
    fn code_that_is_gone_leaves_a_frame_without_a_name() {
        let stack = raw(0x100, StackEnd::Jit, &[0x300, 0x7700, 0x400], ErlangEnd::Complete);
        let expected = ["leaky.so!leak", "shop!nif/1", "shop!add/1:7", "!", "shop!run/1:9"];
        check(&stack, native(leak(), StackEnd::Jit), &expected, StackEnd::Erlang);
    }

    #[test]
    fn without_names_the_boundary_stays() {
        let stack = raw(0x9900, StackEnd::Jit, &[], ErlangEnd::Unknown);
        check(&stack, native(leak(), StackEnd::Jit), &["leaky.so!leak", "!"], StackEnd::Jit);
    }
}
