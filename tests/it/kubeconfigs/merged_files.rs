//! Several files in `KUBECONFIG`: kubectl and the binary merge them to the same configuration.

use serde_json::{Value, json};

use crate::support::{
    bridge_process::BridgeProcess,
    control_plane::{ADMIN_TOKEN, ControlPlane},
};

/// The fields of the first file and of the second file, and whether both work together.
fn pairs(cluster: &Value) -> Vec<(&'static str, [Value; 2], bool)> {
    let named = |name: &str, field: &str, value: &Value| json!([{"name": name, field: value}]);
    let clusters = named("c", "cluster", cluster);
    let contexts = named("home", "context", &json!({"cluster": "c", "user": "u"}));
    let users = named("u", "user", &json!({"token": ADMIN_TOKEN}));
    let others = named("u", "user", &json!({"token": "wrong"}));
    let part =
        |users: &Value| json!({"current-context": "home", "clusters": clusters, "contexts": contexts, "users": users});
    vec![
        (
            "each file has a part",
            [
                json!({"clusters": clusters, "kind": "Config"}),
                json!({"current-context": "home", "contexts": contexts, "users": users}),
            ],
            true,
        ),
        ("the first user of a name counts", [part(&users), part(&others)], true),
        ("the first user of a name counts, although it is wrong", [part(&others), part(&users)], false),
        (
            "an empty current context does not count",
            [json!({"current-context": "", "users": users}), part(&others)],
            true,
        ),
        (
            "a user of the first file is not completed by the second",
            [part(&named("u", "user", &json!({"as": "jane"}))), part(&users)],
            false,
        ),
    ]
}

#[tokio::test]
async fn kubectl_and_the_bridge_merge_kubeconfig_files_alike() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    let kubeconfig: Value = serde_json::from_slice(&std::fs::read(plane.kubeconfig()).unwrap()).unwrap();
    for (name, files, works) in pairs(&kubeconfig["clusters"][0]["cluster"]) {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["one", "missing", "two"].map(|name| dir.path().join(name).to_string_lossy().into_owned());
        std::fs::write(&paths[0], files[0].to_string()).unwrap();
        std::fs::write(&paths[2], files[1].to_string()).unwrap();
        let joined = format!(":{}", paths.join(":"));
        let kubectl = plane.kubectl_with(&["-n", &namespace, "get", "pods"], "", &joined).await;
        assert_eq!(kubectl.is_ok(), works, "{name}: {kubectl:?}");
        let args = ["serve", "--port", "0", "--namespace", &namespace];
        let bridge = BridgeProcess::run_with(&args, &[("KUBECONFIG", &joined)]).await;
        if works {
            bridge.wait_ready().await;
        } else {
            bridge.wait_for_log("request failed").await;
        }
    }
}
