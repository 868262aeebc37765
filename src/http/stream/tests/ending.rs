//! How streams end: the last words, and the place that is free again.

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
