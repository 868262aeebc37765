//! Posts a second and their latency, with the latency of a stream beside it.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{body, create_pod, path, wait_for_instances};
use crate::support::{
    http_client::{TEST_TIMEOUT, WsClient, parse},
    sim_cluster::SimCluster,
    stream_latency::{WATCHED, stream_latency},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Tunnels that post at once, each with a connection of its own.
const TUNNELS: usize = 8;
/// Posts of each tunnel.
const POSTS: usize = 60;
/// Changes of a Pod whose latency on a stream is measured, with and without posts.
const CHANGES: usize = 20;

/// Posts on a kept-alive connection, and returns the latency of each.
async fn post_all(address: std::net::SocketAddr, uid: String) -> Vec<Duration> {
    let body = body().to_string();
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        path(&uid),
        body.len()
    );
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut latencies = Vec::new();
    for _ in 0..POSTS {
        let start = Instant::now();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(br#"{"ok":true}"#) {
            let read = timeout(TEST_TIMEOUT, socket.read_buf(&mut answer)).await.unwrap().unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        }
        assert_eq!(parse(&String::from_utf8(answer).unwrap()).status, 200);
        latencies.push(start.elapsed());
    }
    latencies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_under_load_leave_the_streams_alone() {
    let cluster = SimCluster::new().await;
    let uids: Vec<String> = (0..TUNNELS).map(|n| create_pod(&cluster, &format!("tunnel-{n}"), "alice")).collect();
    let bridge = cluster.bridge(&[]).await;
    cluster.create_pod(WATCHED);
    wait_for_instances(&bridge, TUNNELS + 1).await;
    let mut stream = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none&types=instance").await;
    let mut telemetry = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none&types=telemetry").await;
    let quiet = stream_latency(&cluster, &mut stream, CHANGES, Duration::from_millis(5)).await;
    let start = Instant::now();
    let posts: Vec<_> = uids.iter().map(|uid| tokio::spawn(post_all(bridge.address, uid.clone()))).collect();
    let busy = stream_latency(&cluster, &mut stream, CHANGES, Duration::from_millis(5)).await;
    let mut latencies = Vec::new();
    for posts in posts {
        latencies.extend(posts.await.unwrap());
    }
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    let count = TUNNELS * POSTS;
    for _ in 0..count {
        assert_eq!(telemetry.event().await["metrics"], json!(body()["metrics"]), "each accepted post is sent once");
    }
    println!(
        "{count} posts in {elapsed:?}: {:.0} a second, latency p50 {:?}, p99 {:?}; a change reaches a stream in {:?} \
         (max {:?}) without posts, {:?} (max {:?}) beside them",
        count as f64 / elapsed.as_secs_f64(),
        latencies[count / 2],
        latencies[count * 99 / 100],
        quiet[0],
        quiet[1],
        busy[0],
        busy[1],
    );
    assert!(busy[0] < quiet[0] * 10 + Duration::from_millis(250), "streams wait for posts: {quiet:?} {busy:?}");
}
