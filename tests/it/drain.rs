//! How a bridge leaves (docs/protocol.md#stream-endpoints, "Drain"): everybody is told, not all at once, and it is over in time.

use std::{net::SocketAddr, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use futures::future::join_all;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, TEST_TIMEOUT, WsClient},
    sim_cluster::SimCluster,
};

/// How much later than allowed something may be seen on a busy machine: far less than the times it tells apart.
const LATE: Duration = Duration::from_secs(3);
/// Who reads nothing for so long is ended (docs/protocol.md#stream-endpoints).
const WRITE_STALL: Duration = Duration::from_secs(10);

/// Clients that wait for the end, and are told of nothing else here; each gives the moment at which it was told.
async fn wait_for_the_end(bridge: &BridgeProcess, count: usize) -> Vec<JoinHandle<Instant>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut listener = bridge.listen("/ws?types=tenant").await;
        clients.push(tokio::spawn(async move {
            let (_, close) = listener.closed(TEST_TIMEOUT).await;
            assert_eq!(close, Some((1012, "draining".to_owned())));
            Instant::now()
        }));
    }
    clients
}

/// Waits until the bridge knows that it shall end.
async fn draining(address: SocketAddr) {
    let draining = timeout(TEST_TIMEOUT, async {
        while http_client::get(address, "/readyz").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    draining.await.expect("still ready");
}

/// A client whose kernel is full of what it does not read.
async fn stalled(cluster: &SimCluster, bridge: &BridgeProcess) -> TcpStream {
    cluster.create_pod("pod");
    let mut witness = bridge.listen("/ws").await;
    let stalled = http_client::small_buffer_socket(bridge.address, &http_client::upgrade(bridge.address, "/ws")).await;
    stalled.readable().await.unwrap();
    // 200 messages of 1 KiB are more than the two kernels hold: 64 KiB at most, which `hostile` asserts.
    let last = format!("{:0>1000}", 199);
    for step in 0..200 {
        cluster.pod_phase("pod", &format!("{step:0>1000}"));
        tokio::task::yield_now().await;
    }
    witness.until(|event| event["phase"] == last).await;
    stalled
}

#[tokio::test]
async fn drain_closes_fifty_sockets_over_time_and_answers_new_requests() {
    // The last fifth is what a bridge leaves for those who were told last: on a busy machine that must be seconds.
    const DRAIN: Duration = Duration::from_secs(8);
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    let mut bridge = cluster.bridge(&["--drain", "8"]).await;
    let address = bridge.address;
    let clients = wait_for_the_end(&bridge, 50).await;
    let mut served = bridge.listen("/ws?snapshot=none").await;
    let started = Instant::now();
    bridge.signal("TERM").await;

    draining(address).await;
    let probe = http_client::get(address, "/readyz").await;
    assert_eq!((probe.status, probe.body.as_str()), (503, "not ready: draining\n"));
    assert_eq!(http_client::get(address, "/livez").await.status, 200);
    let pods = http_client::get(address, "/api/v1/instances").await;
    assert!(pods.status == 200 && pods.body.contains(r#""name":"pod""#), "{pods:?}");
    let refused = http_client::send_raw(address, http_client::upgrade(address, "/ws").as_bytes()).await;
    let refused = http_client::parse(&String::from_utf8(refused).unwrap());
    assert_eq!(
        (refused.status, refused.header("retry-after"), refused.header("connection")),
        (503, Some("1"), Some("close"))
    );
    assert_eq!(refused.json()["code"], "UPSTREAM_UNAVAILABLE");

    // What happens meanwhile is told to those who are still there.
    cluster.pod_phase("pod", "Running");
    let (events, close) = served.closed(TEST_TIMEOUT).await;
    assert_eq!(close, Some((1012, "draining".to_owned())));
    assert!(events <= 1, "{events} events");

    let received = join_all(clients).await.into_iter().map(|received| received.unwrap() - started);
    let mut received: Vec<Duration> = received.collect();
    received.sort();
    println!("told after {received:?}");
    // Each of the 50 falls into the first tenth with a chance of one in eight: 25 of them in one of 10^9 runs.
    assert!(received[24] > DRAIN / 10, "half of them were told by {:?}", received[24]);
    assert!(received[49] - received[0] > DRAIN / 4, "all within {:?}", received[49] - received[0]);
    let status = bridge.ended(TEST_TIMEOUT).await;
    assert_eq!(status.code(), Some(0));
    assert!(started.elapsed() < DRAIN + LATE, "it took {:?}", started.elapsed());
}

/// Ends a bridge that drains for a minute and has open sockets.
async fn signalled_twice(first: &str, second: &str) -> (ExitStatus, Vec<String>) {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "60"]).await;
    let mut listeners: Vec<WsClient> = Vec::new();
    for _ in 0..10 {
        listeners.push(bridge.listen("/ws").await);
    }
    bridge.signal(first).await;
    draining(bridge.address).await;
    let started = Instant::now();
    bridge.signal(second).await;
    let status = bridge.ended(TEST_TIMEOUT).await;
    assert!(started.elapsed() < LATE, "it took {:?}", started.elapsed());
    (status, bridge.log())
}

#[tokio::test]
async fn second_signal_stops_the_bridge_immediately() {
    let (status, log) = signalled_twice("TERM", "TERM").await;
    assert_eq!((status.code(), status.signal()), (Some(1), None), "{log:#?}");
    let (status, log) = signalled_twice("TERM", "INT").await;
    assert_eq!((status.code(), status.signal()), (Some(130), None), "{log:#?}");
}

#[tokio::test]
async fn interrupt_drains_like_terminate() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "5"]).await;
    let clients = wait_for_the_end(&bridge, 10).await;
    bridge.signal("INT").await;
    for received in join_all(clients).await {
        received.unwrap();
    }
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(130));
}

#[tokio::test]
async fn stalled_client_does_not_delay_the_drain() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "5"]).await;
    let clients = wait_for_the_end(&bridge, 10).await;
    let stalls = Instant::now();
    let mut stalled = stalled(&cluster, &bridge).await;
    let started = Instant::now();
    bridge.signal("TERM").await;
    for received in join_all(clients).await {
        received.unwrap();
    }
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(5) + LATE, "it took {:?}", started.elapsed());
    // On a machine so slow that it had stood still for long enough to be ended for that, there was nobody to be cut.
    if stalls.elapsed() < WRITE_STALL {
        let cut = || bridge.log().iter().any(|line| line.contains("cut=1")).then_some(());
        http_client::poll_until(cut).await;
    }
    // It may find the end of what the kernel had, or a reset; there is no room for a last word.
    let _ =
        timeout(TEST_TIMEOUT, stalled.read_to_end(&mut Vec::new())).await.expect("its connection outlives the bridge");
}

#[tokio::test]
async fn zero_drain_time_still_sends_close_frames() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "0"]).await;
    let clients = wait_for_the_end(&bridge, 50).await;
    let started = Instant::now();
    bridge.signal("TERM").await;
    for received in join_all(clients).await {
        received.unwrap();
    }
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
    assert!(started.elapsed() < LATE, "it took {:?}", started.elapsed());
}

#[tokio::test]
async fn drain_without_streams_ends_immediately() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "60"]).await;
    // Connections kept alive for a next request are nobody.
    let idle = TcpStream::connect(bridge.address).await.unwrap();
    let started = Instant::now();
    bridge.signal("TERM").await;
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
    assert!(started.elapsed() < LATE, "it took {:?}", started.elapsed());
    drop(idle);
}
