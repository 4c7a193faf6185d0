//! Memory of the VM that grows, by class.

use super::{QUIET, Scenario, Truth};

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "processes",
        before: &["leak process 1864 40 50"],
        truth: &[("vm_growth", Truth::Yes("processes"))],
        ..QUIET
    },
    Scenario {
        name: "heaps",
        before: &["leak heap 16000 4 50"],
        truth: &[("vm_growth", Truth::Yes("processes"))],
        ..QUIET
    },
    Scenario { name: "messages", before: &["leak message 1600 40 50"], truth: &[("vm_growth", MESSAGES)], ..QUIET },
    Scenario {
        name: "binaries",
        before: &["leak binary 1000 80 50"],
        truth: &[("vm_growth", Truth::Yes("binaries"))],
        ..QUIET
    },
    Scenario { name: "table", before: &["leak ets 1000 60 50"], truth: &[("vm_growth", Truth::Yes("ets"))], ..QUIET },
    Scenario {
        name: "atoms",
        before: &["leak atom 250 200 50"],
        truth: &[("vm_growth", Truth::Yes("atoms"))],
        ..QUIET
    },
    Scenario { name: "code", before: &["leak code 1 1 20"], truth: &[("vm_growth", Truth::Yes("code"))], ..QUIET },
    Scenario { name: "ports", before: &["leak port 1 60 50"], truth: &[("vm_growth", Truth::Yes("ports"))], ..QUIET },
];

const MESSAGES: Truth = Truth::Yes("messages");
