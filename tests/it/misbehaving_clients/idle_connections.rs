//! Connections that are opened and not used: they end after 5 s, and until then cost nobody anything but their place.

use std::time::Duration;

use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{Fixture, GOOD};
use crate::support::{
    self,
    http_client::{self, TEST_TIMEOUT},
    proc_net_tcp,
};

/// docs/guarantees.md#security-rules.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at once: of those that nobody has accepted yet, some kernels keep 128 only.
const BATCH: usize = 100;

#[tokio::test]
async fn idle_connections_are_closed_after_5_s_without_affecting_others() {
    let idle: usize = if support::long_form() { 8000 } else { 2000 };
    support::ensure_file_limit(idle as u64 + 1000);
    let mut fixture = Fixture::new(&[]).await;
    let address = fixture.bridge.address;
    let mut ends = Vec::new();
    for index in 0..idle {
        let begun = Instant::now();
        let stream = TcpStream::connect(address).await.unwrap();
        ends.push(tokio::spawn(idles(stream, index, begun)));
        if index % 10 == 0 {
            fixture.change(1).await;
        }
    }
    let all_there = proc_net_tcp::queues_by_client_port(address).len();
    // Answered at once, always: a GET of the state waits for the bridge's own watch, and on a starved machine that is 503.
    assert_eq!(http_client::get(address, "/api/v1/health").await.status, 200);
    let mut late = fixture.bridge.listen("/ws").await;
    late.text().await;
    for end in ends {
        let took = timeout(HEADER_TIMEOUT + TEST_TIMEOUT, end).await.expect("it is kept").unwrap();
        assert!(took >= HEADER_TIMEOUT, "ended after {took:?}");
        assert!(took < HEADER_TIMEOUT + TEST_TIMEOUT, "ended after {took:?}");
    }
    println!("{all_there} connections at once");
    fixture.change(100).await;
    fixture.end().await;
}

/// As many as there may be at all: whoever is inside goes on, whoever comes is sent away, and room comes back.
#[tokio::test]
async fn idle_connections_at_the_limit_do_not_affect_open_streams() {
    let streams: usize = if support::long_form() { 3000 } else { 200 };
    // Those for streams, and 1000 for everything else.
    let limit = streams + 1000;
    support::ensure_file_limit(limit as u64 + 1000);
    let mut fixture = Fixture::new(&["--max-connections", &streams.to_string()]).await;
    let address = fixture.bridge.address;
    let begun = Instant::now();
    // The rest of the limit, and some more: what is over is ended without a word. Sent in batches that the kernel keeps until
    // they are accepted; an answer to who comes next says that they are.
    let mut idle = Vec::new();
    while idle.len() < limit {
        if idle.len() + GOOD < limit {
            assert_eq!(http_client::get(address, "/livez").await.status, 200);
        }
        for _ in 0..BATCH.min(limit - idle.len()) {
            let stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_nonblocking(true).unwrap();
            idle.push(TcpStream::from_std(stream).unwrap());
        }
    }
    let refused = timeout(TEST_TIMEOUT, async {
        // Those that may stay say nothing; whoever is sent away is read to the end.
        let (mut refused, mut byte) = (0, [0]);
        for stream in idle.iter_mut().rev().take(GOOD) {
            refused += usize::from(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)));
        }
        refused
    });
    let refused = refused.await.expect("they are kept");
    fixture.change(50).await;
    for end in join_all(idle.into_iter().enumerate().map(|(index, stream)| idles(stream, 2 * index, begun))).await {
        assert!(end < HEADER_TIMEOUT + TEST_TIMEOUT, "ended after {end:?}");
    }
    assert_eq!(refused, GOOD, "of the last that came");
    let answer = http_client::get(address, "/api/v1/instances").await;
    assert_eq!(answer.status, 200, "there is room again: {}", answer.body);
    let refused = http_client::metric(address, r#"bridge_http_connections_rejected_total{reason="limit"}"#).await;
    assert!(refused >= GOOD as u64 && refused < limit as u64, "{refused}");
    println!("{refused} of {limit} were over the limit");
    fixture.end().await;
}

/// Some say nothing, some half a head, some a byte now and then; how long they are let.
async fn idles(mut stream: TcpStream, index: usize, begun: Instant) -> Duration {
    let mut answer = Vec::new();
    if index % 2 == 1 {
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: lo").await.unwrap();
    }
    if index % 100 == 99 {
        // The generator of a slow attack: its rate is part of what is tried here.
        while timeout(Duration::from_millis(500), stream.read_to_end(&mut answer)).await.is_err() {
            let _ = stream.write_all(b"x").await;
        }
    } else {
        // An answer, a mere end and a reset are all one to it.
        let _ = stream.read_to_end(&mut answer).await;
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    begun.elapsed()
}
