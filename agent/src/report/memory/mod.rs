//! What do looks at a node's memory say, to a person and to a program?

mod held;
pub mod json;
pub mod recon;
pub mod text;

use std::collections::BTreeMap;

use crate::{
    explain::model::{Explanation, Tagged},
    recording::Look,
};

/// The last look, and how fast things grew since the first.
#[derive(Clone, Debug)]
pub struct Memory<'a> {
    /// The last look.
    pub explanation: &'a Explanation,
    /// Bytes per second by owner. `None`: there is one look only.
    owners: Option<BTreeMap<String, f64>>,
    tags: BTreeMap<(Option<&'a str>, Option<&'a str>), f64>,
}

impl<'a> Memory<'a> {
    /// One look.
    pub fn once(explanation: &'a Explanation) -> Self {
        Self { explanation, owners: None, tags: BTreeMap::new() }
    }

    /// The last of `looks`, and the growth since the first. `None`: there is no look.
    pub fn of(looks: &'a [Look]) -> Option<Self> {
        let knows = |look: &&Look| look.explanation.knows_owners();
        let Some((first, last)) = looks.iter().find(knows).zip(looks.iter().rfind(knows)) else {
            return Some(Self::once(&looks.last()?.explanation));
        };
        let seconds = last.at - first.at;
        if seconds <= 0.0 {
            return Some(Self::once(&last.explanation));
        }
        let growth = |before: u64, after: u64| (after as f64 - before as f64) / seconds;
        let mut owners: BTreeMap<String, f64> = BTreeMap::new();
        for (look, sign) in [(first, -1.0), (last, 1.0)] {
            for owned in &look.explanation.owners {
                *owners.entry(owned.owner.to_string()).or_default() += sign * owned.bytes as f64 / seconds;
            }
        }
        let key = |tag: &'a Tagged| (tag.origin.as_deref(), tag.kind.as_deref());
        let before: BTreeMap<_, _> = first.explanation.tags.iter().map(|tag| (key(tag), tag.bytes)).collect();
        let tags = &last.explanation.tags;
        let tags = tags.iter().map(|tag| (key(tag), growth(before.get(&key(tag)).copied().unwrap_or(0), tag.bytes)));
        // A look that walked no block has seen no tag.
        let walked = [first, last].iter().all(|look| !look.explanation.tags.is_empty());
        Some(Self {
            explanation: &last.explanation,
            owners: Some(owners),
            tags: if walked { tags.collect() } else { BTreeMap::new() },
        })
    }

    /// Growth of an owner's bytes per second, where there are two looks.
    pub fn growth(&self, owner: &str) -> Option<f64> {
        self.owners.as_ref().map(|owners| owners.get(owner).copied().unwrap_or(0.0))
    }

    /// Growth of the bytes of blocks with a tag, per second.
    pub fn tag_growth(&self, tag: &Tagged) -> Option<f64> {
        self.tags.get(&(tag.origin.as_deref(), tag.kind.as_deref())).copied()
    }

    /// Whether growth is known at all.
    pub fn grows(&self) -> bool {
        self.owners.is_some()
    }
}
