//! Telemetry over HTTP (docs/protocol.md#telemetry): posts, reads, events, rights, limits and bad input.

mod bad_input;
mod load;

use std::{net::SocketAddr, time::Duration};

use boilerhouse_bridge::sim::ApiResource;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, HttpResponse, WsClient, poll_until_async, request},
    sim_cluster::{NAMESPACE, SimCluster},
};

/// A valid body.
pub(crate) fn body() -> Value {
    json!({"region": null, "metrics": {"ttl": 4, "opn": 1, "rt1Ms": 0.5, "rt5Ms": null, "p50Ms": 2, "p90Ms": 9.25,
           "requests": 40, "errors": 2, "bytes": 4096}, "requests": [{"path": "/", "status": 200}]})
}

/// Sends a post with these headers beside `Host`, `Connection: close` and `Content-Length`.
pub(crate) async fn send(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpResponse {
    let length = body.len();
    let mut head =
        format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n");
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    let answer = http_client::send_raw(address, &[head.as_bytes(), b"\r\n", body].concat()).await;
    http_client::parse(&String::from_utf8(answer).unwrap())
}

/// Posts a body as JSON.
async fn post(bridge: &BridgeProcess, uid: &str, body: &Value) -> HttpResponse {
    let headers = [("Content-Type", "application/json")];
    send(bridge.address, &path(uid), &headers, body.to_string().as_bytes()).await
}

pub(crate) fn path(uid: &str) -> String {
    format!("/v1/tunnels/{uid}/telemetry")
}

/// Creates a Pod of a tenant and returns its uid.
fn create_pod(cluster: &SimCluster, name: &str, tenant: &str) -> String {
    let labels =
        json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web", "boilerhouse.dev/tenant": tenant});
    let pod = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
    let created = cluster.sim().store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    created["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Waits until the bridge knows this number of instances.
async fn wait_for_instances(bridge: &BridgeProcess, count: usize) {
    poll_until_async(async || {
        let instances = http_client::get(bridge.address, "/api/v1/instances").await;
        (instances.json().as_array()?.len() == count).then_some(())
    })
    .await;
}

async fn stored(bridge: &BridgeProcess) -> Vec<Value> {
    let answer = http_client::get(bridge.address, "/v1/tunnels/telemetry").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json().as_array().unwrap().clone()
}

fn is_timestamp(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() == 24 && text.ends_with('Z') && text.as_bytes()[19] == b'.')
}

/// What is posted is read, sent as an event, and gone with its instance and its TTL.
#[tokio::test]
async fn latest_telemetry_is_served_as_documented_and_sent_to_streams() {
    let cluster = SimCluster::new().await;
    let (a, b) = (create_pod(&cluster, "a", "alice"), create_pod(&cluster, "b", "bob"));
    create_pod(&cluster, "silent", "bob");
    let bridge = cluster.bridge(&[]).await;
    assert_eq!(stored(&bridge).await, Vec::<Value>::new());
    let mut stream = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none&types=telemetry").await;
    let mut all = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none").await;
    let mut others =
        WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none&types=instance,claim,tenant,pool").await;
    let mut slowest = Duration::ZERO;
    for (uid, region) in [(&b, json!("eu-1")), (&a, json!("old")), (&a, Value::Null)] {
        let mut body = body();
        body["region"] = region.clone();
        let start = Instant::now();
        let answer = post(&bridge, uid, &body).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"ok": true})), "{}", answer.body);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"posts\";q=1200;w=60"));
        for stream in [&mut stream, &mut all] {
            let event = stream.event().await;
            slowest = slowest.max(start.elapsed());
            assert!(is_timestamp(&event["time"]) && is_timestamp(&event["receivedAt"]), "{event}");
            let expected = json!({"type": "telemetry", "time": event["time"], "tunnelId": uid, "region": region,
                                  "receivedAt": event["receivedAt"], "metrics": body["metrics"]});
            assert_eq!(event, expected, "no id, and no requests");
        }
    }
    println!("from a post to its event on two streams: at most {slowest:?}");
    let found = stored(&bridge).await;
    let mut expected = [(&a, Value::Null), (&b, json!("eu-1"))].map(|(uid, region)| {
        let received = &found.iter().find(|snapshot| snapshot["tunnelId"] == **uid).unwrap()["receivedAt"];
        assert!(is_timestamp(received), "{received}");
        json!({"tunnelId": uid, "receivedAt": received, "region": region, "metrics": body()["metrics"]})
    });
    expected.sort_by_key(|snapshot| snapshot["tunnelId"].as_str().unwrap().to_owned());
    assert_eq!(found, expected, "the newest of each tunnel, by tunnelId, none of the silent one");
    let answer = http_client::get(bridge.address, "/api/v1/telemetry").await;
    assert_eq!(answer.json(), json!(found), "the same data");
    let tag = answer.header("etag").unwrap();
    assert_eq!(request(bridge.address, "GET", "/v1/tunnels/telemetry", &[("If-None-Match", tag)]).await.status, 304);
    assert_eq!(request(bridge.address, "HEAD", "/v1/tunnels/telemetry", &[]).await.status, 200);
    let filtered =
        http_client::get(bridge.address, "/api/v1/telemetry?params=%7B%22instances%22:%7B%22name%22:%22a%22%7D%7D");
    assert_eq!(filtered.await.json().as_array().unwrap().len(), 1);
    assert_eq!(http_client::metric(bridge.address, r#"bridge_telemetry_requests{workload="web"}"#).await, 80);
    assert_eq!(http_client::metric(bridge.address, r#"bridge_telemetry_posts_total{outcome="accepted"}"#).await, 3);

    cluster.sim().store(|store| store.delete(ApiResource::Pods, NAMESPACE, "b")).unwrap();
    assert_eq!(others.event().await["type"], "instance.state", "no telemetry on a stream of other families");
    let left = stored(&bridge).await;
    assert_eq!(
        left.iter().map(|snapshot| &snapshot["tunnelId"]).collect::<Vec<_>>(),
        [&json!(a)],
        "gone with the instance"
    );
    assert_eq!(post(&bridge, &b, &body()).await.status, 404);
}

#[tokio::test]
async fn telemetry_expires() {
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a", "alice");
    let bridge = cluster.bridge(&["--telemetry-ttl", "1"]).await;
    let start = Instant::now();
    assert_eq!(post(&bridge, &uid, &body()).await.status, 200);
    poll_until_async(async || stored(&bridge).await.is_empty().then_some(())).await;
    assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
}

#[tokio::test]
async fn resumed_stream_gets_no_telemetry_of_the_past() {
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a", "alice");
    let bridge = cluster.bridge(&[]).await;
    let cursor = http_client::get(bridge.address, "/api/v1/telemetry").await.header("event-cursor").unwrap().to_owned();
    assert_eq!(post(&bridge, &uid, &body()).await.status, 200);
    let mut stream = WsClient::connect_live(bridge.address, &format!("/api/websocket?lastEventId={cursor}")).await;
    cluster.create_pod("later");
    let event = stream.event().await;
    assert_ne!(event["type"], "telemetry", "{event}");
}

/// The documented bodies of a 401 and of a 429.
#[tokio::test]
async fn credentials_and_limits_are_those_of_the_protocol() {
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a", "alice");
    let bridge = cluster.bridge_with_key().await;
    let authorization = ("Authorization", "Bearer a-key-for-tests");
    let json = ("Content-Type", "application/json");
    let text = body().to_string();
    for (answer, message) in [
        (http_client::get(bridge.address, "/v1/tunnels/telemetry").await, "missing Authorization header"),
        (send(bridge.address, &path(&uid), &[json], text.as_bytes()).await, "missing Authorization header"),
        (
            send(bridge.address, &path(&uid), &[json, ("Authorization", "Bearer x")], text.as_bytes()).await,
            "invalid API key",
        ),
    ] {
        let error = answer.json();
        assert_eq!((answer.status, &error["code"]), (401, &json!("UNAUTHORIZED")));
        assert!(error["message"].as_str().unwrap().starts_with(message), "{error}");
        assert!(answer.header("www-authenticate").is_some());
    }
    // A body that is still being sent does not hide the answer.
    let large = vec![b' '; 900_000];
    assert_eq!(send(bridge.address, &path(&uid), &[json], &large).await.status, 401);
    let headers = [authorization];
    let read = || request(bridge.address, "GET", "/v1/tunnels/telemetry", &headers);
    let (answers, limited) = answers_until_429(600, read).await;
    for answer in answers {
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"telemetry\";q=600;w=60"));
    }
    assert_eq!(limited.json()["code"], "RATE_LIMIT_EXCEEDED");
    assert!(limited.json()["message"].as_str().unwrap().starts_with("too many requests: more than 600 per minute"));
    assert!(limited.header("retry-after").is_some());
    let answer = send(bridge.address, &path(&uid), &[json, authorization], text.as_bytes()).await;
    assert_eq!(answer.status, 200, "reads do not use the budget of posts: {}", answer.body);
    let instances = request(bridge.address, "GET", "/api/v1/instances", &[authorization]).await;
    assert_eq!(instances.status, 200, "nor that of other requests");
}

/// Sends requests until one is answered with 429. Returns the other answers, whose number must be that of a budget of `limit` a
/// minute, and that answer. The requests are concurrent, so that a slow machine uses the budget faster than it refills.
async fn answers_until_429<F: Future<Output = HttpResponse>>(
    limit: u32,
    send: impl Fn() -> F,
) -> (Vec<HttpResponse>, HttpResponse) {
    const CONCURRENT: usize = 50;
    let (start, mut accepted) = (Instant::now(), Vec::new());
    loop {
        let mut limited = None;
        for answer in join_all((0..CONCURRENT).map(|_| send())).await {
            if answer.status == 429 {
                limited = Some(answer);
            } else {
                accepted.push(answer);
            }
        }
        let refilled = start.elapsed().as_secs_f64() * f64::from(limit) / 60.0;
        let (count, limit) = (f64::from(u32::try_from(accepted.len()).unwrap()), f64::from(limit));
        assert!(count <= limit + refilled + 1.0, "{count} requests are accepted, and {refilled:.0} were refilled");
        if let Some(limited) = limited {
            assert!(count >= limit, "only {count} requests are accepted");
            return (accepted, limited);
        }
    }
}

#[tokio::test]
async fn posts_are_limited_for_each_tunnel() {
    let cluster = SimCluster::new().await;
    let [a, b, silent] = ["a", "b", "silent"].map(|name| create_pod(&cluster, name, "alice"));
    let bridge = cluster.bridge(&["--request-rate", "5"]).await;
    // Without a body a post is a 415, and counts for its tunnel all the same.
    let path_a = path(&a);
    let (answers, limited) = answers_until_429(1200, || request(bridge.address, "POST", &path_a, &[])).await;
    assert!(answers.iter().all(|answer| answer.status == 415));
    assert!(limited.json()["message"].as_str().unwrap().starts_with("too many requests: more than 1200 per minute"));
    assert_eq!(post(&bridge, &b, &body()).await.status, 200, "another tunnel");
    let unknown = path("01234567-89ab-cdef-0123-456789abcdef");
    let mut found = Vec::new();
    for _ in 0..7 {
        found.push(request(bridge.address, "POST", &unknown, &[]).await.status);
    }
    assert_eq!(found, [404, 404, 404, 404, 404, 429, 429], "posts without a tunnel count for the caller");
    assert_eq!(post(&bridge, &b, &body()).await.status, 200, "a known tunnel needs no request");
    assert_eq!(post(&bridge, &silent, &body()).await.status, 429, "one that must be searched for does");
}

/// A broken schema pack is reported, and the embedded defaults are in use.
#[tokio::test]
async fn schema_pack_is_used_or_reported() {
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a", "alice");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pack.json");
    let name = file.to_str().unwrap().to_owned();
    let pack = json!({"version": "1", "name": "p", "entities": {"Telemetry": {"required": ["requests", "region"]}}});
    std::fs::write(&file, pack.to_string()).unwrap();
    let kubeconfig = cluster.kubeconfig();
    let args = ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
    let bridge = BridgeProcess::run_with(&args, &[("EP_SCHEMA_PACK_FILE", &name)]).await;
    bridge.wait_ready().await;
    let answer = post(&bridge, &uid, &body()).await;
    assert_eq!((answer.status, answer.json()["code"].clone()), (422, json!("INVALID_INPUT")), "{}", answer.body);
    assert_eq!(answer.json()["details"]["violations"][0]["path"], "region");
    assert_eq!(
        http_client::metric(bridge.address, r#"bridge_validations_total{validator="schema_pack",outcome="refused"}"#)
            .await,
        1
    );
    drop(bridge);
    for broken in [None, Some("{"), Some("{}"), Some(r#"{"version":1,"name":"p","entities":{}}"#)] {
        match broken {
            None => std::fs::remove_file(&file).unwrap(),
            Some(text) => std::fs::write(&file, text).unwrap(),
        }
        let bridge = cluster.bridge(&["--schema-pack", &name]).await;
        bridge.wait_for_log("schema pack not usable; the embedded defaults are in use").await;
        let ready = http_client::get(bridge.address, "/readyz?verbose").await;
        assert!(ready.status == 200 && ready.body.contains("embedded defaults in use"), "{}", ready.body);
        assert!(!ready.body.contains("pack.json"), "no path of the machine: {}", ready.body);
        assert_eq!(post(&bridge, &uid, &body()).await.status, 200, "{broken:?}");
    }
}

/// A module that does not fit, or a file that is missing, ends the start.
#[tokio::test]
async fn unusable_module_is_a_start_up_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("module.wasm");
    std::fs::write(&file, "(module)").unwrap();
    for (name, expected) in [
        (
            file.to_str().unwrap(),
            if cfg!(feature = "wasm") { "not a WebAssembly module" } else { "without the feature `wasm`" },
        ),
        ("/nowhere/module.wasm", "No such file"),
    ] {
        let output =
            crate::support::bridge_process::command(&["serve", "--port", "0", "--booster-wasm", name]).output();
        let output = timeout(http_client::TEST_TIMEOUT, output).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("--booster-wasm") && text.contains(expected), "{text}");
    }
}
