//! Is every verdict right, on workloads whose truth is known?
//!
//! A scenario is data: what the node is asked to do, and which answer each of the seven questions deserves. `cargo xtask
//! scenarios` runs them many times and counts.

mod balanced;
mod grown;
mod kept;
mod leaked;
mod outcome;
mod run;

use run::run_all;

/// A workload, and the truth about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    name: &'static str,
    /// More arguments for `erl`.
    arguments: &'static [&'static str],
    /// What the node is told before the recording begins.
    before: &'static [&'static str],
    /// What it is told once the recording goes on.
    during: &'static [&'static str],
    /// How long it is recorded.
    seconds: u64,
    /// The node is killed in the midst of the recording.
    killed: bool,
    leak: Option<Leak>,
    /// Answers other than [`Truth::No`].
    truth: &'static [(&'static str, Truth)],
}

/// Bytes that a fixture loses and counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leak {
    /// The question that it is the answer to.
    verdict: &'static str,
    /// Its name in the node's counters.
    counter: &'static str,
    library: &'static str,
    function: &'static str,
    /// `None`: no Erlang function is on the stack.
    mfa: Option<&'static str>,
}

/// The answer that a question deserves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Truth {
    /// `ruled_out`.
    No,
    /// `confirmed`, and this is named in the subject, the summary or the evidence.
    Yes(&'static str),
    /// One of these, for this reason.
    OneOf(&'static [&'static str], &'static str),
}

/// Nothing of it is true of a node that is at rest.
const QUIET: Scenario =
    Scenario { name: "", arguments: &[], before: &[], during: &[], seconds: 7, killed: false, leak: None, truth: &[] };

/// A churn of malloc and free that most nodes with native code have.
const CHURN: &str = "call scenario churn 5000 2048";

#[test]
fn leaks_of_native_code() {
    run_all(leaked::NATIVE);
}

#[test]
fn leaks_through_the_vm() {
    run_all(leaked::THROUGH_VM);
}

#[test]
fn leaks_under_other_conditions() {
    run_all(leaked::CONDITIONS);
}

#[test]
fn memory_that_is_kept_and_not_used() {
    run_all(kept::ALL);
}

#[test]
fn growth_of_the_vm() {
    run_all(grown::ALL);
}

#[test]
fn native_memory_in_balance() {
    run_all(balanced::NATIVE);
}

#[test]
fn memory_of_the_vm_in_balance() {
    run_all(balanced::VM);
}
