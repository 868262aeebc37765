//! Tests of API keys, session cookies and stream tickets with the binary.

use serde_json::{Value, json};

use super::{KeysFile, bearer, cookie, secret, three_keys, ticket, two_tenants, upgrade_status};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{HttpResponse, request},
    sse_client::SseClient,
};

/// Status of a GET of each endpoint: without a credential, with an unknown key, with a key without the permission
/// `read`, with a tenant key, and with a key for all tenants.
const STATUS_BY_KEY: &[(&str, [u16; 5])] = &[
    ("/", [200, 200, 200, 200, 200]),
    ("/client.js", [200, 200, 200, 200, 200]),
    ("/assets/app.js", [200, 200, 200, 200, 200]),
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
    for (path, statuses) in STATUS_BY_KEY {
        for (credential, expected) in credentials.iter().zip(statuses) {
            let header = [("Authorization", credential.as_str())];
            let headers = if *credential == bearer("") { &[][..] } else { &header[..] };
            let response = get(&bridge, path, headers).await;
            assert_eq!(response.status, *expected, "{path} with '{credential}': {}", response.body);
            let challenge = response.header("www-authenticate");
            assert_eq!(challenge.is_some(), *expected == 401, "{path} with '{credential}': {challenge:?}");
        }
    }
    let of_alice = get(&bridge, "/api/v1/instances", &[("Authorization", &credentials[3])]).await;
    let names = |response: &HttpResponse| -> Vec<Value> {
        response.json().as_array().unwrap().iter().map(|object| object["name"].clone()).collect()
    };
    assert_eq!(names(&of_alice), [json!("alice-pod")]);
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
    assert_eq!(upgrade_status(&bridge, "/ws", &[]).await, 101);
    assert_eq!(upgrade_status(&bridge, "/api/websocket", &[]).await, 401);
    let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--ws-auth", "required"]).await;
    assert_eq!(upgrade_status(&bridge, "/ws", &[]).await, 401);
    assert_eq!(upgrade_status(&bridge, "/ws", &[("Authorization", &bearer("all"))]).await, 101);
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
        let response = get(&bridge, "/api/v1/pools", &[("Authorization", &credential)]).await;
        assert_eq!(response.status, status, "{credential}: {}", response.body);
    }
    let lower_case = format!("bearer {}", secret("one"));
    assert_eq!(get(&bridge, "/api/v1/pools", &[("authorization", &lower_case)]).await.status, 200);
    let twice = [("Authorization", bearer("one")), ("Authorization", bearer("one"))];
    let twice = twice.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(get(&bridge, "/api/v1/pools", &twice).await.status, 401, "expected 401 for two headers");
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

    let other_host = format!("localhost:{port}");
    let duplicate = format!("{pair}; {pair}");
    let modified = format!("{pair}x");
    for (headers, status, case) in [
        (vec![("Cookie", pair)], 200, "the cookie alone"),
        (vec![("Cookie", "a=b"), ("Cookie", pair)], 200, "the cookie among others"),
        (vec![("Cookie", pair), ("Host", other_host.as_str())], 401, "another Host"),
        (vec![("Cookie", pair), ("X-Forwarded-Proto", "https")], 401, "a cookie of plain http over https"),
        (vec![("Cookie", &modified)], 401, "a modified cookie"),
        (vec![("Cookie", &duplicate)], 401, "the cookie twice"),
        (vec![("Cookie", pair), ("Authorization", "Bearer wrong")], 401, "a valid cookie after an unknown key"),
    ] {
        let response = get(&bridge, "/api/v1/instances", &headers).await;
        assert_eq!(response.status, status, "{case}: {}", response.body);
    }
    assert_eq!(
        get(&bridge, "/api/v1/pools", &[("Cookie", pair)]).await.status,
        403,
        "expected the rights of a tenant key"
    );
    assert_eq!(upgrade_status(&bridge, "/ws", &[("Cookie", pair)]).await, 101);
    assert_eq!(upgrade_status(&bridge, "/api/websocket", &[("Cookie", pair)]).await, 101);
    for path in ["/api/v1/session", "/api/v1/tickets"] {
        assert_eq!(
            request(bridge.address, "POST", path, &[("Cookie", pair)]).await.status,
            401,
            "expected {path} to reject a cookie"
        );
    }
    let value = pair.split_once('=').unwrap().1;
    let as_bearer = format!("Bearer {value}");
    assert_eq!(get(&bridge, "/api/v1/instances", &[("Authorization", &as_bearer)]).await.status, 401);
    assert_eq!(upgrade_status(&bridge, &format!("/api/websocket?token={value}"), &[]).await, 401, "expected no ticket");

    let signed_out = request(bridge.address, "DELETE", "/api/v1/session", &[("Cookie", pair)]).await;
    assert_eq!(signed_out.status, 204);
    let removed = "boilerhouse_bridge=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0";
    assert_eq!(signed_out.header("set-cookie"), Some(removed));
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
        let response = sign_in(&bridge, &[("Host", host)]).await;
        assert_eq!(response.status, 403, "{host}: {}", response.body);
        assert_eq!(response.header("set-cookie"), None);
    }
    // Without a trusted proxy, `X-Forwarded-Proto` has no effect.
    let bridge = cluster.bridge(&args).await;
    assert_eq!(sign_in(&bridge, &https).await.status, 403);
}

#[tokio::test]
async fn ticket_opens_streams_only() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let bridge = cluster.bridge(&["--keys-file", &keys.path()]).await;
    let alice = ticket(&bridge, "alice").await;
    assert_eq!(upgrade_status(&bridge, &format!("/api/websocket?token={alice}"), &[]).await, 101);
    assert_eq!(upgrade_status(&bridge, &format!("/events/ws?rstream.token={alice}"), &[]).await, 101);
    let mut events = SseClient::open(bridge.address, &format!("/api/sse?token={alice}"), &[]).await;
    let state = events.event().await.json();
    assert_eq!(state["instances"].as_array().unwrap().len(), 1, "{state}");
    assert_eq!(state["instances"][0]["name"], "alice-pod");
    assert_eq!(state["pools"], json!([]));

    for (path, status) in [("/ws", 401), ("/api/v1/instances", 401), ("/api/v1/pools", 401), ("/metrics", 401)] {
        assert_eq!(get(&bridge, &format!("{path}?token={alice}"), &[]).await.status, status, "{path}");
    }
    let as_bearer = format!("Bearer {alice}");
    assert_eq!(upgrade_status(&bridge, "/api/websocket", &[("Authorization", &as_bearer)]).await, 401);
    // A key in a query would appear in the logs of proxies.
    let in_query = get(&bridge, &format!("/api/sse?token={}", secret("all")), &[]).await;
    assert_eq!(in_query.status, 401);
    assert!(in_query.json()["message"].as_str().unwrap().contains("the query may contain only a stream ticket"));
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
    let (first, second, separate) =
        (cluster.bridge(&shared).await, cluster.bridge(&shared).await, cluster.bridge(&args).await);
    let ticket = format!("/api/websocket?token={}", ticket(&first, "all").await);
    let cookie = cookie(&first, "all").await;
    let host = first.address.to_string();
    for (bridge, stream, pools) in [(&first, 101, 200), (&second, 101, 200), (&separate, 401, 401)] {
        assert_eq!(upgrade_status(bridge, &ticket, &[]).await, stream);
        assert_eq!(get(bridge, "/api/v1/pools", &[("Cookie", &cookie), ("Host", &host)]).await.status, pools);
    }
}

#[tokio::test]
async fn sessions_and_tickets_are_403_without_credentials() {
    let cluster = two_tenants().await;
    let bridge = cluster.bridge(&[]).await;
    for path in ["/api/v1/session", "/api/v1/tickets"] {
        let response = request(bridge.address, "POST", path, &[]).await;
        assert_eq!(response.status, 403, "{}", response.body);
    }
    assert_eq!(get(&bridge, "/api/v1/pools", &[("Authorization", "Bearer any")]).await.status, 200);
    assert_eq!(upgrade_status(&bridge, "/api/websocket?token=any", &[]).await, 101);
}
