//! Load generator: what streams cost the bridge, how late events arrive, and how much memory clients take.
//!
//!     cargo bench --bench load -- SCENARIO [flags]
//!
//! Without a scenario, `fan-out` runs; `--help` lists the scenarios. `--json` prints a result for programs; the module
//! of each scenario documents the keys. The bridge is the one that cargo has built for this bench, clients and baseline
//! are this program in another role (`process ROLE`). It needs Linux (`/proc`), and all processes on one machine, as
//! latencies come from one clock.
//!
//! `cargo test` starts this program without `--bench`. It then runs the short checks of [`self_check`].
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench is a command line program")]

mod bare_watchers;
mod baseline;
mod clients;
mod clock;
mod connect;
mod http_client;
mod latency;
mod proc_stats;
mod processes;
mod report;
mod scenarios;
mod self_check;
mod simulated_cluster;
mod target;
mod tls;
mod workload;

/// The real control plane of the integration tests.
#[path = "../../tests/it/support"]
#[allow(dead_code, clippy::unwrap_used, reason = "it is test code, and one scenario uses a part of it")]
mod test_support {
    pub(crate) mod control_plane;
}

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::{
    bare_watchers::BareWatcherOptions,
    baseline::BaselineOptions,
    clients::ClientOptions,
    scenarios::{
        dedicated_memory::DedicatedMemory, fan_out::FanOut, idle_memory::IdleMemory, nchan::Nchan,
        performance::Performance, stalled::Stalled,
    },
};

/// Measures what streams cost the bridge. Without a scenario, fan-out runs.
#[derive(Debug, Parser)]
#[command(name = "load", bin_name = "cargo bench --bench load --", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Cost and latency of deliveries, beside the bare system call in the same run
    FanOut(Box<FanOut>),
    /// Effect of clients that have stopped reading on the reading clients
    Stalled(Stalled),
    /// Memory of idle connections
    IdleMemory(IdleMemory),
    /// Memory of /ws connections with dedicated watchers, on a real control plane
    DedicatedMemory(DedicatedMemory),
    /// The load of fan-out on nchan (nginx)
    Nchan(Nchan),
    /// All values of docs/performance.md, and each goal with its gate
    Performance(Performance),
    /// One role in a measurement
    #[command(subcommand, hide = true)]
    Process(ProcessRole),
}

/// The role of a child process.
#[derive(Debug, Subcommand)]
enum ProcessRole {
    /// Clients of a stream
    Clients(ClientOptions),
    /// A server that only writes prepared frames
    Baseline(BaselineOptions),
    /// Pairs of kube-runtime watchers
    BareWatchers(BareWatcherOptions),
}

fn main() -> ExitCode {
    // There is only one provider; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let is_bench = args.iter().any(|arg| arg == "--bench");
    if !is_bench {
        return self_check::run(&args);
    }
    args.retain(|arg| arg != "--bench");
    match run(Cli::parse_from(with_scenario(args)).scenario) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error_chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Adds the scenario `fan-out` where the first argument is a URL, a flag other than help, or missing.
fn with_scenario(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_fan_out = args.get(1).map(|first| first.to_string_lossy()).is_none_or(|first| {
        first.contains("://") || (first.starts_with('-') && !matches!(first.as_ref(), "-h" | "--help"))
    });
    if is_fan_out {
        args.insert(1, "fan-out".into());
    }
    args
}

fn run(scenario: Scenario) -> Result<()> {
    match scenario {
        Scenario::FanOut(flags) => flags.run(),
        Scenario::Stalled(flags) => flags.run(),
        Scenario::IdleMemory(flags) => flags.run(),
        Scenario::DedicatedMemory(flags) => flags.run(),
        Scenario::Nchan(flags) => flags.run(),
        Scenario::Performance(flags) => flags.run(),
        Scenario::Process(ProcessRole::Clients(options)) => options.run(),
        Scenario::Process(ProcessRole::Baseline(options)) => options.run(),
        Scenario::Process(ProcessRole::BareWatchers(options)) => options.run(),
    }
}

fn multi_thread_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the tokio runtime")
}

/// Prints a result. A closed pipe is not an error: its reader has what it needs.
fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Returns an error with its causes. Some libraries' errors end with their cause already; it is then not repeated.
fn error_chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        printed if printed.ends_with(&cause) => text,
        printed => format!("{printed}: {cause}"),
    })
}
