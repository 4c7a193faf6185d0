//! Which Erlang functions are on a stack? Names are looked up while the code is there, and kept.

use std::collections::HashMap;

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

/// Names of Erlang code in a node.
#[derive(Debug)]
pub struct ErlangNames {
    table: Option<CodeTable>,
    atoms: Option<AtomTable>,
    places: HashMap<Address, Option<Place>>,
    functions: HashMap<[u64; 3], Option<Mfa>>,
}

impl ErlangNames {
    /// Names by what was found of the node: the list of code that was made at run time, and the atoms.
    pub fn new(table: Option<CodeTable>, atoms: Option<AtomTable>) -> Self {
        Self { table, atoms, places: HashMap::new(), functions: HashMap::new() }
    }

    /// Looks up what is new in `stacks`. An error says why new code has no names; what is known keeps its own.
    pub fn learn(
        &mut self,
        stacks: &[&RawStack],
        view: &ProcessView,
        memory: &(impl ReadMemory + ?Sized),
    ) -> Result<(), CodeTableError> {
        let refreshed = match &mut self.table {
            Some(table) => table.refresh(memory).map(|_is_new| ()),
            None => Ok(()),
        };
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
        refreshed
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
        match self.place(address)? {
            Place::Function { mfa, file, line, .. } => Some(frame(address, mfa, file.clone(), *line)),
            Place::Prologue { .. } | Place::Fragment { .. } => None,
        }
    }
}

/// Where to look for what called: a return address can be the next function's first.
fn call_of(address: Address) -> Address {
    Address(address.0.saturating_sub(1))
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
