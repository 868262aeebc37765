//! The permissions in `deploy/rbac.yaml` are exactly those that the bridge uses, according to the audit log of the API
//! server (docs/guarantees.md#security-rules).

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use boilerhouse_bridge::test_support::PodBuilder;
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
/// The manifest that users apply.
const MANIFEST: &str = include_str!("../../deploy/rbac.yaml");
/// The Namespace that the manifest names.
const MANIFEST_NAMESPACE: &str = "boilerhouse";
/// The name of the ServiceAccount in the manifest.
const ACCOUNT: &str = "boilerhouse-bridge";

/// Returns the objects of `deploy/rbac.yaml` for another Namespace.
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

/// A permission for one verb: API group, resource with subresource, verb; the Namespace; and the name of the object, if
/// the request or the rule has one.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    access: (String, String, String),
    namespace: String,
    name: String,
}

/// Returns the permissions that this user has used, and the audit entries of its denied requests. Denials within
/// `starting` are ignored: an API server that is not ready has no roles yet and denies all requests for tens of
/// milliseconds.
fn used_permissions(
    plane: &ControlPlane,
    username: &str,
    starting: &Range<Timestamp>,
) -> (BTreeSet<Permission>, Vec<Value>) {
    let log = std::fs::read_to_string(plane.audit_log()).unwrap();
    // The last line may be incomplete.
    let complete = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
    let entries = complete.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut denied = Vec::new();
    let mut all = BTreeSet::new();
    for entry in entries.filter(|entry| entry["user"]["username"] == username) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &entry["objectRef"];
        // A request that is not for a resource has only a path.
        let mut resource = if object.is_null() { text(&entry["requestURI"]) } else { text(&object["resource"]) };
        if let Some(part) = object["subresource"].as_str() {
            resource = format!("{resource}/{part}");
        }
        let access = (text(&object["apiGroup"]), resource, text(&entry["verb"]));
        all.insert(Permission { access, namespace: text(&object["namespace"]), name: text(&object["name"]) });
        let received: Timestamp = entry["requestReceivedTimestamp"].as_str().unwrap().parse().unwrap();
        if entry["responseStatus"]["code"] == 403 && !starting.contains(&received) {
            denied.push(entry);
        }
    }
    (all, denied)
}

/// Returns the permissions that the manifest grants, one for each resource, verb and object name.
fn granted_permissions(namespace: &str) -> BTreeSet<Permission> {
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
                    let access = (group.clone(), resource.clone(), verb);
                    let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
                    all.extend(names.iter().map(|name| Permission {
                        access: access.clone(),
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

async fn create_pod(plane: &ControlPlane, namespace: &str, name: &str) {
    let pod = PodBuilder::new(name).json();
    plane.call(http::Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
}

/// The test causes every kind of request of the bridge: the first lists and watches, dedicated watchers, reviews of
/// valid and invalid tokens, a resume from before the log, and a restart of the API server.
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
    let cursor = sse.event().await.id.expect("expected an id of the initial state");
    for name in ["a", "b"] {
        create_pod(&plane, &namespace, name).await;
    }
    sse.until(|event| event["name"] == "b").await;
    drop((sse, first));

    let bridge = start().await;
    let mut dedicated = WsClient::connect(bridge.address, "/ws").await;
    dedicated.until(|event| event["name"] == "b").await;
    let path = format!("/api/sse?lastEventId={cursor}");
    let mut resumed = SseClient::open(bridge.address, &path, &authorization).await;
    let backfilled = resumed.until(|event| event["name"] == "b").await;
    assert!(
        backfilled.iter().all(|event| event.json()["type"] != "state.initial"),
        "expected a backfill: {backfilled:?}"
    );
    let get = async |bearer: &str| {
        http_client::request(bridge.address, "GET", "/api/v1/instances", &[("Authorization", bearer)]).await.status
    };
    assert_eq!((get(&bearer).await, get("Bearer unknown").await), (200, 401));

    plane.kill_api_server();
    resumed.until(|event| event["type"] == "upstream.down").await;
    let killed = Timestamp::now();
    plane.start_api_server().await;
    let starting = killed..Timestamp::now();
    create_pod(&plane, &namespace, "c").await;
    resumed.until(|event| event["name"] == "c").await;
    dedicated.until(|event| event["name"] == "c").await;
    assert_eq!(get("Bearer also-unknown").await, 401);

    // The API server writes the audit log shortly after it answers.
    let end = Instant::now() + TEST_TIMEOUT;
    loop {
        let (used, denied) = used_permissions(&plane, &user_name(&namespace, ACCOUNT), &starting);
        assert_eq!(denied, Vec::<Value>::new(), "expected no denied request");
        if used == granted_permissions(&namespace) {
            break;
        }
        let more: Vec<_> = used.difference(&granted_permissions(&namespace)).map(|used| format!("{used:?}")).collect();
        assert!(more.is_empty(), "permissions that are used and not in the manifest: {more:#?}");
        assert!(Instant::now() < end, "expected the bridge to use all permissions of the manifest, found {used:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}
