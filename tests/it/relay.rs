//! The subcommand `relay` (docs/protocol.md#relay), through the binary.

mod browsers;
mod bytes;
mod chain;
mod history;
mod many_clients;
mod outage;
mod published_server;

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    bridge_process::BridgeProcess,
    golden,
    http_client::{self, WsClient},
    sse_client::{SseClient, SseEvent},
    sse_upstream::SseUpstream,
};

/// A report of a failed try arrives within this time. The contract says 2 s; a busy machine adds to it.
const REPORTED_WITHIN: Duration = Duration::from_secs(4);

/// Starts a relay of this URL.
async fn relay(upstream: &str, args: &[&str]) -> BridgeProcess {
    let mut all = vec!["relay", "--upstream", upstream, "--listen", "127.0.0.1:0"];
    all.extend(args);
    BridgeProcess::run(&all).await
}

/// Opens a local SSE client that has read the event with this id.
async fn local_sse(address: SocketAddr, last_id: Option<&str>) -> SseClient {
    let headers: Vec<_> = last_id.iter().map(|id| ("Last-Event-ID", *id)).collect();
    let client = SseClient::open(address, "/events", &headers).await;
    assert_eq!((client.head.status, client.head.header("content-type")), (200, Some("text/event-stream")));
    client
}

/// The id, the name and the data of the next event.
async fn next(client: &mut SseClient) -> (Option<String>, Option<String>, String) {
    let SseEvent { id, event, data, .. } = client.event().await;
    (id, event, data)
}

/// Reads events of the upstream of (id, data), in this order and without any other event.
async fn expect(client: &mut SseClient, events: &[(&str, &str)]) {
    for (id, data) in events {
        let event = next(client).await;
        let id = Some(*id).filter(|id| !id.is_empty()).map(str::to_owned);
        assert_eq!(event, (id, None, (*data).to_owned()));
    }
}

/// Reads an event of the relay itself.
async fn expect_own(client: &mut SseClient, name: &str) -> Value {
    let (id, event, data) = next(client).await;
    assert_eq!((id, event.as_deref()), (None, Some(name)), "{data}");
    let value: Value = serde_json::from_str(&data).unwrap();
    assert_eq!(value["type"], name);
    value
}

async fn expect_gap(client: &mut SseClient, reason: &str) {
    assert_eq!(expect_own(client, "relay.gap").await, json!({"type": "relay.gap", "reason": reason}));
}

/// Reads `matrix-down` with exactly its keys. Returns `retryAt`.
async fn expect_down(client: &mut SseClient, status: Option<u16>, reason: &str) -> jiff::Timestamp {
    let down = expect_own(client, "matrix-down").await;
    let retry_at = down["retryAt"].as_str().unwrap();
    assert_eq!(down, json!({"type": "matrix-down", "status": status, "reason": reason, "retryAt": retry_at}));
    retry_at.parse().unwrap()
}

async fn expect_up(client: &mut SseClient) {
    assert_eq!(expect_own(client, "matrix-up").await, json!({"type": "matrix-up"}));
}

/// Waits until the relay has this number of events.
async fn wait_for_events(relay: &BridgeProcess, events: u64) {
    http_client::wait_for_metric(relay.address, "bridge_relay_events_total", |found| found == events).await;
}

#[tokio::test]
async fn service_endpoints_answer() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\n").await;
    wait_for_events(&relay, 1).await;
    let get = async |path| http_client::get(relay.address, path).await;
    assert_eq!(get("/api/v1/health").await.json(), json!({"status": "ok"}));
    assert_eq!(get("/livez").await.body, "ok\n");
    assert_eq!(get("/readyz?verbose").await.body, "[+] upstream: live\nready\n");
    assert!(get("/").await.body.contains("/events/ws"));
    for (path, status) in [
        ("/api/v1/instances", 404),
        ("/ws", 404),
        ("/events?types=instance", 400),
        ("/events/ws", 426),
        ("/events?lastEventId=1&lastEventId=2", 400),
    ] {
        assert_eq!(get(path).await.status, status, "{path}");
    }
    assert_eq!(WsClient::try_connect(relay.address, "/events").await.unwrap_err(), 400);
    let head = http_client::request(relay.address, "HEAD", "/events", &[]).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn metrics_are_those_of_the_golden_file() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let _connection = upstream.stream().await;
    let metrics = http_client::get(relay.address, "/metrics").await.body;
    let types = metrics.lines().filter(|line| line.starts_with("# TYPE bridge_relay"));
    golden::check("metrics-relay.txt", &types.map(|line| format!("{line}\n")).collect::<String>());
}

#[tokio::test]
async fn unusable_arguments_exit_with_2() {
    for (args, words) in [
        (&["relay"][..], "--upstream <URL>"),
        (&["relay", "--upstream", "ws://127.0.0.1:1"], "use http or https for SSE"),
        (&["relay", "--upstream", "ftp://127.0.0.1"], "accepted schemes"),
        (&["relay", "--upstream", "http://h/", "--listen", "127.0.0.1"], "expected a host and a port"),
        (&["relay", "--upstream", "http://h/", "--listen", "0.0.0.0:0"], "--allow-anonymous"),
        (&["relay", "--upstream", "http://h.example/", "--token-file", "/dev/null"], "--allow-insecure"),
        (&["relay", "--upstream", "http://h/", "--history", "0"], "from 1 to 10000000"),
        // The events of the upstream are not validated.
        (&["relay", "--upstream", "http://h/", "--schema-pack", "/dev/null"], "--schema-pack needs --mqtt-url"),
        (&["relay", "--upstream", "http://h/", "--booster-wasm", "/dev/null"], "--booster-wasm needs --mqtt-url"),
    ] {
        let output = crate::support::bridge_process::command(args).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
}
