//! How streams end: the last words, and the place that is free again.

use std::pin::Pin;

use tokio::time::{Sleep, sleep};

use super::*;

/// Brings it about.
type End = fn(&Script, &Streams);

/// The last words of a stream, by what ends it.
#[tokio::test(start_paused = true)]
async fn every_end_by_the_bridge_has_its_farewell() {
    const FAREWELL: &str = "\u{1}\u{9}";
    let ends: [(Close, End); 3] = [
        (Close::Draining, |_, shared| shared.stop.cancel()),
        (Close::CredentialExpired, |script, _| script.put(Read::End(Close::CredentialExpired))),
        (Close::Internal, |script, _| script.put(Read::Batch(Vec::new()))),
    ];
    for (close, bring_about) in ends {
        for transport in [Transport::WebSocket, Transport::Sse] {
            let (script, shared) = (Script::default(), shared(Config::default()));
            *script.0.farewell.lock().unwrap() = Some(FAREWELL);
            let (mut client, server) = tokio::io::duplex(4096);
            let socket = socket(Conn::Duplex(server), b"");
            let stream = match transport {
                Transport::WebSocket => start(websocket(script.clone(), socket, place(&shared))),
                Transport::Sse => start(sse(script.clone(), socket, place(&shared))),
            };
            past_head(&mut client).await;
            bring_about(&script, &shared);
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            let mut expected = [FAREWELL, close.reason(), ";"].concat().into_bytes();
            if transport == Transport::WebSocket {
                ws::close(&mut expected, close);
            }
            assert_eq!(got, expected, "{close:?} {transport:?}");
            assert_eq!(end(stream).await, Closed::Bridge(close));
        }
    }
    // Who closes himself needs no reason; who breaks the protocol gets one.
    for (bytes, expected) in [
        (&b"\x88\x80\0\0\0\0"[..], &b"\x88\x02\x03\xe8"[..]),
        (b"\xc1\x80\0\0\0\0", b"\x01\x09protocol error;\x88\x10\x03\xeaprotocol error"),
    ] {
        let (script, shared) = (Script::default(), shared(Config::default()));
        *script.0.farewell.lock().unwrap() = Some(FAREWELL);
        let (stream, mut client) = piped(&script, &shared, 4096).await;
        client.write_all(bytes).await.unwrap();
        let mut got = vec![0; expected.len()];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(got, expected);
        drop(client);
        end(stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_again_when_its_stream_ends() {
    let shared = shared(Config { max_streams: 2, ..Config::default() });
    let (_kept, ending) = (place(&shared), place(&shared));
    assert!(shared.enter().is_none());
    let (client, server) = tokio::io::duplex(1);
    let stream = start(sse(Script::default(), socket(Conn::Duplex(server), b""), ending));
    assert!(shared.enter().is_none());
    drop(client);
    assert_eq!(end(stream).await, Closed::Gone);
    let again = shared.enter();
    assert!(again.is_some() && shared.enter().is_none());
    assert_eq!(shared.metrics.refused.get(), 3);
}

/// Each is told another time, over the whole of what is allowed.
#[test]
fn those_who_are_sent_away_do_not_come_back_together() {
    let config = Config::default();
    let tenths: std::collections::BTreeSet<_> = (0..1000).map(|_| config.retry().as_millis() / 200).collect();
    // Each of the ten is missed with a chance of one in 10^45.
    assert_eq!(tenths.into_iter().collect::<Vec<_>>(), Vec::from_iter(5..15));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_said_as_1011() {
    let (script, shared) = (Script::default(), shared(Config::default()));
    let (stream, client) = piped(&script, &shared, 4096).await;
    script.put(Read::Batch(Vec::new()));
    let mut client = frames(client).await;
    assert_eq!(close_of(next(&mut client).await), (1011, "internal".to_owned()));
    assert!(client.next().await.is_none());
    assert_eq!(end(stream).await, Closed::Bridge(Close::Internal));
}

/// An outbound that ends at a moment, of which it wakes nobody who waits for more to read.
struct Expires(Script, Pin<Box<Sleep>>);

impl Expires {
    fn after(seconds: u64) -> Expires {
        let script = Script::default();
        *script.0.farewell.lock().unwrap() = Some("");
        Expires(script, Box::pin(sleep(Duration::from_secs(seconds))))
    }
}

impl Outbound for Expires {
    fn read(&mut self, max_bytes: usize) -> Read {
        if self.1.deadline() <= Instant::now() { Read::End(Close::CredentialExpired) } else { self.0.read(max_bytes) }
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_changed(cx)
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        self.1.as_mut().poll(cx).map(|()| Close::CredentialExpired)
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        Some(Bytes::from_static(b"still here"))
    }

    fn farewell(&mut self, close: Close, retry: Duration) -> Option<Bytes> {
        self.0.farewell(close, retry)
    }
}

/// Nothing follows the last words (RFC 6455, section 5.5.1), not even the ping of the same moment.
#[tokio::test(start_paused = true)]
async fn an_end_that_a_ping_finds_is_the_end() {
    let config = Config::default();
    for transport in [Transport::WebSocket, Transport::Sse] {
        let shared = shared(config.clone());
        let (mut client, server) = tokio::io::duplex(4096);
        let (out, socket) = (Expires::after(config.ping.as_secs()), socket(Conn::Duplex(server), b""));
        let stream = match transport {
            Transport::WebSocket => start(websocket(out, socket, place(&shared))),
            Transport::Sse => start(sse(out, socket, place(&shared))),
        };
        past_head(&mut client).await;
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        let mut expected = b"credential expired;".to_vec();
        if transport == Transport::WebSocket {
            ws::close(&mut expected, Close::CredentialExpired);
        }
        assert_eq!(got, expected, "{transport:?}");
        assert_eq!(end(stream).await, Closed::Bridge(Close::CredentialExpired));
    }
}

/// A client that takes a little now and then keeps its stream, but neither past the end of its right to it, nor with
/// last words that it does not take.
#[tokio::test(start_paused = true)]
async fn who_trickles_ends_with_his_credential() {
    let shared = shared(Config::default());
    let (mut client, server) = tokio::io::duplex(64);
    let out = Expires::after(60);
    out.0.text(&"x".repeat(100_000));
    let begun = Instant::now();
    let mut stream = start(websocket(out, socket(Conn::Duplex(server), b""), place(&shared)));
    let closed = loop {
        tokio::select! {
            closed = &mut stream => break closed.unwrap(),
            () = sleep(Duration::from_secs(5)) => {
                client.read_exact(&mut [0; 64]).await.unwrap();
                // It lives, and says so.
                client.write_all(b"\x8a\x80\0\0\0\0").await.unwrap();
            }
        }
    };
    assert_eq!(closed, Closed::Bridge(Close::CredentialExpired));
    assert_eq!(begun.elapsed().as_secs(), 70, "60 s, and 10 s for the last words");
}
