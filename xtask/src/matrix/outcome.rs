//! What came of each test on each release, and how is it shown?

use serde::Serialize;

/// One release.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// The suite, or this machine.
    pub(super) release: String,
    /// The release of OTP as it says itself; none where it could not be run.
    pub(super) otp: Option<String>,
    /// Why it could not be run.
    pub(super) not_run: Option<String>,
    pub(super) cells: Vec<Cell>,
}

/// One test on one release.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Cell {
    pub(super) test: String,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    Pass,
    Fail,
    /// It was not asked for: `--full` does.
    NotAsked,
    /// The suite ended before it.
    NotReached,
}

impl Row {
    /// Whether all that was asked for was run and passed.
    pub(super) fn is_well(&self) -> bool {
        let well = |cell: &Cell| matches!(cell.outcome, Outcome::Pass | Outcome::NotAsked);
        self.not_run.is_none() && self.cells.iter().all(well)
    }
}

/// The outcome of each of `tests` by the lines that the test harness printed.
pub(super) fn cells(tests: &[String], lines: &[String]) -> Vec<Cell> {
    let outcome = |test: &String| {
        let begin = format!("test {test} ... ");
        match lines.iter().find_map(|line| line.strip_prefix(&begin)) {
            Some("ok") => Outcome::Pass,
            Some(word) if word.starts_with("ignored") => Outcome::NotAsked,
            // What a test prints past the harness stands between its name and the word for its outcome.
            Some(_) => Outcome::Fail,
            None => Outcome::NotReached,
        }
    };
    tests.iter().map(|test| Cell { test: test.clone(), outcome: outcome(test) }).collect()
}

/// A line for each test, a column for each release; below it, why a release could not be run.
pub(super) fn table(rows: &[Row]) -> String {
    const WIDTH: usize = 16;
    let tests = rows.iter().map(|row| &row.cells).max_by_key(|cells| cells.len());
    let names: Vec<&str> = tests.into_iter().flatten().map(|cell| cell.test.as_str()).collect();
    let first = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut lines = vec![line(first, WIDTH, "", rows.iter().map(|row| row.release.clone()))];
    let otp = |row: &Row| row.otp.as_ref().map_or("-".to_owned(), |otp| format!("OTP {otp}"));
    lines.push(line(first, WIDTH, "", rows.iter().map(otp)));
    for name in names {
        let word = |row: &Row| {
            let cell = row.cells.iter().find(|cell| cell.test == name);
            cell.map_or("not run", |cell| cell.outcome.word()).to_owned()
        };
        lines.push(line(first, WIDTH, name, rows.iter().map(word)));
    }
    let reasons =
        rows.iter().filter_map(|row| Some(format!("{} was not run: {}\n", row.release, row.not_run.as_ref()?)));
    lines.into_iter().chain(reasons).collect()
}

fn line(first: usize, width: usize, name: &str, words: impl Iterator<Item = String>) -> String {
    let words = words.map(|word| format!("  {word:width$}")).collect::<Vec<_>>().concat();
    format!("{}\n", format!("{name:first$}{words}").trim_end())
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotAsked | Self::NotReached => "not run",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(release: &str, lines: &[&str]) -> Row {
        let tests = ["explain::idle", "explain::mixed", "explain::large", "explain::last"].map(str::to_owned);
        let lines: Vec<_> = lines.iter().map(|&line| line.to_owned()).collect();
        let otp = Some("27".to_owned());
        Row { release: release.to_owned(), otp, not_run: None, cells: cells(&tests, &lines) }
    }

    fn outcomes(row: &Row) -> Vec<Outcome> {
        row.cells.iter().map(|cell| cell.outcome).collect()
    }

    #[test]
    fn each_test_has_the_outcome_of_its_line() {
        let row = row(
            "trixie",
            &[
                "running 4 tests",
                "test explain::idle ... ok",
                "test explain::mixed ... FAILED",
                "test explain::large ... ignored, large",
            ],
        );
        assert_eq!(outcomes(&row), [Outcome::Pass, Outcome::Fail, Outcome::NotAsked, Outcome::NotReached]);
        assert!(!row.is_well());
    }

    #[test]
    fn a_word_that_is_no_outcome_is_no_success() {
        let row = row("trixie", &["test explain::idle ... okay", "test explain::mixed ... something: ok"]);
        assert_eq!(outcomes(&row)[..2], [Outcome::Fail, Outcome::Fail]);
    }

    #[test]
    fn a_suite_that_died_is_not_well() {
        assert!(!row("trixie", &["test explain::idle ... ok"]).is_well());
    }

    #[test]
    fn a_release_that_is_missing_is_shown_and_is_not_well() {
        let passed = row("trixie", &["test explain::idle ... ok"]);
        let missing = Row {
            release: "sid".to_owned(),
            otp: None,
            not_run: Some("no such package".to_owned()),
            cells: Vec::new(),
        };
        assert!(!missing.is_well());
        let expected = "                trixie            sid\n\
                        \x20               OTP 27            -\n\
                        explain::idle   pass              not run\n\
                        explain::mixed  not run           not run\n\
                        explain::large  not run           not run\n\
                        explain::last   not run           not run\n\
                        sid was not run: no such package\n";
        assert_eq!(table(&[passed, missing]), expected);
    }
}
