//! A Namespace that is deleted and created again while the bridge runs (docs/failures.md#the-namespace-is-created-again).

use std::time::Duration;

use boilerhouse_bridge::{
    event::{
        Cursor, NamespaceId, PerResource, Resource,
        projection::{EventFormat, Projection},
    },
    feed::{self, Feed, FrameFormat, Framing, ReadResult, SnapshotReason, StartAt, Subscription, Writer},
    source::hub,
    test_support::PodBuilder,
};
use serde_json::Value;

use crate::support::{
    cluster::Cluster,
    http_client::{self, WsClient},
    in_process::{Config, InProcessBridge},
    sse_client::SseClient,
};

#[tokio::test]
async fn recreated_namespace_is_a_new_history_on_the_simulator() {
    recreated_namespace_is_a_new_history(Cluster::simulated().await).await;
}

#[tokio::test]
async fn recreated_namespace_is_a_new_history_on_the_real_api_server() {
    recreated_namespace_is_a_new_history(Cluster::shared().await).await;
}

async fn recreated_namespace_is_a_new_history(cluster: Cluster) {
    let hub = hub::Config { namespace_check_interval: Duration::from_millis(500), ..hub::Config::default() };
    let config = Config { hub, ..Config::default() };
    let bridge = InProcessBridge::start(&cluster.namespace, cluster.client(), &cluster.client(), config).await;
    let get = async |path: &str| http_client::get(bridge.address, path).await;
    let connection_id = async || get("/api/v1/connections").await.json()[0]["id"].as_str().unwrap().to_owned();
    let old_id = connection_id().await;
    let mut sse = SseClient::open(bridge.address, "/api/sse", &[]).await;
    assert_eq!(sse.event().await.json()["connectionId"], old_id);
    let mut claims_only = SseClient::open(bridge.address, "/api/sse?types=claim", &[]).await;
    claims_only.event().await;
    let mut ws = WsClient::connect(bridge.address, "/ws").await;
    cluster.create_pod("a", "").await;
    let old_cursor = sse.until(|event| event["name"] == "a").await.pop().unwrap().id.unwrap();
    ws.until(|event| event["name"] == "a").await;
    cluster.delete_pod("a").await;
    sse.until(|event| event["phase"] == "Deleted").await;

    cluster.recreate_namespace().await;
    let initial = sse.until(|event| event["type"] == "state.initial").await.pop().unwrap();
    let new_id = connection_id().await;
    assert_ne!(new_id, old_id);
    assert_eq!(
        (&initial.json()["reason"], &initial.json()["connectionId"]),
        (&"foreign".into(), &new_id.as_str().into())
    );
    let also = claims_only.until(|event| event["type"] == "state.initial").await.pop().unwrap();
    assert_eq!(also.json()["reason"], "foreign");

    // Streams continue in the new history. `/ws` has no event for it.
    cluster.create_pod("b", "").await;
    let id = sse.until(|event| event["name"] == "b").await.pop().unwrap().id.unwrap();
    let namespace = NamespaceId::from_uid(&cluster.namespace_uid().await);
    assert_eq!(Cursor::decode(&id).unwrap().namespace_hash, namespace.hash);
    ws.until(|event| event["name"] == "b").await;
    let answer = get("/api/v1/instances").await;
    assert_eq!(Cursor::decode(answer.header("event-cursor").unwrap()).unwrap().namespace_hash, namespace.hash);

    let mut resumed = SseClient::open(bridge.address, "/api/sse", &[("Last-Event-ID", &old_cursor)]).await;
    assert_eq!(resumed.event().await.json()["reason"], "foreign");
    let mut resumed = SseClient::open(bridge.address, "/api/sse", &[("Last-Event-ID", &id)]).await;
    assert_eq!(resumed.event().await.json()["type"], "heartbeat");
    for (id, expected) in [(&old_id, 404), (&new_id, 200)] {
        assert_eq!(get(&format!("/api/v1/instances?connectionId={id}")).await.status, expected);
    }
}

fn feed() -> (Writer, Feed) {
    let (mut writer, feed) = Feed::new(feed::Config::default());
    writer.set_namespace(NamespaceId::from_uid("old"));
    for resource in Resource::ALL {
        writer.replace(resource, Vec::new(), 10);
    }
    (writer, feed)
}

fn subscribe(feed: &Feed, format: EventFormat, start_at: StartAt) -> Subscription {
    let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
    feed.subscribe(feed.projection_cache(Projection::everything(format), framing), start_at).unwrap()
}

fn read(subscription: &mut Subscription) -> Vec<Value> {
    let mut received = Vec::new();
    while let ReadResult::Batch(batch) = subscription.read(1 << 16) {
        let bytes = batch.concat();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        received.extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
    }
    received
}

/// A subscription of the old history reads first, and shares what it renders with one of the new history.
#[tokio::test]
async fn events_of_the_new_history_have_its_namespace_for_every_reader() {
    let (mut writer, feed) = feed();
    let connect = StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() };
    let mut old = subscribe(&feed, EventFormat::Full, StartAt::Live);
    let mut ws = subscribe(&feed, EventFormat::Boilerhouse, StartAt::Live);
    let old_id = read(&mut old)[0]["id"].as_str().unwrap().to_owned();
    writer.set_namespace(NamespaceId::from_uid("new"));
    let mut new = subscribe(&feed, EventFormat::Full, connect);
    assert_eq!(read(&mut new)[0]["type"], "state.initial");
    writer.upsert(PodBuilder::new("a").version(11).view());
    let hash = NamespaceId::from_uid("new").hash;
    let is_new = |event: &Value| Cursor::decode(event["id"].as_str().unwrap()).unwrap().namespace_hash == hash;
    let received = read(&mut old);
    assert_eq!((&received[0]["type"], &received[0]["reason"]), (&"state.initial".into(), &"foreign".into()));
    assert!(is_new(&received[0]), "{received:#?}");
    let received = read(&mut new);
    assert!(received.len() == 1 && received[0]["name"] == "a" && is_new(&received[0]), "{received:#?}");
    assert_eq!(read(&mut ws).len(), 1, "/ws has no event for a new history");

    let cursor = StartAt::Cursor(Cursor::decode(&old_id).unwrap());
    assert_eq!(read(&mut subscribe(&feed, EventFormat::Full, cursor))[0]["reason"], "foreign");
    // The same uid again is no new history.
    writer.set_namespace(NamespaceId::from_uid("new"));
    assert!(read(&mut new).is_empty());
}
