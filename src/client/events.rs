//! The events of a client, across connections.
//!
//! Guarantees:
//! - [`Events::next`] is cancel safe: a delay, a deadline and an open connection survive it. Only a connection that is being
//!   established starts again.
//! - No event is returned twice (see `resume`), except `upstream.down`, which each stream repeats during an outage.

use std::{future::pending, time::Duration};

use futures::Stream;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    backoff::{Backoff, random},
    connect::Client,
    connection::EventConnection,
    error::Error,
    event::{Event, Payload},
    resume::Progress,
};

/// A connection without an event counts after this time, within which a bridge ends a stream that only refuses a request.
const SETTLE: Duration = Duration::from_secs(1);

/// The events of a stream. It reconnects after each error that is not final.
#[derive(Debug)]
pub struct Events {
    client: Client,
    phase: Phase,
    backoff: Backoff,
    progress: Progress,
    /// The cursor when the connection was opened.
    resumed_after: Option<String>,
    /// The token was rejected once. It is not read again until a connection counts.
    was_unauthorized: bool,
    connections: watch::Sender<u64>,
}

#[derive(Debug)]
enum Phase {
    Connect {
        at: Instant,
    },
    Open {
        connection: Box<EventConnection>,
        /// When it counts although no event has come. `None`: it counts.
        settles_at: Option<Instant>,
    },
    Ended,
}

impl Client {
    /// Returns the events. The first read connects.
    #[must_use]
    pub fn events(&self) -> Events {
        Events {
            client: self.clone(),
            phase: Phase::Connect { at: Instant::now() },
            backoff: Backoff::default(),
            progress: Progress::after(self.since().map(str::to_owned)),
            resumed_after: None,
            was_unauthorized: false,
            connections: watch::Sender::new(0),
        }
    }
}

impl Events {
    /// Returns the next event, or an error. `None` follows a final error ([`Error::is_final`]); after any other error the
    /// stream continues, with a new connection where it is needed. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            if let Some(event) = self.progress.take() {
                return Some(Ok(event));
            }
            match &mut self.phase {
                Phase::Ended => return None,
                Phase::Connect { at } => {
                    sleep_until(*at).await;
                    match self.client.connect(self.progress.cursor()).await {
                        Ok(connection) => {
                            self.resumed_after = self.progress.cursor().map(str::to_owned);
                            self.phase = Phase::Open {
                                connection: Box::new(EventConnection::new(connection)),
                                settles_at: Some(Instant::now() + SETTLE),
                            };
                        }
                        Err(error) => {
                            if let Some(error) = self.on_rejection(error) {
                                return Some(Err(error));
                            }
                        }
                    }
                }
                Phase::Open { connection, settles_at } => {
                    let next = tokio::select! {
                        biased;
                        next = connection.next() => next,
                        () = wait_until(*settles_at) => {
                            self.count_connection();
                            continue;
                        }
                    };
                    match next {
                        // A bridge refuses some requests of SSE with a stream that has only this event.
                        Ok(event) if matches!(event.payload, Payload::StreamClosing(_)) => self.progress.add(event),
                        Ok(event) => {
                            self.backoff.reset();
                            self.progress.add(event);
                            self.count_connection();
                        }
                        Err(error @ Error::Malformed { .. }) => {
                            self.count_connection();
                            return Some(Err(error));
                        }
                        Err(error) => {
                            self.progress.connection_ended(connection.last_id());
                            self.reconnect_after(&error);
                            return Some(Err(error));
                        }
                    }
                }
            }
        }
    }

    /// Returns the cursor up to which the events were read, for [`ClientBuilder::since`](crate::client::Builder::since).
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.progress.cursor()
    }

    /// Returns the cursor after which the last connection resumes, if it resumes.
    #[must_use]
    pub fn resumed_after(&self) -> Option<&str> {
        self.resumed_after.as_deref()
    }

    /// Returns the number of connections that have worked so far: they have sent an event other than `stream.closing`, or
    /// have stayed open for 1 s.
    #[must_use]
    pub fn connections(&self) -> u64 {
        *self.connections.borrow()
    }

    /// Returns [`Events::connections`] and its changes. [`Events::next`] opens them.
    #[must_use]
    pub fn watch_connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }

    /// Returns when the next connection is tried, while there is none.
    #[must_use]
    pub fn reconnects_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Connect { at } => Some(at),
            Phase::Open { .. } | Phase::Ended => None,
        }
    }

    /// Returns the events as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> + Send {
        futures::stream::unfold(self, async |mut events| events.next().await.map(|item| (item, events)))
    }

    /// Records that the connection works.
    fn count_connection(&mut self) {
        if let Phase::Open { settles_at, .. } = &mut self.phase
            && settles_at.take().is_some()
        {
            self.connections.send_modify(|connections| *connections += 1);
            self.was_unauthorized = false;
        }
    }

    /// Handles a rejected connection. Returns the error unless the next connection is tried at once.
    fn on_rejection(&mut self, error: Error) -> Option<Error> {
        let now = Instant::now();
        // A release that does not accept the encoding of the cursor (docs/protocol.md#what-clients-must-do).
        if matches!(&error, Error::Status { parameter: Some(name), .. } if name == "lastEventId")
            && self.progress.cursor().is_some()
        {
            self.progress.forget_cursor();
            self.phase = Phase::Connect { at: now };
            return Some(Error::CursorRejected(error.to_string()));
        }
        // A rotated token: the file is read again, once.
        if error.is_unauthorized() && self.client.has_token_file() && self.connections() > 0 && !self.was_unauthorized {
            self.was_unauthorized = true;
            self.phase = Phase::Connect { at: now };
            return None;
        }
        // Where a stream was open, a proxy can answer in its place for a while.
        let can_pass =
            matches!(&error, Error::NotAStream { .. } | Error::Redirect { .. } | Error::Status { status: 404, .. });
        let error =
            if can_pass && self.connections() > 0 { self.client.no_connection(error.to_string()) } else { error };
        if error.is_final() {
            self.phase = Phase::Ended;
        } else {
            self.reconnect_after(&error);
        }
        Some(error)
    }

    fn reconnect_after(&mut self, error: &Error) {
        self.phase = Phase::Connect { at: Instant::now() + self.backoff.next(error.retry_after(), random()) };
    }
}

/// Waits until this time, or without end.
async fn wait_until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => pending().await,
    }
}
