//! A Pod that is handed from one tenant to another: what both are told of it, by the binary.

use boilerhouse_bridge::sim::ApiResource;
use serde_json::{Value, json};

use super::{KeysFile, bearer, key, three_keys, two_tenants};
use crate::support::{
    http_client::{WsClient, request},
    sim_cluster::NAMESPACE,
    sse_client::{SseClient, SseEvent},
};

/// Word by word, on each kind of stream: the first is told that the Pod is gone, the second that it is there.
#[tokio::test]
async fn reassigned_pod_is_deleted_for_the_first_tenant() {
    let bob = key("bob", &json!({"tenantId": "bob"}));
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&[three_keys(), vec![bob]].concat()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path()]).await;
    let (alice, bob) = (bearer("alice"), bearer("bob"));
    let (alice, bob) = ([("Authorization", alice.as_str())], [("Authorization", bob.as_str())]);
    let socket = async |path, headers| WsClient::with(bridge.address, path, headers).await.unwrap();
    let (mut plain, mut full) = (socket("/ws?snapshot=none", &alice).await, socket("/events/ws", &alice).await);
    let mut sse = SseClient::open(bridge.address, "/events", &alice).await;
    let (mut plain_of_bob, mut full_of_bob) =
        (socket("/ws?snapshot=none", &bob).await, socket("/events/ws", &bob).await);
    let before = request(bridge.address, "GET", "/api/v1/instances/alice-pod", &alice).await.json();

    let change = json!({
        "metadata": {"labels": {"boilerhouse.dev/tenant": "bob", "boilerhouse.dev/workload": "bobs"}},
        "status": {"phase": "Bobs", "podIP": "10.0.0.66"},
    });
    let store =
        |change| cluster.sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, "alice-pod", change)).unwrap();
    let handed_over = store(&change);
    store(&json!({"status": {"phase": "BobsToo"}}));
    cluster.sim.store(|store| store.delete(ApiResource::Pods, NAMESPACE, "alice-pod")).unwrap();
    let own = json!({"metadata": {"name": "mark", "namespace": NAMESPACE, "labels": {
        "boilerhouse.dev/managed": "true", "boilerhouse.dev/tenant": "alice"}}});
    cluster.sim.store(|store| store.create(ApiResource::Pods, own)).unwrap();

    let gone = json!({"type": "instance.state", "name": "alice-pod", "phase": "Deleted", "workloadRef": "web",
                      "tenantId": "alice"});
    assert_eq!(plain.json().await, gone);
    assert_eq!(plain.json().await["name"], "mark", "what becomes of it is bob's business");
    let mut last = before;
    for joined in ["claimedAt", "lastActivity"] {
        last.as_object_mut().unwrap().remove(joined);
    }
    let (uid, rv) = (&handed_over["metadata"]["uid"], &handed_over["metadata"]["resourceVersion"]);
    let key = format!("{}.{}.instance.state", uid.as_str().unwrap(), rv.as_str().unwrap());
    let gone = json!({
        "type": "instance.state", "id": "*", "time": "*", "name": "alice-pod", "phase": "Deleted",
        "previousPhase": "Unknown", "workloadRef": "web", "tenantId": "alice", "instance": last, "cause": "filtered",
        "key": key,
    });
    let held = |mut event: Value| {
        for differs in ["id", "time"] {
            assert!(event[differs].is_string(), "{event}");
            event[differs] = json!("*");
        }
        event
    };
    let from_socket = full.until(|event| event["name"] == "mark").await;
    let from_socket = from_socket.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
    let from_sse = sse.until(|event| event["name"] == "mark").await;
    let from_sse = from_sse.iter().map(SseEvent::json);
    for received in [from_socket.collect::<Vec<_>>(), from_sse.collect()] {
        let received: Vec<_> = received.into_iter().filter(|event| event["type"] != "heartbeat").collect();
        assert_eq!(held(received[0].clone()), gone);
        assert_eq!(received.len(), 2, "{received:?}");
    }
    let came = json!({"type": "instance.state", "name": "alice-pod", "phase": "Bobs", "workloadRef": "bobs",
                      "tenantId": "bob"});
    assert_eq!(plain_of_bob.json().await, came);
    let came = full_of_bob.until(|event| event["phase"] == "Bobs").await;
    assert!(came.iter().all(|text| !text.contains("\"web\"") && !text.contains("previousPhase")), "{came:?}");
    for (path, headers) in [("/api/v1/instances/alice-pod", &alice), ("/api/v1/instances/mark", &bob)] {
        assert_eq!(request(bridge.address, "GET", path, headers).await.status, 404, "{path}");
    }
}
