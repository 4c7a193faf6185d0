//! Which answers is somebody waiting for? What `--fail-on` names.

use super::{Answer, Verdict, VerdictId};

/// A verdict that counts when it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Condition {
    /// The question. `None`: any of them.
    pub id: Option<VerdictId>,
    /// What its figure must pass. `None`: that it is confirmed is enough.
    pub above: Option<Bound>,
}

/// What a figure of a verdict must pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Bytes per second of growth. A growth that is not known does not pass it.
    Rate(f64),
    /// Bytes.
    Size(u64),
}

impl Condition {
    /// Whether `verdict` is what is waited for.
    pub fn holds(&self, verdict: &Verdict) -> bool {
        let above = match self.above {
            None => true,
            Some(Bound::Rate(rate)) => verdict.growth_per_second.is_some_and(|growth| growth > rate),
            Some(Bound::Size(bytes)) => verdict.bytes > bytes,
        };
        verdict.answer == Answer::Confirmed && self.id.is_none_or(|id| id == verdict.id) && above
    }
}

impl VerdictId {
    /// Whether the question is how fast something grows, and not how large it is.
    pub const fn is_of_growth(self) -> bool {
        match self {
            Self::NativeLeak | Self::NifLeak | Self::VmGrowth => true,
            Self::Fragmentation | Self::LibcRetention | Self::Reclaimable | Self::Limits => false,
        }
    }

    /// The question with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|id| id.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROWING: f64 = 2000.0;

    fn verdict(id: VerdictId, answer: Answer) -> Verdict {
        Verdict { answer, bytes: 5000, growth_per_second: id.is_of_growth().then_some(GROWING), ..Verdict::open(id) }
    }

    fn condition(id: impl Into<Option<VerdictId>>, above: impl Into<Option<Bound>>) -> Condition {
        Condition { id: id.into(), above: above.into() }
    }

    #[test]
    fn only_what_is_confirmed_counts() {
        for id in VerdictId::ALL {
            for of in [condition(None, None), condition(id, None)] {
                assert!(of.holds(&verdict(id, Answer::Confirmed)), "{of:?}");
                assert!(!of.holds(&verdict(id, Answer::RuledOut)), "{of:?}");
                assert!(!of.holds(&verdict(id, Answer::Inconclusive)), "{of:?}");
            }
            let others = VerdictId::ALL.into_iter().filter(|other| *other != id);
            assert_eq!(
                others.filter(|other| condition(*other, None).holds(&verdict(id, Answer::Confirmed))).count(),
                0
            );
        }
    }

    #[test]
    fn a_bound_must_be_passed_and_not_only_met() {
        let leak = verdict(VerdictId::NativeLeak, Answer::Confirmed);
        let holds = |bound| condition(VerdictId::NativeLeak, bound).holds(&leak);
        assert!(holds(Bound::Rate(GROWING - 1.0)) && !holds(Bound::Rate(GROWING)));
        assert!(holds(Bound::Size(4999)) && !holds(Bound::Size(5000)));
        let unknown = Verdict { growth_per_second: None, ..leak };
        assert!(!condition(VerdictId::NativeLeak, Bound::Rate(0.0)).holds(&unknown));
    }

    #[test]
    fn every_question_has_a_name_of_its_own() {
        for id in VerdictId::ALL {
            assert_eq!(VerdictId::of_name(id.name()), Some(id));
        }
        assert_eq!(VerdictId::of_name("any"), None);
    }
}
