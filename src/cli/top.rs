//! `top`: a live view of a bridge in the terminal (docs/protocol.md#top).
//!
//! The model (`model`, `keys`) is a function of the client's reports, the keys and the time; `view` draws it. This file
//! and `terminal` are the edge: signals, the terminal and the client.

mod columns;
mod data;
mod detail;
mod keys;
mod link;
mod model;
mod redraw;
mod rows;
mod terminal;
mod view;

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::{Stream, StreamExt as _};
use rustix::process::{Signal as Kill, getpid, kill_process};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use self::{
    data::Clock,
    keys::Next,
    link::Update,
    model::Model,
    redraw::Redraw,
    terminal::{Input, Screen},
    view::Look,
};
use super::{
    connection::ConnectionArgs,
    event_filter::FilterArgs,
    exit::{CliError, FAILED, HANGUP, INTERRUPTED},
    logging::color_for,
};
use crate::client::{Client, Error, Events};

/// The time after Ctrl-Z within which the process stops, unless nothing can continue it.
const STOPS_WITHIN: Duration = Duration::from_millis(250);

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(after_help = "\
Keys: 1-4 or Tab view, arrows or j k move, Enter all fields, / filter, s S sort, p pause, ? help, q quit.

Examples:
  boilerhouse-bridge top --url http://localhost:3000
  boilerhouse-bridge top --url http://localhost:3000 --instance-filter 'labels.team=a'

Exit codes: 0 success, 1 failure, 2 wrong usage or no terminal, 4 credential refused, \
5 no connection within --connect-timeout, 129 terminal closed, 130 interrupted.")]
pub(super) struct Top {
    #[command(flatten)]
    connection: ConnectionArgs,

    #[command(flatten)]
    filter: FilterArgs,
}

impl Top {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        if !terminal::is_available() {
            let words = "`top` needs a terminal for input and output; use `boilerhouse-bridge events` in a pipe";
            return Err(CliError::usage(words));
        }
        let builder = self.filter.apply(self.connection.client().await?);
        let client = builder.build().map_err(|error| CliError::usage(error.to_string()))?;
        let mut signals = Signals::new().context("cannot wait for signals")?;
        // The screen is left before an error is printed.
        let mut screen = Some(Screen::enter().context("cannot use the terminal")?);
        self.follow(&client, &mut signals, &mut screen).await
    }

    /// Shows the events until a key, a signal or a final error ends it.
    async fn follow(
        &self,
        client: &Client,
        signals: &mut Signals,
        screen: &mut Option<Screen>,
    ) -> Result<u8, CliError> {
        let look = Look { is_colored: color_for(true) };
        let mut inputs = terminal::inputs().context("cannot read the terminal")?;
        let events = client.events();
        let mut opened = events.watch_connections();
        let mut updates = std::pin::pin!(updates(events));
        let mut model = Model::new(client.url(), Clock::read());
        let mut redraw = Redraw::default();
        let connect_by = Instant::now() + self.connection.connect_timeout;
        let mut last_error = None;
        loop {
            tokio::select! {
                biased;
                signalled = signals.next() => match signalled {
                    Signalled::End(code) => return Ok(code),
                    Signalled::Continued => {
                        reenter(screen)?;
                        redraw.request();
                    }
                },
                input = inputs.recv() => {
                    redraw.request();
                    let next = match input {
                        Some(Input::Key(key)) => model.key(key),
                        Some(Input::Other) => Next::Continue,
                        None => return Ok(HANGUP),
                    };
                    match next {
                        Next::Continue => {}
                        Next::Quit => return Ok(0),
                        Next::Interrupt => return Ok(INTERRUPTED),
                        Next::Suspend => signals.suspend(screen).await?,
                    }
                }
                () = sleep_until(redraw.due(Instant::now())) => {
                    model.tick(Clock::read());
                    if let Some(screen) = screen {
                        let drawn = screen.draw(|frame| view::render(&mut model, look, frame));
                        drawn.context("cannot write to the terminal")?;
                    }
                    redraw.drawn(Instant::now());
                }
                () = sleep_until(connect_by), if !model.links.was_open() => {
                    return Err(self.connection.cannot_connect(last_error));
                }
                // A stream can be open for long before its first event.
                Ok(()) = opened.changed() => {
                    let connections = *opened.borrow_and_update();
                    model.links.connected(connections);
                    redraw.request();
                }
                update = updates.next() => {
                    let Some(update) = update else { return Ok(FAILED) };
                    model.update(&update, Clock::read());
                    redraw.request();
                    match update.item {
                        Err(error) if error.is_final() => return Err(self.connection.final_error(error)),
                        Err(Error::Malformed { .. }) | Ok(_) => {}
                        Err(error) => last_error = Some(error),
                    }
                }
            }
        }
    }
}

/// Returns what a client reports. A connection that is being established is not started again by other events.
fn updates(events: Events) -> impl Stream<Item = Update> {
    futures::stream::unfold(events, async |mut events| {
        let item = events.next().await?;
        let update = Update { item, connections: events.connections(), retry_at: events.reconnects_at() };
        Some((update, events))
    })
}

/// Takes the terminal over again, because another program may have changed it.
fn reenter(screen: &mut Option<Screen>) -> Result<(), CliError> {
    *screen = None;
    *screen = Some(Screen::enter().context("cannot use the terminal")?);
    Ok(())
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug)]
enum Signalled {
    /// The command ends with this exit code.
    End(u8),
    /// The process was stopped, and continues.
    Continued,
}

/// The signals that end or continue the command.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    continued: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            continued: signal(SignalKind::from_raw(Kill::CONT.as_raw()))?,
        })
    }

    /// Waits for a signal.
    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.interrupt.recv() => Signalled::End(INTERRUPTED),
            _ = self.terminate.recv() => Signalled::End(0),
            _ = self.hangup.recv() => Signalled::End(HANGUP),
            _ = self.continued.recv() => Signalled::Continued,
        }
    }

    /// Stops the process until it is continued. Without a shell that could continue it, the system does not stop it.
    async fn suspend(&mut self, screen: &mut Option<Screen>) -> Result<(), CliError> {
        *screen = None;
        kill_process(getpid(), Kill::TSTP).context("cannot stop")?;
        tokio::select! {
            _ = self.continued.recv() => {}
            () = sleep(STOPS_WITHIN) => {}
        }
        reenter(screen)
    }
}
