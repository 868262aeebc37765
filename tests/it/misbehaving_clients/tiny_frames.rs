//! Clients that send tiny frames as fast as they can, while other clients wait for events.

use std::time::{Duration, Instant};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    self,
    http_client::{self, WsClient},
    sim_cluster::SimCluster,
};

/// Number of clients that flood.
const FLOODING: usize = 20;
/// Number of clients whose events are measured.
const LISTENING: usize = 4;

/// Sends empty text messages, masked with zeros, until the connection ends. The bridge may stop to read.
async fn flood(mut stream: TcpStream) {
    let frames = b"\x81\x80\0\0\0\0".repeat(10_000);
    while stream.write_all(&frames).await.is_ok() {}
}

/// Changes the Pod `changes` times. Returns the latencies of the events, sorted.
async fn latencies(cluster: &SimCluster, clients: &mut [WsClient], changes: usize, name: &str) -> Vec<Duration> {
    let mut latencies = Vec::new();
    for change in 0..changes {
        let phase = format!("{name}-{change}");
        let started = Instant::now();
        cluster.pod_phase("pod", &phase);
        for client in &mut *clients {
            client.until(|event| event["phase"] == phase.as_str()).await;
            latencies.push(started.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    latencies.sort_unstable();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100];
    println!("{name}: event latency median {:?}, 90% {:?}, 99% {:?}, max {:?}", at(50), at(90), at(99), at(100));
    latencies
}

/// Prints the latency of events without and with the flood. A unit test of streams checks that the flood is read slowly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_tiny_frames_does_not_end_other_streams() {
    let changes = if support::long_form() { 300 } else { 60 };
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    let bridge = cluster.bridge(&["--dedicated-watchers", "0"]).await;
    let mut clients = Vec::new();
    for _ in 0..LISTENING {
        clients.push(bridge.listen("/ws?snapshot=none").await);
    }
    latencies(&cluster, &mut clients, changes, "before the flood").await;
    let mut flooding = Vec::new();
    for _ in 0..FLOODING {
        flooding.push(tokio::spawn(flood(bridge.listen("/ws?snapshot=none").await.into_stream())));
    }
    let (started, cpu) = (Instant::now(), cpu_seconds(bridge.pid()));
    latencies(&cluster, &mut clients, changes, "during the flood").await;
    let used = cpu_seconds(bridge.pid()) - cpu;
    println!("the bridge used {used:.2} s of CPU in {:?}", started.elapsed());
    let open = http_client::metric_sum(bridge.address, "bridge_streams", &[r#"endpoint="/ws""#]).await;
    assert_eq!(open as usize, FLOODING + LISTENING, "no stream was closed");
    for flood in &flooding {
        flood.abort();
    }
}

/// Returns the processor time that a process has used, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // proc_pid_stat(5): utime and stime are the fields 14 and 15; the name ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}
