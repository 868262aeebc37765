//! A client of a history: reads, dawdles, leaves and comes back, to whatever replica, and writes down what it is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use boilerhouse_bridge::event::Cursor;
use boilerhouse_bridge::feed::{
    Feed, FrameFormat, Framing, Group, ReadResult, SharedBatch, SnapshotReason, StartAt, Subscription,
};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::deployment::{SimulatedDeployment, clock};
use super::projections::PROJECTIONS;
use super::record::{Entry, ReceivedEvent, Start};
use crate::seeded_ws::latency::TimeSlot;
use crate::support::rng::SeededRng;

/// How long a client waits before it comes again, at most; now and then it is the longer.
const MAX_RECONNECT_DELAY: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(150)];
/// How often an open stream has a heartbeat (docs/protocol.md#full-stream).
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits for a replica that is not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that all of an audience are shown at once, at most, as in the bridge.
const MAX_BATCH_BYTES: usize = 64 << 10;

/// Who reads, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientBehavior {
    /// What it asks for; the second now and then.
    pub(super) projection: [usize; 2],
    /// Whether it wants the state first.
    pub(super) snapshot: bool,
    pub(super) starts_after: Duration,
    /// How long each of its connections lasts at most.
    pub(super) max_session: Duration,
    /// How long it dawdles after each batch, at most.
    pub(super) max_pause: Duration,
    /// Bytes of a batch.
    pub(super) batch_bytes: usize,
    /// Whether it is told what its audience is shown, as streams are that have read everything.
    pub(super) joins_group: bool,
}

/// A place in an audience, with a writer of its own (the bridge has one a core, for many).
struct GroupMember {
    audience: Group,
    changes: watch::Receiver<u64>,
    /// How far the audience has been looked at, and how far it has been told.
    seen: u64,
    received: u64,
}

/// What somebody who sits hears of.
enum GroupUpdate {
    /// Nothing that concerns it.
    None,
    /// What all of its audience are shown.
    Shown(Bytes),
    /// Something that it must read for itself.
    MustRead,
}

impl GroupMember {
    fn of(subscription: &mut Subscription, feed: &Feed) -> Option<GroupMember> {
        let changes = feed.log_end();
        let audience = subscription.join_group()?;
        let end = audience.end();
        Some(GroupMember { audience, changes, seen: end, received: end })
    }

    fn news(&mut self, subscription: &mut Subscription) -> GroupUpdate {
        let (seen, news) = self.audience.has_relevant_since(self.seen);
        self.seen = seen;
        if !news {
            return GroupUpdate::None;
        }
        let shown = self.audience.batch_from(self.received, MAX_BATCH_BYTES);
        self.received = shown.as_ref().map_or(seen, SharedBatch::end);
        self.seen = self.received;
        shown
            .filter(|shown| subscription.accept_batch(shown))
            .map_or(GroupUpdate::MustRead, |shown| GroupUpdate::Shown(shown.bytes))
    }
}

/// The last id of a client: what it asked for when it got it, and since when that stands.
#[derive(Clone, Debug)]
struct Last {
    id: String,
    projection: usize,
    at: u64,
}

/// A client while it lives.
pub(super) struct Client {
    deployment: Arc<SimulatedDeployment>,
    index: usize,
    behavior: ClientBehavior,
    rng: SeededRng,
    last: Option<Last>,
    /// When the first part came of a `state.initial` that is still coming.
    initial_started_at: Option<u64>,
}

impl Client {
    pub(super) fn new(deployment: &Arc<SimulatedDeployment>, behavior: ClientBehavior, rng: SeededRng) -> Client {
        let mut records = deployment.records.lock().unwrap();
        records.push(Vec::new());
        Client {
            deployment: deployment.clone(),
            index: records.len() - 1,
            behavior,
            rng,
            last: None,
            initial_started_at: None,
        }
    }

    pub(super) async fn run(mut self) {
        self.sleep_slot(self.behavior.starts_after).await;
        loop {
            self.visit().await;
            let most = MAX_RECONNECT_DELAY[usize::from(self.rng.below(8) == 0)];
            let away = self.rng.duration_up_to(most);
            self.sleep_slot(away).await;
        }
    }

    fn after(&self, time: Duration) -> Instant {
        // The replicas' phases are 1 to 4, the script's is 0.
        TimeSlot::next(self.deployment.started, time, 10 + 5 * self.index as u64)
    }

    async fn sleep_slot(&self, time: Duration) {
        sleep_until(self.after(time)).await;
    }

    fn note(&self, entry: Entry) {
        self.deployment.records.lock().unwrap()[self.index].push(entry);
    }

    fn is_settling(&self) -> bool {
        self.deployment.settling.load(Ordering::Relaxed)
    }

    /// One connection.
    async fn visit(&mut self) {
        let which = self.rng.below(2) as usize;
        let (feed, number, alive) = self.deployment.replica(which);
        if timeout_at(self.after(READY_TIMEOUT), feed.wait_synced()).await.is_err() {
            return;
        }
        // Off the moment at which it became ready.
        self.sleep_slot(Duration::ZERO).await;
        let Some((start, from)) = self.choose_start() else { return };
        let projection = self.projection();
        let Ok(subscription) = feed.subscribe(
            feed.projection_cache(
                PROJECTIONS[projection].to_projection(),
                Framing { format: FrameFormat::JsonLines, edgeplane_names: false },
            ),
            from,
        ) else {
            return;
        };
        if alive.has_changed().is_err() {
            return;
        }
        self.note(Entry::Connect { at: clock(), replica: number, projection, start });
        self.read(subscription, projection, &feed, alive).await;
        self.initial_started_at = None;
        self.note(Entry::Cut { at: clock() });
    }

    /// What it asks for now: rolled anew only where a client comes back.
    fn projection(&mut self) -> usize {
        let other = !self.is_settling() && self.last.is_some() && self.rng.below(12) == 0;
        self.behavior.projection[usize::from(other)]
    }

    /// How it connects; not at all while that could not be told right.
    fn choose_start(&mut self) -> Option<(Start, StartAt)> {
        if let Some(last) = &self.last {
            let cursor = Cursor::decode(&last.id).unwrap();
            if self.deployment.may_be_of_lost_history(&cursor, last.at)
                || (!self.is_settling() && self.rng.below(15) == 0)
            {
                self.last = None;
            }
        }
        let Some(last) = self.last.clone() else {
            let first = if self.behavior.snapshot { Start::Snapshot } else { Start::Live };
            let from = if self.behavior.snapshot {
                StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() }
            } else {
                StartAt::Live
            };
            return Some((first, from));
        };
        if !self.deployment.is_settled() {
            return None;
        }
        let mut cursor = Cursor::decode(&last.id).unwrap();
        let is_forged = !self.is_settling() && self.rng.below(25) == 0;
        if is_forged {
            cursor.namespace_hash ^= 1;
        }
        Some((Start::Resume { id: last.id, projection: last.projection, is_forged }, StartAt::Cursor(cursor)))
    }

    async fn read(
        &mut self,
        mut subscription: Subscription,
        projection: usize,
        feed: &Feed,
        mut alive: watch::Receiver<()>,
    ) {
        let max_session = self.rng.duration_up_to(self.behavior.max_session);
        let ends = self.after(max_session);
        let mut next_heartbeat = self.after(HEARTBEAT);
        let mut member = None;
        loop {
            let leaves = Instant::now() >= ends && !self.is_settling();
            if leaves || alive.has_changed().is_err() {
                break;
            }
            let is_due = Instant::now() >= next_heartbeat;
            if is_due {
                next_heartbeat = self.after(HEARTBEAT);
            }
            match subscription.read(self.behavior.batch_bytes) {
                ReadResult::Batch(frames) => {
                    self.record_lines(&frames.concat(), projection, false);
                    if is_due {
                        // Of whom something is on its way, too.
                        self.read_heartbeat(&mut subscription, projection, false);
                    }
                    self.pause(&mut alive).await;
                }
                ReadResult::Idle => {
                    if is_due {
                        self.read_heartbeat(&mut subscription, projection, true);
                    }
                    if self.behavior.joins_group && member.is_none() {
                        member = GroupMember::of(&mut subscription, feed);
                        if member.is_some() {
                            // Whoever sits down reads once more.
                            continue;
                        }
                    }
                    let wakes = if self.is_settling() { next_heartbeat } else { next_heartbeat.min(ends) };
                    self.wait(&mut subscription, &mut member, projection, wakes, &mut alive).await;
                }
                ReadResult::End(close) => panic!("the full stream does not end: {close:?}"),
            }
        }
        // What was on its way when the connection broke.
        if let ReadResult::Batch(frames) = subscription.read(self.behavior.batch_bytes) {
            let all = frames.concat();
            let lines: Vec<&[u8]> = all.split_inclusive(|byte| *byte == b'\n').collect();
            let arrived = self.rng.below(lines.len() as u64 + 1) as usize;
            self.record_lines(&lines[..arrived].concat(), projection, false);
        }
    }

    /// Until there may be something to read, or its time has come; what it is told meanwhile where it sits it takes.
    async fn wait(
        &mut self,
        subscription: &mut Subscription,
        member: &mut Option<GroupMember>,
        projection: usize,
        wakes: Instant,
        alive: &mut watch::Receiver<()>,
    ) {
        loop {
            let changed = async {
                match member {
                    Some(member) => drop(member.changes.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = alive.changed() => return,
                () = sleep_until(wakes) => return,
                () = subscription.readable() => {
                    // At a moment of its own, so that all has come that belongs to one: in how many changes depends on
                    // who was woken first.
                    self.sleep_slot(Duration::ZERO).await;
                    let _ = subscription.readable().now_or_never();
                    return;
                }
                () = changed => {}
            }
            self.sleep_slot(Duration::ZERO).await;
            let Some(member) = member else { return };
            member.changes.borrow_and_update();
            match member.news(subscription) {
                GroupUpdate::None => {}
                GroupUpdate::Shown(lines) => {
                    self.record_lines(&lines, projection, false);
                    self.pause(alive).await;
                }
                GroupUpdate::MustRead => return,
            }
            if alive.has_changed().is_err() {
                return;
            }
        }
    }

    async fn pause(&mut self, alive: &mut watch::Receiver<()>) {
        if self.behavior.max_pause.is_zero() || self.is_settling() {
            return;
        }
        let max_pause = self.rng.duration_up_to(self.behavior.max_pause);
        tokio::select! {
            biased;
            _ = alive.changed() => {}
            () = self.sleep_slot(max_pause) => {}
        }
    }

    fn read_heartbeat(&mut self, subscription: &mut Subscription, projection: usize, idle: bool) {
        if let Some(heartbeat) = subscription.heartbeat() {
            self.record_lines(&heartbeat, projection, idle);
        }
    }

    fn record_lines(&mut self, lines: &[u8], projection: usize, idle: bool) {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let received = ReceivedEvent::parse(line, clock(), idle);
            if received.name() == "state.initial" {
                self.initial_started_at.get_or_insert(received.at);
            }
            if let Some(id) = &received.id {
                // The last part says what was when the first one came.
                let at = self.initial_started_at.take().unwrap_or(received.at);
                self.last = Some(Last { id: id.clone(), projection, at });
            }
            self.note(Entry::Event(received));
        }
    }
}
