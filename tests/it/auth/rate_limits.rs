//! How much. Against the binary, where rates are so low that nothing comes back during a test, and with the clock held
//! against a bridge in this process.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use boilerhouse_bridge::http::{forwarded::TrustedProxies, rate_limit};
use serde_json::json;
use tokio::time::advance;

use super::{KeysFile, bearer, three_keys, two_tenants, upgraded};
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
    let rate = |answer: &crate::support::http_client::HttpResponse| {
        ["ratelimit-policy", "ratelimit", "retry-after"].map(|name| answer.header(name).map(str::to_owned))
    };
    let policy = Some("\"default\";q=2;w=60".to_owned());
    let first = get("/api/v1/instances", &alice).await;
    assert_eq!((first.status, rate(&first)), (200, [policy.clone(), Some("\"default\";r=1;t=30".into()), None]));
    // What is wrong with a request does not make it free.
    let second = get("/api/v1/instances/none?x", &alice).await;
    assert_eq!(second.status, 400);
    let refused = get("/api/v1/tenants", &alice).await;
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(rate(&refused), [policy, Some(format!("\"default\";r=0;t={wait}")), Some(wait.to_string())],);
    let message = format!("too many requests: more than 2 a minute; try again in {wait} s");
    assert_eq!(refused.json(), json!({"code": "RATE_LIMIT_EXCEEDED", "message": message, "error": message}));
    for (path, authorization, status) in [
        ("/api/v1/instances", &all, 200),
        ("/livez", &alice, 200),
        ("/readyz", &alice, 200),
        ("/api/v1/health", &alice, 200),
    ] {
        assert_eq!(get(path, authorization).await.status, status, "{path}");
    }
    assert_eq!(upgraded(&bridge, "/api/websocket", &[("Authorization", &alice)]).await, 101, "streams have their own");
}

#[tokio::test]
async fn new_streams_are_limited_per_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--connect-rate", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    assert_eq!(upgraded(&bridge, "/api/websocket", &alice).await, 101);
    assert_eq!(upgraded(&bridge, "/ws", &alice).await, 101);
    assert_eq!(upgraded(&bridge, "/events/ws", &alice).await, 429);
    assert_eq!(upgraded(&bridge, "/ws", &alice).await, 429);
    // An EventSource gives up for good on a 429.
    let mut events = SseClient::open(bridge.address, "/api/sse", &alice).await;
    assert_eq!(events.head.status, 200);
    let [retry, closing] = &events.rest().await[..] else { panic!("expected two blocks") };
    assert!(retry.retry.is_some_and(|ms| (1000..=3000).contains(&ms)), "{retry:?}");
    let closing = closing.json();
    assert_eq!((&closing["type"], &closing["reason"]), (&json!("stream.closing"), &json!("rate")));
    assert_eq!(upgraded(&bridge, "/ws", &all).await, 101);
}

#[tokio::test]
async fn open_streams_are_limited_per_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--max-connections-per-principal", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    let first = WsClient::with(bridge.address, "/ws", &alice).await.unwrap();
    let _second = SseClient::open(bridge.address, "/api/sse", &alice).await;
    assert_eq!(upgraded(&bridge, "/api/websocket", &alice).await, 503);
    let closing = SseClient::open(bridge.address, "/events", &alice).await.rest().await;
    assert_eq!(closing[1].json()["reason"], "too many connections");
    assert_eq!(upgraded(&bridge, "/ws", &all).await, 101);
    drop(first);
    let free = async {
        while upgraded(&bridge, "/ws", &alice).await != 101 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::support::http_client::TEST_TIMEOUT, free).await.expect("the seat is not given back");
}

/// Nobody in particular is told apart by address, and only a proxy that is trusted may say which.
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
        assert_eq!(get("6.6.6.6, 192.0.2.1").await, 429, "what the client itself says is not believed");
        assert_eq!(get("192.0.2.2").await, other, "{trusted}");
    }
}

/// A bridge in this process, whose time is the test's.
async fn bridge(cluster: &SimCluster, config: in_process::Config) -> InProcessBridge {
    let client = cluster.sim.client(NAMESPACE);
    InProcessBridge::start(NAMESPACE, client.clone(), &client, config).await
}

async fn get(bridge: &InProcessBridge, path: &str, headers: &[(&str, &str)]) -> HttpResponse {
    request(bridge.address, "GET", path, headers).await
}

/// A refusal, whole: status, headers, body.
fn assert_refused(answer: &HttpResponse, budget: &str, quota: u32, wait: u64, what: &str) {
    let received = ["ratelimit-policy", "ratelimit", "retry-after"].map(|name| answer.header(name).unwrap_or_default());
    let (policy, left) = (format!("\"{budget}\";q={quota};w=60"), format!("\"{budget}\";r=0;t={wait}"));
    assert_eq!((answer.status, received), (429, [policy.as_str(), &left, &wait.to_string()]), "{}", answer.body);
    let message = format!("{what}: more than {quota} a minute; try again in {wait} s");
    assert_eq!(answer.json(), json!({"code": "RATE_LIMIT_EXCEEDED", "message": message, "error": message}));
}

#[tokio::test(start_paused = true)]
async fn full_request_budget_passes_and_the_next_request_is_429() {
    const AT_ONCE: usize = 50;
    let held = disable_auto_advance();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge =
        bridge(&cluster, in_process::Config { keys: Some(keys.path().into()), ..in_process::Config::default() }).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    let head = format!("GET /api/v1/tenants HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n", bridge.address, alice[0].1);
    let requests = format!("{head}\r\n").repeat(AT_ONCE - 1) + &format!("{head}Connection: close\r\n\r\n");
    for answered in 1..=6000 / AT_ONCE {
        let answers = String::from_utf8(http_client::send_raw(bridge.address, requests.as_bytes()).await).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), AT_ONCE, "{answers}");
        let left = 6000 - answered * AT_ONCE;
        assert!(answers.contains(&format!("ratelimit: \"default\";r={left};t=")), "{left}: {answers}");
    }
    let refused = |answer| assert_refused(&answer, "default", 6000, 1, "too many requests");
    for path in ["/api/v1/tenants", "/api/v1/instances", "/api/v1/instances/none", "/api/v1/tenants?x"] {
        refused(get(&bridge, path, &alice).await);
    }
    refused(request(bridge.address, "POST", "/api/v1/tickets", &alice).await);
    for (path, headers) in [("/api/v1/tenants", &all[..]), ("/livez", &alice), ("/readyz", &alice), ("/", &[])] {
        assert_eq!(get(&bridge, path, headers).await.status, 200, "{path}");
    }
    advance(Duration::from_millis(10)).await;
    let last = get(&bridge, "/api/v1/tenants", &alice).await;
    assert_eq!((last.status, last.header("ratelimit")), (200, Some("\"default\";r=0;t=60")));
    refused(get(&bridge, "/api/v1/tenants", &alice).await);
    advance(Duration::from_secs(60)).await;
    let whole = get(&bridge, "/api/v1/tenants", &alice).await;
    assert_eq!((whole.status, whole.header("ratelimit")), (200, Some("\"default\";r=5999;t=1")));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn sixty_rejected_credentials_exhaust_the_address_budget() {
    let held = disable_auto_advance();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let keys = Some(PathBuf::from(keys.path()));
    let proxies = TrustedProxies::new(vec!["127.0.0.0/8".parse().unwrap()]);
    let bridge = bridge(&cluster, in_process::Config { keys, proxies, ..in_process::Config::default() }).await;
    let from = async |address: &str, name: &str| {
        let headers = [("X-Forwarded-For", address), ("Authorization", &bearer(name))];
        get(&bridge, "/api/v1/tenants", &headers).await
    };
    for tried in 0..60 {
        assert_eq!(from("192.0.2.1", &format!("guess-{tried}")).await.status, 401, "{tried}");
    }
    let refused = |answer| assert_refused(&answer, "refused", 60, 1, "too many refused credentials");
    refused(from("192.0.2.1", "guess").await);
    assert_eq!(from("192.0.2.2", "guess").await.status, 401, "others are told apart");
    refused(from("192.0.2.3, 192.0.2.1", "guess").await);
    assert_eq!(from("192.0.2.1", "alice").await.status, 200, "who is known has no part in it");
    assert_eq!(
        get(&bridge, "/api/v1/tenants", &[("X-Forwarded-For", "192.0.2.1")]).await.status,
        401,
        "nothing was tried"
    );
    advance(Duration::from_secs(1)).await;
    assert_eq!(from("192.0.2.1", "guess").await.status, 401);
    refused(from("192.0.2.1", "guess").await);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn connect_budget_refills_one_stream_at_a_time() {
    let held = disable_auto_advance();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let limits = rate_limit::Config { stream_opens: NonZeroU32::new(30), ..rate_limit::Config::default() };
    let keys = Some(PathBuf::from(keys.path()));
    let bridge = bridge(&cluster, in_process::Config { keys, limits, ..in_process::Config::default() }).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    // Its answer is read to the end of the connection.
    let upgrade = http_client::upgrade(bridge.address, "/api/websocket").replace(": Upgrade", ": Upgrade, close");
    let opened = async |headers| WsClient::with(bridge.address, "/api/websocket", headers).await.is_ok();
    for number in 0..30 {
        assert!(opened(&alice).await, "{number}");
    }
    let head = upgrade.replacen("\r\n\r\n", &format!("\r\nAuthorization: {}\r\n\r\n", alice[0].1), 1);
    let refused =
        http_client::parse(&String::from_utf8(http_client::send_raw(bridge.address, head.as_bytes()).await).unwrap());
    assert_refused(&refused, "connects", 30, 2, "too many requests");
    assert!(opened(&all).await, "others are not touched");
    assert_eq!(get(&bridge, "/api/v1/tenants", &alice).await.status, 200, "GETs have a budget of their own");
    advance(Duration::from_secs(2)).await;
    assert!(opened(&alice).await);
    assert!(!opened(&alice).await);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn forwarded_addresses_count_only_from_trusted_proxies() {
    let held = disable_auto_advance();
    let cluster = SimCluster::new().await;
    for (trusted, apart) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let limits = rate_limit::Config { requests: NonZeroU32::new(20).unwrap(), ..rate_limit::Config::default() };
        let proxies = TrustedProxies::new(vec![trusted.parse().unwrap()]);
        let bridge = bridge(&cluster, in_process::Config { limits, proxies, ..in_process::Config::default() }).await;
        let from = async |address: &str| get(&bridge, "/api/v1/stats", &[("X-Forwarded-For", address)]).await;
        for number in 0..20 {
            // Behind a proxy that is not trusted, whatever is said counts for nothing: it is one address.
            let output = if apart { "192.0.2.1".to_owned() } else { format!("192.0.2.{number}") };
            assert_eq!(from(&output).await.status, 200, "{number} {trusted}");
        }
        assert_refused(&from("192.0.2.1").await, "default", 20, 3, "too many requests");
        let other = from("198.51.100.7").await.status;
        assert_eq!(other, if apart { 200 } else { 429 }, "{trusted}");
        let of_subscriber = ["2001:db8:0:1::1", "2001:db8:0:1::2"];
        if apart {
            for number in 0..20 {
                assert_eq!(from(of_subscriber[number % 2]).await.status, 200, "{number}");
            }
            assert_eq!(from("2001:db8:0:1:ffff::3").await.status, 429, "the first 64 bits are one subscriber's");
            assert_eq!(from("2001:db8:0:2::1").await.status, 200);
        }
    }
    drop(held);
}
