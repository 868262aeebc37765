//! Golden files of every GET and every error (docs/protocol.md#snapshots and docs/protocol.md#errors).
//!
//! The uids, times and versions of the simulated cluster are fixed, so the golden files are exact, response heads
//! included. Only `Date` and `Connection: close` are left out, and the value of `RateLimit` is replaced.

use std::fmt::Write as _;

use boilerhouse_bridge::sim::{ApiResource, SimConfig, store::Store};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::{
    bridge_process::BridgeProcess,
    golden,
    http_client::{self, HttpResponse, TEST_TIMEOUT},
    long_form,
    sim_cluster::{NAMESPACE, SimCluster, kubeconfig},
};

/// The time of the simulated cluster.
const START: &str = "2026-01-02T03:04:05Z";
/// An allowed origin.
const APP: &str = "https://app.example";
/// Headers of a WebSocket client.
const UPGRADE: &[(&str, &str)] = &[
    ("Connection", "Upgrade, close"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// One request: title, method, target, headers. `{etag}` in a header stands for the newest ETag of an earlier response.
type Row<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)]);

fn config() -> SimConfig {
    SimConfig { seed: 7, start: START.parse().unwrap(), ..SimConfig::default() }
}

/// Returns a cluster with objects of every kind. They are created in no particular order, all at the same time.
async fn cluster() -> SimCluster {
    let cluster = SimCluster::with(config()).await;
    cluster.sim.store(|store| {
        store.set_time(START.parse().unwrap());
        fill(store);
    });
    cluster
}

/// Creates the objects. The builders of `test_support` are not used: the tests need an IP, a missing phase and
/// malformed fields.
fn fill(store: &mut Store) {
    let pod = |name: &str, labels: Value, status: Value| json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "status": status});
    let labels = |workload: &str, pool: &str| json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": workload, "boilerhouse.dev/pool-status": pool});
    let mut acquired = labels("web", "acquired");
    acquired["boilerhouse.dev/tenant"] = json!("alice");
    let running = |ip: &str| json!({"phase": "Running", "podIP": ip});
    let pods = [
        pod("web-taken", acquired, running("10.0.0.4")),
        pod("web-ready", labels("web", "ready"), running("10.0.0.3")),
        pod("db-warming", labels("db", "warming"), json!({"phase": "Pending"})),
        pod("db-odd", labels("db", "on fire"), running("10.0.0.5")),
        pod("a-bare-one", json!({"boilerhouse.dev/managed": "true"}), json!({"podIP": 7})),
        pod("web-two-released", labels("web", "acquired"), running("10.0.0.6")),
        pod("web-two-active", labels("web", "acquired"), json!({"phase": "Failed"})),
        pod("stranger", json!({"app": "else"}), running("10.0.0.9")),
    ];
    let claim = |name: &str, tenant: &str, active: &str, status: Value| {
        let mut claim = json!({
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"tenantId": tenant, "workloadRef": "web"},
        });
        if !status.is_null() {
            claim["status"] = status;
        }
        if !active.is_empty() {
            claim["metadata"]["annotations"] = json!({"boilerhouse.dev/last-activity": active});
        }
        claim
    };
    let status = |pod: &str, phase: &str, at: &str| json!({"phase": phase, "instanceId": pod, "claimedAt": at});
    let mut complete = status("web-taken", "Active", "2026-01-01T10:00:00Z");
    complete["endpoint"] = json!({"host": "10.0.0.4", "port": 8080});
    complete["source"] = json!("pool+data");
    complete["detail"] = json!("warm \"and\" well");
    let mut labelled = claim("alice-web", "alice", "2026-01-02T01:00:00Z", complete);
    labelled["metadata"]["labels"] = json!({"team": "a"});
    let claims = [
        // An active claim is joined rather than a newer claim that is not active.
        claim("alice-older", "alice", "2026-01-02T02:00:00Z", status("web-taken", "Released", "2026-01-01T11:00:00Z")),
        labelled,
        // Of two claims that are both active, or both not active, the newer one is joined.
        claim("bob-1", "bob", "2026-01-01T12:00:00Z", status("web-two-released", "Released", "2026-01-01T08:00:00Z")),
        claim("bob-2", "bob", "", status("web-two-released", "ReleaseFailed", "2026-01-01T09:00:00Z")),
        claim("carol-2", "carol", "2026-01-01T21:00:00Z", status("web-two-active", "Active", "2026-01-01T20:00:00Z")),
        claim("carol-1", "carol", "2026-01-01T23:00:00Z", status("web-two-active", "Active", "2026-01-01T19:00:00Z")),
        // A claim without a status, of a tenant whose name needs percent-encoding; a claim of a Pod that does not
        // exist.
        claim("odd", "team/ü 1%", "", Value::Null),
        claim("lost", "Zoë", "2026-01-01T00:00:00Z", status("gone", "Error", "2026-01-01T00:00:00Z")),
    ];
    for (resource, objects) in [(ApiResource::Pods, Vec::from(pods)), (ApiResource::Claims, Vec::from(claims))] {
        for object in objects {
            store.create(resource, object).unwrap();
        }
    }
}

/// Returns a path with this filter.
fn params(path: &str, filter: &str) -> String {
    let encoded: String = form_urlencoded::byte_serialize(filter.as_bytes()).collect();
    format!("{path}?params={encoded}")
}

/// Sends the requests of all rows, and returns requests and responses as text.
async fn transcript(bridge: &BridgeProcess, rows: &[Row<'_>]) -> String {
    let (mut text, mut etag) = (String::new(), String::new());
    for (title, method, target, headers) in rows {
        let filled: Vec<_> = headers.iter().map(|(name, value)| (*name, value.replace("{etag}", &etag))).collect();
        let mut sent = vec![("Host", "localhost:3000")];
        sent.extend(filled.iter().map(|(name, value)| (*name, value.as_str())));
        let response = http_client::request(bridge.address, method, target, &sent).await;
        if let Some(tag) = response.header("etag") {
            etag = tag.to_owned();
        }
        writeln!(text, "# {title}\n> {method} {target}").unwrap();
        for (name, value) in headers.iter().filter(|header| !UPGRADE.contains(header)) {
            writeln!(text, "> {name}: {value}").unwrap();
        }
        append_response(&mut text, &response);
    }
    text
}

fn append_response(text: &mut String, response: &HttpResponse) {
    writeln!(text, "< {}", response.status).unwrap();
    let is_constant =
        |(name, value): &&(String, String)| name != "date" && (name, value) != (&"connection".into(), &"close".into());
    for (name, value) in response.headers.iter().filter(is_constant) {
        // The remaining budget depends on the speed of the test.
        let value = if name == "ratelimit" { "\"default\";r=R;t=T" } else { value };
        writeln!(text, "< {name}: {value}").unwrap();
    }
    writeln!(text, "{}\n", response.body.trim_end()).unwrap();
}

#[tokio::test]
async fn every_response_matches_the_golden_file() {
    let cluster = cluster().await;
    let bridge = cluster.bridge(&["--cors-origin", APP]).await;
    let namespace = cluster.sim.store(|store| store.get(ApiResource::Namespaces, "", NAMESPACE).unwrap());
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, namespace["metadata"]["uid"].as_str().unwrap().as_bytes());
    let with_connection = format!("/api/v1/pools?connectionId={id}");
    let web = params("/api/v1/instances", r#"{"instances":{"workloadRef":"web","phase":"Running"}}"#);
    let matching = params("/api/v1/instances/web-taken", r#"{"instances":{"workloadRef":"web"}}"#);
    let not_matching = params("/api/v1/instances/web-taken", r#"{"instances":{"poolStatus":"ready"}}"#);
    let labelled = params("/api/v1/tenants", r#"{"claims":{"labels":{"team":null}}}"#);
    let no_match = params("/api/v1/tenants/alice", r#"{"claims":{"phase":"Error"}}"#);
    let pool = params("/api/v1/pools", r#"{"instances":{"workloadRef":"db"}}"#);
    let counts = params("/api/v1/stats", r#"{"instances":{"poolStatus":"acquired"},"claims":{"tenantId":"bob"}}"#);
    let unknown = params("/api/v1/instances", r#"{"instances":{"tenant":"alice"}}"#);
    let foreign = "/api/v1/pools?connectionId=00000000-0000-5000-8000-000000000000";
    let preflight: &[_] = &[
        ("Origin", APP),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "if-none-match"),
    ];
    let rows: &[Row] = &[
        ("instances, by name, joined with the claim that speaks for each", "GET", "/api/v1/instances", &[]),
        ("one of them", "GET", "/api/v1/instances/web-taken", &[]),
        ("tenants, by id, their claims by name", "GET", "/api/v1/tenants", &[]),
        ("one of them", "GET", "/api/v1/tenants/alice", &[]),
        ("one whose id needs encoding", "GET", "/api/v1/tenants/team%2F%C3%BC%201%25", &[]),
        ("one with a letter that does not", "GET", "/api/v1/tenants/Zo%c3%ab", &[]),
        ("pools", "GET", "/api/v1/pools", &[]),
        ("stats", "GET", "/api/v1/stats", &[]),
        ("telemetry, of no tunnel yet", "GET", "/v1/tunnels/telemetry", &[]),
        ("the same", "GET", "/api/v1/telemetry", &[]),
        ("filtered instances", "GET", &web, &[]),
        ("one of them, filtered", "GET", &matching, &[]),
        ("one that is filtered out does not exist", "GET", &not_matching, &[]),
        ("tenants, as far as their claims pass a filter", "GET", &labelled, &[]),
        ("one whose claims are all filtered out", "GET", &no_match, &[]),
        ("filtered pools", "GET", &pool, &[]),
        ("filtered stats", "GET", &counts, &[]),
        ("health", "GET", "/api/v1/health", &[]),
        ("live", "GET", "/livez", &[]),
        ("ready", "GET", "/readyz", &[]),
        ("ready, at length", "GET", "/readyz?verbose", &[]),
        ("the list of endpoints", "GET", "/", &[]),
        ("the dashboard, for browsers", "HEAD", "/", &[("Accept", "text/html,application/xml;q=0.9,*/*;q=0.8")]),
        ("a file of it", "GET", "/assets/vendor/htm.js", &[]),
        ("a file of it that the client has", "GET", "/assets/vendor/htm.js", &[("If-None-Match", "{etag}")]),
        ("a file that does not exist", "GET", "/assets/../../Cargo.toml", &[]),
        ("a parameter of a file", "GET", "/client.js?x=1", &[]),
        ("HEAD is GET without the body", "HEAD", "/api/v1/pools", &[]),
        ("the own connection by its id", "GET", &with_connection, &[]),
        ("another connection", "GET", foreign, &[]),
        ("what the client has already", "GET", "/api/v1/pools", &[("If-None-Match", "{etag}")]),
        ("in a list", "GET", "/api/v1/pools", &[("If-None-Match", "\"other\", {etag}")]),
        ("weakly", "GET", "/api/v1/pools", &[("If-None-Match", "W/{etag}")]),
        ("anything", "GET", "/api/v1/pools", &[("If-None-Match", "*")]),
        ("in the second header", "GET", "/api/v1/pools", &[("If-None-Match", "\"a\""), ("If-None-Match", "{etag}")]),
        ("by HEAD", "HEAD", "/api/v1/pools", &[("If-None-Match", "{etag}")]),
        ("something else", "GET", "/api/v1/pools", &[("If-None-Match", "\"other\"")]),
        ("an unknown parameter", "GET", "/api/v1/instances?limit=5", &[]),
        ("an unknown parameter where none is known", "GET", "/api/v1/health?x", &[]),
        ("a parameter twice", "GET", "/api/v1/instances?connectionId=a&connectionId=a", &[]),
        ("params that are not JSON", "GET", "/api/v1/stats?params=phase=Running", &[]),
        ("params with an unknown key", "GET", &unknown, &[]),
        ("no such instance", "GET", "/api/v1/instances/none", &[]),
        ("one that is not managed", "GET", "/api/v1/instances/stranger", &[]),
        ("no such tenant", "GET", "/api/v1/tenants/none", &[]),
        ("an id that is not UTF-8", "GET", "/api/v1/tenants/%ff", &[]),
        ("no such path", "GET", "/api/v1/nothing?here", &[]),
        ("a path too long", "GET", "/api/v1/instances/web-ready/logs", &[]),
        ("another method", "POST", "/api/v1/instances", &[("Content-Length", "0")]),
        ("telemetry of no UUID", "POST", "/v1/tunnels/web-ready/telemetry", &[("Content-Length", "0")]),
        ("telemetry of no instance", "POST", "/v1/tunnels/01234567-89ab-cdef-0123-456789abcdef/telemetry", &[]),
        ("telemetry for a client that wants HTML", "GET", "/v1/tunnels/telemetry", &[("Accept", "text/html")]),
        ("another method, nowhere", "DELETE", "/nowhere", &[]),
        ("a WebSocket, asked for without an upgrade", "GET", "/ws", &[]),
        ("another version of it", "GET", "/ws", &[UPGRADE[0], UPGRADE[1], ("Sec-WebSocket-Version", "8"), UPGRADE[3]]),
        ("a key too short", "GET", "/ws", &[UPGRADE[0], UPGRADE[1], UPGRADE[2], ("Sec-WebSocket-Key", "c2hvcnQ=")]),
        ("an unknown type", "GET", "/ws?types=instance,pods", UPGRADE),
        ("an unknown snapshot", "GET", "/ws?snapshot=half", UPGRADE),
        ("a parameter that /ws does not have", "GET", "/ws?lastEventId=1", UPGRADE),
        ("another connection's stream", "GET", &foreign.replace("/api/v1/pools", "/ws"), UPGRADE),
        ("OPTIONS", "OPTIONS", "/api/v1/instances", &[]),
        ("OPTIONS of nothing", "OPTIONS", "/nowhere", &[]),
        ("from an allowed origin", "GET", "/api/v1/health", &[("Origin", APP)]),
        ("an allowed origin's error", "GET", "/api/v1/instances/none", &[("Origin", APP)]),
        ("an allowed origin's preflight", "OPTIONS", "/api/v1/instances", preflight),
        ("a foreign origin's", "OPTIONS", "/api/v1/instances", &[("Origin", "https://evil.example"), preflight[1]]),
        ("an origin that is none", "GET", "/api/v1/instances", &[("Origin", "null")]),
    ];
    golden::check("gets.txt", &transcript(&bridge, rows).await);
}

/// Clients add a parameter with a changing value to pass caches. Its name begins with `_`.
#[tokio::test]
async fn parameters_that_begin_with_an_underscore_are_ignored() {
    const IGNORED: &str = "_=1690000000000&_=2&_t=x&%5Fcb&_types=pods";
    let cluster = cluster().await;
    let bridge = cluster.bridge(&[]).await;
    let gets = [
        "/",
        "/livez",
        "/readyz",
        "/readyz?verbose",
        "/api/v1/health",
        "/metrics",
        "/api/v1/connections",
        "/client.js",
    ];
    let states = ["instances", "instances/web-taken", "tenants", "tenants/alice", "pools", "stats"];
    let states = states.map(|name| format!("/api/v1/{name}"));
    let sse = ["/api/sse", "/api/events/stream", "/events/stream", "/events"];
    let answered = gets.into_iter().chain(states.iter().map(String::as_str)).map(|path| ("GET", path, 200));
    let streams = sse.map(|path| ("HEAD", path, 200)).into_iter();
    let sessions = [("DELETE", "/api/v1/session", 204), ("POST", "/api/v1/tickets", 403)].into_iter();
    for (method, path, status) in answered.chain(streams).chain(sessions) {
        let separator = if path.contains('?') { '&' } else { '?' };
        let response = http_client::request(bridge.address, method, &format!("{path}{separator}{IGNORED}"), &[]).await;
        assert_eq!(response.status, status, "{path}: {response:?}");
        let unknown = format!("{path}{separator}{IGNORED}&x_=1");
        assert_eq!(http_client::request(bridge.address, method, &unknown, &[]).await.status, 400, "{unknown}");
    }
    for path in ["/ws", "/api/websocket", "/events/ws"] {
        let upgrade = http_client::upgrade(bridge.address, &format!("{path}?{IGNORED}"));
        assert_eq!(http_client::request_raw(bridge.address, &upgrade).await.status, 101, "{path}");
        let upgrade = http_client::upgrade(bridge.address, &format!("{path}?{IGNORED}&x_=1"));
        let upgrade = upgrade.replace("Connection: Upgrade", "Connection: Upgrade, close");
        assert_eq!(http_client::request_raw(bridge.address, &upgrade).await.status, 400, "{path}");
    }
}

/// Written by hand, so that an error in a rewritten golden file is noticed: the instances, their order, and the joined
/// claim.
#[tokio::test]
async fn instance_includes_times_of_its_claim() {
    let cluster = cluster().await;
    let bridge = cluster.bridge(&[]).await;
    let instances = http_client::get(bridge.address, "/api/v1/instances").await.json();
    let joined = instances.as_array().unwrap().iter().map(|instance| {
        let field = |name: &str| instance[name].as_str().unwrap_or("-").to_owned();
        [field("name"), field("claimedAt"), field("lastActivity")]
    });
    let joined: Vec<_> = joined.collect();
    assert_eq!(
        joined,
        [
            ["a-bare-one", "-", "-"],
            ["db-odd", "-", "-"],
            ["db-warming", "-", "-"],
            ["web-ready", "-", "-"],
            ["web-taken", "2026-01-01T10:00:00Z", "2026-01-02T01:00:00Z"],
            ["web-two-active", "2026-01-01T20:00:00Z", "2026-01-01T21:00:00Z"],
            ["web-two-released", "2026-01-01T09:00:00Z", "-"],
        ]
    );
    let tenants = http_client::get(bridge.address, "/api/v1/tenants").await.json();
    let tenants: Vec<_> = tenants
        .as_array()
        .unwrap()
        .iter()
        .map(|tenant| {
            let claims = tenant["claims"].as_array().unwrap().iter().map(|claim| claim["name"].as_str().unwrap());
            format!("{}: {}", tenant["tenantId"].as_str().unwrap(), claims.collect::<Vec<_>>().join(" "))
        })
        .collect();
    assert_eq!(
        tenants,
        ["Zoë: lost", "alice: alice-older alice-web", "bob: bob-1 bob-2", "carol: carol-1 carol-2", "team/ü 1%: odd",]
    );
}

/// The ETag of a GET changes if and only if its body changes. The cursor changes if and only if the version changes.
#[tokio::test]
async fn etags_and_cursors_change_only_with_the_state() {
    let cluster = cluster().await;
    let bridge = cluster.bridge(&[]).await;
    let replica = cluster.bridge(&[]).await;
    let head = |response: &HttpResponse| ["etag", "event-cursor"].map(|name| response.header(name).unwrap().to_owned());
    let before = head(&http_client::get(bridge.address, "/api/v1/pools").await);
    assert_eq!(
        before,
        head(&http_client::get(replica.address, "/api/v1/pools").await),
        "ETag and cursor of two replicas"
    );
    let irrelevant = json!({"metadata": {"labels": {"new": "label"}}});
    cluster.sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, "web-ready", &irrelevant)).unwrap();
    let moved = wait_for(&bridge, "/api/v1/pools", |response| head(response)[1] != before[1]).await;
    assert_eq!(head(&moved)[0], before[0], "ETag of unchanged pools");
    let ready = json!({"metadata": {"labels": {"boilerhouse.dev/pool-status": "ready"}}});
    cluster.sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, "db-warming", &ready)).unwrap();
    let changed = wait_for(&bridge, "/api/v1/pools", |response| head(response)[0] != before[0]).await;
    assert_eq!(changed.json()[0], json!({"workloadRef": "db", "warming": 0, "ready": 1, "acquired": 0}));
    let response = http_client::request(bridge.address, "GET", "/api/v1/pools", &[("If-None-Match", &before[0])]).await;
    assert_eq!(response.status, 200);
}

/// Without a reachable API server, every endpoint that needs the state is 503.
#[tokio::test]
async fn get_is_503_before_the_first_sync() {
    // No process listens on port 1 (tcpmux).
    let kubeconfig = kubeconfig("http://127.0.0.1:1");
    let bridge = BridgeProcess::start(&kubeconfig.path().to_string_lossy(), NAMESPACE, &["--cors-origin", APP]).await;
    // The order in which the two lists fail is random. After both have failed, the response has two reasons.
    wait_for(&bridge, "/readyz?verbose", |response| response.body.matches("down for").count() == 2).await;
    let mut rows: Vec<Row> = vec![
        ("instances", "GET", "/api/v1/instances", &[]),
        ("one instance", "GET", "/api/v1/instances/a", &[]),
        ("tenants", "GET", "/api/v1/tenants", &[]),
        ("one tenant", "GET", "/api/v1/tenants/a", &[]),
        ("pools", "GET", "/api/v1/pools", &[]),
        ("stats", "GET", "/api/v1/stats", &[]),
        ("telemetry", "GET", "/v1/tunnels/telemetry", &[]),
        ("stats, by HEAD", "HEAD", "/api/v1/stats", &[]),
        ("stats, from an allowed origin", "GET", "/api/v1/stats", &[("Origin", APP)]),
        ("health", "GET", "/api/v1/health", &[]),
        ("live", "GET", "/livez", &[]),
        ("ready", "GET", "/readyz", &[]),
        ("ready, at length", "GET", "/readyz?verbose", &[]),
        ("a mistake is told first", "GET", "/api/v1/stats?x", &[]),
    ];
    let text = transcript(&bridge, &rows).await;
    let mut golden = String::new();
    for line in text.lines() {
        // The duration of the outage and its number of digits vary.
        match line.split_once("down for ").and_then(|(before, rest)| Some((before, rest.split_once(" s: ")?.1))) {
            Some((before, reason)) => writeln!(golden, "{before}down for N s: {reason}").unwrap(),
            None => writeln!(golden, "{line}").unwrap(),
        }
    }
    golden::check("gets-not-ready.txt", &golden);
    if long_form() {
        // The upgrade waits 10 s (`sync_timeout`) for the lists before the same 503.
        rows = vec![("the stream", "GET", "/ws", UPGRADE)];
        golden::check("gets-not-ready-ws.txt", &transcript(&bridge, &rows).await);
    }
}

/// Names, types and units of the metrics.
#[tokio::test]
async fn metric_names_match_the_golden_file() {
    let cluster = cluster().await;
    let bridge = cluster.bridge(&[]).await;
    let mut listener = bridge.listen("/ws").await;
    listener.text().await;
    let answer = http_client::get(bridge.address, "/metrics").await;
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
    let mut names: Vec<_> = answer.body.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    names.sort_unstable();
    golden::check("metrics.txt", &(names.join("\n") + "\n"));
    let samples = answer.body.lines().filter(|line| !line.starts_with('#'));
    for sample in samples {
        let value = sample.rsplit(' ').next().unwrap();
        let has_prefix = ["bridge_", "process_"].iter().any(|prefix| sample.starts_with(prefix));
        assert!(has_prefix && value.parse::<f64>().is_ok(), "{sample}");
    }
}

#[tokio::test]
async fn requests_are_counted_by_route_pattern_method_and_code() {
    let cluster = cluster().await;
    let bridge = cluster.bridge(&[]).await;
    let mut stream = bridge.listen("/ws").await;
    stream.text().await;
    for (method, path) in [
        ("GET", "/api/v1/instances/none"),
        ("HEAD", "/livez"),
        ("GET", "/api/v1/tenants/none/"),
        ("GET", "/nowhere"),
        ("BREW", "/nowhere"),
        ("POST", "/api/sse"),
    ] {
        http_client::request(bridge.address, method, path, &[]).await;
    }
    http_client::request(bridge.address, "GET", "/livez", &[("Host", "evil.example")]).await;
    http_client::request(bridge.address, "GET", "/livez", &[("Origin", "https://evil.example")]).await;
    for (route, method, code) in [
        ("/ws", "GET", 101),
        ("/api/v1/instances/{name}", "GET", 404),
        ("/livez", "HEAD", 200),
        ("/api/v1/tenants/{tenantId}", "GET", 404),
        ("other", "GET", 404),
        ("other", "other", 404),
        ("/api/sse", "POST", 405),
    ] {
        let name = format!(r#"bridge_http_requests_total{{route="{route}",method="{method}",code="{code}"}}"#);
        assert_eq!(http_client::metric(bridge.address, &name).await, 1, "{name}");
    }
    for check in ["host", "origin"] {
        let name = format!(r#"bridge_http_guard_rejections_total{{check="{check}"}}"#);
        assert_eq!(http_client::metric(bridge.address, &name).await, 1, "{name}");
    }
}

/// Polls a GET until its response matches.
async fn wait_for(
    bridge: &BridgeProcess,
    target: &str,
    mut matches: impl FnMut(&HttpResponse) -> bool,
) -> HttpResponse {
    let found = timeout(TEST_TIMEOUT, async {
        loop {
            let response = http_client::get(bridge.address, target).await;
            if matches(&response) {
                return response;
            }
            sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("no matching response of {target}; log: {:#?}", bridge.log()))
}
