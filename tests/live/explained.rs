//! Runs the built `beamscope explain` and finds figures in its answer.

use std::{path::Path, process::Output};

use serde_json::Value;

use crate::agent::{beamscope, run};

/// The three kinds of carriers, as the VM and the report name them.
pub(crate) const KINDS: [&str; 3] = ["mbcs", "sbcs", "mbcs_pool"];

/// A report of `beamscope explain`.
#[derive(Debug, PartialEq)]
pub(crate) struct Explained(pub(crate) Value);

impl Explained {
    /// Of a living process.
    pub(crate) fn process(pid: u32) -> Self {
        Self::parsed(&run(&["explain", &pid.to_string(), "--format", "json"]))
    }

    /// Of a living process, at this depth.
    pub(crate) fn at_depth(pid: u32, depth: &str) -> Self {
        Self::parsed(&run(&["explain", &pid.to_string(), "--format", "json", "--depth", depth]))
    }

    /// Of a living process, whose image is written as well.
    pub(crate) fn saving(pid: u32, image: &Path) -> Self {
        Self::parsed(&run(&[
            "explain",
            &pid.to_string(),
            "--format",
            "json",
            "--force",
            "--save-image",
            &image.to_string_lossy(),
        ]))
    }

    /// Of an image, by a process that knows nothing of where it runs.
    pub(crate) fn image(image: &Path) -> Self {
        let output = beamscope().args(["explain", "--format", "json"]).arg(image).env_clear().output();
        Self::parsed(&output.expect("beamscope runs"))
    }

    fn parsed(output: &Output) -> Self {
        assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        Self(serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// A whole number by its path.
    pub(crate) fn number(&self, pointer: &str) -> u64 {
        number(&self.0, pointer)
    }

    /// A share or a rate by its path.
    pub(crate) fn share(&self, pointer: &str) -> f64 {
        let value = self.0.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("no number at {pointer}: {}", self.0))
    }

    /// The objects of a list by its path.
    pub(crate) fn list(&self, pointer: &str) -> &[Value] {
        let list = self.0.pointer(pointer).and_then(Value::as_array);
        list.unwrap_or_else(|| panic!("no list at {pointer}: {}", self.0))
    }

    pub(crate) fn allocators(&self) -> &[Value] {
        self.list("/allocators")
    }

    pub(crate) fn allocator(&self, name: &str, instance: u64) -> &Value {
        entry(self.allocators(), name, instance)
    }

    /// Sum of a figure of all kinds of carriers of all instances, in `counters` or in `walked`.
    pub(crate) fn sum(&self, from: &str, figure: &str) -> u64 {
        let of = |allocator| KINDS.iter().map(move |kind| number(allocator, &format!("/{from}/{kind}/{figure}")));
        self.allocators().iter().flat_map(of).sum()
    }
}

/// The object of an allocator instance in a list of such.
pub(crate) fn entry<'a>(list: &'a [Value], name: &str, instance: u64) -> &'a Value {
    let found = list.iter().find(|entry| entry["allocator"] == name && entry["instance"] == instance);
    found.unwrap_or_else(|| panic!("no {name} {instance} in {list:?}"))
}

/// A whole number of an object by its path.
pub(crate) fn number(value: &Value, pointer: &str) -> u64 {
    let found = value.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no whole number at {pointer}: {value:#}"))
}
