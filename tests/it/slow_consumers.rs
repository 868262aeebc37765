//! Slow readers (docs/protocol.md#stream-endpoints, "Slow clients"): the log moves past one, and it is given the current state and
//! goes on from there; one that does not read at all is ended, and nothing is kept for it.

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

/// What the log holds: more than a burst, less than what waits for a reader in the kernel and in a batch.
const LOG: ring::Limits = ring::Limits { items: 64, bytes: 64 << 20, age_ms: u64::MAX };
/// Changes at a time; whoever reads at once is never this far behind.
const BURST: usize = 20;
/// Bursts while a slow reader reads little: some 2 MB.
const BURSTS: usize = 60;
/// Pods at a time.
const PODS: usize = 5;

/// A cluster whose Pods change and are replaced, and a bridge with a short log.
struct Fixture {
    cluster: SimCluster,
    bridge: InProcessBridge,
    changes: usize,
}

/// What a client has been told.
#[derive(Default)]
struct Received {
    snapshots: Vec<Snapshot>,
    /// Phases by uid: the pictures and the events, folded.
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

    /// A client whose kernel takes in little of what it does not read.
    async fn small_buffer_socket(&self, sse: bool) -> FullStreamClient {
        let stream = http_client::small_buffer_socket(self.bridge.address, "").await;
        FullStreamClient::over(stream, sse, "types=instance.state", None).await.expect("it is let in")
    }

    /// One Pod is replaced, then each changes now and then, the last time to the phase that is returned.
    fn burst(&mut self) -> String {
        let old = format!("pod-{}", self.changes / BURST % PODS);
        self.cluster.sim().store(|store| store.delete(ApiResource::Pods, NAMESPACE, &old)).unwrap();
        self.cluster.create_pod(&old);
        for _ in 0..BURST {
            self.changes += 1;
            self.cluster.pod_phase(&format!("pod-{}", self.changes % PODS), &self.phase());
        }
        self.phase()
    }

    /// So long that a few hundred changes fill any buffer.
    fn phase(&self) -> String {
        format!("{:0>400}", self.changes)
    }

    /// What there is, as [`Received::fold`] says it.
    fn state(&self) -> BTreeMap<String, String> {
        let pods = self.cluster.sim().store(|store| store.list(ApiResource::Pods, Some(NAMESPACE)));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        pods.iter().map(|pod| (text(&pod["metadata"]["uid"]), text(&pod["status"]["phase"]))).collect()
    }

    async fn metric(&self, name: &str) -> u64 {
        http_client::metric(self.bridge.address, name).await
    }

    /// Streams of both transports that were ended as too slow.
    async fn slow_consumers(&self) -> [u64; 2] {
        let slow = |transport| {
            let labels = [transport, r#"reason="slow_consumer""#];
            async move { http_client::metric_sum(self.bridge.address, "bridge_streams_closed_total", &labels).await }
        };
        [slow(r#"transport="sse""#).await, slow(r#"transport="websocket""#).await]
    }
}

impl Received {
    /// Takes the next event in; its phase, if it has one.
    async fn read(&mut self, on: &mut FullStreamClient) -> Option<String> {
        let event = timeout(TEST_TIMEOUT, on.next()).await.expect("nothing comes").expect("the stream has ended");
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
                self.snapshots.last_mut().expect("a picture comes first").events.push(event.clone());
                Some(event.phase)
            }
            _ => None,
        }
    }

    /// Reads up to this phase, be it told by an event or by a picture.
    async fn until(&mut self, on: &mut FullStreamClient, phase: &str) {
        while self.read(on).await.as_deref() != Some(phase) && !self.fold.values().any(|has| has == phase) {}
    }

    fn reasons(&self) -> Vec<&str> {
        self.snapshots.iter().map(|picture| picture.reason.as_str()).collect()
    }

    /// After each picture nothing is missing, repeated or out of order, the first event being the one that the picture
    /// does not show; and the last events are the last of all.
    fn is_part_of(&self, whole: &Snapshot) {
        let (mut state, mut rest) = (whole.state.clone(), &whole.events[..]);
        for Snapshot { state: shown, events, .. } in &self.snapshots {
            while let Some((next, after)) = rest.split_first()
                && state != *shown
            {
                next.apply(&mut state);
                rest = after;
            }
            assert_eq!(state, *shown, "there has never been such a state after the one before");
            let (received, after) = rest.split_at(events.len());
            assert_eq!(events, received);
            received.iter().for_each(|event| event.apply(&mut state));
            rest = after;
        }
        assert_eq!(rest, [], "the end is missing");
    }
}

#[tokio::test]
async fn slow_reader_gets_state_initial_with_reason_lagged() {
    let mut fixture = Fixture::new(stream::Config::default()).await;
    let query = "types=instance.state";
    let mut good =
        (FullStreamClient::connect(fixture.bridge.address, false, query, None).await.unwrap(), Received::default());
    let mut slow = ["SSE", "WebSocket"].map(|carrier| (carrier, Received::default()));
    let mut sockets = [fixture.small_buffer_socket(true).await, fixture.small_buffer_socket(false).await];
    let mut last = String::new();
    for _ in 0..BURSTS {
        last = fixture.burst();
        good.1.until(&mut good.0, &last).await;
        for ((_, received), on) in slow.iter_mut().zip(&mut sockets) {
            received.read(on).await;
        }
    }
    assert_eq!(good.1.fold, fixture.state());
    for ((_, received), on) in slow.iter_mut().zip(&mut sockets) {
        received.until(on, &last).await;
    }
    // From the picture on they are told what everybody is told.
    last = fixture.burst();
    good.1.until(&mut good.0, &last).await;
    assert_eq!(good.1.reasons(), ["connect"], "who reads at once notices nothing");
    for ((carrier, received), on) in slow.iter_mut().zip(&mut sockets) {
        received.until(on, &last).await;
        println!("{carrier}: {:?}", received.snapshots.iter().map(|p| (&p.reason, p.events.len())).collect::<Vec<_>>());
        assert_eq!(received.fold, fixture.state(), "{carrier}");
        let (first, others) = received.snapshots.split_first().unwrap();
        assert!(first.reason == "connect" && !first.events.is_empty(), "{carrier}");
        assert!(!others.is_empty() && others.iter().all(|picture| picture.reason == "lagged"), "{carrier}");
        received.is_part_of(&good.1.snapshots[0]);
        assert!(others.last().unwrap().events.len() >= BURST, "{carrier}: it goes on from the picture");
    }
    let lagged: usize = slow.iter().map(|(_, received)| received.snapshots.len() - 1).sum();
    assert_eq!(fixture.metric("bridge_feed_lagged_total").await, lagged as u64);
    assert_eq!(fixture.slow_consumers().await, [0, 0]);
}

/// With the clock held: how fast this machine is must not decide who makes progress in time.
#[tokio::test(start_paused = true)]
async fn stalled_reader_is_closed_and_its_buffers_are_released() {
    /// Time for each burst. A slow reader makes progress, as the kernel tells it, once in some twenty of them.
    const STEP: Duration = Duration::from_millis(50);
    /// Two that do not read, and one that reads little.
    const STREAMS: usize = 3;
    let held = disable_auto_advance();
    let config = stream::Config { max_streams: STREAMS, ..stream::Config::default() };
    let stall = config.write_timeout;
    let mut fixture = Fixture::new(config).await;
    let address = fixture.bridge.address;
    let started = Instant::now();
    let streams =
        [http_client::small_buffer_socket(address, "").await, http_client::small_buffer_socket(address, "").await];
    let ports = streams.each_ref().map(|stream| stream.local_addr().unwrap().port());
    let mut stalled = Vec::new();
    for (stream, sse) in streams.into_iter().zip([true, false]) {
        stalled.push(FullStreamClient::over(stream, sse, "", None).await.expect("it is let in"));
    }
    let (mut on, mut received) = (fixture.small_buffer_socket(true).await, Received::default());
    let mut last = String::new();
    let mut ended = [0, 0];
    while ended != [1, 1] {
        assert!(started.elapsed() < stall + TEST_TIMEOUT, "{ended:?} are ended");
        last = fixture.burst();
        // Slow, but not stalled.
        received.read(&mut on).await;
        advance(STEP).await;
        ended = fixture.slow_consumers().await;
        assert!(ended == [0, 0] || started.elapsed() >= stall, "ended too early");
    }
    println!("ended after {:?}", started.elapsed());
    let open = proc_net_tcp::queues_by_client_port(address);
    assert!(ports.iter().all(|port| !open.contains_key(port)), "the kernel keeps a connection: {open:?}");
    assert_eq!(http_client::metric_sum(address, "bridge_streams", &[]).await, 1);

    // Their places are free.
    for sse in [true, false] {
        let mut next = FullStreamClient::connect(address, sse, "", None).await.expect("there is a place");
        assert_eq!(timeout(TEST_TIMEOUT, next.next()).await.expect("in time").unwrap()["type"], "state.initial");
    }
    received.until(&mut on, &last).await;
    assert_eq!(received.fold, fixture.state(), "who reads little has it all");
    for mut on in stalled {
        // What was in the kernel may still come, then the end, which it must not take for a silence.
        let end = async { while on.text().await.is_some() {} };
        timeout(TEST_TIMEOUT, end).await.expect("it is not told of the end");
    }
    drop(held);
}
