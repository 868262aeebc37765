//! Objects with malformed fields (docs/protocol.md#objects, `source::decode`): the bridge publishes them without these
//! fields, counts the fields and lists them in `/readyz?verbose`. No watch ends.
//!
//! The real API server rejects such Pods, so they come from the simulator. Such claims come from both.

use std::net::SocketAddr;
use std::time::Duration;

use boilerhouse_bridge::sim::{
    ApiResource,
    fault::{ConnectionEnd, Fault, WatchFault},
};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{Cluster, POLL, claim, plane};
use crate::support::bridge_process::BridgeProcess;
use crate::support::http_client::{self, TEST_TIMEOUT, WsClient};
use crate::support::sim_cluster::{NAMESPACE, SimCluster};

/// Reads messages up to and including the first one about `last`.
async fn received(client: &mut WsClient, last: &str) -> Vec<Value> {
    let texts = client.until(|event| event["name"] == last).await;
    texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

/// Returns the informational lines of `/readyz?verbose`.
async fn readiness_info(address: SocketAddr) -> Vec<String> {
    let response = http_client::get(address, "/readyz?verbose").await;
    assert_eq!(response.status, 200, "malformed fields must not make the bridge unready: {}", response.body);
    response.body.lines().filter_map(|line| line.strip_prefix("[i] ")).map(str::to_owned).collect()
}

async fn state(address: SocketAddr, path: &str) -> Value {
    let response = http_client::get(address, path).await;
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    response.json()
}

/// Waits until the simulator serves four watches: two of the hub and two of a connection with dedicated watchers.
async fn wait_for_four_watches(cluster: &SimCluster) {
    let four_watches = timeout(TEST_TIMEOUT, async {
        while cluster.sim.metrics().open() != 4 {
            sleep(POLL).await;
        }
    });
    assert!(four_watches.await.is_ok(), "{} watches, expected 4", cluster.sim.metrics().open());
}

/// Returns the labels of a managed Pod of `alice`, with more members of any type.
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
    let bridge = simulated.bridge(&["--dedicated-watchers", "1"]).await;
    // The first client has dedicated watchers, the second one reads from the hub.
    let mut clients = [bridge.listen("/ws").await, bridge.listen("/ws").await];
    wait_for_four_watches(&simulated).await;

    create(
        ApiResource::Pods,
        "watched",
        managed(&json!({})),
        json!({}),
        json!({"phase": "Running", "podIP": "10.0.0.1"}),
    );
    patch(ApiResource::Pods, "watched", json!({"status": "a string", "metadata": {"annotations": [1]}}));
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
    for client in &mut clients {
        assert_eq!(received(client, "last-pod").await, pods);
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
    for client in &mut clients {
        assert_eq!(received(client, "last-claim").await, claims);
    }

    let listed = state(bridge.address, "/api/v1/instances/listed").await;
    let labels = managed(&json!({}));
    assert_eq!((&listed["labels"], &listed["ip"]), (&labels, &json!("10.0.0.2")), "{listed}");
    let metrics = http_client::get(bridge.address, "/metrics").await.body;
    let count = |field: &str| {
        let wanted = format!("bridge_upstream_malformed_fields_total{{resource=\"pods\",field=\"{field}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&wanted)?.parse::<u64>().ok())
    };
    // Only the hub counts: once for the list, and once for a change while the labels were still malformed.
    let counts = ["metadata.labels", "status.phase", "status.podIP", "status"].map(count);
    assert_eq!(counts, [Some(2), Some(1), Some(1), Some(1)], "{metrics}");
    let fields = [
        "pods: 5 odd fields: metadata.labels (2), status (1), status.phase (1), status.podIP (1)",
        "boilerhouseclaims: 14 odd fields: metadata.labels (4), spec (1), spec.tenantId (1), status.detail (2), \
         status.endpoint (4), status.source (2)",
    ];
    assert_eq!(readiness_info(bridge.address).await, fields);
    assert_eq!(sim.metrics().open(), 4, "open watches: malformed fields must not end a watch");
}

/// When each watch expires at once, the dedicated watcher lists again each time. The delays between the lists grow.
#[tokio::test]
async fn repeated_expiry_relists_with_growing_delays() {
    let simulated = SimCluster::new().await;
    let sim = simulated.sim();
    let bridge = simulated.bridge(&["--dedicated-watchers", "1"]).await;
    let mut client = bridge.listen("/ws").await;
    let lists = || http_client::metric(bridge.address, r#"bridge_dedicated_watcher_lists_total{resource="pods"}"#);
    wait_for_four_watches(&simulated).await;
    let before = lists().await;
    for _ in 0..100 {
        sim.arm(Fault::watch(0, WatchFault::Expired).on(ApiResource::Pods));
    }
    let started = Instant::now();
    sim.cut_watches(ConnectionEnd::Eof);
    // The delays are 0.1 s, 0.2 s, 0.4 s and so on, so the fifth list starts after 1.5 s at the earliest, the sixth
    // after 3.1 s.
    let count = timeout(TEST_TIMEOUT, async {
        loop {
            let count = lists().await - before;
            if count >= 5 {
                return count;
            }
            sleep(POLL).await;
        }
    });
    let (count, elapsed) = (count.await.expect("fewer than 5 lists after the watches expired"), started.elapsed());
    let min_delay = Duration::from_millis(100) * ((1 << (count - 1)) - 1);
    assert!(elapsed >= min_delay, "{count} lists within {elapsed:?}, at least {min_delay:?} expected");
    let metadata = json!({"name": "a", "namespace": NAMESPACE});
    let claim = json!({"metadata": metadata, "spec": {"tenantId": "alice"}, "status": {"phase": "Active"}});
    sim.store(|store| store.create(ApiResource::Claims, claim)).unwrap();
    assert_eq!(client.json().await["name"], "a");
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
    let bridge = BridgeProcess::serve(&plane, &cluster.namespace, &["--dedicated-watchers", "1"]).await;
    let mut clients = [bridge.listen("/ws").await, bridge.listen("/ws").await];
    create("watched", json!([1]), json!({"phase": "Active", "source": 5})).await;
    cluster.claim_status("watched", &json!("a string")).await;
    create("last", json!({"tenantId": "bob", "workloadRef": "web"}), json!({"phase": "Active"})).await;
    let expected = [
        json!({"type": "tenant.claimed", "name": "listed", "workloadRef": "web"}),
        json!({"type": "tenant.claimed", "name": "watched"}),
        json!({"type": "tenant.claimed", "name": "last", "tenantId": "bob", "workloadRef": "web"}),
    ];
    for client in &mut clients {
        assert_eq!(received(client, "last").await, expected);
    }
    let lines = readiness_info(bridge.address).await;
    assert!(lines.len() == 1 && lines[0].starts_with("boilerhouseclaims: "), "{lines:?}");
    for field in ["spec (", "spec.tenantId (", "status (", "status.endpoint (", "status.source ("] {
        assert!(lines[0].contains(field), "{field}: {lines:?}");
    }
}
