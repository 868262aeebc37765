//! Ends of streams: closing events, close frames, and the release of the permit.

use std::pin::Pin;

use tokio::time::{Sleep, sleep};

use super::*;

/// Causes the end of a stream.
type EndTrigger = fn(&ScriptedOutbound, &StreamContext);

#[tokio::test(start_paused = true)]
async fn every_close_by_the_bridge_sends_a_closing_event() {
    const CLOSING_PREFIX: &str = "\u{1}\u{9}";
    let ends: [(CloseReason, EndTrigger); 3] = [
        (CloseReason::Draining, |_, context| context.stop.cancel()),
        (CloseReason::CredentialExpired, |script, _| {
            script.push_result(ReadResult::End(CloseReason::CredentialExpired))
        }),
        (CloseReason::Internal, |script, _| script.push_result(ReadResult::Batch(Vec::new()))),
    ];
    for (close, trigger) in ends {
        let chunked = FrameFormat::Sse { named: false, chunked: true };
        for format in [FrameFormat::WebSocket, UNCHUNKED, chunked] {
            let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
            *script.0.closing_prefix.lock().unwrap() = Some(CLOSING_PREFIX);
            let (mut client, server) = tokio::io::duplex(4096);
            let socket = socket(Conn::Duplex(server), b"");
            let stream = if format == FrameFormat::WebSocket {
                spawn_stream(websocket(script.clone(), socket, acquire_permit(&context)))
            } else {
                spawn_stream(sse(script.clone(), socket, format, acquire_sse_permit(&context)))
            };
            read_head(&mut client).await;
            trigger(&script, &context);
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            let mut expected = [CLOSING_PREFIX, close.text(), ";"].concat().into_bytes();
            if format == FrameFormat::WebSocket {
                ws::close(&mut expected, close);
            }
            // A client takes a body without its last chunk for an incomplete one.
            if format == chunked {
                expected.extend_from_slice(b"0\r\n\r\n");
            }
            assert_eq!(got, expected, "{close:?} {format:?}");
            assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(close));
        }
    }
    // A client that closes the stream itself gets no closing event. A client that violates the protocol gets one.
    for (bytes, expected) in [
        (&b"\x88\x80\0\0\0\0"[..], &b"\x88\x02\x03\xe8"[..]),
        (b"\xc1\x80\0\0\0\0", b"\x01\x09protocol error;\x88\x10\x03\xeaprotocol error"),
    ] {
        let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
        *script.0.closing_prefix.lock().unwrap() = Some(CLOSING_PREFIX);
        let (stream, mut client) = piped_websocket(&script, &context, 4096).await;
        client.write_all(bytes).await.unwrap();
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, expected);
        drop(client);
        stream_end(stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn stream_permit_is_released_when_its_stream_ends() {
    let context = stream_context(Config { max_streams: 2, ..Config::default() });
    let (_open, ending) = (acquire_permit(&context), acquire_sse_permit(&context));
    assert!(context.try_acquire(&WEBSOCKET).is_none());
    let (client, server) = tokio::io::duplex(1);
    let stream = spawn_stream(sse(ScriptedOutbound::default(), socket(Conn::Duplex(server), b""), UNCHUNKED, ending));
    assert!(context.try_acquire(&SSE).is_none());
    drop(client);
    assert_eq!(stream_end(stream).await, StreamEnd::Disconnected);
    let released = context.try_acquire(&SSE);
    assert!(released.is_some() && context.try_acquire(&SSE).is_none());
}

#[test]
fn retry_delays_are_spread_over_the_configured_range() {
    let config = Config::default();
    let tenths: std::collections::BTreeSet<_> = (0..1000).map(|_| config.retry_delay().as_millis() / 200).collect();
    // The probability that one of the ten intervals gets no delay is 10^-45.
    assert_eq!(tenths.into_iter().collect::<Vec<_>>(), Vec::from_iter(5..15));
}

#[tokio::test(start_paused = true)]
async fn panic_in_outbound_closes_with_1011() {
    let (script, context) = (ScriptedOutbound::default(), stream_context(Config::default()));
    let (stream, client) = piped_websocket(&script, &context, 4096).await;
    script.push_result(ReadResult::Batch(Vec::new()));
    let mut client = websocket_client(client).await;
    assert_eq!(close_frame_of(next_message(&mut client).await), (1011, "internal".to_owned()));
    assert!(client.next().await.is_none());
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::Internal));
}

/// An outbound that ends at a given time and wakes no task that waits in `poll_readable` for it.
struct ExpiringOutbound(ScriptedOutbound, Pin<Box<Sleep>>);

impl ExpiringOutbound {
    fn after(seconds: u64) -> ExpiringOutbound {
        let script = ScriptedOutbound::default();
        *script.0.closing_prefix.lock().unwrap() = Some("");
        ExpiringOutbound(script, Box::pin(sleep(Duration::from_secs(seconds))))
    }
}

impl Outbound for ExpiringOutbound {
    fn read(&mut self, max_bytes: usize) -> ReadResult {
        if self.1.deadline() <= Instant::now() {
            ReadResult::End(CloseReason::CredentialExpired)
        } else {
            self.0.read(max_bytes)
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_readable(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        self.1.as_mut().poll(cx).map(|()| CloseReason::CredentialExpired)
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        Some(Bytes::from_static(b"beat"))
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        self.0.closing_event(close, retry)
    }
}

/// Nothing follows the close frame (RFC 6455 section 5.5.1), not even a ping that is due at the same time.
#[tokio::test(start_paused = true)]
async fn close_found_by_a_ping_sends_nothing_after_the_close_frame() {
    let config = Config::default();
    for transport in [Transport::WebSocket, Transport::Sse] {
        let context = stream_context(config.clone());
        let (mut client, server) = tokio::io::duplex(4096);
        let (out, socket) =
            (ExpiringOutbound::after(config.ping_interval.as_secs()), socket(Conn::Duplex(server), b""));
        let stream = match transport {
            Transport::WebSocket => spawn_stream(websocket(out, socket, acquire_permit(&context))),
            Transport::Sse => spawn_stream(sse(out, socket, UNCHUNKED, acquire_sse_permit(&context))),
        };
        read_head(&mut client).await;
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        let mut expected = b"credential expired;".to_vec();
        if transport == Transport::WebSocket {
            ws::close(&mut expected, CloseReason::CredentialExpired);
        }
        assert_eq!(got, expected, "{transport:?}");
        assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::CredentialExpired));
    }
}

/// A client that reads slowly keeps its stream until its credential expires. It then has the write timeout to read the
/// last frames.
#[tokio::test(start_paused = true)]
async fn blocked_stream_closes_when_its_credential_expires() {
    let context = stream_context(Config::default());
    let (mut client, server) = tokio::io::duplex(64);
    let out = ExpiringOutbound::after(60);
    out.0.push_text(&"x".repeat(100_000));
    let started = Instant::now();
    let mut stream = spawn_stream(websocket(out, socket(Conn::Duplex(server), b""), acquire_permit(&context)));
    let closed = loop {
        tokio::select! {
            closed = &mut stream => break closed.unwrap(),
            () = sleep(Duration::from_secs(5)) => {
                client.read_exact(&mut [0; 64]).await.unwrap();
                // A pong, so that the peer is not idle.
                client.write_all(b"\x8a\x80\0\0\0\0").await.unwrap();
            }
        }
    };
    assert_eq!(closed, StreamEnd::ByBridge(CloseReason::CredentialExpired));
    assert_eq!(started.elapsed().as_secs(), 70, "60 s until the credential expires, 10 s for the last frames");
}
