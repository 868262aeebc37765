//! What clients send: pings, pongs, frames that break the protocol, floods, and nothing.

use super::*;

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
