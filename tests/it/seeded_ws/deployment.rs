//! A cluster, its hub and its readers, in one process and on tokio's clock.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use boilerhouse_bridge::event::PerResource;
use boilerhouse_bridge::event::projection::{EventFormat, Projection};
use boilerhouse_bridge::feed::{self, Feed, Framing, ReadResult, SnapshotReason, StartAt};
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::schema::messages::Form;
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::source::{dedicated, hub, retry::Backoff};
use boilerhouse_bridge::test_support::SeededRng;
use boilerhouse_bridge::wire::CloseReason;
use bytes::Bytes;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::api_recorder::RecorderLog;
use super::cluster::Cluster;
use super::latency::Latency;
use crate::oracle::history::NAMESPACE;
use crate::oracle::ws::{End, Record, Start, WatchMode, WsEvent};
use crate::support::schemas;

/// `/ws` is closed after 60 s without the API server (docs/protocol.md#boilerhouse-stream). A watch that broke
/// fails again within 2 s.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(58);

/// The longest time between two connections of a client.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(40);

/// Each run of a seed has the same delays.
const BACKOFF: Backoff = Backoff {
    min: Duration::from_millis(100),
    max: Duration::from_secs(1),
    retry_after_max: Duration::from_secs(30),
    jitter: |tries| (tries as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
};

/// For a reader that stays connected: longer than any history.
pub(super) const NO_LIMIT: Duration = Duration::from_secs(1 << 30);

/// The simulated deployment of one history.
#[derive(Debug)]
pub(super) struct SimulatedDeployment {
    cluster: Cluster,
    pub(super) feed: Feed,
    pub(super) hub_log: Arc<Mutex<RecorderLog>>,
    /// Once it is set, readers read at once and stay connected.
    pub(super) settling: AtomicBool,
    /// The connections of each reader.
    sessions: Mutex<BTreeMap<usize, Vec<Arc<Mutex<Session>>>>>,
    /// Violations that the readers found.
    pub(super) violations: Mutex<Vec<String>>,
}

/// One connection.
#[derive(Debug)]
struct Session {
    record: Record,
    log: Arc<Mutex<RecorderLog>>,
    feed: Feed,
}

/// The behavior of a reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) mode: WatchMode,
    pub(super) initial_events: bool,
    pub(super) starts_after: Duration,
    /// The longest time of each of its connections.
    pub(super) max_session: Duration,
    /// The longest pause after each batch.
    pub(super) max_pause: Duration,
    /// Bytes of a batch.
    pub(super) batch_bytes: usize,
}

/// Milliseconds of tokio's clock, so that logs age with simulated time.
fn clock() -> u64 {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let now = Instant::now().into_std();
    let since = now.saturating_duration_since(*START.get_or_init(std::time::Instant::now));
    u64::try_from(since.as_millis()).unwrap()
}

impl SimulatedDeployment {
    /// A cluster with the objects that `fill` creates, and its hub, which runs in `tasks`.
    pub(super) fn new(
        seed: u64,
        log: Limits,
        tasks: &mut JoinSet<()>,
        fill: impl FnOnce(&mut Store),
    ) -> Arc<SimulatedDeployment> {
        let cluster = Cluster::new(seed, fill);
        let (client, hub_log) = cluster.client(Latency::fixed(1));
        let (writer, feed) = Feed::new(feed::Config { log, wall_clock_ms: clock, ..feed::Config::default() });
        let config = hub::Config { namespace: NAMESPACE.into(), backoff: BACKOFF, ..hub::Config::default() };
        let run = hub::run(client, config, writer, Arc::default());
        tasks.spawn(async move { match run.await {} });
        Arc::new(SimulatedDeployment {
            cluster,
            feed,
            hub_log,
            settling: AtomicBool::new(false),
            sessions: Mutex::default(),
            violations: Mutex::default(),
        })
    }

    fn is_settling(&self) -> bool {
        self.settling.load(Ordering::Relaxed)
    }

    /// The records of all connections so far.
    pub(super) fn records(&self) -> Vec<Record> {
        let sessions = self.sessions.lock().unwrap();
        sessions.values().flatten().map(|session| session.lock().unwrap().record()).collect()
    }

    /// The length of the debug output of all feeds and their projection caches. It grows with everything they hold.
    pub(super) fn debug_size(&self) -> usize {
        let sessions = self.sessions.lock().unwrap();
        let feeds = sessions.values().flatten().map(|session| session.lock().unwrap().feed.clone());
        let sizes = feeds.chain([self.feed.clone()]).map(|feed| {
            let everything = Projection::everything(EventFormat::Boilerhouse);
            format!("{feed:?}{:?}", feed.projection_cache(everything, Framing::WEBSOCKET)).len()
        });
        sizes.sum()
    }

    /// Runs one reader. It connects again after each connection.
    pub(super) async fn read(self: Arc<SimulatedDeployment>, index: usize, reader: Reader, mut rng: SeededRng) {
        sleep(reader.starts_after).await;
        let latency = Latency::fixed(2 + index as u64);
        loop {
            self.feed.wait_synced().await;
            let max_session = if self.is_settling() { NO_LIMIT } else { rng.duration_up_to(reader.max_session) };
            match reader.mode {
                WatchMode::Shared => {
                    let (feed, log) = (self.feed.clone(), self.hub_log.clone());
                    self.session(index, reader, &feed, log, max_session, &mut rng).await;
                }
                WatchMode::Dedicated => {
                    let (client, log) = self.cluster.client(latency);
                    let config =
                        dedicated::Config { max_connections: 1, backoff: BACKOFF, ..dedicated::Config::default() };
                    let (hub_feed, metrics) = (self.feed.clone(), dedicated::Metrics::default());
                    let watchers = dedicated::DedicatedWatchers::new(&client, NAMESPACE, hub_feed, config, metrics);
                    let (feed, source) = watchers.try_open().unwrap();
                    tokio::select! {
                        biased;
                        never = source => match never {},
                        () = async {
                            // As `/ws` does: the burst waits for both lists.
                            if timeout(Duration::from_secs(10), feed.wait_synced()).await.is_ok() {
                                self.session(index, reader, &feed, log, max_session, &mut rng).await;
                            }
                        } => {}
                    }
                }
            }
            sleep(rng.duration_up_to(MAX_RECONNECT_DELAY)).await;
        }
    }

    async fn session(
        &self,
        index: usize,
        reader: Reader,
        feed: &Feed,
        log: Arc<Mutex<RecorderLog>>,
        max_session: Duration,
        rng: &mut SeededRng,
    ) {
        let cache = feed.projection_cache(Projection::everything(EventFormat::Boilerhouse), Framing::WEBSOCKET);
        let start_at = if reader.initial_events {
            StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() }
        } else {
            StartAt::Live
        };
        let mut subscription = feed.subscribe(cache, start_at).unwrap();
        let received = {
            let log = log.lock().unwrap();
            PerResource::from_fn(|resource| log.recording.responses[resource].len())
        };
        let start = if reader.initial_events { Start::Burst(received) } else { Start::Live(received) };
        let responses = PerResource::default();
        let record = Record { mode: reader.mode, responses, start, received: Vec::new(), end: End::Open };
        let session = Arc::new(Mutex::new(Session { record, log, feed: feed.clone() }));
        self.sessions.lock().unwrap().entry(index).or_default().push(session.clone());
        let reading = async {
            loop {
                match subscription.read(reader.batch_bytes) {
                    ReadResult::Batch(frames) => {
                        session.lock().unwrap().record.received.extend(frames.iter().flat_map(messages));
                        if !self.is_settling() && !reader.max_pause.is_zero() {
                            sleep(rng.duration_up_to(reader.max_pause)).await;
                        }
                    }
                    ReadResult::Idle => subscription.readable().await,
                    ReadResult::End(close) => return End::Closed(close),
                }
            }
        };
        let end = timeout(max_session, reading).await.unwrap_or(End::Disconnected);
        let mut session = session.lock().unwrap();
        session.record = Record { end, ..session.record() };
        let logs = [&session.log, &self.hub_log];
        let has_reason = logs.iter().any(|log| log.lock().unwrap().is_failing_for(UPSTREAM_LIMIT));
        if end == End::Closed(CloseReason::UpstreamUnavailable) && !has_reason {
            let (mode, failures) = (reader.mode, logs.map(|log| log.lock().unwrap().failures));
            let at = Instant::now();
            self.violations.lock().unwrap().push(format!("{mode:?}: closed at {at:?} without a reason: {failures:?}"));
        }
    }
}

impl Deref for SimulatedDeployment {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Session {
    /// The record so far. What its watchers receive after its end is not part of it.
    fn record(&self) -> Record {
        match self.record.end {
            End::Open => {
                let responses = self.log.lock().unwrap().recording.responses.clone();
                Record { responses, ..self.record.clone() }
            }
            End::Disconnected | End::Closed(_) => self.record.clone(),
        }
    }
}

/// The messages in frames of a server: final, unmasked, text (RFC 6455 section 5.2).
fn messages(frames: &Bytes) -> Vec<WsEvent> {
    let mut rest = &frames[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        assert_eq!(rest[0], 0x81, "the first byte is not that of a final text frame");
        let (length, head) = match rest[1] {
            126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
            127 => panic!("an event is longer than 64 KiB"),
            length => (usize::from(length), 2),
        };
        let event: Value = serde_json::from_slice(&rest[head..head + length]).unwrap();
        schemas::check_event(&[Form::Ws], &event);
        messages.push(serde_json::from_value(event).unwrap());
        rest = &rest[head + length..];
    }
    messages
}
