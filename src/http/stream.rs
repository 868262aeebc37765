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

pub use self::fan_out::FanOut;
use self::{protocol::StreamProtocol, task::StreamTask};
use super::conn::HijackedSocket;
use crate::{
    feed::{self, Group, SharedBatch},
    wire::{
        CloseReason,
        websocket::{FrameReader, MessagePart, accept_key},
    },
};

/// Limits of a stream.
#[derive(Debug, Clone)]
pub struct Config {
    /// A ping (WebSocket), a heartbeat or a comment line (SSE) goes out this often (docs/protocol.md#boilerhouse-stream: 15 s).
    pub ping_interval: Duration,
    /// A WebSocket peer that sends no byte, not even a pong, for this long is gone (docs/protocol.md#boilerhouse-stream: 45 s).
    pub peer_idle_timeout: Duration,
    /// A write that moves no byte for this long ends the stream (docs/protocol.md#boilerhouse-stream: 10 s), and so does a last frame that is
    /// not written within it.
    pub write_timeout: Duration,
    /// How long the peer's answer to our close frame is waited for (1 s: a few round trips).
    pub close_timeout: Duration,
    /// When the process drains, streams end at random moments over this time, so that their clients do not all come
    /// back at once: 8 s, which leaves the last ones 2 s of the 10 (docs/protocol.md#stream-endpoints, "Drain") to close.
    pub drain_spread: Duration,
    /// One read of the feed, and so one write, is about this many bytes, and so is what a stalled client holds: 64 KiB.
    pub batch_bytes: usize,
    /// A client's message is at most this many bytes, else 1009 (docs/protocol.md#boilerhouse-stream: 64 KiB).
    pub max_message_bytes: usize,
    /// Streams at a time; who comes then is told to come back (docs/protocol.md#access: 10000).
    pub max_streams: usize,
    /// Whoever is sent away, or cut off, is to come back no sooner than this (docs/protocol.md#stream-endpoints: 1 s)...
    pub retry_min: Duration,
    /// ...and need not wait for longer (3 s): drawn for each, so that they do not come all at once.
    pub retry_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(15),
            peer_idle_timeout: Duration::from_secs(45),
            write_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(1),
            drain_spread: Duration::from_secs(8),
            batch_bytes: 64 * 1024,
            max_message_bytes: 64 * 1024,
            max_streams: 10_000,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(3),
        }
    }
}

impl Config {
    /// How long a client shall wait before it comes back: drawn anew with each call.
    pub fn retry_delay(&self) -> Duration {
        self.retry_min + random_fraction(self.retry_max.saturating_sub(self.retry_min))
    }
}

/// What a stream sends: a place in a feed, in a relay's log, an echo.
pub trait Outbound: Send {
    /// The next complete frames, about `max_bytes` of them. Never waits.
    fn read(&mut self, max_bytes: usize) -> feed::ReadResult;

    /// Ready once [`Outbound::read`] may have more; until then the task of `cx` is woken when it may.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ready once the stream is to end, whatever its client has not read yet.
    fn poll_end(&mut self, _cx: &mut Context<'_>) -> Poll<CloseReason> {
        Poll::Pending
    }

    /// Waits for [`Outbound::poll_readable`].
    fn readable(&mut self) -> impl Future<Output = ()> + Send {
        poll_fn(|cx| self.poll_readable(cx))
    }

    /// Where this stream reads what many others read, too: somebody then looks for all of them at once, and
    /// [`Outbound::poll_readable`] need no longer notice what the audience is shown.
    fn group(&mut self) -> Option<Group> {
        None
    }

    /// Takes what its audience is shown, instead of reading it, if this stream is where it begins.
    fn accept_batch(&mut self, _batch: &SharedBatch) -> bool {
        false
    }

    /// Takes note of a piece of a client's WebSocket message; by default it is dropped.
    fn on_message_part(&mut self, _part: &MessagePart<'_>) {}

    /// A frame to send every [`Config::ping_interval`], besides WebSocket's ping and instead of SSE's comment line.
    fn heartbeat(&mut self) -> Option<Bytes> {
        None
    }

    /// Frames an event about the stream itself, by its name and its JSON; none where the contract has no such word.
    fn control_event(&mut self, _name: &'static str, _json: &str) -> Option<Bytes> {
        None
    }

    /// The last frame of a stream that the bridge ends, before WebSocket's close frame: why, and when to come back.
    fn closing_event(&mut self, _close: CloseReason, _retry: Duration) -> Option<Bytes> {
        None
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamEnd {
    /// The client sent a close frame first.
    ClientClosed,
    /// The connection ended without one.
    Disconnected,
    /// The bridge ended it, for this reason.
    ByBridge(CloseReason),
}

impl StreamEnd {
    /// The reason as metrics and logs spell it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::ClientClosed => "client closed",
            Self::Disconnected => "client gone",
            Self::ByBridge(CloseReason::Normal) => "finished",
            Self::ByBridge(close) => close.text(),
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
struct TransportLabels {
    transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    transport: &'static str,
    reason: &'static str,
}

/// What this module counts. What is open is `opened` less all of `closed`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    opened: Family<TransportLabels, Counter>,
    closed: Family<EndLabels, Counter>,
    rejected: Counter,
}

impl Metrics {
    /// Makes the counters known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections_opened", "Streams begun", self.opened.clone());
        registry.register("connections_closed", "Streams ended, by reason", self.closed.clone());
        registry.register("streams_refused", "Streams over the limit", self.rejected.clone());
    }

    /// Streams of this transport that have begun.
    pub fn opened(&self, transport: Transport) -> u64 {
        self.opened.get_or_create(&TransportLabels { transport: transport.label() }).get()
    }

    /// Streams of this transport that have ended in this way.
    pub fn closed(&self, transport: Transport, end: StreamEnd) -> u64 {
        self.closed.get_or_create(&EndLabels { transport: transport.label(), reason: end.reason() }).get()
    }
}

/// What all streams of a listener share.
#[derive(Debug)]
pub struct StreamContext {
    /// Their limits.
    pub config: Config,
    /// What they count.
    pub metrics: Metrics,
    /// Cancelled when they shall end (the process drains).
    pub stop: CancellationToken,
    /// Who writes what many are told.
    pub fan_out: FanOut,
    /// Places that are taken.
    open_streams: AtomicUsize,
}

/// A place among the streams of a listener: taken before anything is done for a client, free again when dropped.
#[derive(Debug)]
pub struct StreamPermit(Arc<StreamContext>);

impl StreamContext {
    /// Nobody's streams yet.
    pub fn new(config: Config, metrics: Metrics, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { config, metrics, stop, fan_out: FanOut::new(), open_streams: AtomicUsize::new(0) })
    }

    /// A place for one more stream; none when [`Config::max_streams`] are taken, which is counted.
    pub fn try_acquire(self: &Arc<Self>) -> Option<StreamPermit> {
        let increment = |open| (open < self.config.max_streams).then_some(open + 1);
        if self.open_streams.fetch_update(Relaxed, Relaxed, increment).is_err() {
            self.metrics.rejected.inc();
            return None;
        }
        Some(StreamPermit(self.clone()))
    }
}

impl Deref for StreamPermit {
    type Target = StreamContext;

    fn deref(&self) -> &StreamContext {
        &self.0
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.open_streams.fetch_sub(1, Relaxed);
    }
}

/// Runs a WebSocket stream (RFC 6455, server side) until it ends.
pub fn websocket<O: Outbound + 'static>(
    out: O,
    socket: HijackedSocket,
    permit: StreamPermit,
) -> impl Future<Output = StreamEnd> + Send {
    let reader = FrameReader::new(permit.config.max_message_bytes);
    run(out, StreamProtocol::new(socket, Some(reader), &permit.config), permit)
}

/// Runs an SSE stream until it ends. What the client sends is read and dropped; its end of file ends the stream.
pub fn sse<O: Outbound + 'static>(
    out: O,
    socket: HijackedSocket,
    permit: StreamPermit,
) -> impl Future<Output = StreamEnd> + Send {
    run(out, StreamProtocol::new(socket, None, &permit.config), permit)
}

/// Counts around the loop, and keeps a panic of `out` from ending the connection without a word (1011).
///
/// Not an `async fn`: that would hold its arguments twice, and memory a connection is what this module is judged by.
fn run<O: Outbound + 'static>(
    out: O,
    protocol: StreamProtocol,
    permit: StreamPermit,
) -> impl Future<Output = StreamEnd> + Send {
    use futures::FutureExt as _;
    use std::panic::AssertUnwindSafe;
    let transport = protocol.transport();
    let stream = Arc::new(StreamTask::new(protocol, out, permit));
    async move {
        stream.permit.metrics.opened.get_or_create(&TransportLabels { transport: transport.label() }).inc();
        let outcome = AssertUnwindSafe(task::run(&stream)).catch_unwind().await;
        let end = match outcome {
            Ok(end) => end,
            // Boxed: it is rare, and would otherwise have its place in every stream.
            Err(_) => Box::pin(task::close_after_panic(&stream)).await,
        };
        let labels = EndLabels { transport: transport.label(), reason: end.reason() };
        stream.permit.metrics.closed.get_or_create(&labels).inc();
        end
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

/// The head of an event stream (docs/protocol.md#stream-endpoints, "SSE").
pub fn sse_head() -> Response<()> {
    let mut response = Response::new(());
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A part of `whole`, drawn anew with each call.
fn random_fraction(max: Duration) -> Duration {
    // The standard library's hasher is seeded at random for each state: all the randomness that a spread needs.
    let random = RandomState::new().hash_one(());
    max.mul_f64(random as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests;
