//! A cluster, a hub and its readers, all in one process and on tokio's clock.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use boilerhouse_bridge::event::projection::{EventFormat, Projection};
use boilerhouse_bridge::feed::{self, Feed, Framing, ReadResult, SnapshotReason, StartAt};
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::source::{dedicated, hub};
use boilerhouse_bridge::wire::CloseReason;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::api_recorder::RecorderLog;
use super::cluster::Cluster;
use super::history::{NAMESPACE, WsEvent};
use super::latency::Latency;
use super::validator::{End, Record, Start, WatchMode};
use crate::support::rng::SeededRng;

/// Everything that one history is about.
#[derive(Debug)]
pub(super) struct SimulatedDeployment {
    cluster: Cluster,
    pub(super) feed: Feed,
    pub(super) hub_log: Arc<Mutex<RecorderLog>>,
    /// From now on nobody is slow, and nobody leaves.
    pub(super) settling: AtomicBool,
    /// By reader.
    sessions: Mutex<BTreeMap<usize, Vec<Arc<Mutex<Session>>>>>,
    /// What the readers found wrong themselves.
    pub(super) wrong: Mutex<Vec<String>>,
}

/// How long `/ws` stays open without an upstream (docs/protocol.md#boilerhouse-stream), less the second or two until a watch that broke is
/// seen to be refused.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(58);

/// How long a client waits before it comes again, at most.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(40);

/// For a reader who does not leave: longer than any history takes.
pub(super) const NO_LIMIT: Duration = Duration::from_secs(1 << 30);

/// A connection while it lasts.
#[derive(Debug)]
struct Session {
    record: Record,
    log: Arc<Mutex<RecorderLog>>,
    feed: Feed,
}

/// Who reads, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) mode: WatchMode,
    pub(super) initial_events: bool,
    /// When it comes.
    pub(super) starts_after: Duration,
    /// How long each of its connections lasts at most.
    pub(super) max_session: Duration,
    /// How long it dawdles after each batch, at most.
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
    /// A cluster as `fill` makes it, and its hub, running in `tasks`.
    pub(super) fn new(
        seed: u64,
        log: Limits,
        tasks: &mut JoinSet<()>,
        fill: impl FnOnce(&mut Store),
    ) -> Arc<SimulatedDeployment> {
        let cluster = Cluster::new(seed, fill);
        let (client, hub_log) = cluster.client(Latency::fixed(1));
        let (writer, feed) = Feed::new(feed::Config { log, wall_clock_ms: clock, ..feed::Config::default() });
        let config = hub::Config {
            namespace: NAMESPACE.into(),
            // The same pauses in every run of a seed.
            jitter: |tries| u64::from(tries).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ..hub::Config::default()
        };
        let run = hub::run(client, config, writer, Arc::default());
        tasks.spawn(async move { match run.await {} });
        Arc::new(SimulatedDeployment {
            cluster,
            feed,
            hub_log,
            settling: AtomicBool::new(false),
            sessions: Mutex::default(),
            wrong: Mutex::default(),
        })
    }

    /// All connections so far.
    pub(super) fn records(&self) -> Vec<Record> {
        let sessions = self.sessions.lock().unwrap();
        sessions.values().flatten().map(|session| session.lock().unwrap().record()).collect()
    }

    /// Everything that the feeds and their lenses hold, written out: nothing can grow unseen in it.
    pub(super) fn held(&self) -> usize {
        let sessions = self.sessions.lock().unwrap();
        let feeds =
            sessions.values().flatten().map(|session| session.lock().unwrap().feed.clone()).chain([self.feed.clone()]);
        let held = feeds.map(|feed| {
            format!(
                "{feed:?}{:?}",
                feed.projection_cache(Projection::everything(EventFormat::Boilerhouse), Framing::WEBSOCKET)
            )
        });
        held.map(|held| held.len()).sum()
    }

    /// One reader, who comes again whenever its connection has ended.
    pub(super) async fn read(self: Arc<SimulatedDeployment>, index: usize, reader: Reader, mut rng: SeededRng) {
        sleep(reader.starts_after).await;
        let way = Latency::fixed(2 + index as u64);
        loop {
            self.feed.wait_synced().await;
            let max_session =
                if self.settling.load(Ordering::Relaxed) { NO_LIMIT } else { rng.duration_up_to(reader.max_session) };
            match reader.mode {
                WatchMode::Shared => {
                    let (feed, log) = (self.feed.clone(), self.hub_log.clone());
                    self.session(index, reader, &feed, log, max_session, &mut rng).await;
                }
                WatchMode::Dedicated => {
                    let (client, log) = self.cluster.client(way);
                    let (hub, config) =
                        (self.feed.clone(), dedicated::Config { max_connections: 1, ..dedicated::Config::default() });
                    let watchers = dedicated::DedicatedWatchers::new(
                        &client,
                        NAMESPACE,
                        hub,
                        config,
                        dedicated::Metrics::default(),
                    );
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
        let lens = feed.projection_cache(Projection::everything(EventFormat::Boilerhouse), Framing::WEBSOCKET);
        let from = if reader.initial_events {
            StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() }
        } else {
            StartAt::Live
        };
        let mut subscription = feed.subscribe(lens, from).unwrap();
        let responses = log.lock().unwrap().responses.each_ref().map(Vec::len);
        let start = if reader.initial_events { Start::Burst(responses) } else { Start::Live(responses) };
        let record =
            Record { mode: reader.mode, responses: Default::default(), start, received: Vec::new(), end: End::Open };
        let session = Arc::new(Mutex::new(Session { record, log, feed: feed.clone() }));
        self.sessions.lock().unwrap().entry(index).or_default().push(session.clone());
        let reading = async {
            loop {
                match subscription.read(reader.batch_bytes) {
                    ReadResult::Batch(frames) => {
                        session.lock().unwrap().record.received.extend(frames.iter().flat_map(messages));
                        if !self.settling.load(Ordering::Relaxed) && !reader.max_pause.is_zero() {
                            sleep(rng.duration_up_to(reader.max_pause)).await;
                        }
                    }
                    ReadResult::Idle => subscription.readable().await,
                    ReadResult::End(close) => return End::Closed(close),
                }
            }
        };
        let end = timeout(max_session, reading).await.unwrap_or(End::Left);
        let mut session = session.lock().unwrap();
        session.record = Record { end, ..session.record() };
        let engines = [&session.log, &self.hub_log];
        let reason = engines.iter().any(|log| log.lock().unwrap().is_failing_for(UPSTREAM_LIMIT));
        if end == End::Closed(CloseReason::UpstreamUnavailable) && !reason {
            let (mode, logs) = (reader.mode, engines.map(|log| log.lock().unwrap().faults));
            let at = Instant::now();
            self.wrong.lock().unwrap().push(format!("{mode:?}: sent away at {at:?} without a reason: {logs:?}"));
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
    /// As it is now; what its engine hears after its end is no longer its business.
    fn record(&self) -> Record {
        match self.record.end {
            End::Open => Record { responses: self.log.lock().unwrap().responses.clone(), ..self.record.clone() },
            End::Left | End::Closed(_) => self.record.clone(),
        }
    }
}

/// The messages in frames of a server: final, unmasked, text (RFC 6455 section 5.2).
pub(super) fn messages(frames: &Bytes) -> Vec<WsEvent> {
    let mut rest = &frames[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        assert_eq!(rest[0], 0x81, "a final text frame");
        let (length, head) = match rest[1] {
            126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
            127 => panic!("no event is longer than 64 KiB"),
            length => (usize::from(length), 2),
        };
        messages.push(serde_json::from_slice(&rest[head..head + length]).unwrap());
        rest = &rest[head + length..];
    }
    messages
}
