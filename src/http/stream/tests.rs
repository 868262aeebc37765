//! Streams over pipes with simulated time, and over sockets (`tcp`, `tls`) where the behavior of the kernel matters.
//! The client's frames come from tungstenite.

mod closing;
mod encoding;
mod fan_out;
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
    Config, Endpoint, Metrics, Outbound, StreamContext, StreamEnd, StreamPermit, Transport, sse, websocket,
    websocket_head,
};
use crate::{
    feed::{Group, ReadResult, SharedBatch},
    http::conn::{Conn, HijackedSocket},
    wire::{
        CloseReason,
        websocket::{self as ws, MessagePart},
    },
};

static WEBSOCKET: Endpoint = Endpoint { path: "/websocket", transport: Transport::WebSocket };
static SSE: Endpoint = Endpoint { path: "/sse", transport: Transport::Sse };

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

/// The process is stopped (SIGSTOP, a suspended laptop) while the peer is active. The test needs real time and a
/// socket: the idle limit and the peer's pongs must both be due when the stream's task runs again.
#[tokio::test]
async fn frozen_process_does_not_close_an_active_peer_as_idle() {
    const IDLE: Duration = Duration::from_millis(300);
    let (script, context) =
        (ScriptedOutbound::default(), stream_context(Config { peer_idle_timeout: IDLE, ..Config::default() }));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let stream = spawn_stream(websocket(script.clone(), socket(Conn::Plain(server), b""), acquire_permit(&context)));
    // The task runs once and sets its timer.
    tokio::task::yield_now().await;
    std::io::Write::write_all(&mut client, b"\x8a\x80\0\0\0\0").unwrap();
    std::thread::sleep(IDLE * 2);
    script.push_text("after stop");
    let mut client = tokio::net::TcpStream::from_std({
        client.set_nonblocking(true).unwrap();
        client
    })
    .unwrap();
    read_head(&mut client).await;
    let mut frame = [0; 12];
    client.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"\x81\x0aafter stop");
    drop(client);
    assert_eq!(stream_end(stream).await, StreamEnd::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn silent_websocket_peer_is_pinged_and_closed_as_idle() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let started = Instant::now();
    let (stream, mut client) = piped_websocket(&script, &context, 4096).await;
    let mut got = Vec::new();
    timeout(TIMEOUT, client.read_to_end(&mut got)).await.unwrap().unwrap();
    // Pings at 15 and 30 s, the close frame at 45 s, then 1 s for the answer.
    assert_eq!(got, b"\x89\x00\x89\x00\x88\x06\x03\xf5idle");
    assert_eq!(started.elapsed().as_secs(), 46);
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::Idle));
    assert_eq!(context.metrics.closed(&WEBSOCKET, StreamEnd::ByBridge(CloseReason::Idle)), 1);
}

#[tokio::test(start_paused = true)]
async fn peer_that_answers_pings_stays_connected() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, client) = piped_websocket(&script, &context, 4096).await;
    let mut client = websocket_client(client).await;
    let started = Instant::now();
    for i in 1..=20 {
        // tungstenite answers the ping at its next read or write.
        assert_eq!(next_message(&mut client).await, Message::Ping("".into()));
        assert_eq!(started.elapsed().as_secs(), 15 * i);
    }
    client.close(None).await.unwrap();
    assert_eq!(close_frame_of(next_message(&mut client).await), (1000, String::new()));
    assert!(timeout(TIMEOUT, client.next()).await.unwrap().is_none(), "the server closes first");
    assert_eq!(stream_end(stream).await, StreamEnd::ClientClosed);
}

#[tokio::test(start_paused = true)]
async fn read_ahead_bytes_and_pings_are_processed_in_order() {
    let script = ScriptedOutbound::default();
    let (mut client, server) = tokio::io::duplex(4096);
    // A masked "hi" with a mask of zeros, cut after the first byte of its payload.
    let socket = socket(Conn::Duplex(server), b"\x81\x82\0\0\0\0h");
    let stream = spawn_stream(websocket(script.clone(), socket, acquire_permit(&stream_context(Config::default()))));
    read_head(&mut client).await;
    client.write_all(b"i\x89\x81\0\0\0\x001\x89\x81\0\0\0\x002\x88\x80\0\0\0\0").await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"\x8a\x011\x8a\x012\x88\x02\x03\xe8");
    assert_eq!(stream_end(stream).await, StreamEnd::ClientClosed);
    assert_eq!(*script.0.received.lock().unwrap(), b"hi");
}

#[tokio::test(start_paused = true)]
async fn invalid_frames_close_with_the_matching_code() {
    let big = [&b"\x81\xff"[..], &65537_u64.to_be_bytes(), b"\0\0\0\0"].concat();
    let cases: [(&[u8], CloseReason); 4] = [
        (b"\x81\x02hi", CloseReason::Protocol),
        (b"\xc1\x80\0\0\0\0", CloseReason::Protocol),
        (b"\x81\x81\0\0\0\0\xff", CloseReason::Utf8),
        (&big, CloseReason::TooBig),
    ];
    for (bytes, close) in cases {
        let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
        let (stream, mut client) = piped_websocket(&script, &context, 4096).await;
        client.write_all(bytes).await.unwrap();
        let mut got = [0; 4];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!((got[0], u16::from_be_bytes([got[2], got[3]])), (0x88, close.code()));
        // Further bytes are read and dropped until the peer disconnects or 1 s has passed.
        client.write_all(&[0; 4000]).await.unwrap();
        client.write_all(&[0; 4000]).await.unwrap();
        drop(client);
        assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(close));
    }
}

#[tokio::test(start_paused = true)]
async fn responses_to_valid_messages_precede_the_protocol_error_close() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, mut client) = piped_websocket(&script, &context, 4096).await;
    // Without a wake-up, as if `on_message_part` had produced it.
    script.0.reads.lock().unwrap().push_back(ReadResult::Batch(vec![text_frame("answer")]));
    client.write_all(b"\x81\x80\0\0\0\0\xc1\x80\0\0\0\0").await.unwrap();
    let mut got = [0; 12];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!((&got[..8], &got[8..9], &got[10..]), (&b"\x81\x06answer"[..], &b"\x88"[..], &b"\x03\xea"[..]));
    drop(client);
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::Protocol));
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
    let stream =
        spawn_stream(sse(script.clone(), socket(Conn::Duplex(server), b"early"), acquire_sse_permit(&context)));
    read_head(&mut client).await;
    script.push_result(ReadResult::Batch(vec![Bytes::from_static(b"data: 1\n\n")]));
    let started = Instant::now();
    for (seconds, expected) in
        [(0, "data: 1\n\n"), (15, "data: beat\n\n"), (30, ": \n\n"), (45, ": \n\n"), (60, ": \n\n")]
    {
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
    let stream = spawn_stream(sse(script.clone(), socket(Conn::Duplex(server), b""), acquire_sse_permit(&context)));
    script.push_result(ReadResult::End(CloseReason::Lagged));
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!((got.as_slice(), stream_end(stream).await), (HEAD, StreamEnd::ByBridge(CloseReason::Lagged)));
}

/// A client that floods is read again after a pause, and its stream continues. Meanwhile TCP slows it down.
#[tokio::test(start_paused = true)]
async fn client_that_floods_is_read_slowly() {
    const FRAME: &[u8] = b"\x81\x81\0\0\0\0x";
    const SECONDS: u64 = 10;
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, client) = piped_websocket(&script, &context, 16 * 1024).await;
    let (mut read, mut write) = tokio::io::split(client);
    let started = Instant::now();
    let flood = timeout(Duration::from_secs(SECONDS), async {
        loop {
            write.write_all(FRAME).await.unwrap()
        }
    });
    assert!(flood.await.is_err());
    let frames = script.0.received.lock().unwrap().len() as u64;
    println!("{frames} frames read in {SECONDS} s");
    // One second at once, then 1000 a second; one read of 16 KiB can exceed it by 2340 frames.
    assert!((SECONDS * 500..(SECONDS + 1) * 1000 + 2340).contains(&frames), "{frames} frames in {SECONDS} s");
    // The stream still sends, and answers what it reads later.
    script.push_text("event");
    let mut got = [0; 7];
    read.read_exact(&mut got).await.unwrap();
    assert_eq!((&got, started.elapsed().as_secs()), (b"\x81\x05event", SECONDS));
    timeout(TIMEOUT, write.write_all(b"\x88\x80\0\0\0\0")).await.unwrap().unwrap();
    let mut rest = Vec::new();
    timeout(TIMEOUT, read.read_to_end(&mut rest)).await.unwrap().unwrap();
    // The flood was cut inside a frame, so that the close frame is a part of it or an error.
    assert!(rest.starts_with(b"\x88"), "{rest:?}");
    assert_ne!(stream_end(stream).await, StreamEnd::Disconnected);
}

/// The bytes of a stream are reported at its deadlines and at its end, without an update for each delivery.
#[tokio::test(start_paused = true)]
async fn metrics_count_open_streams_and_written_bytes() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, mut client) = piped_websocket(&script, &context, 64).await;
    script.push_text("hello");
    client.read_exact(&mut [0; 7]).await.unwrap();
    let metrics = &context.metrics;
    assert_eq!((metrics.open(&WEBSOCKET), metrics.bytes_sent(Transport::WebSocket)), (1, 0), "before the first ping");
    client.read_exact(&mut [0; 2]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(16)).await;
    let first_ping = HEAD.len() as u64 + 9;
    assert_eq!(metrics.bytes_sent(Transport::WebSocket), first_ping, "reported when the second ping is due");
    client.read_exact(&mut [0; 2]).await.unwrap();
    // The write blocks after 64 bytes. Only bytes that the pipe has accepted count.
    script.push_text(&"x".repeat(100));
    tokio::time::sleep(Duration::from_millis(1)).await;
    drop(client);
    assert_eq!(stream_end(stream).await, StreamEnd::Disconnected);
    assert_eq!((metrics.open(&WEBSOCKET), metrics.bytes_sent(Transport::WebSocket)), (0, first_ping + 2 + 64));
    assert_eq!((metrics.opened(&WEBSOCKET), metrics.open(&SSE), metrics.bytes_sent(Transport::Sse)), (1, 0, 0));
}

#[tokio::test]
async fn dropped_stream_is_no_longer_open() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (_client, server) = tokio::io::duplex(64);
    let stream = websocket(script, socket(Conn::Duplex(server), b""), acquire_permit(&context));
    assert_eq!(context.metrics.open(&WEBSOCKET), 1);
    drop(stream);
    assert_eq!(context.metrics.open(&WEBSOCKET), 0);
    assert!(context.try_acquire(&WEBSOCKET).is_some());
}

#[test]
fn label_sets_of_an_endpoint_exist_with_value_0() {
    let (mut registry, metrics) = (Registry::default(), Metrics::default());
    metrics.register(&mut registry);
    metrics.create_label_sets(&SSE);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(samples.iter().all(|sample| sample.ends_with(" 0")), "{text}");
    assert_eq!(samples.len(), 2 + StreamEnd::ALL.len() + 1, "{text}");
    for expected in [
        r#"streams{transport="sse",endpoint="/sse"} 0"#,
        r#"streams_closed_total{transport="sse",endpoint="/sse",reason="slow_consumer"} 0"#,
        r#"stream_bytes_sent_total{transport="sse"} 0"#,
    ] {
        assert!(samples.contains(&expected), "{expected} is missing in:\n{text}");
    }
}

/// The memory of an idle connection is bounded (docs/performance.md#goals: 1.7 KiB in all, with tokio and the
/// allocator).
#[tokio::test]
async fn stream_future_is_at_most_768_bytes() {
    let (_client, server) = tokio::io::duplex(1);
    let stream = websocket(
        ScriptedOutbound::default(),
        socket(Conn::Duplex(server), b""),
        acquire_permit(&stream_context(Config::default())),
    );
    let size = size_of_val(&stream);
    // With about 100 bytes of tokio's task and the outbound it must fit into the allocator's size class of 1024 bytes.
    assert!(size <= 768, "{size} bytes");
}
