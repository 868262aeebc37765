//! Many connections at once, each with watchers of its own: the API server is not asked for more than a few lists at a
//! time, and everybody is served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boilerhouse_bridge::source::{connect, dedicated};
use futures::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{Cluster, plane, watches, watches_become};
use crate::support::control_plane::ControlPlane;
use crate::support::http_client::{TEST_TIMEOUT, WsClient};
use crate::support::in_process::{Config, InProcessBridge, ListCounter};
use crate::support::{ensure_file_limit, long_form};

/// Files that the test process has open besides, other tests running.
const OTHER_FILES: u64 = 4000;
/// Connections at once.
const CONNECTIONS: usize = 60;
const LONG_FORM_CONNECTIONS: usize = 500;
/// How many may be sent away with 503 `NOT_READY` first: a few.
const SENT_AWAY: usize = 5;
/// Pods and claims that each lists.
const OBJECTS: usize = 20;

/// A connection, how long it took, and how often it had been told to come again.
async fn connect(address: SocketAddr) -> (WsClient, Duration, usize) {
    let start = Instant::now();
    for refused in 0.. {
        match WsClient::try_connect(address, "/ws").await {
            Ok(listener) => return (listener, start.elapsed(), refused),
            Err(status) => assert_eq!(status, 503, "neither served nor told to come again"),
        }
        assert!(start.elapsed() < 2 * TEST_TIMEOUT, "sent away {} times", refused + 1);
        // As `Retry-After` says.
        sleep(Duration::from_secs(1)).await;
    }
    unreachable!("the loop ends by returning")
}

/// What the API server's own priority and fairness has refused so far.
async fn rejected(plane: &ControlPlane) -> f64 {
    let metrics = plane.metrics().await;
    let lines = metrics.lines().filter(|line| line.starts_with("apiserver_flowcontrol_rejected_requests_total{"));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_lists_are_bounded_under_many_connections() {
    let connections = if long_form() { LONG_FORM_CONNECTIONS } else { CONNECTIONS };
    // A client's and the bridge's end of its connection, and two watches.
    ensure_file_limit(4 * connections as u64 + OTHER_FILES);
    let plane = plane().await;
    let cluster = Cluster::new(&plane).await;
    for n in 0..OBJECTS {
        cluster.create_pod(&format!("pod-{n}"), &json!({"boilerhouse.dev/managed": "true"})).await;
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
    let own = dedicated::Config { max_connections: connections, ..dedicated::Config::default() };
    let config = Config { dedicated: own, ..Config::default() };
    let bridge = InProcessBridge::start(&cluster.namespace, client.clone(), &lists.client(client), config).await;

    let mut served = join_all((0..connections).map(|_| tokio::spawn(connect(bridge.address)))).await;
    let times = served.iter().map(|one| one.as_ref().unwrap().1);
    let (slowest, refused) = (times.max().unwrap(), served.iter().map(|one| one.as_ref().unwrap().2).sum::<usize>());
    println!(
        "{connections} served, the last after {slowest:?}; {refused} times 503; at most {} lists at a time",
        lists.max_concurrent()
    );
    assert_eq!(lists.max_concurrent(), dedicated::Config::default().max_concurrent_lists as u64, "lists at a time");
    assert!(lists.total() >= 2 * connections as u64, "each has listed both resources: {}", lists.total());
    assert!(refused <= SENT_AWAY, "{refused} times 503");
    watches_become(&plane, before.0 + 2 + 2 * connections as u64, TEST_TIMEOUT).await;

    cluster.create_pod("late", &json!({"boilerhouse.dev/managed": "true"})).await;
    for one in &mut served {
        let received = one.as_mut().unwrap().0.until(|event| event["name"] == "late").await;
        assert_eq!(received.len(), OBJECTS + 1);
    }
    assert!((rejected(&plane).await - before.1).abs() < 0.5, "the API server has refused some");
    drop(served);
    watches_become(&plane, before.0 + 2, TEST_TIMEOUT).await;
}
