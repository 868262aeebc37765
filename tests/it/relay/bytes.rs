//! Ids, names and data are those of the upstream, byte for byte, on both transports.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{expect, expect_gap, local_sse, next, relay, wait_for_events};
use crate::support::{
    http_client::{self, TEST_TIMEOUT, WsClient},
    sse_upstream::SseUpstream,
};

/// A stream in every form that the standard allows.
const STREAM: &str = "\u{feff}retry: 50\r\nid: 1\r\nevent: tick\r\ndata: one\r\n\r\n\
                      : a comment\ndata: two\ndata:  lines \ndata:\ndata: end\n\n\
                      data\n\n\
                      id: \u{e9}\u{1f600}\rdata:{\"a\":\"\u{0}\"}\r\r\
                      event: nothing\n\n\
                      id\nevent: message\ndata: <not json>\nother: ignored\n\n\
                      : comment inside\nid: 5\n: another\ndata: {\"type\":\"stream.closing\",\"reason\":\"x\"}\n\n\
                      data: last\n\n";
/// The same events, as the relay writes them.
const SSE: &str = "id: 1\nevent: tick\ndata: one\n\n\
                   data: two\ndata:  lines \ndata: \ndata: end\n\n\
                   data: \n\n\
                   id: \u{e9}\u{1f600}\ndata: {\"a\":\"\u{0}\"}\n\n\
                   id: \nevent: message\ndata: <not json>\n\n\
                   id: 5\ndata: {\"type\":\"stream.closing\",\"reason\":\"x\"}\n\n\
                   data: last\n\n";
const MESSAGES: [&str; 7] = [
    "one",
    "two\n lines \n\nend",
    "",
    "{\"a\":\"\u{0}\"}",
    "<not json>",
    "{\"type\":\"stream.closing\",\"reason\":\"x\"}",
    "last",
];

/// Reads the body of an SSE response over HTTP/1.0, which has no chunks, up to this length.
async fn body(relay: std::net::SocketAddr, length: usize) -> String {
    let mut socket = TcpStream::connect(relay).await.unwrap();
    socket.write_all(format!("GET /events HTTP/1.0\r\nHost: {relay}\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let reading = timeout(TEST_TIMEOUT, async {
        loop {
            let so_far = String::from_utf8_lossy(&text).into_owned();
            let body = so_far.split_once("\r\n\r\n").and_then(|(_, body)| body.split_once('\n'));
            if let Some((retry, body)) = body.filter(|(_, body)| body.len() >= length) {
                assert!(retry.starts_with("retry: "), "{so_far:?}");
                return body.to_owned();
            }
            assert_ne!(socket.read_buf(&mut text).await.unwrap(), 0, "{so_far:?}");
        }
    });
    reading.await.expect("the body does not arrive in time")
}

#[tokio::test]
async fn every_form_of_the_stream_arrives_unchanged() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("accept"), Some("text/event-stream"));
    assert_eq!(connection.header("last-event-id"), None);
    let mut live = WsClient::connect(relay.address, "/events/ws").await;
    connection.send(STREAM).await;
    for expected in MESSAGES {
        assert_eq!(live.text().await, expected);
    }
    // The history has the same bytes.
    assert_eq!(body(relay.address, SSE.len()).await, SSE);
    let mut late = WsClient::connect(relay.address, "/events/ws").await;
    for expected in MESSAGES {
        assert_eq!(late.text().await, expected);
    }
    // An id of other characters than ASCII resumes, in the header and in the query.
    let mut resumed = local_sse(relay.address, Some("\u{e9}\u{1f600}")).await;
    let event = next(&mut resumed).await;
    assert_eq!(event, (Some(String::new()), Some("message".into()), "<not json>".into()));
    let mut resumed = WsClient::connect(relay.address, "/events/ws?lastEventId=%C3%A9%F0%9F%98%80").await;
    assert_eq!(resumed.text().await, "<not json>");
}

/// A block that arrives in single bytes, and one that is as large as the limit of one event nearly allows.
#[tokio::test]
async fn split_and_large_events_arrive_complete() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let mut connection = upstream.stream().await;
    let mut client = WsClient::connect(relay.address, "/events/ws").await;
    for character in "id: 1\ndata: \u{e9} split\n\n".chars() {
        connection.send(&character.to_string()).await;
    }
    assert_eq!(client.text().await, "\u{e9} split");
    let large = "x".repeat(3 << 20);
    connection.send(&format!("id: 2\ndata: {large}\n\n")).await;
    assert!(client.text().await == large);
    // A larger one is refused. The relay continues after the event before.
    let too_large = "y".repeat(5 << 20);
    let sending = tokio::spawn(async move {
        // The relay closes the connection.
        let _ = tokio::spawn(async move { connection.send(&format!("data: {too_large}")).await }).await;
    });
    let down = client.json().await;
    assert_eq!((&down["type"], &down["reason"]), (&"matrix-down".into(), &"event too large".into()));
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("last-event-id"), Some("2"));
    connection.send("id: 3\ndata: next\n\n").await;
    assert_eq!(client.json().await["type"], "matrix-up");
    assert_eq!(client.text().await, "next");
    sending.await.unwrap();
}

/// The relay is heard of every 15 s, whatever the upstream does.
#[tokio::test]
async fn quiet_streams_get_comments_and_pings() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let _connection = upstream.stream().await;
    let mut websocket = WsClient::connect(relay.address, "/events/ws").await;
    let start = std::time::Instant::now();
    let (comment, ()) = tokio::join!(body(relay.address, 3), websocket.ping());
    assert_eq!(comment, ": \n");
    assert!(start.elapsed() >= std::time::Duration::from_secs(14), "{:?}", start.elapsed());
}

/// The relay ends its own streams with its own `stream.closing`, and not with that of the upstream.
#[tokio::test]
async fn drain_closes_the_streams_of_the_relay() {
    let mut upstream = SseUpstream::new().await;
    let mut relay = relay(&upstream.url(), &["--drain", "1"]).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\n").await;
    wait_for_events(&relay, 1).await;
    let mut sse = local_sse(relay.address, None).await;
    expect(&mut sse, &[("1", "a")]).await;
    let mut websocket = WsClient::connect(relay.address, "/events/ws").await;
    assert_eq!(websocket.text().await, "a");
    relay.signal("TERM").await;
    let (id, name, data) = next(&mut sse).await;
    assert_eq!((id, name.as_deref()), (None, Some("stream.closing")));
    assert!(data.starts_with(r#"{"type":"stream.closing","reason":"draining","retryAfterMs":"#), "{data}");
    assert!(sse.block().await.is_none() && sse.has_last_chunk);
    let closed = websocket.closed(TEST_TIMEOUT).await;
    assert_eq!(closed, (1, Some((1012, "draining".to_owned()))));
    assert_eq!(relay.ended(TEST_TIMEOUT).await.code(), Some(0));
}

#[tokio::test]
async fn foreign_ids_in_the_header_are_no_error() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\n").await;
    wait_for_events(&relay, 1).await;
    let mut client = local_sse(relay.address, Some("unknown")).await;
    expect_gap(&mut client, "foreign").await;
    expect(&mut client, &[("1", "a")]).await;
    // An empty id counts as absent.
    let mut client = local_sse(relay.address, Some("")).await;
    expect(&mut client, &[("1", "a")]).await;
    assert_eq!(http_client::get(relay.address, "/readyz").await.status, 200);
}
