//! Seeded rounds of random faults of a receiver, kills of the command and restarts of the bridge. The receiver gets every
//! event, in order, at least once.

use std::time::Duration;

use boilerhouse_bridge::test_support::SeededRng;
use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::{
    Forwarder,
    receiver::{Answer, Receiver, start_forwarding},
};
use crate::support::{self, sim_cluster::SimCluster, tcp_proxy::TcpProxy};

/// Rounds in the short form and in the long form.
const ROUNDS: [u64; 2] = [6, 100];
/// Rounds that run at the same time: they mostly wait.
const PARALLEL: usize = 6;
/// Pods that a round creates.
const PODS: usize = 30;

#[tokio::test]
async fn every_event_arrives_in_order_through_faults_and_kills() {
    let first = std::env::var("BRIDGE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let seeds = first..first + ROUNDS[usize::from(support::long_form())];
    stream::iter(seeds).for_each_concurrent(PARALLEL, round).await;
}

async fn round(seed: u64) {
    let mut rng = SeededRng(seed);
    let cluster = SimCluster::new().await;
    let mut bridge = cluster.bridge(&[]).await;
    let proxy = TcpProxy::new(None, seed).await;
    proxy.set_target(Some(bridge.address));
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json").to_string_lossy().into_owned();
    let (url, hook) = (format!("http://{}", proxy.address), receiver.url("/hook"));
    let transport = if rng.below(2) == 0 { "sse" } else { "websocket" };
    let args = ["--transport", transport, "--types", "instance", "--forward-to", &hook, "--state-file", &state];
    let mut forwarder = Forwarder::start(&url, &args);
    start_forwarding(&cluster, &[&receiver]).await;
    // The first cursor must be stored before the command is killed for the first time.
    wait_for_cursor(&state).await;
    for n in 0..PODS {
        let name = format!("pod-{n}");
        cluster.create_pod(&name);
        let fault = rng.below(12);
        match fault {
            0 => receiver.answer_next([Answer::Status(500)]),
            1 => receiver.answer_next([Answer::Cut]),
            2 => receiver.answer_next([Answer::TakeAndCut]),
            3 => receiver.answer_next([Answer::RetryAfter(1)]),
            4 => {
                forwarder.child.start_kill().unwrap();
                forwarder.child.wait().await.unwrap();
                forwarder = Forwarder::start(&url, &args);
            }
            5 => {
                bridge.signal("KILL").await;
                bridge = cluster.bridge(&[]).await;
                proxy.set_target(Some(bridge.address));
            }
            6 => receiver.go_down(Duration::from_millis(rng.below(300))).await,
            7 => tokio::time::sleep(Duration::from_millis(rng.below(200))).await,
            _ => {}
        }
        // Each failed attempt for one event doubles the delay. Faults that meet different events take a second each.
        if fault < 4 {
            receiver.wait_for_last(&name).await;
        }
    }
    let expected: Vec<String> = (0..PODS).map(|n| format!("pod-{n}")).collect();
    receiver.wait_for_last(expected.last().unwrap()).await;
    let accepted = receiver.accepted();
    let gap = accepted.iter().find(|body| body["type"] == "stream.gap");
    assert_eq!(gap, None, "seed {seed}: nothing is missing");
    let mut seen: Vec<String> = Vec::new();
    for name in receiver.accepted_names() {
        // A delivery is repeated from the last stored cursor on. A new event follows the last new event.
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    assert_eq!(seen, expected, "seed {seed}");
    drop(forwarder);
}

async fn wait_for_cursor(path: &str) {
    let stored = async {
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let state: Value = serde_json::from_str(&text).unwrap_or_default();
            let receivers = state["receivers"].as_object();
            if receivers.is_some_and(|receivers| receivers.values().any(|receiver| receiver["cursor"].is_string())) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = support::http_client::TEST_TIMEOUT;
    tokio::time::timeout(limit, stored).await.expect("the cursor is stored in time");
}
