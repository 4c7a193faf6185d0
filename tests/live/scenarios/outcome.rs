//! Are the answers of a report those that a scenario deserves?

use std::{any::Any, env, fmt, fs, fs::OpenOptions, io::Write as _, path::Path};

use serde_json::{Value, json};

use super::{Leak, Scenario, Truth};
use crate::agent::Report;

/// The file to which a line of JSON is added for each scenario.
const OUTCOMES: &str = "BEAMSCOPE_SCENARIOS_OUTCOMES";

/// The folder in which recordings are kept, each with its truth.
const KEEP: &str = "BEAMSCOPE_SCENARIOS_KEEP";

/// The questions.
const QUESTIONS: [&str; 7] =
    ["native_leak", "nif_leak", "fragmentation", "libc_retention", "vm_growth", "reclaimable", "limits"];

/// What a fixture counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
}

impl Counted {
    fn rate(self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

/// What came of a scenario.
#[derive(Debug)]
pub(super) struct Outcome {
    name: &'static str,
    answers: Vec<(&'static str, Truth, String)>,
    /// What is wrong, each with what there is to see of it.
    wrong: Vec<String>,
}

impl Outcome {
    pub(super) fn of(scenario: &Scenario, counted: Option<Counted>, report: &Report, file: &Path) -> Self {
        keep(scenario, counted, file);
        let mut wrong = Vec::new();
        let mut answers = Vec::new();
        for id in QUESTIONS {
            let truth = scenario.truth_of(id);
            let verdict = report.0["verdicts"].as_array().and_then(|all| all.iter().find(|one| one["id"] == id));
            let verdict = verdict.cloned().unwrap_or(Value::Null);
            let answer = verdict["answer"].as_str().unwrap_or("none").to_owned();
            if let Some(what) = truth.contradicted_by(&answer, &verdict) {
                wrong.push(format!("{id}: {what}\n{verdict:#}"));
            }
            answers.push((id, truth, answer));
        }
        if let (Some(leak), Some(counted)) = (scenario.leak, counted) {
            wrong.extend(leak.contradicted_by(counted, report));
        }
        Self { name: scenario.name, answers, wrong }
    }

    /// The scenario did not come to its end.
    pub(super) fn not_judged(scenario: &Scenario, cause: &(dyn Any + Send)) -> Self {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        let answers = QUESTIONS.map(|id| (id, scenario.truth_of(id), "none".to_owned())).to_vec();
        Self { name: scenario.name, answers, wrong: vec![format!("not judged: {text}")] }
    }

    pub(super) fn is_right(&self) -> bool {
        self.wrong.is_empty()
    }

    fn line(&self) -> String {
        let answers: Vec<Value> = self
            .answers
            .iter()
            .map(|(id, truth, answer)| json!({ "id": id, "truth": truth.answers(), "answer": answer }))
            .collect();
        json!({ "scenario": self.name, "answers": answers, "wrong": self.wrong }).to_string()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "=== {}", self.name)?;
        self.wrong.iter().try_for_each(|wrong| writeln!(f, "{wrong}"))
    }
}

impl Scenario {
    fn truth_of(&self, id: &str) -> Truth {
        self.truth.iter().find(|(of, _)| *of == id).map_or(Truth::No, |(_, truth)| *truth)
    }
}

impl Truth {
    /// The answers that are right.
    fn answers(self) -> Vec<&'static str> {
        match self {
            Self::No => vec!["ruled_out"],
            Self::Yes(_) => vec!["confirmed"],
            Self::OneOf(answers, _reason) => answers.to_vec(),
        }
    }

    fn contradicted_by(self, answer: &str, verdict: &Value) -> Option<String> {
        if !self.answers().contains(&answer) {
            return Some(format!("is {answer}, deserves {}", self.answers().join(" or ")));
        }
        match self {
            Self::Yes(name) if !verdict.to_string().contains(name) => Some(format!("{name} is not named")),
            _ => None,
        }
    }
}

impl Leak {
    /// What is wrong with the rate, and with the site that it is found at.
    fn contradicted_by(&self, counted: Counted, report: &Report) -> Vec<String> {
        const ALLOWED: f64 = 0.05;
        let Self { library, function, mfa, .. } = *self;
        let mut wrong = Vec::new();
        let verdict = report.0["verdicts"].as_array().and_then(|all| all.iter().find(|one| one["id"] == self.verdict));
        let rate = verdict.and_then(|verdict| verdict["growth_per_s"].as_f64());
        if rate.is_none_or(|rate| (rate / counted.rate() - 1.0).abs() > ALLOWED) {
            wrong.push(format!("{}: {rate:?} bytes/s, {:.0} were counted", self.verdict, counted.rate()));
        }
        let text = verdict.map(Value::to_string).unwrap_or_default();
        for name in [Some(library), Some(function), mfa].into_iter().flatten() {
            if !text.contains(name) {
                wrong.push(format!("{}: {name} is not named", self.verdict));
            }
        }
        let sites = report.all_sites().iter().filter(|site| site["function"].as_str() == Some(function));
        let largest = sites.max_by_key(|site| site["outstanding_bytes"].as_u64());
        let named = ["library", "mfa"].map(|key| largest.map(|site| site[key].clone()));
        if named != [Some(json!(library)), Some(json!(mfa))] {
            wrong.push(format!("the site of {function} is of {named:?}"));
        }
        wrong
    }
}

/// Adds the outcome to the file that was asked for.
pub(super) fn write(outcome: &Outcome) {
    let Some(path) = env::var_os(OUTCOMES) else { return };
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("a file for outcomes");
    // In one call, so that lines of threads do not mix.
    file.write_all(format!("{}\n", outcome.line()).as_bytes()).expect("a line");
}

/// Keeps the recording and what is known of it, where that was asked for.
fn keep(scenario: &Scenario, counted: Option<Counted>, file: &Path) {
    let Some(folder) = env::var_os(KEEP) else { return };
    let folder = Path::new(&folder);
    fs::copy(file, folder.join(format!("{}.bscope", scenario.name))).expect("a copy");
    let answers = |id: &&str| ((*id).to_owned(), json!(scenario.truth_of(id).answers()));
    let leak = scenario.leak.map(|Leak { verdict, library, function, mfa, .. }| {
        json!({ "verdict": verdict, "library": library, "function": function, "mfa": mfa,
                "counted_bytes_per_s": counted.map(Counted::rate) })
    });
    let said: Vec<&str> = scenario.before.iter().chain(scenario.during).copied().collect();
    let truth = json!({
        "scenario": scenario.name,
        "verdicts": QUESTIONS.iter().map(answers).collect::<serde_json::Map<_, _>>(),
        "leak": leak,
        "arguments": scenario.arguments,
        "commands": said,
    });
    let text = serde_json::to_string_pretty(&truth).expect("JSON");
    fs::write(folder.join(format!("{}.truth.json", scenario.name)), text).expect("a file");
}
