//! Objects with fields of a wrong type (docs/protocol.md#objects, source/project): shown without them, counted, told of in
//! `/readyz?verbose`, and nothing else happens. The real API server refuses such Pods, so they come from the simulator;
//! such claims come from both.

use std::net::SocketAddr;
use std::time::Duration;

use boilerhouse_bridge::sim::{
    ApiResource,
    fault::{ConnectionEnd, Fault, WatchFault},
};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{Cluster, POLL, claim, plane};
use crate::support::bridge_process::BridgeProcess;
use crate::support::http_client::{self, TEST_TIMEOUT, WsClient};
use crate::support::sim_cluster::SimCluster;

/// The namespace that a simulator begins with.
const NAMESPACE: &str = "boilerhouse";

/// Messages up to the one about `last`, as they came.
async fn received(listener: &mut WsClient, last: &str) -> Vec<Value> {
    let texts = listener.until(|event| event["name"] == last).await;
    texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// Lines of `/readyz?verbose` that are for information.
async fn verbose(address: SocketAddr) -> Vec<String> {
    let answer = http_client::get(address, "/readyz?verbose").await;
    assert_eq!(answer.status, 200, "odd objects do not make a bridge unready: {}", answer.body);
    answer.body.lines().filter_map(|line| line.strip_prefix("[i] ")).map(str::to_owned).collect()
}

async fn state(address: SocketAddr, path: &str) -> Value {
    let answer = http_client::get(address, path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer.json()
}

fn managed(more: &Value) -> Value {
    let mut labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/tenant": "alice"});
    labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    labels
}

#[tokio::test]
async fn malformed_fields_are_omitted_from_objects() {
    let simulated = SimCluster::new().await;
    let sim = simulated.sim();
    let create = |resource, name: &str, labels: Value, spec: Value, status: Value| {
        let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        sim.store(|store| store.create(resource, object)).unwrap();
    };
    let patch = |resource, name: &str, patch: Value| {
        sim.store(|store| store.patch(resource, NAMESPACE, name, &patch)).unwrap();
    };
    create(ApiResource::Pods, "listed", managed(&json!({"n": 5})), json!({}), json!({"phase": 7, "podIP": false}));
    let status = json!({"phase": "Active", "source": ["pool"], "endpoint": {"host": "h", "port": "80"}});
    create(ApiResource::Claims, "listed", Value::Null, json!({"tenantId": 7, "workloadRef": "web"}), status);
    let bridge = simulated.bridge(&["--own-watchers", "1"]).await;
    // The first has watchers of its own, the second reads the hub's.
    let mut listeners = [bridge.listen("/ws").await, bridge.listen("/ws").await];
    // The hub's, and those of the first.
    let both = timeout(TEST_TIMEOUT, async {
        while sim.metrics().open() != 4 {
            sleep(POLL).await;
        }
    });
    both.await.expect("four watches");

    create(
        ApiResource::Pods,
        "watched",
        managed(&json!({})),
        json!({}),
        json!({"phase": "Running", "podIP": "10.0.0.1"}),
    );
    patch(ApiResource::Pods, "watched", json!({"status": "gone mad", "metadata": {"annotations": [1]}}));
    patch(ApiResource::Pods, "watched", json!({"status": {"phase": "Failed", "podIP": "10.0.0.1"}}));
    patch(ApiResource::Pods, "listed", json!({"status": {"phase": "Running", "podIP": "10.0.0.2"}}));
    create(ApiResource::Pods, "last-pod", managed(&json!({})), json!({}), json!({}));
    let pods = [
        json!({"type": "instance.state", "name": "listed", "phase": "Unknown", "tenantId": "alice"}),
        json!({"type": "tenant.claimed", "name": "listed", "workloadRef": "web"}),
        json!({"type": "instance.state", "name": "watched", "phase": "Running", "tenantId": "alice"}),
        json!({"type": "instance.state", "name": "watched", "phase": "Unknown", "tenantId": "alice"}),
        json!({"type": "instance.state", "name": "watched", "phase": "Failed", "tenantId": "alice"}),
        json!({"type": "instance.state", "name": "listed", "phase": "Running", "tenantId": "alice"}),
        json!({"type": "instance.state", "name": "last-pod", "phase": "Unknown", "tenantId": "alice"}),
    ];
    for listener in &mut listeners {
        assert_eq!(received(listener, "last-pod").await, pods);
    }

    patch(ApiResource::Claims, "listed", json!({"spec": "none", "status": {"phase": "Active"}}));
    patch(
        ApiResource::Claims,
        "listed",
        json!({"spec": {"tenantId": "alice"}, "status": {"detail": 1, "source": "cold"}}),
    );
    patch(ApiResource::Claims, "listed", json!({"status": {"phase": "Released"}}));
    create(ApiResource::Claims, "last-claim", json!({}), json!({"tenantId": "bob"}), json!({"phase": "Active"}));
    let claims = [
        json!({"type": "tenant.released", "name": "listed", "tenantId": "alice"}),
        json!({"type": "tenant.claimed", "name": "last-claim", "tenantId": "bob"}),
    ];
    for listener in &mut listeners {
        assert_eq!(received(listener, "last-claim").await, claims);
    }

    let listed = state(bridge.address, "/api/v1/instances/listed").await;
    let labels = managed(&json!({}));
    assert_eq!((&listed["labels"], &listed["ip"]), (&labels, &json!("10.0.0.2")), "{listed}");
    let metrics = http_client::get(bridge.address, "/metrics").await.body;
    let count = |field: &str| {
        let wanted = format!("bridge_upstream_malformed_fields_total{{resource=\"pods\",field=\"{field}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&wanted)?.parse::<u64>().ok())
    };
    // The hub's own count: the list, and one change in which the labels were still odd.
    let counts = ["metadata.labels", "status.phase", "status.podIP", "status"].map(count);
    assert_eq!(counts, [Some(2), Some(1), Some(1), Some(1)], "{metrics}");
    let fields = [
        "pods: 5 odd fields: metadata.labels (2), status (1), status.phase (1), status.podIP (1)",
        "boilerhouseclaims: 14 odd fields: metadata.labels (4), spec (1), spec.tenantId (1), status.detail (2), \
         status.endpoint (4), status.source (2)",
    ];
    assert_eq!(verbose(bridge.address).await, fields);
    assert_eq!(sim.metrics().open(), 4, "no watch was ended for it");
}

/// A cluster whose watches expire at once, again and again: each time everything is listed, but ever more rarely.
#[tokio::test]
async fn repeated_expiry_relists_with_growing_delays() {
    let simulated = SimCluster::new().await;
    let sim = simulated.sim();
    let bridge = simulated.bridge(&["--own-watchers", "1"]).await;
    let mut listener = bridge.listen("/ws").await;
    let lists = || http_client::metric(bridge.address, r#"bridge_dedicated_watcher_lists_total{resource="pods"}"#);
    let both = timeout(TEST_TIMEOUT, async {
        while sim.metrics().open() != 4 {
            sleep(POLL).await;
        }
    });
    both.await.expect("four watches");
    let before = lists().await;
    for _ in 0..100 {
        sim.arm(Fault::watch(0, WatchFault::Expired).on(ApiResource::Pods));
    }
    sim.cut_watches(ConnectionEnd::Eof);
    // 0.1 s, 0.2 s, 0.4 s, 0.8 s: the fifth would come after 1.5 s at the soonest, the sixth after 3.1 s.
    sleep(Duration::from_secs(2)).await;
    let lists = lists().await - before;
    assert!((3..=5).contains(&lists), "{lists}");
    let metadata = json!({"name": "a", "namespace": NAMESPACE});
    let claim = json!({"metadata": metadata, "spec": {"tenantId": "alice"}, "status": {"phase": "Active"}});
    sim.store(|store| store.create(ApiResource::Claims, claim)).unwrap();
    assert_eq!(listener.json().await["name"], "a");
}

#[tokio::test]
async fn real_api_server_serves_claims_with_malformed_fields() {
    let plane = plane().await;
    let cluster = Cluster::new(&plane).await;
    let create = async |name: &str, spec: Value, status: Value| {
        cluster.call(Method::POST, &cluster.claims(), &claim(name, &json!({ "spec": spec }))).await;
        cluster.claim_status(name, &status).await;
    };
    let status = json!({"phase": "Active", "endpoint": "nowhere"});
    create("listed", json!({"tenantId": 7, "workloadRef": "web"}), status).await;
    let bridge = BridgeProcess::serve(&plane, &cluster.namespace, &["--own-watchers", "1"]).await;
    let mut listeners = [bridge.listen("/ws").await, bridge.listen("/ws").await];
    create("watched", json!([1]), json!({"phase": "Active", "source": 5})).await;
    cluster.claim_status("watched", &json!("asleep")).await;
    create("last", json!({"tenantId": "bob", "workloadRef": "web"}), json!({"phase": "Active"})).await;
    let expected = [
        json!({"type": "tenant.claimed", "name": "listed", "workloadRef": "web"}),
        json!({"type": "tenant.claimed", "name": "watched"}),
        json!({"type": "tenant.claimed", "name": "last", "tenantId": "bob", "workloadRef": "web"}),
    ];
    for listener in &mut listeners {
        assert_eq!(received(listener, "last").await, expected);
    }
    let lines = verbose(bridge.address).await;
    assert!(lines.len() == 1 && lines[0].starts_with("boilerhouseclaims: "), "{lines:?}");
    for field in ["spec (", "spec.tenantId (", "status (", "status.endpoint (", "status.source ("] {
        assert!(lines[0].contains(field), "{field}: {lines:?}");
    }
}
