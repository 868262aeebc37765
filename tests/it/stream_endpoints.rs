//! The endpoints of the full stream (docs/protocol.md#stream-endpoints), served by the binary on a simulated cluster:
//! the defaults of each endpoint, the parameters, and the end of a stream.

mod drain;
mod golden;
mod heartbeat_interval;
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

/// The transport of an endpoint, and the form of its SSE events.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Transport {
    WebSocket,
    /// SSE without `event:` fields: `onmessage` receives all events.
    UnnamedSse,
    /// SSE with the event type in the `event:` field.
    NamedSse,
}

/// Path, transport, whether upstream events have EdgePlane's names, and the default of `snapshot`. Written by hand from
/// docs/protocol.md#stream-endpoints.
type Endpoint = (&'static str, Transport, bool, &'static str);

const ENDPOINTS: [Endpoint; 6] = [
    ("/api/websocket", Transport::WebSocket, false, "state"),
    ("/api/sse", Transport::UnnamedSse, false, "state"),
    ("/api/events/stream", Transport::NamedSse, false, "none"),
    ("/events/stream", Transport::UnnamedSse, true, "none"),
    ("/events", Transport::UnnamedSse, true, "none"),
    ("/events/ws", Transport::WebSocket, true, "none"),
];

/// A client of either transport.
enum Client {
    WebSocket(Box<WsClient>),
    Sse(Box<SseClient>),
}

impl Client {
    async fn open(bridge: &BridgeProcess, transport: Transport, path: &str) -> Client {
        match transport {
            Transport::WebSocket => Client::WebSocket(Box::new(bridge.listen(path).await)),
            Transport::UnnamedSse | Transport::NamedSse => {
                Client::Sse(Box::new(SseClient::open(bridge.address, path, &[]).await))
            }
        }
    }

    /// Returns the next event. A WebSocket event has no field except its data.
    async fn event(&mut self) -> SseEvent {
        match self {
            Client::WebSocket(client) => SseEvent { data: client.text().await, ..SseEvent::default() },
            Client::Sse(events) => events.event().await,
        }
    }

    /// Returns the next event of this type. Events of other types are skipped.
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
    cluster.create_pod("present");
    let bridge = cluster.bridge(&[]).await;
    let mut clients = Vec::new();
    for (path, transport, edgeplane_names, snapshot) in ENDPOINTS {
        let other = if snapshot == "state" { "none" } else { "state" };
        for (path, snapshot) in [(path.to_owned(), snapshot), (format!("{path}?snapshot={other}"), other)] {
            let mut client = Client::open(&bridge, transport, &path).await;
            let first = client.event().await;
            if let Client::Sse(events) = &client {
                check_sse_start(events, &first);
            }
            let kind = if snapshot == "state" { "state.initial" } else { "heartbeat" };
            check_name(&first, transport, kind, kind);
            if snapshot == "state" {
                assert_eq!(first.json()["reason"], "connect", "{path}");
                assert_eq!(first.json()["instances"][0]["name"], "present", "{path}");
            }
            clients.push((path, transport, edgeplane_names, client));
        }
    }
    // All endpoints send the same bytes of the event.
    cluster.create_pod("later");
    let mut received = BTreeMap::<String, Vec<&str>>::new();
    for (path, transport, _, client) in &mut clients {
        let event = client.next("instance.state").await;
        check_name(&event, *transport, "instance.state", "instance.state");
        received.entry(event.data).or_default().push(path);
    }
    assert_eq!(received.len(), 1, "paths by event: {received:#?}");
    cluster.sim.down();
    for (_, transport, edgeplane_names, client) in &mut clients {
        let kind = if *edgeplane_names { "matrix-down" } else { "upstream.down" };
        let event = client.next(kind).await;
        check_name(&event, *transport, kind, "upstream.down");
        assert!(event.json()["reason"].is_string() && event.json()["since"].is_string(), "{event:?}");
    }
    cluster.sim.up();
    for (_, transport, edgeplane_names, client) in &mut clients {
        let kind = if *edgeplane_names { "matrix-up" } else { "upstream.up" };
        check_name(&client.next(kind).await, *transport, kind, "upstream.up");
    }
}

/// Asserts the head of a stream, and `retry` in the block of its first event.
fn check_sse_start(events: &SseClient, first: &SseEvent) {
    check_head(events);
    assert_eq!(events.head.header("transfer-encoding"), Some("chunked"));
    // Node's `fetch` would take a crash for the end of the body.
    assert_eq!(events.head.header("connection"), None);
    let ms = first.retry.expect("the first block has no retry field");
    assert!((1000..=3000).contains(&ms), "retry delay of {ms} ms");
}

/// Asserts status and headers of an event stream.
fn check_head(events: &SseClient) {
    let headers = events.head.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    // A stream that ends at once has a length and `Connection: close` instead.
    let headers: BTreeMap<&str, &str> =
        headers.filter(|(name, _)| !["connection", "transfer-encoding"].contains(name)).collect();
    let expected = [
        ("cache-control", "no-store, no-transform"),
        ("content-type", "text/event-stream"),
        ("cross-origin-resource-policy", "same-origin"),
        ("date", headers["date"]),
        ("vary", "Origin"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
    ];
    assert_eq!((events.head.status, headers), (200, BTreeMap::from(expected)));
}

/// Asserts the type of an event, its `event:` field and its `id:` field. `kind` is the type of the event,
/// `full_stream_type` its type without EdgePlane's names.
fn check_name(event: &SseEvent, transport: Transport, kind: &str, full_stream_type: &str) {
    let name = match transport {
        Transport::WebSocket => None,
        Transport::NamedSse => Some(kind),
        // EdgePlane's clients listen to these types by name.
        Transport::UnnamedSse => (kind != full_stream_type).then_some(kind),
    };
    let data = event.json();
    assert_eq!((event.event.as_deref(), &data["type"]), (name, &json!(kind)), "{event:?}");
    let id = if transport == Transport::WebSocket { None } else { data["id"].as_str() };
    assert_eq!(event.id.as_deref(), id, "{event:?}");
}

#[tokio::test]
async fn types_params_and_connection_id_narrow_the_stream() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let connections = http_client::get(bridge.address, "/api/v1/connections").await.json();
    let id = connections[0]["id"].as_str().unwrap().to_owned();
    let params = form_urlencoded::byte_serialize(br#"{"instances":{"phase":"Running"}}"#).collect::<String>();
    for (path, transport) in [("/api/websocket", Transport::WebSocket), ("/api/sse", Transport::UnnamedSse)] {
        let name = format!("pod-of-{path}").replace('/', "-");
        let all = format!("{path}?connectionId={id}&types=instance,claim.state&params={params}");
        let mut client = Client::open(&bridge, transport, &all).await;
        let first = client.event().await.json();
        assert_eq!((&first["type"], &first["connectionId"]), (&json!("state.initial"), &json!(id)));
        cluster.create_pod(&name);
        cluster.pod_phase(&name, "Pending");
        cluster.pod_phase(&name, "Running");
        cluster.pod_phase(&name, "Failed");
        let matching = client.event().await.json();
        assert_eq!((&matching["name"], &matching["phase"]), (&json!(name), &json!("Running")));
        let filtered = client.event().await.json();
        assert_eq!((&filtered["phase"], &filtered["cause"]), (&json!("Deleted"), &json!("filtered")));
    }
}

/// HEAD returns the head. OPTIONS and 405 responses list the allowed methods.
#[tokio::test]
async fn head_options_and_other_methods_are_answered() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    for (path, transport, ..) in ENDPOINTS {
        let head = http_client::request(bridge.address, "HEAD", path, &[]).await;
        if transport == Transport::WebSocket {
            assert_eq!(head.status, 426, "{path}");
        } else {
            let kind = head.header("content-type");
            assert_eq!((head.status, kind, head.body.as_str()), (200, Some("text/event-stream"), ""), "{path}");
        }
        let options = http_client::request(bridge.address, "OPTIONS", path, &[]).await;
        assert_eq!((options.status, options.header("allow")), (204, Some("GET, HEAD, OPTIONS")), "{path}");
        let post = http_client::request(bridge.address, "POST", path, &[("Content-Length", "0")]).await;
        assert_eq!((post.status, &post.json()["code"]), (405, &json!("METHOD_NOT_ALLOWED")), "{path}");
    }
    let opened = http_client::metric_sum(bridge.address, "bridge_streams_opened_total", &[r#"transport="sse""#]);
    assert_eq!(opened.await, 0);
}

/// `/api/v1/connections` reports the namespace and the state of its watches.
#[tokio::test]
async fn connections_endpoint_reports_the_upstream_state() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let wait_for_state = async |state: &str| {
        let found = tokio::time::timeout(http_client::TEST_TIMEOUT, async {
            loop {
                let connections = http_client::get(bridge.address, "/api/v1/connections").await.json();
                if connections[0]["state"] == state {
                    return connections;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        found.await.unwrap_or_else(|_| panic!("the state does not become {state}"))
    };
    let live = wait_for_state("live").await;
    let mut stream = bridge.listen("/api/websocket").await;
    let id = stream.json().await["connectionId"].clone();
    let since = live[0]["since"].clone();
    let expected = json!([{"id": id, "name": "simulated", "namespace": NAMESPACE, "state": "live", "since": since}]);
    assert_eq!(live, expected);
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    cluster.sim.down();
    let down = wait_for_state("down").await;
    assert!(time(&down[0]["since"]) >= time(&since), "{down} {since}");
    cluster.sim.up();
    let up = wait_for_state("live").await;
    assert!(time(&up[0]["since"]) >= time(&down[0]["since"]), "{up} {down}");
    assert_eq!((&up[0]["id"], &up[0]["name"]), (&id, &json!("simulated")));
}
