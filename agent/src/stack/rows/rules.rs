//! Which rules are there, each once?

use std::collections::HashMap;

use beamscope_probe::Rule;

/// The rules of all files of a process.
#[derive(Debug)]
pub struct Rules {
    indices: HashMap<Rule, u32>,
    list: Vec<Rule>,
    refused: u64,
}

impl Rules {
    /// Rules that are kept at most. Those of a node with its libraries are some hundreds.
    pub const LIMIT: usize = 32768;
    /// Index of [`Rule::GAP`].
    pub const GAP: u32 = 0;
    /// Index of [`Rule::UNSUPPORTED`].
    pub const UNSUPPORTED: u32 = 1;

    /// Index of `rule`; of [`Rule::UNSUPPORTED`] where there is no room for it.
    pub fn intern(&mut self, rule: Rule) -> u32 {
        if let Some(index) = self.indices.get(&rule) {
            return *index;
        }
        let Some(next) = u32::try_from(self.list.len()).ok().filter(|_| self.list.len() < Self::LIMIT) else {
            self.refused = self.refused.saturating_add(1);
            return Self::UNSUPPORTED;
        };
        self.indices.insert(rule, next);
        self.list.push(rule);
        next
    }

    /// All rules, by index.
    pub fn list(&self) -> &[Rule] {
        &self.list
    }

    /// How often there was no room for a rule.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

impl Default for Rules {
    fn default() -> Self {
        let list = vec![Rule::GAP, Rule::UNSUPPORTED];
        let indices = HashMap::from([(Rule::GAP, Self::GAP), (Rule::UNSUPPORTED, Self::UNSUPPORTED)]);
        Self { indices, list, refused: 0 }
    }
}

#[cfg(test)]
mod tests {
    use beamscope_probe::RuleKind;

    use super::*;

    fn rule(cfa_offset: i32) -> Rule {
        Rule { kind: RuleKind::StackPointer as u32, cfa_offset, return_address: -8, ..Rule::GAP }
    }

    #[test]
    fn each_rule_is_kept_once() {
        let mut rules = Rules::default();
        assert_eq!(rules.intern(Rule::GAP), Rules::GAP);
        assert_eq!(rules.intern(Rule::UNSUPPORTED), Rules::UNSUPPORTED);
        assert_eq!([8, 16, 8].map(|offset| rules.intern(rule(offset))), [2, 3, 2]);
        assert_eq!(rules.list(), [Rule::GAP, Rule::UNSUPPORTED, rule(8), rule(16)]);
    }

    #[test]
    fn what_finds_no_room_is_unsupported_and_counted() {
        let mut rules = Rules::default();
        for offset in 0..40_000 {
            rules.intern(rule(offset));
        }
        assert_eq!(rules.list().len(), Rules::LIMIT);
        assert_eq!(rules.refused(), 40_000 + 2 - 32_768);
        assert_eq!(rules.intern(rule(39_999)), Rules::UNSUPPORTED);
        assert_eq!(rules.intern(rule(0)), 2);
    }
}
