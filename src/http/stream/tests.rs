//! Pipes and simulated time where the protocol's times matter, real sockets (`tcp`) where the kernel does; the client's
//! frames are tungstenite's.
mod ending;
mod fan;
mod tcp;
mod tls;

use std::{
    collections::VecDeque,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
};

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

use super::*;
use crate::{feed::Read, http::conn::Conn, wire::websocket as ws};

const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

/// No wait in here takes longer (of simulated time), or the test fails.
const BOUND: Duration = Duration::from_secs(100);

/// An outbound that reads what the test puts in.
#[derive(Clone, Default)]
struct Script(Arc<Scripted>);

#[derive(Default)]
struct Scripted {
    reads: Mutex<VecDeque<Read>>,
    more: AtomicWaker,
    received: Mutex<Vec<u8>>,
    heartbeats: AtomicUsize,
    /// What it says at the end, before the reason and the time to wait.
    farewell: Mutex<Option<&'static str>>,
}

impl Script {
    fn put(&self, read: Read) {
        self.0.reads.lock().unwrap().push_back(read);
        self.0.more.wake();
    }

    fn text(&self, message: &str) {
        self.put(Read::Batch(vec![text(message)]));
    }
}

impl Outbound for Script {
    fn read(&mut self, _max_bytes: usize) -> Read {
        match self.0.reads.lock().unwrap().pop_front() {
            Some(Read::Batch(frames)) if frames.is_empty() => panic!("as the script says"),
            Some(read) => read,
            None => Read::Idle,
        }
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.more.register(cx.waker());
        if self.0.reads.lock().unwrap().is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn received(&mut self, piece: &Piece<'_>) {
        if let Piece::Data { chunk, .. } = piece {
            self.0.received.lock().unwrap().extend_from_slice(chunk);
        }
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        let left = self.0.heartbeats.load(Ordering::Relaxed).checked_sub(1)?;
        self.0.heartbeats.store(left, Ordering::Relaxed);
        Some(Bytes::from_static(b"data: still here\n\n"))
    }

    fn farewell(&mut self, close: Close, retry: Duration) -> Option<Bytes> {
        let before = (*self.0.farewell.lock().unwrap())?;
        assert!((1000..=3000).contains(&retry.as_millis()), "{retry:?}");
        Some([before, close.reason(), ";"].concat().into())
    }
}

fn text(message: &str) -> Bytes {
    let mut frame = Vec::new();
    ws::text(&mut frame, message);
    frame.into()
}

fn shared(config: Config) -> Arc<Streams> {
    Streams::new(config, Metrics::default(), CancellationToken::new())
}

fn place(shared: &Arc<Streams>) -> Place {
    shared.enter().expect("there is room")
}

fn socket(conn: Conn, early: &[u8]) -> Socket {
    Socket { conn, head: Bytes::from_static(HEAD), early: Bytes::copy_from_slice(early) }
}

/// Starts a stream; the handle is what the test waits for, so that nothing outlives it.
#[allow(clippy::disallowed_methods, reason = "owned by the test")]
fn start(closed: impl Future<Output = Closed> + Send + 'static) -> JoinHandle<Closed> {
    tokio::spawn(closed)
}

async fn end(stream: JoinHandle<Closed>) -> Closed {
    timeout(BOUND, stream).await.expect("the stream goes on").unwrap()
}

/// A WebSocket stream over a pipe of `room` bytes, and its client, past the head.
async fn piped(script: &Script, shared: &Arc<Streams>, room: usize) -> (JoinHandle<Closed>, DuplexStream) {
    let (mut client, server) = tokio::io::duplex(room);
    let stream = start(websocket(script.clone(), socket(Conn::Duplex(server), b""), place(shared)));
    past_head(&mut client).await;
    (stream, client)
}

async fn past_head(client: &mut (impl AsyncRead + Unpin)) {
    let mut head = [0; HEAD.len()];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(head, HEAD);
}

async fn frames<S: AsyncRead + AsyncWrite + Unpin>(client: S) -> WebSocketStream<S> {
    WebSocketStream::from_raw_socket(client, Role::Client, None).await
}

async fn next<S: AsyncRead + AsyncWrite + Unpin>(client: &mut WebSocketStream<S>) -> Message {
    timeout(BOUND, client.next()).await.expect("no frame").expect("end of file").unwrap()
}

fn close_of(message: Message) -> (u16, String) {
    match message {
        Message::Close(Some(frame)) => (frame.code.into(), frame.reason.to_string()),
        other => panic!("not a close frame: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_one_write_behind_the_head() {
    let script = Script::default();
    script.put(Read::Batch(vec![text("a"), text("b"), text("c")]));
    let (mut client, server) = tokio::io::duplex(4096);
    let stream = start(websocket(script.clone(), socket(Conn::Duplex(server), b""), place(&shared(Config::default()))));
    let mut got = [0; 4096];
    let first = client.read(&mut got).await.unwrap();
    assert_eq!(&got[..first], [HEAD, b"\x81\x01a\x81\x01b\x81\x01c"].concat());
    script.text("d");
    let second = client.read(&mut got).await.unwrap();
    assert_eq!(&got[..second], b"\x81\x01d");
    drop(client);
    assert_eq!(end(stream).await, Closed::Gone);
}

/// The process stands still (SIGSTOP, a suspended laptop) while the peer does not. Real time and a real socket: the idle
/// limit and the peer's pongs must both be there when the stream has its turn again.
#[tokio::test]
async fn a_frozen_process_does_not_take_its_own_silence_for_the_peers() {
    const IDLE: Duration = Duration::from_millis(300);
    let (script, shared) = (Script::default(), shared(Config { peer_idle: IDLE, ..Config::default() }));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let stream = start(websocket(script.clone(), socket(Conn::Plain(server), b""), place(&shared)));
    // One turn, so that the alarm is set.
    tokio::task::yield_now().await;
    std::io::Write::write_all(&mut client, b"\x8a\x80\0\0\0\0").unwrap();
    std::thread::sleep(IDLE * 2);
    script.text("still here");
    let mut client = tokio::net::TcpStream::from_std({
        client.set_nonblocking(true).unwrap();
        client
    })
    .unwrap();
    past_head(&mut client).await;
    let mut frame = [0; 12];
    client.read_exact(&mut frame).await.unwrap();
    assert_eq!(&frame, b"\x81\x0astill here");
    drop(client);
    assert_eq!(end(stream).await, Closed::Gone);
}

#[tokio::test(start_paused = true)]
async fn pings_go_out_and_a_silent_peer_is_dropped() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    let begun = Instant::now();
    let (stream, mut client) = piped(&script, &shared, 4096).await;
    let mut got = Vec::new();
    timeout(BOUND, client.read_to_end(&mut got)).await.unwrap().unwrap();
    // At 15 and 30 s; at 45 s the close frame; a second for an answer.
    assert_eq!(got, b"\x89\x00\x89\x00\x88\x06\x03\xf5idle");
    assert_eq!(begun.elapsed().as_secs(), 46);
    assert_eq!(end(stream).await, Closed::Bridge(Close::Idle));
    assert_eq!(shared.metrics.closed(Transport::WebSocket, Closed::Bridge(Close::Idle)), 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_stays() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    let (stream, client) = piped(&script, &shared, 4096).await;
    let mut client = frames(client).await;
    let begun = Instant::now();
    for i in 1..=20 {
        // tungstenite answers on its next read or write.
        assert_eq!(next(&mut client).await, Message::Ping("".into()));
        assert_eq!(begun.elapsed().as_secs(), 15 * i);
    }
    client.close(None).await.unwrap();
    assert_eq!(close_of(next(&mut client).await), (1000, String::new()));
    assert!(timeout(BOUND, client.next()).await.unwrap().is_none(), "the server closes first");
    assert_eq!(end(stream).await, Closed::Client);
}

#[tokio::test(start_paused = true)]
async fn early_bytes_and_pings_are_answered_in_order() {
    let script = Script::default();
    let (mut client, server) = tokio::io::duplex(4096);
    // A masked "hi" with a mask of zeros, cut after the first byte of its payload.
    let socket = socket(Conn::Duplex(server), b"\x81\x82\0\0\0\0h");
    let stream = start(websocket(script.clone(), socket, place(&shared(Config::default()))));
    past_head(&mut client).await;
    client.write_all(b"i\x89\x81\0\0\0\x001\x89\x81\0\0\0\x002\x88\x80\0\0\0\0").await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"\x8a\x011\x8a\x012\x88\x02\x03\xe8");
    assert_eq!(end(stream).await, Closed::Client);
    assert_eq!(*script.0.received.lock().unwrap(), b"hi");
}

#[tokio::test(start_paused = true)]
async fn broken_frames_get_their_code() {
    let big = [&b"\x81\xff"[..], &65537_u64.to_be_bytes(), b"\0\0\0\0"].concat();
    let cases: [(&[u8], Close); 4] = [
        (b"\x81\x02hi", Close::Protocol),
        (b"\xc1\x80\0\0\0\0", Close::Protocol),
        (b"\x81\x81\0\0\0\0\xff", Close::Utf8),
        (&big, Close::TooBig),
    ];
    for (bytes, close) in cases {
        let (script, shared) = (Script::default(), shared(Config::default()));
        let (stream, mut client) = piped(&script, &shared, 4096).await;
        client.write_all(bytes).await.unwrap();
        let mut got = [0; 4];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!((got[0], u16::from_be_bytes([got[2], got[3]])), (0x88, close.code()));
        // What still comes is read and dropped until the peer goes or a second is over.
        client.write_all(&[0; 4000]).await.unwrap();
        client.write_all(&[0; 4000]).await.unwrap();
        drop(client);
        assert_eq!(end(stream).await, Closed::Bridge(close));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_said_before_a_broken_frame_is_answered_before_the_close() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    let (stream, mut client) = piped(&script, &shared, 4096).await;
    // Without a notification, as if `received` had made it.
    script.0.reads.lock().unwrap().push_back(Read::Batch(vec![text("answer")]));
    client.write_all(b"\x81\x80\0\0\0\0\xc1\x80\0\0\0\0").await.unwrap();
    let mut got = [0; 12];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!((&got[..8], &got[8..9], &got[10..]), (&b"\x81\x06answer"[..], &b"\x88"[..], &b"\x03\xea"[..]));
    drop(client);
    assert_eq!(end(stream).await, Closed::Bridge(Close::Protocol));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_feed_is_said_and_its_answer_waited_for() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    let (stream, client) = piped(&script, &shared, 4096).await;
    script.text("last");
    script.put(Read::End(Close::Lagged));
    let mut client = frames(client).await;
    assert_eq!(next(&mut client).await, Message::text("last"));
    let begun = Instant::now();
    assert_eq!(close_of(next(&mut client).await), (1013, "lagged".to_owned()));
    assert!(timeout(BOUND, client.next()).await.unwrap().is_none());
    assert_eq!(end(stream).await, Closed::Bridge(Close::Lagged));
    assert_eq!(begun.elapsed(), Duration::ZERO, "the answer was there");

    let script = Script::default();
    let (stream, _client) = piped(&script, &shared, 4096).await;
    script.put(Read::End(Close::Lagged));
    let begun = Instant::now();
    assert_eq!(end(stream).await, Closed::Bridge(Close::Lagged));
    assert_eq!(begun.elapsed().as_millis(), 1000, "there was no answer");
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_spread_and_events_go_on_until_then() {
    let shared = shared(Config::default());
    let mut clients = Vec::new();
    for _ in 0..100 {
        let script = Script::default();
        let (stream, client) = piped(&script, &shared, 4096).await;
        clients.push((script, stream, frames(client).await));
    }
    shared.stop.cancel();
    let begun = Instant::now();
    let mut seconds = std::collections::BTreeSet::new();
    let ends = clients.into_iter().map(|(script, stream, mut client)| async move {
        script.text("still served");
        assert_eq!(next(&mut client).await, Message::text("still served"));
        assert_eq!(close_of(next(&mut client).await), (1012, "draining".to_owned()));
        let closed_after = begun.elapsed();
        assert!(client.next().await.is_none());
        assert_eq!(end(stream).await, Closed::Bridge(Close::Draining));
        closed_after
    });
    for closed_after in futures::future::join_all(ends).await {
        assert!(closed_after <= Duration::from_secs(8), "{closed_after:?}");
        seconds.insert(closed_after.as_secs());
    }
    assert!(seconds.len() >= 6, "100 ends fell into the seconds {seconds:?} only");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_stream_still_reads_and_owes_one_pong() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    let (stream, mut client) = piped(&script, &shared, 64).await;
    script.text(&"x".repeat(100));
    assert_eq!(client.read_u8().await.unwrap(), 0x81);
    let begun = Instant::now();
    // 9 s of pings while nothing is read: far more than the pipe would hold were they not taken.
    for i in 0..90_u8 {
        client.write_all(&[0x89, 0x81, 0, 0, 0, 0, i]).await.unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert_eq!(begun.elapsed().as_secs(), 9);
    let mut got = vec![0; 101 + 3];
    timeout(BOUND, client.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got[101..], b"\x8a\x01\x59", "the last ping's pong, and only that");
    client.write_all(b"\x88\x80\0\0\0\0").await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\x88\x02\x03\xe8");
    assert_eq!(end(stream).await, Closed::Client);
}

#[tokio::test(start_paused = true)]
async fn a_write_without_progress_ends_the_stream() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    let (stream, mut client) = piped(&script, &shared, 64).await;
    script.text(&"x".repeat(1000));
    let begun = Instant::now();
    // Progress, however slow, is progress.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        client.read_exact(&mut [0; 10]).await.unwrap();
    }
    assert_eq!(end(stream).await, Closed::Bridge(Close::SlowConsumer));
    assert_eq!(begun.elapsed().as_secs(), 37);
}

#[tokio::test(start_paused = true)]
async fn sse_says_it_lives_and_drops_what_it_hears() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    script.0.heartbeats.store(1, Ordering::Relaxed);
    let (mut client, server) = tokio::io::duplex(4096);
    let stream = start(sse(script.clone(), socket(Conn::Duplex(server), b"early"), place(&shared)));
    past_head(&mut client).await;
    script.put(Read::Batch(vec![Bytes::from_static(b"data: 1\n\n")]));
    let begun = Instant::now();
    for (seconds, expected) in
        [(0, "data: 1\n\n"), (15, "data: still here\n\n"), (30, ": \n\n"), (45, ": \n\n"), (60, ": \n\n")]
    {
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!((String::from_utf8(got).unwrap().as_str(), begun.elapsed().as_secs()), (expected, seconds));
        client.write_all(b"\x81\x02hi GET / HTTP/1.1").await.unwrap();
    }
    assert_eq!(*script.0.received.lock().unwrap(), b"");
    client.shutdown().await.unwrap();
    assert_eq!(end(stream).await, Closed::Gone);
    assert_eq!((shared.metrics.opened(Transport::Sse), shared.metrics.closed(Transport::Sse, Closed::Gone)), (1, 1));

    let script = Script::default();
    let (mut client, server) = tokio::io::duplex(4096);
    let stream = start(sse(script.clone(), socket(Conn::Duplex(server), b""), place(&shared)));
    script.put(Read::End(Close::Lagged));
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!((got.as_slice(), end(stream).await), (HEAD, Closed::Bridge(Close::Lagged)));
}

/// Memory an idle connection is a promise (quality.md: 1.7 KiB all in, of which tokio and the allocator have their part).
#[tokio::test]
async fn a_stream_is_small() {
    let (_client, server) = tokio::io::duplex(1);
    let stream = websocket(Script::default(), socket(Conn::Duplex(server), b""), place(&shared(Config::default())));
    let size = size_of_val(&stream);
    // With the task's own 100 and the outbound's it shall fit the 1024 bytes that the allocator then rounds it to.
    assert!(size <= 768, "{size} bytes");
}
