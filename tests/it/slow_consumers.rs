//! Slow clients (docs/protocol.md#stream-endpoints, "Slow clients"): a client whose log entries were evicted gets the
//! current state and continues from there. A client that reads nothing is closed, and its buffers are released.

use std::{collections::BTreeMap, time::Duration};

use boilerhouse_bridge::{feed, http::stream, ring, sim::ApiResource};
use serde_json::Value;
use tokio::time::{Instant, advance, timeout};

use crate::support::{
    full_stream_client::FullStreamClient,
    http_client::{self, TEST_TIMEOUT},
    in_process::{Config, InProcessBridge},
    paused_clock::disable_auto_advance,
    proc_net_tcp,
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Limits of the log: it holds more entries than a burst, and fewer than the socket buffers and a batch of a slow
/// client.
const LOG: ring::Limits = ring::Limits { items: 64, bytes: 64 << 20, age_ms: u64::MAX };
/// Number of changes in a burst. A fast client reads every burst before the next one.
const BURST: usize = 20;
/// Number of bursts, about 2 MB, while a slow client reads little.
const BURSTS: usize = 60;
/// Number of Pods.
const PODS: usize = 5;

/// A cluster whose Pods change and are replaced, and a bridge with a short log in this process.
struct Fixture {
    cluster: SimCluster,
    bridge: InProcessBridge,
    changes: usize,
}

/// What a client has received.
#[derive(Default)]
struct Received {
    snapshots: Vec<Snapshot>,
    /// Phases by uid: the fold of the initial states and the events.
    fold: BTreeMap<String, String>,
}

/// A `state.initial` and what followed it.
struct Snapshot {
    reason: String,
    /// Phases by uid.
    state: BTreeMap<String, String>,
    events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq)]
struct Event {
    key: String,
    uid: String,
    phase: String,
}

impl Event {
    fn apply(&self, state: &mut BTreeMap<String, String>) {
        if self.phase == "Deleted" {
            state.remove(&self.uid);
        } else {
            state.insert(self.uid.clone(), self.phase.clone());
        }
    }
}

impl Fixture {
    async fn new(stream: stream::Config) -> Fixture {
        let cluster = SimCluster::new().await;
        for index in 0..PODS {
            cluster.create_pod(&format!("pod-{index}"));
        }
        let client = cluster.sim().client(NAMESPACE);
        let feed = feed::Config { log: LOG, ..feed::Config::default() };
        let config = Config { feed, stream, ..Config::default() };
        let bridge = InProcessBridge::start(NAMESPACE, client.clone(), &client, config).await;
        Fixture { cluster, bridge, changes: 0 }
    }

    /// Returns a client with a small receive buffer.
    async fn small_buffer_socket(&self, sse: bool) -> FullStreamClient {
        let stream = http_client::small_buffer_socket(self.bridge.address, "").await;
        FullStreamClient::over(stream, sse, "types=instance.state", None).await.expect("the stream is rejected")
    }

    /// Replaces one Pod, then changes all Pods in turn. Returns the phase of the last change.
    fn burst(&mut self) -> String {
        let name = format!("pod-{}", self.changes / BURST % PODS);
        self.cluster.sim().store(|store| store.delete(ApiResource::Pods, NAMESPACE, &name)).unwrap();
        self.cluster.create_pod(&name);
        for _ in 0..BURST {
            self.changes += 1;
            self.cluster.pod_phase(&format!("pod-{}", self.changes % PODS), &self.phase());
        }
        self.phase()
    }

    /// Returns a phase of 400 bytes, so that a few hundred changes fill all buffers.
    fn phase(&self) -> String {
        format!("{:0>400}", self.changes)
    }

    /// Returns the state of the cluster in the form of [`Received::fold`].
    fn state(&self) -> BTreeMap<String, String> {
        let pods = self.cluster.sim().store(|store| store.list(ApiResource::Pods, Some(NAMESPACE)));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        pods.iter().map(|pod| (text(&pod["metadata"]["uid"]), text(&pod["status"]["phase"]))).collect()
    }

    async fn metric(&self, name: &str) -> u64 {
        http_client::metric(self.bridge.address, name).await
    }

    /// Returns the numbers of SSE and WebSocket streams that were closed as slow consumers.
    async fn slow_consumers(&self) -> [u64; 2] {
        let slow = |transport| {
            let labels = [transport, r#"reason="slow_consumer""#];
            async move { http_client::metric_sum(self.bridge.address, "bridge_streams_closed_total", &labels).await }
        };
        [slow(r#"transport="sse""#).await, slow(r#"transport="websocket""#).await]
    }
}

impl Received {
    /// Reads and folds the next event. Returns its phase if it is an `instance.state`.
    async fn read(&mut self, client: &mut FullStreamClient) -> Option<String> {
        let event =
            timeout(TEST_TIMEOUT, client.next()).await.expect("no event in time").expect("the stream has ended");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        match event["type"].as_str().unwrap() {
            "state.initial" => {
                let views = event["instances"].as_array().unwrap();
                self.fold = views.iter().map(|view| (text(&view["uid"]), text(&view["phase"]))).collect();
                let (reason, state) = (text(&event["reason"]), self.fold.clone());
                self.snapshots.push(Snapshot { reason, state, events: Vec::new() });
                None
            }
            "instance.state" => {
                assert_ne!(event["coalesced"], true, "{event}");
                let (key, uid, phase) = (text(&event["key"]), text(&event["instance"]["uid"]), text(&event["phase"]));
                let event = Event { key, uid, phase };
                event.apply(&mut self.fold);
                self.snapshots.last_mut().expect("an event before the initial state").events.push(event.clone());
                Some(event.phase)
            }
            _ => None,
        }
    }

    /// Reads until an event or an initial state contains this phase.
    async fn until(&mut self, client: &mut FullStreamClient, phase: &str) {
        while self.read(client).await.as_deref() != Some(phase) && !self.fold.values().any(|current| current == phase) {
        }
    }

    fn reasons(&self) -> Vec<&str> {
        self.snapshots.iter().map(|snapshot| snapshot.reason.as_str()).collect()
    }

    /// Asserts that the snapshots and events are part of `complete`, the record of a fast client. Each snapshot is a
    /// state of the history, after the state before it. The events after a snapshot are the next ones of the history:
    /// none is missing, repeated or out of order. The last event is the last one of the history.
    fn check_is_part_of(&self, complete: &Snapshot) {
        let (mut state, mut rest) = (complete.state.clone(), &complete.events[..]);
        for Snapshot { state: snapshot, events, .. } in &self.snapshots {
            while let Some((next, after)) = rest.split_first()
                && state != *snapshot
            {
                next.apply(&mut state);
                rest = after;
            }
            assert_eq!(state, *snapshot, "the snapshot is no later state of the history");
            let (expected, after) = rest.split_at(events.len());
            assert_eq!(events, expected, "events after the snapshot");
            expected.iter().for_each(|event| event.apply(&mut state));
            rest = after;
        }
        assert_eq!(rest, [], "the last events are missing");
    }
}

#[tokio::test]
async fn slow_reader_gets_state_initial_with_reason_lagged() {
    let mut fixture = Fixture::new(stream::Config::default()).await;
    let query = "types=instance.state";
    let mut fast_client = FullStreamClient::connect(fixture.bridge.address, false, query, None).await.unwrap();
    let mut fast = Received::default();
    let mut slow = ["SSE", "WebSocket"].map(|transport| (transport, Received::default()));
    let mut slow_clients = [fixture.small_buffer_socket(true).await, fixture.small_buffer_socket(false).await];
    let mut last = String::new();
    for _ in 0..BURSTS {
        last = fixture.burst();
        fast.until(&mut fast_client, &last).await;
        for ((_, received), client) in slow.iter_mut().zip(&mut slow_clients) {
            received.read(client).await;
        }
    }
    assert_eq!(fast.fold, fixture.state(), "fold of the fast client");
    for ((_, received), client) in slow.iter_mut().zip(&mut slow_clients) {
        received.until(client, &last).await;
    }
    // After the last snapshot the slow clients receive the same events as the fast client.
    last = fixture.burst();
    fast.until(&mut fast_client, &last).await;
    assert_eq!(fast.reasons(), ["connect"], "reasons of the snapshots of the fast client");
    for ((transport, received), client) in slow.iter_mut().zip(&mut slow_clients) {
        received.until(client, &last).await;
        println!(
            "{transport}: {:?}",
            received.snapshots.iter().map(|p| (&p.reason, p.events.len())).collect::<Vec<_>>()
        );
        assert_eq!(received.fold, fixture.state(), "{transport}: fold");
        let (first, others) = received.snapshots.split_first().unwrap();
        assert!(first.reason == "connect" && !first.events.is_empty(), "{transport}: first snapshot");
        assert!(!others.is_empty() && others.iter().all(|snapshot| snapshot.reason == "lagged"), "{transport}");
        received.check_is_part_of(&fast.snapshots[0]);
        assert!(others.last().unwrap().events.len() >= BURST, "{transport}: events after the last snapshot");
    }
    let lagged: usize = slow.iter().map(|(_, received)| received.snapshots.len() - 1).sum();
    assert_eq!(fixture.metric("bridge_feed_lagged_total").await, lagged as u64);
    assert_eq!(fixture.slow_consumers().await, [0, 0]);
}

/// The clock is paused, so that the speed of the machine does not decide which client makes progress in time.
#[tokio::test(start_paused = true)]
async fn stalled_reader_is_closed_and_its_buffers_are_released() {
    /// Time that passes for each burst. The kernel reports progress of a slow client about once in twenty bursts.
    const STEP: Duration = Duration::from_millis(50);
    /// Two clients that read nothing, and one that reads little.
    const STREAMS: usize = 3;
    let paused = disable_auto_advance();
    let config = stream::Config { max_streams: STREAMS, ..stream::Config::default() };
    let write_timeout = config.write_timeout;
    let mut fixture = Fixture::new(config).await;
    let address = fixture.bridge.address;
    let started = Instant::now();
    let streams =
        [http_client::small_buffer_socket(address, "").await, http_client::small_buffer_socket(address, "").await];
    let ports = streams.each_ref().map(|stream| stream.local_addr().unwrap().port());
    let mut stalled = Vec::new();
    for (stream, sse) in streams.into_iter().zip([true, false]) {
        stalled.push(FullStreamClient::over(stream, sse, "", None).await.expect("the stream is rejected"));
    }
    let (mut slow, mut received) = (fixture.small_buffer_socket(true).await, Received::default());
    let mut last = String::new();
    let mut ended = [0, 0];
    while ended != [1, 1] {
        assert!(started.elapsed() < write_timeout + TEST_TIMEOUT, "only {ended:?} streams are closed");
        last = fixture.burst();
        // This client makes progress.
        received.read(&mut slow).await;
        advance(STEP).await;
        ended = fixture.slow_consumers().await;
        assert!(ended == [0, 0] || started.elapsed() >= write_timeout, "a stream closed too early");
    }
    println!("closed after {:?}", started.elapsed());
    let open = proc_net_tcp::queues_by_client_port(address);
    assert!(ports.iter().all(|port| !open.contains_key(port)), "the kernel still has a connection: {open:?}");
    assert_eq!(http_client::metric_sum(address, "bridge_streams", &[]).await, 1);

    // Their stream permits are free.
    for sse in [true, false] {
        let mut next = FullStreamClient::connect(address, sse, "", None).await.expect("the stream is rejected");
        assert_eq!(
            timeout(TEST_TIMEOUT, next.next()).await.expect("no event in time").unwrap()["type"],
            "state.initial"
        );
    }
    received.until(&mut slow, &last).await;
    assert_eq!(received.fold, fixture.state(), "fold of the slow client");
    for mut client in stalled {
        // The client reads the bytes in the socket buffers, and then the end of the connection.
        let end = async { while client.text().await.is_some() {} };
        timeout(TEST_TIMEOUT, end).await.expect("the connection is still open");
    }
    drop(paused);
}
