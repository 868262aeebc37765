//! A client of a history: reads, dawdles, leaves and comes back, to whatever replica, and writes down what it is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use boilerhouse_bridge::event::Cursor;
use boilerhouse_bridge::feed::{Audience, Carrier, Feed, Framing, From, Read, Reason, Shown, Subscription};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::pace::Beat;
use super::looks::LOOKS;
use super::record::{Entry, Start, Told};
use super::world::{World, clock};
use crate::support::dice::Dice;

/// How long a client waits before it comes again, at most; now and then it is the longer.
const RETURN: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(150)];
/// How often an open stream has a heartbeat (protocol.md section 3).
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits for a replica that is not ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes that all of an audience are shown at once, at most, as in the bridge.
const SHOWN: usize = 64 << 10;

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
    /// Whether it is told what its audience is shown, as streams are that have read everything.
    pub(super) sits: bool,
}

/// A place in an audience, with a writer of its own (the bridge has one a core, for many).
struct Seat {
    audience: Audience,
    changes: watch::Receiver<u64>,
    /// How far the audience has been looked at, and how far it has been told.
    seen: u64,
    told: u64,
}

/// What somebody who sits hears of.
enum News {
    /// Nothing that concerns it.
    None,
    /// What all of its audience are shown.
    Shown(Bytes),
    /// Something that it must read for itself.
    Own,
}

impl Seat {
    fn of(subscription: &mut Subscription, feed: &Feed) -> Option<Seat> {
        let changes = feed.changes();
        let audience = subscription.audience()?;
        let end = audience.end();
        Some(Seat { audience, changes, seen: end, told: end })
    }

    fn news(&mut self, subscription: &mut Subscription) -> News {
        let (seen, news) = self.audience.news(self.seen);
        self.seen = seen;
        if !news {
            return News::None;
        }
        let shown = self.audience.shown(self.told, SHOWN);
        self.told = shown.as_ref().map_or(seen, Shown::end);
        self.seen = self.told;
        shown.filter(|shown| subscription.take(shown)).map_or(News::Own, |shown| News::Shown(shown.bytes))
    }
}

/// The last id of a client: what it asked for when it got it, and since when that stands.
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
    /// When the first part came of a `state.initial` that is still coming.
    pictured: Option<u64>,
}

impl Client {
    pub(super) fn new(world: &Arc<World>, habits: Habits, dice: Dice) -> Client {
        let mut records = world.records.lock().unwrap();
        records.push(Vec::new());
        Client { world: world.clone(), who: records.len() - 1, habits, dice, last: None, pictured: None }
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
        let (feed, number, alive) = self.world.replica(which);
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
        self.read(subscription, looks, &feed, alive).await;
        self.pictured = None;
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

    async fn read(
        &mut self,
        mut subscription: Subscription,
        looks: usize,
        feed: &Feed,
        mut alive: watch::Receiver<()>,
    ) {
        let stays = self.dice.up_to(self.habits.stays);
        let ends = self.after(stays);
        let mut beats = self.after(HEARTBEAT);
        let mut seat = None;
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
                    self.take(&frames.concat(), looks, false);
                    if is_due {
                        // Of whom something is on its way, too.
                        self.beat(&mut subscription, looks, false);
                    }
                    self.dawdle(&mut alive).await;
                }
                Read::Idle => {
                    if is_due {
                        self.beat(&mut subscription, looks, true);
                    }
                    if self.habits.sits && seat.is_none() {
                        seat = Seat::of(&mut subscription, feed);
                        if seat.is_some() {
                            // Whoever sits down reads once more.
                            continue;
                        }
                    }
                    let wakes = if self.rests() { beats } else { beats.min(ends) };
                    self.wait(&mut subscription, &mut seat, looks, wakes, &mut alive).await;
                }
                Read::End(close) => panic!("the full stream does not end: {close:?}"),
            }
        }
        // What was on its way when the connection broke.
        if let Read::Batch(frames) = subscription.read(self.habits.bite) {
            let all = frames.concat();
            let lines: Vec<&[u8]> = all.split_inclusive(|byte| *byte == b'\n').collect();
            let arrived = self.dice.roll(lines.len() as u64 + 1) as usize;
            self.take(&lines[..arrived].concat(), looks, false);
        }
    }

    /// Until there may be something to read, or its time has come; what it is told meanwhile where it sits it takes.
    async fn wait(
        &mut self,
        subscription: &mut Subscription,
        seat: &mut Option<Seat>,
        looks: usize,
        wakes: Instant,
        alive: &mut watch::Receiver<()>,
    ) {
        loop {
            let changed = async {
                match seat {
                    Some(seat) => drop(seat.changes.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = alive.changed() => return,
                () = sleep_until(wakes) => return,
                () = subscription.changed() => {
                    // At a moment of its own, so that all has come that belongs to one: in how many changes depends on
                    // who was woken first.
                    self.nap(Duration::ZERO).await;
                    let _ = subscription.changed().now_or_never();
                    return;
                }
                () = changed => {}
            }
            self.nap(Duration::ZERO).await;
            let Some(seat) = seat else { return };
            seat.changes.borrow_and_update();
            match seat.news(subscription) {
                News::None => {}
                News::Shown(lines) => {
                    self.take(&lines, looks, false);
                    self.dawdle(alive).await;
                }
                News::Own => return,
            }
            if alive.has_changed().is_err() {
                return;
            }
        }
    }

    async fn dawdle(&mut self, alive: &mut watch::Receiver<()>) {
        if self.habits.dawdles.is_zero() || self.rests() {
            return;
        }
        let dawdles = self.dice.up_to(self.habits.dawdles);
        tokio::select! {
            biased;
            _ = alive.changed() => {}
            () = self.nap(dawdles) => {}
        }
    }

    fn beat(&mut self, subscription: &mut Subscription, looks: usize, idle: bool) {
        if let Some(heartbeat) = subscription.heartbeat() {
            self.take(&heartbeat, looks, idle);
        }
    }

    fn take(&mut self, lines: &[u8], looks: usize, idle: bool) {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let told = Told::parse(line, clock(), idle);
            if told.name() == "state.initial" {
                self.pictured.get_or_insert(told.at);
            }
            if let Some(id) = &told.id {
                // The last part says what was when the first one came.
                let at = self.pictured.take().unwrap_or(told.at);
                self.last = Some(Last { id: id.clone(), looks, at });
            }
            self.note(Entry::Told(told));
        }
    }
}
