//! A cluster, and two replicas that watch it and can be restarted.
//!
//! At any one moment one thing reaches one end (see [`Beat`]): so nobody's order depends on who is woken first, and a seed
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

use super::super::cluster::{Cluster, Fork};
use super::super::pace::{Beat, Pace};
use super::super::truth::NAMESPACE;
use super::super::witness::Log;
use super::chronicle::{Chronicle, Turn};
use super::journey::{Journey, Setup};
use super::record::Entry;
use crate::support::dice::Dice;

/// Everybody knows by then that an older copy was restored.
const KNOWN: Duration = Duration::from_secs(60);

thread_local! {
    /// A history has its thread to itself.
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Milliseconds since the history's beginning.
pub(super) fn clock() -> u64 {
    let begun = BEGUN.get().expect("a history has begun");
    u64::try_from(begun.elapsed().as_millis()).unwrap()
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

type Lives = Mutex<Vec<(Setup, Arc<Mutex<Log>>)>>;

#[derive(Debug)]
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) begun: Instant,
    config: feed::Config,
    replicas: [Mutex<Replica>; 2],
    /// Every life of every replica.
    lives: Lives,
    pub(super) records: Mutex<Vec<Vec<Entry>>>,
    /// From now on nobody is slow, and nobody leaves.
    pub(super) rest: AtomicBool,
}

/// A log that forgets soon holds so many steps.
pub(super) const SMALL_LOG: usize = 24;

impl World {
    pub(super) fn new(seed: u64, dice: &mut Dice, fill: impl FnOnce(&mut Store)) -> Arc<World> {
        let begun = Instant::now();
        BEGUN.set(Some(begun));
        let cluster = Cluster::on_beat(seed, begun, fill);
        cluster.write(|_| {});
        let items = *dice.pick(&[SMALL_LOG, 1 << 16, 1 << 16]);
        let log = Limits { items, ..Limits::default() };
        // Few objects make many parts, too.
        let part_bytes = *dice.pick(&[500, 256 << 10]);
        let config = feed::Config { log, part_bytes, clock, ..feed::Config::default() };
        let lives = Mutex::default();
        let replicas = [0_u64, 1].map(|which| Mutex::new(start(&cluster, &lives, begun, which, config, dice)));
        let world =
            World { cluster, begun, config, replicas, lives, records: Mutex::default(), rest: AtomicBool::new(false) };
        world.listen();
        Arc::new(world)
    }

    /// A bridge is killed, and another one comes in its place.
    pub(super) fn restart(&self, which: usize, dice: &mut Dice) {
        let mut replica = self.replicas[which].lock().unwrap();
        *replica = start(&self.cluster, &self.lives, self.begun, which as u64, self.config, dice);
        drop(replica);
        self.listen();
    }

    fn listen(&self) {
        let (lives, numbers) = (self.lives.lock().unwrap(), self.numbers());
        self.cluster.listens(numbers.iter().map(|number| lives[*number].1.clone()).collect());
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
        let live = |feed: &Feed| feed.is_ready() && feed.health().borrow().iter().all(|one| *one == feed::Health::Live);
        self.replicas.iter().all(|replica| live(&replica.lock().unwrap().feed))
    }

    /// Whether anything reaches a replica later than it happens.
    pub(super) fn lags(&self) -> bool {
        let lives = self.lives.lock().unwrap();
        self.numbers().iter().any(|number| lives[*number].0.lag_ms > 0)
    }

    pub(super) fn journeys(&self) -> Vec<Journey> {
        let lives = self.lives.lock().unwrap();
        lives.iter().map(|(setup, log)| Journey::of(&log.lock().unwrap(), *setup, self.begun)).collect()
    }

    pub(super) fn chronicle(&self) -> Chronicle {
        let ms = |at: Instant| u64::try_from(at.duration_since(self.begun).as_millis()).unwrap();
        let turns = self.cluster.forks().into_iter().map(|fork| Turn { shared: fork.at, at: ms(fork.when) });
        let written = self.cluster.written().into_iter().map(|(epoch, rv, at)| (epoch, rv, ms(at)));
        Chronicle::of(&self.cluster.truth(), turns.collect(), written.collect())
    }

    /// Whether all replicas know by now that an older copy was restored. Until then, whoever comes from one that knows to
    /// one that does not is told of what is lost: its cursor says nothing of it (the stated limit of G5).
    pub(super) fn is_settled(&self) -> bool {
        let forks = self.cluster.forks();
        forks.is_empty()
            || self.journeys_now().iter().all(|journey| {
                Resource::ALL
                    .into_iter()
                    .all(|kind| journey.place(kind, u64::MAX).is_some_and(|(epoch, _)| epoch == forks.len()))
            })
    }

    fn journeys_now(&self) -> Vec<Journey> {
        let (lives, numbers) = (self.lives.lock().unwrap(), self.numbers());
        let of = |number: usize| Journey::of(&lives[number].1.lock().unwrap(), lives[number].0, self.begun);
        numbers.map(of).into()
    }

    /// Whether a cursor may be of a lost history that has been grown past: the stated limit of G5.
    pub(super) fn is_beyond_telling(&self, cursor: &Cursor, got: u64) -> bool {
        let got = self.begun + Duration::from_millis(got);
        let newest = self.cluster.sim.store(|store| store.revision());
        // What is written within the time that it takes to find out.
        let soon = newest + 20;
        let may_be_lost = |fork: &Fork| got <= fork.when + KNOWN && cursor.rv.iter().any(|rv| *rv > fork.at);
        self.cluster.forks().iter().any(may_be_lost) && cursor.rv.iter().all(|rv| *rv <= soon)
    }
}

fn start(
    cluster: &Cluster,
    lives: &Lives,
    begun: Instant,
    which: u64,
    config: feed::Config,
    dice: &mut Dice,
) -> Replica {
    let lag = |dice: &mut Dice| {
        let most = *dice.pick(&[Duration::ZERO, Duration::ZERO, Duration::from_millis(400), Duration::from_secs(4)]);
        dice.up_to(most)
    };
    let lag = [lag(dice), lag(dice)];
    let beat = Beat { begun, phases: [1 + 2 * which, 2 + 2 * which], lag };
    let (client, heard) = cluster.client(Pace::beat(beat));
    let (writer, feed) = Feed::new(config);
    // Pauses without a jitter, on the beat.
    let watching = hub::Config { namespace: NAMESPACE.into(), random: |_| u64::MAX, ..hub::Config::default() };
    let run = hub::run(client, watching, writer, Arc::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { match run.await {} });
    let pools = feed.clone().announce_pools();
    tasks.spawn(async move { match pools.await {} });
    let lag_ms = lag.iter().map(|lag| u64::try_from(lag.as_millis()).unwrap()).max().unwrap();
    let setup = Setup { born: clock(), is_small: config.log.items == SMALL_LOG, lag_ms };
    let mut lives = lives.lock().unwrap();
    lives.push((setup, heard));
    Replica { feed, number: lives.len() - 1, alive: watch::Sender::default(), _tasks: tasks }
}
