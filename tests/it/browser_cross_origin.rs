//! Who may read, in a real browser (docs/protocol.md#access): what pages of other sites learn in Chromium of a bridge on
//! this machine. Nothing. `tests/node/cross_origin_probes.js` has the probes; the expectations are written by hand.

use std::{collections::BTreeMap, net::Ipv4Addr};

use boilerhouse_bridge::sim::ApiResource;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    bridge_process::BridgeProcess,
    npm_client,
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Serves an empty page at every path until the test ends; `/sandboxed` makes its origin `null`.
async fn pages() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            // A browser opens connections ahead of need: none may keep the others waiting.
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.windows(4).any(|four| four == b"\r\n\r\n") {
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
                // The browser may be gone already.
                let _ = socket.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()).await;
            });
        }
    });
    port
}

/// What a page learns, by probe.
type Readable<'a> = [(&'a str, &'a str); 20];

const NOTHING: Readable<'_> = [
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

/// It takes itself for the bridge's own page, since DNS says so: it can read what it gets, and gets only refusals.
const REFUSALS: Readable<'_> = [
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
    ("frame", "\"code\":\"FORBIDDEN\""),
    ("form", "\"code\":\"FORBIDDEN\""),
    ("timing", "sizes or statuses"),
];

/// A page in `CORS_ORIGIN`: what CORS lets it read, and no more. That it reads at all shows that the probes can.
const ALLOWED: Readable<'_> = [
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

const OWN_ORIGIN: Readable<'_> = [
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
    ("frame", "\"name\":\"present\""),
    ("form", "\"code\":\"METHOD_NOT_ALLOWED\""),
    ("timing", "sizes or statuses"),
];

/// A page in `CORS_ORIGIN` that knows no key: what is open to everybody, and otherwise that a credential is missing.
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

/// The same page with the key: by header, and with a ticket for streams. The browser brings nothing of its own.
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

/// A page in `CORS_ORIGIN` on the same machine, of a browser that has signed in: its cookie comes along where it is asked
/// for, and with every WebSocket.
const SIGNED_IN: &[(&str, &str)] = &[
    ("eventsource", "error"),
    ("fetch", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("fetch with headers", "cors 401 \"code\":\"UNAUTHORIZED\""),
    ("ticket", "UNAUTHORIZED"),
];

/// The bridge's own page of a browser that has signed in: as without credentials, but for a wrong key that it sends itself.
const SIGNED_IN_OWN_ORIGIN: &[(&str, &str)] =
    &[("fetch with headers", "basic 401 \"code\":\"UNAUTHORIZED\""), ("ticket", "UNAUTHORIZED")];

/// A page of a browser: where it comes from, how it calls the bridge, and what it learns.
struct Page {
    name: &'static str,
    url: String,
    base: String,
    /// It knows the key.
    key: bool,
    /// The browser has signed in at the bridge.
    signed_in: bool,
    reads: Readable<'static>,
    but: &'static [(&'static str, &'static str)],
}

const KEY: &str = "the-key-of-the-bridge-0123456789";

async fn check_pages(pages: &[Page]) {
    let asked = pages.iter().map(|page| {
        let mut asked = json!({"url": page.url, "base": page.base});
        if page.key {
            asked["key"] = json!(KEY);
        }
        if page.signed_in {
            asked["signIn"] = json!(KEY);
        }
        (page.name, asked)
    });
    let asked: BTreeMap<_, _> = asked.collect();
    let learnt = npm_client::output("cross_origin_probes.js", &[&json!(asked).to_string()]).await;
    let learnt: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&learnt).unwrap();
    assert_eq!(learnt.len(), pages.len());
    for Page { name, reads, but, .. } in pages {
        let mut expected: BTreeMap<_, _> = (*reads).into();
        expected.extend(but.iter().copied());
        let learnt: BTreeMap<_, _> = learnt[*name].iter().map(|(probe, got)| (probe.as_str(), got.as_str())).collect();
        assert_eq!(learnt, expected, "{name}");
    }
}

async fn cluster() -> SimCluster {
    let cluster = SimCluster::new().await;
    let pod = json!({
        "metadata": {"name": "present", "namespace": NAMESPACE, "labels": {"boilerhouse.dev/managed": "true"}},
    });
    cluster.sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    cluster
}

/// Pages of others, of a browser that has signed in or not: they learn nothing of a bridge with or without credentials.
fn others(base: &str, pages: u16, signed_in: bool) -> Vec<Page> {
    let rebound = base.replace("127.0.0.1", "evil.example");
    let page = |name, url: String| {
        let (base, reads) = (base.to_owned(), NOTHING);
        Page { name, url, base, key: false, signed_in, reads, but: &[] }
    };
    let mut others = vec![
        page("another port of the same machine", format!("http://127.0.0.1:{pages}/")),
        page("another site", format!("http://evil.example:{pages}/")),
        page("a page without an origin", format!("http://127.0.0.1:{pages}/sandboxed")),
    ];
    let rebinding = page("another site, rebound to the bridge", format!("{rebound}/livez"));
    others.push(Page { base: rebound, signed_in: false, reads: REFUSALS, ..rebinding });
    others
}

/// As on a port-forward: who reaches the port may read.
#[tokio::test]
async fn foreign_pages_read_nothing() {
    let (cluster, pages) = (cluster().await, pages().await);
    let bridge = cluster.bridge(&["--cors-origin", &format!("http://app.example:{pages}")]).await;
    let base = format!("http://{}", bridge.address);
    let page = |name, url, reads| {
        let base = base.clone();
        Page { name, url, base, key: false, signed_in: false, reads, but: &[] }
    };
    let mut table = others(&base, pages, false);
    table.push(page("an allowed site", format!("http://app.example:{pages}/"), ALLOWED));
    table.push(page("the bridge's own", format!("{base}/livez"), OWN_ORIGIN));
    check_pages(&table).await;
}

#[tokio::test]
async fn foreign_pages_read_nothing_with_a_key_signed_in_or_out() {
    let (cluster, foreign, allowed) = (cluster().await, pages().await, pages().await);
    let kubeconfig = cluster.kubeconfig();
    let origins = format!("http://app.example:{allowed},http://127.0.0.1:{allowed}");
    let serve =
        ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--ws-auth", "required", "--cors-origin", &origins];
    let bridge = BridgeProcess::run_with(&serve, &[("BOILERHOUSE_API_KEY", KEY)]).await;
    bridge.wait_ready().await;
    let base = format!("http://{}", bridge.address);
    let page =
        |name, url, key, signed_in, reads, but| Page { name, url, base: base.clone(), key, signed_in, reads, but };
    let (app, same_machine) = (format!("http://app.example:{allowed}/"), format!("http://127.0.0.1:{allowed}/"));
    let mut table = others(&base, foreign, true);
    // A cookie of this machine is sent from each of its ports, but not from other sites (SameSite=Strict).
    table.push(page("an allowed site", app.clone(), false, true, ALLOWED, WITHOUT_KEY));
    table.push(page("an allowed site with the key", app, true, false, ALLOWED, WITH_KEY));
    table.push(page("an allowed port of this machine", same_machine, false, true, ALLOWED, SIGNED_IN));
    table.push(page("the bridge's own", format!("{base}/livez"), false, true, OWN_ORIGIN, SIGNED_IN_OWN_ORIGIN));
    check_pages(&table).await;
}
