//! The client: its settings, and one connection with them.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use super::{
    connection::{Connection, Options},
    connector::Connector,
    endpoint::{Credential, Endpoint, Transport},
    error::Error,
    filter::{ClaimFilter, InstanceFilter, params},
    tls,
};

/// The time for one connection, from the lookup of the name to the head of the response. It is longer than the 10 s for
/// which a bridge waits for its first lists, so that its answer arrives (docs/protocol.md#temporary-rejections).
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
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
    /// There is a credential, also one in the URL, which plain HTTP may carry to loopback only.
    is_checked: bool,
    tls: Option<Arc<ClientConfig>>,
    parameters: Vec<(&'static str, String)>,
    since: Option<String>,
    connect_timeout: Duration,
    silence: Option<Duration>,
    user_agent: String,
}

impl Builder {
    /// Selects the transport. The default is WebSocket, unless the path of the URL is that of an SSE stream of a bridge:
    /// `/api/sse`, `/api/events/stream`, `/events/stream` or `/events`, also below another path.
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

    /// Selects exact event types or families (`instance`, `claim`, `tenant`, `pool`, `telemetry`, `mqtt`). The bridge
    /// filters. Control events always come.
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

    /// Sets the time for one connection (default 15 s).
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
        let has_credential = self.credential.is_some() || endpoint.has_ticket();
        let is_checked = has_credential && !self.allow_insecure && self.connector.is_tcp();
        if is_checked {
            endpoint.check_credential()?;
        }
        let tls = endpoint.is_tls.then(|| tls::config(true, self.ca_file.as_deref())).transpose()?;
        let mut parameters = Vec::new();
        if !self.types.is_empty() {
            parameters.push(("types", self.types.join(",")));
        }
        parameters.extend(params(&self.instances, &self.claims).map(|params| ("params", params)));
        parameters.extend(self.snapshot.map(|state| ("snapshot", if state { "state" } else { "none" }.to_owned())));
        let Builder { connector, credential, since, connect_timeout, silence, user_agent, .. } = self;
        Ok(Client {
            endpoint,
            connector,
            credential,
            is_checked,
            tls,
            parameters,
            since,
            connect_timeout,
            silence,
            user_agent,
        })
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

    /// Opens one connection, which resumes after this id, and returns its blocks as they are sent. It is for streams of any
    /// server. The caller reconnects: [`Backoff`](super::Backoff) returns the delays of [`Client::events`].
    ///
    /// # Errors
    /// There is no connection, or the response is no stream.
    pub async fn connect(&self, last_id: Option<&str>) -> Result<Connection, Error> {
        let token = self.token()?;
        let options = Options {
            endpoint: &self.endpoint,
            connector: &self.connector,
            is_checked: self.is_checked,
            tls: self.tls.as_ref(),
            token: token.as_deref(),
            cursor: last_id,
            parameters: &self.parameters,
            silence: self.silence,
            user_agent: &self.user_agent,
        };
        let connecting = timeout(self.connect_timeout, Connection::open(&options));
        connecting
            .await
            .unwrap_or_else(|_| Err(self.no_connection(format!("no answer within {:?}", self.connect_timeout))))
    }

    /// Returns the token, from its file if it is in one.
    ///
    /// # Errors
    /// [`Error::Token`]
    pub fn token(&self) -> Result<Option<String>, Error> {
        match &self.credential {
            None => Ok(None),
            Some(Credential::Token(token)) => Ok(Some(token.clone())),
            Some(Credential::File(path)) => read_token(path).map(Some),
        }
    }

    /// Returns the error that says why there is no connection.
    pub(super) fn no_connection(&self, reason: String) -> Error {
        let Endpoint { host, port, .. } = &self.endpoint;
        Error::Connect { address: format!("{host}:{port}"), reason }
    }

    /// Returns whether the token is read from a file, which can change.
    pub(super) fn has_token_file(&self) -> bool {
        matches!(self.credential, Some(Credential::File(_)))
    }
}

/// Reads the token of a file.
fn read_token(path: &Path) -> Result<String, Error> {
    use std::io::Read as _;
    let failed = |reason: String| Error::Token { path: path.display().to_string(), reason };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > MAX_TOKEN_BYTES {
        return Err(failed(format!("the file has more than {} KiB", MAX_TOKEN_BYTES >> 10)));
    }
    match text.trim() {
        "" => Err(failed("the file is empty".to_owned())),
        token => Ok(token.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream ticket is a credential too.
    #[test]
    fn credentials_in_the_url_need_tls_or_loopback() {
        let builder = |url: &str| Client::builder(url);
        for url in [
            "http://10.0.0.1/events?token=secret",
            "ws://bridge/events/ws?a=1&rstream.token=secret",
            "h?%74oken=secret",
        ] {
            let error = builder(url).build().unwrap_err().to_string();
            assert!(error.starts_with("a credential is not sent over plain HTTP"), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
            builder(url).allow_insecure(true).build().unwrap();
            builder(url).connector(async || Ok(tokio::io::duplex(1).0)).build().unwrap();
        }
        for url in ["https://10.0.0.1/events?token=t", "localhost/events?token=t", "http://10.0.0.1/events?tokens=t"] {
            builder(url).build().unwrap();
        }
    }

    #[test]
    fn a_token_is_never_cut_at_the_bound_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let max = usize::try_from(MAX_TOKEN_BYTES).unwrap();
        std::fs::write(file.path(), "token".to_owned() + &" ".repeat(max - 5)).unwrap();
        assert_eq!(read_token(file.path()).unwrap(), "token");
        std::fs::write(file.path(), "t".repeat(max + 1)).unwrap();
        let error = read_token(file.path()).unwrap_err().to_string();
        assert!(error.contains("the file has more than 64 KiB"), "{error}");
    }
}
