//! How many processes, ports and atoms are there, and how many can there be?

use super::model::{AtomFacts, Explanation, TableFacts};
use crate::{
    erts::{
        alloc::{Depth, Survey, survey::whole},
        process::table::{ElementKind, ElementTable},
    },
    target::memory::ReadMemory,
    view::ProcessView,
};

/// Counts what is in the VM's tables, in a look that goes beyond the VM's own counters.
pub(super) fn count(
    survey: Option<&Survey>,
    view: &ProcessView,
    memory: &(impl ReadMemory + ?Sized),
    explanation: &mut Explanation,
) {
    let Some(survey) = survey.filter(|survey| survey.depth > Depth::Counters) else { return };
    if let Ok(atoms) = &survey.names.atoms {
        explanation.vm.atoms = Some(AtomFacts { used: atoms.entries(), limit: atoms.limit() });
    }
    let mut facts = |kind, what| match ElementTable::find(kind, view, memory) {
        Ok(table) => {
            let used = table.elements(memory, usize::MAX).len() as u64;
            Some(TableFacts { used, limit: table.slots(), table_bytes: table.bytes() })
        }
        Err(error) => {
            explanation.notes.push(format!("how many {what} there are is not known: {}", whole(&error)));
            None
        }
    };
    let (processes, ports) = (facts(ElementKind::Process, "processes"), facts(ElementKind::Port, "ports"));
    explanation.vm.processes = processes;
    explanation.vm.ports = ports;
}
