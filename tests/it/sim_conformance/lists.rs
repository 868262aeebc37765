//! Behaviors of lists: order, selectors, pages, and exact, past and future versions.

use std::time::Duration;

use http::{Method, StatusCode};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::*;

pub(super) async fn pod_list_items_have_no_kind(client: &Client, ns: &str) {
    for name in ["b", "a"] {
        create_pod(client, ns, name, json!({})).await;
    }
    create_claim(client, ns, "a").await;
    let (_, list) = get(client, &pods(ns, "")).await;
    assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("PodList"), Some("v1")));
    assert_eq!(names(&list), ["a", "b"], "expected the items sorted by name");
    assert_eq!((list["items"][0].get("kind"), list["items"][0].get("apiVersion")), (None, None));
    let newest = list["items"].as_array().unwrap().iter().map(version).max();
    assert!(version(&list) >= newest.unwrap(), "expected the version of the list to be at least that of its items");
    let (_, list) = get(client, &claims(ns, "")).await;
    assert_eq!(list["kind"], "BoilerhouseClaimList");
    assert_eq!(list["items"][0]["kind"], "BoilerhouseClaim");
}

pub(super) async fn label_selector_filters_lists(client: &Client, ns: &str) {
    create_pod(client, ns, "a", json!({"app": "web", "tier": "front"})).await;
    create_pod(client, ns, "b", json!({"app": "db"})).await;
    create_pod(client, ns, "c", json!({})).await;
    let table: [(&str, &[&str]); 6] = [
        ("app%3Dweb", &["a"]),
        ("app%3D%3Ddb", &["b"]),
        ("app!%3Dweb", &["b", "c"]),
        ("app", &["a", "b"]),
        ("!app", &["c"]),
        ("app,tier%3Dfront", &["a"]),
    ];
    for (selector, expected) in table {
        let (_, list) = get(client, &pods(ns, &format!("?labelSelector={selector}"))).await;
        assert_eq!(names(&list), expected, "{selector}");
    }
}

pub(super) async fn field_selector_filters_by_name(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let query =
        format!("?watch=1&timeoutSeconds=3&fieldSelector=metadata.name%3Db&resourceVersion={}", version(&first));
    let mut watch = Lines::open(client, &pods(ns, &query)).await;
    create_pod(client, ns, "c", json!({})).await;
    create_pod(client, ns, "b", json!({})).await;
    let (_, list) = get(client, &pods(ns, "?fieldSelector=metadata.name%3Db")).await;
    assert_eq!(names(&list), ["b"]);
    assert_eq!(watch.next().await["object"]["metadata"]["name"], "b");
    let (code, _) = get(client, &claims(ns, "?fieldSelector=spec.tenantId%3Db")).await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
}

pub(super) async fn pages_of_a_list_share_one_revision(client: &Client, ns: &str) {
    for name in ["a", "b", "c", "d", "e"] {
        create_pod(client, ns, name, json!({})).await;
    }
    let (_, first) = get(client, &pods(ns, "?limit=2")).await;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
    create_pod(client, ns, "bb", json!({})).await;
    call(client, Method::DELETE, &pods(ns, "/d"), None).await;
    let page =
        |list: &Value| pods(ns, &format!("?limit=2&continue={}", list["metadata"]["continue"].as_str().unwrap()));
    let (_, second) = get(client, &page(&first)).await;
    assert_eq!(names(&second), ["c", "d"], "expected no change after the first page in the second page");
    assert_eq!(version(&second), version(&first));
    let (_, third) = get(client, &page(&second)).await;
    assert_eq!(names(&third), ["e"]);
    assert_eq!(third["metadata"].get("continue"), None);
    assert_eq!(third["metadata"].get("remainingItemCount"), None);
    let (_, selected) = get(client, &pods(ns, "?limit=1&labelSelector=!x")).await;
    assert_eq!(selected["metadata"].get("remainingItemCount"), None, "expected no count with a selector");
    let (code, _) = get(client, &pods(ns, "?limit=1&continue=nonsense")).await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
}

pub(super) async fn past_versions_can_be_listed(client: &Client, ns: &str) {
    let a = create_pod(client, ns, "a", json!({"v": "1"})).await;
    let b = create_pod(client, ns, "b", json!({})).await;
    patched(client, &pods(ns, "/a"), &json!({"metadata": {"labels": {"v": "2"}}})).await;
    call(client, Method::DELETE, &pods(ns, "/b"), None).await;
    let exact = |version: u64| pods(ns, &format!("?resourceVersion={version}&resourceVersionMatch=Exact"));
    let (_, list) = get(client, &exact(version(&a))).await;
    assert_eq!((names(&list), version(&list)), (vec!["a"], version(&a)));
    let (_, list) = get(client, &exact(version(&b))).await;
    assert_eq!(names(&list), ["a", "b"]);
    assert_eq!(
        list["items"][0],
        {
            let mut old = a.clone();
            untype(&mut old);
            old
        },
        "expected the past state of the object"
    );
    let old = pods(ns, &format!("?resourceVersion={}&limit=1", version(&b)));
    let (_, list) = get(client, &old).await;
    assert_eq!((names(&list), version(&list)), (vec!["a"], version(&b)), "expected a limit to make the version exact");
    let (_, list) = get(client, &pods(ns, &format!("?resourceVersion={}", version(&b)))).await;
    assert_eq!(names(&list), ["a"], "expected the newest state, which is at least that version");
    assert!(version(&list) > version(&b));
}

pub(super) async fn list_at_a_future_version_times_out(client: &Client, ns: &str) {
    let (_, list) = get(client, &pods(ns, "")).await;
    for matching in ["", "&resourceVersionMatch=NotOlderThan", "&resourceVersionMatch=Exact"] {
        let started = Instant::now();
        let future = pods(ns, &format!("?resourceVersion={}{matching}", version(&list) + 1_000_000));
        let (code, status) = get(client, &future).await;
        assert_eq!((code, &status["reason"]), (StatusCode::GATEWAY_TIMEOUT, &json!("Timeout")), "{matching} {status}");
        assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
        let waited = started.elapsed();
        assert!(waited >= Duration::from_millis(2900), "{matching}: expected a wait of about 3 s, found {waited:?}");
    }
}

pub(super) async fn contradictory_list_options_are_rejected(client: &Client, ns: &str) {
    let table = [
        ("?resourceVersionMatch=Exact", StatusCode::UNPROCESSABLE_ENTITY),
        ("?resourceVersionMatch=Exact&resourceVersion=0", StatusCode::UNPROCESSABLE_ENTITY),
        ("?resourceVersionMatch=Now&resourceVersion=5", StatusCode::UNPROCESSABLE_ENTITY),
        ("?watch=1&resourceVersion=5&resourceVersionMatch=Exact", StatusCode::UNPROCESSABLE_ENTITY),
        ("?resourceVersion=five", StatusCode::BAD_REQUEST),
        ("?watch=1&resourceVersion=five", StatusCode::INTERNAL_SERVER_ERROR),
    ];
    for (query, expected) in table {
        let (code, status) = get(client, &pods(ns, query)).await;
        assert_eq!(code, expected, "{query} {status}");
    }
}
