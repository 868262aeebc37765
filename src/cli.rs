//! The command line: arguments, environment, terminal, exit codes; and the composition roots, which alone know
//! everything (protocol.md section 8).

mod access;
mod config;
mod demo;
mod serve;
mod site;
mod value;

use std::{
    io::{self, IsTerminal, Write},
    ops::RangeInclusive,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Arg, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, builder::Resettable};

use crate::source::crd;

/// Turns what happens to a Boilerhouse platform's Kubernetes objects into a live stream of JSON events.
#[derive(Debug, Parser)]
#[command(name = "boilerhouse-bridge", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Flags win over the environment, the environment over --config, --config over the defaults.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch a cluster's namespace and serve what happens there.
    Serve(Box<serve::Serve>),
    /// Serve a simulated cluster in which something always happens. Needs no Kubernetes.
    Demo(demo::Demo),
    /// Print the CustomResourceDefinition of BoilerhouseClaims, to be piped into `kubectl apply -f -`.
    Crd,
}

/// Why the program ends with something else than 0.
#[derive(Debug)]
struct Failure {
    code: u8,
    error: anyhow::Error,
}

/// Ports to listen on; 0 is any that is free.
const PORTS: RangeInclusive<u64> = 0..=u16::MAX as u64;
/// Limits a minute: none at all would let nobody in, and the type has no more.
const RATES: RangeInclusive<u64> = 1..=u32::MAX as u64;
/// Most streams that can be asked for: Linux lets a process open 1,048,576 files (`fs.nr_open`), and each stream is one.
const MOST_CONNECTIONS: u64 = 1_000_000;

/// Exit codes (protocol.md section 8).
mod exit {
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const CANNOT_CONNECT: u8 = 5;
    pub(super) const INTERRUPTED: u8 = 130;
}

impl Failure {
    /// The arguments do not make sense together.
    fn usage(message: impl Into<String>) -> Failure {
        Failure { code: exit::USAGE, error: anyhow::Error::msg(message.into()) }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { code: exit::FAILED, error: error.into() }
    }
}

/// Runs the command that the arguments ask for.
#[must_use]
pub fn main() -> ExitCode {
    // The only provider that is compiled in; a second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args: Vec<_> = std::env::args_os().collect();
    let outcome = match command().try_get_matches_from(&args) {
        Ok(matches) => config::with_file(command(), args, matches).and_then(|matches| run(&matches)),
        Err(error) => {
            // clap writes help to stdout and mistakes to stderr, and knows which of the two this is.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => report(&failure),
    }
}

/// The command, with what all flags have in common.
fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| command.mut_args(flag))
}

fn flag(arg: Arg) -> Arg {
    // Help names the variables, not what they hold: that may be long, and is nobody's business on a shared screen.
    let arg = arg.hide_env_values(true);
    // `-1` is then a wrong value rather than an unknown flag.
    let values = arg.get_action().takes_values();
    let arg = arg.allow_negative_numbers(values);
    match arg.get_env().map(|name| (name.to_string_lossy().into_owned(), std::env::var_os(name))) {
        // An empty variable is as none: that is how a chart's value that nobody set arrives. Help still names it.
        Some((name, Some(value))) if value.is_empty() => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.env(Resettable::Reset).help(format!("{help} [env: {name}]"))
        }
        _ => arg,
    }
}

fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    match Cli::from_arg_matches(matches)?.command {
        Command::Serve(serve) => runtime()?.block_on(serve.run()),
        Command::Demo(demo) => runtime()?.block_on(demo.run()),
        Command::Crd => {
            let yaml = crd::yaml().context("the definition could not be written as YAML")?;
            print(&yaml)?;
            Ok(0)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime could be started")
}

/// Writes a result to stdout. A closed pipe is success: the reader has what it wanted.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// An error with its causes. Some libraries' errors end with their cause already, which is then not said again.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        told if told.ends_with(&cause) => text,
        told => format!("{told}: {cause}"),
    })
}

fn report(failure: &Failure) -> ExitCode {
    let mut stderr = io::stderr().lock();
    let (bold, plain) = if colour() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    // When stderr is gone there is nobody left to tell.
    let _ = writeln!(stderr, "{bold}error:{plain} {}", told(&failure.error));
    ExitCode::from(failure.code)
}

/// Logs to stderr at this level; coloured on a terminal only.
fn start_log(level: tracing::Level) {
    // kube_client logs whole bodies when one does not parse: objects do not belong into logs.
    let filter = format!("{level},kube_client=error,hyper=warn,hyper_util=warn,rustls=warn,tower=warn");
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour()).with_writer(io::stderr).try_init();
}

/// Whether stderr may be coloured: on a terminal whose user has not asked for none (<https://no-color.org>).
fn colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        command().debug_assert();
    }
}
