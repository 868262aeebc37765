//! A cluster, and two replicas that watch it and can be restarted.
//!
//! At any one moment one thing reaches one end (see [`TimeSlot`]): so nobody's order depends on who is woken first, and a seed
//! replays the same to the last line.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::{Cursor, Resource};
use boilerhouse_bridge::feed::{self, Feed};
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::source::hub;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::expected_history::{EpochSwitch, ExpectedHistory};
use super::record::Entry;
use super::replica_timeline::{ReplicaTimeline, Setup};
use crate::seeded_ws::api_recorder::RecorderLog;
use crate::seeded_ws::cluster::{Cluster, HistoryReset};
use crate::seeded_ws::history::NAMESPACE;
use crate::seeded_ws::latency::{Latency, TimeSlot};
use crate::support::rng::SeededRng;

/// Everybody knows by then that an older copy was restored.
const RESET_DETECTED_WITHIN: Duration = Duration::from_secs(60);

thread_local! {
    /// A history has its thread to itself.
    static STARTED_AT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Milliseconds since the history's beginning.
pub(super) fn clock() -> u64 {
    let started = STARTED_AT.get().expect("a history has begun");
    u64::try_from(started.elapsed().as_millis()).unwrap()
}

/// One life of a bridge.
#[derive(Debug)]
struct Replica {
    feed: Feed,
    number: usize,
    /// Open for as long as it lives.
    alive: watch::Sender<()>,
    _tasks: JoinSet<()>,
}

type Incarnations = Mutex<Vec<(Setup, Arc<Mutex<RecorderLog>>)>>;

#[derive(Debug)]
pub(super) struct SimulatedDeployment {
    pub(super) cluster: Cluster,
    pub(super) started: Instant,
    config: feed::Config,
    replicas: [Mutex<Replica>; 2],
    /// Every life of every replica.
    incarnations: Incarnations,
    pub(super) records: Mutex<Vec<Vec<Entry>>>,
    /// From now on nobody is slow, and nobody leaves.
    pub(super) settling: AtomicBool,
}

/// A log that forgets soon holds so many steps.
pub(super) const SMALL_LOG: usize = 24;

impl SimulatedDeployment {
    pub(super) fn new(seed: u64, rng: &mut SeededRng, fill: impl FnOnce(&mut Store)) -> Arc<SimulatedDeployment> {
        let started = Instant::now();
        STARTED_AT.set(Some(started));
        let cluster = Cluster::on_time_slots(seed, started, fill);
        cluster.write(|_| {});
        let items = *rng.choose(&[SMALL_LOG, 1 << 16, 1 << 16]);
        let log = Limits { items, ..Limits::default() };
        // Few objects make many parts, too.
        let part_bytes = *rng.choose(&[500, 256 << 10]);
        let config =
            feed::Config { log, initial_state_part_bytes: part_bytes, wall_clock_ms: clock, ..feed::Config::default() };
        let incarnations = Mutex::default();
        let replicas = [0_u64, 1].map(|which| Mutex::new(start(&cluster, &incarnations, started, which, config, rng)));
        let deployment = SimulatedDeployment {
            cluster,
            started,
            config,
            replicas,
            incarnations,
            records: Mutex::default(),
            settling: AtomicBool::new(false),
        };
        deployment.listen();
        Arc::new(deployment)
    }

    /// A bridge is killed, and another one comes in its place.
    pub(super) fn restart(&self, which: usize, rng: &mut SeededRng) {
        let mut replica = self.replicas[which].lock().unwrap();
        *replica = start(&self.cluster, &self.incarnations, self.started, which as u64, self.config, rng);
        drop(replica);
        self.listen();
    }

    fn listen(&self) {
        let (incarnations, numbers) = (self.incarnations.lock().unwrap(), self.numbers());
        self.cluster.wait_for(numbers.iter().map(|number| incarnations[*number].1.clone()).collect());
    }

    /// A replica that lives: its feed, its number, and what is open for as long as it lives.
    pub(super) fn replica(&self, which: usize) -> (Feed, usize, watch::Receiver<()>) {
        let replica = self.replicas[which].lock().unwrap();
        (replica.feed.clone(), replica.number, replica.alive.subscribe())
    }

    /// The replicas that live.
    pub(super) fn numbers(&self) -> [usize; 2] {
        self.replicas.each_ref().map(|replica| replica.lock().unwrap().number)
    }

    pub(super) fn is_live(&self) -> bool {
        let live =
            |feed: &Feed| feed.is_synced() && feed.health().borrow().iter().all(|one| *one == feed::Health::Live);
        self.replicas.iter().all(|replica| live(&replica.lock().unwrap().feed))
    }

    /// Whether anything reaches a replica later than it happens.
    pub(super) fn lags(&self) -> bool {
        let incarnations = self.incarnations.lock().unwrap();
        self.numbers().iter().any(|number| incarnations[*number].0.lag_ms > 0)
    }

    pub(super) fn timelines(&self) -> Vec<ReplicaTimeline> {
        let incarnations = self.incarnations.lock().unwrap();
        incarnations
            .iter()
            .map(|(setup, log)| ReplicaTimeline::of(&log.lock().unwrap(), *setup, self.started))
            .collect()
    }

    pub(super) fn history(&self) -> ExpectedHistory {
        let ms = |at: Instant| u64::try_from(at.duration_since(self.started).as_millis()).unwrap();
        let switches =
            self.cluster.resets().into_iter().map(|reset| EpochSwitch { shared: reset.at, at: ms(reset.when) });
        let written = self.cluster.written().into_iter().map(|(epoch, rv, at)| (epoch, rv, ms(at)));
        ExpectedHistory::of(&self.cluster.history(), switches.collect(), written.collect())
    }

    /// Whether all replicas know by now that an older copy was restored. Until then, whoever comes from one that knows to
    /// one that does not is told of what is lost: its cursor says nothing of it (the stated limit of G5).
    pub(super) fn is_settled(&self) -> bool {
        let resets = self.cluster.resets();
        resets.is_empty()
            || self.current_timelines().iter().all(|timeline| {
                Resource::ALL
                    .into_iter()
                    .all(|kind| timeline.position(kind, u64::MAX).is_some_and(|(epoch, _)| epoch == resets.len()))
            })
    }

    fn current_timelines(&self) -> Vec<ReplicaTimeline> {
        let (incarnations, numbers) = (self.incarnations.lock().unwrap(), self.numbers());
        let of = |number: usize| {
            ReplicaTimeline::of(&incarnations[number].1.lock().unwrap(), incarnations[number].0, self.started)
        };
        numbers.map(of).into()
    }

    /// Whether a cursor may be of a lost history that has been grown past: the stated limit of G5.
    pub(super) fn may_be_of_lost_history(&self, cursor: &Cursor, got: u64) -> bool {
        let got = self.started + Duration::from_millis(got);
        let newest = self.cluster.sim.store(|store| store.revision());
        // What is written within the time that it takes to find out.
        let soon = newest + 20;
        let may_be_lost = |reset: &HistoryReset| {
            got <= reset.when + RESET_DETECTED_WITHIN && cursor.versions.iter().any(|rv| *rv > reset.at)
        };
        self.cluster.resets().iter().any(may_be_lost) && cursor.versions.iter().all(|rv| *rv <= soon)
    }
}

fn start(
    cluster: &Cluster,
    incarnations: &Incarnations,
    started: Instant,
    which: u64,
    config: feed::Config,
    rng: &mut SeededRng,
) -> Replica {
    let lag = |rng: &mut SeededRng| {
        let most = *rng.choose(&[Duration::ZERO, Duration::ZERO, Duration::from_millis(400), Duration::from_secs(4)]);
        rng.duration_up_to(most)
    };
    let lag = [lag(rng), lag(rng)];
    let slot = TimeSlot { started, phases: [1 + 2 * which, 2 + 2 * which], lag };
    let (client, responses) = cluster.client(Latency::slot(slot));
    let (writer, feed) = Feed::new(config);
    // Pauses without a jitter, on the beat.
    let watching = hub::Config { namespace: NAMESPACE.into(), jitter: |_| u64::MAX, ..hub::Config::default() };
    let run = hub::run(client, watching, writer, Arc::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { match run.await {} });
    let pools = feed.clone().publish_pool_depths();
    tasks.spawn(async move { match pools.await {} });
    let lag_ms = lag.iter().map(|lag| u64::try_from(lag.as_millis()).unwrap()).max().unwrap();
    let setup = Setup { born: clock(), is_small: config.log.items == SMALL_LOG, lag_ms };
    let mut incarnations = incarnations.lock().unwrap();
    incarnations.push((setup, responses));
    Replica { feed, number: incarnations.len() - 1, alive: watch::Sender::default(), _tasks: tasks }
}
