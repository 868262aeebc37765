//! A stream that reports its connections on stderr.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use super::super::{connection::ConnectionArgs, exit::CliError, logging::escape};
use crate::client::{Client, Error, Event, Events};

/// The events of a client. Lost and new connections, and malformed events, are reported.
#[derive(Debug)]
pub(super) struct Follow<'a> {
    events: Events,
    connection: &'a ConnectionArgs,
    connect_by: Instant,
    lost_at: Option<Instant>,
    last_error: Option<Error>,
}

/// What a stream yields.
#[derive(Debug)]
pub(super) enum Followed {
    /// An event.
    Event(Box<Event>),
    /// The connection was lost. The next one follows by itself.
    Lost,
}

impl<'a> Follow<'a> {
    pub(super) fn new(client: &Client, connection: &'a ConnectionArgs) -> Follow<'a> {
        let connect_by = Instant::now() + connection.connect_timeout;
        Follow { events: client.events(), connection, connect_by, lost_at: None, last_error: None }
    }

    /// Returns the cursor up to which the events were read.
    pub(super) fn cursor(&self) -> Option<&str> {
        self.events.cursor()
    }

    /// Returns what follows.
    ///
    /// # Errors
    /// No stream within `--connect-timeout`, or an error after which no connection is tried. It has the exit code.
    pub(super) async fn next(&mut self) -> Result<Followed, CliError> {
        loop {
            let is_connected = self.events.connections() > 0;
            let item = if is_connected {
                self.events.next().await
            } else {
                let item = timeout_at(self.connect_by, self.events.next()).await;
                item.map_err(|_| self.connection.cannot_connect(self.last_error.take()))?
            };
            match item {
                Some(Ok(event)) => {
                    if let Some(lost_at) = self.lost_at.take() {
                        report(&format!("connected again after {:.1} s", lost_at.elapsed().as_secs_f64()));
                    }
                    return Ok(Followed::Event(Box::new(event)));
                }
                Some(Err(error)) if error.is_final() => return Err(self.connection.final_error(error)),
                Some(Err(error @ Error::Malformed { .. })) => report(&format!("{error}; it is left out")),
                Some(Err(error)) => {
                    let at = self.events.reconnects_at();
                    let wait = at.map_or(Duration::ZERO, |at| at.duration_since(Instant::now()));
                    if is_connected || self.last_error.is_none() {
                        report(&format!("{error}; next try in {:.1} s", wait.as_secs_f64()));
                    }
                    self.last_error = Some(error);
                    if is_connected {
                        self.lost_at.get_or_insert_with(Instant::now);
                        return Ok(Followed::Lost);
                    }
                }
                None => return Err(anyhow::anyhow!("the stream has ended").into()),
            }
        }
    }
}

/// Reports to stderr, with the time.
pub(super) fn report(message: &str) {
    let time = jiff::Timestamp::now().strftime("%H:%M:%S");
    // Nothing can be reported when stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{time} {}", escape(message));
}
