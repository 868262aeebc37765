//! The goals with their gates and measured values: the last table of `performance`.

use serde::Serialize;

/// What a goal requires.
#[derive(Debug)]
pub(crate) enum Gate {
    /// No value may be larger.
    Max(f64),
    /// The text of another requirement, and whether it is met.
    Custom(&'static str, bool),
    /// No requirement: the values are there for comparison.
    None,
}

/// Measured values with their names. A value that could not be measured is `None`.
pub(crate) type Values = Vec<(String, Option<f64>)>;

/// One line of the table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Goal {
    pub(crate) goal: String,
    pub(crate) gate: String,
    /// `yes`, `NO`, `NOT MEASURED`, or empty where there is no gate.
    pub(crate) met: &'static str,
    pub(crate) measured: String,
}

/// All lines so far.
#[derive(Debug, Default)]
pub(crate) struct Goals(pub(crate) Vec<Goal>);

impl Goals {
    /// Adds a line. `digits` is the number of decimals.
    pub(crate) fn add(&mut self, goal: &str, gate: &Gate, values: &Values, unit: &str, digits: usize) {
        let measured: Option<Vec<f64>> = values.iter().map(|(_, value)| *value).collect();
        let measured = measured.filter(|values| !values.is_empty());
        let met = match (&measured, gate) {
            (None, _) => "NOT MEASURED",
            (Some(_), Gate::None) => "",
            (Some(values), Gate::Max(max)) => yes_or_no(values.iter().all(|value| value <= max)),
            (Some(_), Gate::Custom(_, is_met)) => yes_or_no(*is_met),
        };
        let text = |(name, value): &(String, Option<f64>)| {
            let value = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
            format!("{value}{unit} {name}").trim_end().to_owned()
        };
        let measured = match measured {
            Some(_) => values.iter().map(text).collect::<Vec<_>>().join(", "),
            None => "-".to_owned(),
        };
        let gate = match gate {
            Gate::Max(max) => format!("<= {max}{unit}"),
            Gate::Custom(text, _) => (*text).to_owned(),
            Gate::None => String::new(),
        };
        self.0.push(Goal { goal: goal.to_owned(), gate, met, measured });
    }

    /// Returns whether each gate is met, and everything was measured.
    pub(crate) fn are_met(&self) -> bool {
        self.0.iter().all(|goal| matches!(goal.met, "yes" | ""))
    }

    pub(crate) fn table(&self) -> String {
        let header = ["goal", "gate", "met"].map(str::len);
        let width = |column: usize| {
            let of_goals = self.0.iter().map(|goal| [goal.goal.len(), goal.gate.len(), goal.met.len()][column]);
            of_goals.max().unwrap_or(0).max(header[column])
        };
        let [goal, gate, met] = [0, 1, 2].map(width);
        let line = |texts: [&str; 4]| {
            let [first, second, third, last] = texts;
            format!("{first:<goal$}  {second:<gate$}  {third:<met$}  {last}\n")
        };
        let lines = self.0.iter().map(|of| line([&of.goal, &of.gate, of.met, &of.measured]));
        std::iter::once(line(["goal", "gate", "met", "measured"])).chain(lines).collect()
    }
}

fn yes_or_no(is_met: bool) -> &'static str {
    if is_met { "yes" } else { "NO" }
}
