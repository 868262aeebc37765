//! An API server that answers, but too slowly or too seldom: what open streams and `/api/v1/connections` show
//! (docs/failures.md#a-slow-re-list), and lines that it should not send.

use std::time::Duration;

use boilerhouse_bridge::{
    event::{Cursor, PerResource, Resource},
    feed,
    http::stream,
    sim::{
        ApiResource, Sim, Verb,
        fault::{Answer, ConnectionEnd, Fault, WatchFault},
    },
    source::hub,
    test_support::PodBuilder,
};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep},
};
use tower::BoxError;

use crate::support::{
    http_client,
    in_process::{Config, InProcessBridge},
    sim_cluster::{NAMESPACE, SimCluster},
    sse_client::SseClient,
};

type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// Heartbeats in short intervals, and short limits of the hub.
fn config(hub: hub::Config) -> Config {
    let stream = stream::Config { ping_interval: Duration::from_millis(200), ..stream::Config::default() };
    let feed = feed::Config { ahead_cursor_wait: Duration::from_millis(100), ..feed::Config::default() };
    Config { hub, stream, feed, ..Config::default() }
}

async fn state_of(bridge: &InProcessBridge) -> String {
    http_client::get(bridge.address, "/api/v1/connections").await.json()[0]["state"].as_str().unwrap().to_owned()
}

/// While `endless` is set, each list of Pods gets an empty page every 20 ms, and another one always follows.
fn endless_lists(sim: &Sim, endless: watch::Receiver<bool>) -> Client {
    let client = sim.client(NAMESPACE);
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (client, endless) = (client.clone(), endless.clone());
        async move {
            let uri = request.uri().to_string();
            let is_list = uri.contains("/pods") && uri.contains("limit=500");
            if is_list && *endless.borrow() {
                sleep(Duration::from_millis(20)).await;
                let page = json!({"metadata": {"resourceVersion": "5", "continue": "more"}, "items": []});
                let body = Full::from(page.to_string()).map_err(|never| match never {}).boxed_unsync();
                return Ok::<Response<ResponseBody>, BoxError>(Response::new(body));
            }
            *request.uri_mut() = uri.replace("&continue=more", "").parse()?;
            let response = client.send(request).await?;
            Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()))
        }
    });
    Client::new(service, NAMESPACE)
}

#[tokio::test]
async fn endless_relist_is_reported_and_ends_with_upstream_up() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("a");
    let (endless, receiver) = watch::channel(false);
    let client = endless_lists(cluster.sim(), receiver);
    let hub = hub::Config { down_after: Duration::from_secs(2), ..hub::Config::default() };
    let bridge = InProcessBridge::start(NAMESPACE, client, &cluster.sim().client(NAMESPACE), config(hub)).await;
    let mut sse = SseClient::open(bridge.address, "/api/sse", &[]).await;
    sse.until(|event| event["type"] == "heartbeat" && event["upstream"] == "live").await;
    assert_eq!(state_of(&bridge).await, "live");

    endless.send_replace(true);
    cluster.sim().arm(Fault::watch(0, WatchFault::Expired).on(ApiResource::Pods));
    cluster.sim().cut_watches(ConnectionEnd::Eof);
    http_client::poll_until(|| (cluster.sim().pending_faults() == 0).then_some(())).await;
    cluster.create_pod("b");
    let down = sse.until(|event| event["type"] == "upstream.down" && event["resource"] == "pods").await;
    assert_eq!(down.last().unwrap().json()["reason"], "no answer");
    assert!(down.iter().all(|event| event.json()["name"] != "b"), "an incomplete list changes nothing: {down:#?}");
    sse.until(|event| event["type"] == "heartbeat" && event["upstream"] == "down").await;
    assert_eq!(state_of(&bridge).await, "down");

    endless.send_replace(false);
    let up = sse.until(|event| event["type"] == "upstream.up" && event["resource"] == "pods").await;
    assert!(up.iter().any(|event| event.json()["name"] == "b"), "the difference comes before: {up:#?}");
    sse.until(|event| event["type"] == "heartbeat" && event["upstream"] == "live").await;
    assert_eq!(state_of(&bridge).await, "live");
}

/// Without a repeated probe, the resource is down until the watch has been silent for 15 s.
#[tokio::test]
async fn throttled_catch_up_probe_is_repeated_after_its_delay() {
    let cluster = SimCluster::new().await;
    let client = cluster.sim().client(NAMESPACE);
    let bridge = InProcessBridge::start(NAMESPACE, client.clone(), &client, config(hub::Config::default())).await;
    let mut sse = SseClient::open(bridge.address, "/api/sse", &[]).await;
    cluster.sim().down();
    let mut down = std::collections::BTreeSet::new();
    while down.len() < 2 {
        let event = sse.until(|event| event["type"] == "upstream.down").await.pop().unwrap();
        down.insert(event.json()["resource"].as_str().unwrap().to_owned());
    }
    for resource in [ApiResource::Pods, ApiResource::Claims] {
        cluster.sim().arm(Fault::answer(Answer::TooManyRequests(1)).on_verb(Verb::List).on(resource));
    }
    cluster.sim().up();
    let started = Instant::now();
    sse.until(|event| event["type"] == "heartbeat" && event["upstream"] == "live").await;
    assert_eq!(cluster.sim().pending_faults(), 0, "both probes were throttled once");
    assert!(started.elapsed() < Duration::from_secs(10), "live after {:?}", started.elapsed());
}

#[tokio::test]
async fn cursor_ahead_waits_until_the_api_server_answers() {
    let cluster = SimCluster::new().await;
    let client = cluster.sim().client(NAMESPACE);
    let hub = hub::Config { version_check_timeout: Duration::from_millis(100), ..hub::Config::default() };
    let bridge = InProcessBridge::start(NAMESPACE, client.clone(), &client, config(hub)).await;
    let mut sse = SseClient::open(bridge.address, "/api/sse", &[]).await;
    let id = sse.event().await.id.unwrap();
    cluster.sim().down();
    let cursor = Cursor::decode(&id).unwrap();
    let ahead = Cursor { versions: PerResource::from_fn(|resource| cursor.versions[resource] + 5), ..cursor }.encode();
    let mut resumed = SseClient::open(bridge.address, "/api/sse", &[("Last-Event-ID", &ahead)]).await;
    let timeouts = r#"bridge_feed_version_checks_total{outcome="timeout"}"#;
    http_client::wait_for_metric(bridge.address, timeouts, |value| value >= 3).await;
    cluster.sim().up();
    let received = resumed.until(|event| event["type"] == "state.initial").await;
    let (initial, before) = received.split_last().unwrap();
    assert_eq!(initial.json()["reason"], "foreign");
    let live_again = before.iter().any(|event| event.json()["type"] == "upstream.up");
    let initial_versions = Cursor::decode(initial.id.as_deref().unwrap()).unwrap().versions;
    assert!(live_again || initial_versions == cursor.versions, "the state is the one of the API server");
}

/// A client whose watches of Pods also receive the lines that the sender sends.
fn injected_lines(sim: &Sim, lines: &broadcast::Sender<Bytes>) -> Client {
    let (client, lines) = (sim.client(NAMESPACE), lines.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, lines) = (client.clone(), lines.clone());
        async move {
            let uri = request.uri().to_string();
            let is_watch = uri.contains("/pods") && uri.contains("watch=true");
            let injected = is_watch.then(|| lines.subscribe());
            let response = client.send(request).await?;
            Ok::<Response<ResponseBody>, BoxError>(response.map(|body| {
                let chunks = body.into_data_stream().map(|chunk| chunk.map(Frame::data).map_err(BoxError::from));
                let Some(injected) = injected else { return StreamBody::new(chunks).boxed_unsync() };
                let injected = futures::stream::unfold(injected, |mut injected| async {
                    let line = injected.recv().await.ok()?;
                    Some((Ok(Frame::data(line)), injected))
                });
                StreamBody::new(futures::stream::select(chunks, injected)).boxed_unsync()
            }))
        }
    });
    Client::new(service, NAMESPACE)
}

/// `/ws` has dedicated watchers here, the full stream uses the hub.
#[tokio::test]
async fn deletion_older_than_the_object_changes_nothing_for_hub_and_dedicated_watchers() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("a");
    let lines = broadcast::Sender::new(16);
    let client = injected_lines(cluster.sim(), &lines);
    let bridge = InProcessBridge::start(NAMESPACE, client.clone(), &client, config(hub::Config::default())).await;
    let mut sse = SseClient::open(bridge.address, "/api/sse", &[]).await;
    let mut ws = http_client::WsClient::connect(bridge.address, "/ws").await;
    cluster.pod_phase("a", "Running");
    sse.until(|event| event["phase"] == "Running").await;
    ws.until(|event| event["phase"] == "Running").await;
    let cursor_of = |id: &str| Cursor::decode(id).unwrap().versions[Resource::Pods];
    let before = cursor_of(&sse.until(|event| event["type"] == "heartbeat").await.pop().unwrap().id.unwrap());

    let pod = cluster.sim().store(|store| store.get(ApiResource::Pods, NAMESPACE, "a")).unwrap();
    let mut old = PodBuilder::new("a").namespace(NAMESPACE).version(before - 1).json();
    old["metadata"]["uid"] = pod["metadata"]["uid"].clone();
    let line = format!("{}\n", json!({"type": "DELETED", "object": old}));
    assert_eq!(lines.send(line.into()).unwrap(), 2, "the hub and the dedicated watcher");
    // The next change shows that the line was processed.
    cluster.pod_phase("a", "Failed");
    let received = sse.until(|event| event["phase"] == "Failed").await;
    assert!(received.iter().all(|event| event.json()["phase"] != "Deleted"), "{received:#?}");
    let ids = received.iter().filter_map(|event| event.id.as_deref()).map(cursor_of);
    assert!(ids.min() >= Some(before), "{received:#?}");
    let received = ws.until(|event| event["phase"] == "Failed").await;
    assert_eq!(received.len(), 1, "{received:#?}");
    let instances = http_client::get(bridge.address, "/api/v1/instances").await.json();
    assert_eq!((instances.as_array().unwrap().len(), &instances[0]["phase"]), (1, &json!("Failed")));
}
