//! A cursor brought back: in the header, in the query, in both, and one that is none.

use boilerhouse_bridge::sim::SimConfig;
use serde_json::json;

use super::{Carrier, Client, ROWS};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, WsClient},
    sim_cluster::SimCluster,
    sse_client::SseClient,
};

/// What it shows, the query, the headers; what comes first, and what comes then.
type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], [&'static str; 2]);

/// A cluster with pods `a`, `b`, `c`, made in this order, and the cursors behind each.
async fn history() -> (SimCluster, BridgeProcess, [String; 3]) {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let mut stream = bridge.listen("/api/websocket").await;
    stream.json().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        cluster.create_pod(name);
        let event = stream.until(|event| event["id"].is_string()).await.pop().unwrap();
        let event: serde_json::Value = serde_json::from_str(&event).unwrap();
        assert_eq!(event["name"], name);
        ids.push(event["id"].as_str().unwrap().to_owned());
    }
    (cluster, bridge, ids.try_into().unwrap())
}

/// The first two events that are about the stream or about objects: no pool's depth.
async fn two(client: &mut Client) -> [String; 2] {
    let mut received = Vec::new();
    while received.len() < 2 {
        let event = client.event().await.json();
        match event["type"].as_str().unwrap() {
            "pool.depth" => {}
            "instance.state" => received.push(event["name"].as_str().unwrap().to_owned()),
            "state.initial" => received.push(format!("state.initial {}", event["reason"].as_str().unwrap())),
            kind => received.push(kind.to_owned()),
        }
    }
    received.try_into().unwrap()
}

#[tokio::test]
async fn cursor_overrides_snapshot_on_every_endpoint() {
    let (_cluster, bridge, [_, b, _]) = history().await;
    for (path, carrier, ..) in ROWS {
        for snapshot in ["", "&snapshot=state", "&snapshot=none"] {
            let path = format!("{path}?lastEventId={b}{snapshot}");
            let mut client = Client::open(&bridge, carrier, &path).await;
            assert_eq!(two(&mut client).await, ["heartbeat", "c"], "{path}");
        }
    }
}

#[tokio::test]
async fn last_event_id_header_overrides_the_query() {
    let (cluster, bridge, [a, b, c]) = history().await;
    let elsewhere = SimCluster::with(SimConfig { seed: 99, ..SimConfig::default() }).await;
    let foreign = http_client::get(elsewhere.bridge(&[]).await.address, "/api/v1/pools").await;
    let foreign = foreign.header("event-cursor").unwrap();
    // `d` is made once all listen.
    let rows: &[Row] = &[
        ("the header alone", "", &[("Last-Event-ID", &b)], ["heartbeat", "c"]),
        ("the header wins", &format!("?lastEventId={a}"), &[("Last-Event-ID", &b)], ["heartbeat", "c"]),
        ("an empty one is none", &format!("?lastEventId={b}"), &[("Last-Event-ID", "")], ["heartbeat", "c"]),
        ("an empty one and none", "?snapshot=state", &[("Last-Event-ID", "")], ["state.initial connect", "d"]),
        ("at the end", "", &[("Last-Event-ID", &c)], ["heartbeat", "d"]),
        ("no cursor", "", &[("Last-Event-ID", "42")], ["state.initial foreign", "d"]),
        ("no text", "", &[("Last-Event-ID", "\u{e9}t\u{e9}")], ["state.initial foreign", "d"]),
        (
            "no cursor, and a good one",
            &format!("?lastEventId={b}"),
            &[("Last-Event-ID", "42")],
            ["state.initial foreign", "d"],
        ),
        ("another cluster's", "", &[("Last-Event-ID", foreign)], ["state.initial foreign", "d"]),
        (
            "another filter's",
            "?params=%7B%22instances%22%3A%7B%22workloadRef%22%3A%22web%22%7D%7D",
            &[("Last-Event-ID", &b)],
            ["state.initial filter", "d"],
        ),
    ];
    let mut open = Vec::new();
    for (what, query, headers, expected) in rows {
        for (path, ..) in ROWS.iter().filter(|row| row.1 != Carrier::WebSocket) {
            let events = SseClient::open(bridge.address, &format!("{path}{query}"), headers).await;
            assert_eq!(events.head.status, 200, "{what}");
            open.push((format!("{what} at {path}"), Client::Sse(Box::new(events)), *expected));
        }
    }
    let mut received = Vec::new();
    for (what, mut client, expected) in open {
        received.push(tokio::spawn(async move { (what, two(&mut client).await, expected) }));
    }
    // Whoever has missed something gets it before this.
    cluster.create_pod("d");
    for received in received {
        let (what, received, expected) = received.await.unwrap();
        assert_eq!(received, expected, "{what}");
    }
}

/// A GET, then the stream from there: nothing between is lost.
#[tokio::test]
async fn stream_resumes_from_the_cursor_of_a_get() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let cursor = http_client::get(bridge.address, "/api/v1/instances").await.header("event-cursor").unwrap().to_owned();
    cluster.create_pod("between");
    // Another client has been told of it: it is in the log.
    let mut other = bridge.listen("/api/websocket").await;
    let known = |event: &serde_json::Value| {
        event["name"] == "between" || event["instances"].as_array().is_some_and(|all| !all.is_empty())
    };
    other.until(known).await;
    let mut events = SseClient::open(bridge.address, &format!("/api/events/stream?lastEventId={cursor}"), &[]).await;
    let received = events.until(|event| event["type"] == "instance.state").await;
    let received: Vec<_> =
        received.iter().map(|event| (event.json()["type"].clone(), event.json()["name"].clone())).collect();
    assert_eq!(received, [(json!("heartbeat"), json!(null)), (json!("instance.state"), json!("between"))]);
    // A narrower stream may go on from it, a wider one not from a narrow one's.
    let mut small_buffer_socket =
        WsClient::connect(bridge.address, &format!("/events/ws?types=claim&lastEventId={cursor}")).await;
    let first = small_buffer_socket.json().await;
    assert_eq!(first["type"], "heartbeat");
    let cursor = first["id"].as_str().unwrap();
    let mut wide = WsClient::connect(bridge.address, &format!("/events/ws?lastEventId={cursor}")).await;
    let first = wide.json().await;
    assert_eq!((&first["type"], &first["reason"]), (&json!("state.initial"), &json!("filter")));
}
