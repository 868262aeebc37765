//! Tests of the rate limits. Tests with the binary use rates so low that no budget refills during a test. Tests with a
//! bridge in this process use a paused clock.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use boilerhouse_bridge::http::{forwarded::TrustedProxies, rate_limit};
use serde_json::json;
use tokio::time::advance;

use super::{KeysFile, bearer, three_keys, two_tenants, upgrade_status};
use crate::support::{
    http_client::{self, HttpResponse, WsClient, request},
    in_process::{self, InProcessBridge},
    paused_clock::disable_auto_advance,
    sim_cluster::{NAMESPACE, SimCluster},
    sse_client::SseClient,
};

#[tokio::test]
async fn get_requests_are_limited_per_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--request-rate", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let get = async |path: &str, authorization: &str| {
        request(bridge.address, "GET", path, &[("Authorization", authorization)]).await
    };
    let rate = |response: &HttpResponse| {
        ["ratelimit-policy", "ratelimit", "retry-after"].map(|name| response.header(name).map(str::to_owned))
    };
    let policy = Some("\"default\";q=2;w=60".to_owned());
    let first = get("/api/v1/instances", &alice).await;
    assert_eq!((first.status, rate(&first)), (200, [policy.clone(), Some("\"default\";r=1;t=30".into()), None]));
    // A malformed request consumes budget too.
    let second = get("/api/v1/instances/none?x", &alice).await;
    assert_eq!(second.status, 400);
    let rejected = get("/api/v1/tenants", &alice).await;
    assert_eq!(rejected.status, 429);
    let wait: u64 = rejected.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "expected 1 to 30 s, found {wait} s");
    assert_eq!(rate(&rejected), [policy, Some(format!("\"default\";r=0;t={wait}")), Some(wait.to_string())],);
    let message = format!("too many requests: more than 2 per minute; try again in {wait} s");
    assert_eq!(rejected.json(), json!({"code": "RATE_LIMIT_EXCEEDED", "message": message, "error": message}));
    for (path, authorization, status) in [
        ("/api/v1/instances", &all, 200),
        ("/livez", &alice, 200),
        ("/readyz", &alice, 200),
        ("/api/v1/health", &alice, 200),
    ] {
        assert_eq!(get(path, authorization).await.status, status, "{path}");
    }
    assert_eq!(
        upgrade_status(&bridge, "/api/websocket", &[("Authorization", &alice)]).await,
        101,
        "expected no effect on streams"
    );
}

#[tokio::test]
async fn new_streams_are_limited_per_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--connect-rate", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    assert_eq!(upgrade_status(&bridge, "/api/websocket", &alice).await, 101);
    assert_eq!(upgrade_status(&bridge, "/ws", &alice).await, 101);
    assert_eq!(upgrade_status(&bridge, "/events/ws", &alice).await, 429);
    assert_eq!(upgrade_status(&bridge, "/ws", &alice).await, 429);
    // An EventSource does not reconnect after a 429.
    let mut events = SseClient::open(bridge.address, "/api/sse", &alice).await;
    assert_eq!(events.head.status, 200);
    let [closing] = &events.rest().await[..] else { panic!("expected one block") };
    assert!(closing.retry.is_some_and(|ms| (1000..=3000).contains(&ms)), "expected 1000 to 3000 ms, found {closing:?}");
    let closing = closing.json();
    assert_eq!((&closing["type"], &closing["reason"]), (&json!("stream.closing"), &json!("rate")));
    assert_eq!(upgrade_status(&bridge, "/ws", &all).await, 101);
}

#[tokio::test]
async fn open_streams_are_limited_per_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--max-connections-per-principal", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    let first = WsClient::with(bridge.address, "/ws", &alice).await.unwrap();
    let _second = SseClient::open(bridge.address, "/api/sse", &alice).await;
    assert_eq!(upgrade_status(&bridge, "/api/websocket", &alice).await, 503);
    let closing = SseClient::open(bridge.address, "/events", &alice).await.rest().await;
    assert_eq!(closing[0].json()["reason"], "too many connections");
    assert_eq!(upgrade_status(&bridge, "/ws", &all).await, 101);
    drop(first);
    let slot_is_free = async {
        while upgrade_status(&bridge, "/ws", &alice).await != 101 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(http_client::TEST_TIMEOUT, slot_is_free)
        .await
        .expect("the slot of a closed stream must be free");
}

/// Anonymous clients are identified by address. Only a trusted proxy may forward that address.
#[tokio::test]
async fn anonymous_clients_are_limited_by_forwarded_address() {
    let cluster = two_tenants().await;
    for (trusted, other) in [("127.0.0.0/8", 200), ("10.0.0.0/8", 429)] {
        let bridge = cluster.bridge(&["--request-rate", "1", "--trusted-proxies", trusted]).await;
        let get = async |from: &str| {
            request(bridge.address, "GET", "/api/v1/stats", &[("X-Forwarded-For", from)]).await.status
        };
        assert_eq!(get("192.0.2.1").await, 200);
        assert_eq!(get("192.0.2.1").await, 429);
        assert_eq!(get("6.6.6.6, 192.0.2.1").await, 429, "expected no effect of an address that the client adds");
        assert_eq!(get("192.0.2.2").await, other, "trusted proxy: {trusted}");
    }
}

/// Starts a bridge in this process, which uses the paused clock.
async fn bridge(cluster: &SimCluster, config: in_process::Config) -> InProcessBridge {
    let client = cluster.sim.client(NAMESPACE);
    InProcessBridge::start(NAMESPACE, client.clone(), &client, config).await
}

async fn get(bridge: &InProcessBridge, path: &str, headers: &[(&str, &str)]) -> HttpResponse {
    request(bridge.address, "GET", path, headers).await
}

/// Asserts status, headers and body of a 429.
fn assert_limited(response: &HttpResponse, budget: &str, quota: u32, wait: u64, reason: &str) {
    let headers =
        ["ratelimit-policy", "ratelimit", "retry-after"].map(|name| response.header(name).unwrap_or_default());
    let (policy, left) = (format!("\"{budget}\";q={quota};w=60"), format!("\"{budget}\";r=0;t={wait}"));
    assert_eq!((response.status, headers), (429, [policy.as_str(), &left, &wait.to_string()]), "{}", response.body);
    let message = format!("{reason}: more than {quota} per minute; try again in {wait} s");
    assert_eq!(response.json(), json!({"code": "RATE_LIMIT_EXCEEDED", "message": message, "error": message}));
}

#[tokio::test(start_paused = true)]
async fn full_request_budget_passes_and_the_next_request_is_429() {
    const BATCH: usize = 50;
    let paused = disable_auto_advance();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge =
        bridge(&cluster, in_process::Config { keys: Some(keys.path().into()), ..in_process::Config::default() }).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    let head = format!("GET /api/v1/tenants HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n", bridge.address, alice[0].1);
    let requests = format!("{head}\r\n").repeat(BATCH - 1) + &format!("{head}Connection: close\r\n\r\n");
    for batch in 1..=6000 / BATCH {
        let responses = String::from_utf8(http_client::send_raw(bridge.address, requests.as_bytes()).await).unwrap();
        assert_eq!(responses.matches("HTTP/1.1 200 OK\r\n").count(), BATCH, "{responses}");
        let left = 6000 - batch * BATCH;
        assert!(
            responses.contains(&format!("ratelimit: \"default\";r={left};t=")),
            "expected {left} requests left: {responses}"
        );
    }
    let check = |response| assert_limited(&response, "default", 6000, 1, "too many requests");
    for path in ["/api/v1/tenants", "/api/v1/instances", "/api/v1/instances/none", "/api/v1/tenants?x"] {
        check(get(&bridge, path, &alice).await);
    }
    check(request(bridge.address, "POST", "/api/v1/tickets", &alice).await);
    for (path, headers) in [("/api/v1/tenants", &all[..]), ("/livez", &alice), ("/readyz", &alice), ("/", &[])] {
        assert_eq!(get(&bridge, path, headers).await.status, 200, "{path}");
    }
    advance(Duration::from_millis(10)).await;
    let last = get(&bridge, "/api/v1/tenants", &alice).await;
    assert_eq!((last.status, last.header("ratelimit")), (200, Some("\"default\";r=0;t=60")));
    check(get(&bridge, "/api/v1/tenants", &alice).await);
    advance(Duration::from_secs(60)).await;
    let refilled = get(&bridge, "/api/v1/tenants", &alice).await;
    assert_eq!((refilled.status, refilled.header("ratelimit")), (200, Some("\"default\";r=5999;t=1")));
    drop(paused);
}

#[tokio::test(start_paused = true)]
async fn sixty_rejected_credentials_exhaust_the_address_budget() {
    let paused = disable_auto_advance();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let keys = Some(PathBuf::from(keys.path()));
    let proxies = TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap()]);
    let bridge = bridge(&cluster, in_process::Config { keys, proxies, ..in_process::Config::default() }).await;
    let from = async |address: &str, name: &str| {
        let headers = [("X-Forwarded-For", address), ("Authorization", &bearer(name))];
        get(&bridge, "/api/v1/tenants", &headers).await
    };
    for attempt in 0..60 {
        assert_eq!(from("192.0.2.1", &format!("guess-{attempt}")).await.status, 401, "attempt {attempt}");
    }
    let check = |response| assert_limited(&response, "refused", 60, 1, "too many denied credentials");
    check(from("192.0.2.1", "guess").await);
    assert_eq!(from("192.0.2.2", "guess").await.status, 401, "expected no effect on another address");
    check(from("192.0.2.3, 192.0.2.1", "guess").await);
    assert_eq!(from("192.0.2.1", "alice").await.status, 200, "expected no effect on a valid key");
    assert_eq!(
        get(&bridge, "/api/v1/tenants", &[("X-Forwarded-For", "192.0.2.1")]).await.status,
        401,
        "expected no effect on a request without a credential"
    );
    advance(Duration::from_secs(1)).await;
    assert_eq!(from("192.0.2.1", "guess").await.status, 401);
    check(from("192.0.2.1", "guess").await);
    drop(paused);
}

#[tokio::test(start_paused = true)]
async fn connect_budget_refills_one_stream_at_a_time() {
    let paused = disable_auto_advance();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let limits = rate_limit::Config { stream_opens: NonZeroU32::new(30), ..rate_limit::Config::default() };
    let keys = Some(PathBuf::from(keys.path()));
    let bridge = bridge(&cluster, in_process::Config { keys, limits, ..in_process::Config::default() }).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    // `send_raw` reads until the connection is closed.
    let upgrade = http_client::upgrade(bridge.address, "/api/websocket").replace(": Upgrade", ": Upgrade, close");
    let opened = async |headers| WsClient::with(bridge.address, "/api/websocket", headers).await.is_ok();
    for number in 0..30 {
        assert!(opened(&alice).await, "expected stream {number} to open");
    }
    let head = upgrade.replacen("\r\n\r\n", &format!("\r\nAuthorization: {}\r\n\r\n", alice[0].1), 1);
    let rejected =
        http_client::parse(&String::from_utf8(http_client::send_raw(bridge.address, head.as_bytes()).await).unwrap());
    assert_limited(&rejected, "connects", 30, 2, "too many requests");
    assert!(opened(&all).await, "expected no effect on another key");
    assert_eq!(get(&bridge, "/api/v1/tenants", &alice).await.status, 200, "expected no effect on GETs");
    advance(Duration::from_secs(2)).await;
    assert!(opened(&alice).await);
    assert!(!opened(&alice).await);
    drop(paused);
}

#[tokio::test(start_paused = true)]
async fn forwarded_addresses_count_only_from_trusted_proxies() {
    let paused = disable_auto_advance();
    let cluster = SimCluster::new().await;
    for (trusted, is_trusted) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let limits = rate_limit::Config { requests: NonZeroU32::new(20).unwrap(), ..rate_limit::Config::default() };
        let proxies = TrustedProxies::new(vec![trusted.parse().unwrap()]);
        let bridge = bridge(&cluster, in_process::Config { limits, proxies, ..in_process::Config::default() }).await;
        let from = async |address: &str| get(&bridge, "/api/v1/stats", &[("X-Forwarded-For", address)]).await;
        for number in 0..20 {
            // The header of an untrusted proxy has no effect: all requests have the address of the proxy.
            let forwarded = if is_trusted { "192.0.2.1".to_owned() } else { format!("192.0.2.{number}") };
            assert_eq!(from(&forwarded).await.status, 200, "request {number}, trusted proxy {trusted}");
        }
        assert_limited(&from("192.0.2.1").await, "default", 20, 3, "too many requests");
        let other = from("198.51.100.7").await.status;
        assert_eq!(other, if is_trusted { 200 } else { 429 }, "trusted proxy: {trusted}");
        let same_prefix = ["2001:db8:0:1::1", "2001:db8:0:1::2"];
        if is_trusted {
            for number in 0..20 {
                assert_eq!(from(same_prefix[number % 2]).await.status, 200, "request {number}");
            }
            assert_eq!(from("2001:db8:0:1:ffff::3").await.status, 429, "expected one budget for a 64-bit prefix");
            assert_eq!(from("2001:db8:0:2::1").await.status, 200);
        }
    }
    drop(paused);
}
