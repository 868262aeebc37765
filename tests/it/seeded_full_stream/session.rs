//! One connection of a client: it reads a subscription in time slots, and delivers what it reads to an output.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use boilerhouse_bridge::feed::{Feed, Group, ReadResult, SharedBatch, Subscription};
use boilerhouse_bridge::schema::messages::Form;
use boilerhouse_bridge::test_support::SeededRng;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::deployment::{SimulatedDeployment, clock};
use crate::oracle::full_stream::{Entry, ReceivedEvent, Start};
use crate::seeded_ws::latency::TimeSlot;
use crate::support::schemas;

/// The longest time between two connections. In one of eight cases it is the second one.
const MAX_RECONNECT_DELAY: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(150)];
/// The time between two heartbeats (docs/protocol.md#full-stream).
const HEARTBEAT: Duration = Duration::from_secs(15);
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

/// The time slots of a client, and its record.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) deployment: Arc<SimulatedDeployment>,
    index: usize,
}

/// The last id of a client, the projection under which it received it, and the time since which the id is true.
#[derive(Clone, Debug)]
pub(super) struct LastId {
    pub(super) id: String,
    pub(super) projection: usize,
    pub(super) at: u64,
}

/// Writes the record of a client.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) seat: Seat,
    pub(super) last: Option<LastId>,
    projection: usize,
    /// When the first part of an incomplete `state.initial` was received.
    initial_started_at: Option<u64>,
}

/// Where the frames of a connection go.
pub(super) trait Output {
    /// Delivers frames.
    async fn deliver(&mut self, recorder: &mut Recorder, frames: &[u8], idle: bool);
    /// Delivers a part of the frames that were on their way when the connection broke.
    async fn deliver_part(&mut self, recorder: &mut Recorder, frames: &[u8], rng: &mut SeededRng);
    /// Whether the connection is open.
    fn is_open(&self) -> bool;
    /// Waits until the client closes the connection.
    async fn closed(&mut self);
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

impl Seat {
    /// Adds a client to the deployment.
    pub(super) fn new(deployment: &Arc<SimulatedDeployment>) -> Seat {
        let mut records = deployment.records.lock().unwrap();
        records.push(Vec::new());
        Seat { deployment: deployment.clone(), index: records.len() - 1 }
    }

    /// The next time slot of this client at which `time` has passed.
    pub(super) fn slot_after(&self, time: Duration) -> Instant {
        // The script has phase 0, the replicas have phases 1 to 4.
        TimeSlot::next(self.deployment.started, time, 10 + 5 * self.index as u64)
    }

    pub(super) async fn sleep_slot(&self, time: Duration) {
        sleep_until(self.slot_after(time)).await;
    }

    pub(super) fn is_settling(&self) -> bool {
        self.deployment.settling.load(Ordering::Relaxed)
    }
}

/// The time before the next connection.
pub(super) fn reconnect_delay(rng: &mut SeededRng) -> Duration {
    let max = MAX_RECONNECT_DELAY[usize::from(rng.below(8) == 0)];
    rng.duration_up_to(max)
}

impl Recorder {
    pub(super) fn new(seat: Seat) -> Recorder {
        Recorder { seat, last: None, projection: 0, initial_started_at: None }
    }

    pub(super) fn connect(&mut self, replica: usize, projection: usize, start: Start) {
        self.projection = projection;
        self.record(Entry::Connect { at: clock(), replica, projection, start });
    }

    pub(super) fn event(&mut self, json: &[u8], idle: bool) {
        let event = serde_json::from_slice(json).unwrap();
        schemas::check_event(&[Form::Full], &event);
        let received = ReceivedEvent::new(event, clock(), idle);
        if received.name() == "state.initial" {
            self.initial_started_at.get_or_insert(received.at);
        }
        if let Some(id) = &received.id {
            // The last part has the id of the state at the time of the first part.
            let at = self.initial_started_at.take().unwrap_or(received.at);
            self.last = Some(LastId { id: id.clone(), projection: self.projection, at });
        }
        self.record(Entry::Event(received));
    }

    pub(super) fn disconnect(&mut self) {
        self.initial_started_at = None;
        self.record(Entry::Disconnect { at: clock() });
    }

    fn record(&self, entry: Entry) {
        self.seat.deployment.records.lock().unwrap()[self.seat.index].push(entry);
    }
}

/// One connection.
pub(super) struct Session<'a, O> {
    pub(super) behavior: ClientBehavior,
    pub(super) recorder: &'a mut Recorder,
    pub(super) rng: &'a mut SeededRng,
    pub(super) output: &'a mut O,
    pub(super) subscription: Subscription,
    /// Fails once the replica is killed.
    pub(super) alive: watch::Receiver<()>,
}

impl<O: Output> Session<'_, O> {
    /// Reads until the connection ends.
    pub(super) async fn run(mut self, feed: &Feed) {
        let max_session = self.rng.duration_up_to(self.behavior.max_session);
        let ends = self.seat().slot_after(max_session);
        let mut next_heartbeat = self.seat().slot_after(HEARTBEAT);
        let mut member = None;
        loop {
            let is_over = Instant::now() >= ends && !self.seat().is_settling();
            if is_over || self.is_ended() {
                break;
            }
            let is_heartbeat_due = Instant::now() >= next_heartbeat;
            if is_heartbeat_due {
                next_heartbeat = self.seat().slot_after(HEARTBEAT);
            }
            match self.subscription.read(self.behavior.batch_bytes) {
                ReadResult::Batch(frames) => {
                    self.deliver(&frames.concat(), false).await;
                    if is_heartbeat_due {
                        // A stream with unsent events has heartbeats, too.
                        self.heartbeat(false).await;
                    }
                    self.pause().await;
                }
                ReadResult::Idle => {
                    if is_heartbeat_due {
                        self.heartbeat(true).await;
                    }
                    if self.behavior.joins_group && member.is_none() {
                        member = GroupMember::of(&mut self.subscription, feed);
                        if member.is_some() {
                            // After joining, the stream reads once more.
                            continue;
                        }
                    }
                    let deadline = if self.seat().is_settling() { next_heartbeat } else { next_heartbeat.min(ends) };
                    self.wait(&mut member, deadline).await;
                }
                ReadResult::End(close) => panic!("the full stream must not end: {close:?}"),
            }
        }
        if self.output.is_open()
            && let ReadResult::Batch(frames) = self.subscription.read(self.behavior.batch_bytes)
        {
            self.output.deliver_part(self.recorder, &frames.concat(), self.rng).await;
        }
    }

    fn seat(&self) -> &Seat {
        &self.recorder.seat
    }

    /// Whether the replica was killed or the connection has ended.
    fn is_ended(&self) -> bool {
        self.alive.has_changed().is_err() || !self.output.is_open()
    }

    async fn deliver(&mut self, frames: &[u8], idle: bool) {
        if self.output.is_open() {
            self.output.deliver(self.recorder, frames, idle).await;
        }
    }

    async fn heartbeat(&mut self, idle: bool) {
        if let Some(heartbeat) = self.subscription.heartbeat() {
            self.deliver(&heartbeat, idle).await;
        }
    }

    /// Waits until there may be something to read, or until the deadline. It delivers the shared batches of its group.
    async fn wait(&mut self, member: &mut Option<GroupMember>, deadline: Instant) {
        while !self.is_ended() {
            let changed = async {
                match member {
                    Some(member) => drop(member.log_end.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.alive.changed() => return,
                () = sleep_until(deadline) => return,
                () = self.output.closed() => return,
                () = self.subscription.readable() => {
                    // In its own slot, when everything of the replica's slot has arrived. In how many changes it
                    // arrives depends on which task wakes first.
                    self.seat().sleep_slot(Duration::ZERO).await;
                    let _ = self.subscription.readable().now_or_never();
                    return;
                }
                () = changed => {}
            }
            self.seat().sleep_slot(Duration::ZERO).await;
            let Some(member) = member else { return };
            member.log_end.borrow_and_update();
            match member.update(&mut self.subscription) {
                GroupUpdate::None => {}
                GroupUpdate::Batch(frames) => {
                    self.deliver(&frames, false).await;
                    self.pause().await;
                }
                GroupUpdate::MustRead => return,
            }
        }
    }

    async fn pause(&mut self) {
        if self.behavior.max_pause.is_zero() || self.seat().is_settling() {
            return;
        }
        let pause = self.rng.duration_up_to(self.behavior.max_pause);
        let ends = self.seat().slot_after(pause);
        tokio::select! {
            biased;
            _ = self.alive.changed() => {}
            () = sleep_until(ends) => {}
        }
    }
}
