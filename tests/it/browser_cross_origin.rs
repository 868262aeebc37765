//! Access from web pages, in Chromium (docs/protocol.md#access): pages of other sites read nothing from a bridge on the
//! same machine.
//!
//! `tests/node/cross_origin_probes.js` has the probes. The expectations are written by hand.

use std::{collections::BTreeMap, net::Ipv4Addr};

use boilerhouse_bridge::{sim::ApiResource, test_support::PodBuilder};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    bridge_process::BridgeProcess,
    http_client, npm_client,
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Serves an empty page at every path until the test ends, and returns the port. The origin of `/sandboxed` is `null`.
async fn serve_pages() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            // A browser opens connections in advance. A connection without a request must not block the others.
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                    if !matches!(socket.read_buf(&mut request).await, Ok(1..)) {
                        return;
                    }
                }
                let sandbox = match request.starts_with(b"GET /sandboxed ") {
                    true => "Content-Security-Policy: sandbox allow-scripts allow-forms\r\n",
                    false => "",
                };
                let body = "<!doctype html><title>a page</title>";
                let length = body.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n{sandbox}");
                // The browser may have closed the connection.
                let _ = socket.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).await;
            });
        }
    });
    port
}

/// The outcome of each probe of a page.
type Outcomes<'a> = [(&'a str, &'a str); 20];

const NOTHING: Outcomes<'_> = [
    ("websocket", "error"),
    ("websocket of all", "error"),
    ("eventsource", "error"),
    ("eventsource with credentials", "error"),
    ("fetch", "TypeError"),
    ("fetch with credentials", "TypeError"),
    ("fetch with headers", "TypeError"),
    ("every get", "TypeError"),
    ("ticket", "TypeError"),
    ("fetch without cors", "TypeError, TypeError"),
    ("fetch of an error", "TypeError"),
    ("fetch of a probe", "TypeError"),
    ("post", "TypeError"),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "unreadable"),
    ("form", "unreadable"),
    ("timing", "nothing"),
];

/// A page of a rebound name. For the browser it has the origin of the bridge, so it can read the responses: they are
/// all 403.
const FORBIDDEN: Outcomes<'_> = [
    ("websocket", "error"),
    ("websocket of all", "error"),
    ("eventsource", "error"),
    ("eventsource with credentials", "error"),
    ("fetch", "basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch with credentials", "basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch with headers", "basic 403 \"code\":\"FORBIDDEN\""),
    ("every get", "basic 403"),
    ("ticket", "FORBIDDEN"),
    ("fetch without cors", "basic 403 \"code\":\"FORBIDDEN\", basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch of an error", "basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch of a probe", "basic 403 \"code\":\"FORBIDDEN\""),
    ("post", "basic 403 \"code\":\"FORBIDDEN\""),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "unreadable"),
    ("form", "unreadable"),
    ("timing", "sizes or statuses"),
];

/// A page of an origin in `CORS_ORIGIN`: it reads what CORS allows. This also shows that the probes can succeed.
const ALLOWED: Outcomes<'_> = [
    ("websocket", "instance.state"),
    ("websocket of all", "state.initial"),
    ("eventsource", "state.initial"),
    ("eventsource with credentials", "state.initial"),
    ("fetch", "cors 200 etag \"name\":\"present\""),
    ("fetch with credentials", "cors 200 etag \"name\":\"present\""),
    ("fetch with headers", "cors 200 etag \"name\":\"present\""),
    ("every get", "cors 200"),
    ("ticket", "FORBIDDEN"),
    ("fetch without cors", "TypeError, TypeError"),
    ("fetch of an error", "cors 404 \"code\":\"NOT_FOUND\""),
    ("fetch of a probe", "cors 200 ok"),
    ("post", "cors 405 \"code\":\"METHOD_NOT_ALLOWED\""),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "unreadable"),
    ("form", "unreadable"),
    ("timing", "sizes or statuses"),
];

/// A page of the bridge's own origin.
const OWN_ORIGIN: Outcomes<'_> = [
    ("websocket", "instance.state"),
    ("websocket of all", "state.initial"),
    ("eventsource", "state.initial"),
    ("eventsource with credentials", "state.initial"),
    ("fetch", "basic 200 etag \"name\":\"present\""),
    ("fetch with credentials", "basic 200 etag \"name\":\"present\""),
    ("fetch with headers", "basic 200 etag \"name\":\"present\""),
    ("every get", "basic 200"),
    ("ticket", "FORBIDDEN"),
    ("fetch without cors", "basic 200 etag \"name\":\"present\", basic 404 \"code\":\"NOT_FOUND\""),
    ("fetch of an error", "basic 404 \"code\":\"NOT_FOUND\""),
    ("fetch of a probe", "basic 200 ok"),
    ("post", "basic 405 \"code\":\"METHOD_NOT_ALLOWED\""),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "unreadable"),
    ("form", "unreadable"),
    ("timing", "sizes or statuses"),
];

/// Differences from [`ALLOWED`] for a page without the key: public endpoints answer, all others are 401.
const WITHOUT_KEY: &[(&str, &str)] = &[
    ("websocket", "error"),
    ("websocket of all", "error"),
    ("eventsource", "error"),
    ("eventsource with credentials", "error"),
    ("fetch", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("fetch with credentials", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("fetch with headers", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("every get", "cors 401, cors 200"),
    ("ticket", "UNAUTHORIZED"),
];

/// The same page with the key. It sends the key in a header, and a ticket for streams. The browser has no cookie.
const WITH_KEY: &[(&str, &str)] = &[
    ("websocket", "error"),
    ("websocket of all", "error"),
    ("eventsource", "error"),
    ("eventsource with credentials", "error"),
    ("fetch", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("fetch with credentials", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("every get", "cors 401, cors 200"),
    ("ticket", "state.initial, state.initial"),
];

/// A page of an allowed origin on the same machine, in a browser with a session cookie. The browser sends the cookie
/// with requests that include credentials, and with every WebSocket.
const SIGNED_IN: &[(&str, &str)] = &[
    ("eventsource", "error"),
    ("fetch", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("fetch with headers", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("ticket", "UNAUTHORIZED"),
];

/// Differences from [`OWN_ORIGIN`] in a browser with a session cookie: only requests that carry a wrong key fail.
const SIGNED_IN_OWN_ORIGIN: &[(&str, &str)] =
    &[("fetch with headers", "basic 401 \"code\":\"UNAUTHORIZED\""), ("ticket", "UNAUTHORIZED")];

/// A page in the browser: its URL, the base URL by which it calls the bridge, and the expected outcomes.
struct Page {
    name: &'static str,
    url: String,
    base: String,
    /// The page has the API key.
    has_key: bool,
    /// The browser has a session cookie of the bridge.
    signed_in: bool,
    outcomes: Outcomes<'static>,
    /// Outcomes that differ from `outcomes`.
    overrides: &'static [(&'static str, &'static str)],
}

const KEY: &str = "the-key-of-the-bridge-0123456789";

/// Runs all probes in all pages and compares the outcomes.
async fn check_pages(pages: &[Page]) {
    let requests = pages.iter().map(|page| {
        let mut request = json!({"url": page.url, "base": page.base});
        if page.has_key {
            request["key"] = json!(KEY);
        }
        if page.signed_in {
            request["signIn"] = json!(KEY);
        }
        (page.name, request)
    });
    let requests: BTreeMap<_, _> = requests.collect();
    let output = npm_client::output("cross_origin_probes.js", &[&json!(requests).to_string()]).await;
    let output: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&output).unwrap();
    assert_eq!(output.len(), pages.len());
    for Page { name, outcomes, overrides, .. } in pages {
        let mut expected: BTreeMap<_, _> = (*outcomes).into();
        expected.extend(overrides.iter().copied());
        let actual = output[*name].iter().map(|(probe, outcome)| (probe.as_str(), outcome.as_str()));
        assert_eq!(actual.collect::<BTreeMap<_, _>>(), expected, "outcomes by probe of {name}");
    }
}

/// Returns a cluster with one Pod, `present`.
async fn cluster() -> SimCluster {
    let cluster = SimCluster::new().await;
    let pod = PodBuilder::new("present").namespace(NAMESPACE).json();
    cluster.sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    cluster
}

/// Returns pages of foreign origins, in a browser with or without a session cookie. They read nothing.
fn foreign_pages(base: &str, port: u16, signed_in: bool) -> Vec<Page> {
    let rebound = base.replace("127.0.0.1", "evil.example");
    let page = |name, url: String| {
        let (base, outcomes) = (base.to_owned(), NOTHING);
        Page { name, url, base, has_key: false, signed_in, outcomes, overrides: &[] }
    };
    let mut pages = vec![
        page("another port of the same machine", format!("http://127.0.0.1:{port}/")),
        page("another site", format!("http://evil.example:{port}/")),
        page("a page without an origin", format!("http://127.0.0.1:{port}/sandboxed")),
    ];
    let rebinding = page("another site, rebound to the bridge", format!("{rebound}/livez"));
    pages.push(Page { base: rebound, signed_in: false, outcomes: FORBIDDEN, ..rebinding });
    pages
}

/// Without credentials, as on a port-forward: every client that reaches the port may read, except foreign pages.
#[tokio::test]
async fn foreign_pages_read_nothing_without_credentials() {
    let (cluster, pages) = (cluster().await, serve_pages().await);
    let bridge = cluster.bridge(&["--cors-origin", &format!("http://app.example:{pages}")]).await;
    let base = format!("http://{}", bridge.address);
    let page = |name, url, outcomes| {
        let base = base.clone();
        Page { name, url, base, has_key: false, signed_in: false, outcomes, overrides: &[] }
    };
    check_pages(&foreign_pages(&base, pages, false)).await;
    // Nor have they used the request budget of this address: this is its first request.
    let first = http_client::get(bridge.address, "/api/v1/stats").await;
    assert_eq!(first.header("ratelimit"), Some("\"default\";r=5999;t=1"), "{first:?}");
    let table = [
        page("an allowed site", format!("http://app.example:{pages}/"), ALLOWED),
        page("the bridge's own", format!("{base}/livez"), OWN_ORIGIN),
    ];
    check_pages(&table).await;
}

#[tokio::test]
async fn foreign_pages_read_nothing_when_credentials_are_required() {
    let (cluster, foreign, allowed) = (cluster().await, serve_pages().await, serve_pages().await);
    let kubeconfig = cluster.kubeconfig();
    let origins = format!("http://app.example:{allowed},http://127.0.0.1:{allowed}");
    let serve =
        ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--ws-auth", "required", "--cors-origin", &origins];
    let bridge = BridgeProcess::run_with(&serve, &[("BOILERHOUSE_API_KEY", KEY)]).await;
    bridge.wait_ready().await;
    let base = format!("http://{}", bridge.address);
    let page = |name, url, has_key, signed_in, outcomes, overrides| {
        let base = base.clone();
        Page { name, url, base, has_key, signed_in, outcomes, overrides }
    };
    let (app, same_machine) = (format!("http://app.example:{allowed}/"), format!("http://127.0.0.1:{allowed}/"));
    let mut table = foreign_pages(&base, foreign, true);
    // A browser sends a cookie of this machine from pages of all its ports, but not from other sites (SameSite=Strict).
    table.push(page("an allowed site", app.clone(), false, true, ALLOWED, WITHOUT_KEY));
    table.push(page("an allowed site with the key", app, true, false, ALLOWED, WITH_KEY));
    table.push(page("an allowed port of this machine", same_machine, false, true, ALLOWED, SIGNED_IN));
    table.push(page("the bridge's own", format!("{base}/livez"), false, true, OWN_ORIGIN, SIGNED_IN_OWN_ORIGIN));
    check_pages(&table).await;
}
