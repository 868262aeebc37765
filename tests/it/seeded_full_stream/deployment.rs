//! A cluster, and two replicas that watch it and can be restarted.
//!
//! In each time slot only one thing reaches one task (see [`TimeSlot`]). So the order does not depend on which task
//! wakes first, and a seed repeats the same history to the last line.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::{Cursor, PerResource, Resource};
use boilerhouse_bridge::feed::{self, Feed};
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::source::{hub, retry::Backoff};
use boilerhouse_bridge::test_support::SeededRng;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::oracle::full_stream::{Entry, ReplicaKnowledge, ReplicaTimeline, Setup};
use crate::oracle::history::{EpochSwitch, History, NAMESPACE};
use crate::seeded_ws::api_recorder::RecorderLog;
use crate::seeded_ws::cluster::{Cluster, HistoryReset};
use crate::seeded_ws::latency::{Latency, TimeSlot};

/// Every replica detects a restore within this time.
const RESET_DETECTED_WITHIN: Duration = Duration::from_secs(60);

thread_local! {
    /// Each history has a thread of its own.
    static STARTED_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Milliseconds since the start of the history.
pub(super) fn clock() -> u64 {
    let started = STARTED_AT.get().expect("no history has started");
    u64::try_from(started.elapsed().as_millis()).unwrap()
}

/// One run of a replica, from its start to its restart.
#[derive(Debug)]
struct Replica {
    feed: Feed,
    number: usize,
    /// Dropped with the replica.
    alive: watch::Sender<()>,
    _tasks: JoinSet<()>,
}

/// The configuration and the recording of every run of every replica.
type Runs = Mutex<Vec<(Setup, Arc<Mutex<RecorderLog>>)>>;

/// The simulated deployment of one history.
#[derive(Debug)]
pub(super) struct SimulatedDeployment {
    pub(super) cluster: Cluster,
    pub(super) started: Instant,
    config: feed::Config,
    replicas: [Mutex<Replica>; 2],
    runs: Runs,
    /// The records of all clients.
    pub(super) records: Mutex<Vec<Vec<Entry>>>,
    /// Once it is set, clients read at once and stay connected.
    pub(super) settling: AtomicBool,
}

/// The entries of a small log.
pub(super) const SMALL_LOG: usize = 24;

impl SimulatedDeployment {
    pub(super) fn new(seed: u64, rng: &mut SeededRng, fill: impl FnOnce(&mut Store)) -> Arc<SimulatedDeployment> {
        let started = Instant::now();
        STARTED_AT.set(Some(started));
        let cluster = Cluster::with_time_slots(seed, started, fill);
        cluster.write(|_| {});
        let items = *rng.choose(&[SMALL_LOG, 1 << 16, 1 << 16]);
        let log = Limits { items, ..Limits::default() };
        // With small parts, few objects make several parts.
        let part_bytes = *rng.choose(&[500, 256 << 10]);
        let config =
            feed::Config { log, initial_state_part_bytes: part_bytes, wall_clock_ms: clock, ..feed::Config::default() };
        let runs = Mutex::default();
        let replicas = [0_u64, 1].map(|which| Mutex::new(start(&cluster, &runs, started, which, config, rng)));
        let deployment = SimulatedDeployment {
            cluster,
            started,
            config,
            replicas,
            runs,
            records: Mutex::default(),
            settling: AtomicBool::new(false),
        };
        deployment.set_watchers();
        Arc::new(deployment)
    }

    /// Kills a replica and starts another one in its place.
    pub(super) fn restart(&self, which: usize, rng: &mut SeededRng) {
        let mut replica = self.replicas[which].lock().unwrap();
        *replica = start(&self.cluster, &self.runs, self.started, which as u64, self.config, rng);
        drop(replica);
        self.set_watchers();
    }

    fn set_watchers(&self) {
        let (runs, numbers) = (self.runs.lock().unwrap(), self.numbers());
        self.cluster.set_watchers(numbers.iter().map(|number| runs[*number].1.clone()).collect());
    }

    /// A running replica: its feed, its number, and a receiver that fails once the replica is killed.
    pub(super) fn replica(&self, which: usize) -> (Feed, usize, watch::Receiver<()>) {
        let replica = self.replicas[which].lock().unwrap();
        (replica.feed.clone(), replica.number, replica.alive.subscribe())
    }

    /// The numbers of the running replicas.
    fn numbers(&self) -> [usize; 2] {
        self.replicas.each_ref().map(|replica| replica.lock().unwrap().number)
    }

    pub(super) fn is_live(&self) -> bool {
        let live =
            |feed: &Feed| feed.is_synced() && feed.health().borrow().iter().all(|one| *one == feed::Health::Live);
        self.replicas.iter().all(|replica| live(&replica.lock().unwrap().feed))
    }

    /// Whether watch lines reach a replica late.
    pub(super) fn lags(&self) -> bool {
        let runs = self.runs.lock().unwrap();
        self.numbers().iter().any(|number| runs[*number].0.lag_ms > 0)
    }

    /// What is known about each replica, by its number.
    pub(super) fn replicas(&self) -> Vec<ReplicaKnowledge> {
        let count = self.runs.lock().unwrap().len();
        (0..count).map(|number| ReplicaKnowledge::Recorded(Box::new(self.timeline(number)))).collect()
    }

    fn timeline(&self, number: usize) -> ReplicaTimeline {
        let (setup, log) = &self.runs.lock().unwrap()[number];
        ReplicaTimeline::of(&log.lock().unwrap().recording, *setup, self.started)
    }

    pub(super) fn history(&self) -> History {
        let ms = |at: Instant| u64::try_from(at.duration_since(self.started).as_millis()).unwrap();
        let resets = self.cluster.resets().into_iter();
        let switches = resets.map(|reset| EpochSwitch { shared: reset.at, at: ms(reset.when) }).collect();
        let written = self.cluster.written().into_iter();
        let written = written.map(|(epoch, version, at)| (epoch, version, ms(at))).collect();
        self.cluster.history().with_times(switches, written)
    }

    /// Whether all running replicas have detected the last restore. Until then, a client that comes from a replica that
    /// has to one that has not may receive lost versions, because its cursor does not name the epoch
    /// (docs/guarantees.md#stated-limits).
    pub(super) fn is_reset_detected(&self) -> bool {
        let resets = self.cluster.resets().len();
        let is_detected = |number: usize| {
            let timeline = self.timeline(number);
            let position = |resource| timeline.position(resource, u64::MAX);
            Resource::ALL.into_iter().all(|resource| position(resource).is_some_and(|(epoch, _)| epoch == resets))
        };
        resets == 0 || self.numbers().into_iter().all(is_detected)
    }

    /// Whether a cursor may be of a lost epoch whose versions exist in the new epoch as well
    /// (docs/guarantees.md#stated-limits).
    pub(super) fn may_be_of_lost_history(&self, cursor: &Cursor, received_at: u64) -> bool {
        let received_at = self.started + Duration::from_millis(received_at);
        let newest = self.cluster.sim.store(|store| store.revision());
        // With a margin for the versions that are written until the restore is detected.
        let soon = newest + 20;
        let may_be_lost = |reset: &HistoryReset| {
            received_at <= reset.when + RESET_DETECTED_WITHIN
                && cursor.versions.iter().any(|version| *version > reset.at)
        };
        self.cluster.resets().iter().any(may_be_lost) && cursor.versions.iter().all(|version| *version <= soon)
    }
}

fn start(
    cluster: &Cluster,
    runs: &Runs,
    started: Instant,
    which: u64,
    config: feed::Config,
    rng: &mut SeededRng,
) -> Replica {
    let lag = |rng: &mut SeededRng| {
        let max = *rng.choose(&[Duration::ZERO, Duration::ZERO, Duration::from_millis(400), Duration::from_secs(4)]);
        rng.duration_up_to(max)
    };
    let lag = PerResource::from_fn(|_| lag(rng));
    // Two of three are longer than the silence after which the hub does not wait for more.
    let backfill_lag = PerResource::from_fn(|_| *rng.choose(&[0, 100, 300])).map(Duration::from_millis);
    let phases = PerResource::new(1 + 2 * which, 2 + 2 * which);
    let slot = TimeSlot { started, phases, lag, backfill_lag };
    let (client, log) = cluster.client(Latency::slot(slot));
    let (writer, feed) = Feed::new(config);
    // Delays without jitter end in a time slot.
    let backoff = Backoff { jitter: |_| u64::MAX, ..Backoff::default() };
    let config_of_hub = hub::Config { namespace: NAMESPACE.into(), backoff, ..hub::Config::default() };
    let run = hub::run(client, config_of_hub, writer, Arc::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { match run.await {} });
    let pools = feed.clone().publish_pool_depths();
    tasks.spawn(async move { match pools.await {} });
    let lag_ms = lag.iter().map(|lag| u64::try_from(lag.as_millis()).unwrap()).max().unwrap();
    let setup = Setup { started_at: clock(), has_small_log: config.log.items == SMALL_LOG, lag_ms };
    let mut runs = runs.lock().unwrap();
    runs.push((setup, log));
    Replica { feed, number: runs.len() - 1, alive: watch::Sender::default(), _tasks: tasks }
}
