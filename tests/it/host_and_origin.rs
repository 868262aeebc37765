//! The checks of `Host` and `Origin` (docs/protocol.md#access): they are the same on every endpoint and for every
//! method that it has. The tests send exact requests; `browser_cross_origin` tests a browser.
//!
//! The tables are written by hand. `{own}` stands for the bridge's address with its port, `{port}` for the port,
//! `{path}` for the endpoint, `{host}` for the host that the request names.

use std::net::SocketAddr;

use futures::{StreamExt, stream};
use serde_json::json;

use crate::support::{
    http_client::{self, HttpResponse},
    sim_cluster::SimCluster,
};

/// Maximum number of concurrent requests.
const MAX_CONCURRENT: usize = 16;

/// Every endpoint, and the status of its GET on an empty cluster.
const ENDPOINTS: &[(&str, u16)] = &[
    ("/", 200),
    ("/client.js", 200),
    ("/assets/app.js", 200),
    ("/ws", 426),
    ("/ws?snapshot=none", 426),
    ("/api/websocket", 426),
    ("/events/ws", 426),
    // A stream would not end. The 400 of an unknown parameter shows that the request has passed the guard.
    ("/api/sse?x", 400),
    ("/api/events/stream?x", 400),
    ("/events/stream?x", 400),
    ("/events?x", 400),
    ("/api/v1/connections", 200),
    ("/api/v1/instances", 200),
    ("/api/v1/instances/one", 404),
    ("/api/v1/tenants", 200),
    ("/api/v1/tenants/one", 404),
    ("/api/v1/pools", 200),
    ("/api/v1/stats", 200),
    ("/api/v1/health", 200),
    ("/livez", 200),
    ("/readyz", 200),
    ("/readyz?verbose", 200),
    ("/metrics", 200),
    ("/api/v1/session", 405),
    ("/api/v1/tickets", 405),
    (NO_PATH, 404),
];
/// A path that does not exist.
const NO_PATH: &str = "/api/v1/nothing";
const METHODS: &[&str] = &["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"];
const UPGRADE: &str = "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const FOREIGN_ORIGIN: &str = "is not allowed to read from this bridge at host '{host}'; if it is the address of the bridge \
                              behind a proxy, the proxy must pass the Host header on (nginx: proxy_set_header Host \
                              $http_host; Apache: ProxyPreserveHost On); if it is another site, add it to CORS_ORIGIN";
const OPAQUE_ORIGIN: &str = "is not allowed to read from this bridge at host '{host}'; it stands for a file, a sandboxed \
                             frame or a redirect: load the page from a web server";
const MALFORMED_ORIGIN: &str = "is not allowed to read from this bridge at host '{host}'; it is malformed: send \
                                scheme://host[:port]";
const FOREIGN_SITE: &str = "a page of another site sent this request without an Origin (Sec-Fetch-Site); add the site to \
                            CORS_ORIGIN and use CORS, or open the address in a window of its own";
const UNKNOWN_HOST: &str = "is not allowed; add it to --allowed-hosts";
const NO_VALID_HOST: &str = "the request names no valid host; send one valid Host header";

const CROSS_SITE: &str = "Sec-Fetch-Site: cross-site";
const SAME_SITE: &str = "Sec-Fetch-Site: same-site";
const NAVIGATE: &str = "Sec-Fetch-Mode: navigate";
const DOCUMENT: &str = "Sec-Fetch-Dest: document";

/// Rejected requests: target, version, headers, and the message of the 403.
const REJECTED: &[(&str, &str, &[&str], &str)] = &[
    ("{path}", "1.1", &["Host: {own}", "Origin: http://evil.example"], "origin 'http://evil.example' {foreign_origin}"),
    ("{path}", "1.1", &["Host: {own}", "Origin: null"], "origin 'null' {opaque_origin}"),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://127.0.0.1:1"], "origin 'http://127.0.0.1:1' {foreign_origin}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://localhost:{port}"],
        "origin 'http://localhost:{port}' {foreign_origin}",
    ),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://app.example"], "origin 'http://app.example' {foreign_origin}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: https://app.example:8443"],
        "origin 'https://app.example:8443' {foreign_origin}",
    ),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: https://app.example.evil.example"],
        "origin 'https://app.example.evil.example' {foreign_origin}",
    ),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://bridge.example"],
        "origin 'http://bridge.example' {foreign_origin}",
    ),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: chrome-extension://abcdef"],
        "origin 'chrome-extension://abcdef' {foreign_origin}",
    ),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://{own}/"], "origin 'http://{own}/' {malformed_origin}"),
    ("{path}", "1.1", &["Host: {own}", "Origin: *"], "origin '*' {malformed_origin}"),
    ("{path}", "1.1", &["Host: {own}", "Origin:"], "origin '' {malformed_origin}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://{own} http://{own}"],
        "origin 'http://{own} http://{own}' {malformed_origin}",
    ),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://{own}", "Origin: http://{own}"],
        "the request has more than one origin header; send one",
    ),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://{own}", "Origin: http://evil.example"],
        "the request has more than one origin header; send one",
    ),
    ("{path}", "1.1", &["Host: evil.example"], "host 'evil.example' {unknown_host}"),
    (
        "{path}",
        "1.1",
        &["Host: evil.example:{port}", "Origin: http://evil.example:{port}"],
        "host 'evil.example' {unknown_host}",
    ),
    (
        "{path}",
        "1.1",
        &["Host: evil.example:{port}", "Origin: https://app.example"],
        "host 'evil.example' {unknown_host}",
    ),
    ("{path}", "1.1", &["Host: localhost.evil.example"], "host 'localhost.evil.example' {unknown_host}"),
    ("{path}", "1.1", &["Host: 127.0.0.1.evil.example:{port}"], "host '127.0.0.1.evil.example' {unknown_host}"),
    ("{path}", "1.1", &["Host: bridge.ns.svc.evil.example"], "host 'bridge.ns.svc.evil.example' {unknown_host}"),
    ("{path}", "1.1", &["Host: bridge.ns.cluster.local"], "host 'bridge.ns.cluster.local' {unknown_host}"),
    ("{path}", "1.1", &["Host: x.bridge.example"], "host 'x.bridge.example' {unknown_host}"),
    ("{path}", "1.1", &["Host: 127.1:{port}"], "host '127.1' {unknown_host}"),
    ("{path}", "1.1", &["Host: {own}", "Host: {own}"], "the request has more than one host header; send one"),
    ("{path}", "1.1", &["Host: {own}", "Host: evil.example"], "the request has more than one host header; send one"),
    ("{path}", "1.1", &["Host: evil.example", "Host: {own}"], "the request has more than one host header; send one"),
    ("{path}", "1.1", &[], "{no_valid_host}"),
    ("{path}", "1.1", &["Host:"], "{no_valid_host}"),
    ("{path}", "1.1", &["Host: user@{own}"], "{no_valid_host}"),
    ("{path}", "1.1", &["Host: localhost:99999"], "{no_valid_host}"),
    ("{path}", "1.1", &["Host: {own}, evil.example"], "{no_valid_host}"),
    ("{path}", "1.1", &["X-Forwarded-Host: {own}", "Forwarded: host={own}"], "{no_valid_host}"),
    ("http://evil.example{path}", "1.1", &["Host: {own}"], "{no_valid_host}"),
    ("http://{own}{path}", "1.1", &["Host: evil.example"], "{no_valid_host}"),
    ("http://user@{own}{path}", "1.1", &["Host: {own}"], "{no_valid_host}"),
    ("http://evil.example:{port}{path}", "1.1", &["Host: evil.example:{port}"], "host 'evil.example' {unknown_host}"),
    ("http://evil.example{path}", "1.0", &[], "host 'evil.example' {unknown_host}"),
    ("{path}", "1.1", &["Host: {own}", "Origin: file://"], "origin 'file://' {opaque_origin}"),
    (
        "{path}",
        "1.1",
        &["Host: localhost:{port}", "Origin: capacitor://localhost"],
        "origin 'capacitor://localhost' {foreign_origin}",
    ),
    // A script, an image or a no-cors fetch of a page of another site, of another port of this machine, a frame, and a
    // prefetch. A browser sends no Origin with them.
    (
        "{path}",
        "1.1",
        &["Host: {own}", CROSS_SITE, "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"],
        "{foreign_site}",
    ),
    (
        "{path}",
        "1.1",
        &["Host: {own}", SAME_SITE, "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: empty"],
        "{foreign_site}",
    ),
    ("{path}", "1.1", &["Host: {own}", CROSS_SITE, NAVIGATE, "Sec-Fetch-Dest: iframe"], "{foreign_site}"),
    ("{path}", "1.1", &["Host: {own}", SAME_SITE, NAVIGATE, "Sec-Fetch-Dest: object"], "{foreign_site}"),
    ("{path}", "1.1", &["Host: {own}", CROSS_SITE], "{foreign_site}"),
    ("{path}", "1.1", &["Host: evil.example", CROSS_SITE, NAVIGATE, DOCUMENT], "host 'evil.example' {unknown_host}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://evil.example", CROSS_SITE, "Sec-Fetch-Mode: cors"],
        "origin 'http://evil.example' {foreign_origin}",
    ),
];

/// Permitted requests: target, version, headers, and the allowed foreign origin, if the request has one.
const PERMITTED: &[(&str, &str, &[&str], Option<&str>)] = &[
    ("{path}", "1.1", &["Host: {own}"], None),
    ("{path}", "1.0", &["Host: {own}"], None),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://{own}"], None),
    ("{path}", "1.1", &["Host: {own}", "Origin: https://{own}"], None),
    ("{path}", "1.1", &["Host: localhost:{port}", "Origin: http://localhost:{port}"], None),
    ("{path}", "1.1", &["Host: LocalHost:{port}"], None),
    ("{path}", "1.1", &["Host: localhost"], None),
    ("{path}", "1.1", &["Host: 10.1.2.3"], None),
    ("{path}", "1.1", &["Host: 10.1.2.3", "Origin: http://10.1.2.3"], None),
    ("{path}", "1.1", &["Host: [::1]:{port}", "Origin: http://[::1]:{port}"], None),
    ("{path}", "1.1", &["Host: [fe80::1]"], None),
    ("{path}", "1.1", &["Host: bridge.example"], None),
    ("{path}", "1.1", &["Host: Bridge.Example:8443", "Origin: https://bridge.example:8443"], None),
    ("{path}", "1.1", &["Host: bridge.example", "Origin: https://bridge.example"], None),
    ("{path}", "1.1", &["Host: bridge.ns.svc:{port}", "Origin: http://bridge.ns.svc:{port}"], None),
    ("{path}", "1.1", &["Host: Bridge.ns.svc.cluster.local"], None),
    ("http://{own}{path}", "1.1", &["Host: {own}"], None),
    ("http://{own}{path}", "1.0", &[], None),
    ("{path}", "1.1", &["Host: {own}", "Origin: https://app.example"], Some("https://app.example")),
    ("{path}", "1.1", &["Host: bridge.example", "Origin: https://app.example"], Some("https://app.example")),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://dev.example:8080"], Some("http://dev.example:8080")),
    ("{path}", "1.1", &["Host: {own}", "Origin: HTTPS://App.Example:443"], Some("HTTPS://App.Example:443")),
    ("{path}", "1.1", &["Host: {own}", "Origin: capacitor://app"], Some("capacitor://app")),
    // The address bar, a page of the bridge, a link of another site, and a page of an allowed origin.
    ("{path}", "1.1", &["Host: {own}", "Sec-Fetch-Site: none", NAVIGATE, DOCUMENT], None),
    ("{path}", "1.1", &["Host: {own}", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"], None),
    ("{path}", "1.1", &["Host: {own}", CROSS_SITE, NAVIGATE, DOCUMENT], None),
    ("{path}", "1.1", &["Host: {own}", SAME_SITE, NAVIGATE, DOCUMENT], None),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: https://app.example", CROSS_SITE, "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty"],
        Some("https://app.example"),
    ),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://{own}", SAME_SITE, "Sec-Fetch-Mode: websocket"], None),
];

/// Returns the methods of an endpoint, as its `Allow` header lists them; `None` for a path that does not exist.
fn allowed_methods(path: &str) -> Option<&'static str> {
    match path {
        NO_PATH => None,
        "/api/v1/session" => Some("POST, DELETE, OPTIONS"),
        "/api/v1/tickets" => Some("POST, OPTIONS"),
        _ => Some("GET, HEAD, OPTIONS"),
    }
}

/// A request, as text for assertion messages, and its response.
struct Exchange {
    description: String,
    response: HttpResponse,
}

fn fill(text: &str, own: SocketAddr, path: &str) -> String {
    text.replace("{path}", path)
        .replace("{own}", &own.to_string())
        .replace("{port}", &own.port().to_string())
        .replace("{foreign_origin}", FOREIGN_ORIGIN)
        .replace("{opaque_origin}", OPAQUE_ORIGIN)
        .replace("{malformed_origin}", MALFORMED_ORIGIN)
        .replace("{foreign_site}", FOREIGN_SITE)
        .replace("{unknown_host}", UNKNOWN_HOST)
        .replace("{no_valid_host}", NO_VALID_HOST)
}

async fn send(own: SocketAddr, method: &str, target: &str, version: &str, headers: &[&str], more: &str) -> Exchange {
    let description = format!("{method} {target} HTTP/{version} {headers:?} {more:?}");
    let lines: String = headers.iter().map(|line| fill(line, own, "") + "\r\n").collect();
    let more = if more.is_empty() { "Connection: close\r\n" } else { more };
    let response =
        http_client::request_raw(own, &format!("{method} {target} HTTP/{version}\r\n{lines}{more}\r\n")).await;
    Exchange { description, response }
}

/// Allowed origins, one of them of an app.
const ORIGINS: &str = "https://app.example,http://dev.example:8080,capacitor://app";

async fn bridge() -> (SimCluster, crate::support::bridge_process::BridgeProcess) {
    let cluster = SimCluster::new().await;
    let allow = ["--allowed-hosts", "bridge.example", "--cors-origin", ORIGINS];
    let bridge = cluster.bridge(&allow).await;
    (cluster, bridge)
}

/// A rejected request: method, endpoint, target, a row of [`REJECTED`], and further header lines.
type Rejected = (
    &'static str,
    &'static str,
    String,
    &'static (&'static str, &'static str, &'static [&'static str], &'static str),
    &'static str,
);

/// Returns status, code, message and `Allow` header of a rejection. `message` is that of the guard. A wrong host is answered
/// before the path, a wrong origin where the path and the method exist.
fn rejection(
    method: &str,
    path: &str,
    malformed_host: bool,
    message: String,
) -> (u16, &'static str, String, Option<&'static str>) {
    if malformed_host {
        return (400, "BAD_REQUEST", message, None);
    }
    match allowed_methods(path) {
        _ if is_about_host(&message) => (403, "FORBIDDEN", message, None),
        None => (404, "NOT_FOUND", format!("no such path: '{path}'; see / for the list of endpoints"), None),
        Some(methods) if !methods.split(", ").any(|name| name == method) => {
            let message = format!("method {method} is not allowed; allowed methods: {methods}");
            (405, "METHOD_NOT_ALLOWED", message, Some(methods))
        }
        Some(_) => (403, "FORBIDDEN", message, None),
    }
}

fn is_about_host(message: &str) -> bool {
    message.starts_with("host '") || message == NO_VALID_HOST || message.contains("one host header")
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_rejected_on_every_endpoint() {
    let (_cluster, bridge) = bridge().await;
    let own = bridge.address;
    let mut requests: Vec<Rejected> = Vec::new();
    for row in REJECTED {
        for (path, _) in ENDPOINTS {
            let target = fill(row.0, own, path);
            requests.extend(METHODS.iter().map(|method| (*method, *path, target.clone(), row, "")));
        }
        requests.push(("GET", "/ws", fill(row.0, own, "/ws"), row, UPGRADE));
    }
    let mut responses = stream::iter(requests)
        .map(|(method, path, target, (pattern, version, headers, message), more)| async move {
            // RFC 9112 section 3.2: a 400 without exactly one valid Host header.
            let malformed_host =
                *pattern == "{path}" && (*message == "{no_valid_host}" || message.contains("one host header"));
            let host = headers.iter().find_map(|line| line.strip_prefix("Host: ")).unwrap_or_default();
            let message = fill(&fill(message, own, "").replace("{host}", host), own, "");
            let expected = rejection(method, path, malformed_host, message);
            (method, expected, send(own, method, &target, version, headers, more).await)
        })
        .buffer_unordered(MAX_CONCURRENT);
    let mut count = 0;
    while let Some((method, expected, Exchange { description, response })) = responses.next().await {
        count += 1;
        let (status, code, message, allow) = expected;
        assert_eq!(response.status, status, "{description}: {response:?}");
        let body = json!({"code": code, "message": message, "error": message});
        if method == "HEAD" {
            assert_eq!(response.body, "", "{description}");
        } else {
            assert_eq!(response.json(), body, "{description}");
        }
        assert_eq!(response.header("allow"), allow, "{description}");
        assert_eq!(response.header("vary"), (!is_about_host(&message)).then_some("Origin"), "{description}");
        for (name, value) in &response.headers {
            let expected = match name.as_str() {
                "content-type" => "application/json",
                "cross-origin-resource-policy" => "same-origin",
                "x-content-type-options" => "nosniff",
                "x-frame-options" => "DENY",
                "connection" => "close",
                "allow" | "vary" | "content-length" | "date" => continue,
                other => panic!("{description}: unexpected header {other}: {value}"),
            };
            assert_eq!(value, expected, "{description}: value of {name}");
        }
    }
    assert_eq!(count, REJECTED.len() * (ENDPOINTS.len() * METHODS.len() + 1));
}

#[tokio::test]
async fn permitted_hosts_and_origins_pass_on_every_endpoint() {
    let (_cluster, bridge) = bridge().await;
    let own = bridge.address;
    for (target, version, headers, origin) in PERMITTED {
        for (path, status) in ENDPOINTS {
            let exchange = send(own, "GET", &fill(target, own, path), version, headers, "").await;
            check_permitted(&exchange, *status, *origin);
        }
        if *version == "1.1" {
            let exchange = send(own, "GET", &fill(target, own, "/ws"), version, headers, UPGRADE).await;
            check_permitted(&exchange, 101, *origin);
        }
        let exchange = send(own, "OPTIONS", &fill(target, own, "/api/v1/pools"), version, headers, "").await;
        check_permitted(&exchange, 204, *origin);
        let exchange = send(own, "POST", &fill(target, own, "/api/v1/pools"), version, headers, "").await;
        check_permitted(&exchange, 405, *origin);
    }
}

/// Asserts the status and the CORS headers of a permitted request.
fn check_permitted(Exchange { description, response }: &Exchange, status: u16, origin: Option<&str>) {
    assert_eq!(response.status, status, "{description}: {response:?}");
    let values = |name: &str| {
        let values = response.headers.iter().filter(|(have, _)| have == name).map(|(_, value)| value.as_str());
        values.collect::<Vec<_>>()
    };
    // The page at `/` depends on `Accept` too.
    let vary: Vec<_> = values("vary").into_iter().filter(|value| *value != "Accept").collect();
    assert_eq!(vary, ["Origin"], "{description}");
    assert_eq!(values("x-frame-options"), ["DENY"], "{description}");
    assert_eq!(values("access-control-allow-origin"), Vec::from_iter(origin), "{description}");
    let others = [
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "Event-Cursor, ETag, Retry-After, RateLimit, RateLimit-Policy"),
    ];
    for (name, value) in others {
        assert_eq!(values(name), Vec::from_iter(origin.map(|_| value)), "{description}");
    }
    for name in ["access-control-allow-methods", "access-control-allow-headers", "access-control-max-age"] {
        assert!(values(name).is_empty(), "{description}: only a preflight response has {name}");
    }
}

/// A page of another site uses no budget of the user of the browser: its requests are rejected before any budget, and its
/// navigations have a budget of their own.
#[tokio::test]
async fn pages_of_other_sites_do_not_use_the_budgets_of_the_user() {
    let cluster = SimCluster::new().await;
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "keys: []").unwrap();
    let keys = keys.path().to_string_lossy().into_owned();
    for credentials in [&[][..], &["--keys-file", &keys]] {
        let limits = ["--request-rate", "3", "--connect-rate", "1", "--max-connections-per-principal", "1"];
        let bridge = cluster.bridge(&[&limits[..], credentials].concat()).await;
        let own = bridge.address;
        let get = async |path: &str, headers: &[&str]| {
            send(own, "GET", path, "1.1", &[&["Host: {own}"], headers].concat(), "").await.response
        };
        for _ in 0..10 {
            for mode in ["no-cors", "navigate"] {
                let mode = format!("Sec-Fetch-Mode: {mode}");
                let rejected = get("/api/v1/stats", &[CROSS_SITE, &mode, "Sec-Fetch-Dest: iframe"]).await;
                assert_eq!((rejected.status, rejected.header("ratelimit")), (403, None), "{rejected:?}");
            }
        }
        // Links of another site, until their budget is used up.
        let mut statuses = Vec::new();
        for _ in 0..5 {
            statuses.push(get("/api/v1/stats", &[CROSS_SITE, NAVIGATE, DOCUMENT]).await.status);
        }
        assert_eq!(statuses, [200, 200, 200, 429, 429]);
        // Wrong credentials in the query, until 60 are denied.
        if !credentials.is_empty() {
            let guess = async || get("/api/sse?token=guess", &[CROSS_SITE, NAVIGATE, DOCUMENT]).await.status;
            let mut denied = 0;
            while guess().await == 401 {
                denied += 1;
                assert!(denied < 200, "expected a 429");
            }
            assert_eq!(get("/api/sse?token=guess", &[]).await.status, 401);
        }
        // The user has the complete budget.
        for left in [2, 1, 0] {
            let response = get("/api/v1/stats", &[]).await;
            let remaining = format!("\"default\";r={left};");
            assert!(response.header("ratelimit").is_some_and(|value| value.starts_with(&remaining)), "{response:?}");
        }
        assert_eq!(get("/api/v1/stats", &[]).await.status, 429);
    }
}

/// A page cannot show its user why it is refused, so the log does: once a minute for each pair of Origin and Host.
#[tokio::test]
async fn refused_origin_is_logged_once_for_each_pair() {
    let (_cluster, bridge) = bridge().await;
    let own = bridge.address;
    let long = format!("Origin: http://{}.example", "a".repeat(400));
    for headers in [
        ["Host: {own}", "Origin: http://evil.example"],
        ["Host: {own}", "Origin: http://evil.example"],
        ["Host: localhost:{port}", "Origin: http://evil.example"],
        ["Host: {own}", "Origin: null"],
        ["Host: {own}", "Origin: http://evil.example"],
        ["Host: {own}", "Origin: http://b\u{85}.example"],
        ["Host: {own}", &long],
        // These are no refusals of an Origin.
        ["Host: evil.example", "Origin: http://evil.example"],
        ["Host: {own}", CROSS_SITE],
        ["Host: {own}", "Origin: http://{own}"],
        ["Host: {own}", "Origin: http://last.example"],
    ] {
        for path in ["/api/v1/pools", "/ws"] {
            send(own, "GET", path, "1.1", &headers, "").await;
        }
    }
    bridge.wait_for_log("http://last.example").await;
    let log = bridge.log();
    let lines = log.iter().filter_map(|line| line.split_once("INFO").filter(|_| line.contains("origin refused")));
    let found: Vec<_> = lines.map(|(_, text)| text.split_once("origin refused ").unwrap().1).collect();
    let expected = [
        "origin=\"http://evil.example\" host=\"{own}\"".to_owned(),
        "origin=\"http://evil.example\" host=\"localhost:{port}\"".to_owned(),
        "origin=\"null\" host=\"{own}\"".to_owned(),
        "origin=\"?\" host=\"{own}\"".to_owned(),
        format!("origin=\"http://{}\" host=\"{{own}}\"", "a".repeat(193)),
        "origin=\"http://last.example\" host=\"{own}\"".to_owned(),
    ];
    assert_eq!(found, expected.map(|line| fill(&line, own, "")));
}

/// From a trusted proxy the host that the client named counts, for the Host rule and for the own Origin, if the host of the
/// request is permitted as well. The last value is the one that the proxy added.
#[tokio::test]
async fn forwarded_host_counts_only_from_trusted_proxies() {
    let cluster = SimCluster::new().await;
    let names = ["--allowed-hosts", "bridge.example"];
    let trusting = cluster.bridge(&[&names[..], &["--trusted-proxies", "127.0.0.1"]].concat()).await;
    let other = cluster.bridge(&[&names[..], &["--trusted-proxies", "192.0.2.1"]].concat()).await;
    // Headers, the status behind a trusted proxy, and the status from another address.
    let table: &[(&[&str], u16, u16)] = &[
        (&["Host: bridge.ns.svc", "X-Forwarded-Host: bridge.example"], 200, 200),
        // A page that is named evil.example can send the header itself.
        (&["Host: evil.example", "X-Forwarded-Host: bridge.example"], 403, 403),
        (&["Host: {own}", "X-Forwarded-Host: Bridge.Example:8443"], 200, 200),
        (&["Host: {own}", "X-Forwarded-Host: evil.example, bridge.example"], 200, 200),
        (&["Host: {own}", "X-Forwarded-Host: evil.example", "X-Forwarded-Host: bridge.example"], 200, 200),
        (&["Host: {own}", "X-Forwarded-Host: bridge.example, evil.example"], 403, 200),
        (&["Host: upstream", "Forwarded: host=bridge.example", "X-Forwarded-Port: 80"], 403, 403),
        (&["Host: {own}", "X-Forwarded-Host: evil.example"], 403, 200),
        (&["Host: {own}", "X-Forwarded-Host:"], 400, 200),
        (&["Host: {own}", "X-Forwarded-Host: bridge.example,"], 400, 200),
        (&["Host: {own}", "X-Forwarded-Host: user@bridge.example"], 400, 200),
        (&["Host: {own}", "X-Forwarded-Host: bridge.example:99999"], 400, 200),
        (&["X-Forwarded-Host: bridge.example"], 400, 400),
        (&["Host: {own}", "Host: {own}", "X-Forwarded-Host: bridge.example"], 400, 400),
        (&["Host: {own}", "X-Forwarded-Host: bridge.example", "Origin: https://bridge.example"], 200, 403),
        (&["Host: {own}", "X-Forwarded-Host: bridge.example:8443", "Origin: https://bridge.example:8443"], 200, 403),
        (&["Host: {own}", "X-Forwarded-Host: bridge.example:8443", "Origin: https://bridge.example"], 403, 403),
        (&["Host: {own}", "X-Forwarded-Host: bridge.example", "Origin: http://{own}"], 403, 200),
    ];
    for (headers, behind_proxy, direct) in table {
        for (bridge, status) in [(&trusting, behind_proxy), (&other, direct)] {
            let Exchange { description, response } =
                send(bridge.address, "GET", "/api/v1/pools", "1.1", headers, "").await;
            assert_eq!(response.status, *status, "{description}: {response:?}");
        }
    }
    // The page shows the address of the bridge as the client knows it.
    let headers = ["Host: bridge.ns.svc", "X-Forwarded-Host: bridge.example"];
    let Exchange { response, .. } = send(trusting.address, "GET", "/", "1.1", &headers, "").await;
    assert!(response.body.contains("curl -N http://bridge.example/api/sse"), "{response:?}");
    let headers = [&headers[..], &["X-Forwarded-Proto: https"]].concat();
    let Exchange { response, .. } = send(trusting.address, "GET", "/", "1.1", &headers, "").await;
    assert!(response.body.contains("curl -N https://bridge.example/api/sse"), "{response:?}");
    assert!(response.body.contains("wscat -c wss://bridge.example/ws"), "{response:?}");
    let headers = ["Host: {own}", "X-Forwarded-Proto: https"];
    let Exchange { response, .. } = send(other.address, "GET", "/", "1.1", &headers, "").await;
    assert!(response.body.contains(&format!("wscat -c ws://{}/ws", other.address)), "{response:?}");
}

/// CONNECT is a request to a proxy. Its target is a host without a path.
#[tokio::test]
async fn connect_method_is_rejected() {
    let (_cluster, bridge) = bridge().await;
    let own = bridge.address;
    for (target, host, status) in
        [("{own}", "{own}", 405), ("evil.example:80", "evil.example:80", 403), ("evil.example:80", "{own}", 403)]
    {
        let host = format!("Host: {host}");
        let Exchange { description, response } =
            send(own, "CONNECT", &fill(target, own, ""), "1.1", &[&host], "").await;
        assert_eq!(response.status, status, "{description}: {response:?}");
    }
}

/// A load balancer probes with HTTP/1.0 and may name no host. Only the paths of probes answer it.
#[tokio::test]
async fn probes_of_http_1_0_need_no_host() {
    let (_cluster, bridge) = bridge().await;
    for (path, _) in ENDPOINTS {
        let Exchange { description, response } = send(bridge.address, "GET", path, "1.0", &[], "").await;
        let is_probe = ["/livez", "/readyz", "/readyz?verbose", "/api/v1/health"].contains(path);
        assert_eq!(response.status, if is_probe { 200 } else { 400 }, "{description}: {response:?}");
        let origin = ["Origin: http://evil.example"];
        let Exchange { description, response } = send(bridge.address, "GET", path, "1.0", &origin, "").await;
        assert_eq!(response.status, if is_probe { 403 } else { 400 }, "{description}: {response:?}");
    }
}
