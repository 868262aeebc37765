//! Clients that ask for much and read nothing: the memory of the bridge is bounded, and other clients are served.

use std::{net::Ipv4Addr, time::Duration};

use boilerhouse_bridge::sim::ApiResource;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::support::{
    bridge_process::BridgeProcess,
    full_stream_client::FullStreamClient,
    http_client::{self, TEST_TIMEOUT},
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Clients that do not read.
const CLIENTS: usize = 400;
/// Claims, and bytes of each: the state has 3 MB.
const CLAIMS: usize = 200;
const DETAIL_BYTES: usize = 15 << 10;
/// Maximum growth of the process: unread responses use at most 48 MiB, a caller a quarter (docs/limits.md#bounds).
const MAX_GROWTH_GETS: u64 = 64 << 20;
/// Maximum growth by stalled streams: the projection caches use at most 32 MiB, and each stream holds one part.
const MAX_GROWTH_STREAMS: u64 = 100 << 20;
/// Maximum growth that remains after the clients have left.
const MAX_REMAINING: u64 = 64 << 20;

async fn large_claims(cluster: &SimCluster) {
    for n in 0..CLAIMS {
        // `ClaimBuilder` has no `detail`.
        let claim = json!({"metadata": {"name": format!("claim-{n:03}"), "namespace": NAMESPACE},
                           "spec": {"tenantId": format!("tenant-{n:03}"), "workloadRef": "web"},
                           "status": {"phase": "Pending", "detail": "x".repeat(DETAIL_BYTES)}});
        cluster.sim().store(|store| store.create(ApiResource::Claims, claim)).unwrap();
    }
}

/// Sends a GET whose response is not read.
async fn unread_get(bridge: &BridgeProcess, path: &str) -> TcpStream {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    http_client::small_buffer_socket(bridge.address, &request).await
}

#[tokio::test]
async fn unread_snapshot_responses_are_bounded_and_other_callers_are_served() {
    let cluster = SimCluster::new().await;
    large_claims(&cluster).await;
    let bridge = cluster.bridge(&[]).await;
    assert_eq!(http_client::get(bridge.address, "/api/v1/tenants").await.status, 200);
    let before = bridge.memory();
    // The same state for all.
    let mut unread = Vec::new();
    for _ in 0..CLIENTS {
        unread.push(unread_get(&bridge, "/api/v1/tenants").await);
    }
    http_client::wait_for_metric(bridge.address, "bridge_http_response_bytes", |value| value > 0).await;
    let one_body = http_client::metric(bridge.address, "bridge_http_response_bytes").await;
    assert!(one_body < 4 << 20, "{one_body} bytes: equal responses share one body");
    // Another state for each.
    for n in 0..20 {
        cluster.create_pod(&format!("pod-{n}"));
        unread.push(unread_get(&bridge, "/api/v1/tenants").await);
        unread.push(unread_get(&bridge, "/api/v1/instances").await);
        let different = format!("/api/v1/tenants?params=%7B%22instances%22%3A%7B%22name%22%3A%22x-{n}%22%7D%7D");
        unread.push(unread_get(&bridge, &different).await);
    }
    http_client::wait_for_metric(bridge.address, "bridge_http_response_budget_rejections_total", |value| value > 0)
        .await;
    let bytes = http_client::metric(bridge.address, "bridge_http_response_bytes").await;
    assert!(bytes <= 12 << 20, "{bytes} bytes of one caller are not read: more than a quarter of 48 MiB");
    let growth = bridge.memory().saturating_sub(before);
    assert!(growth <= MAX_GROWTH_GETS, "the process grew by {} MiB", growth >> 20);

    // Another caller, at another address.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
    let mut stream = socket.connect(bridge.address).await.unwrap();
    let start = Instant::now();
    stream.write_all(b"GET /api/v1/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = String::new();
    timeout(TEST_TIMEOUT, stream.read_to_string(&mut response)).await.expect("no response").unwrap();
    assert_eq!(http_client::parse(&response).status, 200, "{response}");
    assert!(start.elapsed() < Duration::from_secs(1), "another caller waited {:?}", start.elapsed());
    assert_eq!(http_client::get(bridge.address, "/readyz").await.status, 200);
    drop(unread);
    http_client::wait_for_metric(bridge.address, "bridge_http_response_bytes", |value| value == 0).await;
    println!("{CLIENTS} unread responses: {} MiB more", growth >> 20);
}

#[tokio::test]
async fn stalled_streams_with_different_filters_are_bounded_and_delay_no_event() {
    let cluster = SimCluster::new().await;
    large_claims(&cluster).await;
    let bridge = cluster.bridge(&[]).await;
    let mut reader = FullStreamClient::connect(bridge.address, true, "snapshot=none&types=instance.state", None)
        .await
        .expect("the stream does not start");
    let heartbeat = timeout(TEST_TIMEOUT, reader.next()).await.unwrap().unwrap();
    assert_eq!(heartbeat["type"], "heartbeat");
    let before = bridge.memory();
    let mut stalled = Vec::new();
    let mut longest = Duration::ZERO;
    for n in 0..CLIENTS {
        // Each filter is another one, and all of them match every claim.
        let path = format!("/api/sse?params=%7B%22instances%22%3A%7B%22name%22%3A%22none-{n}%22%7D%7D");
        stalled.push(unread_get(&bridge, &path).await);
        if n % 20 == 0 {
            let (name, start) = (format!("pod-{n}"), Instant::now());
            cluster.create_pod(&name);
            loop {
                let event =
                    timeout(TEST_TIMEOUT, reader.next()).await.expect("no event").expect("the stream has ended");
                if event["instance"]["name"] == name.as_str() {
                    break;
                }
            }
            longest = longest.max(start.elapsed());
        }
    }
    http_client::wait_for_metric(bridge.address, "bridge_feed_initial_states_encoded_total", |value| {
        value >= CLIENTS as u64
    })
    .await;
    let growth = bridge.memory().saturating_sub(before);
    println!("{CLIENTS} stalled streams: {} MiB more, longest delay of an event {longest:?}", growth >> 20);
    assert!(growth <= MAX_GROWTH_STREAMS, "the process grew by {} MiB", growth >> 20);
    assert!(longest < Duration::from_secs(2), "an event was {longest:?} late");
    drop(stalled);
    let start = Instant::now();
    while bridge.memory().saturating_sub(before) > MAX_REMAINING {
        assert!(start.elapsed() < TEST_TIMEOUT, "{} MiB are held", bridge.memory().saturating_sub(before) >> 20);
        sleep(Duration::from_millis(20)).await;
    }
}
