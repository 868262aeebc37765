//! Many connections with dedicated watchers that open at once: the bridge bounds the number of concurrent lists, and
//! serves every connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boilerhouse_bridge::http::rate_limit;
use boilerhouse_bridge::source::{connect, dedicated};
use boilerhouse_bridge::test_support::PodBuilder;
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::{Cluster, plane, wait_for_watches, watches};
use crate::support::control_plane::ControlPlane;
use crate::support::http_client::{TEST_TIMEOUT, WsClient};
use crate::support::in_process::{Config, InProcessBridge, ListCounter};
use crate::support::{ensure_file_limit, long_form};

/// Files that other tests have open in this process meanwhile.
const OTHER_FILES: u64 = 4000;
/// Number of connections that open at once.
const CONNECTIONS: usize = 60;
const LONG_FORM_CONNECTIONS: usize = 500;
/// Maximum number of 503 `NOT_READY` responses, for all connections together.
const MAX_REJECTIONS: usize = 5;
/// Number of Pods, and of claims, in a list.
const OBJECTS: usize = 20;

/// Connects, and returns the client, how long it took, and the number of 503 responses before.
async fn connect(address: SocketAddr) -> (WsClient, Duration, usize) {
    let start = Instant::now();
    for rejections in 0.. {
        match WsClient::try_connect(address, "/ws").await {
            Ok(client) => return (client, start.elapsed(), rejections),
            Err(status) => assert_eq!(status, 503, "status of a rejected connection"),
        }
        assert!(start.elapsed() < 2 * TEST_TIMEOUT, "rejected {} times", rejections + 1);
        // `Retry-After: 1` of the response.
        sleep(Duration::from_secs(1)).await;
    }
    unreachable!("the loop ends by a return")
}

/// Returns how many requests the API server's priority and fairness has rejected.
async fn rejected(plane: &ControlPlane) -> f64 {
    let metrics = plane.metrics().await;
    let lines = metrics.lines().filter(|line| line.starts_with("apiserver_flowcontrol_rejected_requests_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_lists_are_bounded_under_many_connections() {
    let connections = if long_form() { LONG_FORM_CONNECTIONS } else { CONNECTIONS };
    // Each connection uses a socket of the client, a socket of the bridge, and two watches.
    ensure_file_limit(4 * connections as u64 + OTHER_FILES);
    let plane = plane().await;
    let cluster = Cluster::new(&plane).await;
    for n in 0..OBJECTS {
        cluster.create_pod(PodBuilder::new(&format!("pod-{n}"))).await;
        cluster.create_claim(&format!("claim-{n}"), "alice").await;
    }
    let before = (watches(&plane).await, rejected(&plane).await);
    let config = connect::Config {
        kubeconfig: Some(plane.kubeconfig()),
        namespace: cluster.namespace.clone(),
        ..connect::Config::default()
    };
    let client = connect::connect(&config).await.unwrap().client;
    let lists = Arc::new(ListCounter::default());
    let limits = dedicated::Config { max_connections: connections, ..dedicated::Config::default() };
    let budgets = rate_limit::Config::default().with_dedicated_watchers(connections);
    let config = Config { dedicated: limits, limits: budgets, ..Config::default() };
    let bridge = InProcessBridge::start(&cluster.namespace, client.clone(), &lists.client(client), config).await;

    let mut served = join_all((0..connections).map(|_| tokio::spawn(connect(bridge.address)))).await;
    let times = served.iter().map(|result| result.as_ref().unwrap().1);
    let slowest = times.max().unwrap();
    let rejections = served.iter().map(|result| result.as_ref().unwrap().2).sum::<usize>();
    println!(
        "{connections} connections served, the last after {slowest:?}; {rejections} responses 503; at most {} concurrent lists",
        lists.max_concurrent()
    );
    assert_eq!(lists.max_concurrent(), dedicated::Config::default().max_concurrent_lists as u64, "concurrent lists");
    assert!(lists.total() >= 2 * connections as u64, "each connection lists both resources: {} lists", lists.total());
    assert!(rejections <= MAX_REJECTIONS, "{rejections} responses 503, at most {MAX_REJECTIONS} expected");
    wait_for_watches(&plane, before.0 + 2 + 2 * connections as u64, TEST_TIMEOUT).await;

    cluster.create_pod(PodBuilder::new("late")).await;
    for result in &mut served {
        let received = result.as_mut().unwrap().0.until(|event| event["name"] == "late").await;
        assert_eq!(received.len(), OBJECTS + 1);
    }
    assert!((rejected(&plane).await - before.1).abs() < 0.5, "the API server has rejected requests");
    drop(served);
    wait_for_watches(&plane, before.0 + 2, TEST_TIMEOUT).await;
}
