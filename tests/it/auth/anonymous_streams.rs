//! The streams that are reserved for callers with a credential (docs/protocol.md#access, "Limits"): clients of `/ws`
//! without a credential cannot take all of them.

use super::{KeysFile, bearer, key, upgrade_status};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, WsClient, poll_until_async, request_raw},
    sim_cluster::SimCluster,
    sse_client::SseClient,
};

/// A key for all tenants, so that `/ws` stays open.
fn one_key() -> KeysFile {
    KeysFile::new(&[key("all", &serde_json::Value::Null)])
}

/// Opens `/ws` without a credential until a request is rejected. Returns the streams.
async fn fill(bridge: &BridgeProcess) -> Vec<WsClient> {
    let mut streams = Vec::new();
    while let Ok(stream) = WsClient::try_connect(bridge.address, "/ws").await {
        streams.push(stream);
        assert!(streams.len() < 100, "expected a rejection");
    }
    streams
}

#[tokio::test]
async fn anonymous_streams_leave_a_quarter_for_callers_with_a_credential() {
    let (cluster, keys, all) = (SimCluster::new().await, one_key(), bearer("all"));
    let all = [("Authorization", all.as_str())];
    for (max, anonymous) in [("8", 6), ("10", 7), ("2", 1)] {
        let bridge = cluster.bridge(&["--keys-file", &keys.path(), "--max-connections", max]).await;
        let streams = fill(&bridge).await;
        assert_eq!(streams.len(), anonymous, "--max-connections {max}");
        let head = http_client::upgrade(bridge.address, "/ws").replace(": Upgrade", ": Upgrade, close");
        let rejected = request_raw(bridge.address, &head).await;
        assert_eq!((rejected.status, &rejected.json()["code"]), (503, &"TOO_MANY_CONNECTIONS".into()));
        assert_eq!(rejected.header("retry-after"), Some("1"));
        let unknown = WsClient::with(bridge.address, "/ws", &[("Authorization", "Bearer unknown")]).await.err();
        assert_eq!(unknown, Some(503), "an unknown credential is no credential");
        // The rest is for callers with a credential, on every endpoint.
        let max: usize = max.parse().unwrap();
        let mut own = Vec::new();
        for number in anonymous..max {
            let path = ["/ws", "/api/websocket"][number % 2];
            own.push(WsClient::with(bridge.address, path, &all).await.unwrap());
        }
        for path in ["/ws", "/api/websocket"] {
            assert_eq!(upgrade_status(&bridge, path, &all).await, 503, "{path}");
        }
        let closing = SseClient::open(bridge.address, "/api/sse", &all).await.rest().await;
        assert_eq!(closing[0].json()["reason"], "too many connections");
        let metrics = http_client::request(bridge.address, "GET", "/metrics", &all).await.body;
        let rejected = |reason: &str| {
            let sample =
                format!(r#"bridge_streams_rejected_total{{transport="websocket",endpoint="/ws",reason="{reason}"}} "#);
            let value = metrics.lines().find_map(|line| line.strip_prefix(&sample));
            value.map(|value| value.parse::<u64>().unwrap())
        };
        assert_eq!((rejected("max_anonymous_streams"), rejected("max_streams")), (Some(3), Some(1)), "{metrics}");
        // A stream without a credential is rejected until fewer than its share are open.
        drop(own);
        drop(streams);
        poll_until_async(async || WsClient::try_connect(bridge.address, "/ws").await.ok()).await;
    }
}

/// Without configured credentials nothing is reserved.
#[tokio::test]
async fn open_bridge_serves_anonymous_clients_with_all_streams() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--max-connections", "8"]).await;
    assert_eq!(fill(&bridge).await.len(), 8);
}
