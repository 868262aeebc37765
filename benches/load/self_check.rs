//! Short checks that the scenarios measure what they state, not how fast anything is. `cargo test` runs them.
//!
//! They accept the arguments of libtest: filters, `--skip`, `--exact`, `--ignored` and `--list`. Other flags have no
//! effect. All checks run at once and together take less than 25 s in a debug build.

mod fan_out;
mod parts;

use std::{
    ffi::OsString,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A check that takes longer fails.
const TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("load::time_stamps_are_found_when_they_are_complete", parts::time_stamps_are_found_when_they_are_complete),
    ("load::ended_threads_do_not_reduce_processor_time", parts::ended_threads_do_not_reduce_processor_time),
    ("load::late_baseline_tasks_get_the_retained_frames", parts::late_baseline_tasks_get_the_retained_frames),
    ("load::latencies_survive_serialization", parts::latencies_survive_serialization),
    ("load::goals_compare_values_with_gates", parts::goals_compare_values_with_gates),
    ("load::filters_select_checks", filters_select_checks),
    ("load::every_delivery_is_counted", fan_out::every_delivery_is_counted),
    ("load::reconnect_storm_sends_no_api_request", fan_out::reconnect_storm_sends_no_api_request),
    ("load::gets_run_on_one_bridge_or_the_other", fan_out::gets_run_on_one_bridge_or_the_other),
    ("load::filtered_clients_receive_their_events_only", fan_out::filtered_clients_receive_their_events_only),
    ("load::tls_has_a_baseline_of_its_own", fan_out::tls_has_a_baseline_of_its_own),
    ("load::existing_tls_server_needs_trusted_clients", fan_out::existing_tls_server_needs_trusted_clients),
    ("load::errors_are_reported_once", fan_out::errors_are_reported_once),
    ("load::idle_memory_reports_each_path", parts::idle_memory_reports_each_path),
];

/// Which checks libtest's arguments select.
#[derive(Debug, Default)]
struct Selection {
    filters: Vec<String>,
    skipped: Vec<String>,
    is_exact: bool,
    is_ignored_only: bool,
    is_list: bool,
}

impl Selection {
    fn parse(args: &[OsString]) -> Selection {
        let mut selection = Selection::default();
        let mut args = args.iter().map(|arg| arg.to_string_lossy().into_owned());
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => selection.is_exact = true,
                "--ignored" => selection.is_ignored_only = true,
                "--list" => selection.is_list = true,
                "--skip" => selection.skipped.extend(args.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => drop(args.next()),
                _ => match arg.strip_prefix("--skip=") {
                    Some(skipped) => selection.skipped.push(skipped.to_owned()),
                    None if arg.starts_with('-') => {}
                    None => selection.filters.push(arg),
                },
            }
        }
        selection
    }

    fn selects(&self, name: &str) -> bool {
        let matches = |filter: &String| if self.is_exact { name == filter } else { name.contains(filter.as_str()) };
        let is_wanted = self.filters.is_empty() || self.filters.iter().any(matches);
        is_wanted && !self.skipped.iter().any(matches) && !self.is_ignored_only
    }
}

/// Runs the selected checks and prints their results as libtest does.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let selection = Selection::parse(&args[1..]);
    let checks: Vec<&Check> = CHECKS.iter().filter(|(name, _)| selection.selects(name)).collect();
    if selection.is_list {
        checks.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", checks.len());
    let start = Instant::now();
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = checks.iter().map(|(name, check)| scope.spawn(move || report(name, check()))).collect();
        let result = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| thread.join();
        threads.into_iter().map(|thread| result(thread).unwrap_or_else(|_| bail!("panicked"))).collect()
    });
    let failed = results.iter().filter(|result| result.is_err()).count();
    for ((name, _), result) in checks.iter().zip(&results) {
        if let Err(error) = result {
            println!("\n---- {name} ----\n{error:#}");
        }
    }
    let (outcome, passed) = (if failed == 0 { "ok" } else { "FAILED" }, checks.len() - failed);
    let omitted = CHECKS.len() - checks.len();
    println!(
        "\ntest result: {outcome}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {omitted} filtered out; \
         finished in {:.2}s\n",
        start.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(name: &str, result: Result<()>) -> Result<()> {
    println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
    result
}

/// Runs this program as `cargo bench` does. Returns whether it succeeded, its stdout and its stderr.
fn run_load(args: &[&str]) -> Result<(bool, String, String)> {
    let program = std::env::current_exe().context("cannot find the file of this program")?;
    let [mut stdout, mut stderr] = [tempfile::tempfile()?, tempfile::tempfile()?];
    let mut child = Command::new(program)
        .args(args)
        .arg("--bench")
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    let limit = Instant::now() + TIMEOUT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > limit {
            child.kill()?;
            child.wait()?;
            bail!("{args:?} did not end within {TIMEOUT:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    };
    let read = |file: &mut std::fs::File| std::io::Seek::rewind(file).and_then(|()| std::io::read_to_string(file));
    Ok((status.success(), read(&mut stdout)?, read(&mut stderr)?))
}

/// Runs a scenario with these flags and `--json`. Returns its result.
fn report_of(command: &str, flags: &[&str]) -> Result<Value> {
    let args: Vec<&str> = command.split(' ').chain(flags.iter().copied()).chain(["--json"]).collect();
    let (success, stdout, stderr) = run_load(&args)?;
    ensure!(success, "{args:?} failed: {stderr}");
    serde_json::from_str(&stdout).with_context(|| format!("{args:?} did not print JSON: {stdout}"))
}

fn filters_select_checks() -> Result<()> {
    let selected = |args: &str| {
        let args: Vec<OsString> = args.split_whitespace().map(OsString::from).collect();
        let selection = Selection::parse(&args);
        CHECKS.iter().filter(|(name, _)| selection.selects(name)).count()
    };
    let all = CHECKS.len();
    for (args, expected) in [
        ("", all),
        ("load", all),
        ("--nocapture --test-threads 1", all),
        ("some_other_test", 0),
        ("--test-threads=2 filters_select", 1),
        ("--exact filters_select_checks", 0),
        ("--exact load::filters_select_checks", 1),
        ("--skip filters_select_checks", all - 1),
        ("--ignored", 0),
    ] {
        ensure!(selected(args) == expected, "{args:?} selects {} checks instead of {expected}", selected(args));
    }
    Ok(())
}
