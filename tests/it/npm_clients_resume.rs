//! Clients from npm, left alone: an EventSource comes back by itself, from where it was, whatever has sent it away and
//! as long as that may pass; so does a WebSocket client that knows no more than to pass its last id.

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

/// Where server-sent events are, whether they are named, and whether the first is the state.
const SSE: [(&str, bool, bool); 4] = [
    ("/api/sse", false, true),
    ("/api/events/stream", true, false),
    ("/events/stream", false, false),
    ("/events", false, false),
];
const WEBSOCKETS: [&str; 2] = ["/api/websocket", "/events/ws"];
/// Far less than the 15 s until a quiet stream's next heartbeat, and far more than anything takes that need not wait.
const AT_ONCE: Duration = Duration::from_secs(5);

/// One of these clients, and what it is to see.
struct Client {
    process: NpmClient,
    path: &'static str,
    named: bool,
    /// `state.initial` comes first.
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

    /// Reads on until it is told something of this type.
    async fn wait_for_event(&mut self, kind: &str) {
        self.process.until(|line| line["event"]["data"]["type"] == kind).await;
    }

    /// Reads on until it is served: what a stream opens with.
    async fn served(&mut self) {
        let first = ["state.initial", "heartbeat"];
        self.process.until(|line| first.iter().any(|kind| line["event"]["data"]["type"] == *kind)).await;
    }

    /// Reads on until it is sent away for this reason, each transport in its way.
    async fn wait_for_close(&mut self, reason: &str) {
        let event_source = self.is_event_source();
        self.process
            .until(|line| {
                let closing = &line["event"]["data"];
                let output = closing["type"] == "stream.closing" && closing["reason"] == reason;
                output || !event_source && line["closed"]["error"].as_str().is_some_and(|error| error.contains("503"))
            })
            .await;
    }

    /// `name phase` of each `instance.state`, in order.
    fn instances(&self) -> Vec<String> {
        let events = self.process.lines.iter().map(|line| &line["event"]["data"]);
        let states = events.filter(|event| event["type"] == "instance.state");
        states
            .map(|event| format!("{} {}", event["name"].as_str().unwrap(), event["phase"].as_str().unwrap()))
            .collect()
    }

    fn connections(&self) -> usize {
        self.process.lines.iter().filter(|line| !line["asked"].is_null()).count()
    }

    /// Holds against the contract all that it has seen: heads, names, where it asked to go on.
    fn check(&self) {
        let path = self.path;
        let mut last = Value::Null;
        for line in &self.process.lines {
            if let Value::Object(asked) = &line["asked"] {
                // Left out at first, so absent here.
                assert_eq!(asked.get("lastEventId").unwrap_or(&Value::Null), &last, "{path}");
            }
            if let Value::Object(answered) = &line["answered"]
                && self.is_event_source()
            {
                assert_eq!(answered["status"], 200, "{path}");
                check_head(|name| answered["headers"][name].as_str());
            }
            if let Value::Object(event) = &line["event"] {
                let by = match (self.is_event_source(), self.named) {
                    (false, _) => "message",
                    (true, false) => "onmessage",
                    (true, true) => event["data"]["type"].as_str().unwrap(),
                };
                assert_eq!(event["by"], by, "{path}: {line}");
                if let Some(id) = event["data"]["id"].as_str() {
                    assert_eq!(event["id"], id, "{path}");
                    last = id.into();
                }
                assert!(event["data"]["coalesced"].is_null(), "{path}: {line}");
            }
        }
    }

    /// How often it has been told the whole state.
    fn snapshot_count(&self) -> usize {
        let is_state = |line: &&Value| line["event"]["data"]["type"] == "state.initial";
        self.process.lines.iter().filter(is_state).count()
    }
}

/// docs/protocol.md section 4, "SSE".
fn check_head<'a>(header: impl Fn(&'static str) -> Option<&'a str>) {
    assert_eq!(header("content-type"), Some("text/event-stream"));
    assert_eq!(header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(header("x-accel-buffering"), Some("no"));
    assert_eq!(header("content-encoding"), None);
}

/// The time in the `retry:` line that opens a body, and what comes after it.
fn retry(body: &str) -> (u64, &str) {
    let (retry, rest) = body.split_once("\n\n").unwrap_or_else(|| panic!("no whole block: {body:?}"));
    let ms = retry.strip_prefix("retry: ").unwrap_or_else(|| panic!("it does not begin with retry: {body:?}"));
    let ms = ms.parse().unwrap();
    assert!((1000..=3000).contains(&ms), "{ms}");
    (ms, rest)
}

/// All rows say what will pass by itself as a stream that ends at once.
async fn check_all_reject(address: SocketAddr, reason: &str) {
    for (path, named, _) in SSE {
        let answer = http_client::get(address, path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        check_head(|name| answer.header(name));
        let (ms, rest) = retry(&answer.body);
        let name = if named { "event: stream.closing\n" } else { "" };
        let data = format!(r#"{{"type":"stream.closing","reason":"{reason}","retryAfterMs":{ms}}}"#);
        assert_eq!(rest, format!("{name}data: {data}\n\n"), "{path}");
    }
}

#[tokio::test]
async fn npm_clients_resume_after_a_cut_at_any_byte() {
    const PODS: usize = 6;
    /// Rounds, and connections that each client needs for them at least, in the ordinary run and in the full one.
    const ROUNDS: [(usize, usize); 2] = [(2, 3), (4, 6)];
    let (rounds, least) = ROUNDS[usize::from(support::long_form())];
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&[]).await;
    // Enough for a head, what a stream opens with and a few events: each connection gets on a little.
    let door = TcpProxy::new(Some((3_000, 6_000)), 5).await;
    door.set_target(Some(bridge.address));
    let mut clients = Client::all(door.address);
    for client in &mut clients {
        client.served().await;
    }
    let mut happened = Vec::new();
    for round in 0..rounds {
        // Every other time while there is no bridge at all; the next one knows nothing of those who come back.
        let restart = round % 2 == 1;
        if restart {
            door.set_target(None);
            bridge.signal("KILL").await;
            bridge.ended(TEST_TIMEOUT).await;
        }
        for pod in 0..PODS {
            let name = format!("pod-{round}-{pod}");
            cluster.create_pod(&name);
            happened.push(format!("{name} Unknown"));
            for phase in ["Pending", "Running"] {
                cluster.pod_phase(&name, phase);
                happened.push(format!("{name} {phase}"));
            }
        }
        if restart {
            bridge = cluster.bridge(&[]).await;
            door.set_target(Some(bridge.address));
        }
        let last = format!("pod-{round}-{}", PODS - 1);
        for client in &mut clients {
            let is_last = |event: &Value| event["name"] == last.as_str() && event["phase"] == "Running";
            client.process.until(|line| is_last(&line["event"]["data"])).await;
        }
    }
    for client in &clients {
        assert_eq!(client.instances(), happened, "{}", client.path);
        assert_eq!(client.snapshot_count(), usize::from(client.state), "{}", client.path);
        assert!(client.connections() >= least, "{} was hardly cut off: {}", client.path, client.connections());
        client.check();
        println!("{}: {} connections", client.path, client.connections());
    }
}

#[tokio::test]
async fn npm_clients_reconnect_until_the_bridge_is_ready() {
    let cluster = SimCluster::new().await;
    cluster.sim().down();
    let bridge = BridgeProcess::start(&cluster.kubeconfig(), NAMESPACE, &[]).await;
    check_all_reject(bridge.address, "not ready").await;
    let mut clients: Vec<_> = SSE.into_iter().map(|row| Client::event_source(bridge.address, row)).collect();
    for client in &mut clients {
        // It is not the first time only that it comes back.
        client.wait_for_close("not ready").await;
        client.wait_for_close("not ready").await;
    }
    cluster.sim().up();
    for client in &mut clients {
        client.served().await;
        client.check();
    }
}

#[tokio::test]
async fn npm_clients_reconnect_until_a_stream_is_free() {
    let cluster = SimCluster::new().await;
    let places = SSE.len() + WEBSOCKETS.len();
    let bridge = cluster.bridge(&["--max-connections", &places.to_string()]).await;
    let mut others = Vec::new();
    for _ in 0..places {
        others.push(bridge.listen("/api/websocket").await);
    }
    check_all_reject(bridge.address, "too many connections").await;
    let mut clients = Client::all(bridge.address);
    for client in &mut clients {
        client.wait_for_close("too many connections").await;
        client.wait_for_close("too many connections").await;
    }
    drop(others);
    for client in &mut clients {
        client.served().await;
        client.check();
    }
}

#[tokio::test]
async fn npm_clients_move_to_another_replica_during_drain() {
    let cluster = SimCluster::new().await;
    let (old, new) = tokio::join!(cluster.bridge(&["--drain", "15"]), cluster.bridge(&[]));
    let door = TcpProxy::new(None, 0).await;
    door.set_target(Some(old.address));
    let mut before = Client::all(door.address);
    for client in &mut before {
        client.served().await;
    }
    // They keep it from its end for a while: the last of so many is told late.
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
    draining.await.expect("still ready");
    check_all_reject(old.address, "draining").await;
    cluster.create_pod("meanwhile");
    // Who comes now is sent away at once; who is there is told, and comes back to the same.
    let mut late = Client::all(door.address);
    for client in &mut late {
        client.wait_for_close("draining").await;
    }
    door.set_target(Some(new.address));
    for client in &mut before {
        client.wait_for_event("stream.closing").await;
        client.served().await;
    }
    cluster.create_pod("news");
    for client in before.iter_mut().chain(&mut late) {
        client.process.until(|line| line["event"]["data"]["name"] == "news").await;
        client.check();
    }
    for client in &before {
        assert_eq!(client.instances(), ["meanwhile Unknown", "news Unknown"], "{}", client.path);
        assert_eq!(client.snapshot_count(), usize::from(client.state), "{}", client.path);
    }
}

/// Sends a request for an event stream and gives what comes until this is there: head and body.
async fn opening(
    address: SocketAddr,
    path: &str,
    last: Option<&str>,
    enough: &str,
) -> (http_client::HttpResponse, Duration) {
    let started = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{last}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let reading = timeout(TEST_TIMEOUT, async {
        while !String::from_utf8_lossy(&bytes).contains(enough) {
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{path} ends");
        }
    });
    let came = reading.await;
    let text = String::from_utf8(bytes).unwrap();
    came.unwrap_or_else(|_| panic!("{path}: {enough:?} does not come: {text}"));
    (http_client::parse(&text), started.elapsed())
}

#[tokio::test]
async fn response_head_is_sent_before_any_event() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let mut retries = Vec::new();
    for _ in 0..3 {
        for (path, named, state) in SSE {
            let (answer, took) = opening(bridge.address, path, None, "}\n\n").await;
            assert!(took < AT_ONCE, "{path}: {took:?}");
            assert_eq!(answer.status, 200, "{path}");
            check_head(|name| answer.header(name));
            let (ms, rest) = retry(&answer.body);
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
    assert!(retries.len() > 1, "all are to come back at the same time");
}

/// What has to be asked of an API server that does not answer keeps nobody waiting for the head.
#[tokio::test]
async fn response_head_is_sent_before_the_backfill() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let (answer, _) = opening(bridge.address, "/api/events/stream", None, "}\n\n").await;
    let id = answer.body.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    drop(bridge);
    cluster.create_pod("pod");
    let bridge = cluster.bridge(&[]).await;
    cluster.sim().black_hole();
    for (path, ..) in SSE {
        let (answer, took) = opening(bridge.address, path, Some(&id), "}\n\n").await;
        assert!(took < AT_ONCE, "{path}: {took:?}");
        assert_eq!(answer.status, 200, "{path}");
        check_head(|name| answer.header(name));
        // So far it has been served, and no further.
        let (_, rest) = retry(&answer.body);
        assert!(rest.starts_with(&format!("id: {id}\n")) && rest.contains("heartbeat"), "{path}: {rest}");
        assert!(!rest.contains("pod"), "{path}: {rest}");
    }
    // It is worth the wait.
    let waiting = opening(bridge.address, "/api/sse", Some(&id), r#""name":"pod""#);
    let (received, ()) = tokio::join!(waiting, async { cluster.sim().up() });
    assert!(!received.0.body.contains("state.initial"), "{received:?}");
}
