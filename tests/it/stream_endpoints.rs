//! The endpoints of the full stream (docs/protocol.md#stream-endpoints), as the binary serves them on a simulated cluster: each row's
//! defaults, what a request may ask for, and how a stream ends.

mod drain;
mod golden;
mod rejections;
mod resume;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, WsClient},
    sim_cluster::{NAMESPACE, SimCluster},
    sse_client::{SseClient, SseEvent},
};

/// What carries a row's events.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Carrier {
    WebSocket,
    /// `onmessage` sees all.
    Unnamed,
    Named,
}

/// Path, carrier, whether upstream loss is told in EdgePlane's words, what comes first: by hand from docs/protocol.md.
type Row = (&'static str, Carrier, bool, &'static str);

const ROWS: [Row; 6] = [
    ("/api/websocket", Carrier::WebSocket, false, "state"),
    ("/api/sse", Carrier::Unnamed, false, "state"),
    ("/api/events/stream", Carrier::Named, false, "none"),
    ("/events/stream", Carrier::Unnamed, true, "none"),
    ("/events", Carrier::Unnamed, true, "none"),
    ("/events/ws", Carrier::WebSocket, true, "none"),
];

/// A client of either transport.
enum Client {
    WebSocket(Box<WsClient>),
    Sse(Box<SseClient>),
}

impl Client {
    async fn open(bridge: &BridgeProcess, carrier: Carrier, path: &str) -> Client {
        match carrier {
            Carrier::WebSocket => Client::WebSocket(Box::new(bridge.listen(path).await)),
            Carrier::Unnamed | Carrier::Named => {
                Client::Sse(Box::new(SseClient::open(bridge.address, path, &[]).await))
            }
        }
    }

    /// The next event. A WebSocket's has no fields but its data.
    async fn event(&mut self) -> SseEvent {
        match self {
            Client::WebSocket(listener) => SseEvent { data: listener.text().await, ..SseEvent::default() },
            Client::Sse(events) => events.event().await,
        }
    }

    /// The next event of this type, and everything before it of other types thrown away.
    async fn next(&mut self, kind: &str) -> SseEvent {
        loop {
            let event = self.event().await;
            if event.json()["type"] == kind {
                return event;
            }
        }
    }
}

#[tokio::test]
async fn each_endpoint_has_its_defaults_and_all_send_equal_events() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("there");
    let bridge = cluster.bridge(&[]).await;
    let mut clients = Vec::new();
    for (path, carrier, matrix, snapshot) in ROWS {
        let other = if snapshot == "state" { "none" } else { "state" };
        for (path, snapshot) in [(path.to_owned(), snapshot), (format!("{path}?snapshot={other}"), other)] {
            let mut client = Client::open(&bridge, carrier, &path).await;
            if let Client::Sse(events) = &mut client {
                begins_as_sse_should(events).await;
            }
            let first = client.event().await;
            let kind = if snapshot == "state" { "state.initial" } else { "heartbeat" };
            named(&first, carrier, kind, kind);
            if snapshot == "state" {
                assert_eq!(first.json()["reason"], "connect", "{path}");
                assert_eq!(first.json()["instances"][0]["name"], "there", "{path}");
            }
            clients.push((path, carrier, matrix, client));
        }
    }
    // The same event, to the byte, whatever carries it.
    cluster.create_pod("later");
    let mut told = BTreeMap::<String, Vec<&str>>::new();
    for (path, carrier, _, client) in &mut clients {
        let event = client.next("instance.state").await;
        named(&event, *carrier, "instance.state", "instance.state");
        told.entry(event.data).or_default().push(path);
    }
    assert_eq!(told.len(), 1, "{told:#?}");
    cluster.sim.down();
    for (_, carrier, matrix, client) in &mut clients {
        let word = if *matrix { "matrix-down" } else { "upstream.down" };
        let event = client.next(word).await;
        named(&event, *carrier, word, "upstream.down");
        assert!(event.json()["reason"].is_string() && event.json()["since"].is_string(), "{event:?}");
    }
    cluster.sim.up();
    for (_, carrier, matrix, client) in &mut clients {
        let word = if *matrix { "matrix-up" } else { "upstream.up" };
        named(&client.next(word).await, *carrier, word, "upstream.up");
    }
}

/// Head, and `retry` as the first block of all.
async fn begins_as_sse_should(events: &mut SseClient) {
    has_the_head(events);
    let first = events.block().await.unwrap();
    let ms = first.retry.expect("no retry");
    assert_eq!(first, SseEvent { retry: Some(ms), ..SseEvent::default() });
    assert!((1000..=3000).contains(&ms), "{ms}");
}

fn has_the_head(events: &SseClient) {
    let headers: BTreeMap<&str, &str> = events.head.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let expected = [
        ("cache-control", "no-store, no-transform"),
        ("connection", "close"),
        ("content-type", "text/event-stream"),
        ("cross-origin-resource-policy", "same-origin"),
        ("date", headers["date"]),
        ("vary", "Origin"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
    ];
    assert_eq!((events.head.status, headers), (200, BTreeMap::from(expected)));
}

/// An event of this type, named where the row or the type is so; its id is the block's.
fn named(event: &SseEvent, carrier: Carrier, kind: &str, on_all: &str) {
    let name = match carrier {
        Carrier::WebSocket => None,
        Carrier::Named => Some(kind),
        // What EdgePlane's clients listen for by name.
        Carrier::Unnamed => (kind != on_all).then_some(kind),
    };
    let data = event.json();
    assert_eq!((event.event.as_deref(), &data["type"]), (name, &json!(kind)), "{event:?}");
    let id = if carrier == Carrier::WebSocket { None } else { data["id"].as_str() };
    assert_eq!(event.id.as_deref(), id, "{event:?}");
}

#[tokio::test]
async fn types_params_and_connection_id_narrow_the_stream() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let connections = http_client::get(bridge.address, "/api/v1/connections").await.json();
    let id = connections[0]["id"].as_str().unwrap().to_owned();
    let params = form_urlencoded::byte_serialize(br#"{"instances":{"phase":"Running"}}"#).collect::<String>();
    for (path, carrier) in [("/api/websocket", Carrier::WebSocket), ("/api/sse", Carrier::Unnamed)] {
        let name = format!("pod-of-{path}").replace('/', "-");
        let all = format!("{path}?connectionId={id}&types=instance,claim.state&params={params}");
        let mut client = Client::open(&bridge, carrier, &all).await;
        let first = client.event().await.json();
        assert_eq!((&first["type"], &first["connectionId"]), (&json!("state.initial"), &json!(id)));
        cluster.create_pod(&name);
        cluster.pod_phase(&name, "Pending");
        cluster.pod_phase(&name, "Running");
        cluster.pod_phase(&name, "Failed");
        let entered = client.event().await.json();
        assert_eq!((&entered["name"], &entered["phase"]), (&json!(name), &json!("Running")));
        let left = client.event().await.json();
        assert_eq!((&left["phase"], &left["cause"]), (&json!("Deleted"), &json!("filtered")));
    }
}

/// HEAD is the head; what else there is to do with a path is said.
#[tokio::test]
async fn head_options_and_other_methods_are_answered() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    for (path, carrier, ..) in ROWS {
        let head = http_client::request(bridge.address, "HEAD", path, &[]).await;
        if carrier == Carrier::WebSocket {
            assert_eq!(head.status, 426, "{path}");
        } else {
            let kind = head.header("content-type");
            assert_eq!((head.status, kind, head.body.as_str()), (200, Some("text/event-stream"), ""), "{path}");
        }
        let options = http_client::request(bridge.address, "OPTIONS", path, &[]).await;
        assert_eq!((options.status, options.header("allow")), (204, Some("GET, HEAD, OPTIONS")), "{path}");
        let post = http_client::request(bridge.address, "POST", path, &[("Content-Length", "0")]).await;
        assert_eq!((post.status, &post.json()["code"]), (405, &json!("METHOD_NOT_ALLOWED")), "{path}");
        let body = http_client::request(bridge.address, "GET", path, &[("Content-Length", "1")]).await;
        assert!([400, 426].contains(&body.status), "{path}: {body:?}");
    }
    let opened = http_client::metric_sum(bridge.address, "bridge_streams_opened_total", &[r#"transport="sse""#]);
    assert_eq!(opened.await, 0);
}

/// What is watched, and how it is.
#[tokio::test]
async fn connections_endpoint_shows_the_upstream_state() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let shown = async |state: &str| {
        let found = tokio::time::timeout(http_client::TEST_TIMEOUT, async {
            loop {
                let shown = http_client::get(bridge.address, "/api/v1/connections").await.json();
                if shown[0]["state"] == state {
                    return shown;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("never {state}"))
    };
    let live = shown("live").await;
    let mut stream = bridge.listen("/api/websocket").await;
    let id = stream.json().await["connectionId"].clone();
    let since = live[0]["since"].clone();
    let whole = json!([{"id": id, "name": "simulated", "namespace": NAMESPACE, "state": "live", "since": since}]);
    assert_eq!(live, whole);
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    cluster.sim.down();
    let down = shown("down").await;
    assert!(time(&down[0]["since"]) >= time(&since), "{down} {since}");
    cluster.sim.up();
    let up = shown("live").await;
    assert!(time(&up[0]["since"]) >= time(&down[0]["since"]), "{up} {down}");
    assert_eq!((&up[0]["id"], &up[0]["name"]), (&id, &json!("simulated")));
}
