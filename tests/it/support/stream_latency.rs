//! How long a change takes from the simulated cluster to a stream.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{http_client::WsClient, sim_cluster::SimCluster};

/// The Pod that is changed.
pub(crate) const WATCHED: &str = "watched";

/// Changes the phase of [`WATCHED`] `changes` times, with a pause between two, and returns how long a change takes to the
/// stream: median and maximum.
pub(crate) async fn stream_latency(
    cluster: &SimCluster,
    stream: &mut WsClient,
    changes: usize,
    pause: Duration,
) -> [Duration; 2] {
    let mut latencies = Vec::new();
    for n in 0..changes {
        let phase = format!("phase-{n}");
        let start = Instant::now();
        cluster.pod_phase(WATCHED, &phase);
        stream.until(|event| event["phase"] == phase.as_str()).await;
        latencies.push(start.elapsed());
        sleep(pause).await;
    }
    latencies.sort_unstable();
    [latencies[changes / 2], latencies[changes - 1]]
}
