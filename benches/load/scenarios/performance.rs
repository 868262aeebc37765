//! `performance`: measures everything that `docs/performance.md` states, and prints each goal with its gate and whether
//! it is met.
//!
//! It takes about half an hour on a machine that does nothing else. `--quick` uses fewer and shorter rounds and omits
//! some parts, which it names: enough to see that everything works. A scenario that fails counts as not measured. The
//! exit status is 1 when a gate is missed or something was not measured; nchan is only compared when it is installed.
//!
//! JSON: a list of objects with the keys of [`goals::Goal`], at the end. Everything before it goes to stderr.

pub(crate) mod goals;
mod parts;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, FromArgMatches};

use self::goals::Goals;
use super::fan_out::FanOut;
use crate::{print, report::FanOutReport, tls::CertificateFiles};

/// Flags of `performance`.
#[derive(Debug, Args)]
pub(crate) struct Performance {
    /// Use fewer and shorter rounds, and omit some parts
    #[arg(long)]
    quick: bool,

    /// Print the goals as JSON
    #[arg(long)]
    json: bool,
}

/// A run so far.
struct Run {
    is_quick: bool,
    is_json: bool,
    rounds: u64,
    seconds: f64,
    /// For runs with many parts, and for scenarios without a gate.
    short_seconds: f64,
    goals: Goals,
}

impl Performance {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<()> {
        let start = Instant::now();
        let (rounds, seconds) = if self.quick { (3, 1.0) } else { (5, 5.0) };
        let mut run = Run {
            is_quick: self.quick,
            is_json: self.json,
            rounds,
            seconds,
            short_seconds: f64::min(seconds, 3.0),
            goals: Goals::default(),
        };
        let certificate = CertificateFiles::new()?;
        run.hub(&certificate);
        run.one_client();
        run.memory();
        run.many_pods();
        run.stalled();
        run.instructions();
        run.nchan();
        run.filters();
        let minutes = start.elapsed().as_secs() / 60;
        let omitted = if self.quick {
            ". Omitted: a single stalled client, 1 to 100 filters; fewer TLS and /ws connections"
        } else {
            ""
        };
        run.show(&format!("\n{minutes} minutes, at most {rounds} rounds of {seconds} s{omitted}\n\n"));
        if self.json {
            print(&(serde_json::to_string_pretty(&run.goals.0)? + "\n"))?;
        } else {
            print(&run.goals.table())?;
        }
        ensure!(run.goals.are_met(), "a gate is missed, or something was not measured");
        Ok(())
    }
}

impl Run {
    /// Prints a text that is not the result.
    fn show(&self, text: &str) {
        if self.is_json {
            eprint!("{text}");
        } else {
            print!("{text}");
        }
    }

    /// Prints the command of a step, and executes the step. Prints its error.
    fn step<T>(&self, command: &str, execute: impl FnOnce() -> Result<T>) -> Option<T> {
        self.show(&format!("\n$ {command}\n"));
        execute().inspect_err(|error| self.show(&format!("failed: {error:#}\n"))).ok()
    }

    /// Runs `fan-out` with these flags and prints its table.
    fn fan_out(&self, flags: &str, rounds: u64, seconds: f64) -> Option<FanOutReport> {
        let command = format!("fan-out {flags} --rounds {rounds} --seconds {seconds}");
        self.step(&command, || {
            let args = command.split_whitespace();
            let matches = FanOut::augment_args(clap::Command::new("fan-out")).try_get_matches_from(args)?;
            let report = FanOut::from_arg_matches(&matches)?.measure()?;
            self.show(&report.table()?);
            Ok(report)
        })
    }

    /// Runs a script of `tests/scripts` and prints its output.
    fn script(&self, name: &str) -> Option<String> {
        self.step(&format!("tests/scripts/{name}"), || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(name);
            let output = Command::new(script).stderr(Stdio::inherit()).output().context("cannot start the script")?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            self.show(&text);
            // A missed gate is a line of the goals: the output is still complete.
            ensure!(!text.is_empty(), "the script ended with {}", output.status);
            Ok(text)
        })
    }
}
