//! A cluster, two replicas that watch it and can be restarted, and clients that read, leave and come back.
//!
//! At any one moment one thing reaches one end (see [`Beat`]): so nobody's order depends on who is woken first, and a seed
//! replays the same to the last line.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::{Cursor, Kind};
use boilerhouse_bridge::feed::{self, Carrier, Feed, Framing, From, Read, Reason, Subscription};
use boilerhouse_bridge::log::Limits;
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::source::hub;
use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::cluster::{Cluster, Fork};
use super::super::pace::{Beat, Pace};
use super::super::truth::NAMESPACE;
use super::super::witness::Log;
use super::chronicle::{Chronicle, Turn};
use super::journey::{Journey, Setup};
use super::looks::LOOKS;
use super::record::{Entry, Start, Told};
use crate::support::dice::Dice;

/// How long a client waits before it comes again, at most; now and then it is the longer.
const RETURN: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(150)];
/// How often an open stream has a heartbeat (protocol.md section 3).
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits for a replica that is not ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everybody knows by then that an older copy was restored.
const KNOWN: Duration = Duration::from_secs(60);

thread_local! {
    /// A history has its thread to itself.
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Milliseconds since the history's beginning.
fn clock() -> u64 {
    let begun = BEGUN.get().expect("a history has begun");
    u64::try_from(begun.elapsed().as_millis()).unwrap()
}

/// Who reads, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habits {
    /// What it asks for; the second now and then.
    pub(super) looks: [usize; 2],
    /// Whether it wants the state first.
    pub(super) snapshot: bool,
    pub(super) comes: Duration,
    /// How long each of its connections lasts at most.
    pub(super) stays: Duration,
    /// How long it dawdles after each batch, at most.
    pub(super) dawdles: Duration,
    /// Bytes of a batch.
    pub(super) bite: usize,
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
    begun: Instant,
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
    fn is_settled(&self) -> bool {
        let forks = self.cluster.forks();
        forks.is_empty()
            || self.journeys_now().iter().all(|journey| {
                Kind::ALL
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
    fn is_beyond_telling(&self, cursor: &Cursor, got: u64) -> bool {
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

/// The last id of a client: what it asked for when it got it, and when.
#[derive(Clone, Debug)]
struct Last {
    id: String,
    looks: usize,
    at: u64,
}

/// A client while it lives.
pub(super) struct Client {
    world: Arc<World>,
    who: usize,
    habits: Habits,
    dice: Dice,
    last: Option<Last>,
}

impl Client {
    pub(super) fn new(world: &Arc<World>, habits: Habits, dice: Dice) -> Client {
        let mut records = world.records.lock().unwrap();
        records.push(Vec::new());
        Client { world: world.clone(), who: records.len() - 1, habits, dice, last: None }
    }

    pub(super) async fn run(mut self) {
        self.nap(self.habits.comes).await;
        loop {
            self.visit().await;
            let most = RETURN[usize::from(self.dice.roll(8) == 0)];
            let away = self.dice.up_to(most);
            self.nap(away).await;
        }
    }

    fn after(&self, time: Duration) -> Instant {
        // The replicas' phases are 1 to 4, the script's is 0.
        Beat::next(self.world.begun, time, 10 + 5 * self.who as u64)
    }

    async fn nap(&self, time: Duration) {
        sleep_until(self.after(time)).await;
    }

    fn note(&self, entry: Entry) {
        self.world.records.lock().unwrap()[self.who].push(entry);
    }

    fn rests(&self) -> bool {
        self.world.rest.load(Ordering::Relaxed)
    }

    /// One connection.
    async fn visit(&mut self) {
        let which = self.dice.roll(2) as usize;
        let (feed, number, alive) = {
            let replica = self.world.replicas[which].lock().unwrap();
            (replica.feed.clone(), replica.number, replica.alive.subscribe())
        };
        if timeout_at(self.after(PATIENCE), feed.ready()).await.is_err() {
            return;
        }
        // Off the moment at which it became ready.
        self.nap(Duration::ZERO).await;
        let Some((start, from)) = self.choose() else { return };
        let looks = self.looks();
        let Ok(subscription) =
            feed.subscribe(feed.lens(LOOKS[looks].lens(), Framing { carrier: Carrier::Lines, matrix: false }), from)
        else {
            return;
        };
        if alive.has_changed().is_err() {
            return;
        }
        self.note(Entry::Connect { at: clock(), replica: number, looks, start });
        self.read(subscription, looks, alive).await;
        self.note(Entry::Cut { at: clock() });
    }

    /// What it asks for now: rolled anew only where a client comes back.
    fn looks(&mut self) -> usize {
        let other = !self.rests() && self.last.is_some() && self.dice.roll(12) == 0;
        self.habits.looks[usize::from(other)]
    }

    /// How it connects; not at all while that could not be told right.
    fn choose(&mut self) -> Option<(Start, From)> {
        if let Some(last) = &self.last {
            let cursor = Cursor::decode(&last.id).unwrap();
            if self.world.is_beyond_telling(&cursor, last.at) || (!self.rests() && self.dice.roll(15) == 0) {
                self.last = None;
            }
        }
        let Some(last) = self.last.clone() else {
            let first = if self.habits.snapshot { Start::Snapshot } else { Start::Now };
            let from = if self.habits.snapshot { From::Snapshot(Reason::Connect, [0; 2]) } else { From::Now };
            return Some((first, from));
        };
        if !self.world.is_settled() {
            return None;
        }
        let mut cursor = Cursor::decode(&last.id).unwrap();
        let is_forged = !self.rests() && self.dice.roll(25) == 0;
        if is_forged {
            cursor.home ^= 1;
        }
        Some((Start::Resume { id: last.id, looks: last.looks, is_forged }, From::Resume(cursor)))
    }

    async fn read(&mut self, mut subscription: Subscription, looks: usize, mut alive: watch::Receiver<()>) {
        let stays = self.dice.up_to(self.habits.stays);
        let ends = self.after(stays);
        let mut beats = self.after(HEARTBEAT);
        loop {
            let leaves = Instant::now() >= ends && !self.rests();
            if leaves || alive.has_changed().is_err() {
                break;
            }
            let is_due = Instant::now() >= beats;
            if is_due {
                beats = self.after(HEARTBEAT);
            }
            match subscription.read(self.habits.bite) {
                Read::Batch(frames) => {
                    self.take(frames.concat().split_inclusive(|byte| *byte == b'\n'), looks, false);
                    if is_due {
                        // Of whom something is on its way, too.
                        self.beat(&mut subscription, looks, false);
                    }
                    if !self.habits.dawdles.is_zero() && !self.rests() {
                        let dawdles = self.dice.up_to(self.habits.dawdles);
                        tokio::select! {
                            biased;
                            _ = alive.changed() => {}
                            () = self.nap(dawdles) => {}
                        }
                    }
                }
                Read::Idle => {
                    if is_due {
                        self.beat(&mut subscription, looks, true);
                    }
                    let wakes = if self.rests() { beats } else { beats.min(ends) };
                    tokio::select! {
                        biased;
                        _ = alive.changed() => {}
                        () = sleep_until(wakes) => {}
                        () = subscription.changed() => {
                            // At a moment of its own, so that all has come that belongs to one: in how many changes
                            // depends on who was woken first.
                            self.nap(Duration::ZERO).await;
                            drop(subscription.changed().now_or_never());
                        }
                    }
                }
                Read::End(close) => panic!("the full stream does not end: {close:?}"),
            }
        }
        // What was on its way when the connection broke.
        if let Read::Batch(frames) = subscription.read(self.habits.bite) {
            let all = frames.concat();
            let lines: Vec<&[u8]> = all.split_inclusive(|byte| *byte == b'\n').collect();
            let arrived = self.dice.roll(lines.len() as u64 + 1) as usize;
            self.take(lines.into_iter().take(arrived), looks, false);
        }
    }

    fn beat(&mut self, subscription: &mut Subscription, looks: usize, idle: bool) {
        if let Some(heartbeat) = subscription.heartbeat() {
            self.take([&heartbeat[..]].into_iter(), looks, idle);
        }
    }

    fn take<'a>(&mut self, lines: impl Iterator<Item = &'a [u8]>, looks: usize, idle: bool) {
        for line in lines {
            let told = Told::parse(line, clock(), idle);
            if let Some(id) = &told.id {
                self.last = Some(Last { id: id.clone(), looks, at: told.at });
            }
            self.note(Entry::Told(told));
        }
    }
}
