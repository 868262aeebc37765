//! Filters on the wire (docs/guarantees.md#guarantees, G7): the fold of a filtered client is exactly the filtered state
//! at every id, also while objects enter and leave the filter. A cursor belongs to its filter. A malformed filter is
//! rejected with the accepted values.
//!
//! The oracle compares every event with the history of the simulated cluster.

use std::net::SocketAddr;
use std::time::SystemTime;

use boilerhouse_bridge::{
    event::{Cursor, PerResource, Resource, ResourceVersion},
    sim::{ApiResource, store::Store},
    test_support::{ReplayCommand, SeededRng, seeds_to_run},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use crate::oracle::full_stream::{Entry, ProjectedHistory, ReceivedEvent, ReplicaKnowledge, Start, StreamValidator};
use crate::oracle::history::History;
use crate::oracle::mutations::full_stream as mutations;
use crate::oracle::visibility::{Condition, ExpectedProjection};
use crate::support::{
    http_client::{self, WsClient},
    long_form,
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Headers of a WebSocket client, for a connection that ends after a rejection.
const UPGRADE: &[(&str, &str)] = &[
    ("Connection", "Upgrade, close"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// The number of seeds, and of writes for each, of the short form and of the long form.
const SIZES: [(u64, usize); 2] = [(3, 400), (20, 2_000)];
/// The maximum number of times that each mutation is applied.
const MAX_MUTATIONS: u64 = 3;
/// Mutations that need something that these records do not contain: a resume, a difference, several parts, or
/// `upstream.down`.
const MIN_APPLICABLE: u64 = 15;

/// A filter that selects no Pod.
const NO_POD: Condition = (Resource::Pods, "name", Some("no-such-pod"));

/// The filters of the clients. The objects of [`last_writes`] pass each of them, except that no Pod passes [`NO_POD`].
const FILTERS: [&[Condition]; 14] = [
    &[],
    &[(Resource::Pods, "phase", Some("Running"))],
    &[(Resource::Pods, "tenantId", Some("alice"))],
    &[(Resource::Pods, "workloadRef", Some("web"))],
    &[(Resource::Pods, "poolStatus", Some("ready"))],
    &[(Resource::Pods, "labels.team", Some("a"))],
    &[(Resource::Pods, "labels.team", None)],
    &[(Resource::Pods, "name", Some("p0"))],
    &[NO_POD],
    &[(Resource::Claims, "phase", Some("Active"))],
    &[(Resource::Claims, "phase", Some("Pending")), (Resource::Pods, "name", Some("p0"))],
    &[(Resource::Claims, "source", Some("pool"))],
    &[
        (Resource::Claims, "tenantId", Some("alice")),
        (Resource::Claims, "workloadRef", Some("web")),
        (Resource::Claims, "labels.team", None),
    ],
    &[
        (Resource::Pods, "workloadRef", Some("web")),
        (Resource::Pods, "poolStatus", Some("ready")),
        (Resource::Pods, "labels.team", Some("a")),
        (Resource::Claims, "name", Some("c0")),
    ],
];

fn projections() -> Vec<ExpectedProjection> {
    FILTERS.into_iter().map(|conditions| ExpectedProjection { types: None, conditions }).collect()
}

fn query(path: &str, parameters: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    format!("{path}?{query}")
}

/// One random write. A write that the store rejects changes nothing.
fn write(store: &mut Store, rng: &mut SeededRng) {
    let maybe = |rng: &mut SeededRng, of: &[&str]| match rng.below(of.len() as u64 + 1) as usize {
        0 => Value::Null,
        n => json!(of[n - 1]),
    };
    let pod = format!("p{}", rng.below(8));
    let claim = format!("c{}", rng.below(6));
    let spec = json!({"tenantId": rng.choose(&["alice", "bob"]), "workloadRef": rng.choose(&["web", "db"])});
    let labels = json!({
        "boilerhouse.dev/managed": if rng.below(8) == 0 { Value::Null } else { json!("true") },
        "boilerhouse.dev/workload": maybe(rng, &["web", "db"]),
        "boilerhouse.dev/tenant": maybe(rng, &["alice", "bob"]),
        "boilerhouse.dev/pool-status": maybe(rng, &["warming", "ready", "acquired"]),
        "team": maybe(rng, &["a", "b"]),
    });
    let named = |name: &str| json!({"metadata": {"name": name, "namespace": NAMESPACE}});
    let one = rng.below(5);
    let key = labels.as_object().unwrap().keys().nth(one as usize).unwrap().clone();
    let result = match rng.below(12) {
        0 => store.delete(ApiResource::Pods, NAMESPACE, &pod),
        1 => store.delete(ApiResource::Claims, NAMESPACE, &claim),
        2 | 3 => {
            let mut new = named(&pod);
            new["metadata"]["labels"] = labels;
            let labels = new["metadata"]["labels"].as_object_mut().unwrap();
            labels.retain(|_, value| !value.is_null());
            store.create(ApiResource::Pods, new)
        }
        4 => {
            let mut new = named(&claim);
            new["spec"] = spec;
            store.create(ApiResource::Claims, new)
        }
        5 | 6 => {
            let label = json!({"metadata": {"labels": {&key: labels[&key].clone()}}});
            store.patch(ApiResource::Pods, NAMESPACE, &pod, &label)
        }
        7 => {
            let status =
                json!({"phase": maybe(rng, &["Pending", "Running", "Failed"]), "podIP": maybe(rng, &["10.0.0.1"])});
            store.patch(ApiResource::Pods, NAMESPACE, &pod, &json!({"status": status}))
        }
        // A change that no view shows.
        8 => {
            let note = json!({"metadata": {"annotations": {"note": rng.below(1000).to_string()}}});
            store.patch(ApiResource::Pods, NAMESPACE, &pod, &note)
        }
        9 => store.patch(ApiResource::Claims, NAMESPACE, &claim, &json!({"spec": spec})),
        10 => {
            let team = json!({"metadata": {"labels": {"team": maybe(rng, &["a", "b"])}}});
            store.patch(ApiResource::Claims, NAMESPACE, &claim, &team)
        }
        _ => {
            let status = json!({
                "phase": maybe(rng, &["Pending", "Active", "Releasing", "Released"]),
                "source": maybe(rng, &["pool", "cold"]),
            });
            store.patch(ApiResource::Claims, NAMESPACE, &claim, &json!({"status": status}))
        }
    };
    // The object may be missing, or may exist already.
    drop(result);
}

/// Writes that every client receives. Returns the versions of the last ones.
fn last_writes(store: &mut Store) -> PerResource<ResourceVersion> {
    for (resource, name) in [(ApiResource::Pods, "p0"), (ApiResource::Claims, "c0")] {
        // The object may be missing.
        drop(store.delete(resource, NAMESPACE, name));
    }
    let labels = json!({
        "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web", "boilerhouse.dev/tenant": "alice",
        "boilerhouse.dev/pool-status": "ready", "team": "a",
    });
    let pod = json!({
        "metadata": {"name": "p0", "namespace": NAMESPACE, "labels": labels}, "status": {"phase": "Running"},
    });
    store.create(ApiResource::Pods, pod).unwrap();
    let pods = store.revision();
    let claim = |phase: &str| {
        json!({
            "metadata": {"name": "c0", "namespace": NAMESPACE, "labels": {"team": "a"}},
            "spec": {"tenantId": "alice", "workloadRef": "web"},
            "status": {"phase": phase, "source": "pool"},
        })
    };
    store.create(ApiResource::Claims, claim("Pending")).unwrap();
    store.patch(ApiResource::Claims, NAMESPACE, "c0", &claim("Active")).unwrap();
    PerResource::new(pods, store.revision())
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// Connects one client for each filter. It reads from its `state.initial` until it has received everything up to `end`,
/// and returns its record.
async fn connect_clients(
    clients: &mut JoinSet<Vec<Entry>>,
    address: SocketAddr,
    end: &watch::Receiver<PerResource<ResourceVersion>>,
) {
    for (projection, expected) in projections().into_iter().enumerate() {
        let path = query("/api/websocket", &[("params", &expected.params().to_string())]);
        let mut client = WsClient::connect(address, &path).await;
        let mut record = vec![Entry::Connect { at: now_ms(), replica: 0, projection, start: Start::Snapshot }];
        let first = client.json().await;
        assert_eq!(first["type"], "state.initial", "{first}");
        record.push(Entry::Event(ReceivedEvent::new(first, now_ms(), false)));
        let end = end.clone();
        clients.spawn(async move {
            // A client without Pods receives their newest version only with an event of a claim.
            let has_pods = !expected.conditions.contains(&NO_POD);
            loop {
                let message = client.json().await;
                let versions = message["id"].as_str().map(|id| Cursor::decode(id).unwrap().versions);
                record.push(Entry::Event(ReceivedEvent::new(message, now_ms(), false)));
                let end = *end.borrow();
                let reached = |resource: Resource| versions.is_some_and(|versions| versions[resource] >= end[resource]);
                if (!has_pods || reached(Resource::Pods)) && reached(Resource::Claims) {
                    return record;
                }
            }
        });
    }
}

#[tokio::test]
async fn filtered_fold_equals_the_filtered_state_at_every_id() {
    let (count, writes) = SIZES[usize::from(long_form())];
    let (mut left, mut entered) = (0, 0);
    let seeds = seeds_to_run(0..count);
    let count = seeds.len();
    let mut applied = mutations::none_applied();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
        let cluster = SimCluster::new().await;
        let bridge = cluster.bridge(&[]).await;
        let mut rng = SeededRng(seed);
        let mut clients = JoinSet::new();
        let (end_sender, end) = watch::channel(PerResource::new(ResourceVersion::MAX, ResourceVersion::MAX));
        // Half of the clients connect before the writes, half of them in the middle.
        for _ in 0..2 {
            connect_clients(&mut clients, bridge.address, &end).await;
            for _ in 0..writes / 2 {
                cluster.sim.store(|store| write(store, &mut rng));
                tokio::task::yield_now().await;
            }
        }
        // The clients get the last versions before they can receive the events.
        cluster.sim.store(|store| end_sender.send_replace(last_writes(store)));
        let mut records = Vec::new();
        while let Some(record) = clients.join_next().await {
            records.push(record.unwrap());
        }
        let history = History::of_store(&[cluster.sim.store(|store| store.history().to_vec())]);
        let expected = ProjectedHistory::new(history, projections());
        let replicas = vec![ReplicaKnowledge::Undisturbed];
        let validator = StreamValidator { expected, replicas, resumes: Vec::new() };
        let mut generators = mutations::Generators::new(seed);
        for record in &records {
            let coverage = validator
                .validate(record)
                .unwrap_or_else(|violation| panic!("{}", violation.at(format!("seed {seed}, {:?}", record[0]))));
            left += coverage.left;
            entered += coverage.entered;
            mutations::reject_all(&validator, record, &mut generators, MAX_MUTATIONS, &mut applied);
        }
    }
    assert!(count == 1 || left > 100 && entered > 100, "too little was tested: {left} left, {entered} entered");
    assert!(applied.applicable() >= MIN_APPLICABLE, "too few mutations were applied: {applied:?}");
}

/// The cursor of a GET belongs to its filter. A stream with the same filter resumes there, however the filter is
/// written. A stream with another filter starts with a snapshot and its reason.
#[tokio::test]
async fn cursor_is_valid_only_for_its_filter() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    cluster.create_pod("a");
    cluster.create_pod("b");
    cluster.pod_phase("a", "Running");
    let filter = r#"{"instances":{"phase":"Running","workloadRef":"web"}}"#;
    let get = query("/api/v1/instances", &[("params", filter)]);
    let cursor = loop {
        let answer = http_client::get(bridge.address, &get).await;
        if answer.json().as_array().unwrap().len() == 1 {
            break answer.header("event-cursor").unwrap().to_owned();
        }
    };
    cluster.pod_phase("b", "Running");
    cluster.pod_phase("a", "Failed");
    let received = |message: &Value| {
        let name = message["name"].as_str().unwrap_or("-");
        format!("{} {name} {}", message["type"].as_str().unwrap(), message["cause"].as_str().unwrap_or("-"))
    };

    let same = r#" {"claims":{},"instances":{"labels":{},"workloadRef":"web","phase":"Running"}}"#;
    for params in [filter, same] {
        let path = query("/api/websocket", &[("params", params), ("lastEventId", &cursor)]);
        let mut client = bridge.listen(&path).await;
        let mut messages = Vec::new();
        while messages.len() < 3 {
            let message = client.json().await;
            if message["type"] != "pool.depth" {
                messages.push(received(&message));
            }
        }
        assert_eq!(messages, ["heartbeat - -", "instance.state b -", "instance.state a filtered"], "{params}");
    }

    for params in
        ["{}", r#"{"instances":{"phase":"Running"}}"#, r#"{"claims":{"phase":"Running","workloadRef":"web"}}"#]
    {
        for snapshot in ["state", "none"] {
            let parameters = [("params", params), ("lastEventId", &cursor), ("snapshot", snapshot)];
            let message = bridge.listen(&query("/api/websocket", &parameters)).await.json().await;
            assert_eq!((&message["type"], &message["reason"]), (&json!("state.initial"), &json!("filter")), "{params}");
            let instances = message["instances"].as_array().unwrap();
            let is_filtered = params.contains("instances");
            assert!(instances.iter().all(|i| !is_filtered || i["phase"] == "Running"), "{instances:?}");
            assert_eq!(instances.len(), if is_filtered { 1 } else { 2 }, "{params}: {instances:?}");
        }
    }
}

/// Every endpoint with filters rejects a malformed one with the same message, before it streams anything.
#[tokio::test]
async fn malformed_filter_is_rejected_with_accepted_values() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let rows: &[(&str, &str)] = &[
        ("", "not JSON"),
        ("phase=Running", r#"expected {"instances":{…},"claims":{…}}, URL-encoded"#),
        ("[]", "the value is an array; expected an object"),
        (r#"{"pods":{}}"#, "unknown key 'pods'; accepted keys: instances, claims"),
        (
            r#"{"instances":{"source":"pool"}}"#,
            "unknown key 'source' under instances; accepted keys: name, phase, workloadRef, tenantId, poolStatus, labels",
        ),
        (
            r#"{"claims":{"ready":"yes"}}"#,
            "unknown key 'ready' under claims; accepted keys: name, phase, tenantId, workloadRef, source, labels",
        ),
        (r#"{"claims":{"phase":["Active"]}}"#, "claims.phase is an array; expected a string"),
        (
            r#"{"instances":{"labels":{"team":1}}}"#,
            "instances.labels has 'team' as a number; expected a string, or null",
        ),
        (r#"{"claims":{"phase":"Active","phase":"Error"}}"#, "claims has 'phase' more than once"),
    ];
    let streams = ["/api/websocket", "/api/sse", "/api/events/stream", "/events/stream", "/events", "/events/ws"];
    let gets = ["/api/v1/instances", "/api/v1/instances/a", "/api/v1/tenants", "/api/v1/pools", "/api/v1/stats"];
    for (params, expected) in rows {
        for path in streams.iter().chain(&gets) {
            let target = query(path, &[("params", params)]);
            let answer = match *path {
                "/api/websocket" | "/events/ws" => http_client::request(bridge.address, "GET", &target, UPGRADE).await,
                _ => http_client::get(bridge.address, &target).await,
            };
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            assert_eq!(answer.status, 400, "{path} {params}");
            assert!(message.starts_with("parameter 'params': ") && message.contains(expected), "{path}: {message}");
        }
    }
    // `/ws` has no filters (docs/protocol.md#boilerhouse-stream). Its message names its parameters.
    let answer = http_client::request(bridge.address, "GET", "/ws?params=%7B%7D", UPGRADE).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("parameter 'params': unknown; accepted: types"), "{}", answer.body);
}

#[tokio::test]
async fn different_filters_of_a_caller_are_limited() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--max-filters-per-principal", "2"]).await;
    let path = |name: &str| {
        format!("/api/websocket?snapshot=none&params=%7B%22instances%22%3A%7B%22name%22%3A%22{name}%22%7D%7D")
    };
    let mut open = Vec::new();
    for name in ["a", "b", "a", "b"] {
        open.push(WsClient::connect(bridge.address, &path(name)).await);
    }
    assert_eq!(WsClient::try_connect(bridge.address, &path("c")).await.err(), Some(503));
    let sse = path("c").replace("/api/websocket", "/api/sse");
    let response = http_client::get(bridge.address, &sse).await;
    assert_eq!(response.status, 200);
    assert!(response.body.contains(r#""reason":"too many connections""#), "{}", response.body);
    // Without a filter there is no limit.
    open.push(WsClient::connect(bridge.address, "/api/websocket?snapshot=none").await);
    let reason = r#"reason="max_filters_per_principal""#;
    let rejected = http_client::metric_sum(bridge.address, "bridge_streams_rejected_total", &[reason]).await;
    assert_eq!(rejected, 2);
    drop(open);
    let start = tokio::time::Instant::now();
    while WsClient::try_connect(bridge.address, &path("c")).await.is_err() {
        assert!(start.elapsed() < http_client::TEST_TIMEOUT, "the filters of closed streams still count");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
