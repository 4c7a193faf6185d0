//! Which module's code is at an address now, or was there last?

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::symfile::Module;
use crate::mapping::Address;

/// Code as close together as this is one range: allocators of code leave holes where it was purged.
const HOLE: u64 = 1 << 20;

/// Modules by the addresses that they are the last to have taken.
#[derive(Debug, Default)]
pub(super) struct Cover(BTreeMap<u64, Piece>);

#[derive(Debug)]
struct Piece {
    end: u64,
    module: Arc<Module>,
}

impl Cover {
    /// Puts `module` over all that is there. What it hides fully is forgotten.
    pub(super) fn put(&mut self, module: Module) {
        let Range { start, end } = module.range();
        if start >= end {
            return;
        }
        let below = self.0.range(..end).rev().take_while(|(_, piece)| piece.end > start);
        let hidden: Vec<u64> = below.map(|(start, _)| *start).collect();
        for at in hidden {
            let Some(piece) = self.0.remove(&at) else { continue };
            if end < piece.end {
                self.0.insert(end, Piece { end: piece.end, module: Arc::clone(&piece.module) });
            }
            if at < start {
                self.0.insert(at, Piece { end: start, module: piece.module });
            }
        }
        self.0.insert(start, Piece { end, module: Arc::new(module) });
    }

    pub(super) fn at(&self, address: Address) -> Option<&Module> {
        let (_, piece) = self.0.range(..=address.0).next_back()?;
        (address.0 < piece.end).then_some(&*piece.module)
    }

    /// Each module once, unless others have cut it.
    pub(super) fn modules(&self) -> impl Iterator<Item = &Module> {
        let of = |piece: &Piece| Arc::as_ptr(&piece.module);
        let mut last = None;
        self.0.values().filter(move |piece| last.replace(of(piece)) != Some(of(piece))).map(|piece| &*piece.module)
    }

    /// The ranges of all code, neighbours joined.
    pub(super) fn ranges(&self) -> Vec<Range<Address>> {
        let mut ranges: Vec<Range<Address>> = Vec::new();
        for (start, piece) in &self.0 {
            match ranges.last_mut() {
                Some(last) if start.saturating_sub(last.end.0) <= HOLE => last.end = Address(piece.end),
                _ => ranges.push(Address(*start)..Address(piece.end)),
            }
        }
        ranges
    }
}
