//! Drain of the process (docs/protocol.md#stream-endpoints, "Drain"): every stream gets a close frame, the closes are
//! spread over the drain time, and the process exits in time.

use std::{
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, Lines},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::support::{
    bridge_process::{BridgeProcess, command},
    http_client::{self, TEST_TIMEOUT, WsClient},
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Tolerance for a busy machine. It is smaller than the differences between the durations that the tests compare.
const TOLERANCE: Duration = Duration::from_secs(3);
/// Drain time of the tests in which the process must not wait for it. It is longer than [`TEST_TIMEOUT`].
const LONG_DRAIN: &str = "60";
/// A stream whose client reads nothing for this time is closed (docs/protocol.md#stream-endpoints).
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens streams that receive no event here, and waits for their close frames. Each task returns the time of the close
/// frame.
async fn clients_until_close(bridge: &BridgeProcess, count: usize) -> Vec<JoinHandle<Instant>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = bridge.listen("/ws?types=tenant").await;
        clients.push(tokio::spawn(async move {
            let (_, close) = client.closed(TEST_TIMEOUT).await;
            assert_eq!(close, Some((1012, "draining".to_owned())));
            Instant::now()
        }));
    }
    clients
}

/// Waits until the bridge reports that it drains.
async fn wait_draining(address: SocketAddr) {
    let draining = timeout(TEST_TIMEOUT, async {
        while http_client::get(address, "/readyz").await.status == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    draining.await.expect("/readyz is still 200");
}

/// Returns a client that reads nothing and whose receive buffer is full.
async fn stalled_client(cluster: &SimCluster, bridge: &BridgeProcess) -> TcpStream {
    cluster.create_pod("pod");
    let mut reader = bridge.listen("/ws").await;
    let stalled = http_client::small_buffer_socket(bridge.address, &http_client::upgrade(bridge.address, "/ws")).await;
    stalled.readable().await.unwrap();
    // 200 messages of 1 KiB exceed the socket buffers, which hold at most 64 KiB (`misbehaving_clients` asserts it).
    let last = format!("{:0>1000}", 199);
    for step in 0..200 {
        cluster.pod_phase("pod", &format!("{step:0>1000}"));
        tokio::task::yield_now().await;
    }
    reader.until(|event| event["phase"] == last).await;
    stalled
}

/// Sends SIGTERM after the first line with this text, without a pause, and returns how the process ends.
async fn terminated_after_line(args: &[&str], text: &str) -> ExitStatus {
    let mut command = command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let ended =
        async { tokio::join!(terminate_after(stdout, text, pid), terminate_after(stderr, text, pid), child.wait()).2 };
    timeout(TEST_TIMEOUT, ended).await.expect("the process ends").unwrap()
}

/// Reads lines until they end. Sends SIGTERM after the one with this text.
async fn terminate_after(mut lines: Lines<BufReader<impl AsyncRead + Unpin>>, text: &str, pid: Pid) {
    while let Ok(Some(line)) = lines.next_line().await {
        if line.contains(text) {
            kill_process(pid, Signal::TERM).unwrap();
        }
    }
}

/// Who has read the address, or an answer of a probe, may send a signal.
#[tokio::test]
async fn signal_right_after_the_first_line_or_probe_drains() {
    let cluster = SimCluster::new().await;
    let kubeconfig = cluster.kubeconfig();
    let serve = ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE, "--drain", "1"];
    for _ in 0..5 {
        for args in [&["demo", "--port", "0"][..], &serve] {
            let status = terminated_after_line(args, "listening on ").await;
            assert_eq!(status.code(), Some(0), "{args:?}: {status}");
        }
        let with_probes = [&serve[..], &["--probe-listen", "127.0.0.1:0"]].concat();
        let mut bridge = BridgeProcess::run(&with_probes).await;
        http_client::get(bridge.probe_address(), "/livez").await;
        bridge.signal("TERM").await;
        let status = bridge.ended(TEST_TIMEOUT).await;
        assert_eq!(status.code(), Some(0), "{status}: {:#?}", bridge.log());
    }
}

#[tokio::test]
async fn drain_closes_fifty_sockets_over_time_and_answers_new_requests() {
    // The last fifth of the drain time is left for the streams that close last. On a busy machine it must be more than
    // 1 s.
    const DRAIN: Duration = Duration::from_secs(8);
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    let mut bridge = cluster.bridge(&["--drain", "8"]).await;
    let address = bridge.address;
    let clients = clients_until_close(&bridge, 50).await;
    let mut served = bridge.listen("/ws?snapshot=none").await;
    let started = Instant::now();
    bridge.signal("TERM").await;

    wait_draining(address).await;
    let probe = http_client::get(address, "/readyz").await;
    assert_eq!((probe.status, probe.body.as_str()), (503, "not ready: draining\n"));
    assert_eq!(http_client::get(address, "/livez").await.status, 200);
    let pods = http_client::get(address, "/api/v1/instances").await;
    assert!(pods.status == 200 && pods.body.contains(r#""name":"pod""#), "{pods:?}");
    let rejected = http_client::send_raw(address, http_client::upgrade(address, "/ws").as_bytes()).await;
    let rejected = http_client::parse(&String::from_utf8(rejected).unwrap());
    assert_eq!(
        (rejected.status, rejected.header("retry-after"), rejected.header("connection")),
        (503, Some("1"), Some("close"))
    );
    assert_eq!(rejected.json()["code"], "UPSTREAM_UNAVAILABLE");

    // A stream that is still open receives the changes of this time.
    cluster.pod_phase("pod", "Running");
    let (events, close) = served.closed(TEST_TIMEOUT).await;
    assert_eq!(close, Some((1012, "draining".to_owned())));
    assert!(events <= 1, "{events} events of one change");

    let received = join_all(clients).await.into_iter().map(|received| received.unwrap() - started);
    let mut received: Vec<Duration> = received.collect();
    received.sort();
    println!("close frames after {received:?}");
    // Each of the 50 closes falls into the first tenth of the drain time with a probability of 1/8. 25 of them do so in
    // one of 10^9 runs.
    assert!(received[24] > DRAIN / 10, "half of the streams closed within {:?}", received[24]);
    assert!(received[49] - received[0] > DRAIN / 4, "all streams closed within {:?}", received[49] - received[0]);
    let status = bridge.ended(TEST_TIMEOUT).await;
    assert_eq!(status.code(), Some(0));
    assert!(started.elapsed() < DRAIN + TOLERANCE, "the process exited after {:?}", started.elapsed());
}

/// Sends two signals to a bridge with a long drain time and ten open sockets.
async fn signal_twice(first: &str, second: &str) -> (ExitStatus, Vec<String>) {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", LONG_DRAIN]).await;
    let mut clients: Vec<WsClient> = Vec::new();
    for _ in 0..10 {
        clients.push(bridge.listen("/ws").await);
    }
    bridge.signal(first).await;
    wait_draining(bridge.address).await;
    bridge.signal(second).await;
    let status = bridge.ended(TEST_TIMEOUT).await;
    (status, bridge.log())
}

#[tokio::test]
async fn second_signal_stops_the_bridge_immediately() {
    let (status, log) = signal_twice("TERM", "TERM").await;
    assert_eq!((status.code(), status.signal()), (Some(1), None), "{log:#?}");
    let (status, log) = signal_twice("TERM", "INT").await;
    assert_eq!((status.code(), status.signal()), (Some(130), None), "{log:#?}");
}

#[tokio::test]
async fn interrupt_drains_like_terminate() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "5"]).await;
    let clients = clients_until_close(&bridge, 10).await;
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
    let clients = clients_until_close(&bridge, 10).await;
    let stalled_since = Instant::now();
    let mut stalled = stalled_client(&cluster, &bridge).await;
    let started = Instant::now();
    bridge.signal("TERM").await;
    for received in join_all(clients).await {
        received.unwrap();
    }
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
    let limit = Duration::from_secs(5) + TOLERANCE;
    assert!(started.elapsed() < limit, "the process exited after {:?}", started.elapsed());
    // On a slow machine the write timeout can close the stalled stream before the end of the drain. Then none is cut.
    if stalled_since.elapsed() < WRITE_TIMEOUT {
        let cut = || bridge.log().iter().any(|line| line.contains("cut=1")).then_some(());
        http_client::poll_until(cut).await;
    }
    // The client reads the bytes in the socket buffers and then an end or a reset. No close frame fits into the full
    // buffer.
    let end = timeout(TEST_TIMEOUT, stalled.read_to_end(&mut Vec::new())).await;
    let _ = end.expect("the connection is still open after the bridge has exited");
}

#[tokio::test]
async fn zero_drain_time_still_sends_close_frames() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", "0"]).await;
    let clients = clients_until_close(&bridge, 50).await;
    let started = Instant::now();
    bridge.signal("TERM").await;
    for received in join_all(clients).await {
        received.unwrap();
    }
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
    assert!(started.elapsed() < TOLERANCE, "the process exited after {:?}", started.elapsed());
}

#[tokio::test]
async fn drain_without_streams_ends_immediately() {
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&["--drain", LONG_DRAIN]).await;
    // An idle HTTP connection does not count as a stream.
    let idle = TcpStream::connect(bridge.address).await.unwrap();
    bridge.signal("TERM").await;
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
    drop(idle);
}
