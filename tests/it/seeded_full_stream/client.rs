//! A client of a history. It reads, pauses, disconnects, connects to either replica, and records what it receives.

use std::sync::Arc;
use std::time::Duration;

use boilerhouse_bridge::event::{Cursor, PerResource};
use boilerhouse_bridge::feed::{FrameFormat, Framing, SnapshotReason, StartAt};
use boilerhouse_bridge::test_support::SeededRng;
use tokio::time::timeout_at;

use super::deployment::SimulatedDeployment;
use super::projections::{PROJECTIONS, to_projection};
use super::session::{ClientBehavior, Output, Recorder, Seat, Session, reconnect_delay};
use crate::oracle::full_stream::Start;

/// How long a client waits for a replica that is not ready.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that reads a feed directly.
pub(super) struct Client {
    seat: Seat,
    recorder: Recorder,
    behavior: ClientBehavior,
    rng: SeededRng,
}

/// Records each line as an event.
struct Lines;

impl Output for Lines {
    async fn deliver(&mut self, recorder: &mut Recorder, frames: &[u8], idle: bool) {
        for line in frames.split_inclusive(|byte| *byte == b'\n') {
            recorder.event(line, idle);
        }
    }

    async fn deliver_part(&mut self, recorder: &mut Recorder, frames: &[u8], rng: &mut SeededRng) {
        let lines: Vec<&[u8]> = frames.split_inclusive(|byte| *byte == b'\n').collect();
        let arrived = rng.below(lines.len() as u64 + 1) as usize;
        self.deliver(recorder, &lines[..arrived].concat(), false).await;
    }

    fn is_open(&self) -> bool {
        true
    }

    async fn closed(&mut self) {
        std::future::pending().await
    }
}

impl Client {
    pub(super) fn new(deployment: &Arc<SimulatedDeployment>, behavior: ClientBehavior, rng: SeededRng) -> Client {
        let seat = Seat::new(deployment);
        Client { recorder: Recorder::new(seat.clone()), seat, behavior, rng }
    }

    pub(super) async fn run(mut self) {
        self.seat.sleep_slot(self.behavior.starts_after).await;
        loop {
            self.connect().await;
            let delay = reconnect_delay(&mut self.rng);
            self.seat.sleep_slot(delay).await;
        }
    }

    /// One connection.
    async fn connect(&mut self) {
        let replica = self.rng.below(2) as usize;
        let (feed, number, alive) = self.seat.deployment.replica(replica);
        if timeout_at(self.seat.slot_after(READY_TIMEOUT), feed.wait_synced()).await.is_err() {
            return;
        }
        // Not in the slot in which the replica became ready.
        self.seat.sleep_slot(Duration::ZERO).await;
        let Some((start, start_at)) = self.choose_start() else { return };
        let projection = self.choose_projection();
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        let cache = feed.projection_cache(to_projection(&PROJECTIONS[projection]), framing);
        let Ok(subscription) = feed.subscribe(cache, start_at) else { return };
        if alive.has_changed().is_err() {
            return;
        }
        self.recorder.connect(number, projection, start);
        let Client { recorder, behavior, rng, .. } = self;
        let session =
            Session { behavior: *behavior, recorder: &mut *recorder, rng, output: &mut Lines, subscription, alive };
        session.run(&feed).await;
        recorder.disconnect();
    }

    /// The projection of the next connection. It changes only if the client has connected before.
    fn choose_projection(&mut self) -> usize {
        let is_other = !self.seat.is_settling() && self.recorder.last.is_some() && self.rng.below(12) == 0;
        self.behavior.projection[usize::from(is_other)]
    }

    /// How the client connects; `None` while the expected outcome is not determined.
    fn choose_start(&mut self) -> Option<(Start, StartAt)> {
        let is_settling = self.seat.is_settling();
        if let Some(last) = &self.recorder.last {
            let cursor = Cursor::decode(&last.id).unwrap();
            if self.seat.deployment.may_be_of_lost_history(&cursor, last.at)
                || (!is_settling && self.rng.below(15) == 0)
            {
                self.recorder.last = None;
            }
        }
        let Some(last) = self.recorder.last.clone() else {
            return Some(if self.behavior.snapshot {
                let not_before = PerResource::default();
                (Start::Snapshot, StartAt::Snapshot { reason: SnapshotReason::Connect, not_before })
            } else {
                (Start::Live, StartAt::Live)
            });
        };
        if !self.seat.deployment.is_reset_detected() {
            return None;
        }
        let mut cursor = Cursor::decode(&last.id).unwrap();
        let is_forged = !is_settling && self.rng.below(25) == 0;
        if is_forged {
            cursor.namespace_hash ^= 1;
        }
        Some((Start::Resume { id: last.id, projection: last.projection, is_forged }, StartAt::Cursor(cursor)))
    }
}
