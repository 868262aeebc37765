//! Behaviors of objects: creation, writes and deletion.

use http::{Method, StatusCode};
use kube::Client;
use serde_json::json;

use super::client::*;

pub(super) async fn created_objects_have_identity(client: &Client, ns: &str) {
    let pod = create_pod(client, ns, "a", json!({"app": "web"})).await;
    assert_eq!(pod["kind"], "Pod");
    assert_eq!(pod["metadata"]["namespace"], ns);
    assert_eq!(pod["metadata"]["generation"], 1);
    assert_eq!(pod["metadata"]["uid"].as_str().unwrap().len(), 36);
    let created = pod["metadata"]["creationTimestamp"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    assert_eq!(pod["status"]["phase"], "Pending");
    let claim = create_claim(client, ns, "a").await;
    assert_eq!(claim.get("status"), None, "expected no status after the creation");
    assert!(version(&claim) > version(&pod));
    assert_ne!(claim["metadata"]["uid"], pod["metadata"]["uid"]);
    let (code, namespace) = get(client, &format!("/api/v1/namespaces/{ns}")).await;
    assert_eq!((code, namespace["kind"].as_str()), (StatusCode::OK, Some("Namespace")));
    assert_eq!(namespace["metadata"]["uid"].as_str().unwrap().len(), 36);
    let (_, read) = get(client, &pods(ns, "/a")).await;
    assert_eq!(read["metadata"]["uid"], pod["metadata"]["uid"]);
}

pub(super) async fn errors_are_status_objects(client: &Client, ns: &str) {
    let (code, status) = get(client, &pods(ns, "/none")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert_eq!(
        status,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
               "message": "pods \"none\" not found", "reason": "NotFound", "details": {"name": "none", "kind": "pods"}})
    );
    create_pod(client, ns, "a", json!({})).await;
    let (code, status) = post(client, &pods(ns, ""), pod("a", &json!({}))).await;
    assert_eq!((code, &status["reason"]), (StatusCode::CONFLICT, &json!("AlreadyExists")));
    assert_eq!(status["message"], "pods \"a\" already exists");
    let (code, status) = post(client, &pods("no-such-namespace", ""), pod("a", &json!({}))).await;
    assert_eq!((code, &status["reason"]), (StatusCode::NOT_FOUND, &json!("NotFound")));
    assert_eq!(status["message"], "namespaces \"no-such-namespace\" not found");
    let (code, status) = get(client, &claims(ns, "/none")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert_eq!(status["message"], "boilerhouseclaims.boilerhouse.dev \"none\" not found");
    let details = json!({"name": "none", "group": "boilerhouse.dev", "kind": "boilerhouseclaims"});
    assert_eq!(status["details"], details);
    let (code, text) = get(client, "/apis/boilerhouse.dev/v1alpha1/nothing").await;
    assert_eq!((code, text.as_str()), (StatusCode::NOT_FOUND, Some("404 page not found\n")), "expected plain text");
    let (code, _) = call(client, Method::POST, &pods(ns, "/a"), None).await;
    assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED);
}

pub(super) async fn every_write_increases_the_version(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({"app": "web", "tier": "x"})).await;
    let patch = json!({"metadata": {"labels": {"tier": null, "new": "yes"}}});
    let second = patched(client, &pods(ns, "/a"), &patch).await;
    assert!(version(&second) > version(&first));
    assert_eq!(second["metadata"]["labels"], json!({"app": "web", "new": "yes"}));
    assert_eq!(second["metadata"]["generation"], 1, "expected a change of labels to keep the generation");
    let third = patched(client, &pods(ns, "/a"), &patch).await;
    assert_eq!(version(&third), version(&second), "expected no write if nothing changes");
    let claim = create_claim(client, ns, "a").await;
    let changed = patched(client, &claims(ns, "/a"), &json!({"spec": {"resume": true}})).await;
    assert_eq!(changed["metadata"]["generation"], 2, "expected a change of the spec to raise the generation");
    assert!(version(&changed) > version(&claim));
}

pub(super) async fn stale_write_is_a_conflict(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    patched(client, &pods(ns, "/a"), &json!({"metadata": {"labels": {"x": "1"}}})).await;
    let stale = json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"], "labels": {"x": "2"}}});
    let (code, status) = patch(client, &pods(ns, "/a"), &stale).await;
    assert_eq!((code, &status["reason"]), (StatusCode::CONFLICT, &json!("Conflict")));
    let (code, status) = call(client, Method::PUT, &pods(ns, "/a"), Some(&first)).await;
    assert_eq!((code, &status["reason"]), (StatusCode::CONFLICT, &json!("Conflict")), "{status}");
    let (_, mut fresh) = get(client, &pods(ns, "/a")).await;
    fresh["metadata"]["labels"]["x"] = json!("3");
    let (code, updated) = call(client, Method::PUT, &pods(ns, "/a"), Some(&fresh)).await;
    assert_eq!((code, &updated["metadata"]["labels"]["x"]), (StatusCode::OK, &json!("3")));
    let (code, _) = patch(client, &pods(ns, "/a"), &json!({"metadata": {"uid": "another"}})).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let other = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    let (code, _) = call(client, Method::DELETE, &pods(ns, "/a"), Some(&other)).await;
    assert_eq!(code, StatusCode::CONFLICT);
}

pub(super) async fn status_is_a_separate_subresource(client: &Client, ns: &str) {
    create_pod(client, ns, "a", json!({})).await;
    let ignored = patched(client, &pods(ns, "/a"), &json!({"status": {"phase": "Running"}})).await;
    assert_eq!(ignored["status"]["phase"], "Pending");
    let running = patched(client, &pods(ns, "/a/status"), &json!({"status": {"phase": "Running"}})).await;
    assert_eq!(running["status"]["phase"], "Running");
    create_claim(client, ns, "a").await;
    let ignored = patched(client, &claims(ns, "/a"), &json!({"status": {"phase": "Active"}})).await;
    assert_eq!(ignored.get("status"), None);
    let with_other_fields =
        json!({"status": {"phase": "Active"}, "spec": {"tenantId": "eve"}, "metadata": {"labels": {"x": "y"}}});
    let active = patched(client, &claims(ns, "/a/status"), &with_other_fields).await;
    assert_eq!(active["status"], json!({"phase": "Active"}));
    assert_eq!(active["spec"]["tenantId"], "alice");
    assert_eq!(active["metadata"].get("labels"), None);
    assert_eq!(active["metadata"]["generation"], 1, "expected a change of the status to keep the generation");
}

pub(super) async fn claims_are_validated_against_their_schema(client: &Client, ns: &str) {
    let wrong = json!({"metadata": {"name": "a"}, "spec": {"tenantId": 7, "workloadRef": "w"}});
    let (code, status) = post(client, &claims(ns, ""), typed(wrong)).await;
    assert_eq!((code, &status["reason"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("Invalid")));
    let missing = json!({"metadata": {"name": "a"}, "spec": {"tenantId": "t"}});
    let (code, _) = post(client, &claims(ns, ""), typed(missing)).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    create_claim(client, ns, "a").await;
    let (code, _) = patch(client, &claims(ns, "/a/status"), &json!({"status": {"phase": "Weird"}})).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let pruned = patched(client, &claims(ns, "/a"), &json!({"spec": {"unknown": 1}})).await;
    assert_eq!(pruned["spec"], json!({"tenantId": "alice", "workloadRef": "web"}));
}

pub(super) async fn claim_is_deleted_immediately(client: &Client, ns: &str) {
    let first = create_claim(client, ns, "a").await;
    let mut watch = Lines::open(client, &claims(ns, &from(&first))).await;
    let (code, status) = call(client, Method::DELETE, &claims(ns, "/a"), None).await;
    assert_eq!((code, &status["status"]), (StatusCode::OK, &json!("Success")), "{status}");
    assert_eq!(status["details"]["uid"], first["metadata"]["uid"]);
    let second = create_claim(client, ns, "a").await;
    let deleted = watch.next().await;
    assert_eq!(deleted["type"], "DELETED");
    assert_eq!(deleted["object"]["metadata"]["uid"], first["metadata"]["uid"]);
    assert!(
        version(&deleted["object"]) > version(&first),
        "expected the version of the deletion, which is newer than that of the object"
    );
    let added = watch.next().await;
    assert_eq!((&added["type"], &added["object"]), (&json!("ADDED"), &second));
    assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"], "expected a new uid under the same name");
}

pub(super) async fn running_pod_is_deleted_in_two_steps(client: &Client, ns: &str) {
    let mut body = pod("a", &json!({}));
    body["spec"]["nodeName"] = json!("node-1");
    let (_, first) = post(client, &pods(ns, ""), body).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&first))).await;
    let (code, terminating) = call(client, Method::DELETE, &pods(ns, "/a"), None).await;
    assert_eq!((code, &terminating["kind"]), (StatusCode::OK, &json!("Pod")));
    assert_eq!(terminating["metadata"]["deletionGracePeriodSeconds"], 30);
    let modified = watch.next().await;
    assert_eq!(modified["type"], "MODIFIED");
    assert!(modified["object"]["metadata"]["deletionTimestamp"].is_string());
    // The Pod still exists: the next event is the next write.
    let labeled = patched(client, &pods(ns, "/a"), &json!({"metadata": {"labels": {"x": "1"}}})).await;
    assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": labeled}));
    call(client, Method::DELETE, &pods(ns, "/a"), Some(&json!({"gracePeriodSeconds": 0}))).await;
    let shortened = watch.next().await;
    assert_eq!(shortened["type"], "MODIFIED");
    assert_eq!(shortened["object"]["metadata"]["deletionGracePeriodSeconds"], 0);
    let deleted = watch.next().await;
    assert_eq!(deleted["type"], "DELETED");
    assert!(version(&deleted["object"]) > version(&shortened["object"]));
}

pub(super) async fn unscheduled_pod_is_deleted_immediately(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&first))).await;
    call(client, Method::DELETE, &pods(ns, "/a"), None).await;
    assert_eq!(watch.next().await["type"], "MODIFIED");
    assert_eq!(watch.next().await["type"], "DELETED");
    let (code, _) = get(client, &pods(ns, "/a")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}
