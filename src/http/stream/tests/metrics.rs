//! Metrics of streams, and the memory of a stream.

use super::*;

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
