//! Clients with an invented, a compacted and a valid cursor resume at the same time, on the bridge's binary
//! (docs/protocol.md#resume). Only the valid one resumes, and it receives exactly what it missed.

use boilerhouse_bridge::event::{Cursor, PerResource};
use serde_json::Value;

use crate::support::{
    bridge_process::BridgeProcess,
    cluster::Cluster,
    control_plane::{ControlPlane, Options},
    http_client,
    sse_client::SseClient,
};

#[tokio::test]
async fn invented_and_compacted_cursors_expire_alone_on_the_simulator() {
    invented_and_compacted_cursors_expire_alone(Cluster::simulated().await).await;
}

/// This API server notices a compaction at once.
#[tokio::test]
async fn invented_and_compacted_cursors_expire_alone_on_the_real_api_server() {
    let flag = "--feature-gates=ListFromCacheSnapshot=false".to_owned();
    let options = Options { api_server_flags: vec![flag], ..Options::default() };
    invented_and_compacted_cursors_expire_alone(Cluster::of(ControlPlane::start_with(&options).await).await).await;
}

async fn start(cluster: &Cluster) -> BridgeProcess {
    let kubeconfig = cluster.kubeconfig();
    let bridge = BridgeProcess::start(&kubeconfig.to_string_lossy(), &cluster.namespace, &[]).await;
    bridge.wait_ready().await;
    bridge
}

/// Creates a Pod and a claim. Returns the cursor after both.
async fn create(cluster: &Cluster, stream: &mut SseClient, name: &str) -> String {
    cluster.create_pod(name, "").await;
    cluster.create_claim(name, "t").await;
    // The two resources have separate watches.
    let mut missing = vec!["instance.state", "claim.state"];
    let is_last = |event: &Value| {
        missing.retain(|kind| event["type"] != *kind || event["name"] != name);
        missing.is_empty()
    };
    stream.until(is_last).await.into_iter().rev().find_map(|event| event.id).unwrap()
}

async fn invented_and_compacted_cursors_expire_alone(cluster: Cluster) {
    let first = start(&cluster).await;
    let mut stream = SseClient::open(first.address, "/api/sse", &[]).await;
    let compacted = create(&cluster, &mut stream, "a").await;
    cluster.compact().await;
    let valid = create(&cluster, &mut stream, "b").await;
    drop((stream, first));
    cluster.create_pod("c", "").await;
    let second = start(&cluster).await;
    let invented = Cursor { versions: PerResource::new(1, 1), ..Cursor::decode(&valid).unwrap() }.encode();
    let open = async |id: &str| SseClient::open(second.address, "/api/sse", &[("Last-Event-ID", id)]).await;
    let mut expired = Vec::new();
    for id in [&invented, &compacted, &invented] {
        expired.push(open(id).await);
    }
    let mut resumed = open(&valid).await;
    for client in &mut expired {
        let initial = client.until(|event| event["type"] == "state.initial").await.pop().unwrap();
        assert_eq!(initial.json()["reason"], "expired");
    }
    let received: Vec<Value> =
        resumed.until(|event| event["name"] == "c").await.iter().map(|event| event.json()).collect();
    let types: Vec<&str> = received.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["heartbeat", "instance.state"], "{received:#?}");
    assert_eq!(received[1]["coalesced"], Value::Null);

    // The compaction is known by now: no request, and no wait for other clients.
    let rounds = async || http_client::metric_sum(second.address, "bridge_feed_backfills_total", &[]).await;
    let before = rounds().await;
    let mut again = open(&invented).await;
    assert_eq!(again.event().await.json()["reason"], "expired");
    assert_eq!(rounds().await, before, "a known compaction starts no round");
}
