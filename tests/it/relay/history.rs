//! The history: resume, ids that are too old or unknown, and its bounds.

use super::{expect, expect_down, expect_gap, local_sse, relay, wait_for_events};
use crate::support::{
    http_client::{WsClient, metric},
    sse_client::SseClient,
    sse_upstream::SseUpstream,
};

#[tokio::test]
async fn clients_resume_and_learn_of_ids_that_are_gone() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &["--history", "4"]).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\n").await;
    wait_for_events(&relay, 1).await;
    // The history begins with the start of the stream: a new client gets all of it.
    let mut live = local_sse(relay.address, None).await;
    expect(&mut live, &[("1", "a")]).await;
    for (id, data) in [("2", "b"), ("", "c"), ("3", "d"), ("4", "e"), ("5", "f")] {
        let field = if id.is_empty() { String::new() } else { format!("id: {id}\n") };
        connection.send(&format!("{field}data: {data}\n\n")).await;
        expect(&mut live, &[(id, data)]).await;
    }
    let retained = [("", "c"), ("3", "d"), ("4", "e"), ("5", "f")];
    for (last_id, gap, events) in [
        (Some("3"), None, &retained[2..]),
        (Some("5"), None, &[]),
        (Some("2"), Some("expired"), &retained),
        (Some("1"), Some("expired"), &retained),
        (Some("9"), Some("foreign"), &retained),
        (None, Some("expired"), &retained),
    ] {
        let mut client = local_sse(relay.address, last_id).await;
        if let Some(reason) = gap {
            expect_gap(&mut client, reason).await;
        }
        expect(&mut client, events).await;
    }
    // The query is the same, and the header has precedence.
    let mut websocket = WsClient::connect(relay.address, "/events/ws?lastEventId=4").await;
    assert_eq!(websocket.text().await, "f");
    let both = [("Last-Event-ID", "4")];
    let mut websocket = WsClient::with(relay.address, "/events/ws?lastEventId=1", &both).await.unwrap();
    assert_eq!(websocket.text().await, "f");
    let mut websocket = WsClient::connect(relay.address, "/events/ws?lastEventId=9").await;
    assert_eq!(websocket.text().await, r#"{"type":"relay.gap","reason":"foreign"}"#);
    assert_eq!(websocket.text().await, "c");
}

/// Heartbeats of a bridge repeat the id of the event before. A client with this id misses nothing, or gets a gap.
#[tokio::test]
async fn repeated_ids_resume_after_the_first_event() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &["--history", "3"]).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\ndata: b\n\nid: 1\ndata: beat\n\n").await;
    wait_for_events(&relay, 3).await;
    let mut client = local_sse(relay.address, Some("1")).await;
    expect(&mut client, &[("", "b"), ("1", "beat")]).await;
    // The first event alone is evicted.
    connection.send("id: 1\ndata: beat 2\n\n").await;
    wait_for_events(&relay, 4).await;
    let mut client = local_sse(relay.address, Some("1")).await;
    expect(&mut client, &[("", "b"), ("1", "beat"), ("1", "beat 2")]).await;
    // The id stays known, and `b` is missing.
    connection.send("id: 1\ndata: beat 3\n\n").await;
    wait_for_events(&relay, 5).await;
    let mut client = local_sse(relay.address, Some("1")).await;
    expect_gap(&mut client, "expired").await;
    expect(&mut client, &[("1", "beat"), ("1", "beat 2"), ("1", "beat 3")]).await;
    // Also when all events with the id were evicted before it comes again.
    connection.send("data: c\n\ndata: d\n\ndata: e\n\nid: 1\ndata: beat 4\n\n").await;
    wait_for_events(&relay, 9).await;
    let mut client = local_sse(relay.address, Some("1")).await;
    expect_gap(&mut client, "expired").await;
    expect(&mut client, &[("", "d"), ("", "e"), ("1", "beat 4")]).await;
}

#[tokio::test]
async fn history_is_bounded_by_bytes() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &["--history-memory", "1"]).await;
    let mut connection = upstream.stream().await;
    let data: Vec<String> = (0..4).map(|n| n.to_string().repeat(400 << 10)).collect();
    for (id, data) in data.iter().enumerate() {
        connection.send(&format!("id: {id}\ndata: {data}\n\n")).await;
    }
    wait_for_events(&relay, 4).await;
    assert_eq!(metric(relay.address, "bridge_relay_history_events").await, 2);
    assert!(metric(relay.address, "bridge_relay_history_bytes").await <= 1 << 20);
    let mut client = local_sse(relay.address, Some("0")).await;
    expect_gap(&mut client, "expired").await;
    expect(&mut client, &[("2", &data[2]), ("3", &data[3])]).await;
    // The newest entry is always retained.
    let large = "x".repeat(2 << 20);
    connection.send(&format!("id: 9\ndata: {large}\n\n")).await;
    wait_for_events(&relay, 5).await;
    expect(&mut client, &[("9", &large)]).await;
    assert_eq!(metric(relay.address, "bridge_relay_history_events").await, 1);
    // `matrix-down` evicts it. A client that has it lacks nothing.
    drop(connection);
    expect_down(&mut client, None, "stream ended").await;
    assert_eq!(metric(relay.address, "bridge_relay_history_events").await, 0);
    let mut client = local_sse(relay.address, Some("9")).await;
    expect_down(&mut client, None, "stream ended").await;
}

/// A client that does not read is not in the way of others, and continues with the oldest event.
#[tokio::test]
async fn slow_client_gets_a_gap_and_the_retained_events() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &["--history", "3"]).await;
    let mut connection = upstream.stream().await;
    let mut fast = local_sse(relay.address, None).await;
    // The buffers of both sockets hold less than the events that the history evicts. The relay ends a stream that takes nothing
    // for its timeout, so there must not be more than necessary.
    let mut slow = SseClient::open_with_small_buffer(relay.address, "/events").await;
    let data = "x".repeat(1 << 20);
    let mut sent = 0;
    for _ in 0..12 {
        sent += 1;
        connection.send(&format!("id: {sent}\ndata: {data}\n\n")).await;
        expect(&mut fast, &[(&sent.to_string(), &data)]).await;
    }
    let (mut last, mut gaps) = (0, 0);
    while last < sent {
        let event = slow.event().await;
        match event.id {
            Some(id) => {
                let id: u64 = id.parse().unwrap();
                assert!(id == last + 1 || gaps > 0, "{last} precedes {id} without a gap");
                last = id;
            }
            None => {
                assert_eq!(event.data, r#"{"type":"relay.gap","reason":"expired"}"#);
                gaps += 1;
            }
        }
    }
    assert_eq!(gaps, 1);
}
