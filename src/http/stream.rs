//! Streams: what has bytes to send, on a socket that hyper has let go. One loop for WebSocket and SSE.
//!
//! Always: one write a batch, so that what waits is coalesced; nothing is kept for a client but its place and what a
//! write has begun; the peer is read even while a write is blocked; every end has a name and is counted. It knows no
//! event kinds, no feed and no principal, only [`Outbound`].
mod buffered_conn;
mod fan_out;
mod protocol;
mod task;

use std::{
    future::poll_fn,
    hash::{BuildHasher as _, RandomState},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, UPGRADE},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio_util::sync::CancellationToken;

pub use self::fan_out::Fan;
use self::{protocol::Session, task::Stage};
use super::conn::Socket;
use crate::{
    feed::{self, Audience, Shown},
    wire::{
        Close,
        websocket::{Piece, Reader, accept_key},
    },
};

/// Limits of a stream.
#[derive(Debug, Clone)]
pub struct Config {
    /// A ping (WebSocket), a heartbeat or a comment line (SSE) goes out this often (protocol.md section 2: 15 s).
    pub ping: Duration,
    /// A WebSocket peer that sends no byte, not even a pong, for this long is gone (protocol.md section 2: 45 s).
    pub peer_idle: Duration,
    /// A write that moves no byte for this long ends the stream (protocol.md section 2: 10 s), and so does a last frame that is
    /// not written within it.
    pub write_stall: Duration,
    /// How long the peer's answer to our close frame is waited for (1 s: a few round trips).
    pub close_wait: Duration,
    /// When the process drains, streams end at random moments over this time, so that their clients do not all come
    /// back at once: 8 s, which leaves the last ones 2 s of the 10 (protocol.md section 4, "Drain") to close.
    pub drain_spread: Duration,
    /// One read of the feed, and so one write, is about this many bytes, and so is what a stalled client holds: 64 KiB.
    pub batch_bytes: usize,
    /// A client's message is at most this many bytes, else 1009 (protocol.md section 2: 64 KiB).
    pub max_message_bytes: usize,
    /// Streams at a time; who comes then is told to come back (protocol.md section 7: 10000).
    pub max_streams: usize,
    /// Whoever is sent away, or cut off, is to come back no sooner than this (protocol.md section 4: 1 s)...
    pub retry_least: Duration,
    /// ...and need not wait for longer (3 s): drawn for each, so that they do not come all at once.
    pub retry_most: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(15),
            peer_idle: Duration::from_secs(45),
            write_stall: Duration::from_secs(10),
            close_wait: Duration::from_secs(1),
            drain_spread: Duration::from_secs(8),
            batch_bytes: 64 * 1024,
            max_message_bytes: 64 * 1024,
            max_streams: 10_000,
            retry_least: Duration::from_secs(1),
            retry_most: Duration::from_secs(3),
        }
    }
}

impl Config {
    /// How long a client shall wait before it comes back: drawn anew with each call.
    pub fn retry(&self) -> Duration {
        self.retry_least + random_part_of(self.retry_most.saturating_sub(self.retry_least))
    }
}

/// What a stream sends: a place in a feed, in a relay's log, an echo.
pub trait Outbound: Send {
    /// The next complete frames, about `max_bytes` of them. Never waits.
    fn read(&mut self, max_bytes: usize) -> feed::Read;

    /// Ready once [`Outbound::read`] may have more; until then the task of `cx` is woken when it may.
    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ready once the stream is to end, whatever its client has not read yet.
    fn poll_ended(&mut self, _cx: &mut Context<'_>) -> Poll<Close> {
        Poll::Pending
    }

    /// Waits for [`Outbound::poll_changed`].
    fn changed(&mut self) -> impl Future<Output = ()> + Send {
        poll_fn(|cx| self.poll_changed(cx))
    }

    /// Where this stream reads what many others read, too: somebody then looks for all of them at once, and
    /// [`Outbound::poll_changed`] need no longer notice what the audience is shown.
    fn audience(&mut self) -> Option<Audience> {
        None
    }

    /// Takes what its audience is shown, instead of reading it, if this stream is where it begins.
    fn take(&mut self, _shown: &Shown) -> bool {
        false
    }

    /// Takes note of a piece of a client's WebSocket message; by default it is dropped.
    fn received(&mut self, _piece: &Piece<'_>) {}

    /// A frame to send every [`Config::ping`], besides WebSocket's ping and instead of SSE's comment line.
    fn heartbeat(&mut self) -> Option<Bytes> {
        None
    }

    /// Frames an event about the stream itself, by its name and its JSON; none where the contract has no such word.
    fn tell(&mut self, _name: &'static str, _json: &str) -> Option<Bytes> {
        None
    }

    /// The last frame of a stream that the bridge ends, before WebSocket's close frame: why, and when to come back.
    fn farewell(&mut self, _close: Close, _retry: Duration) -> Option<Bytes> {
        None
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// The client sent a close frame first.
    Client,
    /// The connection ended without one.
    Gone,
    /// The bridge ended it, for this reason.
    Bridge(Close),
}

impl Closed {
    /// The reason as metrics and logs spell it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Client => "client closed",
            Self::Gone => "client gone",
            Self::Bridge(Close::Normal) => "finished",
            Self::Bridge(close) => close.reason(),
        }
    }
}

/// How a stream is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RFC 6455.
    WebSocket,
    /// The HTML standard's event stream.
    Sse,
}

impl Transport {
    fn label(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Opened {
    transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    transport: &'static str,
    reason: &'static str,
}

/// What this module counts. What is open is `opened` less all of `closed`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    opened: Family<Opened, Counter>,
    closed: Family<Ended, Counter>,
    refused: Counter,
}

impl Metrics {
    /// Makes the counters known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections_opened", "Streams begun", self.opened.clone());
        registry.register("connections_closed", "Streams ended, by reason", self.closed.clone());
        registry.register("streams_refused", "Streams over the limit", self.refused.clone());
    }

    /// Streams of this transport that have begun.
    pub fn opened(&self, transport: Transport) -> u64 {
        self.opened.get_or_create(&Opened { transport: transport.label() }).get()
    }

    /// Streams of this transport that have ended in this way.
    pub fn closed(&self, transport: Transport, how: Closed) -> u64 {
        self.closed.get_or_create(&Ended { transport: transport.label(), reason: how.reason() }).get()
    }
}

/// What all streams of a listener share.
#[derive(Debug)]
pub struct Streams {
    /// Their limits.
    pub config: Config,
    /// What they count.
    pub metrics: Metrics,
    /// Cancelled when they shall end (the process drains).
    pub stop: CancellationToken,
    /// Who writes what many are told.
    pub fan: Fan,
    /// Places that are taken.
    open: AtomicUsize,
}

/// A place among the streams of a listener: taken before anything is done for a client, free again when dropped.
#[derive(Debug)]
pub struct Place(Arc<Streams>);

impl Streams {
    /// Nobody's streams yet.
    pub fn new(config: Config, metrics: Metrics, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { config, metrics, stop, fan: Fan::new(), open: AtomicUsize::new(0) })
    }

    /// A place for one more stream; none when [`Config::max_streams`] are taken, which is counted.
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let one_more = |open| (open < self.config.max_streams).then_some(open + 1);
        if self.open.fetch_update(Relaxed, Relaxed, one_more).is_err() {
            self.metrics.refused.inc();
            return None;
        }
        Some(Place(self.clone()))
    }
}

impl Deref for Place {
    type Target = Streams;

    fn deref(&self) -> &Streams {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Runs a WebSocket stream (RFC 6455, server side) until it ends.
pub fn websocket<O: Outbound + 'static>(out: O, socket: Socket, place: Place) -> impl Future<Output = Closed> + Send {
    let reader = Reader::new(place.config.max_message_bytes);
    run(out, Session::new(socket, Some(reader), &place.config), place)
}

/// Runs an SSE stream until it ends. What the client sends is read and dropped; its end of file ends the stream.
pub fn sse<O: Outbound + 'static>(out: O, socket: Socket, place: Place) -> impl Future<Output = Closed> + Send {
    run(out, Session::new(socket, None, &place.config), place)
}

/// Counts around the loop, and keeps a panic of `out` from ending the connection without a word (1011).
///
/// Not an `async fn`: that would hold its arguments twice, and memory a connection is what this module is judged by.
fn run<O: Outbound + 'static>(out: O, session: Session, shared: Place) -> impl Future<Output = Closed> + Send {
    use futures::FutureExt as _;
    use std::panic::AssertUnwindSafe;
    let transport = session.transport();
    let stage = Arc::new(Stage::new(session, out, shared));
    async move {
        stage.streams.metrics.opened.get_or_create(&Opened { transport: transport.label() }).inc();
        let outcome = AssertUnwindSafe(task::run(&stage)).catch_unwind().await;
        let closed = match outcome {
            Ok(closed) => closed,
            // Boxed: it is rare, and would otherwise have its place in every stream.
            Err(_) => Box::pin(task::apologize(&stage)).await,
        };
        let ended = Ended { transport: transport.label(), reason: closed.reason() };
        stage.streams.metrics.closed.get_or_create(&ended).inc();
        closed
    }
}

/// The head that accepts a WebSocket; `key` is the request's `Sec-WebSocket-Key`.
pub fn websocket_head(key: &str) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is a valid header value; were it not, the client would refuse a head without it.
    if let Ok(accept) = HeaderValue::try_from(accept_key(key)) {
        headers.insert("sec-websocket-accept", accept);
    }
    response
}

/// The head of an event stream (protocol.md section 4, "SSE").
pub fn sse_head() -> Response<()> {
    let mut response = Response::new(());
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A part of `whole`, drawn anew with each call.
fn random_part_of(whole: Duration) -> Duration {
    // The standard library's hasher is seeded at random for each state: all the randomness that a spread needs.
    let random = RandomState::new().hash_one(());
    whole.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests;
