//! The rules for browsers, and credentials, hold on a relay too (docs/protocol.md#access).

use sha2::{Digest, Sha256};

use super::relay;
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, WsClient},
    sse_client::SseClient,
    sse_upstream::SseUpstream,
};

#[tokio::test]
async fn foreign_origins_and_forged_hosts_are_refused() {
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &["--cors-origin", "https://app.example"]).await;
    let _connection = upstream.stream().await;
    let own = format!("http://{}", relay.address);
    let status =
        async |path, headers: &[(&str, &str)]| http_client::request(relay.address, "HEAD", path, headers).await.status;
    assert_eq!(status("/events", &[("Origin", "https://evil.example")]).await, 403);
    assert_eq!(status("/events", &[("Host", "evil.example")]).await, 403);
    assert_eq!(status("/events", &[("Sec-Fetch-Site", "cross-site")]).await, 403);
    assert_eq!(status("/api/v1/health", &[("Host", "evil.example")]).await, 403);
    assert_eq!(status("/events", &[("Origin", &own)]).await, 200);
    let allowed = http_client::request(relay.address, "HEAD", "/events", &[("Origin", "https://app.example")]).await;
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (200, Some("https://app.example")));
    for headers in [[("Origin", "https://evil.example")], [("Origin", "null")]] {
        assert_eq!(WsClient::with(relay.address, "/events/ws", &headers).await.unwrap_err(), 403);
    }
    WsClient::with(relay.address, "/events/ws", &[("Origin", "https://app.example")]).await.unwrap();
}

#[tokio::test]
async fn credentials_and_limits_hold() {
    const KEY: &str = "a-key-of-the-relay-of-32-characters";
    const TENANT_KEY: &str = "a-key-of-one-tenant-of-32-characters";
    let mut upstream = SseUpstream::new().await;
    let keys = tempfile::NamedTempFile::new().unwrap();
    let hash: String = Sha256::digest(TENANT_KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(keys.path(), format!("keys: [{{name: tenant, sha256: {hash}, tenantId: alice}}]\n")).unwrap();
    let keys = keys.path().to_string_lossy().into_owned();
    let url = upstream.url();
    let args = ["relay", "--upstream", &url, "--listen", "127.0.0.1:0", "--keys-file", &keys];
    let args = [&args[..], &["--max-connections-per-principal", "2"]].concat();
    let relay = BridgeProcess::run_with(&args, &[("BOILERHOUSE_API_KEY", KEY)]).await;
    let mut connection = upstream.stream().await;
    assert_eq!(connection.header("authorization"), None, "the relay must not send its own key");
    connection.send("id: 1\ndata: a\n\n").await;
    let bearer = |key: &str| format!("Bearer {key}");
    let status = async |path: &str, key: Option<&str>| {
        let bearer = key.map(bearer);
        let headers: Vec<_> = bearer.iter().map(|value| ("Authorization", value.as_str())).collect();
        http_client::request(relay.address, "HEAD", path, &headers).await.status
    };
    assert_eq!(status("/api/v1/health", None).await, 200);
    assert_eq!(status("/events", None).await, 401);
    assert_eq!(status("/metrics", None).await, 401);
    assert_eq!(status("/events", Some("wrong")).await, 401);
    // A relay cannot separate tenants.
    assert_eq!(status("/events", Some(TENANT_KEY)).await, 403);
    assert_eq!(status("/events", Some(KEY)).await, 200);
    // A ticket opens a stream.
    let authorization = bearer(KEY);
    let headers = [("Authorization", authorization.as_str()), ("Content-Length", "0")];
    let ticket = http_client::request(relay.address, "POST", "/api/v1/tickets", &headers).await.json();
    let path = format!("/events?token={}", ticket["ticket"].as_str().unwrap());
    let mut first = SseClient::open(relay.address, &path, &[]).await;
    assert_eq!(first.event().await.data, "a");
    let second = SseClient::open(relay.address, "/events", &headers[..1]).await;
    assert_eq!(second.head.status, 200);
    // The third stream of the caller is refused with its own id, in the form of the transport.
    let third = [headers[0], ("Last-Event-ID", "1")];
    let refused = http_client::request(relay.address, "GET", "/events", &third).await;
    assert!(refused.body.contains("id: 1\nevent: stream.closing\n"), "{refused:?}");
    assert!(refused.body.contains("too many connections"), "{refused:?}");
    assert_eq!(WsClient::with(relay.address, "/events/ws", &headers[..1]).await.unwrap_err(), 503);
}
