//! From which address on does which rule hold, in one table and in two together?

use std::{collections::BTreeMap, ops::Range};

use beamscope_probe::Architecture;
use gimli::{BaseAddresses, UnwindContext, UnwindOffset, UnwindSection};

use super::{Cause, Rules, translate::Translator};
use crate::stack::cfi::{self, Bytes, Function};

/// From `address` of the file on, the rule of index `rule` holds.
///
/// Lists of steps rise by address, no two neighbours have the same rule, they begin with another rule than a gap, and end
/// with a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) address: u64,
    pub(super) rule: u32,
}

/// Appends a step to a list whose last address is not above it. A step at the same address is replaced.
pub(super) fn push(steps: &mut Vec<Step>, step: Step) {
    if steps.last().is_some_and(|last| last.address >= step.address) {
        steps.pop();
    }
    if steps.last().map_or(Rules::GAP, |last| last.rule) != step.rule {
        steps.push(step);
    }
}

/// `upper`, and `lower` where `upper` has gaps.
pub(super) fn overlay(upper: &[Step], lower: &[Step]) -> Vec<Step> {
    if lower.is_empty() {
        return upper.to_vec();
    }
    let mut steps = Vec::with_capacity(upper.len().saturating_add(lower.len()));
    let (mut uppers, mut lowers) = (upper.iter().peekable(), lower.iter().peekable());
    let (mut above, mut below) = (Rules::GAP, Rules::GAP);
    loop {
        let heads = [uppers.peek(), lowers.peek()];
        let Some(address) = heads.into_iter().flatten().map(|step| step.address).min() else { break };
        if let Some(step) = uppers.next_if(|step| step.address == address) {
            above = step.rule;
        }
        if let Some(step) = lowers.next_if(|step| step.address == address) {
            below = step.rule;
        }
        push(&mut steps, Step { address, rule: if above == Rules::GAP { below } else { above } });
    }
    steps
}

/// A function of a table: its addresses, and which of the steps are its own.
#[derive(Debug)]
struct Extent {
    addresses: Range<u64>,
    steps: Range<usize>,
}

/// Evaluates tables.
pub(super) struct Builder<'b> {
    architecture: Architecture,
    bases: &'b BaseAddresses,
    rules: &'b mut Rules,
    context: UnwindContext<usize>,
    pub(super) causes: BTreeMap<Cause, u64>,
}

impl<'b> Builder<'b> {
    pub(super) fn new(architecture: Architecture, bases: &'b BaseAddresses, rules: &'b mut Rules) -> Self {
        Self { architecture, bases, rules, context: UnwindContext::new(), causes: BTreeMap::new() }
    }

    /// The steps of a table, of its functions that begin at an address which `is_wanted`.
    pub(super) fn steps<'a, S>(&mut self, table: &S, is_wanted: impl Fn(u64) -> bool) -> Vec<Step>
    where
        S: UnwindSection<Bytes<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let mut evaluated = Vec::new();
        let mut extents = Vec::new();
        cfi::functions(table, self.bases, |function| {
            let start = function.initial_address();
            let end = start.checked_add(function.len()).filter(|&end| end > start && is_wanted(start));
            if let Some(end) = end {
                let first = evaluated.len();
                self.evaluate(table, function, end, &mut evaluated);
                extents.push(Extent { addresses: start..end, steps: first..evaluated.len() });
            }
        });
        // Where two begin at the same address, the first of the table holds.
        extents.sort_by_key(|extent| extent.addresses.start);
        extents.dedup_by_key(|extent| extent.addresses.start);
        join(&extents, &evaluated)
    }

    /// Appends the steps of one function, which are not merged yet.
    fn evaluate<'a, S>(&mut self, table: &S, function: &Function<'a>, end: u64, steps: &mut Vec<Step>)
    where
        S: UnwindSection<Bytes<'a>>,
        S::Offset: UnwindOffset<usize>,
    {
        let translator = Translator::new(self.architecture, table, function);
        let mut at = function.initial_address();
        let Ok(mut rows) = function.rows(table, self.bases, &mut self.context) else {
            count(&mut self.causes, Cause::Broken);
            steps.push(Step { address: at, rule: Rules::UNSUPPORTED });
            return;
        };
        loop {
            let row = match rows.next_row() {
                Ok(Some(row)) => row,
                Ok(None) => return,
                Err(_broken) => {
                    // What follows is unknown up to the function's end.
                    count(&mut self.causes, Cause::Broken);
                    steps.push(Step { address: at, rule: Rules::UNSUPPORTED });
                    return;
                }
            };
            let next = row.end_address();
            if row.start_address() >= end {
                return;
            }
            if next > row.start_address() {
                let rule = match translator.rule(row) {
                    Ok(rule) => {
                        let refused = self.rules.refused();
                        let index = self.rules.intern(rule);
                        if self.rules.refused() > refused {
                            count(&mut self.causes, Cause::TooManyRules);
                        }
                        index
                    }
                    Err(cause) => {
                        count(&mut self.causes, cause);
                        Rules::UNSUPPORTED
                    }
                };
                steps.push(Step { address: row.start_address(), rule });
            }
            at = next;
        }
    }
}

fn count(causes: &mut BTreeMap<Cause, u64>, cause: Cause) {
    let counted = causes.entry(cause).or_default();
    *counted = counted.saturating_add(1);
}

/// Puts functions one behind the other. Where the next begins inside one, that one ends: a look-up finds the function
/// that begins last.
fn join(extents: &[Extent], evaluated: &[Step]) -> Vec<Step> {
    let mut steps = Vec::with_capacity(evaluated.len());
    for (index, Extent { addresses, steps: own }) in extents.iter().enumerate() {
        let next = index.checked_add(1).and_then(|next| extents.get(next)).map(|next| next.addresses.start);
        let end = next.map_or(addresses.end, |next| next.min(addresses.end));
        for step in evaluated.get(own.clone()).unwrap_or_default().iter().filter(|step| step.address < end) {
            push(&mut steps, *step);
        }
        push(&mut steps, Step { address: end, rule: Rules::GAP });
    }
    steps
}
