//! The key of a tenant posts and reads the telemetry of its own instances only.

use serde_json::{Value, json};

use super::{KeysFile, bearer, key, two_tenants};
use crate::{
    support::{
        bridge_process::BridgeProcess,
        http_client::{WsClient, request},
    },
    telemetry::{body, path, send},
};

async fn stored(bridge: &BridgeProcess, name: &str) -> Vec<String> {
    let answer = request(bridge.address, "GET", "/v1/tunnels/telemetry", &[("Authorization", &bearer(name))]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json().as_array().unwrap().iter().map(|snapshot| snapshot["region"].as_str().unwrap().to_owned()).collect()
}

async fn open(bridge: &BridgeProcess, name: &str) -> WsClient {
    let headers = [("Authorization", bearer(name))];
    let headers = headers.each_ref().map(|(header, value)| (*header, value.as_str()));
    let mut stream =
        WsClient::with(bridge.address, "/api/websocket?snapshot=none&types=telemetry", &headers).await.unwrap();
    assert_eq!(stream.json().await["type"], "heartbeat");
    stream
}

#[tokio::test]
async fn tenant_key_posts_and_reads_its_own_telemetry_only() {
    let keys = [
        key("all", &json!({"access": ["read", "ingest"]})),
        key("alice", &json!({"tenantId": "alice", "access": ["read", "ingest"]})),
        key("bob", &json!({"tenantId": "bob", "access": ["read", "ingest"]})),
        key("alice-agent", &json!({"tenantId": "alice", "access": ["ingest"]})),
        key("reader", &json!({"access": ["read"]})),
    ];
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&keys));
    let bridge = cluster.bridge(&["--keys-file", &keys.path()]).await;
    let instances = request(bridge.address, "GET", "/api/v1/instances", &[("Authorization", &bearer("all"))]).await;
    let uid = |name: &str| {
        let instances = instances.json();
        let found = instances.as_array().unwrap().iter().find(|instance| instance["name"] == name).cloned();
        found.unwrap()["uid"].as_str().unwrap().to_owned()
    };
    let (alice, bob) = (uid("alice-pod"), uid("bob-pod"));
    let mut streams = Vec::new();
    for name in ["all", "alice", "bob"] {
        streams.push(open(&bridge, name).await);
    }
    let post = async |name: &str, uid: &str, region: &str| {
        let mut body = body();
        body["region"] = json!(region);
        let headers = [("Content-Type", "application/json"), ("Authorization", &bearer(name))];
        let answer = send(bridge.address, &path(uid), &headers, body.to_string().as_bytes()).await;
        (answer.status, answer.json())
    };
    let absent = post("alice", "01234567-89ab-cdef-0123-456789abcdef", "x").await;
    assert_eq!(absent.0, 404);
    // Key, instance, status. The instance of another tenant is answered as one that does not exist.
    for (name, uid, region, status) in [
        ("alice", &bob, "wrong-1", 404),
        ("alice-agent", &bob, "wrong-2", 404),
        ("bob", &alice, "wrong-3", 404),
        ("reader", &alice, "wrong-4", 403),
        ("alice", &alice, "a-1", 200),
        ("bob", &bob, "b-1", 200),
        ("alice-agent", &alice, "a-2", 200),
        ("all", &bob, "b-2", 200),
    ] {
        let (found, answer) = post(name, uid, region).await;
        assert_eq!(found, status, "{name} {region}: {answer}");
        if status == 404 {
            assert_eq!(answer, absent.1, "{name} {region}");
        }
    }
    let mut sorted = stored(&bridge, "all").await;
    sorted.sort_unstable();
    assert_eq!(sorted, ["a-2", "b-2"]);
    assert_eq!(stored(&bridge, "alice").await, ["a-2"]);
    assert_eq!(stored(&bridge, "bob").await, ["b-2"]);
    assert_eq!(stored(&bridge, "reader").await.len(), 2);
    let agent = [("Authorization", bearer("alice-agent"))];
    let agent = agent.each_ref().map(|(header, value)| (*header, value.as_str()));
    assert_eq!(request(bridge.address, "GET", "/v1/tunnels/telemetry", &agent).await.status, 403, "it may not read");
    let expected: [&[&str]; 3] = [&["a-1", "b-1", "a-2", "b-2"], &["a-1", "a-2"], &["b-1", "b-2"]];
    for (stream, expected) in streams.iter_mut().zip(expected) {
        let mut found: Vec<Value> = Vec::new();
        while found.len() < expected.len() {
            let event = stream.json().await;
            if event["type"] == "telemetry" {
                found.push(event["region"].clone());
            }
        }
        assert_eq!(found, expected);
    }

    // An instance that moves to another tenant takes its telemetry with it.
    let labels = json!({"metadata": {"labels": {"boilerhouse.dev/tenant": "bob"}}});
    cluster
        .sim
        .store(|store| {
            store.patch(
                boilerhouse_bridge::sim::ApiResource::Pods,
                crate::support::sim_cluster::NAMESPACE,
                "alice-pod",
                &labels,
            )
        })
        .unwrap();
    crate::support::http_client::poll_until_async(async || stored(&bridge, "alice").await.is_empty().then_some(()))
        .await;
    assert_eq!(stored(&bridge, "bob").await.len(), 2);
}
