//! How do the measures read, for a person and for a program?

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    condition::{COMMAND, Condition},
    load::{Load, Measure, PACE},
    spread::Spread,
};

/// One row for each condition.
pub(super) struct Table {
    rows: Vec<Row>,
}

struct Row {
    condition: Condition,
    outcome: Result<BTreeMap<Load, Figures>, String>,
}

/// Medians over the rounds.
struct Figures {
    cpu_ns: f64,
    per_second: f64,
    rounds: Vec<Measure>,
}

impl Table {
    pub(super) fn new(
        measures: &BTreeMap<(Condition, Load), Vec<Measure>>,
        refusals: &BTreeMap<Condition, String>,
    ) -> Self {
        let rows = Condition::ALL.map(|condition| {
            let figures = |load| Some((load, Figures::of(measures.get(&(condition, load))?)?));
            let outcome = match refusals.get(&condition) {
                Some(reason) => Err(reason.clone()),
                None => Ok(Load::MEASURED.into_iter().filter_map(figures).collect()),
            };
            Row { condition, outcome }
        });
        Self { rows: rows.into() }
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let head =
            ["", "tight 64 B", "added", "× bare", "÷ beamscope", "64..4096 B", "paced", "pairs/s", "× core", "Erlang"];
        text += &line(&head.map(str::to_owned));
        for row in &self.rows {
            if row.outcome.is_ok() {
                text += &line(&self.cells(row));
            }
        }
        text.push_str(NOTES);
        text.push_str(&["beamscope exact: `", COMMAND, "`, all else as it is by default.\n"].concat());
        for row in &self.rows {
            if let Err(reason) = &row.outcome {
                text.push_str(&["not run: ", row.condition.name(), ": ", reason, "\n"].concat());
            }
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let conditions = self.rows.iter().map(|row| match &row.outcome {
            Err(reason) => json!({ "condition": row.condition.name(), "not_run": reason }),
            Ok(figures) => {
                let loads: Map<String, Value> =
                    figures.iter().map(|(load, figures)| (load.key().to_owned(), figures.json())).collect();
                json!({
                    "condition": row.condition.name(),
                    "loads": loads,
                    "added_ns_per_pair": self.added(row.condition, Load::Tight),
                    "ratio_to_bare": self.ratio(row.condition, Load::Tight),
                    "added_ratio_to_beamscope": self.to_beamscope(row.condition),
                })
            }
        });
        conditions.collect()
    }

    fn cells(&self, row: &Row) -> [String; 10] {
        let show = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let condition = row.condition;
        let paced = self.figures(condition, Load::Paced);
        let core = self.added(condition, Load::Paced).map(|added| 1.0 + added * PACE / 1e9);
        [
            condition.name().to_owned(),
            show(self.cpu_ns(condition, Load::Tight), 1),
            show(self.added(condition, Load::Tight), 1),
            show(self.ratio(condition, Load::Tight), 1),
            show(self.to_beamscope(condition), 2),
            show(self.cpu_ns(condition, Load::TightVaried), 1),
            show(self.cpu_ns(condition, Load::Paced), 1),
            show(paced.map(|figures| figures.per_second), 0),
            show(core, 2),
            show(self.ratio(condition, Load::Erlang), 3),
        ]
    }

    fn figures(&self, condition: Condition, load: Load) -> Option<&Figures> {
        let row = self.rows.iter().find(|row| row.condition == condition)?;
        row.outcome.as_ref().ok()?.get(&load)
    }

    fn cpu_ns(&self, condition: Condition, load: Load) -> Option<f64> {
        Some(self.figures(condition, load)?.cpu_ns)
    }

    fn added(&self, condition: Condition, load: Load) -> Option<f64> {
        Some(self.cpu_ns(condition, load)? - self.cpu_ns(Condition::Bare, load)?)
    }

    fn ratio(&self, condition: Condition, load: Load) -> Option<f64> {
        Some(self.cpu_ns(condition, load)? / self.cpu_ns(Condition::Bare, load)?)
    }

    fn to_beamscope(&self, condition: Condition) -> Option<f64> {
        Some(self.added(condition, Load::Tight)? / self.added(Condition::Beamscope, Load::Tight)?)
    }
}

const NOTES: &str = "
tight, 64..4096, paced: CPU ns of a malloc and free pair, median of the rounds. added: less the bare pair.
÷ beamscope: the added cost as a multiple of what beamscope adds. pairs/s: reached by the paced load; 320,000 is the aim.
× core: what 320,000 pairs a second make of a core that was busy with other work. Erlang: × bare, of a loop without malloc,
in nodes of their own; closer for beamscope below.
";

impl Figures {
    fn of(rounds: &[Measure]) -> Option<Self> {
        let cpu_ns = Spread::of(rounds.iter().map(Measure::cpu_ns_each))?.median;
        let per_second = Spread::of(rounds.iter().map(Measure::per_second))?.median;
        Some(Self { cpu_ns, per_second, rounds: rounds.to_vec() })
    }

    fn json(&self) -> Value {
        let Self { cpu_ns, per_second, rounds } = self;
        json!({ "cpu_ns_each": cpu_ns, "per_second": per_second, "rounds": rounds })
    }
}

fn line(cells: &[String; 10]) -> String {
    let [name, rest @ ..] = cells;
    let rest: Vec<_> = rest.iter().map(|cell| format!("{cell:>12}")).collect();
    format!("{name:<22}{}\n", rest.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measures(costs: &[(Condition, u64)]) -> BTreeMap<(Condition, Load), Vec<Measure>> {
        let rounds = |ns: u64| [ns * 3, ns, ns * 2].map(|cpu_ns| Measure { count: 1, cpu_ns, wall_ns: 1000 });
        let loads =
            |(condition, ns): &(Condition, u64)| Load::MEASURED.map(|load| ((*condition, load), rounds(*ns).to_vec()));
        costs.iter().flat_map(loads).collect()
    }

    #[test]
    fn ratios_are_of_added_cost() {
        let costs = [(Condition::Bare, 5), (Condition::Beamscope, 1005), (Condition::Bpftrace, 5005)];
        let table = Table::new(&measures(&costs), &BTreeMap::new());
        assert_eq!(table.cpu_ns(Condition::Bare, Load::Tight), Some(10.0));
        assert_eq!(table.added(Condition::Beamscope, Load::Tight), Some(2000.0));
        assert_eq!(table.to_beamscope(Condition::Bpftrace), Some(5.0));
        assert_eq!(table.to_beamscope(Condition::Memleak), None);
    }

    #[test]
    fn what_was_not_run_is_said() {
        let refusals = BTreeMap::from([(Condition::Memleak, "no headers".to_owned())]);
        let text = Table::new(&measures(&[(Condition::Bare, 5)]), &refusals).text();
        assert!(text.contains("not run: bcc memleak: no headers"), "{text}");
        assert!(text.contains("beamscope exact: `beamscope record --mode exact`"), "{text}");
    }
}
