//! Test of a Pod that moves from one tenant to another: the events that the binary sends to both tenants.

use boilerhouse_bridge::sim::ApiResource;
use serde_json::{Value, json};

use super::{KeysFile, bearer, key, three_keys, two_tenants};
use crate::support::{
    http_client::{WsClient, request},
    sim_cluster::NAMESPACE,
    sse_client::{SseClient, SseEvent},
};

/// On each kind of stream, the first tenant gets `Deleted`, and the second one the new state. The events are compared
/// completely.
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
    let patch =
        |change| cluster.sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, "alice-pod", change)).unwrap();
    let reassigned = patch(&change);
    patch(&json!({"status": {"phase": "BobsToo"}}));
    cluster.sim.store(|store| store.delete(ApiResource::Pods, NAMESPACE, "alice-pod")).unwrap();
    let marker = json!({"metadata": {"name": "mark", "namespace": NAMESPACE, "labels": {
        "boilerhouse.dev/managed": "true", "boilerhouse.dev/tenant": "alice"}}});
    cluster.sim.store(|store| store.create(ApiResource::Pods, marker)).unwrap();

    let deleted = json!({"type": "instance.state", "name": "alice-pod", "phase": "Deleted", "workloadRef": "web",
                         "tenantId": "alice"});
    assert_eq!(plain.json().await, deleted);
    assert_eq!(plain.json().await["name"], "mark", "expected no event about the Pod of bob");
    let mut last_view = before;
    for joined in ["claimedAt", "lastActivity"] {
        last_view.as_object_mut().unwrap().remove(joined);
    }
    let (uid, rv) = (&reassigned["metadata"]["uid"], &reassigned["metadata"]["resourceVersion"]);
    let key = format!("{}.{}.instance.state", uid.as_str().unwrap(), rv.as_str().unwrap());
    let deleted = json!({
        "type": "instance.state", "id": "*", "time": "*", "name": "alice-pod", "phase": "Deleted",
        "previousPhase": "Unknown", "workloadRef": "web", "tenantId": "alice", "instance": last_view,
        "cause": "filtered", "key": key,
    });
    let mask_variable_values = |mut event: Value| {
        for key in ["id", "time"] {
            assert!(event[key].is_string(), "expected the key {key}: {event}");
            event[key] = json!("*");
        }
        event
    };
    let from_socket = full.until(|event| event["name"] == "mark").await;
    let from_socket = from_socket.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
    let from_sse = sse.until(|event| event["name"] == "mark").await;
    let from_sse = from_sse.iter().map(SseEvent::json);
    for events in [from_socket.collect::<Vec<_>>(), from_sse.collect()] {
        let events: Vec<_> = events.into_iter().filter(|event| event["type"] != "heartbeat").collect();
        assert_eq!(mask_variable_values(events[0].clone()), deleted);
        assert_eq!(events.len(), 2, "expected `Deleted` and the marker, found: {events:?}");
    }
    let appeared = json!({"type": "instance.state", "name": "alice-pod", "phase": "Bobs", "workloadRef": "bobs",
                          "tenantId": "bob"});
    assert_eq!(plain_of_bob.json().await, appeared);
    let events = full_of_bob.until(|event| event["phase"] == "Bobs").await;
    assert!(
        events.iter().all(|text| !text.contains("\"web\"") && !text.contains("previousPhase")),
        "expected no value of the first tenant, found: {events:?}"
    );
    for (path, headers) in [("/api/v1/instances/alice-pod", &alice), ("/api/v1/instances/mark", &bob)] {
        assert_eq!(request(bridge.address, "GET", path, headers).await.status, 404, "{path}");
    }
}
