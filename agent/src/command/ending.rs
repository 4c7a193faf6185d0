//! How does a command end, when nothing went wrong?

use std::process::ExitCode;

use crate::{
    judge::{Condition, Verdict},
    report,
};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has done what was asked.
    Done,
    /// The same, and a verdict that `--fail-on` names was confirmed.
    Confirmed,
}

impl From<Ending> for ExitCode {
    fn from(ending: Ending) -> Self {
        Self::from(match ending {
            Ending::Done => 0,
            Ending::Confirmed => 3,
        })
    }
}

/// Says which of the `verdicts` were waited for. This is no hint: it tells why the command ends as it does.
pub(super) fn ending(conditions: &[Condition], verdicts: &[Verdict]) -> Ending {
    let mut ending = Ending::Done;
    for verdict in verdicts {
        if conditions.iter().any(|condition| condition.holds(verdict)) {
            anstream::eprintln!("--fail-on: {} is confirmed: {}", verdict.id, report::verdict::summary(verdict));
            ending = Ending::Confirmed;
        }
    }
    ending
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        report::verdict::sample,
    };

    fn conditions(text: &str) -> Vec<Condition> {
        let option = (!text.is_empty()).then(|| format!("--fail-on={text}"));
        let arguments = ["beamscope", "report", "a"].map(str::to_owned).into_iter().chain(option);
        match Cli::try_parse_from(arguments).expect("is well formed").command {
            Command::Report(args) => args.fail_on,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_was_named_and_confirmed_changes_the_ending() {
        let verdicts = sample::verdicts();
        for (text, expected) in [
            ("", Ending::Done),
            ("native_leak", Ending::Confirmed),
            ("limits,native_leak>1MiB/s", Ending::Confirmed),
            ("native_leak>1GiB/s", Ending::Done),
            ("fragmentation>95MiB", Ending::Confirmed),
            ("fragmentation>96MiB", Ending::Done),
            ("nif_leak,libc_retention,vm_growth,reclaimable,limits", Ending::Done),
            ("any", Ending::Confirmed),
        ] {
            assert_eq!(ending(&conditions(text), &verdicts), expected, "{text}");
        }
    }

    #[test]
    fn the_exit_code_is_that_of_the_manual() {
        let code = |ending: Ending| format!("{:?}", ExitCode::from(ending));
        assert_eq!(code(Ending::Done), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code(Ending::Confirmed), format!("{:?}", ExitCode::from(3)));
    }
}
