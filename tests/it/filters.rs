//! Filters on the wire (G7): a filtered client's fold is exactly the filtered state at every id, objects entering and
//! leaving included; a cursor belongs to its filter; a filter that is malformed is refused with help.
//!
//! What matches is decided here, by hand, on the raw objects of the simulated cluster's own history.

mod validator;

use std::net::SocketAddr;

use boilerhouse_bridge::{
    event::{Cursor, ResourceVersion},
    sim::{ApiResource, store::Store},
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};

use crate::support::{
    http_client::{self, WsClient},
    long_form,
    rng::SeededRng,
    seeds::{ReplayCommand, seeds, test_name},
    sim_cluster::{NAMESPACE, SimCluster},
};
use validator::FilterValidator;

/// What a WebSocket client sends, on a connection that ends where it is refused.
const UPGRADE: &[(&str, &str)] = &[
    ("Connection", "Upgrade, close"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A filter as a client writes it, and what it means.
#[derive(Clone, Debug)]
struct Case {
    params: Value,
    pod: fn(&Value) -> bool,
    claim: fn(&Value) -> bool,
}

fn any(_: &Value) -> bool {
    true
}

fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"][key].as_str()
}

/// What [`last_writes`] makes passes each of them, or the resource is not shown at all.
fn cases() -> Vec<Case> {
    fn web(pod: &Value) -> bool {
        label(pod, "boilerhouse.dev/workload") == Some("web")
    }
    fn ready(pod: &Value) -> bool {
        label(pod, "boilerhouse.dev/pool-status") == Some("ready")
    }
    let case = |params, pod, claim| Case { params, pod, claim };
    vec![
        case(json!({}), any, any),
        case(json!({"instances": {"phase": "Running"}}), |p| p["status"]["phase"] == "Running", any),
        case(json!({"instances": {"tenantId": "alice"}}), |p| label(p, "boilerhouse.dev/tenant") == Some("alice"), any),
        case(json!({"instances": {"workloadRef": "web"}}), web, any),
        case(json!({"instances": {"poolStatus": "ready"}}), ready, any),
        case(json!({"instances": {"labels": {"team": "a"}}}), |p| label(p, "team") == Some("a"), any),
        case(json!({"instances": {"labels": {"team": null}}}), |p| label(p, "team").is_some(), any),
        case(json!({"instances": {"name": "p0"}}), |p| p["metadata"]["name"] == "p0", any),
        case(json!({"instances": {"name": "nobody"}}), |_| false, any),
        case(json!({"claims": {"phase": "Active"}}), any, |c| c["status"]["phase"] == "Active"),
        case(
            json!({"claims": {"phase": "Pending"}, "instances": {"name": "p0"}}),
            |p| p["metadata"]["name"] == "p0",
            |c| c["status"]["phase"].as_str().unwrap_or("Pending") == "Pending",
        ),
        case(json!({"claims": {"source": "pool"}}), any, |c| c["status"]["source"] == "pool"),
        case(json!({"claims": {"tenantId": "alice", "workloadRef": "web", "labels": {"team": null}}}), any, |c| {
            c["spec"]["tenantId"] == "alice" && c["spec"]["workloadRef"] == "web" && label(c, "team").is_some()
        }),
        case(
            json!({"instances": {"workloadRef": "web", "poolStatus": "ready", "labels": {"team": "a"}}, "claims": {"name": "c0"}}),
            |p| web(p) && ready(p) && label(p, "team") == Some("a"),
            |c| c["metadata"]["name"] == "c0",
        ),
    ]
}

fn query(path: &str, parameters: &[(&str, &str)]) -> String {
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
    format!("{path}?{query}")
}

/// Another random write; what does not apply at the moment changes nothing.
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
        5 | 6 => store.patch(
            ApiResource::Pods,
            NAMESPACE,
            &pod,
            &json!({"metadata": {"labels": {&key: labels[&key].clone()}}}),
        ),
        7 => {
            let status =
                json!({"phase": maybe(rng, &["Pending", "Running", "Failed"]), "podIP": maybe(rng, &["10.0.0.1"])});
            store.patch(ApiResource::Pods, NAMESPACE, &pod, &json!({"status": status}))
        }
        // Nothing that a view shows.
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
    // That there is no such object, or already one, is as good as a write of nothing.
    drop(result);
}

/// Writes that every client is told of; the versions of the last ones, pods then claims.
fn last_writes(store: &mut Store) -> [ResourceVersion; 2] {
    for (resource, name) in [(ApiResource::Pods, "p0"), (ApiResource::Claims, "c0")] {
        // It may not be there.
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
    [pods, store.revision()]
}

/// Connects a client of each case, which reads from its own `state.initial` on until it has been told everything up to
/// `end`.
async fn connect(
    clients: &mut JoinSet<(Case, Vec<Value>)>,
    address: SocketAddr,
    end: &watch::Receiver<[ResourceVersion; 2]>,
) {
    for case in cases() {
        let path = query("/api/websocket", &[("params", &case.params.to_string())]);
        let mut listener = WsClient::connect(address, &path).await;
        let mut messages = vec![listener.json().await];
        assert_eq!(messages[0]["type"], "state.initial", "{messages:?}");
        let end = end.clone();
        clients.spawn(async move {
            // Whoever is not shown a resource learns its versions by the way, sooner or later.
            let blind = case.params["instances"]["name"] == "nobody";
            loop {
                let message = listener.json().await;
                let id = message["id"].as_str().map(|id| Cursor::decode(id).unwrap().versions.into_array());
                messages.push(message);
                let end = *end.borrow();
                if id.is_some_and(|rv| (blind || rv[0] >= end[0]) && rv[1] >= end[1]) {
                    return (case, messages);
                }
            }
        });
    }
}

#[tokio::test]
async fn filtered_fold_equals_the_filtered_state_at_every_id() {
    let (count, writes) = if long_form() { (20, 2_000) } else { (3, 400) };
    let (mut left, mut entered) = (0, 0);
    let seeds = seeds(0..count);
    let count = seeds.len();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test_name!(), seed);
        let cluster = SimCluster::new().await;
        let bridge = cluster.bridge(&[]).await;
        let mut rng = SeededRng(seed);
        let mut clients = JoinSet::new();
        let (tell_end, end) = watch::channel([ResourceVersion::MAX; 2]);
        // Some see it from the beginning, some come when much has happened.
        for _ in 0..2 {
            connect(&mut clients, bridge.address, &end).await;
            for _ in 0..writes / 2 {
                cluster.sim.store(|store| write(store, &mut rng));
                tokio::task::yield_now().await;
            }
        }
        // Told before anybody can see them.
        cluster.sim.store(|store| tell_end.send_replace(last_writes(store)));
        while let Some(client) = clients.join_next().await {
            let (case, messages) = client.unwrap();
            let (out, back) = cluster.sim.store(|store| {
                let mut validator = FilterValidator::new(store, &case);
                if let Err(problem) = messages.iter().try_for_each(|message| validator.receive(message)) {
                    panic!("seed {seed}, {}: {problem}", case.params);
                }
                validator.finish().unwrap_or_else(|problem| panic!("seed {seed}, {}: {problem}", case.params))
            });
            left += out;
            entered += back;
        }
    }
    assert!(count == 1 || left > 100 && entered > 100, "too little happened: {left} left, {entered} entered");
}

/// A GET's cursor is one of its filter: a stream with the same filter, however it is written, goes on from there; one
/// with another filter begins anew and says why.
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
        let mut listener = bridge.listen(&path).await;
        let mut messages = Vec::new();
        while messages.len() < 3 {
            let message = listener.json().await;
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
            let running = params.contains("instances");
            assert!(instances.iter().all(|i| !running || i["phase"] == "Running"), "{instances:?}");
            assert_eq!(instances.len(), if running { 1 } else { 2 }, "{params}: {instances:?}");
        }
    }
}

/// The sentence that says what is wrong is the same wherever filters are taken; nothing is streamed.
#[tokio::test]
async fn malformed_filter_is_rejected_with_accepted_values() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let rows: &[(&str, &str)] = &[
        ("", "not JSON"),
        ("phase=Running", r#"accepted is {"instances":{…},"claims":{…}}, URL-encoded"#),
        ("[]", "the whole is an array: accepted is an object"),
        (r#"{"pods":{}}"#, "unknown key 'pods': accepted are instances, claims"),
        (
            r#"{"instances":{"source":"pool"}}"#,
            "unknown key 'source' under instances: accepted are name, phase, workloadRef, tenantId, poolStatus, labels",
        ),
        (
            r#"{"claims":{"ready":"yes"}}"#,
            "unknown key 'ready' under claims: accepted are name, phase, tenantId, workloadRef, source, labels",
        ),
        (r#"{"claims":{"phase":["Active"]}}"#, "claims.phase is an array: accepted is a string"),
        (
            r#"{"instances":{"labels":{"team":1}}}"#,
            "instances.labels has 'team' as a number: accepted are a string, and null",
        ),
        (r#"{"claims":{"phase":"Active","phase":"Error"}}"#, "claims has 'phase' more than once"),
    ];
    let streams = ["/api/websocket", "/api/sse", "/api/events/stream", "/events/stream", "/events", "/events/ws"];
    let gets = ["/api/v1/instances", "/api/v1/instances/a", "/api/v1/tenants", "/api/v1/pools", "/api/v1/stats"];
    for (params, sentence) in rows {
        for path in streams.iter().chain(&gets) {
            let target = query(path, &[("params", params)]);
            let answer = match *path {
                "/api/websocket" | "/events/ws" => http_client::request(bridge.address, "GET", &target, UPGRADE).await,
                _ => http_client::get(bridge.address, &target).await,
            };
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            assert_eq!(answer.status, 400, "{path} {params}");
            assert!(message.starts_with("parameter 'params': ") && message.contains(sentence), "{path}: {message}");
        }
    }
    // `/ws` has no filters (docs/protocol.md#boilerhouse-stream), and says what it has.
    let answer = http_client::request(bridge.address, "GET", "/ws?params=%7B%7D", UPGRADE).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("parameter 'params': unknown; accepted are types"), "{}", answer.body);
}
