//! An upstream that fails: clients learn of each failed try, and nothing is lost or doubled.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{REPORTED_WITHIN, expect, expect_down, expect_gap, expect_up, local_sse, next, relay, wait_for_events};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{WsClient, metric, wait_for_metric},
    sse_client::SseClient,
    sse_upstream::{SseUpstream, UpstreamConnection},
};

/// Sends `1`, and returns a client that has it.
async fn first_event(upstream: &mut SseUpstream, relay: &BridgeProcess) -> (SseClient, UpstreamConnection) {
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\n").await;
    let mut client = local_sse(relay.address, None).await;
    expect(&mut client, &[("1", "a")]).await;
    (client, connection)
}

#[tokio::test]
async fn every_failed_try_reaches_all_clients_and_nothing_is_lost() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let (mut client, mut connection) = first_event(&mut upstream, &relay).await;
    let mut websocket = WsClient::connect(relay.address, "/events/ws").await;
    assert_eq!(websocket.text().await, "a");
    // An event without an id follows, and the connection is cut.
    connection.send("data: b\n\n").await;
    expect(&mut client, &[("", "b")]).await;
    drop(connection);
    let cut_at = Instant::now();
    let retry_at = expect_down(&mut client, None, "stream ended").await;
    assert!(cut_at.elapsed() < REPORTED_WITHIN);
    let now = jiff::Timestamp::now();
    assert!(retry_at > now - REPORTED_WITHIN && retry_at < now + Duration::from_secs(2), "{retry_at}");
    assert_eq!(websocket.text().await, "b");
    assert_eq!(websocket.json().await["type"], "matrix-down");

    // A second try fails with a status. A new client gets the history and the newest report only.
    let connection = upstream.accept().await;
    assert_eq!(connection.header("last-event-id"), Some("1"));
    let answered_at = Instant::now();
    connection.answer("500 Internal Server Error", "broken").await;
    expect_down(&mut client, Some(500), "error answer").await;
    assert!(answered_at.elapsed() < REPORTED_WITHIN);
    let mut newcomer = local_sse(relay.address, None).await;
    expect(&mut newcomer, &[("1", "a"), ("", "b")]).await;
    expect_down(&mut newcomer, Some(500), "error answer").await;
    let mut resumed = local_sse(relay.address, Some("1")).await;
    expect(&mut resumed, &[("", "b")]).await;
    expect_down(&mut resumed, Some(500), "error answer").await;

    // A page in place of a stream.
    upstream.accept().await.answer("200 OK", "<html>").await;
    for client in [&mut client, &mut newcomer] {
        expect_down(client, Some(200), "no event stream").await;
    }
    upstream.accept().await.answer("302 Found\r\nLocation: /login", "").await;
    expect_down(&mut client, Some(302), "redirect").await;

    // It comes back, and sends again what follows the last id.
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("last-event-id"), Some("1"));
    connection.send("data: b\n\ndata: c\n\nid: 2\ndata: d\n\n").await;
    expect_up(&mut client).await;
    expect(&mut client, &[("", "c"), ("2", "d")]).await;
    let types: Vec<_> = websocket
        .until(|event| event["type"] == "matrix-up")
        .await
        .iter()
        .map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap()["type"].clone())
        .collect();
    assert_eq!(types, [json!("matrix-down"), json!("matrix-down"), json!("matrix-down"), json!("matrix-up")]);
    assert_eq!([websocket.text().await, websocket.text().await], ["c", "d"]);
    // A client that comes after the outage gets no report of it.
    let mut newcomer = local_sse(relay.address, None).await;
    expect(&mut newcomer, &[("1", "a"), ("", "b"), ("", "c"), ("2", "d")]).await;
    connection.send("id: 3\ndata: e\n\n").await;
    expect(&mut newcomer, &[("3", "e")]).await;
    assert_eq!(wait_for_metric(relay.address, "bridge_relay_repeated_events_total", |_| true).await, 1);
}

/// Events without ids that the server does not repeat: a later one that is equal is a new event.
#[tokio::test]
async fn equal_events_after_a_reconnect_are_not_left_out_for_long() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let (mut client, mut connection) = first_event(&mut upstream, &relay).await;
    connection.send(&"data: tick\n\n".repeat(20)).await;
    expect(&mut client, &[("", "tick"); 20]).await;
    drop(connection);
    expect_down(&mut client, None, "stream ended").await;
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("last-event-id"), Some("1"));
    // Those of the first 2 s can be repeated ones, and are left out. A later one is not.
    let mut pause = tokio::time::interval(Duration::from_millis(300));
    let mut sent = 0;
    while metric(relay.address, "bridge_relay_events_total").await < 22 {
        pause.tick().await;
        assert!(sent < 20, "equal events are left out");
        connection.send("data: tick\n\n").await;
        sent += 1;
    }
    expect_up(&mut client).await;
    expect(&mut client, &[("", "tick")]).await;
}

/// The id of a block without data counts from its place on, also if an event follows in the same read.
#[tokio::test]
async fn event_after_a_block_with_an_id_only_is_not_sent_twice() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let (mut client, mut connection) = first_event(&mut upstream, &relay).await;
    connection.send("id: 5\n\ndata: x\n\n").await;
    expect(&mut client, &[("", "x")]).await;
    drop(connection);
    expect_down(&mut client, None, "stream ended").await;
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("last-event-id"), Some("5"));
    connection.send("data: x\n\ndata: y\n\n").await;
    expect_up(&mut client).await;
    expect(&mut client, &[("", "y")]).await;
    // An id that is lower than before shows that the server starts again, before its first event.
    drop(connection);
    expect_down(&mut client, None, "stream ended").await;
    let mut connection = upstream.stream().await;
    connection.send("id: 2\n\ndata: z\n\n").await;
    let mut own = [next(&mut client).await.1, next(&mut client).await.1];
    own.sort();
    assert_eq!(own, [Some("matrix-up".to_owned()), Some("relay.gap".to_owned())]);
    expect(&mut client, &[("", "z")]).await;
}

#[tokio::test]
async fn refused_upstream_is_reported_from_the_start() {
    let mut upstream = SseUpstream::new().await;
    upstream.refuse();
    let relay = relay(&upstream.url(), &[]).await;
    let mut client = local_sse(relay.address, None).await;
    expect_down(&mut client, None, "no connection").await;
    upstream.listen().await;
    let mut connection = upstream.stream().await;
    // A quiet stream counts as up, too. There was no connection before, so nothing can be missing.
    while client.event().await.event.as_deref() != Some("matrix-up") {}
    connection.send("data: first\n\n").await;
    expect(&mut client, &[("", "first")]).await;
}

#[tokio::test]
async fn token_file_is_read_again_after_a_401() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "old\n").unwrap();
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &["--token-file", &file.path().to_string_lossy()]).await;
    let mut client = local_sse(relay.address, None).await;
    let connection = upstream.accept().await;
    assert_eq!(connection.header("authorization"), Some("Bearer old"));
    std::fs::write(file.path(), "new\n").unwrap();
    connection.answer("401 Unauthorized", r#"{"code":"UNAUTHORIZED","message":"no"}"#).await;
    expect_down(&mut client, Some(401), "unauthorized").await;
    let mut connection = upstream.accept().await;
    assert_eq!(connection.header("authorization"), Some("Bearer new"));
    connection.start().await;
    connection.send("id: 1\ndata: a\n\n").await;
    expect_up(&mut client).await;
    expect(&mut client, &[("1", "a")]).await;
    // Without the file there is no request.
    std::fs::remove_file(file.path()).unwrap();
    drop(connection);
    expect_down(&mut client, None, "stream ended").await;
    expect_down(&mut client, None, "no credentials").await;
    assert!(!relay.log().iter().any(|line| line.contains("Bearer")), "{:#?}", relay.log());
}

#[tokio::test]
async fn silent_upstream_is_lost_and_comments_are_not_silence() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &["--silence", "3s"]).await;
    let (mut client, mut connection) = first_event(&mut upstream, &relay).await;
    let start = Instant::now();
    let mut pause = tokio::time::interval(Duration::from_millis(500));
    while start.elapsed() < Duration::from_secs(5) {
        pause.tick().await;
        connection.send(": still here\n").await;
    }
    let silent_from = Instant::now();
    expect_down(&mut client, None, "silent").await;
    assert!(start.elapsed() > Duration::from_secs(7), "the comments count");
    assert!(silent_from.elapsed() < Duration::from_secs(3) + REPORTED_WITHIN);
    let mut second = upstream.stream().await;
    second.send("id: 2\ndata: b\n\n").await;
    expect_up(&mut client).await;
    expect(&mut client, &[("2", "b")]).await;
}

/// The `reset_at` of a used-up rate limit, from now on.
fn reset_after(time: Duration) -> (jiff::Timestamp, String) {
    let reset_at = jiff::Timestamp::now() + time;
    (reset_at, format!(r#"{{"rate_limit":{{"limit":60,"remaining":0,"reset_at":"{reset_at:.3}"}}}}"#))
}

#[tokio::test]
async fn no_try_starts_before_the_rate_limit_of_the_upstream_ends() {
    const HOLD: Duration = Duration::from_secs(4);
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let mut client = local_sse(relay.address, None).await;
    // In an error body.
    let (reset_at, body) = reset_after(HOLD);
    upstream.accept().await.answer("429 Too Many Requests", &body).await;
    let retry_at = expect_down(&mut client, Some(429), "too many requests").await;
    assert!(retry_at >= reset_at - Duration::from_millis(2) && retry_at < reset_at + Duration::from_secs(2));
    let mut connection = upstream.stream().await;
    assert!(jiff::Timestamp::now() >= reset_at, "the try came before the end of the limit");
    // In an event.
    let (reset_at, data) = reset_after(HOLD);
    connection.send(&format!("id: 1\ndata: {data}\n\n")).await;
    expect_up(&mut client).await;
    expect(&mut client, &[("1", &data)]).await;
    drop(connection);
    let retry_at = expect_down(&mut client, None, "stream ended").await;
    assert!(retry_at >= reset_at - Duration::from_millis(2));
    let mut connection = upstream.stream().await;
    assert!(jiff::Timestamp::now() >= reset_at, "the try came before the end of the limit");
    // A limit with a rest ends the hold.
    let (_, used_up) = reset_after(Duration::from_secs(600));
    let open = used_up.replace("\"remaining\":0", "\"remaining\":1");
    connection.send(&format!("id: 2\ndata: {used_up}\n\nid: 3\ndata: {open}\n\n")).await;
    expect_up(&mut client).await;
    expect(&mut client, &[("2", &used_up), ("3", &open)]).await;
    drop(connection);
    let retry_at = expect_down(&mut client, None, "stream ended").await;
    assert!(retry_at < jiff::Timestamp::now() + Duration::from_secs(5));
}

#[tokio::test]
async fn upstream_that_does_not_resume_is_reported() {
    // No ids at all. All events are equal, so that none of them may count as repeated.
    let mut upstream = SseUpstream::new().await;
    let first = relay(&upstream.url(), &[]).await;
    let mut client = local_sse(first.address, None).await;
    let mut connection = upstream.stream().await;
    let ticks = [("", "tick"); 3];
    connection.send(&"data: tick\n\n".repeat(3)).await;
    expect(&mut client, &ticks).await;
    drop(connection);
    expect_down(&mut client, None, "stream ended").await;
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("last-event-id"), None);
    connection.send(&"data: tick\n\n".repeat(3)).await;
    expect_up(&mut client).await;
    expect_gap(&mut client, "upstream").await;
    expect(&mut client, &ticks).await;
    // The report is part of the history.
    let mut late = local_sse(first.address, None).await;
    expect(&mut late, &ticks).await;
    expect_gap(&mut late, "upstream").await;
    expect(&mut late, &ticks).await;

    // Ids that start again.
    let mut upstream = SseUpstream::new().await;
    let second = relay(&upstream.url(), &[]).await;
    let mut client = local_sse(second.address, None).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\nid: 2\ndata: b\n\n").await;
    expect(&mut client, &[("1", "a"), ("2", "b")]).await;
    drop(connection);
    expect_down(&mut client, None, "stream ended").await;
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("last-event-id"), Some("2"));
    connection.send("id: 1\ndata: c\n\n").await;
    expect_up(&mut client).await;
    expect_gap(&mut client, "upstream").await;
    expect(&mut client, &[("1", "c")]).await;
    // The id `1` names two places now, `2` only one.
    let mut ambiguous = local_sse(second.address, Some("1")).await;
    expect_gap(&mut ambiguous, "upstream").await;
    expect(&mut ambiguous, &[("1", "a"), ("2", "b")]).await;
    let mut resumed = local_sse(second.address, Some("2")).await;
    expect_gap(&mut resumed, "upstream").await;
    expect(&mut resumed, &[("1", "c")]).await;
}

/// A refusal of a bridge is a stream of one `stream.closing`: the relay stays down, with its reason, and waits longer.
#[tokio::test]
async fn closing_event_of_the_upstream_becomes_the_reason() {
    const CLOSING: &str =
        "retry: 1500\ndata: {\"type\":\"stream.closing\",\"reason\":\"draining\",\"retryAfterMs\":1500}\n\n";
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let (mut client, mut connection) = first_event(&mut upstream, &relay).await;
    connection.send(CLOSING).await;
    let cut_at = jiff::Timestamp::now();
    drop(connection);
    let retry_at = expect_down(&mut client, None, "draining").await;
    // The relay's own delay is at most 1 s. The text of the time has milliseconds.
    assert!(retry_at >= cut_at + Duration::from_millis(1499), "{retry_at} is too soon after {cut_at}");
    let mut connection = upstream.stream().await;
    connection.send(&CLOSING.replace("draining", "not ready")).await;
    drop(connection);
    // No `matrix-up` between the two.
    expect_down(&mut client, None, "not ready").await;
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("last-event-id"), Some("1"));
    connection.send("id: 2\ndata: b\n\n").await;
    expect_up(&mut client).await;
    expect(&mut client, &[("2", "b")]).await;
    // In the middle of a stream it is an event like any other.
    let data = r#"{"type":"stream.closing","reason":"x"}"#;
    connection.send(&format!("data: {data}\n\n")).await;
    expect(&mut client, &[("", data)]).await;
    wait_for_events(&relay, 3).await;
}
