//! Stacks by value, each kept once.

use std::{collections::HashMap, sync::Arc};

use crate::stack::raw::RawStack;

/// Number of a stack in [`Stacks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(u32);

/// All stacks that were seen.
#[derive(Debug, Default)]
pub struct Stacks {
    ids: HashMap<Arc<RawStack>, StackId>,
    by_id: Vec<Arc<RawStack>>,
    /// Stacks that found no room.
    pub refused: u64,
}

impl Stacks {
    /// Stacks that are kept at most; each further one is taken for one whose frames are missing.
    const LIMIT: u32 = 1 << 18;

    /// The id of `stack`, and whether it is new.
    pub fn intern(&mut self, stack: RawStack) -> (StackId, bool) {
        if let Some(id) = self.ids.get(&stack) {
            return (*id, false);
        }
        let next = u32::try_from(self.by_id.len()).unwrap_or(u32::MAX);
        if next < Self::LIMIT {
            return (self.add(stack, next), true);
        }
        self.refused += 1;
        let none = RawStack::default();
        match self.ids.get(&none) {
            Some(id) => (*id, false),
            None => (self.add(none, next), true),
        }
    }

    fn add(&mut self, stack: RawStack, number: u32) -> StackId {
        let stack = Arc::new(stack);
        self.ids.insert(Arc::clone(&stack), StackId(number));
        self.by_id.push(stack);
        StackId(number)
    }

    /// The stack of an id.
    pub fn get(&self, id: StackId) -> Option<&RawStack> {
        self.by_id.get(usize::try_from(id.0).ok()?).map(Arc::as_ref)
    }
}
