//! A cluster, a hub and its readers, all in one process and on tokio's clock.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use boilerhouse_bridge::event::projection::{Format, Lens};
use boilerhouse_bridge::feed::{self, Feed, Framing, From, Read, Reason};
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::source::{dedicated, hub};
use boilerhouse_bridge::wire::Close;
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::cluster::Cluster;
use super::pace::Pace;
use super::truth::{NAMESPACE, Said};
use super::validator::{End, Engine, Record, Start};
use super::witness::Log;
use crate::support::dice::Dice;

/// Everything that one history is about.
#[derive(Debug)]
pub(super) struct World {
    cluster: Cluster,
    pub(super) feed: Feed,
    pub(super) hub_log: Arc<Mutex<Log>>,
    /// From now on nobody is slow, and nobody leaves.
    pub(super) rest: AtomicBool,
    /// By reader.
    sessions: Mutex<BTreeMap<usize, Vec<Arc<Mutex<Session>>>>>,
    /// What the readers found wrong themselves.
    pub(super) wrong: Mutex<Vec<String>>,
}

/// How long `/ws` stays open without an upstream (protocol.md section 2), less the second or two until a watch that broke is
/// seen to be refused.
const UPSTREAM_LIMIT: Duration = Duration::from_secs(58);

/// How long a client waits before it comes again, at most.
const RETURN: Duration = Duration::from_secs(40);

/// For a reader who does not leave: longer than any history takes.
pub(super) const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// A connection while it lasts.
#[derive(Debug)]
struct Session {
    record: Record,
    log: Arc<Mutex<Log>>,
    feed: Feed,
}

/// Who reads, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) engine: Engine,
    pub(super) burst: bool,
    /// When it comes.
    pub(super) comes: Duration,
    /// How long each of its connections lasts at most.
    pub(super) stays: Duration,
    /// How long it dawdles after each batch, at most.
    pub(super) dawdles: Duration,
    /// Bytes of a batch.
    pub(super) bite: usize,
}

/// Milliseconds of tokio's clock, so that logs age with simulated time.
fn clock() -> u64 {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let now = Instant::now().into_std();
    let since = now.saturating_duration_since(*START.get_or_init(std::time::Instant::now));
    u64::try_from(since.as_millis()).unwrap()
}

impl World {
    /// A cluster as `fill` makes it, and its hub, running in `tasks`.
    pub(super) fn new(seed: u64, log: Limits, tasks: &mut JoinSet<()>, fill: impl FnOnce(&mut Store)) -> Arc<World> {
        let cluster = Cluster::new(seed, fill);
        let (client, hub_log) = cluster.client(Pace::way(1));
        let (writer, feed) = Feed::new(feed::Config { log, clock, ..feed::Config::default() });
        let config = hub::Config {
            namespace: NAMESPACE.into(),
            // The same pauses in every run of a seed.
            random: |tries| u64::from(tries).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            ..hub::Config::default()
        };
        let run = hub::run(client, config, writer, Arc::default());
        tasks.spawn(async move { match run.await {} });
        Arc::new(World {
            cluster,
            feed,
            hub_log,
            rest: AtomicBool::new(false),
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
        let held =
            feeds.map(|feed| format!("{feed:?}{:?}", feed.lens(Lens::all(Format::Boilerhouse), Framing::WEBSOCKET)));
        held.map(|held| held.len()).sum()
    }

    /// One reader, who comes again whenever its connection has ended.
    pub(super) async fn read(self: Arc<World>, who: usize, reader: Reader, mut dice: Dice) {
        sleep(reader.comes).await;
        let way = Pace::way(2 + who as u64);
        loop {
            self.feed.ready().await;
            let stays = if self.rest.load(Ordering::Relaxed) { FOR_EVER } else { dice.up_to(reader.stays) };
            match reader.engine {
                Engine::Hub => {
                    let (feed, log) = (self.feed.clone(), self.hub_log.clone());
                    self.session(who, reader, &feed, log, stays, &mut dice).await;
                }
                Engine::Own => {
                    let (client, log) = self.cluster.client(way);
                    let (hub, config) =
                        (self.feed.clone(), dedicated::Config { connections: 1, ..dedicated::Config::default() });
                    let watchers =
                        dedicated::Watchers::new(&client, NAMESPACE, hub, config, dedicated::Metrics::default());
                    let (feed, source) = watchers.open().unwrap();
                    tokio::select! {
                        biased;
                        never = source => match never {},
                        () = async {
                            // As `/ws` does: the burst waits for both lists.
                            if timeout(Duration::from_secs(10), feed.ready()).await.is_ok() {
                                self.session(who, reader, &feed, log, stays, &mut dice).await;
                            }
                        } => {}
                    }
                }
            }
            sleep(dice.up_to(RETURN)).await;
        }
    }

    async fn session(
        &self,
        who: usize,
        reader: Reader,
        feed: &Feed,
        log: Arc<Mutex<Log>>,
        stays: Duration,
        dice: &mut Dice,
    ) {
        let lens = feed.lens(Lens::all(Format::Boilerhouse), Framing::WEBSOCKET);
        let from = if reader.burst { From::Snapshot(Reason::Connect, [0; 2]) } else { From::Now };
        let mut subscription = feed.subscribe(lens, from).unwrap();
        let heard = log.lock().unwrap().heard.each_ref().map(Vec::len);
        let start = if reader.burst { Start::Burst(heard) } else { Start::Now(heard) };
        let record =
            Record { engine: reader.engine, heard: Default::default(), start, told: Vec::new(), end: End::Open };
        let session = Arc::new(Mutex::new(Session { record, log, feed: feed.clone() }));
        self.sessions.lock().unwrap().entry(who).or_default().push(session.clone());
        let reading = async {
            loop {
                match subscription.read(reader.bite) {
                    Read::Batch(frames) => {
                        session.lock().unwrap().record.told.extend(frames.iter().flat_map(messages));
                        if !self.rest.load(Ordering::Relaxed) && !reader.dawdles.is_zero() {
                            sleep(dice.up_to(reader.dawdles)).await;
                        }
                    }
                    Read::Idle => subscription.changed().await,
                    Read::End(close) => return End::Closed(close),
                }
            }
        };
        let end = timeout(stays, reading).await.unwrap_or(End::Left);
        let mut session = session.lock().unwrap();
        session.record = Record { end, ..session.record() };
        let engines = [&session.log, &self.hub_log];
        let reason = engines.iter().any(|log| log.lock().unwrap().fails_since(UPSTREAM_LIMIT));
        if end == End::Closed(Close::UpstreamUnavailable) && !reason {
            let (engine, logs) = (reader.engine, engines.map(|log| log.lock().unwrap().troubles));
            let at = Instant::now();
            self.wrong.lock().unwrap().push(format!("{engine:?}: sent away at {at:?} without a reason: {logs:?}"));
        }
    }
}

impl Deref for World {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Session {
    /// As it is now; what its engine hears after its end is no longer its business.
    fn record(&self) -> Record {
        match self.record.end {
            End::Open => Record { heard: self.log.lock().unwrap().heard.clone(), ..self.record.clone() },
            End::Left | End::Closed(_) => self.record.clone(),
        }
    }
}

/// The messages in frames of a server: final, unmasked, text (RFC 6455 section 5.2).
pub(super) fn messages(frames: &Bytes) -> Vec<Said> {
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
