//! Connections without a request: they are closed after 5 s. Until then they only count towards the connection limit.

use std::time::Duration;

use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{Fixture, HEALTHY};
use crate::support::{
    self,
    http_client::{self, TEST_TIMEOUT},
    proc_net_tcp,
};

/// Time for a request head (docs/guarantees.md#security-rules).
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of connections that open at once. Some kernels queue only 128 connections that are not accepted yet.
const BATCH: usize = 100;

#[tokio::test]
async fn idle_connections_are_closed_after_5_s_without_affecting_others() {
    let idle: usize = if support::long_form() { 8000 } else { 2000 };
    support::ensure_file_limit(idle as u64 + 1000);
    let mut fixture = Fixture::new(&[]).await;
    let address = fixture.bridge.address;
    let mut ends = Vec::new();
    for index in 0..idle {
        let started = Instant::now();
        let stream = TcpStream::connect(address).await.unwrap();
        ends.push(tokio::spawn(idle_until_closed(stream, index, started)));
        if index % 10 == 0 {
            fixture.change(1).await;
        }
    }
    let open = proc_net_tcp::queues_by_client_port(address).len();
    // This GET never waits. A GET of the state waits for the hub, and on a busy machine it can be 503.
    assert_eq!(http_client::get(address, "/api/v1/health").await.status, 200);
    let mut late = fixture.bridge.listen("/ws").await;
    late.text().await;
    for end in ends {
        let elapsed = timeout(HEADER_TIMEOUT + TEST_TIMEOUT, end).await.expect("an idle connection is open").unwrap();
        assert!(elapsed >= HEADER_TIMEOUT, "closed after {elapsed:?}");
        assert!(elapsed < HEADER_TIMEOUT + TEST_TIMEOUT, "closed after {elapsed:?}");
    }
    println!("{open} connections open at once");
    fixture.change(100).await;
    fixture.finish().await;
}

/// At the connection limit, open streams continue, new connections are closed, and later new connections are accepted
/// again.
#[tokio::test]
async fn idle_connections_at_the_limit_do_not_affect_open_streams() {
    let streams: usize = if support::long_form() { 3000 } else { 200 };
    // 1000 connections more than streams (`NON_STREAM_CONNECTIONS`).
    let limit = streams + 1000;
    support::ensure_file_limit(limit as u64 + 1000);
    let mut fixture = Fixture::new(&["--max-connections", &streams.to_string()]).await;
    let address = fixture.bridge.address;
    let started = Instant::now();
    // More connections than the limit. The bridge closes the excess ones without a response. The kernel queues each
    // batch until it is accepted; the response to the next request shows that it is.
    let mut idle = Vec::new();
    while idle.len() < limit {
        if idle.len() + HEALTHY < limit {
            assert_eq!(http_client::get(address, "/livez").await.status, 200);
        }
        for _ in 0..BATCH.min(limit - idle.len()) {
            let stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_nonblocking(true).unwrap();
            idle.push(TcpStream::from_std(stream).unwrap());
        }
    }
    let rejected = timeout(TEST_TIMEOUT, async {
        // Only a rejected connection ends here, because no client sends anything yet.
        let (mut rejected, mut byte) = (0, [0]);
        for stream in idle.iter_mut().rev().take(HEALTHY) {
            rejected += usize::from(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
        }
        rejected
    });
    let rejected = rejected.await.expect("a connection over the limit is open");
    fixture.change(50).await;
    for end in
        join_all(idle.into_iter().enumerate().map(|(index, stream)| idle_until_closed(stream, 2 * index, started)))
            .await
    {
        assert!(end < HEADER_TIMEOUT + TEST_TIMEOUT, "closed after {end:?}");
    }
    assert_eq!(rejected, HEALTHY, "rejected connections of the last {HEALTHY}");
    let response = http_client::get(address, "/api/v1/instances").await;
    assert_eq!(response.status, 200, "a GET after the idle connections are closed: {}", response.body);
    let rejected = http_client::metric(address, r#"bridge_http_connections_rejected_total{reason="limit"}"#).await;
    assert!(rejected >= HEALTHY as u64 && rejected < limit as u64, "{rejected} rejected connections");
    println!("{rejected} of {limit} connections were over the limit");
    fixture.finish().await;
}

/// Sends nothing, half a head, or a byte every 500 ms, by `index`, until the bridge closes the connection. Returns the
/// time since `started`.
async fn idle_until_closed(mut stream: TcpStream, index: usize, started: Instant) -> Duration {
    let mut response = Vec::new();
    if index % 2 == 1 {
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: lo").await.unwrap();
    }
    if index % 100 == 99 {
        // A slow attack: its rate is part of the test.
        while timeout(Duration::from_millis(500), stream.read_to_end(&mut response)).await.is_err() {
            let _ = stream.write_all(b"x").await;
        }
    } else {
        // The end may be a response, an end of the stream or a reset.
        let _ = stream.read_to_end(&mut response).await;
    }
    let response = String::from_utf8(response).unwrap();
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 408 "), "{response}");
    started.elapsed()
}
