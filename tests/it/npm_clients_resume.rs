//! Clients from npm resume without help: an EventSource reconnects with its last id after every temporary rejection and
//! every cut. A WebSocket client does the same when it only sends its last id.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::support::{
    self,
    bridge_process::BridgeProcess,
    http_client::{self, TEST_TIMEOUT},
    npm_client::NpmClient,
    sim_cluster::{NAMESPACE, SimCluster},
    tcp_proxy::TcpProxy,
};

/// SSE endpoints: the path, whether the events are named, and whether the first event is `state.initial`.
const SSE: [(&str, bool, bool); 4] = [
    ("/api/sse", false, true),
    ("/api/events/stream", true, false),
    ("/events/stream", false, false),
    ("/events", false, false),
];
const WEBSOCKETS: [&str; 2] = ["/api/websocket", "/events/ws"];
/// A response within this time has not waited for the first heartbeat interval (15 s).
const BEFORE_HEARTBEAT: Duration = Duration::from_secs(10);

/// A client process, its endpoint, and what the endpoint sends.
struct Client {
    process: NpmClient,
    path: &'static str,
    named: bool,
    /// The first event is `state.initial`.
    state: bool,
}

impl Client {
    fn event_source(address: SocketAddr, (path, named, state): (&'static str, bool, bool)) -> Client {
        let process = NpmClient::start("eventsource.mjs", &format!("http://{address}{path}"));
        Client { process, path, named, state }
    }

    fn websocket(address: SocketAddr, path: &'static str) -> Client {
        let process = NpmClient::start("websocket.mjs", &format!("ws://{address}{path}"));
        Client { process, path, named: false, state: path == "/api/websocket" }
    }

    fn all(address: SocketAddr) -> Vec<Client> {
        let mut clients: Vec<_> = SSE.into_iter().map(|row| Client::event_source(address, row)).collect();
        clients.extend(WEBSOCKETS.map(|path| Client::websocket(address, path)));
        clients
    }

    fn is_event_source(&self) -> bool {
        SSE.iter().any(|(path, ..)| *path == self.path)
    }

    /// Reads until the client receives an event of this type.
    async fn wait_for_event(&mut self, kind: &str) {
        self.process.until(|line| line["event"]["data"]["type"] == kind).await;
    }

    /// Reads until the client receives the first event of a stream.
    async fn wait_for_stream(&mut self) {
        let first = ["state.initial", "heartbeat"];
        self.process.until(|line| first.iter().any(|kind| line["event"]["data"]["type"] == *kind)).await;
    }

    /// Reads until the client is rejected or its stream closes. An EventSource receives `stream.closing` with this
    /// reason, a WebSocket client that event or a 503.
    async fn wait_for_close(&mut self, reason: &str) {
        let event_source = self.is_event_source();
        self.process
            .until(|line| {
                let event = &line["event"]["data"];
                let is_closing = event["type"] == "stream.closing" && event["reason"] == reason;
                is_closing
                    || !event_source && line["closed"]["error"].as_str().is_some_and(|error| error.contains("503"))
            })
            .await;
    }

    /// Returns `name phase` of each `instance.state`, in order.
    fn instances(&self) -> Vec<String> {
        let events = self.process.lines.iter().map(|line| &line["event"]["data"]);
        let states = events.filter(|event| event["type"] == "instance.state");
        states
            .map(|event| format!("{} {}", event["name"].as_str().unwrap(), event["phase"].as_str().unwrap()))
            .collect()
    }

    fn connections(&self) -> usize {
        self.process.lines.iter().filter(|line| !line["request"].is_null()).count()
    }

    /// Asserts for all lines: the response heads, the event names, and the last id of each request.
    fn check(&self) {
        let path = self.path;
        let mut last_id = Value::Null;
        for line in &self.process.lines {
            if let Value::Object(request) = &line["request"] {
                // The first request has no last id.
                assert_eq!(request.get("lastEventId").unwrap_or(&Value::Null), &last_id, "{path}");
            }
            if let Value::Object(response) = &line["response"]
                && self.is_event_source()
            {
                assert_eq!(response["status"], 200, "{path}");
                check_head(|name| response["headers"][name].as_str());
            }
            if let Value::Object(event) = &line["event"] {
                let listener = match (self.is_event_source(), self.named) {
                    (false, _) => "message",
                    (true, false) => "onmessage",
                    (true, true) => event["data"]["type"].as_str().unwrap(),
                };
                assert_eq!(event["listener"], listener, "{path}: {line}");
                if let Some(id) = event["data"]["id"].as_str() {
                    assert_eq!(event["id"], id, "{path}");
                    last_id = id.into();
                }
                assert!(event["data"]["coalesced"].is_null(), "{path}: {line}");
            }
        }
    }

    /// Returns the number of `state.initial` events.
    fn snapshot_count(&self) -> usize {
        let is_state = |line: &&Value| line["event"]["data"]["type"] == "state.initial";
        self.process.lines.iter().filter(is_state).count()
    }
}

/// Asserts the head of an event stream (docs/protocol.md#stream-endpoints, "SSE").
fn check_head<'a>(header: impl Fn(&'static str) -> Option<&'a str>) {
    assert_eq!(header("content-type"), Some("text/event-stream"));
    assert_eq!(header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(header("x-accel-buffering"), Some("no"));
    assert_eq!(header("content-encoding"), None);
}

/// Returns the delay of the `retry:` line at the start of a body, and the rest of the body.
fn retry(body: &str) -> (u64, &str) {
    let (retry, rest) = body.split_once('\n').unwrap_or_else(|| panic!("no complete line: {body:?}"));
    let ms = retry.strip_prefix("retry: ").unwrap_or_else(|| panic!("the first field is not retry: {body:?}"));
    let ms = ms.parse().unwrap();
    assert!((1000..=3000).contains(&ms), "retry delay of {ms} ms");
    (ms, rest)
}

/// Asserts that every SSE endpoint answers a temporary rejection with a stream that ends at once.
async fn check_all_reject(address: SocketAddr, reason: &str, detail: &str) {
    for (path, named, _) in SSE {
        let response = http_client::get(address, path).await;
        assert_eq!(response.status, 200, "{path}: {response:?}");
        check_head(|name| response.header(name));
        let (ms, rest) = retry(&response.body);
        let name = if named { "event: stream.closing\n" } else { "" };
        let data = format!(r#"{{"type":"stream.closing","reason":"{reason}"{detail},"retryAfterMs":{ms}}}"#);
        assert_eq!(rest, format!("{name}data: {data}\n\n"), "{path}");
    }
}

#[tokio::test]
async fn npm_clients_resume_after_a_cut_at_any_byte() {
    const PODS: usize = 6;
    /// Number of rounds, and minimum number of connections of each client: in the short form and in the long form.
    const ROUNDS: [(usize, usize); 2] = [(2, 3), (4, 6)];
    let (rounds, min_connections) = ROUNDS[usize::from(support::long_form())];
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&[]).await;
    // Enough bytes for a head, the first event and a few more events, so that each connection makes progress.
    let proxy = TcpProxy::new(Some((3_000, 6_000)), 5).await;
    proxy.set_target(Some(bridge.address));
    let mut clients = Client::all(proxy.address);
    for client in &mut clients {
        client.wait_for_stream().await;
    }
    let mut expected = Vec::new();
    for round in 0..rounds {
        // In every second round the changes happen while no bridge runs. The next bridge has no state of its clients.
        let restart = round % 2 == 1;
        if restart {
            proxy.set_target(None);
            bridge.signal("KILL").await;
            bridge.ended(TEST_TIMEOUT).await;
        }
        for pod in 0..PODS {
            let name = format!("pod-{round}-{pod}");
            cluster.create_pod(&name);
            expected.push(format!("{name} Unknown"));
            for phase in ["Pending", "Running"] {
                cluster.pod_phase(&name, phase);
                expected.push(format!("{name} {phase}"));
            }
        }
        if restart {
            bridge = cluster.bridge(&[]).await;
            proxy.set_target(Some(bridge.address));
        }
        let last = format!("pod-{round}-{}", PODS - 1);
        for client in &mut clients {
            let is_last = |event: &Value| event["name"] == last.as_str() && event["phase"] == "Running";
            client.process.until(|line| is_last(&line["event"]["data"])).await;
        }
    }
    for client in &clients {
        assert_eq!(client.instances(), expected, "{}", client.path);
        assert_eq!(client.snapshot_count(), usize::from(client.state), "{}", client.path);
        assert!(client.connections() >= min_connections, "{}: only {} connections", client.path, client.connections());
        client.check();
        println!("{}: {} connections", client.path, client.connections());
    }
}

#[tokio::test]
async fn npm_clients_reconnect_until_the_bridge_is_ready() {
    let cluster = SimCluster::new().await;
    cluster.sim().down();
    let bridge = BridgeProcess::start(&cluster.kubeconfig(), NAMESPACE, &[]).await;
    check_all_reject(bridge.address, "not ready", r#","detail":"namespaces: unreachable""#).await;
    let mut clients: Vec<_> = SSE.into_iter().map(|row| Client::event_source(bridge.address, row)).collect();
    for client in &mut clients {
        // Twice: the client also reconnects after the second rejection.
        client.wait_for_close("not ready").await;
        client.wait_for_close("not ready").await;
    }
    cluster.sim().up();
    for client in &mut clients {
        client.wait_for_stream().await;
        client.check();
    }
}

#[tokio::test]
async fn npm_clients_reconnect_until_a_stream_is_free() {
    let cluster = SimCluster::new().await;
    let max_streams = SSE.len() + WEBSOCKETS.len();
    let bridge = cluster.bridge(&["--max-connections", &max_streams.to_string()]).await;
    let mut others = Vec::new();
    for _ in 0..max_streams {
        others.push(bridge.listen("/api/websocket").await);
    }
    check_all_reject(bridge.address, "too many connections", "").await;
    let mut clients = Client::all(bridge.address);
    for client in &mut clients {
        client.wait_for_close("too many connections").await;
        client.wait_for_close("too many connections").await;
    }
    drop(others);
    for client in &mut clients {
        client.wait_for_stream().await;
        client.check();
    }
}

#[tokio::test]
async fn npm_clients_move_to_another_replica_during_drain() {
    let cluster = SimCluster::new().await;
    let (old, new) = tokio::join!(cluster.bridge(&["--drain", "15"]), cluster.bridge(&[]));
    let proxy = TcpProxy::new(None, 0).await;
    proxy.set_target(Some(old.address));
    let mut before = Client::all(proxy.address);
    for client in &mut before {
        client.wait_for_stream().await;
    }
    // More streams make the drain longer, because the closes are spread over the drain time.
    let mut others = Vec::new();
    for _ in 0..40 {
        others.push(old.listen("/api/websocket").await);
    }
    old.signal("TERM").await;
    let draining = timeout(TEST_TIMEOUT, async {
        while http_client::get(old.address, "/readyz").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    draining.await.expect("/readyz is still 200");
    check_all_reject(old.address, "draining", "").await;
    cluster.create_pod("meanwhile");
    // New clients are rejected at once. Connected clients get `stream.closing` and reconnect to the same address.
    let mut late = Client::all(proxy.address);
    for client in &mut late {
        client.wait_for_close("draining").await;
    }
    proxy.set_target(Some(new.address));
    for client in &mut before {
        client.wait_for_event("stream.closing").await;
        client.wait_for_stream().await;
    }
    cluster.create_pod("last");
    for client in before.iter_mut().chain(&mut late) {
        client.process.until(|line| line["event"]["data"]["name"] == "last").await;
        client.check();
    }
    for client in &before {
        assert_eq!(client.instances(), ["meanwhile Unknown", "last Unknown"], "{}", client.path);
        assert_eq!(client.snapshot_count(), usize::from(client.state), "{}", client.path);
    }
}

/// Requests an event stream, and reads head and body until they contain `end`. Returns them and the time it took.
async fn read_until(
    address: SocketAddr,
    path: &str,
    last_id: Option<&str>,
    end: &str,
) -> (http_client::HttpResponse, Duration) {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let header = last_id.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
    // The body of an HTTP/1.0 response has no chunks.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let reading = timeout(TEST_TIMEOUT, async {
        while !String::from_utf8_lossy(&bytes).contains(end) {
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{path}: the stream has ended");
        }
    });
    let result = reading.await;
    let text = String::from_utf8(bytes).unwrap();
    result.unwrap_or_else(|_| panic!("{path}: no {end:?} in {text}"));
    (http_client::parse(&text), started.elapsed())
}

#[tokio::test]
async fn response_head_is_sent_before_any_event() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let mut retries = Vec::new();
    for _ in 0..3 {
        for (path, named, state) in SSE {
            let (response, elapsed) = read_until(bridge.address, path, None, "}\n\n").await;
            assert!(elapsed < BEFORE_HEARTBEAT, "{path}: {elapsed:?}");
            assert_eq!(response.status, 200, "{path}");
            check_head(|name| response.header(name));
            let (ms, rest) = retry(&response.body);
            retries.push(ms);
            let first = if state { "state.initial" } else { "heartbeat" };
            let mut lines = rest.lines();
            assert!(lines.next().unwrap().starts_with("id: "), "{path}: {rest}");
            if named {
                assert_eq!(lines.next(), Some(format!("event: {first}").as_str()), "{path}: {rest}");
            }
            let data = lines.next().unwrap().strip_prefix("data: ").unwrap();
            assert_eq!(serde_json::from_str::<Value>(data).unwrap()["type"], first, "{path}");
        }
    }
    retries.dedup();
    assert!(retries.len() > 1, "all retry delays are equal: {retries:?}");
}

/// A backfill from an API server that does not answer does not delay the response head.
#[tokio::test]
async fn response_head_is_sent_before_the_backfill() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let (response, _) = read_until(bridge.address, "/api/events/stream", None, "}\n\n").await;
    let id = response.body.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    drop(bridge);
    cluster.create_pod("pod");
    let bridge = cluster.bridge(&[]).await;
    cluster.sim().black_hole();
    for (path, ..) in SSE {
        let (response, elapsed) = read_until(bridge.address, path, Some(&id), "}\n\n").await;
        assert!(elapsed < BEFORE_HEARTBEAT, "{path}: {elapsed:?}");
        assert_eq!(response.status, 200, "{path}");
        check_head(|name| response.header(name));
        // The heartbeat repeats the cursor of the client.
        let (_, rest) = retry(&response.body);
        assert!(rest.starts_with(&format!("id: {id}\n")) && rest.contains("heartbeat"), "{path}: {rest}");
        assert!(!rest.contains("pod"), "{path}: {rest}");
    }
    // After the backfill the stream resumes without an initial state.
    let waiting = read_until(bridge.address, "/api/sse", Some(&id), r#""name":"pod""#);
    let (received, ()) = tokio::join!(waiting, async { cluster.sim().up() });
    assert!(!received.0.body.contains("state.initial"), "{received:?}");
}
