//! The report of `doctor`: its JSON form with its schema, and its text.

use std::{borrow::Cow, fmt::Write as _};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::Serialize;

/// Columns of the text. Hints are longer where a command is, because a command with line breaks cannot be copied.
const COLUMNS: usize = 80;
/// Columns before the detail of a check: two spaces, the status, the id.
const INDENT: usize = 28;

/// What `doctor -o json` prints.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(title = "doctor")]
pub struct Report {
    /// Version of the program that has made the report.
    pub version: &'static str,
    /// No check of severity `error` has failed.
    pub ok: bool,
    /// The bridge of `--url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The results, in the order of the table in docs/protocol.md#doctor.
    pub checks: Vec<CheckResult>,
    /// With `--fix`: what was done on this machine, and commands that repair the cluster. Otherwise empty.
    pub repairs: Vec<Repair>,
}

/// The result of one check.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct CheckResult {
    /// Stable id, such as `rbac-pods-list`.
    pub id: &'static str,
    /// Group of the check: `configuration`, `inputs`, `cluster`, `permissions`, `objects` or `bridge`.
    pub category: &'static str,
    /// What is checked, in a few words.
    pub name: &'static str,
    /// The check has passed. It is false for a check that was skipped.
    pub ok: bool,
    /// Whether the check passed, failed or was skipped.
    pub status: Status,
    /// What a failure means: `error` makes the exit code 1, `warning` does not. A skipped check has `info`.
    pub severity: Severity,
    /// What was found, or why the check was skipped.
    pub detail: String,
    /// Duration in milliseconds; 0 for a skipped check.
    pub duration_ms: u64,
    /// What to do, mostly a command. Every failed check has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repair_hint: Option<String>,
    /// What `doctor --fix` does about it on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The hint is a command that changes the cluster.
    #[serde(skip)]
    pub(super) is_cluster_command: bool,
    /// Skipped because the check cannot find out: the checks that need it run.
    #[serde(skip)]
    pub(super) is_undecided: bool,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing is wrong.
    Passed,
    /// Something is wrong.
    Failed,
    /// The check did not run: a check that it needs has not passed, or it does not apply to this configuration.
    Skipped,
}

/// What a failure of a check means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The bridge does not work. The exit code is 1.
    Error,
    /// The bridge works with a limitation.
    Warning,
    /// The check was skipped.
    Info,
}

/// One repair of `--fix`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Repair {
    /// Id of the check that the repair belongs to.
    pub id: &'static str,
    /// `doctor` has done it. Otherwise `text` is a command that you run.
    pub done: bool,
    /// What was done, or the command.
    pub text: String,
}

/// Returns the JSON Schema (2020-12) of a report: the text of `tests/golden/doctor.schema.json`.
#[must_use]
pub fn schema() -> serde_json::Value {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<Report>().to_value()
}

impl Report {
    /// Creates a report. It is ok if no check of severity `error` has failed.
    #[must_use]
    pub fn new(base_url: Option<String>, checks: Vec<CheckResult>, repairs: Vec<Repair>) -> Report {
        let ok = !checks.iter().any(|check| check.has_failed() && check.severity == Severity::Error);
        Report { version: env!("CARGO_PKG_VERSION"), ok, base_url, checks, repairs }
    }

    /// Returns the text for people, in 80 columns apart from the hints. `escape` replaces the characters of a text that could
    /// change a terminal.
    #[must_use]
    pub fn to_text(&self, has_color: bool, escape: fn(&str) -> Cow<'_, str>) -> String {
        let mut text = String::new();
        let mut category = "";
        for check in &self.checks {
            if check.category != category {
                let gap = if category.is_empty() { "" } else { "\n" };
                category = check.category;
                push(&mut text, format_args!("{gap}{category}\n"));
            }
            let (mark, color) = check.mark();
            let padded = format!("{mark:<4}");
            let mark = painted(&padded, color, has_color);
            push(&mut text, format_args!("  {mark}  {:<18}  ", check.id));
            push_wrapped(&mut text, &escape(&check.detail), INDENT);
            if let Some(hint) = check.repair_hint.as_ref().filter(|_| check.has_failed()) {
                // One command can repair several checks.
                let first = self.checks.iter().find(|other| other.repair_hint.as_ref() == Some(hint));
                match first.filter(|first| first.id != check.id) {
                    Some(first) => push(&mut text, format_args!("        repair: as for {}\n", first.id)),
                    None => push(&mut text, format_args!("        repair: {}\n", escape(hint))),
                }
            }
            if let Some(fix) = &check.fix {
                push(&mut text, format_args!("        --fix:  {}\n", escape(fix)));
            }
        }
        for (title, done) in [("done", true), ("commands to run", false)] {
            let mut repairs = self.repairs.iter().filter(|repair| repair.done == done).peekable();
            if repairs.peek().is_some() {
                push(&mut text, format_args!("\n{title}\n"));
            }
            for repair in repairs {
                // A command keeps its lines, and starts at the first column, so that a here-document can be copied.
                let indent = if done { "  " } else { "" };
                for line in repair.text.lines() {
                    push(&mut text, format_args!("{indent}{}\n", escape(line)));
                }
            }
        }
        push(&mut text, format_args!("\n{}\n", self.summary()));
        text
    }

    fn summary(&self) -> String {
        let count = |status, severity: Option<Severity>| {
            let is_counted = |check: &&CheckResult| {
                check.status == status && severity.is_none_or(|severity| severity == check.severity)
            };
            self.checks.iter().filter(is_counted).count()
        };
        let parts = [
            (count(Status::Passed, None), "passed"),
            (count(Status::Failed, Some(Severity::Error)), "failed"),
            (count(Status::Failed, Some(Severity::Warning)), "with a warning"),
            (count(Status::Skipped, None), "skipped"),
        ];
        let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        parts.join(", ")
    }
}

impl CheckResult {
    /// Returns whether the check has failed, as an error or as a warning.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.status == Status::Failed
    }

    /// Returns the mark in the text, and the color as a parameter of the control sequence SGR.
    fn mark(&self) -> (&'static str, &'static str) {
        match (self.status, self.severity) {
            (Status::Passed, _) => ("ok", "32"),
            (Status::Failed, Severity::Error) => ("FAIL", "1;31"),
            (Status::Failed, _) => ("warn", "33"),
            (Status::Skipped, _) => ("skip", "2"),
        }
    }
}

fn painted<'a>(text: &'a str, color: &str, has_color: bool) -> Cow<'a, str> {
    if has_color { format!("\x1b[{color}m{text}\x1b[0m").into() } else { text.into() }
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = text.write_fmt(line);
}

/// Appends words, with a new line before each word that would end after [`COLUMNS`]. The first line has `indent` columns
/// already.
fn push_wrapped(text: &mut String, words: &str, indent: usize) {
    let mut column = indent;
    for (index, word) in words.split_whitespace().enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > COLUMNS {
            push(text, format_args!("\n{:indent$}", ""));
            column = indent;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &'static str, category: &'static str, status: Status, severity: Severity) -> CheckResult {
        CheckResult {
            id,
            category,
            name: "name",
            ok: status == Status::Passed,
            status,
            severity,
            detail: "a detail of many words that does not fit into one line of a terminal with 80 columns".to_owned(),
            duration_ms: 1,
            repair_hint: (status == Status::Failed).then(|| "kubectl get pods".to_owned()),
            fix: None,
            is_cluster_command: false,
            is_undecided: false,
        }
    }

    #[test]
    fn only_failed_errors_make_a_report_fail() {
        let ok = |checks: &[CheckResult]| Report::new(None, checks.to_vec(), Vec::new()).ok;
        let failed = check("a", "configuration", Status::Failed, Severity::Error);
        let warning = check("b", "configuration", Status::Failed, Severity::Warning);
        let skipped = check("c", "configuration", Status::Skipped, Severity::Info);
        let passed = check("d", "configuration", Status::Passed, Severity::Error);
        assert!(ok(&[]) && ok(&[warning.clone(), skipped.clone(), passed.clone()]));
        assert!(!ok(&[passed, failed, warning, skipped]));
    }

    #[test]
    fn text_fits_into_80_columns_and_is_colored_on_request_only() {
        let checks = vec![
            check("config", "configuration", Status::Passed, Severity::Error),
            check("rbac-namespace-get", "permissions", Status::Failed, Severity::Error),
            check("bookmarks", "objects", Status::Failed, Severity::Warning),
            check("bridge-ready", "bridge", Status::Skipped, Severity::Info),
        ];
        let repairs = vec![
            Repair { id: "credentials", done: true, text: "created x".to_owned() },
            Repair { id: "crd", done: false, text: "kubectl a\nkubectl b".to_owned() },
        ];
        let report = Report::new(None, checks, repairs);
        let text = report.to_text(false, |text| Cow::Borrowed(text));
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        for line in [
            "  FAIL  rbac-namespace-get  a detail",
            "        repair: kubectl get pods",
            "        repair: as for rbac-namespace-get",
            "\ndone\n  created x\n",
            "\ncommands to run\nkubectl a\nkubectl b\n",
            "\n1 passed, 1 failed, 1 with a warning, 1 skipped\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        let colored = report.to_text(true, |text| Cow::Borrowed(text));
        assert!(colored.contains("\x1b[1;31mFAIL\x1b[0m"), "{colored}");
    }

    #[test]
    fn outside_text_is_escaped() {
        let mut failed = check("config", "configuration", Status::Failed, Severity::Error);
        failed.detail = "\x1b[2J".to_owned();
        failed.repair_hint = Some("\x1b[2J".to_owned());
        let escape = |text: &str| -> Cow<'_, str> { text.replace('\x1b', "?").into() };
        let text = Report::new(None, vec![failed], Vec::new()).to_text(false, escape);
        assert!(!text.contains('\x1b') && text.contains("?[2J"), "{text}");
    }
}
