//! Which function, file and line of compiled code an address lies in.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
};

use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer, source::Process, source::Source};

use crate::{
    mapping::{Address, Backing, Mapping, Mappings},
    stack::{Frame, FrameKind, Stack, raw::RawStack},
};

/// Names that were found for one process. They are looked up while the process lives and kept after it.
pub struct NativeSymbols {
    symbolizer: Symbolizer,
    source: Source<'static>,
    /// By the address that is looked up: the call, not where it returns to.
    known: HashMap<Address, Vec<Frame>>,
    /// Addresses whose file could not be read for symbols.
    pub unreadable: u64,
}

impl std::fmt::Debug for NativeSymbols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NativeSymbols({} addresses)", self.known.len())
    }
}

impl NativeSymbols {
    /// For process `pid`. `through_map_files` says whether `/proc/PID/map_files` can be read.
    pub fn new(pid: u32, through_map_files: bool) -> Self {
        let mut process = Process::new(pid.into());
        // A perf map is a file in a shared folder that anybody could have written.
        process.perf_map = false;
        process.map_files = through_map_files;
        Self {
            symbolizer: Symbolizer::builder().enable_code_info(true).enable_inlined_fns(true).build(),
            source: Source::Process(process),
            known: HashMap::new(),
            unreadable: 0,
        }
    }

    /// Looks up what is new in `stacks`.
    pub fn learn(&mut self, stacks: &[&RawStack], mappings: &Mappings) {
        let new: BTreeSet<Address> = stacks
            .iter()
            .flat_map(|stack| lookups(stack).map(|(_, lookup)| lookup))
            .filter(|lookup| !self.known.contains_key(lookup))
            .collect();
        // One address without a file makes blazesym give up the whole batch, so each mapping is a batch.
        let mut batches: BTreeMap<Address, Vec<Address>> = BTreeMap::new();
        for lookup in new {
            match mappings.find(lookup) {
                Some(mapping) if matches!(mapping.backing, Backing::File(_) | Backing::Kernel(_)) => {
                    batches.entry(mapping.start).or_default().push(lookup);
                }
                mapping => {
                    self.known.insert(lookup, vec![plain_frame(lookup, mapping, mappings)]);
                }
            }
        }
        for (start, lookups) in batches {
            let Some(mapping) = mappings.find(start) else { continue };
            let addresses: Vec<u64> = lookups.iter().map(|lookup| lookup.0).collect();
            let symbols = self.symbolizer.symbolize(&self.source, Input::AbsAddr(&addresses)).unwrap_or_else(|_| {
                self.unreadable += lookups.len() as u64;
                Vec::new()
            });
            let mut symbols = symbols.into_iter();
            for lookup in lookups {
                let frames = match symbols.next() {
                    Some(Symbolized::Sym(symbol)) => symbol_frames(lookup, &symbol, mapping),
                    _ => vec![plain_frame(lookup, Some(mapping), mappings)],
                };
                self.known.insert(lookup, frames);
            }
        }
    }

    /// Forgets the names in `code`, where another file is mapped now.
    pub fn forget(&mut self, code: &Range<u64>) {
        self.known.retain(|address, _| !code.contains(&address.0));
    }

    /// The stack with names, below `leaf`, the allocation function, where there is one. What was never looked up gets its module and offset.
    pub fn name(&self, stack: &RawStack, leaf: Option<Frame>, mappings: &Mappings) -> Stack {
        let mut frames: Vec<Frame> = leaf.into_iter().collect();
        for (address, lookup) in lookups(stack) {
            let plain;
            let known = if let Some(known) = self.known.get(&lookup) {
                known
            } else {
                plain = [plain_frame(lookup, mappings.find(lookup), mappings)];
                plain.as_slice()
            };
            frames.extend(known.iter().map(|frame| Frame { address, ..frame.clone() }));
        }
        Stack { frames, end: stack.end }
    }
}

/// The addresses of a stack, and where to look for them: a return address can be the next function's first.
fn lookups(stack: &RawStack) -> impl Iterator<Item = (Address, Address)> + '_ {
    stack.addresses.iter().enumerate().map(|(depth, address)| {
        let is_return = depth > 0 || stack.leaf_is_return;
        (*address, Address(address.0.saturating_sub(u64::from(is_return))))
    })
}

/// The innermost inlined function first.
fn symbol_frames(lookup: Address, symbol: &Sym<'_>, mapping: &Mapping) -> Vec<Frame> {
    let frame = |name: &str, code: Option<&CodeInfo<'_>>, inlined| Frame {
        address: lookup,
        kind: FrameKind::Native,
        module: module_name(mapping),
        function: Some(name.to_owned()),
        offset: if inlined { None } else { u64::try_from(symbol.offset).ok() },
        file: code.map(|code| code.to_path().to_string_lossy().into_owned()),
        line: code.and_then(|code| code.line),
        inlined,
    };
    let outer = frame(&symbol.name, symbol.code_info.as_deref(), false);
    let inner = symbol.inlined.iter().rev().map(|inner| frame(&inner.name, inner.code_info.as_ref(), true));
    inner.chain([outer]).collect()
}

/// A frame without a symbol: the module, and the offset from its first address in memory.
fn plain_frame(lookup: Address, mapping: Option<&Mapping>, mappings: &Mappings) -> Frame {
    let kind = match mapping {
        None => FrameKind::Unknown,
        Some(mapping) if mapping.is_jit() => FrameKind::Jit,
        Some(_) => FrameKind::Native,
    };
    let base = mapping.and_then(|mapping| {
        mappings.iter().find(|first| first.backing == mapping.backing && matches!(first.backing, Backing::File(_)))
    });
    Frame {
        address: lookup,
        kind,
        module: mapping.and_then(module_name),
        function: None,
        offset: base.map(|base| lookup.0.saturating_sub(base.start.0)),
        file: None,
        line: None,
        inlined: false,
    }
}

fn module_name(mapping: &Mapping) -> Option<String> {
    match &mapping.backing {
        Backing::File(_) => mapping.file_name().map(str::to_owned),
        Backing::Kernel(name) => Some(name.clone()),
        Backing::Memory(_) | Backing::Anonymous | Backing::Heap | Backing::Stack => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{mapping::Permissions, stack::StackEnd};

    fn mapping(start: u64, end: u64, backing: Backing) -> Mapping {
        let permissions = Permissions { read: true, execute: true, ..Permissions::default() };
        Mapping { start: Address(start), end: Address(end), file_offset: 0, permissions, backing }
    }

    #[test]
    fn addresses_without_symbols_get_module_and_offset() {
        let library = || Backing::File("/opt/nif/priv/leaky.so".to_owned());
        let mappings = Mappings::new(vec![
            mapping(0x1000, 0x2000, library()),
            mapping(0x2000, 0x3000, library()),
            mapping(0x9000, 0xa000, Backing::Memory("/memfd:vmem".to_owned())),
        ]);
        let stack = RawStack {
            addresses: vec![Address(0x2011), Address(0x9001), Address(0x5000)],
            end: StackEnd::Jit,
            ..RawStack::default()
        };
        let leaf = plain_frame(Address(0), None, &mappings);
        let named = NativeSymbols::new(1, false).name(&stack, Some(leaf), &mappings);
        let seen: Vec<_> =
            named.frames.iter().skip(1).map(|frame| (frame.kind, frame.module.as_deref(), frame.offset)).collect();
        assert_eq!(
            seen,
            [
                (FrameKind::Native, Some("leaky.so"), Some(0x1010)),
                (FrameKind::Jit, None, None),
                (FrameKind::Unknown, None, None),
            ]
        );
        assert_eq!(named.frames[1].address, Address(0x2011));
    }
}
