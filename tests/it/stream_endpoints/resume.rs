//! Resumes by a cursor in the header, in the query or in both, and by an invalid cursor.

use boilerhouse_bridge::sim::SimConfig;
use serde_json::json;

use super::{Client, ENDPOINTS, Transport};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, WsClient},
    sim_cluster::SimCluster,
    sse_client::SseClient,
};

/// A title, the query, the headers, and the first two events.
type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], [&'static str; 2]);

/// Returns a cluster with the Pods `a`, `b` and `c`, created in this order, and the cursor after each of them.
async fn cluster_with_cursors() -> (SimCluster, BridgeProcess, [String; 3]) {
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

/// Returns the first two events, without `pool.depth`.
async fn first_two_events(client: &mut Client) -> [String; 2] {
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
    let (_cluster, bridge, [_, b, _]) = cluster_with_cursors().await;
    for (path, transport, ..) in ENDPOINTS {
        for snapshot in ["", "&snapshot=state", "&snapshot=none"] {
            let path = format!("{path}?lastEventId={b}{snapshot}");
            let mut client = Client::open(&bridge, transport, &path).await;
            assert_eq!(first_two_events(&mut client).await, ["heartbeat", "c"], "{path}");
        }
    }
}

/// A client that has no cursor yet may send the parameter without a value.
#[tokio::test]
async fn empty_last_event_id_parameter_counts_as_absent() {
    let (_cluster, bridge, _) = cluster_with_cursors().await;
    for (path, transport, ..) in ENDPOINTS {
        for (query, expected) in [
            ("?lastEventId=&snapshot=state", "state.initial"),
            ("?lastEventId&snapshot=none", "heartbeat"),
            ("?snapshot=none&lastEventId=", "heartbeat"),
        ] {
            let mut client = Client::open(&bridge, transport, &format!("{path}{query}")).await;
            assert_eq!(client.event().await.json()["type"], expected, "{path}{query}");
        }
    }
}

#[tokio::test]
async fn last_event_id_header_overrides_the_query() {
    let (cluster, bridge, [a, b, c]) = cluster_with_cursors().await;
    let other_cluster = SimCluster::with(SimConfig { seed: 99, ..SimConfig::default() }).await;
    let foreign = http_client::get(other_cluster.bridge(&[]).await.address, "/api/v1/pools").await;
    let foreign = foreign.header("event-cursor").unwrap();
    // `d` is created after all streams are open.
    let rows: &[Row] = &[
        ("the header alone", "", &[("Last-Event-ID", &b)], ["heartbeat", "c"]),
        ("the header wins", &format!("?lastEventId={a}"), &[("Last-Event-ID", &b)], ["heartbeat", "c"]),
        ("an empty header is ignored", &format!("?lastEventId={b}"), &[("Last-Event-ID", "")], ["heartbeat", "c"]),
        (
            "an empty header without a cursor",
            "?snapshot=state",
            &[("Last-Event-ID", "")],
            ["state.initial connect", "d"],
        ),
        ("the newest cursor", "", &[("Last-Event-ID", &c)], ["heartbeat", "d"]),
        ("an invalid cursor", "", &[("Last-Event-ID", "42")], ["state.initial foreign", "d"]),
        ("bytes that are not ASCII", "", &[("Last-Event-ID", "\u{e9}t\u{e9}")], ["state.initial foreign", "d"]),
        (
            "an invalid cursor in the header, a valid one in the query",
            &format!("?lastEventId={b}"),
            &[("Last-Event-ID", "42")],
            ["state.initial foreign", "d"],
        ),
        ("a cursor of another cluster", "", &[("Last-Event-ID", foreign)], ["state.initial foreign", "d"]),
        (
            "a cursor of another filter",
            "?params=%7B%22instances%22%3A%7B%22workloadRef%22%3A%22web%22%7D%7D",
            &[("Last-Event-ID", &b)],
            ["state.initial filter", "d"],
        ),
    ];
    let mut open = Vec::new();
    for (title, query, headers, expected) in rows {
        for (path, ..) in ENDPOINTS.iter().filter(|endpoint| endpoint.1 != Transport::WebSocket) {
            let events = SseClient::open(bridge.address, &format!("{path}{query}"), headers).await;
            assert_eq!(events.head.status, 200, "{title}");
            open.push((format!("{title} at {path}"), Client::Sse(Box::new(events)), *expected));
        }
    }
    let mut received = Vec::new();
    for (title, mut client, expected) in open {
        received.push(tokio::spawn(async move { (title, first_two_events(&mut client).await, expected) }));
    }
    // A stream that resumes before `c` receives `c` first.
    cluster.create_pod("d");
    for received in received {
        let (title, received, expected) = received.await.unwrap();
        assert_eq!(received, expected, "{title}");
    }
}

/// A stream that starts at the cursor of a GET receives every change after the GET.
#[tokio::test]
async fn stream_resumes_from_the_cursor_of_a_get() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let cursor = http_client::get(bridge.address, "/api/v1/instances").await.header("event-cursor").unwrap().to_owned();
    cluster.create_pod("between");
    // When another client has received the Pod, it is in the log.
    let mut other = bridge.listen("/api/websocket").await;
    let has_pod = |event: &serde_json::Value| {
        event["name"] == "between" || event["instances"].as_array().is_some_and(|all| !all.is_empty())
    };
    other.until(has_pod).await;
    let mut events = SseClient::open(bridge.address, &format!("/api/events/stream?lastEventId={cursor}"), &[]).await;
    let received = events.until(|event| event["type"] == "instance.state").await;
    let received: Vec<_> =
        received.iter().map(|event| (event.json()["type"].clone(), event.json()["name"].clone())).collect();
    assert_eq!(received, [(json!("heartbeat"), json!(null)), (json!("instance.state"), json!("between"))]);
    // A stream with fewer types can resume from this cursor. A stream with more types cannot resume from a cursor of
    // the narrow stream.
    let mut narrow = WsClient::connect(bridge.address, &format!("/events/ws?types=claim&lastEventId={cursor}")).await;
    let first = narrow.json().await;
    assert_eq!(first["type"], "heartbeat");
    let cursor = first["id"].as_str().unwrap();
    let mut wide = WsClient::connect(bridge.address, &format!("/events/ws?lastEventId={cursor}")).await;
    let first = wide.json().await;
    assert_eq!((&first["type"], &first["reason"]), (&json!("state.initial"), &json!("filter")));
}
