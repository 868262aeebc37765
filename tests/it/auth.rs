//! Tests of authentication, authorization and rate limits (docs/protocol.md#access, docs/protocol.md#errors).

mod access_matrix;
mod anonymous_streams;
mod api_keys_and_sessions;
mod expiry_and_revocation;
mod forwarded_headers;
mod guessed_tokens;
mod kubernetes_tokens;
mod rate_limits;
mod secrets_are_never_printed;
mod tenant_isolation_binary;
mod tenant_isolation_feed;
mod tenant_reassignment;
mod tenant_telemetry;

use std::fmt::Write as _;

use boilerhouse_bridge::sim::ApiResource;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{WsClient, request},
    sim_cluster::{NAMESPACE, SimCluster},
};

/// A keys file that a test replaces while a bridge reads it.
struct KeysFile(tempfile::TempDir);

impl KeysFile {
    fn new(keys: &[Value]) -> KeysFile {
        let file = KeysFile(tempfile::tempdir().unwrap());
        file.write(keys);
        file
    }

    fn path(&self) -> String {
        self.0.path().join("keys.yaml").to_string_lossy().into_owned()
    }

    /// Replaces the file atomically, as an editor or the volume of a Secret does.
    fn write(&self, keys: &[Value]) {
        self.write_text(&json!({ "keys": keys }).to_string());
    }

    fn write_text(&self, text: &str) {
        let next = self.0.path().join("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, self.path()).unwrap();
    }
}

/// Returns the secret of the API key with this name.
fn secret(name: &str) -> String {
    format!("the-secret-of-{name}-0123456789")
}

/// Returns the entry of a key in the keys file, with the additional members `more`.
fn key(name: &str, more: &Value) -> Value {
    let mut entry = json!({ "name": name, "sha256": sha256(&secret(name)) });
    for (key, value) in more.as_object().into_iter().flatten() {
        entry[key] = value.clone();
    }
    entry
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// Returns the value of an `Authorization` header with the key of this name.
fn bearer(name: &str) -> String {
    format!("Bearer {}", secret(name))
}

/// Returns a key for all tenants, a key for the tenant `alice`, and a key without the permission `read`.
fn three_keys() -> Vec<Value> {
    vec![
        key("all", &Value::Null),
        key("alice", &json!({"tenantId": "alice"})),
        key("blind", &json!({"access": ["ingest"]})),
    ]
}

/// Starts a cluster with one Pod and one claim of each of the tenants `alice` and `bob`.
///
/// The Pods have no status, so their phase is `Unknown`. `PodBuilder` always sets a phase.
async fn two_tenants() -> SimCluster {
    let cluster = SimCluster::new().await;
    cluster.sim.store(|store| {
        for tenant in ["alice", "bob"] {
            let labels = json!({
                "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web",
                "boilerhouse.dev/pool-status": "acquired", "boilerhouse.dev/tenant": tenant,
            });
            let name = format!("{tenant}-pod");
            let pod = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
            store.create(ApiResource::Pods, pod).unwrap();
            let claim = json!({
                "metadata": {"name": format!("{tenant}-claim"), "namespace": NAMESPACE},
                "spec": {"tenantId": tenant, "workloadRef": "web"},
                "status": {"phase": "Active", "instanceId": name},
            });
            store.create(ApiResource::Claims, claim).unwrap();
        }
    });
    cluster
}

/// Requests a stream ticket with the key of this name.
async fn ticket(bridge: &BridgeProcess, name: &str) -> String {
    let response = request(bridge.address, "POST", "/api/v1/tickets", &[("Authorization", &bearer(name))]).await;
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()["ticket"].as_str().unwrap().to_owned()
}

/// Signs in with the key of this name. Returns the session cookie as `name=value`.
async fn cookie(bridge: &BridgeProcess, name: &str) -> String {
    let response = request(bridge.address, "POST", "/api/v1/session", &[("Authorization", &bearer(name))]).await;
    assert_eq!(response.status, 200, "{}", response.body);
    let cookie = response.header("set-cookie").unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

/// Requests a WebSocket upgrade. Returns the status: 101, or that of the rejection.
async fn upgrade_status(bridge: &BridgeProcess, path: &str, headers: &[(&str, &str)]) -> u16 {
    WsClient::with(bridge.address, path, headers).await.err().unwrap_or(101)
}
