//! The access matrix: every credential at every endpoint, with every Origin and every Host.
//!
//! The test sends each request to the binary and compares status and body with the tables below. The tables are written
//! by hand. They also state which check answers first.

mod fixture;

use futures::{StreamExt, stream};
use serde_json::{Value, json};

use self::fixture::{Fixture, Observed};

/// Number of concurrent requests.
const CONCURRENCY: usize = 16;
/// Minimum number of cells, so that a table that lost rows is noticed.
const MIN_CELLS: usize = 500;

/// Result of the Origin and Host checks: `pass`, `cors` (passes, and the response names the Origin), or the check that
/// rejects the request. The other checks apply only to a request that passes.
const ORIGIN_AND_HOST: &str = "
    Origin    loopback  ip      allowed  rebinding
    none      pass      pass    pass     host
    same      pass      pass    pass     host
    allowed   cors      cors    cors     host
    foreign   origin    origin  origin   host
    null      origin    origin  origin   host
";

/// Result for each credential and class of endpoints: `all` (the objects of all tenants), `alice` (the objects of
/// alice), or a denial, by its name in [`denial`]. The bridge has tenant keys. The last two rows are requests to a
/// bridge without configured credentials.
const CREDENTIALS: &str = "
    credential       probe  no-path  preflight  post  totals   read     bob      pools    ws       stream   issue  ingest
    none             all    all      all        all   missing  missing  missing  missing  no-ws    missing  no-issue  missing
    wrong            all    all      all        all   unknown  unknown  unknown  unknown  unknown  unknown  unknown  unknown
    expired          all    all      all        all   expired  expired  expired  expired  expired  expired  expired  expired
    key              all    all      all        all   all      all      all      all      all      all      all  no-ingest
    no-read          all    all      all        all   no-read  no-read  no-read  no-read  no-read  no-read  no-read  no-tunnel
    tenant           all    all      all        all   tenant   alice    alice    tenant   alice    alice    alice  no-ingest2
    token            all    all      all        all   all      all      all      all      all      all      all  user-ingest
    other-audience   all    all      all        all   unknown  unknown  unknown  unknown  unknown  unknown  unknown  unknown
    no-list          all    all      all        all   no-list  no-list  no-list  no-list  no-list  no-list  no-list  no-list
    no-watch         all    all      all        all   no-watch no-watch no-watch no-watch no-watch no-watch no-watch  no-watch
    cookie           all    all      all        all   all      all      all      all      all      all      no-issue  no-ingest
    tenant-cookie    all    all      all        all   tenant   alice    alice    tenant   alice    alice    no-issue  no-ingest2
    other-cookie     all    all      all        all   at-host  at-host  at-host  at-host  at-host  at-host  no-issue  at-host
    ticket           param  all      all        all   missing  missing  missing  missing  no-ws    all      no-issue  missing
    tenant-ticket    param  all      all        all   missing  missing  missing  missing  no-ws    alice    no-issue  missing
    expired-ticket   param  all      all        all   missing  missing  missing  missing  no-ws    expired  no-issue  missing
    removed-ticket   param  all      all        all   missing  missing  missing  missing  no-ws    unknown  no-issue  missing
    key-in-query     param  all      all        all   missing  missing  missing  missing  no-ws    in-query no-issue  missing
    open-none        all    all      all        all   all      all      all      all      all      all      open  no-tunnel
    open-any         all    all      all        all   all      all      all      all      all      all      open  no-tunnel
";

/// The endpoints of each class. A stream that does not start with the current state by default is requested with
/// `snapshot=state`.
const ENDPOINTS: &[(&str, &str, &str)] = &[
    ("probe", "GET", "/api/v1/health"),
    ("probe", "GET", "/livez"),
    ("probe", "GET", "/readyz"),
    ("no-path", "GET", "/api/v1/nothing"),
    ("preflight", "OPTIONS", "/api/v1/pools"),
    ("post", "POST", "/api/v1/pools"),
    ("totals", "GET", "/api/v1/stats"),
    ("totals", "GET", "/metrics"),
    ("read", "GET", "/api/v1/instances"),
    ("read", "GET", "/api/v1/tenants"),
    ("read", "GET", "/api/v1/connections"),
    ("bob", "GET", "/api/v1/instances/bob-pod"),
    ("bob", "GET", "/api/v1/tenants/bob"),
    ("pools", "GET", "/api/v1/pools"),
    ("ws", "GET", "/ws"),
    ("stream", "GET", "/api/websocket"),
    ("stream", "GET", "/api/sse"),
    ("stream", "GET", "/api/events/stream?snapshot=state"),
    ("stream", "GET", "/events/stream?snapshot=state"),
    ("stream", "GET", "/events?snapshot=state"),
    ("stream", "GET", "/events/ws?snapshot=state"),
    ("issue", "POST", "/api/v1/session"),
    ("issue", "POST", "/api/v1/tickets"),
    ("read", "GET", "/v1/tunnels/telemetry"),
    ("read", "GET", "/api/v1/telemetry"),
    ("ingest", "POST", "/v1/tunnels/01234567-89ab-cdef-0123-456789abcdef/telemetry"),
];

/// Returns status, code and message of a denial.
fn denial(name: &str) -> (u16, &'static str, &'static str) {
    let no_list = "user 'system:serviceaccount:boilerhouse:no-list' may not list pods; grant list and watch on pods \
                   and boilerhouseclaims";
    let no_watch = "user 'system:serviceaccount:boilerhouse:no-watch' may not watch pods; grant list and watch on pods \
                    and boilerhouseclaims";
    let missing = "missing Authorization header: the request has no credential; send an API key or a Kubernetes token as 'Authorization: Bearer', a \
                   session cookie, or, on a stream, a stream ticket as ?token=";
    let no_ws = "missing Authorization header: the request has no credential; send an API key or a Kubernetes token as 'Authorization: Bearer', or a \
                 session cookie (/ws does not accept stream tickets)";
    let no_issue = "missing Authorization header: the request has no credential; send an API key or a Kubernetes token as 'Authorization: Bearer' \
                    (session cookies and stream tickets are not accepted here)";
    let in_query = "invalid API key: the query may contain only a stream ticket; create one with POST /api/v1/tickets, or send the key \
                    or token as 'Authorization: Bearer'";
    let no_read = "the key 'blind' has no permission to read; add 'read' to its access in the keys file";
    let tenant = "the key 'alice' is limited to one tenant; use a credential for all tenants here";
    let no_ingest = "the key 'all' has no permission to post telemetry; add 'ingest' to its access in the keys file";
    let alice_no_ingest =
        "the key 'alice' has no permission to post telemetry; add 'ingest' to its access in the keys file";
    let user_ingest =
        "a Kubernetes token has no permission to post telemetry; use an API key with 'ingest' in its access";
    match name {
        "missing" => (401, "UNAUTHORIZED", missing),
        "no-ws" => (401, "UNAUTHORIZED", no_ws),
        "no-issue" => (401, "UNAUTHORIZED", no_issue),
        "unknown" => (401, "UNAUTHORIZED", "invalid API key: the credential is unknown"),
        "expired" => (401, "UNAUTHORIZED", "invalid API key: the credential has expired"),
        "at-host" => {
            (401, "UNAUTHORIZED", "invalid API key: the session cookie belongs to another Host; sign in at this one")
        }
        "in-query" => (401, "UNAUTHORIZED", in_query),
        "no-ingest" => (403, "FORBIDDEN", no_ingest),
        "no-ingest2" => (403, "FORBIDDEN", alice_no_ingest),
        "user-ingest" => (403, "FORBIDDEN", user_ingest),
        // The credential may post; there is no such tunnel.
        "no-tunnel" => (404, "NOT_FOUND", "no living instance has this uid; see /api/v1/instances for all instances"),
        "no-read" => (403, "FORBIDDEN", no_read),
        "no-list" => (403, "FORBIDDEN", no_list),
        "no-watch" => (403, "FORBIDDEN", no_watch),
        "tenant" => (403, "FORBIDDEN", tenant),
        "open" => (403, "FORBIDDEN", "no credentials are configured: read without a session or ticket"),
        other => panic!("the table names an unknown denial: {other}"),
    }
}

/// Returns status and body of an endpoint for a principal that may read these tenants. `*` stands for a value that
/// differs between runs.
fn success(path: &str, tenants: &[&str], fixture: &Fixture) -> (u16, Value) {
    let pods: Vec<Value> = tenants.iter().map(|tenant| pod(tenant, fixture)).collect();
    let claims: Vec<Value> = tenants.iter().map(|tenant| claim(tenant, fixture)).collect();
    let all_tenants = tenants.len() == 2;
    let pools = json!([{"workloadRef": "web", "warming": 0, "ready": 0, "acquired": 2}]);
    let bob = |found: Value, message: &str| if all_tenants { (200, found) } else { error(404, "NOT_FOUND", message) };
    let tenant = |index: usize| json!({"tenantId": tenants[index], "claims": [claims[index]]});
    let ok = match path {
        "/api/v1/health" => json!({"status": "ok"}),
        "/livez" => json!("ok\n"),
        "/v1/tunnels/telemetry" | "/api/v1/telemetry" => json!([]),
        "/readyz" => json!("ready\n"),
        "/metrics" => json!("# HELP "),
        "/api/v1/nothing" => {
            return error(404, "NOT_FOUND", "no such path: '/api/v1/nothing'; see / for the list of endpoints");
        }
        "/api/v1/stats" => json!({
            "instances": {"total": 2, "byPhase": {"Unknown": 2}}, "claims": {"total": 2, "byPhase": {"Active": 2}},
        }),
        "/api/v1/instances" => json!(pods),
        "/api/v1/tenants" => (0..tenants.len()).map(tenant).collect(),
        "/api/v1/connections" => {
            json!([{"id": "*", "name": "simulated", "namespace": "boilerhouse", "state": "live", "since": "*"}])
        }
        "/api/v1/instances/bob-pod" => {
            return bob(
                pods[pods.len() - 1].clone(),
                "no such instance: 'bob-pod'; see /api/v1/instances for all instances",
            );
        }
        "/api/v1/tenants/bob" => {
            return bob(
                tenant(tenants.len() - 1),
                "no such tenant: 'bob' has no claims; see /api/v1/tenants for all tenants",
            );
        }
        "/api/v1/pools" => pools,
        "/ws" => {
            let states = tenants.iter().map(|tenant| {
                json!({"type": "instance.state", "name": format!("{tenant}-pod"), "phase": "Unknown",
                       "workloadRef": "web", "tenantId": tenant})
            });
            let claimed = tenants.iter().map(|tenant| {
                json!({"type": "tenant.claimed", "name": format!("{tenant}-claim"), "tenantId": tenant,
                       "workloadRef": "web"})
            });
            return (101, states.chain(claimed).collect());
        }
        "/api/v1/session" => json!({"expiresAt": "*"}),
        "/api/v1/tickets" => json!({"ticket": "*", "expiresAt": "*"}),
        stream => {
            let state = json!([{
                "type": "state.initial", "id": "*", "snapshotAt": "*", "reason": "connect", "connectionId": "*",
                "instances": pods, "claims": claims, "pools": if all_tenants { pools } else { json!([]) },
            }]);
            return (if stream.contains("ws") || stream.contains("websocket") { 101 } else { 200 }, state);
        }
    };
    (200, ok)
}

fn pod(tenant: &str, fixture: &Fixture) -> Value {
    let [uid, created_at] = fixture.uid_and_creation(tenant, "pod");
    json!({
        "name": format!("{tenant}-pod"), "uid": uid, "phase": "Unknown", "workloadRef": "web", "tenantId": tenant,
        "poolStatus": "acquired", "createdAt": created_at,
        "labels": {
            "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web",
            "boilerhouse.dev/pool-status": "acquired", "boilerhouse.dev/tenant": tenant,
        },
    })
}

fn claim(tenant: &str, fixture: &Fixture) -> Value {
    let [uid, _] = fixture.uid_and_creation(tenant, "claim");
    json!({
        "name": format!("{tenant}-claim"), "uid": uid, "tenantId": tenant, "workloadRef": "web", "phase": "Active",
        "instanceId": format!("{tenant}-pod"),
    })
}

fn error(status: u16, code: &str, message: &str) -> (u16, Value) {
    (status, json!({"code": code, "message": message, "error": message}))
}

/// Returns status and body of a cell whose Origin and Host pass.
fn expected(result: &str, method: &str, path: &str, fixture: &Fixture) -> (u16, Value) {
    match (result, method, path) {
        ("all", "OPTIONS", _) => (204, json!("")),
        ("all", "POST", "/api/v1/pools") => {
            error(405, "METHOD_NOT_ALLOWED", "method POST is not allowed; allowed methods: GET, HEAD, OPTIONS")
        }
        ("all", ..) => success(path, &["alice", "bob"], fixture),
        ("alice", ..) => success(path, &["alice"], fixture),
        ("param", ..) => {
            let accepted =
                if path == "/api/v1/health" { "this endpoint has no parameters" } else { "accepted: verbose" };
            let (status, mut body) = error(400, "BAD_REQUEST", &format!("parameter 'token': unknown; {accepted}"));
            body["details"] = json!({"parameter": "token"});
            (status, body)
        }
        (name, ..) => {
            let (status, code, message) = denial(name);
            error(status, code, message)
        }
    }
}

/// Parses a table. Returns the first word of each row, and its other words with the column names of the first row.
fn parse_table(text: &'static str) -> impl Iterator<Item = (&'static str, Vec<(&'static str, &'static str)>)> {
    let mut rows = text.lines().filter(|line| !line.trim().is_empty()).map(|line| line.split_whitespace());
    let names: Vec<_> = rows.next().unwrap().skip(1).collect();
    rows.map(move |mut row| {
        let first = row.next().unwrap();
        let cells: Vec<_> = names.iter().copied().zip(row).collect();
        assert_eq!(
            cells.len(),
            names.len(),
            "expected {} columns in row '{first}', found {}",
            names.len(),
            cells.len()
        );
        (first, cells)
    })
}

#[tokio::test]
async fn each_cell_gets_the_status_and_body_of_the_table() {
    let fixture = &Fixture::new().await;
    let mut cells = Vec::new();
    for (origin, checks) in parse_table(ORIGIN_AND_HOST) {
        for (host, check) in checks {
            for (credential, results) in parse_table(CREDENTIALS) {
                for (class, method, path) in ENDPOINTS {
                    let (_, result) = results.iter().find(|(name, _)| name == class).unwrap();
                    cells.push((origin, host, check, credential, *result, *method, *path));
                }
            }
        }
    }
    assert_eq!(cells.len(), 5 * 4 * 20 * ENDPOINTS.len());
    assert!(cells.len() >= MIN_CELLS, "expected at least {MIN_CELLS} cells, found {}", cells.len());
    let mut responses = stream::iter(cells.into_iter().enumerate())
        .map(|(number, (origin, host, check, credential, result, method, path))| async move {
            let cell = format!("{credential}: {method} {path}, Origin {origin}, Host {host}");
            let request = fixture.request(number, credential, method, path, origin, host);
            let (status, body) = match check {
                "host" => {
                    let message = "host 'evil.example' is not allowed; add it to --allowed-hosts";
                    error(403, "FORBIDDEN", message)
                }
                // A foreign page gets the status of a path or a method that does not exist. It cannot read it.
                "origin"
                    if (method, path) == ("GET", "/api/v1/nothing") || (method, path) == ("POST", "/api/v1/pools") =>
                {
                    expected(result, method, path, fixture)
                }
                "origin" => {
                    let origin = request.origin.as_deref().unwrap();
                    let rule = match origin {
                        "null" => {
                            "it stands for a file, a sandboxed frame or a redirect: load the page from a web server"
                        }
                        _ => {
                            "if it is the address of the bridge behind a proxy, the proxy must pass the Host header on \
                             (nginx: proxy_set_header Host $http_host; Apache: ProxyPreserveHost On); if it is another \
                             site, add it to CORS_ORIGIN"
                        }
                    };
                    let host = &request.host;
                    let message =
                        format!("origin '{origin}' is not allowed to read from this bridge at host '{host}'; {rule}");
                    error(403, "FORBIDDEN", &message)
                }
                _ => expected(result, method, path, fixture),
            };
            let cors = (check == "cors").then(|| request.origin.clone().unwrap());
            let events = body.as_array().map_or(1, Vec::len);
            let observed = request.send(events).await;
            (cell, observed, Observed { status, body, cors })
        })
        .buffer_unordered(CONCURRENCY);
    let mut failures = Vec::new();
    while let Some((cell, observed, expected)) = responses.next().await {
        if observed != expected {
            failures.push(format!("{cell}: expected {expected}, found {observed}"));
        }
    }
    assert!(
        failures.is_empty(),
        "{} cells differ, for example: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
}
