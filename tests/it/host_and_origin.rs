//! Who may ask (docs/protocol.md#access): the same on every endpoint, for every method, by exact requests. The browser's
//! side of it is in `browser.rs`.
//!
//! The tables are written by hand. In them `{own}` is the bridge's address with its port, `{port}` the port, `{path}`
//! the endpoint.

use std::net::SocketAddr;

use futures::{StreamExt, stream};
use serde_json::json;

use crate::support::{
    http_client::{self, HttpResponse},
    sim_cluster::SimCluster,
};

/// Requests that are under way at a time.
const AT_A_TIME: usize = 16;

/// Every endpoint, and what a GET of it answers here, where the cluster is empty.
const ENDPOINTS: &[(&str, u16)] = &[
    ("/", 200),
    ("/ws", 426),
    ("/ws?snapshot=none", 426),
    ("/api/websocket", 426),
    ("/events/ws", 426),
    // What else streams would not end: a parameter that is none shows that the guard let it pass.
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
    ("/api/v1/nothing", 404),
];
const METHODS: &[&str] = &["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"];
const UPGRADE: &str = "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const FOREIGN: &str = "is not allowed to read from this bridge; add it to CORS_ORIGIN";
const STRANGE: &str = "is not allowed; add it to --allowed-hosts";
const UNNAMED: &str = "the request names no valid host; send one valid Host header";

/// What is refused: request target, version, headers, and the message.
const REFUSED: &[(&str, &str, &[&str], &str)] = &[
    ("{path}", "1.1", &["Host: {own}", "Origin: http://evil.example"], "origin 'http://evil.example' {foreign}"),
    ("{path}", "1.1", &["Host: {own}", "Origin: null"], "origin 'null' {foreign}"),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://127.0.0.1:1"], "origin 'http://127.0.0.1:1' {foreign}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://localhost:{port}"],
        "origin 'http://localhost:{port}' {foreign}",
    ),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://app.example"], "origin 'http://app.example' {foreign}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: https://app.example:8443"],
        "origin 'https://app.example:8443' {foreign}",
    ),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: https://app.example.evil.example"],
        "origin 'https://app.example.evil.example' {foreign}",
    ),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://bridge.example"], "origin 'http://bridge.example' {foreign}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: chrome-extension://abcdef"],
        "origin 'chrome-extension://abcdef' {foreign}",
    ),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://{own}/"], "origin 'http://{own}/' {foreign}"),
    ("{path}", "1.1", &["Host: {own}", "Origin: *"], "origin '*' {foreign}"),
    ("{path}", "1.1", &["Host: {own}", "Origin:"], "origin '' {foreign}"),
    (
        "{path}",
        "1.1",
        &["Host: {own}", "Origin: http://{own} http://{own}"],
        "origin 'http://{own} http://{own}' {foreign}",
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
    ("{path}", "1.1", &["Host: evil.example"], "host 'evil.example' {strange}"),
    (
        "{path}",
        "1.1",
        &["Host: evil.example:{port}", "Origin: http://evil.example:{port}"],
        "host 'evil.example' {strange}",
    ),
    ("{path}", "1.1", &["Host: evil.example:{port}", "Origin: https://app.example"], "host 'evil.example' {strange}"),
    ("{path}", "1.1", &["Host: localhost.evil.example"], "host 'localhost.evil.example' {strange}"),
    ("{path}", "1.1", &["Host: 127.0.0.1.evil.example:{port}"], "host '127.0.0.1.evil.example' {strange}"),
    ("{path}", "1.1", &["Host: x.bridge.example"], "host 'x.bridge.example' {strange}"),
    ("{path}", "1.1", &["Host: 127.1:{port}"], "host '127.1' {strange}"),
    ("{path}", "1.1", &["Host: {own}", "Host: {own}"], "the request has more than one host header; send one"),
    ("{path}", "1.1", &["Host: {own}", "Host: evil.example"], "the request has more than one host header; send one"),
    ("{path}", "1.1", &["Host: evil.example", "Host: {own}"], "the request has more than one host header; send one"),
    ("{path}", "1.1", &[], "{unnamed}"),
    ("{path}", "1.0", &[], "{unnamed}"),
    ("{path}", "1.1", &["Host:"], "{unnamed}"),
    ("{path}", "1.1", &["Host: user@{own}"], "{unnamed}"),
    ("{path}", "1.1", &["Host: localhost:99999"], "{unnamed}"),
    ("{path}", "1.1", &["Host: {own}, evil.example"], "{unnamed}"),
    ("{path}", "1.1", &["X-Forwarded-Host: {own}", "Forwarded: host={own}"], "{unnamed}"),
    ("http://evil.example{path}", "1.1", &["Host: {own}"], "{unnamed}"),
    ("http://{own}{path}", "1.1", &["Host: evil.example"], "{unnamed}"),
    ("http://user@{own}{path}", "1.1", &["Host: {own}"], "{unnamed}"),
    ("http://evil.example:{port}{path}", "1.1", &["Host: evil.example:{port}"], "host 'evil.example' {strange}"),
    ("http://evil.example{path}", "1.0", &[], "host 'evil.example' {strange}"),
];

/// What passes, and the origin that is told so where it is another one.
const PASSED: &[(&str, &str, &[&str], Option<&str>)] = &[
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
    ("http://{own}{path}", "1.1", &["Host: {own}"], None),
    ("http://{own}{path}", "1.0", &[], None),
    ("{path}", "1.1", &["Host: {own}", "Origin: https://app.example"], Some("https://app.example")),
    ("{path}", "1.1", &["Host: bridge.example", "Origin: https://app.example"], Some("https://app.example")),
    ("{path}", "1.1", &["Host: {own}", "Origin: http://dev.example:8080"], Some("http://dev.example:8080")),
    ("{path}", "1.1", &["Host: {own}", "Origin: HTTPS://App.Example:443"], Some("HTTPS://App.Example:443")),
];

struct Exchange {
    description: String,
    answer: HttpResponse,
}

fn fill(text: &str, own: SocketAddr, path: &str) -> String {
    text.replace("{path}", path)
        .replace("{own}", &own.to_string())
        .replace("{port}", &own.port().to_string())
        .replace("{foreign}", FOREIGN)
        .replace("{strange}", STRANGE)
        .replace("{unnamed}", UNNAMED)
}

async fn exchange(
    own: SocketAddr,
    method: &str,
    target: &str,
    version: &str,
    headers: &[&str],
    more: &str,
) -> Exchange {
    let description = format!("{method} {target} HTTP/{version} {headers:?} {more:?}");
    let lines: String = headers.iter().map(|line| fill(line, own, "") + "\r\n").collect();
    let more = if more.is_empty() { "Connection: close\r\n" } else { more };
    let answer = http_client::request_raw(own, &format!("{method} {target} HTTP/{version}\r\n{lines}{more}\r\n")).await;
    Exchange { description, answer }
}

async fn bridge() -> (SimCluster, crate::support::bridge_process::BridgeProcess) {
    let cluster = SimCluster::new().await;
    let allow = ["--allowed-hosts", "bridge.example", "--cors-origin", "https://app.example,http://dev.example:8080"];
    let bridge = cluster.bridge(&allow).await;
    (cluster, bridge)
}

#[tokio::test]
async fn foreign_hosts_and_origins_get_403_on_every_endpoint() {
    let (_cluster, bridge) = bridge().await;
    let own = bridge.address;
    let mut requests = Vec::new();
    for (target, version, headers, message) in REFUSED {
        for (path, _) in ENDPOINTS {
            let target = fill(target, own, path);
            requests.extend(METHODS.iter().map(|method| (*method, target.clone(), *version, *headers, "", *message)));
        }
        requests.push(("GET", fill(target, own, "/ws"), version, headers, UPGRADE, message));
    }
    let mut answers = stream::iter(requests)
        .map(|(method, target, version, headers, more, message)| async move {
            (method, message, exchange(own, method, &target, version, headers, more).await)
        })
        .buffer_unordered(AT_A_TIME);
    let mut count = 0;
    while let Some((method, message, Exchange { description, answer })) = answers.next().await {
        count += 1;
        assert_eq!(answer.status, 403, "{description}: {answer:?}");
        let message = fill(message, own, "");
        let body = json!({"code": "FORBIDDEN", "message": message, "error": message});
        if method == "HEAD" {
            assert_eq!(answer.body, "", "{description}");
        } else {
            assert_eq!(answer.json(), body, "{description}");
        }
        for (name, value) in &answer.headers {
            let expected = match name.as_str() {
                "content-type" => "application/json",
                "cross-origin-resource-policy" => "same-origin",
                "x-content-type-options" => "nosniff",
                "connection" => "close",
                "content-length" | "date" => continue,
                other => panic!("{description}: {other}: {value}"),
            };
            assert_eq!(value, expected, "{description}: {name}");
        }
    }
    assert_eq!(count, REFUSED.len() * (ENDPOINTS.len() * METHODS.len() + 1));
}

#[tokio::test]
async fn permitted_hosts_and_origins_pass_on_every_endpoint() {
    let (_cluster, bridge) = bridge().await;
    let own = bridge.address;
    for (target, version, headers, cross) in PASSED {
        for (path, status) in ENDPOINTS {
            let asked = exchange(own, "GET", &fill(target, own, path), version, headers, "").await;
            passed(&asked, *status, *cross);
        }
        if *version == "1.1" {
            let asked = exchange(own, "GET", &fill(target, own, "/ws"), version, headers, UPGRADE).await;
            passed(&asked, 101, *cross);
        }
        let asked = exchange(own, "OPTIONS", &fill(target, own, "/api/v1/pools"), version, headers, "").await;
        passed(&asked, 204, *cross);
        let asked = exchange(own, "POST", &fill(target, own, "/api/v1/pools"), version, headers, "").await;
        passed(&asked, 405, *cross);
    }
}

fn passed(Exchange { description, answer }: &Exchange, status: u16, cross: Option<&str>) {
    assert_eq!(answer.status, status, "{description}: {answer:?}");
    let received = |name: &str| {
        let values = answer.headers.iter().filter(|(have, _)| have == name).map(|(_, value)| value.as_str());
        values.collect::<Vec<_>>()
    };
    assert_eq!(received("vary"), ["Origin"], "{description}");
    assert_eq!(received("access-control-allow-origin"), Vec::from_iter(cross), "{description}");
    let others = [
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "Event-Cursor, ETag, Retry-After, RateLimit, RateLimit-Policy"),
    ];
    for (name, value) in others {
        assert_eq!(received(name), Vec::from_iter(cross.map(|_| value)), "{description}");
    }
    for name in ["access-control-allow-methods", "access-control-allow-headers", "access-control-max-age"] {
        assert!(received(name).is_empty(), "{description}: only a preflight is told {name}");
    }
}

/// A proxy's request: it names a host and no path.
#[tokio::test]
async fn connect_method_is_rejected() {
    let (_cluster, bridge) = bridge().await;
    let own = bridge.address;
    for (target, host, status) in
        [("{own}", "{own}", 405), ("evil.example:80", "evil.example:80", 403), ("evil.example:80", "{own}", 403)]
    {
        let host = format!("Host: {host}");
        let Exchange { description, answer } =
            exchange(own, "CONNECT", &fill(target, own, ""), "1.1", &[&host], "").await;
        assert_eq!(answer.status, status, "{description}: {answer:?}");
    }
}
