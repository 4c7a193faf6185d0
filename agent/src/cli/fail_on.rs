//! Which verdicts make the command fail, and from which figure on? `native_leak>1MiB/min`.

use crate::judge::{Bound, Condition, VerdictId};

/// What stands for all verdicts.
const ANY: &str = "any";

/// Reads one of the conditions of `--fail-on`.
pub(super) fn parse_condition(text: &str) -> Result<Condition, String> {
    let (name, bound) = match text.split_once('>') {
        Some((name, bound)) => (name.trim(), Some(bound.trim())),
        None => (text.trim(), None),
    };
    let id = VerdictId::of_name(name);
    if id.is_none() && name != ANY {
        let names = VerdictId::ALL.map(VerdictId::name).join(", ");
        return Err(format!("there is no verdict {name:?}; expected one of {names}, or {ANY}"));
    }
    let above = match (bound, id) {
        (None, _) => None,
        (Some(_), None) => return Err(format!("{ANY} takes no bound; name the verdict, such as native_leak>1MiB/min")),
        (Some(bound), Some(id)) if id.is_of_growth() => Some(Bound::Rate(parse_rate(bound).ok_or_else(|| {
            format!("{name} is a matter of growth: expected a rate, such as {name}>1MiB/min (or /s, /h)")
        })?)),
        (Some(bound), Some(_)) => Some(Bound::Size(
            super::parse_bytes(bound)
                .map_err(|_unnamed| format!("{name} is a matter of size: expected one, such as {name}>100MiB"))?,
        )),
    };
    Ok(Condition { id, above })
}

/// Bytes per second.
fn parse_rate(text: &str) -> Option<f64> {
    let (bytes, time) = text.split_once('/')?;
    let seconds = match time.trim() {
        "s" => 1.0,
        "min" | "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Some(super::parse_bytes(bytes.trim()).ok()? as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn reads_conditions() {
        let good = [
            ("native_leak", Some(VerdictId::NativeLeak), None),
            ("any", None, None),
            ("native_leak>1MiB/min", Some(VerdictId::NativeLeak), Some(Bound::Rate(1_048_576.0 / 60.0))),
            ("vm_growth > 600/s", Some(VerdictId::VmGrowth), Some(Bound::Rate(600.0))),
            ("nif_leak>36KiB/h", Some(VerdictId::NifLeak), Some(Bound::Rate(10.24))),
            ("fragmentation>512MiB", Some(VerdictId::Fragmentation), Some(Bound::Size(512 << 20))),
        ];
        for (text, id, above) in good {
            assert_eq!(parse_condition(text), Ok(Condition { id, above }), "{text}");
        }
    }

    #[test]
    fn says_what_was_expected() {
        for (text, words) in [
            ("leak", "native_leak, nif_leak, fragmentation"),
            ("", "no verdict \"\""),
            ("any>1MiB/s", "any takes no bound"),
            ("native_leak>1MiB", "native_leak>1MiB/min"),
            ("native_leak>/s", "native_leak>1MiB/min"),
            ("native_leak>1MiB/d", "/h"),
            ("nif_leak>", "nif_leak>1MiB/min"),
            ("limits>1MiB/s", "limits>100MiB"),
            ("limits>-1", "limits>100MiB"),
        ] {
            let error = parse_condition(text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_list_has_commas() {
        let arguments = ["beamscope", "report", "a", "--fail-on", "native_leak>1MiB/min,limits", "--fail-on", "any"];
        let Command::Report(args) = Cli::try_parse_from(arguments).expect("is well formed").command else {
            panic!("another command");
        };
        let expected = ["native_leak>1MiB/min", "limits", "any"].map(parse_condition).map(Result::ok);
        assert_eq!(args.fail_on.into_iter().map(Some).collect::<Vec<_>>(), expected);
    }
}
