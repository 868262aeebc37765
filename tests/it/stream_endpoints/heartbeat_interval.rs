//! `--heartbeat`: the interval of heartbeats and pings.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{http_client::WsClient, sim_cluster::SimCluster, sse_client::SseClient};

/// The shortest interval that the flag accepts.
const INTERVAL: Duration = Duration::from_secs(5);
/// The interval without the flag.
const DEFAULT: Duration = Duration::from_secs(15);

/// Asserts that the interval is the one of the flag. A busy machine may delay it, but not to the default.
fn check_interval(start: Instant, what: &str) {
    let elapsed = start.elapsed();
    assert!((INTERVAL..DEFAULT).contains(&elapsed), "{what} after {elapsed:?}, expected {INTERVAL:?}");
}

#[tokio::test]
async fn heartbeat_flag_sets_the_interval_of_heartbeats_and_pings() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--heartbeat", "5"]).await;
    let address = bridge.address;
    let sse = async {
        let start = Instant::now();
        let mut events = SseClient::open(address, "/api/events/stream", &[]).await;
        for _ in 0..2 {
            assert_eq!(events.event().await.json()["type"], "heartbeat");
        }
        check_interval(start, "heartbeat on SSE");
    };
    let websocket = async {
        let start = Instant::now();
        let mut client = WsClient::connect(address, "/events/ws").await;
        for _ in 0..2 {
            assert_eq!(client.json().await["type"], "heartbeat");
        }
        check_interval(start, "heartbeat on WebSocket");
    };
    let boilerhouse = async {
        let start = Instant::now();
        WsClient::connect(address, "/ws").await.ping().await;
        check_interval(start, "ping on /ws");
    };
    tokio::join!(sse, websocket, boilerhouse);
}
