//! `events`: the events of a bridge on stdout (docs/protocol.md#events-1).
//!
//! Results go to stdout, everything else to stderr. A closed pipe is success.

mod follow;
mod forward;
mod lines;
mod printer;

use std::{pin::pin, time::Duration};

use anyhow::Context as _;
use clap::{ArgMatches, Args, parser::ValueSource};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{Instant, sleep_until, timeout},
};

use self::{
    follow::{Follow, Followed},
    forward::ForwardArgs,
    printer::{Output, Printer},
};
use super::{
    connection::ConnectionArgs,
    event_filter::{FilterArgs, event_name},
    exit::{CliError, INTERRUPTED, TIMED_OUT},
    parsers::{duration, integer_in},
};
use crate::client::Builder;

/// Time for the end after a signal or `--timeout`: it is longer than that of the last lines and the state file.
const STOP: Duration = Duration::from_secs(3);

/// Arguments of `events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  boilerhouse-bridge events
  boilerhouse-bridge events --url http://localhost:3000
  boilerhouse-bridge events --url http://localhost:3000 --events tenant.claimed -o json | jq .tenantId
  boilerhouse-bridge events --url http://localhost:3000 --instance-filter 'phase=Running,labels.team=a'
  boilerhouse-bridge events --types tenant --forward-to https://host/hook --state-file events.json

Exit codes: 0 success, 1 failure, 2 wrong usage, 4 credential refused, 5 no connection within --connect-timeout, 124 --timeout before --count, 130 interrupted.")]
pub(super) struct EventsCommand {
    /// Output: by default text on a terminal and JSON in a pipe
    #[arg(short, long, env = "BRIDGE_OUTPUT", value_enum, value_name = "text|json", hide_possible_values = true)]
    output: Option<Output>,

    #[command(flatten)]
    filter: FilterArgs,

    /// Event types to print, such as 'tenant.claimed,tenant.released'. Events of other types are not shown
    #[arg(long, env = "BRIDGE_EVENTS", value_name = "TYPE,...", value_delimiter = ',', value_parser = event_name)]
    events: Vec<String>,

    /// Resume after this cursor: the `id` of an event, or the value of the header Event-Cursor
    #[arg(long, env = "BRIDGE_SINCE", value_name = "CURSOR")]
    since: Option<String>,

    /// End after this number of printed lines. Control events such as state.initial count; --events leaves them out
    #[arg(long, env = "BRIDGE_COUNT", value_name = "N", value_parser = integer_in::<u64>(1..=u64::MAX))]
    count: Option<u64>,

    /// End after this time, such as 3, 3s or 2m
    #[arg(long, env = "BRIDGE_TIMEOUT", value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    forward: ForwardArgs,
}

impl EventsCommand {
    /// Rejects flags of deliveries that would have no effect. A variable that is set for another call is ignored.
    ///
    /// # Errors
    /// A usage error that names the flag.
    pub(super) fn check_flags(matches: &ArgMatches) -> Result<(), CliError> {
        let is_flag = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let flags = ["webhook_secret_file", "webhook_ca_file", "state_file"];
        match flags.into_iter().find(|id| is_flag(id) && !matches.contains_id("forward_to")) {
            Some(id) => Err(CliError::usage(format!("--{} has no effect without --forward-to", id.replace('_', "-")))),
            None => Ok(()),
        }
    }

    pub(super) async fn run(self) -> Result<u8, CliError> {
        let end = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let (stop, stopped) = oneshot::channel();
        let is_counted = self.count.is_some();
        // In a task of its own: a write to a stdout that is not read must not delay the signals.
        #[allow(clippy::disallowed_methods, reason = "the process ends with this command")]
        let mut running = tokio::spawn(async move { self.read_until(stopped).await });
        let code = tokio::select! {
            outcome = &mut running => return outcome.context("the command panicked")?,
            _ = interrupt.recv() => INTERRUPTED,
            _ = terminate.recv() => 0,
            () = wait_until(end) => if is_counted { TIMED_OUT } else { 0 },
        };
        // Deliveries write their state before they end.
        let _ = stop.send(());
        match timeout(STOP, running).await {
            Ok(outcome) => outcome.context("the command panicked")?.map(|_| code),
            Err(_) => Ok(code),
        }
    }

    /// Prints or delivers events until there are enough, the output is closed, the stream ends for good, or `stopped`.
    async fn read_until(&self, stopped: oneshot::Receiver<()>) -> Result<u8, CliError> {
        let mut stopped = pin!(stopped);
        let builder = tokio::select! {
            builder = self.client() => builder?,
            _ = &mut stopped => return Ok(0),
        };
        let printer = Printer::new(self.output);
        if self.forward.is_used() {
            return self.forward.run(&builder, &self.connection, &self.events, printer, self.count, stopped).await;
        }
        tokio::select! {
            outcome = self.print(&builder, &printer) => outcome,
            _ = &mut stopped => Ok(0),
        }
    }

    async fn client(&self) -> Result<Builder, CliError> {
        let builder = self.filter.apply(self.connection.client().await?);
        Ok(match &self.since {
            Some(cursor) => builder.since(cursor),
            None => builder,
        })
    }

    /// Prints events until there are enough, or the output is closed.
    async fn print(&self, builder: &Builder, printer: &Printer) -> Result<u8, CliError> {
        let client = builder.clone().build().map_err(|error| CliError::usage(error.to_string()))?;
        let mut follow = Follow::new(&client, &self.connection);
        let mut printed = 0;
        loop {
            let Followed::Event(event) = follow.next().await? else { continue };
            let is_selected = self.events.is_empty() || self.events.contains(&event.kind);
            if !is_selected {
                continue;
            }
            if !printer.print_event(&event)? {
                return Ok(0);
            }
            printed += 1;
            if self.count.is_some_and(|count| printed >= count) {
                return Ok(0);
            }
        }
    }
}

/// Waits until this time, or without end.
async fn wait_until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}
