//! The events of a client, across connections.
//!
//! Guarantees:
//! - [`Events::next`] is cancel safe: a delay, a deadline and an open connection survive it. Only a connection that is being
//!   established starts again.
//! - No event is returned twice (see `resume`).

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
    event::Event,
    resume::Progress,
};

/// The events of a stream. It reconnects after each error that is not final.
#[derive(Debug)]
pub struct Events {
    client: Client,
    phase: Phase,
    backoff: Backoff,
    progress: Progress,
    /// The cursor when the connection was opened.
    resumed_after: Option<String>,
    /// The token was rejected once. It is not read again until a connection works.
    was_unauthorized: bool,
    connections: watch::Sender<u64>,
}

#[derive(Debug)]
enum Phase {
    Connect { at: Instant },
    Open(Box<EventConnection>),
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
                            self.connections.send_modify(|connections| *connections += 1);
                            self.was_unauthorized = false;
                            self.phase = Phase::Open(Box::new(EventConnection::new(connection)));
                        }
                        Err(error) => {
                            if let Some(error) = self.on_rejection(error) {
                                return Some(Err(error));
                            }
                        }
                    }
                }
                Phase::Open(connection) => match connection.next().await {
                    Ok(event) => {
                        self.backoff.reset();
                        self.progress.add(event);
                    }
                    Err(error @ Error::Malformed { .. }) => return Some(Err(error)),
                    Err(error) => {
                        self.progress.connection_ended(connection.last_id());
                        self.reconnect_after(&error);
                        return Some(Err(error));
                    }
                },
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

    /// Returns the number of connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        *self.connections.borrow()
    }

    /// Returns the number of connections so far, and its changes. [`Events::next`] opens them.
    #[must_use]
    pub fn watch_connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }

    /// Returns when the next connection is tried, while there is none.
    #[must_use]
    pub fn reconnects_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Connect { at } => Some(at),
            Phase::Open(_) | Phase::Ended => None,
        }
    }

    /// Returns the events as a [`Stream`].
    pub fn into_stream(self) -> impl Stream<Item = Result<Event, Error>> + Send {
        futures::stream::unfold(self, async |mut events| events.next().await.map(|item| (item, events)))
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
