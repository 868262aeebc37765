//! Behaviors of watches: which changes a watch sends, its bookmarks, and its end.

use std::time::Duration;

use http::StatusCode;
use kube::Client;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::client::*;

/// How long a watch with a timeout of 16 s may take to end, on a busy machine.
const END_BOUND: Duration = Duration::from_secs(46);

pub(super) async fn watch_sends_changes_after_its_version(client: &Client, ns: &str) {
    let a = create_pod(client, ns, "a", json!({})).await;
    let b = create_pod(client, ns, "b", json!({})).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&a))).await;
    assert_eq!(
        watch.next().await,
        json!({"type": "ADDED", "object": b}),
        "expected exactly the changes after the version"
    );
    let running = patched(client, &pods(ns, "/a/status"), &json!({"status": {"phase": "Running"}})).await;
    assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": running}));
    create_claim(client, ns, "a").await;
    let failed = patched(client, &pods(ns, "/a/status"), &json!({"status": {"phase": "Failed"}})).await;
    assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": failed}), "expected no event of the claim");
}

pub(super) async fn watch_without_version_starts_with_current_objects(client: &Client, ns: &str) {
    create_pod(client, ns, "b", json!({})).await;
    create_pod(client, ns, "a", json!({})).await;
    for version in ["", "&resourceVersion=0"] {
        let mut watch = Lines::open(client, &pods(ns, &format!("?watch=1&timeoutSeconds=5{version}"))).await;
        let mut received = [watch.next().await, watch.next().await];
        received.sort_by_key(|line| line["object"]["metadata"]["name"].to_string());
        assert_eq!([&received[0]["type"], &received[1]["type"]], ["ADDED", "ADDED"]);
        assert_eq!(
            [&received[0]["object"]["metadata"]["name"], &received[1]["object"]["metadata"]["name"]],
            ["a", "b"]
        );
        let label = json!({"metadata": {"labels": {"v": version.len().to_string()}}});
        let changed = patched(client, &pods(ns, "/a"), &label).await;
        assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": changed}));
    }
}

pub(super) async fn watch_at_a_future_version_sends_nothing(client: &Client, ns: &str) {
    let a = create_pod(client, ns, "a", json!({})).await;
    let future = format!("?watch=1&timeoutSeconds=2&resourceVersion={}", version(&a) + 1_000_000);
    let mut watch = Lines::open(client, &pods(ns, &future)).await;
    create_pod(client, ns, "b", json!({})).await;
    watch.end().await;
}

pub(super) async fn watch_at_an_expired_version_sends_an_error_line(client: &Client, ns: &str) {
    let mut watch = Lines::open(client, &pods(ns, "?watch=1&resourceVersion=1&timeoutSeconds=10")).await;
    let line = watch.next().await;
    assert_eq!(line["type"], "ERROR");
    let status = &line["object"];
    assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")));
    assert!(status["message"].as_str().unwrap().starts_with("too old resource version: 1 ("), "{status}");
    watch.end().await;
}

pub(super) async fn selector_watch_sends_objects_that_start_or_stop_matching(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({"team": "red"})).await;
    let query = format!("{}&labelSelector=team%3Dblue", from(&first));
    let mut watch = Lines::open(client, &pods(ns, &query)).await;
    let label = |team: &str| json!({"metadata": {"labels": {"team": team}}});
    let matching = patched(client, &pods(ns, "/a"), &label("blue")).await;
    assert_eq!(watch.next().await, json!({"type": "ADDED", "object": matching}));
    let other = patched(client, &pods(ns, "/a"), &label("green")).await;
    let deleted = watch.next().await;
    assert_eq!(deleted["type"], "DELETED");
    assert_eq!(
        deleted["object"]["metadata"]["labels"]["team"], "blue",
        "expected the object before it stopped matching"
    );
    assert_eq!(version(&deleted["object"]), version(&other), "expected the version of the change");
    patched(client, &pods(ns, "/a"), &label("red")).await;
    let matching = patched(client, &pods(ns, "/a"), &label("blue")).await;
    let expected = json!({"type": "ADDED", "object": matching});
    assert_eq!(watch.next().await, expected, "expected no event of an object that does not match");
}

pub(super) async fn watch_is_limited_to_its_namespace(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&first))).await;
    let mut everywhere = Lines::open(client, &format!("/api/v1/pods{}", from(&first))).await;
    let other = format!("{ns}-b");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}});
    let (code, _) = post(client, "/api/v1/namespaces", namespace).await;
    assert_eq!(code, StatusCode::CREATED);
    create_pod(client, &other, "x", json!({})).await;
    let expected = create_pod(client, ns, "y", json!({})).await;
    assert_eq!(watch.next().await["object"], expected);
    // Other behaviors run on the same API server. Both events must arrive, in the order of their versions.
    let mut observed = Vec::new();
    while observed.len() < 2 {
        let line = everywhere.next().await;
        let namespace = line["object"]["metadata"]["namespace"].as_str().unwrap().to_owned();
        if namespace == ns || namespace == other {
            observed.push(namespace);
        }
    }
    assert_eq!(observed, [other.as_str(), ns]);
    let (_, list) = get(client, "/api/v1/pods").await;
    assert!(names(&list).contains(&"x") && names(&list).contains(&"y"));
}

pub(super) async fn watch_ends_at_its_timeout(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let started = Instant::now();
    let query = format!("?watch=1&timeoutSeconds=2&resourceVersion={}", version(&first));
    Lines::open(client, &pods(ns, &query)).await.end().await;
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_millis(1900), "expected the end after 2 s, found {elapsed:?}");
}

pub(super) async fn final_bookmark_precedes_the_end(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let query = format!("?watch=1&allowWatchBookmarks=true&timeoutSeconds=16&resourceVersion={}", version(&first));
    let started = Instant::now();
    let mut watch = Lines::open(client, &pods(ns, &query)).await;
    let end = started + END_BOUND;
    let second = create_pod(client, ns, "b", json!({})).await;
    assert_eq!(watch.next().await["type"], "ADDED");
    let mut received = version(&second);
    let mut last = None;
    while let Some(bookmark) = timeout_at(end, watch.read()).await.expect("the watch does not end in time") {
        last = Some(started.elapsed());
        assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("Pod")));
        assert_eq!(bookmark["object"]["apiVersion"], "v1");
        assert!(version(&bookmark["object"]) >= received, "expected a bookmark at or after the last event");
        // The real API server sometimes sends it twice, one second apart.
        received = version(&bookmark["object"]);
    }
    // The bookmark precedes the end, because the loop has read it before the end.
    let received = last.expect("expected a bookmark before the end");
    assert!(received >= Duration::from_secs(12), "expected the bookmark about 2 s before the end, found {received:?}");
}

pub(super) async fn watch_without_progress_gets_no_bookmark(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let query =
        format!("?watch=1&allowWatchBookmarks=true&timeoutSeconds=16&resourceVersion={}", version(&first) + 1000);
    Lines::open(client, &pods(ns, &query)).await.end().await;
}

pub(super) async fn bookmarks_are_sent_only_on_request(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let query = format!("?watch=1&timeoutSeconds=16&resourceVersion={}", version(&first));
    let mut watch = Lines::open(client, &pods(ns, &query)).await;
    create_pod(client, ns, "b", json!({})).await;
    assert_eq!(watch.next().await["type"], "ADDED");
    watch.end().await;
}

pub(super) async fn claim_watches_behave_like_pod_watches(client: &Client, ns: &str) {
    let first = create_claim(client, ns, "a").await;
    let mut watch = Lines::open(client, &claims(ns, &from(&first))).await;
    let status =
        json!({"status": {"phase": "Active", "source": "pool+data", "endpoint": {"host": "10.0.0.1", "port": 80}}});
    let active = patched(client, &claims(ns, "/a/status"), &status).await;
    assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": active}));
    create_pod(client, ns, "a", json!({})).await;
    let released = patched(client, &claims(ns, "/a/status"), &json!({"status": {"phase": "Released"}})).await;
    assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": released}), "expected no event of the Pod");
}
