//! A client of a history. It reads, pauses, disconnects, connects to either replica, and records what it receives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use boilerhouse_bridge::event::{Cursor, PerResource};
use boilerhouse_bridge::feed::{
    Feed, FrameFormat, Framing, Group, ReadResult, SharedBatch, SnapshotReason, StartAt, Subscription,
};
use boilerhouse_bridge::test_support::SeededRng;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::deployment::{SimulatedDeployment, clock};
use super::projections::{PROJECTIONS, to_projection};
use crate::oracle::full_stream::{Entry, ReceivedEvent, Start};
use crate::seeded_ws::latency::TimeSlot;

/// The longest time between two connections. In one of eight cases it is the second one.
const MAX_RECONNECT_DELAY: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(150)];
/// The time between two heartbeats (docs/protocol.md#full-stream).
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client waits for a replica that is not ready.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a shared batch, as in the bridge.
const MAX_BATCH_BYTES: usize = 64 << 10;

/// The behavior of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientBehavior {
    /// Numbers of projections. In one of twelve cases the client asks for the second one.
    pub(super) projection: [usize; 2],
    /// Whether its first connection starts with a snapshot.
    pub(super) snapshot: bool,
    pub(super) starts_after: Duration,
    /// The longest time of each of its connections.
    pub(super) max_session: Duration,
    /// The longest pause after each batch.
    pub(super) max_pause: Duration,
    /// Bytes of a batch.
    pub(super) batch_bytes: usize,
    /// Whether it joins a fan-out group once it has read everything, as the streams of the bridge do.
    pub(super) joins_group: bool,
}

/// A client in a fan-out group. Here each has a writer of its own; in the bridge one writer for each core serves many.
struct GroupMember {
    group: Group,
    log_end: watch::Receiver<u64>,
    /// Up to where the group has inspected the log, and up to where it has delivered.
    inspected: u64,
    delivered: u64,
}

/// What new log entries mean for a member of a group.
enum GroupUpdate {
    /// They have no events for the group.
    None,
    /// A shared batch for all members.
    Batch(Bytes),
    /// The member must read its own subscription.
    MustRead,
}

impl GroupMember {
    fn of(subscription: &mut Subscription, feed: &Feed) -> Option<GroupMember> {
        let log_end = feed.log_end();
        let group = subscription.join_group()?;
        let end = group.end();
        Some(GroupMember { group, log_end, inspected: end, delivered: end })
    }

    fn update(&mut self, subscription: &mut Subscription) -> GroupUpdate {
        let (inspected, is_relevant) = self.group.has_relevant_since(self.inspected);
        self.inspected = inspected;
        if !is_relevant {
            return GroupUpdate::None;
        }
        let batch = self.group.batch_from(self.delivered, MAX_BATCH_BYTES);
        self.delivered = batch.as_ref().map_or(inspected, SharedBatch::end);
        self.inspected = self.delivered;
        let accepted = batch.filter(|batch| subscription.accept_batch(batch));
        accepted.map_or(GroupUpdate::MustRead, |batch| GroupUpdate::Batch(batch.bytes))
    }
}

/// The last id of a client, the projection under which it received it, and the time since which the id is true.
#[derive(Clone, Debug)]
struct LastId {
    id: String,
    projection: usize,
    at: u64,
}

/// A client.
pub(super) struct Client {
    deployment: Arc<SimulatedDeployment>,
    index: usize,
    behavior: ClientBehavior,
    rng: SeededRng,
    last: Option<LastId>,
    /// When the first part of an incomplete `state.initial` was received.
    initial_started_at: Option<u64>,
}

impl Client {
    pub(super) fn new(deployment: &Arc<SimulatedDeployment>, behavior: ClientBehavior, rng: SeededRng) -> Client {
        let mut records = deployment.records.lock().unwrap();
        records.push(Vec::new());
        let (deployment, index) = (deployment.clone(), records.len() - 1);
        Client { deployment, index, behavior, rng, last: None, initial_started_at: None }
    }

    pub(super) async fn run(mut self) {
        self.sleep_slot(self.behavior.starts_after).await;
        loop {
            self.connect().await;
            let max = MAX_RECONNECT_DELAY[usize::from(self.rng.below(8) == 0)];
            let delay = self.rng.duration_up_to(max);
            self.sleep_slot(delay).await;
        }
    }

    /// The next time slot of this client at which `time` has passed.
    fn slot_after(&self, time: Duration) -> Instant {
        // The script has phase 0, the replicas have phases 1 to 4.
        TimeSlot::next(self.deployment.started, time, 10 + 5 * self.index as u64)
    }

    async fn sleep_slot(&self, time: Duration) {
        sleep_until(self.slot_after(time)).await;
    }

    fn record(&self, entry: Entry) {
        self.deployment.records.lock().unwrap()[self.index].push(entry);
    }

    fn is_settling(&self) -> bool {
        self.deployment.settling.load(Ordering::Relaxed)
    }

    /// One connection.
    async fn connect(&mut self) {
        let replica = self.rng.below(2) as usize;
        let (feed, number, alive) = self.deployment.replica(replica);
        if timeout_at(self.slot_after(READY_TIMEOUT), feed.wait_synced()).await.is_err() {
            return;
        }
        // Not in the slot in which the replica became ready.
        self.sleep_slot(Duration::ZERO).await;
        let Some((start, start_at)) = self.choose_start() else { return };
        let projection = self.choose_projection();
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        let cache = feed.projection_cache(to_projection(&PROJECTIONS[projection]), framing);
        let Ok(subscription) = feed.subscribe(cache, start_at) else { return };
        if alive.has_changed().is_err() {
            return;
        }
        self.record(Entry::Connect { at: clock(), replica: number, projection, start });
        self.read(subscription, projection, &feed, alive).await;
        self.initial_started_at = None;
        self.record(Entry::Disconnect { at: clock() });
    }

    /// The projection of the next connection. It changes only if the client has connected before.
    fn choose_projection(&mut self) -> usize {
        let is_other = !self.is_settling() && self.last.is_some() && self.rng.below(12) == 0;
        self.behavior.projection[usize::from(is_other)]
    }

    /// How the client connects; `None` while the expected outcome is not determined.
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
            return Some(if self.behavior.snapshot {
                let not_before = PerResource::default();
                (Start::Snapshot, StartAt::Snapshot { reason: SnapshotReason::Connect, not_before })
            } else {
                (Start::Live, StartAt::Live)
            });
        };
        if !self.deployment.is_reset_detected() {
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
        let ends = self.slot_after(max_session);
        let mut next_heartbeat = self.slot_after(HEARTBEAT);
        let mut member = None;
        loop {
            let is_over = Instant::now() >= ends && !self.is_settling();
            if is_over || alive.has_changed().is_err() {
                break;
            }
            let is_heartbeat_due = Instant::now() >= next_heartbeat;
            if is_heartbeat_due {
                next_heartbeat = self.slot_after(HEARTBEAT);
            }
            match subscription.read(self.behavior.batch_bytes) {
                ReadResult::Batch(frames) => {
                    self.record_lines(&frames.concat(), projection, false);
                    if is_heartbeat_due {
                        // A stream with unsent events has heartbeats, too.
                        self.read_heartbeat(&mut subscription, projection, false);
                    }
                    self.pause(&mut alive).await;
                }
                ReadResult::Idle => {
                    if is_heartbeat_due {
                        self.read_heartbeat(&mut subscription, projection, true);
                    }
                    if self.behavior.joins_group && member.is_none() {
                        member = GroupMember::of(&mut subscription, feed);
                        if member.is_some() {
                            // After joining, the stream reads once more.
                            continue;
                        }
                    }
                    let deadline = if self.is_settling() { next_heartbeat } else { next_heartbeat.min(ends) };
                    self.wait(&mut subscription, &mut member, projection, deadline, &mut alive).await;
                }
                ReadResult::End(close) => panic!("the full stream must not end: {close:?}"),
            }
        }
        // A part of what was on its way when the connection broke.
        if let ReadResult::Batch(frames) = subscription.read(self.behavior.batch_bytes) {
            let all = frames.concat();
            let lines: Vec<&[u8]> = all.split_inclusive(|byte| *byte == b'\n').collect();
            let arrived = self.rng.below(lines.len() as u64 + 1) as usize;
            self.record_lines(&lines[..arrived].concat(), projection, false);
        }
    }

    /// Waits until there may be something to read, or until the deadline. It records the shared batches of its group.
    async fn wait(
        &mut self,
        subscription: &mut Subscription,
        member: &mut Option<GroupMember>,
        projection: usize,
        deadline: Instant,
        alive: &mut watch::Receiver<()>,
    ) {
        loop {
            let changed = async {
                match member {
                    Some(member) => drop(member.log_end.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = alive.changed() => return,
                () = sleep_until(deadline) => return,
                () = subscription.readable() => {
                    // In its own slot, when everything of the replica's slot has arrived. In how many changes it
                    // arrives depends on which task wakes first.
                    self.sleep_slot(Duration::ZERO).await;
                    let _ = subscription.readable().now_or_never();
                    return;
                }
                () = changed => {}
            }
            self.sleep_slot(Duration::ZERO).await;
            let Some(member) = member else { return };
            member.log_end.borrow_and_update();
            match member.update(subscription) {
                GroupUpdate::None => {}
                GroupUpdate::Batch(lines) => {
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
        let pause = self.rng.duration_up_to(self.behavior.max_pause);
        tokio::select! {
            biased;
            _ = alive.changed() => {}
            () = self.sleep_slot(pause) => {}
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
                // The last part has the id of the state at the time of the first part.
                let at = self.initial_started_at.take().unwrap_or(received.at);
                self.last = Some(LastId { id: id.clone(), projection, at });
            }
            self.record(Entry::Event(received));
        }
    }
}
