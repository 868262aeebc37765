//! Many clients share one connection to the upstream.

use std::collections::BTreeMap;

use super::{expect, local_sse, relay};
use crate::support::{
    ensure_file_limit,
    http_client::{WsClient, metric},
    sse_upstream::SseUpstream,
};

const CLIENTS: usize = 500;
const EVENTS: usize = 40;

#[tokio::test]
async fn five_hundred_clients_share_one_upstream_connection() {
    ensure_file_limit(2 * CLIENTS as u64 + 200);
    let mut upstream = SseUpstream::new().await;
    let relay = relay(&upstream.url(), &[]).await;
    let mut connection = upstream.stream().await;
    let (mut sse, mut websocket) = (Vec::new(), Vec::new());
    for n in 0..CLIENTS {
        if n % 2 == 0 {
            sse.push(local_sse(relay.address, None).await);
        } else {
            websocket.push(WsClient::connect(relay.address, "/events/ws").await);
        }
    }
    // Single events and bursts.
    let events: BTreeMap<usize, String> = (1..=EVENTS).map(|n| (n, format!("event {n}"))).collect();
    for (n, data) in &events {
        connection.send(&format!("id: {n}\ndata: {data}\n\n")).await;
        if n % 4 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for client in &mut sse {
        for (n, data) in &events {
            expect(client, &[(&n.to_string(), data)]).await;
        }
    }
    for client in &mut websocket {
        for data in events.values() {
            assert_eq!(client.text().await, *data);
        }
    }
    assert_eq!(metric(relay.address, "bridge_relay_upstream_connections_total").await, 1);
    // A connection without an answer does not count there.
    assert_eq!(upstream.into_waiting(), 0, "there are further connections");
}
