//! Streams over pipes with simulated time, and over sockets (`tcp`, `tls`) where the behavior of the kernel matters.
//! The client's frames come from tungstenite.

mod closing;
mod encoding;
mod fan_out;
mod input;
mod metrics;
mod tcp;
mod tls;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, task::AtomicWaker};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{
    Config, Endpoint, Group, Log, Metrics, Outbound, StreamContext, StreamEnd, StreamPermit, Transport, sse, websocket,
    websocket_head,
};
use crate::{
    feed::{FrameFormat, ReadResult, SharedBatch},
    http::conn::{Conn, HijackedSocket},
    wire::{
        CloseReason,
        websocket::{self as ws, MessagePart},
    },
};

static WEBSOCKET: Endpoint = Endpoint { path: "/websocket", transport: Transport::WebSocket };
static SSE: Endpoint = Endpoint { path: "/sse", transport: Transport::Sse };

/// The body of an HTTP/1.0 response.
const UNCHUNKED: FrameFormat = FrameFormat::Sse { named: false, chunked: false };

const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

/// Maximum (simulated) time of each wait in these tests.
const TIMEOUT: Duration = Duration::from_secs(100);

/// An outbound whose results come from the test.
#[derive(Clone, Default)]
struct ScriptedOutbound(Arc<ScriptState>);

#[derive(Default)]
struct ScriptState {
    reads: Mutex<VecDeque<ReadResult>>,
    waker: AtomicWaker,
    received: Mutex<Vec<u8>>,
    heartbeats: AtomicUsize,
    /// The start of the closing event, before the reason. There is no closing event without it.
    closing_prefix: Mutex<Option<&'static str>>,
}

impl ScriptedOutbound {
    fn push_result(&self, read: ReadResult) {
        self.0.reads.lock().unwrap().push_back(read);
        self.0.waker.wake();
    }

    fn push_text(&self, message: &str) {
        self.push_result(ReadResult::Batch(vec![text_frame(message)]));
    }
}

impl Outbound for ScriptedOutbound {
    fn read(&mut self, _max_bytes: usize) -> ReadResult {
        match self.0.reads.lock().unwrap().pop_front() {
            Some(ReadResult::Batch(frames)) if frames.is_empty() => panic!("the script asks for a panic"),
            Some(read) => read,
            None => ReadResult::Idle,
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.waker.register(cx.waker());
        if self.0.reads.lock().unwrap().is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn on_message_part(&mut self, part: &MessagePart<'_>) {
        if let MessagePart::Data { chunk, .. } = part {
            self.0.received.lock().unwrap().extend_from_slice(chunk);
        }
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        let left = self.0.heartbeats.load(Ordering::Relaxed).checked_sub(1)?;
        self.0.heartbeats.store(left, Ordering::Relaxed);
        Some(Bytes::from_static(b"data: beat\n\n"))
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        let prefix = (*self.0.closing_prefix.lock().unwrap())?;
        assert!((1000..=3000).contains(&retry.as_millis()), "{retry:?}");
        Some([prefix, close.text(), ";"].concat().into())
    }
}

fn text_frame(message: &str) -> Bytes {
    let mut frame = Vec::new();
    ws::text(&mut frame, message);
    frame.into()
}

fn stream_context(config: Config) -> Arc<StreamContext> {
    StreamContext::new(config, Metrics::default(), CancellationToken::new())
}

fn acquire_permit(context: &Arc<StreamContext>) -> StreamPermit {
    context.try_acquire(&WEBSOCKET).expect("a permit is free")
}

fn acquire_sse_permit(context: &Arc<StreamContext>) -> StreamPermit {
    context.try_acquire(&SSE).expect("a permit is free")
}

fn socket(conn: Conn, read_ahead: &[u8]) -> HijackedSocket {
    HijackedSocket { conn, head: Bytes::from_static(HEAD), read_ahead: Bytes::copy_from_slice(read_ahead) }
}

/// Starts a stream. The test waits for its handle.
#[allow(clippy::disallowed_methods, reason = "owned by the test")]
fn spawn_stream(stream: impl Future<Output = StreamEnd> + Send + 'static) -> JoinHandle<StreamEnd> {
    tokio::spawn(stream)
}

async fn stream_end(stream: JoinHandle<StreamEnd>) -> StreamEnd {
    timeout(TIMEOUT, stream).await.expect("the stream ends").unwrap()
}

/// Starts a WebSocket stream over a pipe of `capacity` bytes. Returns the client's end after the response head.
async fn piped_websocket(
    script: &ScriptedOutbound,
    context: &Arc<StreamContext>,
    capacity: usize,
) -> (JoinHandle<StreamEnd>, DuplexStream) {
    let (mut client, server) = tokio::io::duplex(capacity);
    let stream = spawn_stream(websocket(script.clone(), socket(Conn::Duplex(server), b""), acquire_permit(context)));
    read_head(&mut client).await;
    (stream, client)
}

async fn read_head(client: &mut (impl AsyncRead + Unpin)) {
    let mut head = [0; HEAD.len()];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(head, HEAD);
}

async fn websocket_client<S: AsyncRead + AsyncWrite + Unpin>(client: S) -> WebSocketStream<S> {
    WebSocketStream::from_raw_socket(client, Role::Client, None).await
}

async fn next_message<S: AsyncRead + AsyncWrite + Unpin>(client: &mut WebSocketStream<S>) -> Message {
    timeout(TIMEOUT, client.next()).await.expect("a frame arrives").expect("the stream is open").unwrap()
}

fn close_frame_of(message: Message) -> (u16, String) {
    match message {
        Message::Close(Some(frame)) => (frame.code.into(), frame.reason.to_string()),
        other => panic!("not a close frame: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn queued_frames_are_one_write_with_the_response_head() {
    let script = ScriptedOutbound::default();
    script.push_result(ReadResult::Batch(vec![text_frame("a"), text_frame("b"), text_frame("c")]));
    let (mut client, server) = tokio::io::duplex(4096);
    let stream = spawn_stream(websocket(
        script.clone(),
        socket(Conn::Duplex(server), b""),
        acquire_permit(&stream_context(Config::default())),
    ));
    let mut got = [0; 4096];
    let first = client.read(&mut got).await.unwrap();
    assert_eq!(&got[..first], [HEAD, b"\x81\x01a\x81\x01b\x81\x01c"].concat());
    script.push_text("d");
    let second = client.read(&mut got).await.unwrap();
    assert_eq!(&got[..second], b"\x81\x01d");
    drop(client);
    assert_eq!(stream_end(stream).await, StreamEnd::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn feed_end_sends_a_close_frame_and_waits_for_the_peer_close() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, client) = piped_websocket(&script, &context, 4096).await;
    script.push_text("last");
    script.push_result(ReadResult::End(CloseReason::Lagged));
    let mut client = websocket_client(client).await;
    assert_eq!(next_message(&mut client).await, Message::text("last"));
    let started = Instant::now();
    assert_eq!(close_frame_of(next_message(&mut client).await), (1013, "lagged".to_owned()));
    assert!(timeout(TIMEOUT, client.next()).await.unwrap().is_none());
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::Lagged));
    assert_eq!(started.elapsed(), Duration::ZERO, "the peer has answered the close frame");

    let script = ScriptedOutbound::default();
    let (stream, _client) = piped_websocket(&script, &context, 4096).await;
    script.push_result(ReadResult::End(CloseReason::Lagged));
    let started = Instant::now();
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::Lagged));
    assert_eq!(started.elapsed().as_millis(), 1000, "the peer has not answered the close frame");
}

#[tokio::test(start_paused = true)]
async fn drain_spreads_closes_and_delivers_events_until_each_close() {
    let context = stream_context(Config::default());
    let mut clients = Vec::new();
    for _ in 0..100 {
        let script = ScriptedOutbound::default();
        let (stream, client) = piped_websocket(&script, &context, 4096).await;
        clients.push((script, stream, websocket_client(client).await));
    }
    context.stop.cancel();
    let started = Instant::now();
    let mut seconds = std::collections::BTreeSet::new();
    let ends = clients.into_iter().map(|(script, stream, mut client)| async move {
        script.push_text("during drain");
        assert_eq!(next_message(&mut client).await, Message::text("during drain"));
        assert_eq!(close_frame_of(next_message(&mut client).await), (1012, "draining".to_owned()));
        let closed_after = started.elapsed();
        assert!(client.next().await.is_none());
        assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::Draining));
        closed_after
    });
    for closed_after in futures::future::join_all(ends).await {
        assert!(closed_after <= Duration::from_secs(8), "{closed_after:?}");
        seconds.insert(closed_after.as_secs());
    }
    assert!(seconds.len() >= 6, "100 streams end in the seconds {seconds:?} only");
}

#[tokio::test(start_paused = true)]
async fn blocked_stream_reads_input_and_sends_only_the_last_pong() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, mut client) = piped_websocket(&script, &context, 64).await;
    script.push_text(&"x".repeat(100));
    assert_eq!(client.read_u8().await.unwrap(), 0x81);
    let started = Instant::now();
    // 9 s of pings while the client reads nothing. The pipe does not hold them all, so that the stream must read them.
    for i in 0..90_u8 {
        client.write_all(&[0x89, 0x81, 0, 0, 0, 0, i]).await.unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert_eq!(started.elapsed().as_secs(), 9);
    let mut got = vec![0; 101 + 3];
    timeout(TIMEOUT, client.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got[101..], b"\x8a\x01\x59", "the only pong answers the last ping");
    client.write_all(b"\x88\x80\0\0\0\0").await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x88\x02\x03\xe8");
    assert_eq!(stream_end(stream).await, StreamEnd::ClientClosed);
}

#[tokio::test(start_paused = true)]
async fn write_without_progress_closes_the_stream_as_slow_consumer() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, mut client) = piped_websocket(&script, &context, 64).await;
    script.push_text(&"x".repeat(1000));
    let started = Instant::now();
    // A slow reader makes progress and is not closed.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        client.read_exact(&mut [0; 10]).await.unwrap();
    }
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::SlowConsumer));
    assert_eq!(started.elapsed().as_secs(), 37);
}

#[tokio::test(start_paused = true)]
async fn sse_sends_heartbeats_and_discards_client_input() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    script.0.heartbeats.store(1, Ordering::Relaxed);
    let (mut client, server) = tokio::io::duplex(4096);
    let stream = spawn_stream(sse(
        script.clone(),
        socket(Conn::Duplex(server), b"early"),
        UNCHUNKED,
        acquire_sse_permit(&context),
    ));
    read_head(&mut client).await;
    script.push_result(ReadResult::Batch(vec![Bytes::from_static(b"data: 1\n\n")]));
    let started = Instant::now();
    for (seconds, expected) in [(0, "data: 1\n\n"), (15, "data: beat\n\n"), (30, ": \n"), (45, ": \n"), (60, ": \n")] {
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!((String::from_utf8(got).unwrap().as_str(), started.elapsed().as_secs()), (expected, seconds));
        client.write_all(b"\x81\x02hi GET / HTTP/1.1").await.unwrap();
    }
    assert_eq!(*script.0.received.lock().unwrap(), b"");
    client.shutdown().await.unwrap();
    assert_eq!(stream_end(stream).await, StreamEnd::Disconnected);
    let metrics = &context.metrics;
    assert_eq!((metrics.opened(&SSE), metrics.closed(&SSE, StreamEnd::Disconnected)), (1, 1));

    let script = ScriptedOutbound::default();
    let (mut client, server) = tokio::io::duplex(4096);
    let stream =
        spawn_stream(sse(script.clone(), socket(Conn::Duplex(server), b""), UNCHUNKED, acquire_sse_permit(&context)));
    script.push_result(ReadResult::End(CloseReason::Lagged));
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!((got.as_slice(), stream_end(stream).await), (HEAD, StreamEnd::ByBridge(CloseReason::Lagged)));
}
