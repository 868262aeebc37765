//! Streams on loopback sockets, alone and behind a listener.

use std::{convert::Infallible, net::Ipv4Addr};

use http_body_util::Empty;
use hyper::{Request, body::Incoming};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{
    http::conn::{self, StreamStart},
    tasks::{self, Stopped, Tasks},
};

/// Returns a connected pair, the client first. The server's end has few unsent bytes, as `conn` configures it.
async fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let server = server.unwrap().0;
    socket2::SockRef::from(&server).set_tcp_notsent_lowat(32 * 1024).unwrap();
    (client.unwrap(), server)
}

/// Sends `message` repeatedly to a client that does not read before the stream has ended. Returns the bytes that the
/// client reads afterwards, and the outcome of that read.
async fn run_stalled_reader(message: Bytes) -> (Vec<u8>, std::io::Result<usize>) {
    let config = Config { write_timeout: Duration::from_millis(300), ..Config::default() };
    let (script, context) = (ScriptedOutbound::default(), stream_context(config));
    let (mut client, server) = loopback().await;
    let stream = spawn_stream(websocket(script.clone(), socket(Conn::Plain(server), b""), acquire_permit(&context)));
    // The socket buffers of both ends fill up; then the write blocks.
    while !stream.is_finished() {
        if script.0.reads.lock().unwrap().is_empty() {
            script.push_result(ReadResult::Batch(vec![message.clone(); 4]));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::SlowConsumer));
    let mut got = Vec::new();
    let outcome = client.read_to_end(&mut got).await;
    (got, outcome)
}

#[tokio::test]
async fn stalled_reader_inside_a_frame_is_reset() {
    let (_, outcome) = run_stalled_reader(text_frame(&"x".repeat(32 << 20))).await;
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "the connection is reset");
}

#[tokio::test]
async fn stalled_reader_gets_a_close_frame_only_between_frames() {
    let (got, outcome) = run_stalled_reader(text_frame(&"x".repeat(2000))).await;
    // The kernel may or may not accept the close frame. If it does, the frame must follow a complete frame.
    if outcome.is_ok() {
        let complete_frames =
            got[HEAD.len()..].strip_suffix(b"\x88\x0f\x03\xf5slow consumer").expect("a close frame is the last frame");
        assert_eq!(complete_frames.len() % 2004, 0, "the close frame follows a complete frame");
    }
}

/// SSE has no close frame: the closing event is the only notice, and it follows a complete event.
#[tokio::test]
async fn stalled_sse_reader_gets_a_closing_event_only_between_events() {
    let config = Config { write_timeout: Duration::from_millis(300), ..Config::default() };
    let (script, context) = (ScriptedOutbound::default(), stream_context(config));
    *script.0.closing_prefix.lock().unwrap() = Some("last: ");
    let (mut client, server) = loopback().await;
    let stream =
        spawn_stream(sse(script.clone(), socket(Conn::Plain(server), b""), UNCHUNKED, acquire_sse_permit(&context)));
    let event = Bytes::from(format!("data: {}\n\n", "x".repeat(992)));
    while !stream.is_finished() {
        if script.0.reads.lock().unwrap().is_empty() {
            script.push_result(ReadResult::Batch(vec![event.clone(); 4]));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::SlowConsumer));
    let mut got = Vec::new();
    // The kernel may or may not accept the closing event.
    if client.read_to_end(&mut got).await.is_ok() {
        let complete_frames =
            got[HEAD.len()..].strip_suffix(b"last: slow consumer;").expect("the closing event is the last event");
        assert_eq!(complete_frames.len() % event.len(), 0, "the closing event follows a complete event");
    }
}

/// Sends the client's close frame at once when one arrives, and reads to the end of the connection. Returns the bytes
/// received after the head.
async fn answer_close_at_once(mut client: TcpStream) -> Vec<u8> {
    read_head(&mut client).await;
    let mut got = Vec::new();
    let mut answered = false;
    while client.read_buf(&mut got).await.unwrap() > 0 {
        if !answered && got.contains(&0x88) {
            answered = true;
            client.write_all(b"\x88\x82\0\0\0\0\x03\xe8").await.unwrap();
        }
    }
    got
}

/// RFC 6455 section 7.1.1: the connection ends when the peer's close frame is there. The client's end of input, or the
/// close timeout, are for clients that send none.
#[tokio::test]
async fn every_close_ends_the_connection_when_the_client_answers_at_once() {
    type Trigger = fn(&ScriptedOutbound, &StreamContext) -> &'static [u8];
    const END: fn(&ScriptedOutbound, CloseReason) -> &'static [u8] = |script, close| {
        script.push_result(ReadResult::End(close));
        b""
    };
    const TOO_BIG: &[u8] = b"\x81\xff\0\0\0\0\0\x01\0\x01\0\0\0\0";
    let triggers: [(CloseReason, Trigger); 13] = [
        (CloseReason::Normal, |_, _| b"\x88\x80\0\0\0\0"),
        (CloseReason::Protocol, |_, _| b"\x81\x02hi"),
        (CloseReason::Protocol, |_, _| b"\xc1\x80\0\0\0\0"),
        (CloseReason::Utf8, |_, _| b"\x81\x81\0\0\0\0\xff"),
        (CloseReason::TooBig, |_, _| TOO_BIG),
        (CloseReason::Draining, |_, context| {
            context.stop.cancel();
            b""
        }),
        (CloseReason::CredentialExpired, |script, _| END(script, CloseReason::CredentialExpired)),
        (CloseReason::AccessRevoked, |script, _| END(script, CloseReason::AccessRevoked)),
        (CloseReason::UpstreamUnavailable, |script, _| END(script, CloseReason::UpstreamUnavailable)),
        (CloseReason::Lagged, |script, _| END(script, CloseReason::Lagged)),
        (CloseReason::Internal, |script, _| {
            script.push_result(ReadResult::Batch(Vec::new()));
            b""
        }),
        // Nothing causes these two: the client is silent.
        (CloseReason::Idle, |_, _| b""),
        (CloseReason::Idle, |_, _| b""),
    ];
    for (close, trigger) in triggers {
        let config = Config {
            drain_spread: Duration::ZERO,
            peer_idle_timeout: if close == CloseReason::Idle { Duration::from_millis(50) } else { TIMEOUT },
            ping_interval: TIMEOUT,
            close_timeout: TIMEOUT,
            ..Config::default()
        };
        let (script, context) = (ScriptedOutbound::default(), stream_context(config));
        let (mut client, server) = loopback().await;
        let stream =
            spawn_stream(websocket(script.clone(), socket(Conn::Plain(server), b""), acquire_permit(&context)));
        client.write_all(trigger(&script, &context)).await.unwrap();
        let started = Instant::now();
        let got = timeout(TIMEOUT, answer_close_at_once(client)).await.expect("the connection ends");
        let waited = started.elapsed();
        let mut frame = Vec::new();
        ws::close(&mut frame, close);
        assert_eq!(got, frame, "{close:?}");
        assert!(waited < TIMEOUT / 10, "{close:?}: the connection ended after {waited:?}");
        let expected = if close == CloseReason::Normal { StreamEnd::ClientClosed } else { StreamEnd::ByBridge(close) };
        assert_eq!(stream_end(stream).await, expected);
    }
}

/// A client that breaks RFC 6455 and then says nothing still gets the close frame and the end of the output at once. The
/// bridge reads and drops what the client sends until its end of input, at most for the close timeout. An unread byte
/// would reset the connection, and the client could lose the close frame.
#[tokio::test]
async fn output_ends_at_once_after_a_protocol_error() {
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
    let config = Config { close_timeout: CLOSE_TIMEOUT, ..Config::default() };
    let context = stream_context(config);
    let (mut client, server) = loopback().await;
    let socket = socket(Conn::Plain(server), b"");
    let stream = spawn_stream(websocket(ScriptedOutbound::default(), socket, acquire_permit(&context)));
    // The close timeout cannot begin before the client has sent this.
    let sent = Instant::now();
    client.write_all(b"\x81\x02hi").await.unwrap();
    read_head(&mut client).await;
    let (started, mut got) = (Instant::now(), Vec::new());
    timeout(TIMEOUT, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got.starts_with(b"\x88") && started.elapsed() < CLOSE_TIMEOUT, "{:?}", started.elapsed());
    for _ in 0..10 {
        client.write_all(&[0; 1000]).await.unwrap();
    }
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::Protocol));
    assert!(sent.elapsed() >= CLOSE_TIMEOUT, "the client has not ended its output");
}

/// A client that ends its side of the connection still gets what the stream has queued for it.
#[tokio::test]
async fn half_closing_client_gets_the_queued_bytes() {
    for transport in [Transport::WebSocket, Transport::Sse] {
        let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
        let (mut client, server) = loopback().await;
        let message = Bytes::from(vec![b'x'; 8 << 20]);
        script.push_result(ReadResult::Batch(vec![message.clone()]));
        client.shutdown().await.unwrap();
        let socket = socket(Conn::Plain(server), b"");
        let stream = match transport {
            Transport::WebSocket => spawn_stream(websocket(script.clone(), socket, acquire_permit(&context))),
            Transport::Sse => spawn_stream(sse(script.clone(), socket, UNCHUNKED, acquire_sse_permit(&context))),
        };
        let mut got = Vec::new();
        timeout(TIMEOUT, client.read_to_end(&mut got)).await.unwrap().unwrap();
        assert_eq!(got.len(), HEAD.len() + message.len(), "{transport:?}");
        assert_eq!(stream_end(stream).await, StreamEnd::Disconnected);
    }
}

#[tokio::test]
async fn client_reset_ends_the_stream_as_disconnected() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (mut client, server) = loopback().await;
    let stream = spawn_stream(websocket(script.clone(), socket(Conn::Plain(server), b""), acquire_permit(&context)));
    read_head(&mut client).await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(stream_end(stream).await, StreamEnd::Disconnected);
}

#[tokio::test]
async fn websocket_messages_round_trip_over_tcp() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (mut client, server) = loopback().await;
    let stream = spawn_stream(websocket(script.clone(), socket(Conn::Plain(server), b""), acquire_permit(&context)));
    read_head(&mut client).await;
    let mut client = websocket_client(client).await;
    for i in 0..100 {
        script.push_text(&i.to_string());
        client.send(Message::text("hello")).await.unwrap();
        assert_eq!(next_message(&mut client).await, Message::text(i.to_string()));
    }
    client.close(None).await.unwrap();
    assert_eq!(close_frame_of(next_message(&mut client).await), (1000, String::new()));
    assert!(client.next().await.is_none());
    assert_eq!(stream_end(stream).await, StreamEnd::ClientClosed);
    assert_eq!(script.0.received.lock().unwrap().len(), 500);
}

/// The complete path: accept, handshake, hijack, stream, signal, drain.
#[tokio::test]
async fn signal_drains_fifty_websockets_with_close_1012() {
    let tasks = Tasks::new(tasks::Config::default());
    let config = Config { drain_spread: Duration::from_millis(300), ..Config::default() };
    let streams = StreamContext::new(config, Metrics::default(), tasks.stop().clone());
    let (script, service_context) = (ScriptedOutbound::default(), streams.clone());
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let key = request.headers()["sec-websocket-key"].to_str().unwrap().to_owned();
        let mut response = websocket_head(&key).map(|()| Empty::<Bytes>::new());
        let (script, permit) = (script.clone(), acquire_permit(&service_context));
        response.extensions_mut().insert(StreamStart::new(|socket| websocket(script, socket, permit)));
        async { Ok::<_, Infallible>(response) }
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let served = conn::serve(listener, service, conn::Config::default(), conn::Metrics::default(), tasks.clone());
    tasks.spawn("listener", async { Ok::<_, Infallible>(served.await) });
    let mut clients = Vec::new();
    for _ in 0..50 {
        let stream = TcpStream::connect(addr).await.unwrap();
        clients.push(tokio_tungstenite::client_async(format!("ws://{addr}/"), stream).await.unwrap().0);
    }
    let signal_requests = AtomicUsize::new(0);
    let stopped = tasks.run_until(async || {
        // The first signal is there; the second never arrives.
        if signal_requests.fetch_add(1, Ordering::Relaxed) > 0 {
            std::future::pending().await
        }
    });
    let ends = futures::future::join_all(clients.iter_mut().map(async |client| {
        assert_eq!(close_frame_of(next_message(client).await), (1012, "draining".to_owned()));
        assert!(client.next().await.is_none());
    }));
    let (stopped, _) = timeout(TIMEOUT, futures::future::join(stopped, ends)).await.unwrap();
    assert_eq!(stopped.unwrap(), Stopped::Drained { cut: 0 });
    let draining = streams.metrics.closed(&WEBSOCKET, StreamEnd::ByBridge(CloseReason::Draining));
    assert_eq!((streams.metrics.opened(&WEBSOCKET), draining), (50, 50));
}
