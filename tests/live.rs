//! Suites that run the built command on real processes. They need root, BPF and Erlang, and fail where those are
//! missing: `cargo xtask test` installs what they need.

#[path = "live/agent.rs"]
mod agent;
#[path = "live/agreement.rs"]
mod agreement;
#[path = "live/attach.rs"]
mod attach;
#[path = "live/budget.rs"]
mod budget;
#[path = "live/calls.rs"]
mod calls;
#[path = "live/cases/mod.rs"]
mod cases;
#[path = "live/code_table.rs"]
mod code_table;
#[path = "live/explain.rs"]
mod explain;
#[path = "live/explained.rs"]
mod explained;
#[path = "live/facts.rs"]
mod facts;
#[path = "live/growth.rs"]
mod growth;
#[path = "live/heaps.rs"]
mod heaps;
#[path = "live/leaks.rs"]
mod leaks;
#[path = "live/pattern.rs"]
mod pattern;
#[path = "live/processes.rs"]
mod processes;
#[path = "live/refusals.rs"]
mod refusals;
#[path = "live/scenarios/mod.rs"]
mod scenarios;
#[path = "live/scene.rs"]
mod scene;
#[path = "live/stacks.rs"]
mod stacks;
#[path = "live/subject.rs"]
mod subject;
#[path = "live/view.rs"]
mod view;
#[path = "live/vm_api.rs"]
mod vm_api;
