//! Whose is the memory of a site: the VM's, or native code's, and which function is to be looked at?
//!
//! The stack decides by the first frame, from the leaf on, that is more than a way to allocate: not the allocation
//! function, not the C library, not the runtime of C++ or Rust. Where that frame lies in the VM's executable, the VM
//! has asked for the memory; that a NIF has called the VM (`enif_alloc`) does not change it. A carrier that was found
//! in what was allocated proves the VM's ownership, whatever can be said of the stack.

mod wrapper;

use std::{cmp::Reverse, collections::BTreeMap};

use crate::{
    erts::code,
    recording::{Asked, CarrierSeen, Site},
    stack::{Frame, FrameKind, Stack, StackEnd},
};

/// A site with its owner.
#[derive(Clone, Debug)]
pub struct RankedSite<'a> {
    /// The site.
    pub site: &'a Site,
    /// Whose it is.
    pub attribution: Attribution,
    /// Slope of its outstanding bytes.
    pub growth_per_second: Option<f64>,
}

impl RankedSite<'_> {
    /// Whether carriers of the VM were found in its memory.
    pub fn has_carriers(&self) -> bool {
        self.attribution.evidence.iter().any(|evidence| matches!(evidence, Evidence::Carriers { .. }))
    }
}

/// Whose the memory of a site is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Native code asked for it; the VM does not know of it.
    Native {
        /// The file of the code that asked, such as `leaky.so`.
        library: String,
    },
    /// The VM asked for it, for its allocators or itself.
    Vm,
    /// There is no stack, or it does not reach the code that asked, and no carrier was found.
    Unknown,
}

/// What is known of a site, and from what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// Whose it is.
    pub class: Class,
    /// The function to be looked at, as an index into the stack's frames: the first that is no wrapper, such as
    /// `operator new`, and no allocator of the VM.
    pub responsible: Option<usize>,
    /// The file through which the VM came to [`Class::Native`]'s library, where it is another one: the NIF of a library.
    pub via: Option<String>,
    /// Why, in the order of weight.
    pub evidence: Vec<Evidence>,
}

/// What speaks for a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Carriers lie in what was allocated there.
    Carriers {
        /// How many.
        count: usize,
        /// Their size.
        bytes: u64,
        /// Their allocators; the one with most bytes first.
        allocators: Vec<String>,
    },
    /// The first frame that is more than a way to allocate; an index into the stack's frames.
    Frame(usize),
    /// A function of the VM's allocators is on the stack; an index into its frames.
    AllocatorFunction(usize),
    /// The first frame that counts is code that was made at run time, or lies in no mapping; an index.
    NamelessCode(usize),
    /// All frames belong to the C library and the like, and the stack ends there.
    StackEnds(StackEnd),
}

/// Says whose the memory of `site` is. `carriers` are those that were found in its blocks and mappings.
pub fn attribute(site: &Site, carriers: &[&CarrierSeen]) -> Attribution {
    match site.asked {
        Asked::System => {}
        Asked::Vm => return asked_of_vm(&site.stack),
        Asked::Carriers { .. } => return asked_for_carrier(&site.stack.frames),
    }
    let mut attribution = by_stack(&site.stack, 1);
    let Some(found) = carrier_evidence(carriers) else {
        return attribution;
    };
    // One carrier amid much else is what is left in a block that libc handed out again.
    let decides = matches!(found, Evidence::Carriers { bytes, .. } if bytes >= site.outstanding_bytes() / 2);
    if attribution.class != Class::Vm && (decides || attribution.class == Class::Unknown) {
        attribution.class = Class::Vm;
        attribution.via = None;
    }
    attribution.evidence.insert(0, found);
    attribution
}

/// Whether the frame lies in a library that allocates for others: libc, the runtime of C++, an allocator.
pub fn is_wrapper(frame: &Frame) -> bool {
    wrapper::is_in_wrapper_library(frame)
}

fn carrier_evidence(carriers: &[&CarrierSeen]) -> Option<Evidence> {
    let mut by_allocator: BTreeMap<&str, u64> = BTreeMap::new();
    for carrier in carriers {
        let sum = by_allocator.entry(&carrier.allocator).or_default();
        *sum = sum.saturating_add(carrier.bytes);
    }
    let bytes = by_allocator.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    let mut allocators: Vec<_> = by_allocator.into_iter().collect();
    // Stable: those of the same size stay sorted by name.
    allocators.sort_by_key(|(_, bytes)| Reverse(*bytes));
    let allocators = allocators.into_iter().map(|(allocator, _)| allocator.to_owned()).collect();
    (!carriers.is_empty()).then_some(Evidence::Carriers { count: carriers.len(), bytes, allocators })
}

/// What the allocator was asked by: the first named function of native code behind the last one of the allocators'. Those
/// between two of these have no names where the VM does not export them.
fn asked_for_carrier(frames: &[Frame]) -> Attribution {
    let is_allocator = |frame: &Frame| frame.function.as_deref().is_some_and(code::is_allocator_function);
    let last = frames.iter().rposition(is_allocator);
    let mut behind = frames.iter().enumerate().skip(last.map_or(1, |last| last.saturating_add(1)));
    let named = behind.find(|(_, frame)| native_module(frame).is_some() && frame.function.is_some());
    Attribution {
        class: Class::Vm,
        responsible: named.map(|(index, _)| index).or(last),
        via: None,
        evidence: last.map(Evidence::AllocatorFunction).into_iter().collect(),
    }
}

/// Who called a function of the VM's: the first frame that lies in no file of the VM's and is no wrapper.
fn asked_of_vm(stack: &Stack) -> Attribution {
    let native = stack
        .frames
        .iter()
        .enumerate()
        .skip(1)
        .filter_map(|(index, frame)| Some((index, frame, native_module(frame)?)));
    let mut outside = native.filter(|(_, frame, module)| !code::is_emulator(module) && !is_wrapper(frame)).peekable();
    let Some((first, _, library)) = outside.peek().copied() else { return by_stack(stack, 1) };
    let inside = outside.take_while(|(_, _, module)| *module == library);
    let responsible =
        inside.filter(|(_, frame, _)| !wrapper::is_wrapper_function(frame)).map(|(index, ..)| index).next();
    Attribution {
        class: Class::Native { library: library.into() },
        responsible: responsible.or(Some(first)),
        via: nif_below(&stack.frames, first).filter(|via| *via != library).map(Into::into),
        evidence: vec![Evidence::Frame(first)],
    }
}

/// Whose doing it was that memory was touched at `stack`: that of Erlang code as well, which asks for no memory by itself.
pub fn attribute_touch(stack: &Stack) -> Attribution {
    let frames = &stack.frames;
    let attribution = by_stack(stack, 0);
    let nameless = attribution.evidence.iter().find_map(|evidence| match evidence {
        Evidence::NamelessCode(index) => Some(*index),
        _ => None,
    });
    match nameless.and_then(|index| frames.get(index)).map(|frame| frame.kind) {
        Some(FrameKind::Erlang | FrameKind::Jit) => {
            Attribution { class: Class::Vm, responsible: nameless, ..attribution }
        }
        _ if attribution.class == Class::Vm => {
            // Behind its allocators, or else the first that the VM exports.
            let behind = asked_for_carrier(frames);
            let named = if behind.evidence.is_empty() { first_named(frames) } else { behind.responsible };
            Attribution { responsible: named.or(attribution.responsible), ..attribution }
        }
        _ => attribution,
    }
}

fn first_named(frames: &[Frame]) -> Option<usize> {
    frames.iter().position(|frame| native_module(frame).is_some_and(code::is_emulator) && frame.function.is_some())
}

/// By the first frame that is more than a way to allocate. The first `own` frames are the allocation function, wherever it
/// lies.
fn by_stack(stack: &Stack, own: usize) -> Attribution {
    let frames = &stack.frames;
    let first = frames.iter().enumerate().skip(own).find(|(_, frame)| !is_wrapper(frame));
    let Some((index, frame)) = first else {
        return without_caller(stack);
    };
    let Some(library) = native_module(frame) else {
        return unknown(Evidence::NamelessCode(index));
    };
    if code::is_emulator(library) {
        return of_the_vm(frames, index);
    }
    let inside = frames.iter().enumerate().skip(index).take_while(|(_, frame)| native_module(frame) == Some(library));
    let responsible = inside.filter(|(_, frame)| !wrapper::is_wrapper_function(frame)).map(|(at, _)| at).next();
    Attribution {
        class: Class::Native { library: library.into() },
        responsible: responsible.or(Some(index)),
        via: nif_below(frames, index).filter(|via| *via != library).map(Into::into),
        evidence: vec![Evidence::Frame(index)],
    }
}

/// A thread that is wholly inside the C library and the like has asked for its own.
fn without_caller(stack: &Stack) -> Attribution {
    let last = stack.frames.iter().enumerate().skip(1).next_back();
    let library = last.and_then(|(index, frame)| Some((index, native_module(frame)?)));
    match library {
        Some((index, library)) if stack.end == StackEnd::Root => Attribution {
            class: Class::Native { library: library.into() },
            responsible: Some(index),
            via: None,
            evidence: vec![Evidence::StackEnds(stack.end)],
        },
        _ => unknown(Evidence::StackEnds(stack.end)),
    }
}

fn of_the_vm(frames: &[Frame], index: usize) -> Attribution {
    let is_allocator = |frame: &Frame| {
        native_module(frame).is_some_and(code::is_emulator)
            && frame.function.as_deref().is_some_and(code::is_allocator_function)
    };
    let mut past = frames.iter().enumerate().skip(index).filter(|(_, frame)| !is_allocator(frame));
    // Behind the VM's allocators a NIF may stand that has called them.
    let responsible = past.next().filter(|(_, frame)| native_module(frame).is_some()).map(|(at, _)| at);
    let allocator = frames.iter().enumerate().skip(index).find(|(_, frame)| is_allocator(frame));
    let allocator = allocator.map(|(at, _)| Evidence::AllocatorFunction(at));
    Attribution {
        class: Class::Vm,
        responsible: responsible.or(Some(index)),
        via: None,
        evidence: allocator.into_iter().chain([Evidence::Frame(index)]).collect(),
    }
}

/// The last native file on the way from frame `from` to the VM, and so the one that the VM has loaded.
fn nif_below(frames: &[Frame], from: usize) -> Option<&str> {
    let modules = frames.iter().skip(from).filter(|frame| !is_wrapper(frame)).map(native_module);
    let mut modules = modules.map_while(|module| module.filter(|module| !code::is_emulator(module))).peekable();
    modules.peek()?;
    modules.last()
}

fn native_module(frame: &Frame) -> Option<&str> {
    frame.module.as_deref().filter(|module| frame.kind == FrameKind::Native && !module.is_empty())
}

fn unknown(evidence: Evidence) -> Attribution {
    Attribution { class: Class::Unknown, responsible: None, via: None, evidence: vec![evidence] }
}

#[cfg(test)]
mod tests;
