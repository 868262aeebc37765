//! How much. Against the binary, where rates are so low that nothing comes back during a test, and with the clock held
//! against a bridge in this process.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use boilerhouse_bridge::http::{forwarded::Proxies, rate_limit};
use serde_json::json;
use tokio::time::advance;

use super::{KeysFile, bearer, three_keys, two_tenants, upgraded};
use crate::support::{
    clock::hold,
    house::{self, House},
    simulated::{NAMESPACE, Simulated},
    sse::Events,
    web::{self, Answer, Listener, ask},
};

#[tokio::test]
async fn gets_are_limited_for_each_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--request-rate", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let get = async |path: &str, authorization: &str| {
        ask(bridge.address, "GET", path, &[("Authorization", authorization)]).await
    };
    let rate = |answer: &crate::support::web::Answer| {
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
async fn new_streams_are_limited_for_each_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--connect-rate", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    assert_eq!(upgraded(&bridge, "/api/websocket", &alice).await, 101);
    assert_eq!(upgraded(&bridge, "/ws", &alice).await, 101);
    assert_eq!(upgraded(&bridge, "/events/ws", &alice).await, 429);
    assert_eq!(upgraded(&bridge, "/ws", &alice).await, 429);
    // An EventSource gives up for good on a 429.
    let mut events = Events::open(bridge.address, "/api/sse", &alice).await;
    assert_eq!(events.head.status, 200);
    let [retry, closing] = &events.rest().await[..] else { panic!("expected two blocks") };
    assert!(retry.retry.is_some_and(|ms| (1000..=3000).contains(&ms)), "{retry:?}");
    let closing = closing.json();
    assert_eq!((&closing["type"], &closing["reason"]), (&json!("stream.closing"), &json!("rate")));
    assert_eq!(upgraded(&bridge, "/ws", &all).await, 101);
}

#[tokio::test]
async fn open_streams_are_limited_for_each_principal() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--max-connections-per-principal", "2"]).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    let first = Listener::with(bridge.address, "/ws", &alice).await.unwrap();
    let _second = Events::open(bridge.address, "/api/sse", &alice).await;
    assert_eq!(upgraded(&bridge, "/api/websocket", &alice).await, 503);
    let closing = Events::open(bridge.address, "/events", &alice).await.rest().await;
    assert_eq!(closing[1].json()["reason"], "too many connections");
    assert_eq!(upgraded(&bridge, "/ws", &all).await, 101);
    drop(first);
    let free = async {
        while upgraded(&bridge, "/ws", &alice).await != 101 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(crate::support::web::BOUND, free).await.expect("the seat is not given back");
}

/// Nobody in particular is told apart by address, and only a proxy that is trusted may say which.
#[tokio::test]
async fn strangers_are_told_apart_by_address_as_far_as_it_can_be_known() {
    let cluster = two_tenants().await;
    for (trusted, other) in [("127.0.0.0/8", 200), ("10.0.0.0/8", 429)] {
        let bridge = cluster.bridge(&["--request-rate", "1", "--trusted-proxies", trusted]).await;
        let get =
            async |from: &str| ask(bridge.address, "GET", "/api/v1/stats", &[("X-Forwarded-For", from)]).await.status;
        assert_eq!(get("192.0.2.1").await, 200);
        assert_eq!(get("192.0.2.1").await, 429);
        assert_eq!(get("6.6.6.6, 192.0.2.1").await, 429, "what the client itself says is not believed");
        assert_eq!(get("192.0.2.2").await, other, "{trusted}");
    }
}

/// A bridge in this process, whose time is the test's.
async fn bridge(cluster: &Simulated, config: house::Config) -> House {
    let client = cluster.sim.client(NAMESPACE);
    House::open(NAMESPACE, client.clone(), &client, config).await
}

async fn get(house: &House, path: &str, headers: &[(&str, &str)]) -> Answer {
    ask(house.address, "GET", path, headers).await
}

/// A refusal, whole: status, headers, body.
fn assert_refused(answer: &Answer, budget: &str, quota: u32, wait: u64, what: &str) {
    let told = ["ratelimit-policy", "ratelimit", "retry-after"].map(|name| answer.header(name).unwrap_or_default());
    let (policy, left) = (format!("\"{budget}\";q={quota};w=60"), format!("\"{budget}\";r=0;t={wait}"));
    assert_eq!((answer.status, told), (429, [policy.as_str(), &left, &wait.to_string()]), "{}", answer.body);
    let message = format!("{what}: more than {quota} a minute; try again in {wait} s");
    assert_eq!(answer.json(), json!({"code": "RATE_LIMIT_EXCEEDED", "message": message, "error": message}));
}

#[tokio::test(start_paused = true)]
async fn with_the_clock_held_a_burst_passes_and_the_next_is_refused() {
    const AT_ONCE: usize = 50;
    let held = hold();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let house = bridge(&cluster, house::Config { keys: Some(keys.path().into()), ..house::Config::default() }).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    let request =
        format!("GET /api/v1/tenants HTTP/1.1\r\nHost: {}\r\nAuthorization: {}\r\n", house.address, alice[0].1);
    let requests = format!("{request}\r\n").repeat(AT_ONCE - 1) + &format!("{request}Connection: close\r\n\r\n");
    for answered in 1..=6000 / AT_ONCE {
        let answers = String::from_utf8(web::say(house.address, requests.as_bytes()).await).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), AT_ONCE, "{answers}");
        let left = 6000 - answered * AT_ONCE;
        assert!(answers.contains(&format!("ratelimit: \"default\";r={left};t=")), "{left}: {answers}");
    }
    let refused = |answer| assert_refused(&answer, "default", 6000, 1, "too many requests");
    for path in ["/api/v1/tenants", "/api/v1/instances", "/api/v1/instances/none", "/api/v1/tenants?x"] {
        refused(get(&house, path, &alice).await);
    }
    refused(ask(house.address, "POST", "/api/v1/tickets", &alice).await);
    for (path, headers) in [("/api/v1/tenants", &all[..]), ("/livez", &alice), ("/readyz", &alice), ("/", &[])] {
        assert_eq!(get(&house, path, headers).await.status, 200, "{path}");
    }
    advance(Duration::from_millis(10)).await;
    let last = get(&house, "/api/v1/tenants", &alice).await;
    assert_eq!((last.status, last.header("ratelimit")), (200, Some("\"default\";r=0;t=60")));
    refused(get(&house, "/api/v1/tenants", &alice).await);
    advance(Duration::from_secs(60)).await;
    let whole = get(&house, "/api/v1/tenants", &alice).await;
    assert_eq!((whole.status, whole.header("ratelimit")), (200, Some("\"default\";r=5999;t=1")));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn with_the_clock_held_sixty_wrong_credentials_are_enough() {
    let held = hold();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let keys = Some(PathBuf::from(keys.path()));
    let proxies = Proxies::new(vec!["127.0.0.0/8".parse().unwrap()]);
    let house = bridge(&cluster, house::Config { keys, proxies, ..house::Config::default() }).await;
    let from = async |address: &str, name: &str| {
        let headers = [("X-Forwarded-For", address), ("Authorization", &bearer(name))];
        get(&house, "/api/v1/tenants", &headers).await
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
        get(&house, "/api/v1/tenants", &[("X-Forwarded-For", "192.0.2.1")]).await.status,
        401,
        "nothing was tried"
    );
    advance(Duration::from_secs(1)).await;
    assert_eq!(from("192.0.2.1", "guess").await.status, 401);
    refused(from("192.0.2.1", "guess").await);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn with_the_clock_held_new_streams_come_back_one_by_one() {
    let held = hold();
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let limits = rate_limit::Config { connects: NonZeroU32::new(30), ..rate_limit::Config::default() };
    let keys = Some(PathBuf::from(keys.path()));
    let house = bridge(&cluster, house::Config { keys, limits, ..house::Config::default() }).await;
    let (alice, all) = (bearer("alice"), bearer("all"));
    let (alice, all) = ([("Authorization", alice.as_str())], [("Authorization", all.as_str())]);
    // Its answer is read to the end of the connection.
    let upgrade = web::upgrade(house.address, "/api/websocket").replace(": Upgrade", ": Upgrade, close");
    let opened = async |headers| Listener::with(house.address, "/api/websocket", headers).await.is_ok();
    for number in 0..30 {
        assert!(opened(&alice).await, "{number}");
    }
    let request = upgrade.replacen("\r\n\r\n", &format!("\r\nAuthorization: {}\r\n\r\n", alice[0].1), 1);
    let refused = web::parse(&String::from_utf8(web::say(house.address, request.as_bytes()).await).unwrap());
    assert_refused(&refused, "connects", 30, 2, "too many requests");
    assert!(opened(&all).await, "others are not touched");
    assert_eq!(get(&house, "/api/v1/tenants", &alice).await.status, 200, "GETs have a budget of their own");
    advance(Duration::from_secs(2)).await;
    assert!(opened(&alice).await);
    assert!(!opened(&alice).await);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn with_the_clock_held_addresses_are_what_a_trusted_proxy_says_and_nobody_else() {
    let held = hold();
    let cluster = Simulated::new().await;
    for (trusted, apart) in [("127.0.0.0/8", true), ("10.0.0.0/8", false)] {
        let limits = rate_limit::Config { requests: NonZeroU32::new(20).unwrap(), ..rate_limit::Config::default() };
        let proxies = Proxies::new(vec![trusted.parse().unwrap()]);
        let house = bridge(&cluster, house::Config { limits, proxies, ..house::Config::default() }).await;
        let from = async |address: &str| get(&house, "/api/v1/stats", &[("X-Forwarded-For", address)]).await;
        for number in 0..20 {
            // Behind a proxy that is not trusted, whatever is said counts for nothing: it is one address.
            let said = if apart { "192.0.2.1".to_owned() } else { format!("192.0.2.{number}") };
            assert_eq!(from(&said).await.status, 200, "{number} {trusted}");
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
