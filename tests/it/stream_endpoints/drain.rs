//! The end of full streams (docs/protocol.md#stream-endpoints, "Drain"): on both transports a stream ends with a reason
//! and a retry delay, and the ends are spread over the drain time.

use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use tokio::time::Instant;

use super::{Client, ENDPOINTS, Transport};
use crate::support::{
    http_client::{self, TEST_TIMEOUT},
    sim_cluster::SimCluster,
};

/// Waits for `stream.closing`. Returns its time and its retry delay in milliseconds.
async fn wait_for_closing(mut client: Client, named: bool) -> (Instant, u64) {
    let closing: Value = match &mut client {
        Client::WebSocket(client) => {
            let closing = client.until(|event| event["type"] == "stream.closing").await.pop().unwrap();
            let (after, close) = client.closed(TEST_TIMEOUT).await;
            assert_eq!((after, close), (0, Some((1012, "draining".to_owned()))));
            serde_json::from_str(&closing).unwrap()
        }
        Client::Sse(events) => {
            let mut blocks = events.rest().await;
            let closing = blocks.pop().unwrap();
            assert_eq!(closing.event.as_deref(), named.then_some("stream.closing"));
            assert!(events.has_last_chunk, "an orderly end has the last chunk");
            let retry = closing.retry;
            let closing = closing.json();
            assert_eq!(retry, closing["retryAfterMs"].as_u64());
            closing
        }
    };
    assert_eq!((&closing["type"], &closing["reason"]), (&"stream.closing".into(), &"draining".into()));
    (Instant::now(), closing["retryAfterMs"].as_u64().unwrap())
}

#[tokio::test]
async fn drain_sends_the_reason_to_all_streams_over_the_drain_time() {
    const DRAIN: Duration = Duration::from_secs(6);
    const EACH: usize = 12;
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "6"]).await;
    let mut clients = Vec::new();
    for (path, transport, ..) in ENDPOINTS {
        for _ in 0..EACH {
            let mut client = Client::open(&bridge, transport, path).await;
            client.event().await;
            clients.push((transport, tokio::spawn(wait_for_closing(client, transport == Transport::NamedSse))));
        }
    }
    let started = Instant::now();
    bridge.signal("TERM").await;
    let (transports, tasks): (Vec<_>, Vec<_>) = clients.into_iter().unzip();
    let all: Vec<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    for websocket in [true, false] {
        let of =
            transports.iter().zip(&all).filter(|(transport, _)| (**transport == Transport::WebSocket) == websocket);
        let (mut times, mut waits): (Vec<_>, Vec<_>) = of.map(|(_, (at, wait))| (*at - started, *wait)).unzip();
        times.sort();
        waits.sort_unstable();
        println!("websocket {websocket}: closed after {times:?}, retry delays {waits:?}");
        // At least 24 streams: all of them close within one half of the time with a probability of 1/10^7.
        let spread = times[times.len() - 1] - times[0];
        assert!(spread > DRAIN / 4, "all streams closed within {spread:?}");
        assert!(waits[0] >= 1000 && waits[waits.len() - 1] <= 3000 && waits[waits.len() - 1] - waits[0] > 500);
    }
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
}

/// The bridge ends the stream of a client that disconnects, and counts it with the reason `disconnected`.
#[tokio::test]
async fn closed_streams_are_counted_by_reason() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let closed = async |transport| {
        let labels = [transport, r#"reason="disconnected""#];
        http_client::metric_sum(bridge.address, "bridge_streams_closed_total", &labels).await
    };
    for (path, transport, ..) in ENDPOINTS {
        let mut client = Client::open(&bridge, transport, path).await;
        client.event().await;
    }
    let counted = tokio::time::timeout(TEST_TIMEOUT, async {
        while closed(r#"transport="sse""#).await < 4 || closed(r#"transport="websocket""#).await < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    counted.await.expect("a stream of a disconnected client is still open");
}
