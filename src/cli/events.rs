//! `events`: the events of a bridge on stdout (docs/protocol.md#events-1).
//!
//! Results go to stdout, everything else to stderr. A closed pipe is success.

mod arguments;
mod text;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until, timeout_at},
};

use self::arguments::{claim_filter, event_name, event_type, instance_filter};
use super::{
    connection::ConnectionArgs,
    exit::{CliError, FAILED, INTERRUPTED, TIMED_OUT},
    logging::{color_for, escape, escape_json_line},
    parsers::{duration, integer_in},
};
use crate::client::{ClaimFilter, Client, Error, Event, Events, InstanceFilter};

/// How one event is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One readable line
    Text,
    /// The JSON of the event, on one line
    Json,
}

/// Arguments of `events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  boilerhouse-bridge events --url http://localhost:3000
  boilerhouse-bridge events --url http://localhost:3000 --types tenant -o json | jq .name
  boilerhouse-bridge events --url http://localhost:3000 --instance-filter 'phase=Running,labels.team=a'

Exit codes: 0 success, 1 failure, 2 wrong usage, 4 credential refused, 5 no connection within --connect-timeout,
124 --timeout before --count, 130 interrupted.")]
pub(super) struct EventsCommand {
    #[command(flatten)]
    connection: ConnectionArgs,

    /// Output: by default text on a terminal and JSON in a pipe
    #[arg(short, long, env = "BRIDGE_OUTPUT", value_enum, value_name = "text|json", hide_possible_values = true)]
    output: Option<Output>,

    /// Instances to send, such as 'phase=Running,labels.team=a'. The bridge filters. 'labels.KEY=*' means that it exists
    #[arg(long, env = "BRIDGE_INSTANCE_FILTER", value_name = "KEY=VALUE,...", value_parser = instance_filter)]
    instance_filter: Option<InstanceFilter>,

    /// Claims to send, such as 'tenantId=alice'. The bridge filters
    #[arg(long, env = "BRIDGE_CLAIM_FILTER", value_name = "KEY=VALUE,...", value_parser = claim_filter)]
    claim_filter: Option<ClaimFilter>,

    /// Event types or families to send, such as 'instance,tenant.claimed'. The bridge filters
    #[arg(long, env = "BRIDGE_TYPES", value_name = "TYPE,...", value_delimiter = ',', value_parser = event_type)]
    types: Vec<String>,

    /// Event types to print, such as 'tenant.claimed,tenant.released'. The others are received and not printed
    #[arg(long, env = "BRIDGE_EVENTS", value_name = "TYPE,...", value_delimiter = ',', value_parser = event_name)]
    events: Vec<String>,

    /// Resume after this cursor: the `id` of an event, or the value of the header Event-Cursor
    #[arg(long, value_name = "CURSOR")]
    since: Option<String>,

    /// End after this number of printed events
    #[arg(long, value_name = "N", value_parser = integer_in::<u64>(1..=u64::MAX))]
    count: Option<u64>,

    /// End after this time, such as 3, 3s or 2m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

impl EventsCommand {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        let mut events = self.client().await?.events();
        let mut printer = Printer::new(&self);
        let end = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let reading = self.read(&mut events, &mut printer);
        tokio::select! {
            outcome = reading => outcome,
            _ = interrupt.recv() => Ok(INTERRUPTED),
            _ = terminate.recv() => Ok(0),
            () = wait_until(end) => Ok(if self.count.is_some() { TIMED_OUT } else { 0 }),
        }
    }

    async fn client(&self) -> Result<Client, CliError> {
        let builder = self.connection.client().await?;
        let builder = builder
            .instances(self.instance_filter.clone().unwrap_or_default())
            .claims(self.claim_filter.clone().unwrap_or_default())
            .types(self.types.iter().cloned());
        let builder = match &self.since {
            Some(cursor) => builder.since(cursor),
            None => builder,
        };
        builder.build().map_err(|error| CliError::usage(error.to_string()))
    }

    /// Prints events until there are enough, the output is closed, or the stream ends for good.
    async fn read(&self, events: &mut Events, printer: &mut Printer) -> Result<u8, CliError> {
        let connect_by = Instant::now() + self.connection.connect_timeout;
        let mut printed = 0;
        let mut lost_at: Option<Instant> = None;
        let mut last_error: Option<Error> = None;
        loop {
            let is_connected = events.connections() > 0;
            let item = if is_connected {
                events.next().await
            } else {
                match timeout_at(connect_by, events.next()).await {
                    Ok(item) => item,
                    Err(_) => return Err(self.connection.cannot_connect(last_error)),
                }
            };
            match item {
                Some(Ok(event)) => {
                    if let Some(lost_at) = lost_at.take() {
                        report(&format!("connected again after {:.1} s", lost_at.elapsed().as_secs_f64()));
                    }
                    let is_selected = self.events.is_empty() || self.events.contains(&event.kind);
                    if !is_selected {
                        continue;
                    }
                    if !printer.print(&event)? {
                        return Ok(0);
                    }
                    printed += 1;
                    if self.count.is_some_and(|count| printed >= count) {
                        return Ok(0);
                    }
                }
                Some(Err(error)) if error.is_final() => return Err(self.connection.final_error(error)),
                Some(Err(error @ Error::Malformed { .. })) => report(&format!("{error}; it is left out")),
                Some(Err(error)) => {
                    let wait = events.reconnects_at().map_or(Duration::ZERO, |at| at.duration_since(Instant::now()));
                    if is_connected || last_error.is_none() {
                        report(&format!("{error}; next try in {:.1} s", wait.as_secs_f64()));
                    }
                    if is_connected {
                        lost_at.get_or_insert_with(Instant::now);
                    }
                    last_error = Some(error);
                }
                None => return Ok(FAILED),
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

/// Reports to stderr, with the time.
fn report(message: &str) {
    let time = jiff::Timestamp::now().strftime("%H:%M:%S");
    // Nothing can be reported when stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{time} {}", escape(message));
}

/// Returns JSON as one line. A line end in JSON is white space, unless it is escaped. A terminal must not interpret what
/// strings contain.
fn json_line(json: &str, is_terminal: bool) -> String {
    let line = json.replace(['\r', '\n'], " ") + "\n";
    if is_terminal { escape_json_line(&line).into_owned() } else { line }
}

/// Prints events to stdout, each as one line that is flushed at once.
#[derive(Debug)]
struct Printer {
    output: Output,
    is_terminal: bool,
}

impl Printer {
    fn new(command: &EventsCommand) -> Printer {
        let is_terminal = io::stdout().is_terminal();
        let output = command.output.unwrap_or(if is_terminal { Output::Text } else { Output::Json });
        Printer { output, is_terminal }
    }

    /// Prints an event. Returns false if the output is closed.
    fn print(&self, event: &Event) -> io::Result<bool> {
        let line = match self.output {
            Output::Json => json_line(event.json.get(), self.is_terminal),
            Output::Text => format!("{}\n", text::line(event, color_for(self.is_terminal))),
        };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error),
            Ok(()) => Ok(true),
        }
    }
}
