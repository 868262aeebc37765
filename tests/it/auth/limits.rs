//! How much, against the binary. Rates are so low here that nothing comes back during a test.

use serde_json::json;

use super::{KeysFile, bearer, three_keys, two_tenants, upgraded};
use crate::support::{
    sse::Events,
    web::{Listener, ask},
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
