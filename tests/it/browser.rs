//! Who may read, in a real browser (protocol.md section 7): what pages of other sites learn in Chromium of a bridge on
//! this machine. Nothing. `tests/node/pages.js` has the probes; the expectations are written by hand.

use std::{collections::BTreeMap, net::Ipv4Addr};

use boilerhouse_bridge::sim::Resource;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    node,
    simulated::{NAMESPACE, Simulated},
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

/// What a page learns, probe by probe, in the order of the probes.
type Learnt<'a> = [(&'a str, &'a str); 16];

const NOTHING: Learnt<'_> = [
    ("websocket", "error"),
    ("fetch", "TypeError"),
    ("fetch with credentials", "TypeError"),
    ("fetch with headers", "TypeError"),
    ("fetch without cors", "TypeError, TypeError"),
    ("fetch of an error", "TypeError"),
    ("fetch of a probe", "TypeError"),
    ("post", "TypeError"),
    ("eventsource", "error"),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "unreadable"),
    ("form", "unreadable"),
    ("timing", "nothing"),
];

/// It takes itself for the bridge's own page, since DNS says so: it can read what it gets, and gets only refusals.
const REFUSALS: Learnt<'_> = [
    ("websocket", "error"),
    ("fetch", "basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch with credentials", "basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch with headers", "basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch without cors", "basic 403 \"code\":\"FORBIDDEN\", basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch of an error", "basic 403 \"code\":\"FORBIDDEN\""),
    ("fetch of a probe", "basic 403 \"code\":\"FORBIDDEN\""),
    ("post", "basic 403 \"code\":\"FORBIDDEN\""),
    ("eventsource", "error"),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "\"code\":\"FORBIDDEN\""),
    ("form", "\"code\":\"FORBIDDEN\""),
    ("timing", "sizes or statuses"),
];

/// A page in `CORS_ORIGIN`: what CORS lets it read, and no more. That it reads at all shows that the probes can.
const ALLOWED: Learnt<'_> = [
    ("websocket", "instance.state"),
    ("fetch", "cors 200 etag \"name\":\"present\""),
    ("fetch with credentials", "cors 200 etag \"name\":\"present\""),
    ("fetch with headers", "cors 200 etag \"name\":\"present\""),
    ("fetch without cors", "TypeError, TypeError"),
    ("fetch of an error", "cors 404 \"code\":\"NOT_FOUND\""),
    ("fetch of a probe", "cors 200 ok"),
    ("post", "cors 405 \"code\":\"METHOD_NOT_ALLOWED\""),
    ("eventsource", "error"),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "unreadable"),
    ("form", "unreadable"),
    ("timing", "sizes or statuses"),
];

const OWN: Learnt<'_> = [
    ("websocket", "instance.state"),
    ("fetch", "basic 200 etag \"name\":\"present\""),
    ("fetch with credentials", "basic 200 etag \"name\":\"present\""),
    ("fetch with headers", "basic 200 etag \"name\":\"present\""),
    ("fetch without cors", "basic 200 etag \"name\":\"present\", basic 404 \"code\":\"NOT_FOUND\""),
    ("fetch of an error", "basic 404 \"code\":\"NOT_FOUND\""),
    ("fetch of a probe", "basic 200 ok"),
    ("post", "basic 405 \"code\":\"METHOD_NOT_ALLOWED\""),
    ("eventsource", "error"),
    ("script", "error, error"),
    ("module", "error, error"),
    ("image", "error, error"),
    ("style", "error, error"),
    ("frame", "\"name\":\"present\""),
    ("form", "\"code\":\"METHOD_NOT_ALLOWED\""),
    ("timing", "sizes or statuses"),
];

#[tokio::test]
async fn pages_of_other_sites_learn_nothing() {
    let cluster = Simulated::new().await;
    let pod = json!({
        "metadata": {"name": "present", "namespace": NAMESPACE, "labels": {"boilerhouse.dev/managed": "true"}},
    });
    cluster.sim.store(|store| store.create(Resource::Pods, pod)).unwrap();
    let pages = pages().await;
    let bridge = cluster.bridge(&["--cors-origin", &format!("http://app.example:{pages}")]).await;
    let port = bridge.address.port();
    let base = format!("http://{}", bridge.address);
    let rebound = format!("http://evil.example:{port}");
    let table = [
        ("another port of the same machine", format!("http://127.0.0.1:{pages}/"), &base, NOTHING),
        ("another site", format!("http://evil.example:{pages}/"), &base, NOTHING),
        ("a page without an origin", format!("http://127.0.0.1:{pages}/sandboxed"), &base, NOTHING),
        ("another site, rebound to the bridge", format!("{rebound}/livez"), &rebound, REFUSALS),
        ("an allowed site", format!("http://app.example:{pages}/"), &base, ALLOWED),
        ("the bridge's own", format!("{base}/livez"), &base, OWN),
    ];
    let asked: BTreeMap<_, _> = table.iter().map(|(name, url, base, _)| (name, [url, *base])).collect();
    let learnt = node::output("pages.js", &[&json!(asked).to_string()]).await;
    let learnt: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&learnt).unwrap();
    assert_eq!(learnt.len(), table.len());
    for (name, _, _, expected) in table {
        let expected: BTreeMap<_, _> = expected.map(|(probe, outcome)| (probe.to_owned(), outcome.to_owned())).into();
        assert_eq!(learnt[name], expected, "{name}");
    }
}
