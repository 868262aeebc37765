//! One connection: the HTTP request, and the blocks or events of its response.
//!
//! [`Connection`] reads blocks of any text. [`EventConnection`] parses them as events of a bridge.
//!
//! Guarantees: [`Connection::next`] and [`EventConnection::next`] are cancel safe. Redirects are not followed.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER, UPGRADE, USER_AGENT},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use serde::Deserialize;
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    connector::Connector,
    endpoint::{Endpoint, Transport},
    error::{Error, first_line},
    event::{Event, Payload, StreamClosing},
    rate_limit::RateLimit,
    silence::SilenceLimit,
    sse::{self, Block, Part},
};

/// Maximum size of one event. A bridge sends less than 32 KiB, unless one object alone is larger.
pub const MAX_EVENT_BYTES: usize = 4 << 20;
/// Bytes of an error response that are read.
const MAX_ERROR_BYTES: usize = 64 << 10;
/// The time in which a connection ends after its request has failed.
const DRIVER_END: Duration = Duration::from_secs(1);
/// Characters of a malformed event that the error repeats.
const MAX_MALFORMED_CHARS: usize = 200;

/// What one connection needs.
#[derive(Debug)]
pub(super) struct Options<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) connector: &'a Connector,
    /// The address must be one to which a credential may be sent.
    pub(super) is_checked: bool,
    pub(super) tls: Option<&'a Arc<ClientConfig>>,
    pub(super) token: Option<&'a str>,
    pub(super) cursor: Option<&'a str>,
    pub(super) parameters: &'a [(&'static str, String)],
    pub(super) silence: Option<Duration>,
    pub(super) user_agent: &'a str,
}

/// An open stream of blocks. It neither reconnects nor interprets them: [`Events`](super::Events) does.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// Drives HTTP. It ends with the connection.
    _driver: Driver,
    silence: SilenceLimit,
    last_byte: Instant,
    received: VecDeque<Part>,
    /// When the first byte of the oldest received part arrived.
    arrival: Instant,
    /// When the first byte of a block arrived that is not complete.
    incomplete_since: Option<Instant>,
}

/// An open stream of events.
#[derive(Debug)]
pub(super) struct EventConnection {
    blocks: Connection,
    /// The number of events so far.
    number: u64,
    /// What `stream.closing` said.
    closing: Option<StreamClosing>,
}

#[derive(Debug)]
enum Stream {
    Sse { body: Incoming, parser: sse::Parser },
    WebSocket(Box<WebSocketStream<TokioIo<Upgraded>>>),
}

/// A task that is aborted when the value is dropped.
#[derive(Debug)]
struct Driver(JoinHandle<hyper::Result<()>>);

impl Driver {
    /// Returns why the connection ended, if it was an error of the connection. A request that was not answered has no
    /// reason of its own.
    async fn cause(&mut self) -> Option<String> {
        let ended = timeout(DRIVER_END, &mut self.0).await.ok()?.ok()?;
        ended.err().map(|error| innermost(&error))
    }
}

/// Returns the text of an error of TLS. That about a message of another protocol says little to a person.
fn tls_error(error: &std::io::Error) -> String {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "the server does not answer with TLS (does it serve http?)".to_owned()
        }
        _ => format!("TLS: {error}"),
    }
}

/// Returns the innermost cause of an error. That of hyper says "connection error" only.
pub(crate) fn innermost(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Connects and sends the request.
    ///
    /// # Errors
    /// There is no connection, or the response is no stream.
    pub(super) async fn open(options: &Options<'_>) -> Result<Connection, Error> {
        let endpoint = options.endpoint;
        let failed =
            |reason: String| Error::Connect { address: format!("{}:{}", endpoint.host, endpoint.port), reason };
        let (io, peer) = options.connector.open(endpoint).await.map_err(|error| failed(error.to_string()))?;
        if let Some(peer) = peer.filter(|_| options.is_checked) {
            endpoint.check_peer(peer)?;
        }
        let (mut sender, mut driver) = match options.tls {
            None => handshake(io).await,
            Some(config) => {
                let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| failed(error.to_string()))?;
                let tls = TlsConnector::from(config.clone()).connect(name, io).await;
                handshake(tls.map_err(|error| failed(tls_error(&error)))?).await
            }
        }
        .map_err(|error| failed(error.to_string()))?;
        let key = BASE64_STANDARD.encode(super::backoff::random().to_le_bytes().repeat(2));
        let response = match sender.send_request(request(options, &key)?).await {
            Ok(response) => response,
            Err(error) => return Err(failed(driver.cause().await.unwrap_or_else(|| innermost(&error)))),
        };
        let stream = match endpoint.transport {
            Transport::Sse => event_stream(response).await?,
            Transport::WebSocket => websocket(response, &key).await?,
        };
        let now = Instant::now();
        Ok(Connection {
            stream,
            _driver: driver,
            silence: SilenceLimit::new(options.silence),
            last_byte: now,
            received: VecDeque::new(),
            arrival: now,
            incomplete_since: None,
        })
    }

    /// Returns the next block with data. Cancel safe.
    ///
    /// # Errors
    /// The connection has ended, was silent for too long, or a block exceeds [`MAX_EVENT_BYTES`].
    pub async fn next(&mut self) -> Result<Block, Error> {
        loop {
            if let Part::Event(block) = self.next_part().await? {
                return Ok(block);
            }
        }
    }

    /// Returns the next block, also one that has an id and no data. Cancel safe.
    ///
    /// # Errors
    /// Those of [`Connection::next`].
    pub async fn next_part(&mut self) -> Result<Part, Error> {
        loop {
            if let Some(part) = self.received.pop_front() {
                return Ok(part);
            }
            let limit = self.silence.limit();
            let read = timeout_at(self.last_byte + limit, self.stream.read(&mut self.received));
            read.await.map_err(|_| Error::Silent(limit))??;
            self.last_byte = Instant::now();
            self.arrival = self.incomplete_since.unwrap_or(self.last_byte);
            let since = if self.received.is_empty() { self.arrival } else { self.last_byte };
            self.incomplete_since = self.stream.holds_part().then_some(since);
        }
    }

    /// Returns the next part that has arrived already. A read can bring several.
    pub fn next_received_part(&mut self) -> Option<Part> {
        self.received.pop_front()
    }

    /// Returns when the first of the parts that the last read completed began to arrive. A large one can take long.
    #[must_use]
    pub fn arrival(&self) -> Instant {
        self.arrival
    }

    /// Returns the last id of the stream, also that of a block without data, which is no event. An empty id means that
    /// there is none any more.
    #[must_use]
    pub fn last_id(&self) -> Option<&str> {
        match &self.stream {
            Stream::Sse { parser, .. } => parser.last_id.as_deref(),
            Stream::WebSocket(_) => None,
        }
    }
}

impl EventConnection {
    pub(super) fn new(blocks: Connection) -> EventConnection {
        EventConnection { blocks, number: 0, closing: None }
    }

    /// Returns the next event. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Malformed`] concerns one event only. After every other error the connection has ended.
    pub(super) async fn next(&mut self) -> Result<Event, Error> {
        let block = self.blocks.next().await.map_err(|error| self.end(error))?;
        self.number += 1;
        self.parse(block)
    }

    /// Returns [`Connection::last_id`].
    pub(super) fn last_id(&self) -> Option<&str> {
        self.blocks.last_id()
    }

    fn parse(&mut self, block: Block) -> Result<Event, Error> {
        let malformed = |reason, data: &str| Error::Malformed {
            number: self.number,
            reason,
            text: data.chars().take(MAX_MALFORMED_CHARS).collect(),
        };
        let event = match &self.blocks.stream {
            Stream::Sse { .. } => Event::of_block(block.id, block.name, &block.data),
            Stream::WebSocket(_) => Event::of_message(&block.data),
        };
        let event = event.map_err(|reason| malformed(reason, &block.data))?;
        match &event.payload {
            Payload::Heartbeat(_) => self.blocks.silence.on_heartbeat(Instant::now()),
            Payload::StreamClosing(closing) => self.closing = Some(closing.clone()),
            _ => {}
        }
        Ok(event)
    }

    /// Returns the error for the end of the stream. What `stream.closing` said is the reason.
    fn end(&mut self, error: Error) -> Error {
        match (self.closing.take(), error) {
            (Some(StreamClosing { reason, detail, retry_after_ms }), Error::Closed { .. } | Error::Lost(_)) => {
                Error::Closed { reason, detail, retry_after: retry_after_ms.map(Duration::from_millis) }
            }
            (_, error) => error,
        }
    }
}

impl Stream {
    /// Returns whether a part of a block is held.
    fn holds_part(&self) -> bool {
        match self {
            Stream::Sse { parser, .. } => parser.held_bytes() > 0,
            Stream::WebSocket(_) => false,
        }
    }

    /// Reads once, and appends complete blocks.
    async fn read(&mut self, received: &mut VecDeque<Part>) -> Result<(), Error> {
        match self {
            Stream::Sse { body, parser } => {
                // After the complete blocks of the read before have been taken.
                if parser.held_bytes() > MAX_EVENT_BYTES {
                    return Err(Error::TooLarge(MAX_EVENT_BYTES));
                }
                let retry_after = |parser: &sse::Parser| parser.retry_ms.map(Duration::from_millis);
                let Some(frame) = body.frame().await else {
                    return Err(Error::Closed {
                        reason: "end of the response".into(),
                        detail: None,
                        retry_after: retry_after(parser),
                    });
                };
                let frame = frame.map_err(|error| Error::Lost(error.to_string()))?;
                if let Some(bytes) = frame.data_ref() {
                    parser.push(bytes, |part| received.push_back(part));
                }
                Ok(())
            }
            Stream::WebSocket(stream) => match stream.next().await {
                Some(Ok(Message::Text(text))) => {
                    received.push_back(Part::Event(Block { data: text.as_str().to_owned(), ..Block::default() }));
                    Ok(())
                }
                Some(Ok(Message::Close(frame))) => {
                    let reason = frame.map_or_else(|| "end of the WebSocket".into(), |frame| frame.reason.to_string());
                    Err(Error::Closed { reason, detail: None, retry_after: None })
                }
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(()),
                Some(Err(tungstenite::Error::Capacity(_))) => Err(Error::TooLarge(MAX_EVENT_BYTES)),
                Some(Err(error)) => Err(Error::Lost(error.to_string())),
                None => Err(Error::Lost("the connection ended without a close frame".into())),
            },
        }
    }
}

async fn handshake<T>(io: T) -> hyper::Result<(http1::SendRequest<Empty<Bytes>>, Driver)>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    #[allow(clippy::disallowed_methods, reason = "the task is aborted with the connection")]
    // The reader of the body or of the WebSocket gets the error.
    let task = tokio::spawn(connection.with_upgrades());
    Ok((sender, Driver(task)))
}

fn request(options: &Options<'_>, key: &str) -> Result<Request<Empty<Bytes>>, Error> {
    let Options { endpoint, token, cursor, parameters, user_agent, .. } = options;
    let is_sse = endpoint.transport == Transport::Sse;
    let mut parameters: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if let Some(cursor) = cursor.filter(|_| !is_sse) {
        parameters.push(("lastEventId", cursor));
    }
    let mut request = Request::new(Empty::new());
    let target = endpoint.target(&parameters);
    *request.uri_mut() =
        target.parse().map_err(|_| Error::Setting("path, query and cursor do not form a request".to_owned()))?;
    let invalid =
        |name: &'static str| move |_| Error::Setting(format!("{name} has characters that HTTP does not allow"));
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::try_from(&endpoint.authority).map_err(invalid("the host"))?);
    headers.insert(USER_AGENT, HeaderValue::try_from(*user_agent).map_err(invalid("the user agent"))?);
    if let Some(token) = token {
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(invalid("the token"))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    if is_sse {
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(cursor) = cursor {
            // An id of another server can have characters beyond ASCII.
            headers.insert("last-event-id", HeaderValue::from_bytes(cursor.as_bytes()).map_err(invalid("the cursor"))?);
        }
    } else {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        headers.insert("sec-websocket-key", HeaderValue::try_from(key).map_err(invalid("the key"))?);
    }
    Ok(request)
}

async fn event_stream(response: Response<Incoming>) -> Result<Stream, Error> {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_stream =
        content_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"));
    if response.status() == StatusCode::OK && is_stream {
        return Ok(Stream::Sse { body: response.into_body(), parser: sse::Parser::default() });
    }
    Err(refused(response, "an event stream").await)
}

async fn websocket(response: Response<Incoming>, key: &str) -> Result<Stream, Error> {
    let accept = response.headers().get("sec-websocket-accept").and_then(|value| value.to_str().ok());
    let is_accepted = accept == Some(derive_accept_key(key.as_bytes()).as_str());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS || !is_accepted {
        return Err(refused(response, "a WebSocket").await);
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| Error::Lost(error.to_string()))?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_EVENT_BYTES)).max_frame_size(Some(MAX_EVENT_BYTES));
    let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await;
    Ok(Stream::WebSocket(Box::new(stream)))
}

/// Returns the error for a response that is not the stream.
async fn refused(response: Response<Incoming>, expected: &'static str) -> Error {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ERROR_BYTES).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    status_error(head.status, &head.headers, &body, expected)
}

fn status_error(status: StatusCode, headers: &HeaderMap, body: &[u8], expected: &'static str) -> Error {
    /// The error body of a bridge (docs/protocol.md#errors).
    #[derive(Deserialize)]
    struct ErrorBody {
        code: String,
        message: String,
        #[serde(default)]
        details: Details,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Details {
        parameter: Option<String>,
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        let found = format!("{status} with {}", text(CONTENT_TYPE).unwrap_or("no content type"));
        return Error::NotAStream { status: status.as_u16(), expected, found, first_line: first_line(body) };
    }
    if status.is_redirection() {
        let target = text(LOCATION).unwrap_or("another place");
        let target = target.split('?').next().unwrap_or_default().to_owned();
        return Error::Redirect { status: status.as_u16(), target };
    }
    let retry_after = text(RETRY_AFTER).and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let (code, message, parameter) = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { code, message, details }) => (Some(code), message, details.parameter),
        Err(_) => (None, first_line(body), None),
    };
    let message = if message.is_empty() { status.canonical_reason().unwrap_or("no text").to_owned() } else { message };
    let rate_limit = RateLimit::parse(&String::from_utf8_lossy(body)).map(Box::new);
    Error::Status { status: status.as_u16(), code, message, retry_after, parameter, rate_limit }
}
