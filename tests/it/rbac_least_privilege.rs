//! What the bridge may do in a cluster, and what it does there: the same, by the API server's own audit log.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{
    accounts::{Accounts, REQUIRED_ACCESS, RbacSubject, user_name},
    bridge_process::BridgeProcess,
    control_plane::{ControlPlane, Options},
    http_client::{self, TEST_TIMEOUT, WsClient},
    sse_client::SseClient,
};

const AUDIENCE: &str = "boilerhouse-bridge";
/// The manifest that the documentation tells people to apply.
const MANIFEST: &str = include_str!("../../deploy/rbac.yaml");
/// The Namespace that the manifest names.
const MANIFEST_NAMESPACE: &str = "boilerhouse";
/// The name of the ServiceAccount in the manifest.
const ACCOUNT: &str = "boilerhouse-bridge";

/// The objects of `deploy/rbac.yaml`, for another Namespace.
fn manifest(namespace: &str) -> Vec<Value> {
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
    let mut replaced = 0;
    for object in &mut objects {
        replace_text(object, MANIFEST_NAMESPACE, namespace, &mut replaced);
    }
    assert_eq!(replaced, 6, "the manifest names its Namespace in three objects, one rule and two subjects");
    objects
}

fn replace_text(value: &mut Value, old: &str, new: &str, count: &mut usize) {
    match value {
        Value::String(text) if text == old => {
            *text = new.to_owned();
            *count += 1;
        }
        Value::Array(items) => items.iter_mut().for_each(|item| replace_text(item, old, new, count)),
        Value::Object(fields) => fields.values_mut().for_each(|field| replace_text(field, old, new, count)),
        _ => {}
    }
}

/// Creates the objects of the manifest.
async fn grant(plane: &ControlPlane, namespace: &str) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": manifest(namespace)});
    plane.kubectl(&["create", "-f", "-"], &list.to_string()).await.unwrap();
}

/// One request of the bridge, as the audit log tells of it: group, resource with subresource, verb, where (a Namespace by
/// its name), and how it was answered.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Used {
    right: (String, String, String),
    namespace: String,
    name: String,
}

/// What this user has asked for, and what was refused of it, but for what was asked within `starting`: an API server that is
/// not ready yet does not know its roles, and refuses for tens of milliseconds what anybody asks.
fn used(plane: &ControlPlane, username: &str, starting: &Range<Timestamp>) -> (BTreeSet<Used>, Vec<Value>) {
    let log = std::fs::read_to_string(plane.audit_log()).unwrap();
    // The last line may still be in the making.
    let whole = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
    let entries = whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut refused = Vec::new();
    let mut all = BTreeSet::new();
    for entry in entries.filter(|entry| entry["user"]["username"] == username) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &entry["objectRef"];
        // What is no resource is told by its path.
        let mut resource = if object.is_null() { text(&entry["requestURI"]) } else { text(&object["resource"]) };
        if let Some(part) = object["subresource"].as_str() {
            resource = format!("{resource}/{part}");
        }
        let right = (text(&object["apiGroup"]), resource, text(&entry["verb"]));
        all.insert(Used { right, namespace: text(&object["namespace"]), name: text(&object["name"]) });
        let at: Timestamp = entry["requestReceivedTimestamp"].as_str().unwrap().parse().unwrap();
        if entry["responseStatus"]["code"] == 403 && !starting.contains(&at) {
            refused.push(entry);
        }
    }
    (all, refused)
}

/// What the manifest grants, one entry for each resource and verb.
fn granted(namespace: &str) -> BTreeSet<Used> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|item| item.as_str().unwrap().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for role in manifest(namespace) {
        for rule in role["rules"].as_array().into_iter().flatten() {
            let mut names = texts(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for (group, resource) in texts(&rule["apiGroups"]).iter().zip(texts(&rule["resources"])) {
                for verb in texts(&rule["verbs"]) {
                    let right = (group.clone(), resource.clone(), verb);
                    let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
                    all.extend(names.iter().map(|name| Used {
                        right: right.clone(),
                        namespace: namespace.clone(),
                        name: name.clone(),
                    }));
                }
            }
        }
    }
    assert_eq!(all.len(), 7, "{all:#?}");
    all
}

async fn pod(plane: &ControlPlane, namespace: &str, name: &str) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"boilerhouse.dev/managed": "true"}},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    });
    plane.call(http::Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
}

/// Everything that makes the bridge ask the API server for something: its first lists and watches, its own watchers for a
/// socket, tokens good and bad, a resume from before its log, an API server that is gone and back.
#[tokio::test]
async fn used_permissions_equal_granted_permissions() {
    let mut plane = ControlPlane::start_with(&Options { audit: true, ..Options::default() }).await;
    let namespace = plane.namespace().await;
    let accounts = Accounts::Real(&plane);
    grant(&plane, &namespace).await;
    accounts.create_account(&namespace, "reader").await;
    accounts.bind(&namespace, RbacSubject::Account("reader"), &REQUIRED_ACCESS).await;
    let bearer = format!("Bearer {}", accounts.create_token(&namespace, "reader", &[AUDIENCE]).await);
    let authorization = [("Authorization", bearer.as_str())];
    let kubeconfig = plane.kubeconfig_of(&accounts.create_token(&namespace, ACCOUNT, &[]).await);
    let kubeconfig = kubeconfig.to_string_lossy().into_owned();
    let start = async || {
        let bridge = BridgeProcess::start(&kubeconfig, &namespace, &["--token-audience", AUDIENCE]).await;
        bridge.wait_ready().await;
        bridge
    };

    let first = start().await;
    let mut sse = SseClient::open(first.address, "/api/sse", &authorization).await;
    let cursor = sse.event().await.id.expect("the state has an id");
    for name in ["a", "b"] {
        pod(&plane, &namespace, name).await;
    }
    sse.until(|event| event["name"] == "b").await;
    drop((sse, first));

    let bridge = start().await;
    let mut own = WsClient::connect(bridge.address, "/ws").await;
    own.until(|event| event["name"] == "b").await;
    let path = format!("/api/sse?lastEventId={cursor}");
    let mut resumed = SseClient::open(bridge.address, &path, &authorization).await;
    let missed = resumed.until(|event| event["name"] == "b").await;
    assert!(missed.iter().all(|event| event.json()["type"] != "state.initial"), "from the past: {missed:?}");
    let ask = async |bearer: &str| {
        http_client::request(bridge.address, "GET", "/api/v1/instances", &[("Authorization", bearer)]).await.status
    };
    assert_eq!((ask(&bearer).await, ask("Bearer nobodys").await), (200, 401));

    plane.kill_api_server();
    resumed.until(|event| event["type"] == "upstream.down").await;
    let down = Timestamp::now();
    plane.start_api_server().await;
    let starting = down..Timestamp::now();
    pod(&plane, &namespace, "c").await;
    resumed.until(|event| event["name"] == "c").await;
    own.until(|event| event["name"] == "c").await;
    assert_eq!(ask("Bearer nobodys-either").await, 401);

    // The log is written a little later than the answers.
    let end = Instant::now() + TEST_TIMEOUT;
    loop {
        let (used, refused) = used(&plane, &user_name(&namespace, ACCOUNT), &starting);
        assert_eq!(refused, Vec::<Value>::new(), "asked for what it may not");
        if used == granted(&namespace) {
            break;
        }
        let more: Vec<_> = used.difference(&granted(&namespace)).map(|used| format!("{used:?}")).collect();
        assert!(more.is_empty(), "used, and not granted by the table: {more:#?}");
        assert!(Instant::now() < end, "granted, and not used: {used:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}
