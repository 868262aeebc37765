//! Rejected requests. A permanent rejection has a status and lists the accepted values. A temporary one makes the
//! client reconnect.

use boilerhouse_bridge::event::{Cursor, NamespaceId, PerResource};
use serde_json::json;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Client, ENDPOINTS, Endpoint, Transport};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, HttpResponse, WsClient},
    sim_cluster::{NAMESPACE, SimCluster, kubeconfig},
    sse_client::{SseClient, SseEvent},
};

/// A query, the parameter that the response names, and words of its message.
const MALFORMED: &[(&str, &str, &[&str])] = &[
    ("types=pods", "types", &["unknown type 'pods'", "instance", "instance.state", "mqtt.message", "telemetry"]),
    ("types=", "types", &["accepted types"]),
    ("types=instance,", "types", &["accepted types"]),
    ("snapshot=half", "snapshot", &["accepted: state, none"]),
    ("snapshot=", "snapshot", &["accepted: state, none"]),
    ("lastEventId=42", "lastEventId", &["not a cursor", "the `id` of an event", "Event-Cursor"]),
    ("lastEventId=%20", "lastEventId", &["not a cursor"]),
    ("lastEventId=%ff", "lastEventId", &["not a cursor"]),
    ("params=%7B", "params", &["JSON"]),
    ("params=%7B%22instances%22%3A%7B%22colour%22%3A%22red%22%7D%7D", "params", &["colour", "phase", "labels"]),
    ("color=red", "color", &["unknown", "accepted: types, params, connectionId, snapshot, lastEventId"]),
    ("snapshot=none&snapshot=none", "snapshot", &["repeated"]),
    ("_=1&c_=1", "c_", &["unknown"]),
    ("_snapshot=none&snapshot=half", "snapshot", &["accepted: state, none"]),
];

/// Sends a request of this transport and returns the response.
async fn request_with(
    bridge: &BridgeProcess,
    transport: Transport,
    path: &str,
    headers: &[(&str, &str)],
) -> HttpResponse {
    let mut request = match transport {
        Transport::WebSocket => http_client::upgrade(bridge.address, path),
        Transport::UnnamedSse | Transport::NamedSse => {
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address)
        }
    };
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    request.insert_str(request.len() - 2, &format!("Connection: close\r\n{lines}"));
    http_client::request_raw(bridge.address, &request).await
}

#[tokio::test]
async fn malformed_parameter_is_400_with_accepted_values() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    for (path, transport, ..) in ENDPOINTS {
        for (query, parameter, words) in MALFORMED {
            let path = format!("{path}?{query}");
            let response = request_with(&bridge, transport, &path, &[]).await;
            assert_eq!(
                (response.status, &response.json()["code"]),
                (400, &json!("BAD_REQUEST")),
                "{path}: {response:?}"
            );
            assert_eq!(response.json()["details"]["parameter"], *parameter, "{path}");
            let message = response.json()["message"].as_str().unwrap().to_owned();
            assert!(words.iter().all(|word| message.contains(word)), "{path}: {message}");
        }
        let other = format!("{path}?connectionId=00000000-0000-5000-8000-000000000000");
        let response = request_with(&bridge, transport, &other, &[]).await;
        assert_eq!((response.status, &response.json()["code"]), (404, &json!("NOT_FOUND")), "{path}: {response:?}");
        // A malformed query parameter is a 400 even if the header has a cursor.
        let response =
            request_with(&bridge, transport, &format!("{path}?lastEventId=42"), &[("Last-Event-ID", "42")]).await;
        assert_eq!(response.status, 400, "{path}: {response:?}");
    }
}

/// A request of the wrong transport gets an error that names a path of the right one. This path exists.
#[tokio::test]
async fn wrong_transport_error_names_the_right_path() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    for (path, transport, ..) in ENDPOINTS {
        let (wrong_transport, status) = match transport {
            Transport::WebSocket => (Transport::UnnamedSse, 426),
            Transport::UnnamedSse | Transport::NamedSse => (Transport::WebSocket, 400),
        };
        let response = request_with(&bridge, wrong_transport, path, &[]).await;
        assert_eq!(response.status, status, "{path}: {response:?}");
        let message = response.json()["message"].as_str().unwrap().to_owned();
        let named = ENDPOINTS.iter().find(|endpoint| message.split_whitespace().any(|word| word == endpoint.0));
        let named = named.unwrap_or_else(|| panic!("{path}: {message}"));
        assert_eq!(named.1 == Transport::WebSocket, wrong_transport == Transport::WebSocket, "{path}: {message}");
        Client::open(&bridge, named.1, named.0).await.event().await;
    }
}

/// Asserts that an event stream ends at once, with a reason and a retry delay. It repeats the cursor of the request.
async fn check_closing(bridge: &BridgeProcess, path: &str, named: bool, reason: &str, detail: &str) {
    let cursor =
        Cursor::new(NamespaceId::from_uid("a"), 1, PerResource::new(true, true), PerResource::new(5, 6)).encode();
    let mut events = SseClient::open(bridge.address, path, &[("Last-Event-ID", &cursor)]).await;
    let length = events.head.headers.iter().position(|(name, _)| name == "content-length");
    events.head.headers.remove(length.expect("no content-length"));
    super::check_head(&events);
    assert_eq!(events.head.header("connection"), Some("close"));
    let blocks = events.rest().await;
    let [closing] = &blocks[..] else { panic!("{blocks:?}") };
    let ms = closing.retry.expect("the block has no retry field");
    assert!((1000..=3000).contains(&ms), "retry delay of {ms} ms");
    let event = named.then(|| "stream.closing".to_owned());
    let detail = if detail.is_empty() { String::new() } else { format!(r#","detail":"{detail}""#) };
    let data = format!(r#"{{"type":"stream.closing","reason":"{reason}"{detail},"retryAfterMs":{ms}}}"#);
    assert_eq!(closing, &SseEvent { retry: Some(ms), id: Some(cursor), event, data }, "{path}");
}

/// Asserts a temporary rejection on every endpoint: an EventSource gets a stream that ends at once, a WebSocket client
/// a 503.
async fn check_temporary_rejection(bridge: &BridgeProcess, reason: &str, code: &str) {
    for (path, transport, ..) in ENDPOINTS {
        if transport == Transport::WebSocket {
            let response = request_with(bridge, transport, path, &[]).await;
            assert_eq!((response.status, &response.json()["code"]), (503, &json!(code)), "{path}: {response:?}");
            assert_eq!(response.header("retry-after"), Some("1"), "{path}");
        } else {
            check_closing(bridge, path, transport == Transport::NamedSse, reason, "").await;
        }
    }
}

#[tokio::test]
async fn streams_over_the_limit_are_rejected_and_gets_are_answered() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    let bridge = cluster.bridge(&["--max-connections", "3"]).await;
    let mut websocket = bridge.listen("/api/websocket").await;
    websocket.json().await;
    let mut events = SseClient::open(bridge.address, "/api/sse", &[]).await;
    events.event().await;
    let mut boilerhouse = bridge.listen("/ws").await;
    boilerhouse.json().await;
    check_temporary_rejection(&bridge, "too many connections", "TOO_MANY_CONNECTIONS").await;
    assert_eq!(WsClient::try_connect(bridge.address, "/ws").await.unwrap_err(), 503);
    for path in ["/livez", "/readyz", "/metrics", "/api/v1/instances", "/"] {
        assert_eq!(http_client::get(bridge.address, path).await.status, 200, "{path}");
    }
    let rejected =
        http_client::metric_sum(bridge.address, "bridge_streams_rejected_total", &[r#"reason="max_streams""#]);
    assert_eq!(rejected.await, ENDPOINTS.len() as u64 + 1);
    // Open streams continue.
    cluster.create_pod("later");
    assert_eq!(events.until(|event| event["type"] == "instance.state").await.len(), 1);
    // A released stream permit is available again. A HEAD and a request with a malformed parameter use no permit.
    drop(websocket);
    for _ in 0..20 {
        request_with(&bridge, Transport::UnnamedSse, "/api/sse?snapshot=half", &[]).await;
        http_client::request(bridge.address, "HEAD", "/api/sse", &[]).await;
    }
    let found = tokio::time::timeout(http_client::TEST_TIMEOUT, async {
        while WsClient::try_connect(bridge.address, "/api/websocket").await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    found.await.expect("the stream permit was not released");
}

#[tokio::test]
async fn event_source_gets_a_retry_delay_and_the_cause_before_the_first_sync() {
    const CAUSE: &str = "namespaces: connection refused";
    // No process listens on port 1 (tcpmux).
    let kubeconfig = kubeconfig("http://127.0.0.1:1");
    let bridge = BridgeProcess::start(&kubeconfig.path().to_string_lossy(), NAMESPACE, &[]).await;
    let is_not_ready = |answer: &HttpResponse, path: &str| {
        assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("NOT_READY")), "{path}");
        let message = answer.json()["message"].to_string();
        assert!(message.contains(&format!("({CAUSE})")), "{path}: {message}");
    };
    // Each request waits 10 s for the first lists.
    let sse = || ENDPOINTS.into_iter().filter(|endpoint| endpoint.1 != Transport::WebSocket);
    let check = async |(path, transport, ..): Endpoint| {
        if transport == Transport::WebSocket {
            is_not_ready(&request_with(&bridge, transport, path, &[]).await, path);
        } else {
            check_closing(&bridge, path, transport == Transport::NamedSse, "not ready", CAUSE).await;
        }
    };
    futures::future::join_all(ENDPOINTS.into_iter().map(check)).await;
    for (path, ..) in sse() {
        // A malformed parameter is reported first, because it is permanent.
        assert_eq!(http_client::get(bridge.address, &format!("{path}?snapshot=half")).await.status, 400, "{path}");
    }
    // No connectionId is known to be wrong before the Namespace has been read.
    let with_connection = "/api/v1/instances?connectionId=00000000-0000-5000-8000-000000000000";
    for path in ["/api/v1/instances", "/api/v1/connections", with_connection] {
        is_not_ready(&http_client::get(bridge.address, path).await, path);
    }
}

#[tokio::test]
async fn new_streams_get_a_retry_delay_during_drain() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--drain", "60"]).await;
    // Without an open stream the process would exit at once.
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(SseClient::open(bridge.address, "/api/sse", &[]).await);
    }
    bridge.signal("TERM").await;
    let draining = tokio::time::timeout(http_client::TEST_TIMEOUT, async {
        while http_client::get(bridge.address, "/readyz").await.status == 200 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    draining.await.expect("/readyz is still 200");
    check_temporary_rejection(&bridge, "draining", "UPSTREAM_UNAVAILABLE").await;
}

/// During an outage of the API server, full streams continue and new ones are accepted. Events report the outage.
#[tokio::test]
async fn streams_are_accepted_while_the_upstream_is_down() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    let bridge = cluster.bridge(&[]).await;
    let mut first = SseClient::open(bridge.address, "/events", &[]).await;
    cluster.sim.down();
    first.until(|event| event["type"] == "matrix-down").await;
    for (path, transport, _, snapshot) in ENDPOINTS {
        let event = Client::open(&bridge, transport, path).await.event().await.json();
        if snapshot == "state" {
            assert_eq!(event["instances"][0]["name"], "pod", "{path}");
        } else {
            assert_eq!(event["upstream"], "down", "{path}");
        }
    }
}

/// A client that leaves while its request waits for the first lists does not count as open.
#[tokio::test]
async fn client_that_leaves_before_the_first_sync_frees_its_stream() {
    let kubeconfig = kubeconfig("http://127.0.0.1:1");
    let args = ["--max-connections-per-principal", "2"];
    let bridge = BridgeProcess::start(&kubeconfig.path().to_string_lossy(), NAMESPACE, &args).await;
    let request = async || {
        let mut stream = TcpStream::connect(bridge.address).await.unwrap();
        let request = format!("GET /api/sse HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n", bridge.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let waits = async |stream: &mut TcpStream| timeout(Duration::from_millis(300), stream.read_u8()).await.is_err();
    let mut first_two = [request().await, request().await];
    for stream in &mut first_two {
        assert!(waits(stream).await, "the request waits for the first lists");
    }
    assert!(!waits(&mut request().await).await, "a third stream is rejected at once");
    drop(first_two);
    let freed = async { while !waits(&mut request().await).await {} };
    timeout(Duration::from_secs(5), freed).await.expect("a stream is free before the 10 s of the wait are over");
}
