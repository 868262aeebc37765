//! Connections without a request: they are closed after 5 s, or when they must give way.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
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
/// Number of addresses from which the clients connect.
const ADDRESSES: usize = 8;

#[tokio::test]
async fn idle_connections_are_closed_after_5_s_without_affecting_others() {
    // Fewer than the 4096 that may wait at once.
    let idle: usize = if support::long_form() { 4000 } else { 2000 };
    support::ensure_file_limit(idle as u64 + 1000);
    let mut fixture = Fixture::new(&[]).await;
    let address = fixture.bridge.address;
    let mut ends = Vec::new();
    for index in 0..idle {
        let started = Instant::now();
        let stream = connect(address, index).await;
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

/// At the connection limit idle connections give way, the oldest first: open streams continue, and every request is
/// answered.
#[tokio::test]
async fn idle_connections_give_way_at_the_limit() {
    let streams: usize = if support::long_form() { 3000 } else { 200 };
    // 1000 connections more than streams (`NON_STREAM_CONNECTIONS`).
    let limit = streams + 1000;
    support::ensure_file_limit(limit as u64 + 1000);
    let mut fixture = Fixture::new(&["--max-connections", &streams.to_string()]).await;
    let address = fixture.bridge.address;
    let started = Instant::now();
    // More connections than the limit. The kernel queues each batch until it is accepted; the response to the next request
    // shows that it is.
    let mut idle = Vec::new();
    while idle.len() < limit {
        assert_eq!(http_client::get(address, "/livez").await.status, 200, "with {} idle connections", idle.len());
        for _ in 0..BATCH.min(limit - idle.len()) {
            idle.push(connect(address, idle.len()).await);
        }
    }
    let oldest = timeout(TEST_TIMEOUT, async {
        let mut byte = [0];
        for stream in &mut idle[..HEALTHY] {
            assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)), "a byte without a request");
        }
    });
    oldest.await.expect("one of the oldest connections is open");
    assert!(started.elapsed() < HEADER_TIMEOUT, "they must end before their time for a request head");
    let response = http_client::get(address, "/api/v1/instances").await;
    assert_eq!(response.status, 200, "a GET at the limit: {}", response.body);
    fixture.change(50).await;
    for end in
        join_all(idle.into_iter().enumerate().map(|(index, stream)| idle_until_closed(stream, 2 * index, started)))
            .await
    {
        assert!(end < HEADER_TIMEOUT + TEST_TIMEOUT, "closed after {end:?}");
    }
    let rejected = async |reason: &str| {
        let name = format!("bridge_http_connections_rejected_total{{reason=\"{reason}\"}}");
        http_client::metric(address, &name).await
    };
    let (waiting, over_limit) = (rejected("waiting").await, rejected("limit").await);
    assert!(waiting >= HEALTHY as u64 && over_limit == 0, "{waiting} gave way, {over_limit} were rejected");
    println!("{waiting} of {limit} idle connections gave way");
    fixture.finish().await;
}

/// Opens a connection from one of [`ADDRESSES`] addresses of this machine, so that the bound for one address does not
/// apply.
async fn connect(address: SocketAddr, index: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let last = 2 + u8::try_from(index % ADDRESSES).unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
    socket.connect(address).await.unwrap()
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
