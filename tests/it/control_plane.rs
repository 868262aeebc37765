//! Tests of the real control plane itself, and of the CRD of claims on it. The other tests depend on what is checked here.

use std::time::Duration;

use boilerhouse_bridge::test_support::ClaimBuilder;
use http::Request;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Client;
use kube::api::{Api, ListParams, PostParams, VersionMatch, WatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::control_plane::{CRD_FILE, ControlPlane, Options, UNPRIVILEGED_TOKEN};

/// How long the metrics of the API server may take to show that watches start and end, on a busy machine.
const WATCH_BOUND: Duration = Duration::from_secs(20);

fn claim(name: &str) -> Value {
    ClaimBuilder::new(name).tenant("acme").workload("counter").json()
}

#[test]
fn crd_file_matches_the_types() {
    let generated = boilerhouse_bridge::api::crd_yaml().unwrap();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(CRD_FILE, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(CRD_FILE).unwrap();
    assert_eq!(committed, generated, "the CRD file differs from the types; BLESS=1 cargo test rewrites it");
}

#[tokio::test]
async fn claim_with_a_wrong_type_is_rejected() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    let apply = ["-n", &namespace, "apply", "--validate=false", "-f", "-"];
    plane.kubectl(&apply, &claim("good").to_string()).await.unwrap();
    let mut bad = claim("bad");
    bad["spec"]["tenantId"] = json!(7);
    let error = plane.kubectl(&apply, &bad.to_string()).await.unwrap_err();
    assert!(error.contains("spec.tenantId"), "{error}");
    let status = r#"{"status": {"phase": "Asleep"}}"#;
    let patch = ["-n", &namespace, "patch", "bhc", "good", "--subresource=status", "--type=merge", "-p", status];
    let error = plane.kubectl(&patch, "").await.unwrap_err();
    assert!(error.contains("status.phase"), "{error}");
}

/// An operator can write null into an optional field. If the schema of the field is an enumeration, null is valid in a
/// merge patch only, where it removes the field.
#[tokio::test]
async fn optional_claim_fields_accept_null() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    plane.kubectl(&["-n", &namespace, "create", "-f", "-"], &claim("one").to_string()).await.unwrap();
    let patch = async |kind: &str, patch: Value| {
        let patch = patch.to_string();
        let args = ["-n", &namespace, "patch", "bhc", "one", "--subresource=status", "--type", kind, "-p", &patch];
        plane.kubectl(&args, "").await
    };
    let status = async || {
        let answer = plane.kubectl(&["-n", &namespace, "get", "bhc", "one", "-o", "json"], "").await.unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()["status"].clone()
    };
    let complete = json!({"phase": "Active", "source": "pool", "endpoint": {"host": "10.1.2.3", "port": 65535}});
    patch("merge", json!({"status": complete})).await.unwrap();
    assert_eq!(status().await, complete);
    let nulls = ["endpoint", "instanceId", "claimedAt", "detail"];
    let nulls = nulls.map(|field| json!({"op": "add", "path": format!("/status/{field}"), "value": null}));
    patch("json", json!(nulls)).await.unwrap();
    let expected = json!({
        "phase": "Active", "source": "pool", "endpoint": null, "instanceId": null, "claimedAt": null, "detail": null,
    });
    assert_eq!(status().await, expected);
    patch("merge", json!({"status": {"source": null}})).await.unwrap();
    assert_eq!(status().await.get("source"), None);
    for (field, bad) in [("source", json!("stolen")), ("endpoint", json!({"host": "a", "port": 65536}))] {
        let error = patch("merge", json!({"status": {field: bad}})).await.unwrap_err();
        assert!(error.contains(&format!("status.{field}")), "{error}");
    }
}

#[tokio::test]
async fn kubectl_prints_claim_columns() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    plane.kubectl(&["-n", &namespace, "create", "-f", "-"], &claim("one").to_string()).await.unwrap();
    let status = r#"{"status": {"phase": "Active", "endpoint": {"host": "10.1.2.3", "port": 80}}}"#;
    let patch = ["-n", &namespace, "patch", "bhc", "one", "--subresource=status", "--type=merge", "-p", status];
    plane.kubectl(&patch, "").await.unwrap();
    let table = plane.kubectl(&["-n", &namespace, "get", "bhc"], "").await.unwrap();
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "TENANT", "WORKLOAD", "PHASE", "ENDPOINT", "AGE"]);
    assert_eq!(rows[1][..5], ["one", "acme", "counter", "Active", "10.1.2.3"]);
}

#[tokio::test]
async fn rbac_is_enforced_and_service_account_tokens_work() {
    let plane = ControlPlane::shared().await;
    let unprivileged_client = Client::try_from(plane.config(UNPRIVILEGED_TOKEN).await).unwrap();
    let pods: Api<Pod> = Api::default_namespaced(unprivileged_client);
    assert_eq!(code(pods.list(&ListParams::default()).await), 403);
    // The API server signs a token with the key of the test's control plane, and accepts the token.
    let namespace = plane.namespace().await;
    plane.kubectl(&["-n", &namespace, "create", "serviceaccount", "reader"], "").await.unwrap();
    let token = plane.kubectl(&["-n", &namespace, "create", "token", "reader"], "").await.unwrap();
    let reader = Client::try_from(plane.config(token.trim()).await).unwrap();
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = Request::post(path)
        .body(br#"{"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}"#.to_vec());
    let answer: Value = reader.request(review.unwrap()).await.unwrap();
    assert_eq!(answer["status"]["userInfo"]["username"], format!("system:serviceaccount:{namespace}:reader"));
}

/// Written objects survive when either server is killed and started again. Exact lists at versions from before the
/// restart work until compaction, which the hub depends on.
#[tokio::test]
async fn etcd_and_api_server_recover_after_kill_9() {
    let options = Options { audit: true, compaction: Some(Duration::from_secs(3600)), ..Options::default() };
    let mut plane = ControlPlane::start_with(&options).await;
    let maps: Api<ConfigMap> = Api::namespaced(plane.client().await, &plane.namespace().await);
    maps.create(&PostParams::default(), &map("first")).await.unwrap();
    let version = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    maps.create(&PostParams::default(), &map("second")).await.unwrap();

    plane.kill_api_server();
    maps.list(&ListParams::default()).await.unwrap_err();
    plane.start_api_server().await;
    plane.kill_etcd();
    plane.start_etcd().await;
    let exact = ListParams::default().at(&version).matching(VersionMatch::Exact);
    let listed = maps.list(&exact).await.unwrap().items;
    let names: Vec<_> = listed.into_iter().map(|map| map.metadata.name.unwrap()).collect();
    assert_eq!(names, ["first"]);

    plane.compact().await;
    assert_eq!(code(maps.list(&exact).await), 410);
    let audit = std::fs::read_to_string(plane.audit_log()).unwrap();
    assert!(audit.contains("/configmaps"), "{audit}");
}

#[tokio::test]
async fn watch_count_matches_open_watches() {
    let plane = ControlPlane::shared().await;
    let client = plane.client().await;
    // No other test watches Leases.
    let leases: Api<Lease> = Api::namespaced(client, &plane.namespace().await);
    let before = plane.watches("leases").await;
    let version = leases.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let params = WatchParams::default();
    let watches = [(); 3].map(|()| leases.watch(&params, &version));
    let watches = futures::future::join_all(watches).await;
    assert!(watches.iter().all(Result::is_ok));
    wait_watches(plane, before + 3).await;
    drop(watches);
    wait_watches(plane, before).await;
}

async fn wait_watches(plane: &ControlPlane, expected: u64) {
    let end = Instant::now() + WATCH_BOUND;
    while plane.watches("leases").await != expected {
        assert!(Instant::now() < end, "expected {expected} watches of leases:\n{}", plane.metrics().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

/// Returns the HTTP status of an error response.
fn code<T>(answer: kube::Result<T>) -> u16 {
    match answer {
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("expected an error response"),
    }
}
