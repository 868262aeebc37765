//! How long things are underway in a history, so that it is the seed and not chance who comes first.

use std::time::Duration;

use boilerhouse_bridge::event::Resource;
use tokio::time::{Instant, sleep, sleep_until};

/// How long things are underway, so that it is the seed and not chance who comes first and meets what is armed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// How long a request takes, another time for each client.
    delay: Duration,
    slot: Option<TimeSlot>,
}

/// A client with moments of its own: at each, one thing of one resource reaches one end. Whoever is woken by it is woken
/// by nothing else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeSlot {
    pub(crate) started: Instant,
    /// Milliseconds behind the beat, pods and claims.
    pub(crate) phases: [u64; 2],
    /// How much later than that each thing comes that a watch tells.
    pub(crate) lag: [Duration; 2],
}

impl Latency {
    pub(crate) fn fixed(ms: u64) -> Latency {
        Latency { delay: Duration::from_millis(ms), slot: None }
    }

    pub(crate) fn slot(slot: TimeSlot) -> Latency {
        Latency { delay: Duration::ZERO, slot: Some(slot) }
    }

    pub(crate) async fn request(self, kind: Option<Resource>) {
        match self.slot {
            None => sleep(self.delay).await,
            Some(slot) => slot.wait(kind.unwrap_or(Resource::Pods), Duration::ZERO).await,
        }
    }

    pub(crate) async fn line(self, kind: Resource) {
        if let Some(slot) = self.slot {
            slot.wait(kind, slot.lag[kind as usize]).await;
        }
    }
}

impl TimeSlot {
    /// Milliseconds from beat to beat: all times of the bridge are multiples of it.
    const MS: u128 = 50;

    /// The first moment of a phase, after now, when so much time has passed.
    pub(crate) fn next(started: Instant, time: Duration, phase: u64) -> Instant {
        let at = (started.elapsed() + time).as_millis().max(started.elapsed().as_millis() + 1);
        let beats = (at + Self::MS - 1 - u128::from(phase)).div_euclid(Self::MS);
        started + Duration::from_millis(u64::try_from(beats * Self::MS).unwrap() + phase)
    }

    async fn wait(self, kind: Resource, time: Duration) {
        sleep_until(TimeSlot::next(self.started, time, self.phases[kind as usize])).await;
    }
}
