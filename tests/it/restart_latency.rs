//! The time from the request of a client that resumes on a restarted bridge to the first event that it missed
//! (docs/protocol.md#resume): on the real API server, when it is quiet and when it is busy.

use std::time::Duration;

use boilerhouse_bridge::test_support::SeededRng;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    self, bridge_process::BridgeProcess, cluster::Cluster, full_stream_client::FullStreamClient,
    http_client::TEST_TIMEOUT,
};

/// Restarts in the short form and in the long form.
const RESTARTS: [usize; 2] = [6, 200];
/// The missed event arrives within this time of the request (docs/protocol.md#resume), if the machine is not busy.
const BOUND: Duration = Duration::from_millis(500);
/// The time between two writes to the busy API server.
const PAUSE: Duration = Duration::from_millis(10);

#[tokio::test]
async fn missed_event_arrives_within_500_ms_of_a_resume_after_a_restart() {
    for is_busy in [false, true] {
        let cluster = Cluster::shared().await;
        let writes = async {
            cluster.create_pod("noise", "").await;
            for n in 0_u64.. {
                cluster.label_pod("noise", &format!("n={n}")).await;
                sleep(PAUSE).await;
            }
        };
        let times = async {
            let mut times = restart(&cluster, RESTARTS[usize::from(support::long_form())]).await;
            times.sort();
            times
        };
        let times = if is_busy {
            tokio::select! {
                () = writes => unreachable!("the writes have no end"),
                times = times => times,
            }
        } else {
            times.await
        };
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        let (median, p99, max) = (at(50), at(99), at(100));
        println!("busy: {is_busy}, {} restarts: median {median:?}, p99 {p99:?}, max {max:?}", times.len());
        // Other tests run beside the short form: it proves that each event arrives, and prints the times.
        if support::long_form() {
            assert!(p99 < BOUND, "busy: {is_busy}, the 99th percentile is {p99:?}: {times:?}");
        }
    }
}

/// Restarts the bridge this many times, with a change while it does not run. Returns the time of each resume.
async fn restart(cluster: &Cluster, count: usize) -> Vec<Duration> {
    let kubeconfig = cluster.kubeconfig();
    let start = async || {
        let bridge =
            BridgeProcess::start(&kubeconfig.to_string_lossy(), &cluster.namespace, &["--dedicated-watchers", "0"])
                .await;
        bridge.wait_ready().await;
        bridge
    };
    cluster.create_pod("probe", "").await;
    let mut bridge = start().await;
    let mut client = FullStreamClient::connect(bridge.address, true, "", None).await.unwrap();
    let mut last_id = read_until_label(&mut client, None).await.0;
    let (mut times, mut rng, mut syncing) = (Vec::new(), SeededRng(1), 0);
    for restart in 0..count {
        drop((client, bridge));
        let label = restart.to_string();
        cluster.label_pod("probe", &format!("restart={label}")).await;
        if rng.below(2) == 0 {
            // An object that a list does not contain.
            cluster.create_pod("transient", "").await;
            cluster.delete_pod("transient").await;
        }
        bridge = start().await;
        let requested = Instant::now();
        client = FullStreamClient::connect(bridge.address, restart % 2 == 0, "", Some(&last_id)).await.unwrap();
        let (id, was_syncing) = read_until_label(&mut client, Some(&label)).await;
        times.push(requested.elapsed());
        syncing += usize::from(was_syncing);
        last_id = id;
    }
    println!("{syncing} of {count} clients got a heartbeat with `syncing`");
    // A bridge that catches up before its client connects has nothing to wait for. Beside other tests that is usual, and so
    // only the long form asserts it. The unit tests of `feed::subscription` decide when a heartbeat says `syncing`.
    if support::long_form() {
        assert!(syncing > count / 2, "only {syncing} of {count} clients got a heartbeat with `syncing`");
    }
    times
}

/// Reads until an event of the Pod `probe` with this label, or until the end of the initial state. Returns the last id, and
/// whether a heartbeat said `syncing`.
async fn read_until_label(client: &mut FullStreamClient, label: Option<&str>) -> (String, bool) {
    let (mut last_id, mut was_syncing) = (String::new(), false);
    loop {
        let event =
            timeout(TEST_TIMEOUT, client.next()).await.expect("no event in time").expect("the stream has ended");
        if let Some(id) = event["id"].as_str() {
            id.clone_into(&mut last_id);
        }
        let is_initial = event["type"] == "state.initial";
        assert!(!is_initial || label.is_none(), "a resume gets no initial state: {event}");
        was_syncing |= event["upstream"] == "syncing";
        let is_change =
            event["name"] == "probe" && event["instance"]["labels"]["boilerhouse.dev/restart"].as_str() == label;
        if if label.is_some() { is_change } else { is_initial && event["more"] != true } {
            return (last_id, was_syncing);
        }
    }
}
