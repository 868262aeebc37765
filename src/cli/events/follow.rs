//! A stream that reports its connections on stderr.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::super::{connection::ConnectionArgs, exit::CliError, logging::report};
use crate::client::{Client, Error, Event, Events};

/// The events of a client. Lost and new connections, and malformed events, are reported.
#[derive(Debug)]
pub(super) struct Follow<'a> {
    events: Events,
    connection: &'a ConnectionArgs,
    connect_by: Instant,
    opened: watch::Receiver<u64>,
    /// What the client has yielded together with a new connection.
    held: Option<Item>,
    lost_at: Option<Instant>,
    last_error: Option<Error>,
}

/// What a client yields: an event, an error, or the end.
type Item = Option<Result<Event, Error>>;

/// What a stream yields.
#[derive(Debug)]
pub(super) enum Followed {
    /// A connection works ([`Events::connections`]). It precedes its events, but not the `stream.closing` of a stream that
    /// only refuses the request.
    Connected,
    /// An event.
    Event(Box<Event>),
    /// An event that cannot be parsed. It was reported.
    Malformed,
    /// The server does not accept the cursor. It was reported.
    CursorRejected,
}

impl<'a> Follow<'a> {
    pub(super) fn new(client: &Client, connection: &'a ConnectionArgs) -> Follow<'a> {
        let (events, connect_by) = (client.events(), Instant::now() + connection.connect_timeout);
        let opened = events.watch_connections();
        Follow { events, connection, connect_by, opened, held: None, lost_at: None, last_error: None }
    }

    /// Returns the cursor after which the last connection resumes.
    pub(super) fn resumed_after(&self) -> Option<&str> {
        self.events.resumed_after()
    }

    /// Returns what follows.
    ///
    /// # Errors
    /// No stream within `--connect-timeout`, or an error after which no connection is tried. It has the exit code.
    pub(super) async fn next(&mut self) -> Result<Followed, CliError> {
        loop {
            let is_connected = self.events.connections() > 0;
            let item = match self.held.take() {
                Some(item) => item,
                None => {
                    let deadline = if is_connected { None } else { Some(self.connect_by) };
                    match self.read(deadline).await? {
                        Some(item) if !self.opened.has_changed().unwrap_or(false) => item,
                        item => {
                            self.opened.mark_unchanged();
                            self.held = item;
                            if let Some(lost_at) = self.lost_at.take() {
                                report(&format!("connected again after {:.1} s", lost_at.elapsed().as_secs_f64()));
                            }
                            return Ok(Followed::Connected);
                        }
                    }
                }
            };
            match item {
                None => return Err(CliError::failed("the stream has ended")),
                Some(Ok(event)) => return Ok(Followed::Event(Box::new(event))),
                Some(Err(error)) if error.is_final() => return Err(self.connection.final_error(error)),
                Some(Err(error @ Error::Malformed { .. })) => {
                    report(&format!("{error}; it is left out"));
                    return Ok(Followed::Malformed);
                }
                Some(Err(error @ Error::CursorRejected(_))) => {
                    report(&error.to_string());
                    return Ok(Followed::CursorRejected);
                }
                Some(Err(error)) => self.on_lost(error, is_connected),
            }
        }
    }

    /// Returns what the client yields, or `None` when a connection works and nothing has arrived yet.
    ///
    /// # Errors
    /// The deadline has passed.
    async fn read(&mut self, deadline: Option<Instant>) -> Result<Option<Item>, CliError> {
        let reading = async {
            tokio::select! {
                biased;
                _ = self.opened.changed() => None,
                item = self.events.next() => Some(item),
            }
        };
        match deadline {
            None => Ok(reading.await),
            Some(deadline) => match timeout_at(deadline, reading).await {
                Ok(read) => Ok(read),
                Err(_) => Err(self.connection.cannot_connect(self.last_error.take())),
            },
        }
    }

    fn on_lost(&mut self, error: Error, was_connected: bool) {
        let at = self.events.reconnects_at();
        let wait = at.map_or(Duration::ZERO, |at| at.duration_since(Instant::now()));
        if was_connected || self.last_error.is_none() {
            report(&format!("{error}; next try in {:.1} s", wait.as_secs_f64()));
        }
        if was_connected {
            self.lost_at.get_or_insert_with(Instant::now);
        }
        self.last_error = Some(error);
    }
}
