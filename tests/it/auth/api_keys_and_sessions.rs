//! What opens what: keys, sessions and tickets, against the binary.

use serde_json::{Value, json};

use super::{KeysFile, bearer, cookie, secret, three_keys, ticket, two_tenants, upgraded};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{HttpResponse, request},
    sse_client::SseClient,
};

/// Endpoints, and what a GET of each answers: to nobody, a wrong key, one that may not read, a tenant's, and to one that
/// sees everything.
const OPENS: &[(&str, [u16; 5])] = &[
    ("/", [200, 200, 200, 200, 200]),
    ("/livez", [200, 200, 200, 200, 200]),
    ("/readyz", [200, 200, 200, 200, 200]),
    ("/readyz?verbose", [200, 200, 200, 200, 200]),
    ("/api/v1/health", [200, 200, 200, 200, 200]),
    ("/api/v1/nothing", [404, 404, 404, 404, 404]),
    ("/api/v1/instances", [401, 401, 403, 200, 200]),
    ("/api/v1/instances/alice-pod", [401, 401, 403, 200, 200]),
    ("/api/v1/instances/bob-pod", [401, 401, 403, 404, 200]),
    ("/api/v1/instances/no-pod", [401, 401, 403, 404, 404]),
    ("/api/v1/tenants", [401, 401, 403, 200, 200]),
    ("/api/v1/tenants/alice", [401, 401, 403, 200, 200]),
    ("/api/v1/tenants/bob", [401, 401, 403, 404, 200]),
    ("/api/v1/pools", [401, 401, 403, 403, 200]),
    ("/api/v1/stats", [401, 401, 403, 403, 200]),
    ("/metrics", [401, 401, 403, 403, 200]),
    ("/api/v1/connections", [401, 401, 403, 200, 200]),
    ("/ws", [401, 401, 403, 426, 426]),
    ("/api/websocket", [401, 401, 403, 426, 426]),
    ("/events/ws", [401, 401, 403, 426, 426]),
    ("/api/sse?x", [401, 401, 403, 400, 400]),
    ("/api/events/stream?x", [401, 401, 403, 400, 400]),
    ("/events/stream?x", [401, 401, 403, 400, 400]),
    ("/events?x", [401, 401, 403, 400, 400]),
];

async fn get(bridge: &BridgeProcess, path: &str, headers: &[(&str, &str)]) -> HttpResponse {
    request(bridge.address, "GET", path, headers).await
}

#[tokio::test]
async fn each_key_reaches_only_its_permitted_endpoints() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path()]).await;
    let credentials = ["", "wrong", "blind", "alice", "all"].map(bearer);
    for (path, statuses) in OPENS {
        for (credential, expected) in credentials.iter().zip(statuses) {
            let header = [("Authorization", credential.as_str())];
            let headers = if *credential == bearer("") { &[][..] } else { &header[..] };
            let answer = get(&bridge, path, headers).await;
            assert_eq!(answer.status, *expected, "{path} {credential}: {}", answer.body);
            let challenge = answer.header("www-authenticate");
            assert_eq!(challenge.is_some(), *expected == 401, "{path} {credential}");
        }
    }
    let own = get(&bridge, "/api/v1/instances", &[("Authorization", &credentials[3])]).await;
    let names = |answer: &HttpResponse| -> Vec<Value> {
        answer.json().as_array().unwrap().iter().map(|one| one["name"].clone()).collect()
    };
    assert_eq!(names(&own), [json!("alice-pod")]);
    let all = get(&bridge, "/api/v1/instances", &[("Authorization", &credentials[4])]).await;
    assert_eq!(names(&all), [json!("alice-pod"), json!("bob-pod")]);
}

#[tokio::test]
async fn public_endpoints_stay_open_without_tenant_keys() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&[super::key("all", &Value::Null)]));
    let bridge = cluster.bridge(&["--keys-file", &keys.path()]).await;
    for (path, status) in [("/metrics", 200), ("/api/v1/stats", 200), ("/api/v1/instances", 401)] {
        assert_eq!(get(&bridge, path, &[]).await.status, status, "{path}");
    }
    assert_eq!(upgraded(&bridge, "/ws", &[]).await, 101);
    assert_eq!(upgraded(&bridge, "/api/websocket", &[]).await, 401);
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--ws-auth", "required"]).await;
    assert_eq!(upgraded(&bridge, "/ws", &[]).await, 401);
    assert_eq!(upgraded(&bridge, "/ws", &[("Authorization", &bearer("all"))]).await, 101);
    assert_eq!(get(&bridge, "/metrics", &[]).await.status, 200);
}

#[tokio::test]
async fn environment_key_reaches_all_endpoints() {
    let cluster = two_tenants().await;
    let kubeconfig = cluster.kubeconfig();
    let serve = ["serve", "--port", "0", "--kubeconfig", &kubeconfig];
    let bridge = BridgeProcess::run_with(&serve, &[("BOILERHOUSE_API_KEY", &secret("one"))]).await;
    bridge.wait_ready().await;
    for (credential, status) in [(bearer("one"), 200), (bearer("two"), 401), (secret("one"), 401)] {
        let answer = get(&bridge, "/api/v1/pools", &[("Authorization", &credential)]).await;
        assert_eq!(answer.status, status, "{credential}: {}", answer.body);
    }
    let lower = format!("bearer {}", secret("one"));
    assert_eq!(get(&bridge, "/api/v1/pools", &[("authorization", &lower)]).await.status, 200);
    let twice = [("Authorization", bearer("one")), ("Authorization", bearer("one"))];
    let twice = twice.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(get(&bridge, "/api/v1/pools", &twice).await.status, 401, "two are none");
}

#[tokio::test]
async fn session_cookie_is_valid_for_its_host_until_sign_out() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--trusted-proxies", "127.0.0.0/8"]).await;
    let port = bridge.address.port();
    let authorization = bearer("alice");
    let signed_in = request(bridge.address, "POST", "/api/v1/session", &[("Authorization", &authorization)]).await;
    assert_eq!(signed_in.status, 200, "{}", signed_in.body);
    assert_eq!(signed_in.header("cache-control"), Some("no-store"));
    let set = signed_in.header("set-cookie").unwrap();
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert!(pair.starts_with("boilerhouse_bridge=bbp1."), "{set}");
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict; Max-Age=43200");

    let other = format!("localhost:{port}");
    let doubled = format!("{pair}; {pair}");
    let touched = format!("{pair}x");
    for (headers, status, what) in [
        (vec![("Cookie", pair)], 200, "it opens what its key opens"),
        (vec![("Cookie", "a=b"), ("Cookie", pair)], 200, "among others"),
        (vec![("Cookie", pair), ("Host", other.as_str())], 401, "not at another host"),
        (vec![("Cookie", pair), ("X-Forwarded-Proto", "https")], 401, "a plain one is none over https"),
        (vec![("Cookie", &touched)], 401, "touched"),
        (vec![("Cookie", &doubled)], 401, "which of the two?"),
        (vec![("Cookie", pair), ("Authorization", "Bearer wrong")], 401, "what is wrong is not made good"),
    ] {
        let answer = get(&bridge, "/api/v1/instances", &headers).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.body);
    }
    assert_eq!(get(&bridge, "/api/v1/pools", &[("Cookie", pair)]).await.status, 403, "it is alice's");
    assert_eq!(upgraded(&bridge, "/ws", &[("Cookie", pair)]).await, 101);
    assert_eq!(upgraded(&bridge, "/api/websocket", &[("Cookie", pair)]).await, 101);
    for path in ["/api/v1/session", "/api/v1/tickets"] {
        assert_eq!(
            request(bridge.address, "POST", path, &[("Cookie", pair)]).await.status,
            401,
            "{path} needs the key"
        );
    }
    let value = pair.split_once('=').unwrap().1;
    let as_bearer = format!("Bearer {value}");
    assert_eq!(get(&bridge, "/api/v1/instances", &[("Authorization", &as_bearer)]).await.status, 401);
    assert_eq!(upgraded(&bridge, &format!("/api/websocket?token={value}"), &[]).await, 401, "it is no ticket");

    let left = request(bridge.address, "DELETE", "/api/v1/session", &[("Cookie", pair)]).await;
    assert_eq!(left.status, 204);
    let gone = "boilerhouse_bridge=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0";
    assert_eq!(left.header("set-cookie"), Some(gone));
}

#[tokio::test]
async fn https_session_is_secure_and_plaintext_session_is_rejected() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let args = ["--keys-file", &keys.path(), "--allowed-hosts", "bridge.example"];
    let bridge = cluster.bridge(&[&args[..], &["--trusted-proxies", "127.0.0.1"]].concat()).await;
    let authorization = bearer("all");
    let sign_in = async |bridge: &BridgeProcess, headers: &[(&str, &str)]| {
        let headers = [&[("Authorization", authorization.as_str())], headers].concat();
        request(bridge.address, "POST", "/api/v1/session", &headers).await
    };
    let https = [("Host", "bridge.example"), ("X-Forwarded-Proto", "https")];
    let signed_in = sign_in(&bridge, &https).await;
    let set = signed_in.header("set-cookie").unwrap();
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert!(pair.starts_with("__Host-boilerhouse_bridge=bbp1."), "{set}");
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure");
    let with = [&https[..], &[("Cookie", pair)]].concat();
    assert_eq!(get(&bridge, "/api/v1/pools", &with).await.status, 200);
    assert_eq!(get(&bridge, "/api/v1/pools", &[("Host", "bridge.example"), ("Cookie", pair)]).await.status, 401);
    for host in ["bridge.example", "10.0.0.7:3000"] {
        let answer = sign_in(&bridge, &[("Host", host)]).await;
        assert_eq!(answer.status, 403, "{host}: {}", answer.body);
        assert_eq!(answer.header("set-cookie"), None);
    }
    // Nobody whose word counts says that it is https.
    let bridge = cluster.bridge(&args).await;
    assert_eq!(sign_in(&bridge, &https).await.status, 403);
}

#[tokio::test]
async fn ticket_opens_streams_only() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path()]).await;
    let alice = ticket(&bridge, "alice").await;
    assert_eq!(upgraded(&bridge, &format!("/api/websocket?token={alice}"), &[]).await, 101);
    assert_eq!(upgraded(&bridge, &format!("/events/ws?rstream.token={alice}"), &[]).await, 101);
    let mut events = SseClient::open(bridge.address, &format!("/api/sse?token={alice}"), &[]).await;
    let state = events.event().await.json();
    assert_eq!(state["instances"].as_array().unwrap().len(), 1, "{state}");
    assert_eq!(state["instances"][0]["name"], "alice-pod");
    assert_eq!(state["pools"], json!([]));

    for (path, status) in [("/ws", 401), ("/api/v1/instances", 401), ("/api/v1/pools", 401), ("/metrics", 401)] {
        assert_eq!(get(&bridge, &format!("{path}?token={alice}"), &[]).await.status, status, "{path}");
    }
    let as_bearer = format!("Bearer {alice}");
    assert_eq!(upgraded(&bridge, "/api/websocket", &[("Authorization", &as_bearer)]).await, 401);
    // A key in a query would be in every proxy's log.
    let in_query = get(&bridge, &format!("/api/sse?token={}", secret("all")), &[]).await;
    assert_eq!(in_query.status, 401);
    assert!(in_query.json()["message"].as_str().unwrap().contains("only a stream ticket may stand in the query"));
    for name in ["blind", "wrong"] {
        let status =
            request(bridge.address, "POST", "/api/v1/tickets", &[("Authorization", &bearer(name))]).await.status;
        assert_eq!(status, if name == "blind" { 403 } else { 401 });
    }
    assert_eq!(get(&bridge, "/api/v1/tickets", &[("Authorization", &bearer("all"))]).await.status, 405);
}

#[tokio::test]
async fn replicas_with_one_session_key_accept_each_others_tokens() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let signing = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(signing.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    let path = signing.path().to_string_lossy().into_owned();
    let args = ["--keys-file", &keys.path()];
    let shared = [&args[..], &["--session-key-file", &path]].concat();
    let (one, two, alone) = (cluster.bridge(&shared).await, cluster.bridge(&shared).await, cluster.bridge(&args).await);
    let ticket = format!("/api/websocket?token={}", ticket(&one, "all").await);
    let cookie = cookie(&one, "all").await;
    let host = one.address.to_string();
    for (bridge, stream, pools) in [(&one, 101, 200), (&two, 101, 200), (&alone, 401, 401)] {
        assert_eq!(upgraded(bridge, &ticket, &[]).await, stream);
        assert_eq!(get(bridge, "/api/v1/pools", &[("Cookie", &cookie), ("Host", &host)]).await.status, pools);
    }
}

#[tokio::test]
async fn sessions_and_tickets_are_403_without_credentials() {
    let cluster = two_tenants().await;
    let bridge = cluster.bridge(&[]).await;
    for path in ["/api/v1/session", "/api/v1/tickets"] {
        let answer = request(bridge.address, "POST", path, &[]).await;
        assert_eq!(answer.status, 403, "{}", answer.body);
    }
    assert_eq!(get(&bridge, "/api/v1/pools", &[("Authorization", "Bearer any")]).await.status, 200);
    assert_eq!(upgraded(&bridge, "/api/websocket?token=any", &[]).await, 101);
}
