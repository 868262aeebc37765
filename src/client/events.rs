//! The client, and its stream of events across connections.
//!
//! Guarantees:
//! - [`Events::next`] is cancel safe: a delay, a deadline and an open connection survive it. Only a connection that is being
//!   established starts again.
//! - No event is returned twice. Only the last event of a resourceVersion or of a difference has an id, and a resume
//!   repeats what has no id (docs/protocol.md#cursor). So the events before it are held back until it has come, and
//!   forgotten if the connection is cut before. Another replica may send other events instead, in another order.

use std::{
    borrow::Cow,
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use rustls::ClientConfig;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    backoff::{Backoff, random},
    connection::{Connection, EventConnection, Options},
    connector::Connector,
    endpoint::{Credential, Endpoint, Transport},
    error::Error,
    event::Event,
    filter::{ClaimFilter, InstanceFilter, params},
    tls,
};

/// The time for one connection, from the lookup of the name to the head of the response.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of events that are held back: more than a difference of a large namespace has. Beyond them, events are returned
/// although their id has not come.
const MAX_HELD_BYTES: usize = 64 << 20;
/// Bytes of a file with a token.
const MAX_TOKEN_BYTES: u64 = 64 << 10;

/// The settings of a client.
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct Builder {
    url: String,
    connector: Connector,
    transport: Option<Transport>,
    credential: Option<Credential>,
    ca_file: Option<PathBuf>,
    instances: InstanceFilter,
    claims: ClaimFilter,
    types: Vec<String>,
    snapshot: Option<bool>,
    since: Option<String>,
    allow_insecure: bool,
    connect_timeout: Duration,
    silence: Option<Duration>,
    user_agent: String,
}

/// A client of one stream. It connects when its events are read.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    connector: Connector,
    credential: Option<Credential>,
    tls: Option<Arc<ClientConfig>>,
    parameters: Vec<(&'static str, String)>,
    since: Option<String>,
    connect_timeout: Duration,
    silence: Option<Duration>,
    user_agent: String,
}

/// The events of a stream. It reconnects after each error that is not final.
#[derive(Debug)]
pub struct Events {
    client: Client,
    phase: Phase,
    backoff: Backoff,
    /// The last id that was returned.
    cursor: Option<String>,
    /// The last id when the connection was opened.
    resumed_after: Option<String>,
    /// Events whose id has not come, and their bytes.
    held: Vec<Event>,
    held_bytes: usize,
    /// Events that are returned next.
    complete: VecDeque<Event>,
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

impl Builder {
    /// Selects the transport. The default is WebSocket, unless the URL names an SSE stream.
    pub fn transport(self, transport: Transport) -> Self {
        Builder { transport: Some(transport), ..self }
    }

    /// Opens connections with this function instead of TCP to the host of the URL: a tunnel, for example. TLS follows if the
    /// URL is one of https. The function is responsible for the secrecy of what it transports: a credential is sent over
    /// plain HTTP too.
    pub fn connector<T, F>(self, open: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
    {
        Builder { connector: Connector::new(open), ..self }
    }

    /// Sends this token.
    pub fn token(self, token: impl Into<String>) -> Self {
        Builder { credential: Some(Credential::Token(token.into())), ..self }
    }

    /// Sends the token in this file, which is read before each connection.
    pub fn token_file(self, path: impl Into<PathBuf>) -> Self {
        Builder { credential: Some(Credential::File(path.into())), ..self }
    }

    /// Trusts the certificates in this PEM file instead of those of the system.
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        Builder { ca_file: Some(path.into()), ..self }
    }

    /// Selects instances. The bridge filters.
    pub fn instances(self, instances: InstanceFilter) -> Self {
        Builder { instances, ..self }
    }

    /// Selects claims. The bridge filters.
    pub fn claims(self, claims: ClaimFilter) -> Self {
        Builder { claims, ..self }
    }

    /// Selects exact event types or families (`instance`, `claim`, `tenant`, `pool`). The bridge filters. Control events
    /// always come.
    pub fn types<T: Into<String>>(self, types: impl IntoIterator<Item = T>) -> Self {
        Builder { types: types.into_iter().map(Into::into).collect(), ..self }
    }

    /// Selects whether the stream starts with the current state. The default is that of the endpoint.
    pub fn snapshot(self, snapshot: bool) -> Self {
        Builder { snapshot: Some(snapshot), ..self }
    }

    /// Resumes after this cursor.
    pub fn since(self, cursor: impl Into<String>) -> Self {
        Builder { since: Some(cursor.into()), ..self }
    }

    /// Sends the credential over plain HTTP to any host.
    pub fn allow_insecure(self, allow_insecure: bool) -> Self {
        Builder { allow_insecure, ..self }
    }

    /// Sets the time for one connection (default 10 s).
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Builder { connect_timeout, ..self }
    }

    /// Sets the silence after which a connection counts as dead. The default follows from the heartbeats: two intervals and
    /// 10 s.
    pub fn silence_timeout(self, silence: Duration) -> Self {
        Builder { silence: Some(silence), ..self }
    }

    /// Sets the header `User-Agent`.
    pub fn user_agent(self, user_agent: impl Into<String>) -> Self {
        Builder { user_agent: user_agent.into(), ..self }
    }

    /// Returns the client.
    ///
    /// # Errors
    /// [`Error::Setting`] for a URL that cannot be used, a credential that would be sent over plain HTTP, or a file of
    /// certificates that cannot be used.
    pub fn build(self) -> Result<Client, Error> {
        let endpoint = Endpoint::parse(&self.url, self.transport)?;
        if self.credential.is_some() && !self.allow_insecure && self.connector.is_tcp() {
            endpoint.check_credential()?;
        }
        let tls = endpoint.is_tls.then(|| tls::config(self.ca_file.as_deref())).transpose()?;
        let mut parameters = Vec::new();
        if !self.types.is_empty() {
            parameters.push(("types", self.types.join(",")));
        }
        parameters.extend(params(&self.instances, &self.claims).map(|params| ("params", params)));
        parameters.extend(self.snapshot.map(|state| ("snapshot", if state { "state" } else { "none" }.to_owned())));
        let Builder { connector, credential, since, connect_timeout, silence, user_agent, .. } = self;
        Ok(Client { endpoint, connector, credential, tls, parameters, since, connect_timeout, silence, user_agent })
    }
}

impl Client {
    /// Returns the settings of a client for a bridge (`http://localhost:3000`) or for one stream
    /// (`https://host/events/stream`).
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder {
            url: url.into(),
            connector: Connector::default(),
            transport: None,
            credential: None,
            ca_file: None,
            instances: InstanceFilter::new(),
            claims: ClaimFilter::new(),
            types: Vec::new(),
            snapshot: None,
            since: None,
            allow_insecure: false,
            connect_timeout: CONNECT_TIMEOUT,
            silence: None,
            user_agent: concat!("boilerhouse-bridge/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// Returns the URL of the stream, without its query.
    #[must_use]
    pub fn url(&self) -> String {
        self.endpoint.url()
    }

    /// Returns the cursor after which the events start, if there is one.
    #[must_use]
    pub fn since(&self) -> Option<&str> {
        self.since.as_deref()
    }

    /// Returns the events. The first read connects.
    #[must_use]
    pub fn events(&self) -> Events {
        Events {
            client: self.clone(),
            phase: Phase::Connect { at: Instant::now() },
            backoff: Backoff::default(),
            cursor: self.since.clone(),
            resumed_after: None,
            held: Vec::new(),
            held_bytes: 0,
            complete: VecDeque::new(),
            was_unauthorized: false,
            connections: watch::Sender::new(0),
        }
    }

    /// Opens one connection, which resumes after this id, and returns its blocks as they are sent. It is for streams of any
    /// server. The caller reconnects: [`Backoff`] returns the delays of [`Client::events`].
    ///
    /// # Errors
    /// There is no connection, or the response is no stream.
    pub async fn connect(&self, last_id: Option<&str>) -> Result<Connection, Error> {
        let token = match &self.credential {
            None => None,
            Some(Credential::Token(token)) => Some(token.clone()),
            Some(Credential::File(path)) => Some(read_token(path)?),
        };
        let options = Options {
            endpoint: &self.endpoint,
            connector: &self.connector,
            tls: self.tls.as_ref(),
            token: token.as_deref(),
            cursor: last_id,
            parameters: &self.parameters,
            silence: self.silence,
            user_agent: &self.user_agent,
        };
        let connecting = timeout(self.connect_timeout, Connection::open(&options));
        connecting.await.unwrap_or_else(|_| {
            let Endpoint { host, port, .. } = &self.endpoint;
            let reason = format!("no answer within {:?}", self.connect_timeout);
            Err(Error::Connect { address: format!("{host}:{port}"), reason })
        })
    }
}

impl Events {
    /// Returns the next event, or an error. `None` follows a final error ([`Error::is_final`]); after any other error the
    /// stream continues, with a new connection where it is needed. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            if let Some(event) = self.complete.pop_front() {
                if let Some(id) = &event.id {
                    self.cursor = Some(id.clone());
                }
                return Some(Ok(event));
            }
            match &mut self.phase {
                Phase::Ended => return None,
                Phase::Connect { at } => {
                    sleep_until(*at).await;
                    match self.client.connect(self.cursor.as_deref()).await {
                        Ok(connection) => {
                            self.resumed_after.clone_from(&self.cursor);
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
                    Ok(event) => self.accept(event),
                    Err(error @ Error::Malformed { .. }) => return Some(Err(error)),
                    Err(error) => {
                        // An id without an event does not cover what is forgotten here.
                        if let Some(id) = connection.last_id().filter(|_| self.held.is_empty()) {
                            self.cursor = Some(id.to_owned()).filter(|id| !id.is_empty());
                        }
                        self.held.clear();
                        self.held_bytes = 0;
                        self.reconnect_after(&error);
                        return Some(Err(error));
                    }
                },
            }
        }
    }

    /// Returns the cursor up to which the events were read, for [`Builder::since`].
    #[must_use]
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
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
            && self.cursor.is_some()
        {
            self.cursor = None;
            self.phase = Phase::Connect { at: now };
            return Some(Error::CursorRejected(error.to_string()));
        }
        // A rotated token: the file is read again, once.
        let has_file = matches!(self.client.credential, Some(Credential::File(_)));
        if error.is_unauthorized() && has_file && self.connections() > 0 && !self.was_unauthorized {
            self.was_unauthorized = true;
            self.phase = Phase::Connect { at: now };
            return None;
        }
        // Where a stream was open, a proxy can answer in its place for a while.
        let can_pass =
            matches!(&error, Error::NotAStream { .. } | Error::Redirect { .. } | Error::Status { status: 404, .. });
        let error = if can_pass && self.connections() > 0 {
            let Endpoint { host, port, .. } = &self.client.endpoint;
            Error::Connect { address: format!("{host}:{port}"), reason: error.to_string() }
        } else {
            error
        };
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

    /// Records an event: it is returned next, or held back.
    fn accept(&mut self, event: Event) {
        self.backoff.reset();
        self.held_bytes += event.json.get().len();
        let waits = event.id.is_none() && (!self.held.is_empty() || self.is_followed_by_id(&event));
        self.held.push(event);
        if !waits || self.held_bytes > MAX_HELD_BYTES {
            self.release();
        }
    }

    /// Returns what is held back next.
    fn release(&mut self) {
        self.complete.extend(self.held.drain(..));
        self.held_bytes = 0;
    }

    /// Returns whether another event follows at once, which has the id of this one. Only the keys of a bridge end with the
    /// type (docs/protocol.md#events-about-objects): the events of other servers do not wait.
    fn is_followed_by_id(&self, event: &Event) -> bool {
        #[derive(Deserialize)]
        struct Key<'a> {
            #[serde(borrow)]
            key: Option<Cow<'a, str>>,
        }
        let key = || serde_json::from_str::<Key<'_>>(event.json.get()).ok().and_then(|object| object.key);
        let is_of_bridge = |key: &str| key.strip_suffix(&event.kind).is_some_and(|rest| rest.ends_with('.'));
        self.cursor.is_some() && !event.kind.is_empty() && key().is_some_and(|key| is_of_bridge(&key))
    }
}

/// Reads the token of a file.
fn read_token(path: &Path) -> Result<String, Error> {
    use std::io::Read as _;
    let failed = |reason: String| Error::Token { path: path.display().to_string(), reason };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    match text.trim() {
        "" => Err(failed("the file is empty".to_owned())),
        token => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds of the events that are returned next.
    fn accept(events: &mut Events, data: &str) -> Vec<String> {
        events.accept(Event::from_json(data).unwrap());
        events.complete.drain(..).map(|event| event.kind).collect()
    }

    #[test]
    fn events_are_held_back_until_their_id_has_come() {
        let mut events = Client::builder("http://h").build().unwrap().events();
        let (first, last) = (r#"{"type":"a","key":"u.1.a"}"#, r#"{"type":"b","key":"u.1.b","id":"2"}"#);
        assert_eq!(accept(&mut events, first), ["a"], "a server without ids");
        events.cursor = Some("1".to_owned());
        assert_eq!(accept(&mut events, r#"{"type":"pool.depth"}"#), ["pool.depth"]);
        assert!(accept(&mut events, first).is_empty());
        assert!(accept(&mut events, r#"{"type":"c"}"#).is_empty(), "the order stays");
        assert_eq!(accept(&mut events, last), ["a", "c", "b"]);
        events.held_bytes = MAX_HELD_BYTES;
        assert_eq!(accept(&mut events, first), ["a"], "the buffer is bounded");
        assert_eq!((events.held.len(), events.held_bytes), (0, 0));
    }
}
