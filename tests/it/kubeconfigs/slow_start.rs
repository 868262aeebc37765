//! A credential plugin or an API server that does not answer while the binary starts.

use std::time::Duration;

use serde_json::json;

use crate::support::{bridge_process::BridgeProcess, http_client, sim_cluster::NAMESPACE};

/// How long the binary may take to end after SIGTERM. Nothing is drained.
const END_BOUND: Duration = Duration::from_secs(10);

/// Starts the binary with a server that accepts connections and does not answer, and this user.
async fn start(user: &serde_json::Value) -> (BridgeProcess, tempfile::TempDir, tokio::net::TcpListener) {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let server = format!("https://{}", silent.local_addr().unwrap());
    let kubeconfig = json!({
        "current-context": "home",
        "clusters": [{"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
        "contexts": [{"name": "home", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": user}],
    });
    let path = dir.path().join("config");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let bridge = BridgeProcess::start(&path.to_string_lossy(), NAMESPACE, &[]).await;
    (bridge, dir, silent)
}

/// `/livez` is 200, `/readyz` is 503 with this reason, the log has this line, and SIGTERM ends the process.
async fn check(mut bridge: BridgeProcess, reason: &str, log: &str) {
    assert_eq!(http_client::get(bridge.address, "/livez").await.status, 200);
    let ready = http_client::get(bridge.address, "/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains(reason), "{}", ready.body);
    bridge.wait_for_log(log).await;
    bridge.signal("TERM").await;
    let status = bridge.ended(END_BOUND).await;
    assert!(status.success(), "{status}: {:#?}", bridge.log());
}

#[tokio::test]
async fn bridge_with_a_plugin_that_hangs_listens_and_reports_what_it_waits_for() {
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sleep", "args": ["3600"], "interactiveMode": "Never",
    });
    let (bridge, _dir, _silent) = start(&json!({ "exec": exec })).await;
    bridge.wait_for_log("waiting for the credential plugin of the kubeconfig").await;
    let reason = "waiting for the credential plugin of the kubeconfig";
    check(bridge, reason, "user `u`: exec: the credential plugin has not ended yet").await;
}

#[tokio::test]
async fn bridge_with_a_silent_api_server_listens_and_reports_what_it_waits_for() {
    let (bridge, _dir, _silent) = start(&json!({"token": "a"})).await;
    check(bridge, "waiting for the first answer of the API server", "waiting for an answer of the API server").await;
}
