//! What Kubernetes does, as functions that run against any API server: [`BEHAVIOURS`].
//!
//! Run against the simulator here (with paused time) and against the real kube-apiserver elsewhere, so that the two
//! cannot drift apart. Each behaviour has a namespace of its own, and says what is true on both. A pod is never
//! scheduled: whoever wants it to live patches its status.

use std::time::Duration;

use futures::future::BoxFuture;
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// How long a line may take that must come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing must come to be called silence.
const SILENCE: Duration = Duration::from_secs(2);

/// A behaviour, pointed at a client and an empty namespace that exists.
pub(crate) type Behaviour = for<'a> fn(&'a Client, &'a str) -> BoxFuture<'a, ()>;

macro_rules! behaviours {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), |client, namespace| Box::pin($name(client, namespace)))),*] };
}

/// Every behaviour by its name.
pub(crate) const BEHAVIOURS: &[(&str, Behaviour)] = behaviours![
    objects_are_born_with_identity,
    refusals_are_status_objects,
    a_list_has_no_kinds_in_it_for_pods,
    every_write_moves_the_version,
    a_stale_writer_gets_a_conflict,
    status_is_a_part_of_its_own,
    claims_are_held_against_their_schema,
    a_claim_is_deleted_at_once,
    a_running_pod_is_deleted_in_two_steps,
    a_pod_that_nobody_runs_is_deleted_at_once,
    labels_select,
    a_field_selector_selects_by_name,
    pages_show_one_revision,
    the_past_can_be_listed,
    a_list_in_the_future_times_out,
    list_options_that_contradict_are_refused,
    a_watch_tells_what_came_after,
    a_watch_without_version_begins_with_the_state,
    a_watch_in_the_future_is_silent,
    a_watch_from_too_long_ago_says_so_in_a_line,
    a_selector_watch_tells_of_coming_and_going,
    a_watch_keeps_to_its_namespace,
    a_watch_ends_when_it_asked_to,
    a_last_bookmark_comes_before_the_end,
    a_watch_that_nothing_moved_gets_no_bookmark,
    bookmarks_come_only_when_asked_for,
    claims_are_watched_like_pods,
];

#[tokio::test(start_paused = true)]
async fn the_simulator_behaves() {
    use boilerhouse_bridge::sim::{Sim, SimConfig};
    for (index, (name, behaviour)) in BEHAVIOURS.iter().enumerate() {
        let namespace = format!("truth-{index}");
        let sim = Sim::new(SimConfig { namespaces: vec![namespace.clone(), "other".into()], ..SimConfig::default() });
        println!("{name}");
        behaviour(&sim.client(&namespace), &namespace).await;
        assert_eq!(sim.metrics().open(), 0, "{name} left a watch open");
    }
}

async fn objects_are_born_with_identity(client: &Client, ns: &str) {
    let pod = create_pod(client, ns, "a", json!({"app": "web"})).await;
    assert_eq!(pod["kind"], "Pod");
    assert_eq!(pod["metadata"]["namespace"], ns);
    assert_eq!(pod["metadata"]["generation"], 1);
    assert_eq!(pod["metadata"]["uid"].as_str().unwrap().len(), 36);
    let created = pod["metadata"]["creationTimestamp"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z'), "{created}");
    assert_eq!(pod["status"]["phase"], "Pending");
    let claim = create_claim(client, ns, "a").await;
    assert_eq!(claim.get("status"), None, "status is not taken at creation");
    assert!(version(&claim) > version(&pod));
    assert_ne!(claim["metadata"]["uid"], pod["metadata"]["uid"]);
    let (code, home) = get(client, &format!("/api/v1/namespaces/{ns}")).await;
    assert_eq!((code, home["kind"].as_str()), (StatusCode::OK, Some("Namespace")));
    assert_eq!(home["metadata"]["uid"].as_str().unwrap().len(), 36);
    let (_, again) = get(client, &pods(ns, "/a")).await;
    assert_eq!(again["metadata"]["uid"], pod["metadata"]["uid"]);
}

async fn refusals_are_status_objects(client: &Client, ns: &str) {
    let (code, status) = get(client, &pods(ns, "/none")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert_eq!(
        status,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
               "message": "pods \"none\" not found", "reason": "NotFound", "details": {"name": "none", "kind": "pods"}})
    );
    create_pod(client, ns, "a", json!({})).await;
    let (code, status) = post(client, &pods(ns, ""), pod("a", json!({}))).await;
    assert_eq!((code, &status["reason"]), (StatusCode::CONFLICT, &json!("AlreadyExists")));
    assert_eq!(status["message"], "pods \"a\" already exists");
    let (code, status) = post(client, &pods("no-such-namespace", ""), pod("a", json!({}))).await;
    assert_eq!((code, &status["reason"]), (StatusCode::NOT_FOUND, &json!("NotFound")));
    assert_eq!(status["message"], "namespaces \"no-such-namespace\" not found");
    let (code, status) = get(client, &claims(ns, "/none")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert_eq!(status["message"], "boilerhouseclaims.boilerhouse.dev \"none\" not found");
    let details = json!({"name": "none", "group": "boilerhouse.dev", "kind": "boilerhouseclaims"});
    assert_eq!(status["details"], details);
    let (code, _) = get(client, "/apis/boilerhouse.dev/v1alpha1/nothing").await;
    assert_eq!(code, StatusCode::NOT_FOUND);
    let (code, _) = call(client, Method::POST, &pods(ns, "/a"), None).await;
    assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED);
}

async fn a_list_has_no_kinds_in_it_for_pods(client: &Client, ns: &str) {
    for name in ["b", "a"] {
        create_pod(client, ns, name, json!({})).await;
    }
    create_claim(client, ns, "a").await;
    let (_, list) = get(client, &pods(ns, "")).await;
    assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("PodList"), Some("v1")));
    assert_eq!(names(&list), ["a", "b"], "by name");
    assert_eq!((list["items"][0].get("kind"), list["items"][0].get("apiVersion")), (None, None));
    let newest = list["items"].as_array().unwrap().iter().map(version).max();
    assert!(version(&list) >= newest.unwrap(), "a list is as new as what it holds");
    let (_, list) = get(client, &claims(ns, "")).await;
    assert_eq!(list["kind"], "BoilerhouseClaimList");
    assert_eq!(list["items"][0]["kind"], "BoilerhouseClaim");
}

async fn every_write_moves_the_version(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({"app": "web", "tier": "x"})).await;
    let patch = json!({"metadata": {"labels": {"tier": null, "new": "yes"}}});
    let second = patched(client, &pods(ns, "/a"), &patch).await;
    assert!(version(&second) > version(&first));
    assert_eq!(second["metadata"]["labels"], json!({"app": "web", "new": "yes"}));
    assert_eq!(second["metadata"]["generation"], 1, "labels are not spec");
    let third = patched(client, &pods(ns, "/a"), &patch).await;
    assert_eq!(version(&third), version(&second), "what changes nothing writes nothing");
    let claim = create_claim(client, ns, "a").await;
    let changed = patched(client, &claims(ns, "/a"), &json!({"spec": {"resume": true}})).await;
    assert_eq!(changed["metadata"]["generation"], 2, "spec raises the generation");
    assert!(version(&changed) > version(&claim));
}

async fn a_stale_writer_gets_a_conflict(client: &Client, ns: &str) {
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
    let other = json!({"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    let (code, _) = call(client, Method::DELETE, &pods(ns, "/a"), Some(&other)).await;
    assert_eq!(code, StatusCode::CONFLICT);
}

async fn status_is_a_part_of_its_own(client: &Client, ns: &str) {
    create_pod(client, ns, "a", json!({})).await;
    let ignored = patched(client, &pods(ns, "/a"), &json!({"status": {"phase": "Running"}})).await;
    assert_eq!(ignored["status"]["phase"], "Pending");
    let running = patched(client, &pods(ns, "/a/status"), &json!({"status": {"phase": "Running"}})).await;
    assert_eq!(running["status"]["phase"], "Running");
    create_claim(client, ns, "a").await;
    let ignored = patched(client, &claims(ns, "/a"), &json!({"status": {"phase": "Active"}})).await;
    assert_eq!(ignored.get("status"), None);
    let sneaky =
        json!({"status": {"phase": "Active"}, "spec": {"tenantId": "eve"}, "metadata": {"labels": {"x": "y"}}});
    let active = patched(client, &claims(ns, "/a/status"), &sneaky).await;
    assert_eq!(active["status"], json!({"phase": "Active"}));
    assert_eq!(active["spec"]["tenantId"], "alice");
    assert_eq!(active["metadata"].get("labels"), None);
    assert_eq!(active["metadata"]["generation"], 1, "status does not raise the generation");
}

async fn claims_are_held_against_their_schema(client: &Client, ns: &str) {
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

async fn a_claim_is_deleted_at_once(client: &Client, ns: &str) {
    let first = create_claim(client, ns, "a").await;
    let mut watch = Lines::open(client, &claims(ns, &from(&first))).await;
    let (code, status) = call(client, Method::DELETE, &claims(ns, "/a"), None).await;
    assert_eq!((code, &status["status"]), (StatusCode::OK, &json!("Success")), "{status}");
    assert_eq!(status["details"]["uid"], first["metadata"]["uid"]);
    let second = create_claim(client, ns, "a").await;
    let deleted = watch.next().await;
    assert_eq!(deleted["type"], "DELETED");
    assert_eq!(deleted["object"]["metadata"]["uid"], first["metadata"]["uid"]);
    assert!(version(&deleted["object"]) > version(&first), "the version of the deletion, not of the object");
    let added = watch.next().await;
    assert_eq!((&added["type"], &added["object"]), (&json!("ADDED"), &second));
    assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"], "two lives under one name");
}

async fn a_running_pod_is_deleted_in_two_steps(client: &Client, ns: &str) {
    let mut body = pod("a", json!({}));
    body["spec"]["nodeName"] = json!("node-1");
    let (_, first) = post(client, &pods(ns, ""), body).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&first))).await;
    let (code, dying) = call(client, Method::DELETE, &pods(ns, "/a"), None).await;
    assert_eq!((code, &dying["kind"]), (StatusCode::OK, &json!("Pod")));
    assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 30);
    let modified = watch.next().await;
    assert_eq!(modified["type"], "MODIFIED");
    assert!(modified["object"]["metadata"]["deletionTimestamp"].is_string());
    watch.silent().await;
    call(client, Method::DELETE, &pods(ns, "/a"), Some(&json!({"gracePeriodSeconds": 0}))).await;
    let hurried = watch.next().await;
    assert_eq!(hurried["type"], "MODIFIED");
    assert_eq!(hurried["object"]["metadata"]["deletionGracePeriodSeconds"], 0);
    let deleted = watch.next().await;
    assert_eq!(deleted["type"], "DELETED");
    assert!(version(&deleted["object"]) > version(&hurried["object"]));
}

async fn a_pod_that_nobody_runs_is_deleted_at_once(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&first))).await;
    call(client, Method::DELETE, &pods(ns, "/a"), None).await;
    assert_eq!(watch.next().await["type"], "MODIFIED");
    assert_eq!(watch.next().await["type"], "DELETED");
    let (code, _) = get(client, &pods(ns, "/a")).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

async fn labels_select(client: &Client, ns: &str) {
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

async fn a_field_selector_selects_by_name(client: &Client, ns: &str) {
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

async fn pages_show_one_revision(client: &Client, ns: &str) {
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
    assert_eq!(names(&second), ["c", "d"], "what happened since the first page is not in the second");
    assert_eq!(version(&second), version(&first));
    let (_, third) = get(client, &page(&second)).await;
    assert_eq!(names(&third), ["e"]);
    assert_eq!(third["metadata"].get("continue"), None);
    assert_eq!(third["metadata"].get("remainingItemCount"), None);
    let (_, labelled) = get(client, &pods(ns, "?limit=1&labelSelector=!x")).await;
    assert_eq!(labelled["metadata"].get("remainingItemCount"), None, "not counted under a selector");
    let (code, _) = get(client, &pods(ns, "?limit=1&continue=nonsense")).await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
}

async fn the_past_can_be_listed(client: &Client, ns: &str) {
    let a = create_pod(client, ns, "a", json!({"v": "1"})).await;
    let b = create_pod(client, ns, "b", json!({})).await;
    patched(client, &pods(ns, "/a"), &json!({"metadata": {"labels": {"v": "2"}}})).await;
    call(client, Method::DELETE, &pods(ns, "/b"), None).await;
    let exact = |at: u64| pods(ns, &format!("?resourceVersion={at}&resourceVersionMatch=Exact"));
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
        "as it was, not as it is"
    );
    let old = pods(ns, &format!("?resourceVersion={}&limit=1", version(&b)));
    let (_, list) = get(client, &old).await;
    assert_eq!((names(&list), version(&list)), (vec!["a"], version(&b)), "a limit makes a version exact");
    let (_, list) = get(client, &pods(ns, &format!("?resourceVersion={}", version(&b)))).await;
    assert_eq!(names(&list), ["a"], "at least that version is the newest");
    assert!(version(&list) > version(&b));
}

async fn a_list_in_the_future_times_out(client: &Client, ns: &str) {
    let (_, list) = get(client, &pods(ns, "")).await;
    for how in ["", "&resourceVersionMatch=NotOlderThan", "&resourceVersionMatch=Exact"] {
        let begun = Instant::now();
        let future = pods(ns, &format!("?resourceVersion={}{how}", version(&list) + 1_000_000));
        let (code, status) = get(client, &future).await;
        assert_eq!((code, &status["reason"]), (StatusCode::GATEWAY_TIMEOUT, &json!("Timeout")), "{how} {status}");
        assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(2900), "{how}: it waits for about 3 s, not {waited:?}");
    }
}

async fn list_options_that_contradict_are_refused(client: &Client, ns: &str) {
    let table = [
        ("?resourceVersionMatch=Exact", StatusCode::UNPROCESSABLE_ENTITY),
        ("?resourceVersionMatch=Exact&resourceVersion=0", StatusCode::UNPROCESSABLE_ENTITY),
        ("?resourceVersionMatch=Now&resourceVersion=5", StatusCode::UNPROCESSABLE_ENTITY),
        ("?watch=1&resourceVersion=5&resourceVersionMatch=Exact", StatusCode::UNPROCESSABLE_ENTITY),
        ("?resourceVersion=five", StatusCode::BAD_REQUEST),
    ];
    for (query, expected) in table {
        let (code, status) = get(client, &pods(ns, query)).await;
        assert_eq!(code, expected, "{query} {status}");
    }
}

async fn a_watch_tells_what_came_after(client: &Client, ns: &str) {
    let a = create_pod(client, ns, "a", json!({})).await;
    let b = create_pod(client, ns, "b", json!({})).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&a))).await;
    assert_eq!(watch.next().await, json!({"type": "ADDED", "object": b}), "exactly what came after its version");
    let running = patched(client, &pods(ns, "/a/status"), &json!({"status": {"phase": "Running"}})).await;
    assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": running}));
    create_claim(client, ns, "a").await;
    watch.silent().await;
}

async fn a_watch_without_version_begins_with_the_state(client: &Client, ns: &str) {
    create_pod(client, ns, "b", json!({})).await;
    create_pod(client, ns, "a", json!({})).await;
    for version in ["", "&resourceVersion=0"] {
        let mut watch = Lines::open(client, &pods(ns, &format!("?watch=1&timeoutSeconds=5{version}"))).await;
        let mut told = [watch.next().await, watch.next().await];
        told.sort_by_key(|line| line["object"]["metadata"]["name"].to_string());
        assert_eq!([&told[0]["type"], &told[1]["type"]], ["ADDED", "ADDED"]);
        assert_eq!([&told[0]["object"]["metadata"]["name"], &told[1]["object"]["metadata"]["name"]], ["a", "b"]);
        let label = json!({"metadata": {"labels": {"v": version.len().to_string()}}});
        let marked = patched(client, &pods(ns, "/a"), &label).await;
        assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": marked}));
    }
}

async fn a_watch_in_the_future_is_silent(client: &Client, ns: &str) {
    let a = create_pod(client, ns, "a", json!({})).await;
    let future = format!("?watch=1&timeoutSeconds=6&resourceVersion={}", version(&a) + 1_000_000);
    let mut watch = Lines::open(client, &pods(ns, &future)).await;
    create_pod(client, ns, "b", json!({})).await;
    watch.silent().await;
}

async fn a_watch_from_too_long_ago_says_so_in_a_line(client: &Client, ns: &str) {
    let mut watch = Lines::open(client, &pods(ns, "?watch=1&resourceVersion=1&timeoutSeconds=10")).await;
    let line = watch.next().await;
    assert_eq!(line["type"], "ERROR");
    let status = &line["object"];
    assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")));
    assert!(status["message"].as_str().unwrap().starts_with("too old resource version: 1 ("), "{status}");
    watch.end().await;
}

async fn a_selector_watch_tells_of_coming_and_going(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({"team": "red"})).await;
    let query = format!("{}&labelSelector=team%3Dblue", from(&first));
    let mut watch = Lines::open(client, &pods(ns, &query)).await;
    let label = |team: &str| json!({"metadata": {"labels": {"team": team}}});
    let joined = patched(client, &pods(ns, "/a"), &label("blue")).await;
    assert_eq!(watch.next().await, json!({"type": "ADDED", "object": joined}));
    let left = patched(client, &pods(ns, "/a"), &label("green")).await;
    let deleted = watch.next().await;
    assert_eq!(deleted["type"], "DELETED");
    assert_eq!(deleted["object"]["metadata"]["labels"]["team"], "blue", "what it was when it was last ours");
    assert_eq!(version(&deleted["object"]), version(&left), "with the version of what happened");
    patched(client, &pods(ns, "/a"), &label("red")).await;
    watch.silent().await;
}

async fn a_watch_keeps_to_its_namespace(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let mut watch = Lines::open(client, &pods(ns, &from(&first))).await;
    let mut everywhere = Lines::open(client, &format!("/api/v1/pods{}", from(&first))).await;
    let other = format!("{ns}-b");
    let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}});
    let (code, _) = post(client, "/api/v1/namespaces", home).await;
    assert_eq!(code, StatusCode::CREATED);
    create_pod(client, &other, "x", json!({})).await;
    let ours = create_pod(client, ns, "y", json!({})).await;
    assert_eq!(watch.next().await["object"], ours);
    // Other tests may share the API server: what matters is that both come, in the order of their versions.
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let line = everywhere.next().await;
        let home = line["object"]["metadata"]["namespace"].as_str().unwrap().to_owned();
        if home == ns || home == other {
            seen.push(home);
        }
    }
    assert_eq!(seen, [other.as_str(), ns]);
    let (_, list) = get(client, "/api/v1/pods").await;
    assert!(names(&list).contains(&"x") && names(&list).contains(&"y"));
}

async fn a_watch_ends_when_it_asked_to(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let begun = Instant::now();
    let query = format!("?watch=1&timeoutSeconds=2&resourceVersion={}", version(&first));
    Lines::open(client, &pods(ns, &query)).await.end().await;
    let lived = begun.elapsed();
    assert!(lived >= Duration::from_millis(1900) && lived < Duration::from_secs(5), "{lived:?}");
}

async fn a_last_bookmark_comes_before_the_end(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let query = format!("?watch=1&allowWatchBookmarks=true&timeoutSeconds=16&resourceVersion={}", version(&first));
    let begun = Instant::now();
    let mut watch = Lines::open(client, &pods(ns, &query)).await;
    let second = create_pod(client, ns, "b", json!({})).await;
    assert_eq!(watch.next().await["type"], "ADDED");
    let bookmark = timeout(Duration::from_secs(20), watch.read()).await.unwrap().unwrap();
    assert_eq!((&bookmark["type"], &bookmark["object"]["kind"]), (&json!("BOOKMARK"), &json!("Pod")));
    assert_eq!(bookmark["object"]["apiVersion"], "v1");
    assert!(version(&bookmark["object"]) >= version(&second), "everything up to it has been told");
    let came = begun.elapsed();
    assert!(came >= Duration::from_secs(12) && came < Duration::from_secs(16), "{came:?}");
    watch.end().await;
}

async fn a_watch_that_nothing_moved_gets_no_bookmark(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let query =
        format!("?watch=1&allowWatchBookmarks=true&timeoutSeconds=16&resourceVersion={}", version(&first) + 1000);
    Lines::open(client, &pods(ns, &query)).await.end_within(Duration::from_secs(20)).await;
}

async fn bookmarks_come_only_when_asked_for(client: &Client, ns: &str) {
    let first = create_pod(client, ns, "a", json!({})).await;
    let query = format!("?watch=1&timeoutSeconds=16&resourceVersion={}", version(&first));
    let mut watch = Lines::open(client, &pods(ns, &query)).await;
    create_pod(client, ns, "b", json!({})).await;
    assert_eq!(watch.next().await["type"], "ADDED");
    watch.end_within(Duration::from_secs(20)).await;
}

async fn claims_are_watched_like_pods(client: &Client, ns: &str) {
    let first = create_claim(client, ns, "a").await;
    let mut watch = Lines::open(client, &claims(ns, &from(&first))).await;
    let status =
        json!({"status": {"phase": "Active", "source": "pool+data", "endpoint": {"host": "10.0.0.1", "port": 80}}});
    let active = patched(client, &claims(ns, "/a/status"), &status).await;
    assert_eq!(watch.next().await, json!({"type": "MODIFIED", "object": active}));
    create_pod(client, ns, "a", json!({})).await;
    watch.silent().await;
}

/// A raw watch, line by line.
struct Lines {
    body: Body,
    rest: Vec<u8>,
}

impl Lines {
    async fn open(client: &Client, path: &str) -> Self {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = timeout(PATIENCE, client.send(request)).await.expect("a watch answers at once").unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Self { body: response.into_body(), rest: Vec::new() }
    }

    /// The next line, or `None` at the end.
    async fn read(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    async fn next(&mut self) -> Value {
        timeout(PATIENCE, self.read()).await.expect("a line in time").expect("a line, not the end")
    }

    async fn silent(&mut self) {
        if let Ok(line) = timeout(SILENCE, self.read()).await {
            panic!("silence, not {line:?}");
        }
    }

    async fn end(&mut self) {
        self.end_within(PATIENCE).await;
    }

    async fn end_within(&mut self, bound: Duration) {
        assert_eq!(timeout(bound, self.read()).await.expect("the end in time"), None);
    }
}

async fn call(client: &Client, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = body.map(|body| serde_json::to_vec(body).unwrap()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
    let response = client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let code = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
}

async fn get(client: &Client, path: &str) -> (StatusCode, Value) {
    call(client, Method::GET, path, None).await
}

async fn post(client: &Client, path: &str, body: Value) -> (StatusCode, Value) {
    call(client, Method::POST, path, Some(&body)).await
}

async fn patch(client: &Client, path: &str, body: &Value) -> (StatusCode, Value) {
    call(client, Method::PATCH, path, Some(body)).await
}

async fn patched(client: &Client, path: &str, body: &Value) -> Value {
    let (code, object) = patch(client, path, body).await;
    assert_eq!(code, StatusCode::OK, "{object}");
    object
}

async fn create_pod(client: &Client, ns: &str, name: &str, labels: Value) -> Value {
    let (code, object) = post(client, &pods(ns, ""), pod(name, labels)).await;
    assert_eq!(code, StatusCode::CREATED, "{object}");
    object
}

async fn create_claim(client: &Client, ns: &str, name: &str) -> Value {
    let body = json!({
        "metadata": {"name": name}, "spec": {"tenantId": "alice", "workloadRef": "web"}, "status": {"phase": "Active"},
    });
    let (code, object) = post(client, &claims(ns, ""), typed(body)).await;
    assert_eq!(code, StatusCode::CREATED, "{object}");
    object
}

fn pod(name: &str, labels: Value) -> Value {
    let spec = json!({"containers": [{"name": "main", "image": "example.invalid/none"}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

fn typed(mut claim: Value) -> Value {
    claim["apiVersion"] = json!("boilerhouse.dev/v1alpha1");
    claim["kind"] = json!("BoilerhouseClaim");
    claim
}

fn untype(object: &mut Value) {
    let fields = object.as_object_mut().unwrap();
    fields.remove("kind");
    fields.remove("apiVersion");
}

fn pods(ns: &str, rest: &str) -> String {
    format!("/api/v1/namespaces/{ns}/pods{rest}")
}

fn claims(ns: &str, rest: &str) -> String {
    format!("/apis/boilerhouse.dev/v1alpha1/namespaces/{ns}/boilerhouseclaims{rest}")
}

/// The query of a watch from where an object was written; it ends by itself should a test forget it.
fn from(object: &Value) -> String {
    format!("?watch=1&timeoutSeconds=30&resourceVersion={}", version(object))
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}
