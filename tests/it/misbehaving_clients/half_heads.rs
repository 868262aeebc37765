//! Thousands of connections with half a request head from one address, while probes and other clients send requests.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use crate::support::{
    self,
    bridge_process::BridgeProcess,
    http_client::{self, TEST_TIMEOUT},
    sim_cluster::{NAMESPACE, SimCluster},
};

/// How long the flood lasts: longer than the 5 s after which a connection without a request head is closed.
const FLOOD: Duration = Duration::from_secs(7);
/// Time between two requests of a prober.
const PACE: Duration = Duration::from_millis(20);

/// Opens a connection and sends half a request head, again and again: it opens the next one when the bridge has closed the
/// last one.
async fn flood(address: SocketAddr) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await
            && stream.write_all(b"GET /ws HTTP/1.1\r\nHost: lo").await.is_ok()
        {
            // An end, a reset, or a 408.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        // The clients do not use all of the processor.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What the requests of one prober met.
#[derive(Debug, Default)]
struct Outcome {
    latencies: Vec<Duration>,
    failed: usize,
}

impl Outcome {
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Sends GETs from 127.0.0.`from`, each on a connection of its own, until `end`.
async fn probe(address: SocketAddr, from: u8, path: &'static str, end: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    while Instant::now() < end {
        let started = Instant::now();
        match timeout(TEST_TIMEOUT, get(address, from, path)).await {
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200 ") => outcome.latencies.push(started.elapsed()),
            _ => outcome.failed += 1,
        }
        tokio::time::sleep(PACE).await;
    }
    outcome
}

async fn get(address: SocketAddr, from: u8, path: &str) -> std::io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, from), 0).into())?;
    let mut stream = socket.connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Prints the latencies of probes and GETs under the flood. Every request of another address and every probe on the
/// listener for probes must be answered. A request from the address of the flood can be one of those that give way: on a
/// busy machine more than 1024 others connect between its connect and its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_gets_are_answered_under_a_flood_of_half_heads() {
    let count = if support::long_form() { 6000 } else { 2000 };
    support::ensure_file_limit(count as u64 + 1000);
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    // A low file limit: without bounds the flood would use up all files.
    let args = ["serve", "--port", "0", "--kubeconfig", &cluster.kubeconfig(), "--namespace", NAMESPACE];
    let args = [&args[..], &["--probe-listen", "127.0.0.1:0"]].concat();
    let bridge = BridgeProcess::run_with_file_limit(&args, 2048).await;
    bridge.wait_ready().await;
    let (address, probes) = (bridge.address, bridge.probe_address());
    let lowered = bridge.log().iter().any(|line| line.contains("the open file limit is too low for --max-connections"));
    assert!(lowered, "{:#?}", bridge.log());

    let clients: Vec<JoinHandle<()>> = (0..count).map(|_| tokio::spawn(flood(address))).collect();
    let end = Instant::now() + FLOOD;
    let (probe_listener, readyz, instances, same_address) = tokio::join!(
        probe(probes, 1, "/readyz", end),
        probe(address, 2, "/readyz", end),
        probe(address, 3, "/api/v1/instances", end),
        probe(address, 1, "/readyz", end)
    );
    let waiting = http_client::metric(address, r#"bridge_http_connections_rejected_total{reason="waiting"}"#).await;
    let limit = http_client::metric(address, r#"bridge_http_connections_rejected_total{reason="limit"}"#).await;
    let errors = http_client::metric(address, "bridge_http_accept_errors_total").await;
    for client in &clients {
        client.abort();
    }
    println!("{count} half heads; closed while waiting {waiting}, over the limit {limit}, accept errors {errors}");
    for (name, outcome) in [
        ("/readyz on --probe-listen", &probe_listener),
        ("/readyz", &readyz),
        ("/api/v1/instances", &instances),
        ("/readyz from the address of the flood", &same_address),
    ] {
        println!(
            "{name}: {} answered, {} failed, median {:?}, 99% {:?}, max {:?}",
            outcome.latencies.len(),
            outcome.failed,
            outcome.percentile(50),
            outcome.percentile(99),
            outcome.percentile(100)
        );
    }
    assert!(waiting > 0, "the flood exceeds the bound");
    assert_eq!((limit, errors), (0, 0), "connections over the limit, and accept errors");
    for outcome in [probe_listener, readyz, instances] {
        assert_eq!(outcome.failed, 0, "{outcome:?}");
        assert!(!outcome.latencies.is_empty());
    }
}

/// The listener for probes serves nothing else, and answers while the process drains.
#[tokio::test]
async fn listener_for_probes_serves_probes_until_the_process_ends() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--probe-listen", "127.0.0.1:0", "--drain", "10"]).await;
    let probes = bridge.probe_address();
    for path in ["/livez", "/readyz", "/readyz?verbose", "/api/v1/health"] {
        assert_eq!(http_client::get(probes, path).await.status, 200, "{path}");
    }
    for path in ["/", "/metrics", "/api/v1/instances", "/api/sse", "/ws"] {
        assert_eq!(http_client::get(probes, path).await.status, 404, "{path}");
    }
    for (request, status) in [
        ("GET /livez HTTP/1.0\r\n\r\n", 200),
        ("GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        ("GET /livez HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 403),
        ("CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n", 404),
    ] {
        assert_eq!(http_client::request_raw(probes, request).await.status, status, "{request:?}");
    }
    // An open stream, which the drain ends after up to 8 s, keeps the process.
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(bridge.listen("/ws").await);
    }
    bridge.signal("TERM").await;
    let draining = timeout(TEST_TIMEOUT, async {
        while http_client::get(probes, "/readyz").await.status != 503 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    draining.await.expect("/readyz is still 200");
    drop(streams);
    assert!(bridge.ended(TEST_TIMEOUT).await.success());
}
