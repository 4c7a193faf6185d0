//! Which answers were given to which truths?

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// A line that the tests write: what came of a scenario.
#[derive(Debug, Deserialize)]
pub(super) struct Run {
    pub(super) scenario: String,
    answers: Vec<Answer>,
    wrong: Vec<String>,
}

/// What was answered to a question.
#[derive(Debug, Deserialize)]
struct Answer {
    id: String,
    /// The answers that are right.
    truth: Vec<String>,
    #[serde(rename = "answer")]
    given: String,
}

impl Run {
    pub(super) fn is_right(&self) -> bool {
        self.wrong.is_empty()
    }
}

const ANSWERS: [&str; 3] = ["confirmed", "ruled_out", "inconclusive"];

/// A line for each scenario: how often it was judged right, and what was wrong.
pub(super) fn scenarios(runs: &[Run]) -> String {
    let names: BTreeSet<&str> = runs.iter().map(|run| run.scenario.as_str()).collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let line = |name: &str| {
        let of_it: Vec<&Run> = runs.iter().filter(|run| run.scenario == name).collect();
        let right = of_it.iter().filter(|run| run.is_right()).count();
        // What was found wrong begins with a line that says it; the rest is what there is to see of it.
        let firsts = of_it.iter().flat_map(|run| &run.wrong).filter_map(|wrong| wrong.lines().next());
        let wrong: Vec<&str> = firsts.collect::<BTreeSet<_>>().into_iter().collect();
        format!("{name:width$}  {right} of {} right  {}", of_it.len(), wrong.join("; ")).trim_end().to_owned() + "\n"
    };
    names.iter().map(|name| line(name)).collect()
}

/// A line for each question and each truth of it, a column for each answer.
pub(super) fn table(runs: &[Run]) -> String {
    let mut counts: BTreeMap<(&str, String), BTreeMap<&str, u32>> = BTreeMap::new();
    for answer in runs.iter().flat_map(|run| &run.answers) {
        let row = counts.entry((&answer.id, answer.truth.join(" or "))).or_default();
        *row.entry(&answer.given).or_default() += 1;
    }
    let given = counts.values().flat_map(BTreeMap::keys).copied();
    let others: BTreeSet<&str> = given.filter(|answer| !ANSWERS.contains(answer)).collect();
    let columns: Vec<&str> = ANSWERS.into_iter().chain(others).collect();
    let line = |first: &str, truth: &str, cells: Vec<String>| {
        let cells = cells.iter().map(|cell| format!("  {cell:>12}")).collect::<Vec<_>>().concat();
        format!("{first:14}  {truth:26}{cells}\n")
    };
    let head = line("question", "truth", columns.iter().map(|&column| column.to_owned()).collect());
    let rows = counts.iter().map(|((id, truth), row)| {
        line(id, truth, columns.iter().map(|column| row.get(column).map_or("-".to_owned(), u32::to_string)).collect())
    });
    [head].into_iter().chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(scenario: &str, truth: &[&str], answer: &str, wrong: &[&str]) -> Run {
        let all = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let answer = Answer { id: "native_leak".to_owned(), truth: all(truth), given: answer.to_owned() };
        Run { scenario: scenario.to_owned(), answers: vec![answer], wrong: all(wrong) }
    }

    fn runs() -> Vec<Run> {
        vec![
            run("malloc", &["confirmed"], "confirmed", &[]),
            run("malloc", &["confirmed"], "inconclusive", &["native_leak: is inconclusive\n{}"]),
            run("idle", &["ruled_out"], "ruled_out", &[]),
            run("killed", &["ruled_out", "inconclusive"], "none", &["not judged: it panicked"]),
        ]
    }

    #[test]
    fn each_scenario_says_how_often_it_was_right() {
        let expected = "idle    1 of 1 right\n\
                        killed  0 of 1 right  not judged: it panicked\n\
                        malloc  1 of 2 right  native_leak: is inconclusive\n";
        assert_eq!(scenarios(&runs()), expected);
    }

    #[test]
    fn each_truth_has_a_line_and_each_answer_a_column() {
        let cells: Vec<Vec<String>> =
            table(&runs()).lines().map(|line| line.split("  ").map(str::trim).map(str::to_owned).collect()).collect();
        let cells: Vec<Vec<&str>> = cells
            .iter()
            .map(|line| line.iter().map(String::as_str).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(
            cells,
            [
                ["question", "truth", "confirmed", "ruled_out", "inconclusive", "none"],
                ["native_leak", "confirmed", "1", "-", "1", "-"],
                ["native_leak", "ruled_out", "-", "1", "-", "-"],
                ["native_leak", "ruled_out or inconclusive", "-", "-", "-", "1"],
            ]
        );
    }

    #[test]
    fn a_line_of_the_tests_is_read() {
        let line =
            r#"{"answers":[{"answer":"confirmed","id":"limits","truth":["ruled_out"]}],"scenario":"a","wrong":["x"]}"#;
        let run: Run = serde_json::from_str(line).expect("a run");
        assert!(!run.is_right());
    }
}
