//! The command line: arguments, environment variables, terminal output and exit codes
//! (docs/protocol.md#command-line).
//!
//! The subcommands build the process from its parts. No other module imports this one.

mod access;
mod broker;
mod config;
mod connection;
mod dashboard;
mod demo;
mod doctor;
mod event_filter;
mod event_text;
mod events;
mod exit;
mod file_limit;
mod ingest;
mod logging;
mod mqtt;
mod nats;
mod otlp;
mod parsers;
mod process_metrics;
mod relay;
mod serve;
mod server;
#[cfg(feature = "top")]
mod top;

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{
    Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    builder::Resettable,
    error::{ContextKind, ContextValue},
};

use self::exit::{CliError, print};
use crate::api;

/// Send the changes of a Boilerhouse platform's Kubernetes objects as a live stream of JSON events.
#[derive(Debug, Parser)]
#[command(name = "boilerhouse-bridge", version, max_term_width = 100, propagate_version = true)]
#[command(
    after_help = "Flags override environment variables, these override the --config file, and the file overrides the defaults."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch a namespace of a Kubernetes cluster and serve its events.
    Serve(Box<serve::Serve>),
    /// Serve the events of a simulated cluster that changes all the time. Needs no Kubernetes.
    Demo(demo::Demo),
    /// Print the events of a bridge, as readable lines or as JSON, or deliver them to webhooks. Reconnects and resumes by
    /// itself.
    Events(Box<events::EventsCommand>),
    /// Show the instances, tenants, pools and events of a bridge in the terminal, live.
    #[cfg(feature = "top")]
    Top(Box<top::Top>),
    /// Read one event stream of any server and serve it to many local clients, with resume and reports of outages.
    Relay(Box<relay::RelayCommand>),
    /// Forward a port of this machine to the dashboard of a bridge in a cluster, and print its URL.
    Dashboard(dashboard::DashboardCommand),
    /// Check the configuration that `serve` would use, the cluster, and a running bridge. Each problem comes with a command
    /// that repairs it.
    Doctor(Box<doctor::DoctorCommand>),
    /// Print the completions of a shell, as input for `source` or a file in its folder of completions.
    Completions {
        /// The shell
        #[arg(value_enum, value_name = "bash|zsh|fish", hide_possible_values = true)]
        shell: CompletionShell,
    },
    /// Print a man page, as input for `man -l -`.
    Man {
        /// The subcommand. Without it: the page of the program
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
    /// Print the CustomResourceDefinition of BoilerhouseClaims, as input for `kubectl apply -f -`.
    Crd,
}

/// A shell of `completions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompletionShell {
    /// Bash
    Bash,
    /// Z shell
    Zsh,
    /// Fish
    Fish,
}

/// Maximum time at the end of the process for threads that read files or encode answers: 1 s.
const BLOCKED_FILES: Duration = Duration::from_secs(1);

/// Runs the subcommand that the arguments name, and returns its exit code.
#[must_use]
pub fn main() -> ExitCode {
    // `ring` is the only provider that is compiled in. A second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args: Vec<_> = std::env::args_os().collect();
    let outcome = match command().try_get_matches_from(&args) {
        Ok(matches) => match config::apply_config_file(command(), args, matches.clone()) {
            Ok(matches) => run(&matches, None),
            // `doctor` reports it as a failed check.
            Err(error) if matches.subcommand_name() == Some("doctor") => run(&matches, Some(error)),
            Err(error) => Err(error),
        },
        Err(error) => {
            let error = explain_api_key(error);
            // clap writes help to stdout and usage errors to stderr.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => error.print(),
    }
}

/// Says where a key goes, in place of clap's guess of a flag that is spelled alike.
fn explain_api_key(mut error: clap::Error) -> clap::Error {
    let is_api_key =
        matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(flag)) if flag == "--api-key");
    if is_api_key {
        // The usage contains the guess too.
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::Usage);
        let tip = "other users can read arguments; `serve` reads its key from BOILERHOUSE_API_KEY, a client from --token-file";
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// The command, with the settings that all flags share.
fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| command.mut_args(adjust_flag))
}

fn adjust_flag(arg: Arg) -> Arg {
    // Help shows the names of variables, not their values: a value may be long, or a secret on a shared screen.
    let arg = arg.hide_env_values(true);
    // `-1` is then reported as a wrong value, not as an unknown flag.
    let values = arg.get_action().takes_values();
    let arg = arg.allow_negative_numbers(values);
    match arg.get_env().map(|name| (name.to_string_lossy().into_owned(), std::env::var_os(name))) {
        // An empty variable counts as unset: a chart passes a value that is not set in this way. Help still names it.
        Some((name, Some(value))) if value.is_empty() => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.env(Resettable::Reset).help(format!("{help} [env: {name}]"))
        }
        _ => arg,
    }
}

/// Runs a subcommand. `config_error` says why the file of `--config` cannot be used; only `doctor` then runs.
fn run(matches: &ArgMatches, config_error: Option<CliError>) -> Result<u8, CliError> {
    if let Some(("events", events)) = matches.subcommand() {
        events::EventsCommand::check_flags(events)?;
    }
    match Cli::from_arg_matches(matches)?.command {
        Command::Serve(serve) => block_on(serve.run()),
        Command::Demo(demo) => block_on(demo.run()),
        Command::Events(events) => block_on(events.run()),
        #[cfg(feature = "top")]
        Command::Top(top) => block_on(top.run()),
        Command::Dashboard(dashboard) => block_on(dashboard.run()),
        Command::Doctor(doctor) => block_on(doctor.run(&command(), matches, config_error)),
        Command::Relay(relay) => block_on(relay.run()),
        Command::Completions { shell } => {
            let shell = match shell {
                CompletionShell::Bash => clap_complete::Shell::Bash,
                CompletionShell::Zsh => clap_complete::Shell::Zsh,
                CompletionShell::Fish => clap_complete::Shell::Fish,
            };
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command(), "boilerhouse-bridge", &mut text);
            print(&String::from_utf8_lossy(&text))?;
            Ok(0)
        }
        Command::Man { command } => {
            print(&man_page(command.as_deref())?)?;
            Ok(0)
        }
        Command::Crd => {
            let yaml = api::crd_yaml().context("cannot write the CustomResourceDefinition as YAML")?;
            print(&yaml)?;
            Ok(0)
        }
    }
}

/// Returns the man page of a subcommand, or of the program.
fn man_page(name: Option<&str>) -> Result<String, CliError> {
    let program = command();
    let page = match name {
        None => program,
        Some(name) => {
            let names: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
            let found = program.find_subcommand(name);
            let found = found.ok_or_else(|| {
                CliError::usage(format!("there is no command '{name}'; accepted: {}", names.join(", ")))
            })?;
            // A page of its own has the full name, as the pages of git have.
            let full = format!("boilerhouse-bridge-{name}");
            found.clone().name(&full).bin_name(format!("boilerhouse-bridge {name}")).display_name(full)
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).context("cannot write the man page")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Runs a command on a new runtime.
fn block_on(command: impl Future<Output = Result<u8, CliError>>) -> Result<u8, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let outcome = runtime.block_on(command);
    // A read of a file that blocks, such as one of a network file system, must not keep the process.
    runtime.shutdown_timeout(BLOCKED_FILES);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/protocol.md#commands. kubectl reads KUBECONFIG in place of `--kubeconfig`, and so does `source::connect`.
    #[test]
    fn every_flag_has_a_variable() {
        for subcommand in command().get_subcommands() {
            let flags = subcommand.get_arguments().filter(|arg| arg.get_long().is_some());
            let without: Vec<_> = flags.filter(|arg| arg.get_env().is_none()).filter_map(Arg::get_long).collect();
            let is_known = |flag: &&str| ["kubeconfig", "help", "version"].contains(flag);
            assert!(without.iter().all(is_known), "{}: {without:?}", subcommand.get_name());
        }
    }

    #[test]
    fn clap_definition_passes_debug_assert() {
        command().debug_assert();
    }
}
