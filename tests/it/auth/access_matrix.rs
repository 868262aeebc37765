//! Every credential at every endpoint, from every origin, under every Host: each cell's status and body, by exact requests
//! to the binary. The tables are written by hand: which answers first, and what it says.

mod fixture;

use futures::{StreamExt, stream};
use serde_json::{Value, json};

use self::fixture::{Fixture, Observed};

/// Requests that are under way at a time.
const AT_A_TIME: usize = 16;
/// How many cells issue 7 asks for.
const CELLS: usize = 500;

/// What an `Origin` is told under a `Host`: `pass`, `cors` (it passes, and is named in the answer), or which of both is
/// refused. The rest of a request is looked at only where it passes.
const ORIGINS: &str = "
    Origin    loopback  ip      allowed  rebinding
    none      pass      pass    pass     host
    same      pass      pass    pass     host
    allowed   cors      cors    cors     host
    foreign   origin    origin  origin   host
    null      origin    origin  origin   host
";

/// What a credential opens, by class of endpoint: everything (`all`), what is alice's (`alice`), or a refusal, by its name
/// in `refusal`. The bridge knows keys of tenants; the last two rows are of one that knows nobody.
const CREDENTIALS: &str = "
    credential       probe  nowhere  preflight  post  counts   read     bob      pools    ws       stream   sign
    none             all    all      all        all   missing  missing  missing  missing  no-ws    missing  no-sign
    wrong            all    all      all        all   unknown  unknown  unknown  unknown  unknown  unknown  unknown
    expired          all    all      all        all   expired  expired  expired  expired  expired  expired  expired
    key              all    all      all        all   all      all      all      all      all      all      all
    no-read          all    all      all        all   no-read  no-read  no-read  no-read  no-read  no-read  no-read
    tenant           all    all      all        all   tenant   alice    alice    tenant   alice    alice    alice
    token            all    all      all        all   all      all      all      all      all      all      all
    other-audience   all    all      all        all   unknown  unknown  unknown  unknown  unknown  unknown  unknown
    no-list          all    all      all        all   no-list  no-list  no-list  no-list  no-list  no-list  no-list
    no-watch         all    all      all        all   no-watch no-watch no-watch no-watch no-watch no-watch no-watch
    cookie           all    all      all        all   all      all      all      all      all      all      no-sign
    tenant-cookie    all    all      all        all   tenant   alice    alice    tenant   alice    alice    no-sign
    other-cookie     all    all      all        all   at-host  at-host  at-host  at-host  at-host  at-host  no-sign
    ticket           param  all      all        all   missing  missing  missing  missing  no-ws    all      no-sign
    tenant-ticket    param  all      all        all   missing  missing  missing  missing  no-ws    alice    no-sign
    expired-ticket   param  all      all        all   missing  missing  missing  missing  no-ws    expired  no-sign
    removed-ticket   param  all      all        all   missing  missing  missing  missing  no-ws    unknown  no-sign
    key-in-query     param  all      all        all   missing  missing  missing  missing  no-ws    in-query no-sign
    nobody-known     all    all      all        all   all      all      all      all      all      all      nobody
    any-to-nobody    all    all      all        all   all      all      all      all      all      all      nobody
";

/// The classes' endpoints. Streams are asked for their state where they do not begin with it.
const ENDPOINTS: &[(&str, &str, &str)] = &[
    ("probe", "GET", "/api/v1/health"),
    ("probe", "GET", "/livez"),
    ("probe", "GET", "/readyz"),
    ("nowhere", "GET", "/api/v1/nothing"),
    ("preflight", "OPTIONS", "/api/v1/pools"),
    ("post", "POST", "/api/v1/pools"),
    ("counts", "GET", "/api/v1/stats"),
    ("counts", "GET", "/metrics"),
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
    ("sign", "POST", "/api/v1/session"),
    ("sign", "POST", "/api/v1/tickets"),
];

/// A refusal's status, code and message.
fn refusal(word: &str) -> (u16, &'static str, &'static str) {
    let no_list = "user 'system:serviceaccount:boilerhouse:no-list' may not list pods: both list and watch on pods and \
                   boilerhouseclaims are needed";
    let no_watch = "user 'system:serviceaccount:boilerhouse:no-watch' may not watch pods: both list and watch on pods and \
                    boilerhouseclaims are needed";
    let missing = "a credential is needed: 'Authorization: Bearer' with an API key or a Kubernetes token, a session \
                   cookie, or, on streams, a ticket as ?token=";
    let on_ws = "a credential is needed: 'Authorization: Bearer' with an API key or a Kubernetes token, or a session \
                 cookie; a ticket opens the other streams, not /ws";
    let to_sign = "a credential is needed: 'Authorization: Bearer' with an API key or a Kubernetes token; no session or \
                   ticket will do";
    let in_query = "only a stream ticket may stand in the query, and POST /api/v1/tickets gives one: send keys and \
                    tokens as 'Authorization: Bearer'";
    let tenant = "the key 'alice' sees one tenant only, and this endpoint shows all";
    match word {
        "missing" => (401, "UNAUTHORIZED", missing),
        "no-ws" => (401, "UNAUTHORIZED", on_ws),
        "no-sign" => (401, "UNAUTHORIZED", to_sign),
        "unknown" => (401, "UNAUTHORIZED", "the credential is not known here"),
        "expired" => (401, "UNAUTHORIZED", "the credential has expired"),
        "at-host" => (401, "UNAUTHORIZED", "the session is of another host: sign in at this one"),
        "in-query" => (401, "UNAUTHORIZED", in_query),
        "no-read" => (403, "FORBIDDEN", "the key 'blind' may not read: its access does not include it"),
        "no-list" => (403, "FORBIDDEN", no_list),
        "no-watch" => (403, "FORBIDDEN", no_watch),
        "tenant" => (403, "FORBIDDEN", tenant),
        "nobody" => (403, "FORBIDDEN", "no credentials are configured here: everybody may read without one"),
        other => panic!("no such refusal: {other}"),
    }
}

/// What an endpoint says to whoever sees these tenants. `*` stands for what differs from run to run.
fn full_response(path: &str, tenants: &[&str], fixture: &Fixture) -> (u16, Value) {
    let pods: Vec<Value> = tenants.iter().map(|tenant| pod(tenant, fixture)).collect();
    let claims: Vec<Value> = tenants.iter().map(|tenant| claim(tenant, fixture)).collect();
    let both = tenants.len() == 2;
    let pools = json!([{"workloadRef": "web", "warming": 0, "ready": 0, "acquired": 2}]);
    let bob = |found: Value, message: &str| if both { (200, found) } else { error(404, "NOT_FOUND", message) };
    let tenant = |at: usize| json!({"tenantId": tenants[at], "claims": [claims[at]]});
    let ok = match path {
        "/api/v1/health" => json!({"status": "ok"}),
        "/livez" => json!("ok\n"),
        "/readyz" => json!("ready\n"),
        "/metrics" => json!("# HELP bridge_"),
        "/api/v1/nothing" => {
            return error(404, "NOT_FOUND", "there is nothing at '/api/v1/nothing': / lists what there is");
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
            return bob(pods[pods.len() - 1].clone(), "there is no instance 'bob-pod'");
        }
        "/api/v1/tenants/bob" => return bob(tenant(tenants.len() - 1), "tenant 'bob' has no claims"),
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
                "instances": pods, "claims": claims, "pools": if both { pools } else { json!([]) },
            }]);
            return (if stream.contains("ws") || stream.contains("websocket") { 101 } else { 200 }, state);
        }
    };
    (200, ok)
}

fn pod(tenant: &str, fixture: &Fixture) -> Value {
    let [uid, created_at] = fixture.uid_and_times(tenant, "pod");
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
    let [uid, _] = fixture.uid_and_times(tenant, "claim");
    json!({
        "name": format!("{tenant}-claim"), "uid": uid, "tenantId": tenant, "workloadRef": "web", "phase": "Active",
        "instanceId": format!("{tenant}-pod"),
    })
}

fn error(status: u16, code: &str, message: &str) -> (u16, Value) {
    (status, json!({"code": code, "message": message, "error": message}))
}

/// A cell's status and body, once its door let it pass.
fn behind(word: &str, method: &str, path: &str, fixture: &Fixture) -> (u16, Value) {
    match (word, method, path) {
        ("all", "OPTIONS", _) => (204, json!("")),
        ("all", "POST", "/api/v1/pools") => {
            error(405, "METHOD_NOT_ALLOWED", "POST is not possible here: GET, HEAD, OPTIONS are")
        }
        ("all", ..) => full_response(path, &["alice", "bob"], fixture),
        ("alice", ..) => full_response(path, &["alice"], fixture),
        ("param", ..) => {
            let takes = if path == "/api/v1/health" { "this endpoint takes none" } else { "accepted are verbose" };
            let (status, mut body) = error(400, "BAD_REQUEST", &format!("parameter 'token': unknown; {takes}"));
            body["details"] = json!({"parameter": "token"});
            (status, body)
        }
        (refused, ..) => {
            let (status, code, message) = refusal(refused);
            error(status, code, message)
        }
    }
}

/// A grid's rows: the first word, and the others by the words of the first row.
fn grid(text: &'static str) -> impl Iterator<Item = (&'static str, Vec<(&'static str, &'static str)>)> {
    let mut rows = text.lines().filter(|line| !line.trim().is_empty()).map(|line| line.split_whitespace());
    let names: Vec<_> = rows.next().unwrap().skip(1).collect();
    rows.map(move |mut row| {
        let first = row.next().unwrap();
        let cells: Vec<_> = names.iter().copied().zip(row).collect();
        assert_eq!(cells.len(), names.len(), "the row of {first} is not whole");
        (first, cells)
    })
}

#[tokio::test]
async fn each_cell_gets_the_status_and_body_of_the_table() {
    let fixture = &Fixture::new().await;
    let mut cells = Vec::new();
    for (origin, origins) in grid(ORIGINS) {
        for (host, origin_host) in origins {
            for (credential, words) in grid(CREDENTIALS) {
                for (class, method, path) in ENDPOINTS {
                    let (_, word) = words.iter().find(|(name, _)| name == class).unwrap();
                    cells.push((origin, host, origin_host, credential, *word, *method, *path));
                }
            }
        }
    }
    assert_eq!(cells.len(), 5 * 4 * 20 * ENDPOINTS.len());
    assert!(cells.len() >= CELLS, "{} cells", cells.len());
    let mut answers = stream::iter(cells.into_iter().enumerate())
        .map(|(number, (origin, host, origin_host, credential, word, method, path))| async move {
            let what = format!("{credential}: {method} {path} from {origin} at {host}");
            let asked = fixture.request(number, credential, method, path, origin, host);
            let (status, body) = match origin_host {
                "host" => {
                    let message = "host 'evil.example' is not served here: add it to --allowed-hosts to allow it";
                    error(403, "FORBIDDEN", message)
                }
                "origin" => {
                    let (origin, rule) = (asked.origin.as_deref().unwrap(), "add it to CORS_ORIGIN to allow it");
                    error(403, "FORBIDDEN", &format!("origin '{origin}' may not read this bridge: {rule}"))
                }
                _ => behind(word, method, path, fixture),
            };
            let cors = (origin_host == "cors").then(|| asked.origin.clone().unwrap());
            let events = body.as_array().map_or(1, Vec::len);
            let seen = asked.send(events).await;
            (what, seen, Observed { status, body, cors })
        })
        .buffer_unordered(AT_A_TIME);
    let mut wrong = Vec::new();
    while let Some((what, seen, expected)) = answers.next().await {
        if seen != expected {
            wrong.push(format!("{what}: {seen}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} cells, of which the first: {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}
