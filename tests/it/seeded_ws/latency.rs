//! How long requests and watch lines take in a seeded history, so that their order depends on the seed only.

use std::time::Duration;

use boilerhouse_bridge::event::{PerResource, Resource};
use tokio::time::{Instant, sleep, sleep_until};

/// The latency of one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// The time of a request. Each client has another one.
    delay: Duration,
    slot: Option<TimeSlot>,
}

/// Time slots of one client. In each slot only one thing about one resource reaches one client. A task that it wakes is
/// woken by nothing else at that time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeSlot {
    pub(crate) started: Instant,
    /// Milliseconds after the start of a period.
    pub(crate) phases: PerResource<u64>,
    /// The additional delay of watch lines.
    pub(crate) lag: PerResource<Duration>,
    /// The delay of each line of the watch of a backfill.
    pub(crate) backfill_lag: PerResource<Duration>,
}

impl Latency {
    pub(crate) fn fixed(ms: u64) -> Latency {
        Latency { delay: Duration::from_millis(ms), slot: None }
    }

    pub(crate) fn slot(slot: TimeSlot) -> Latency {
        Latency { delay: Duration::ZERO, slot: Some(slot) }
    }

    pub(crate) async fn request(self, resource: Option<Resource>) {
        match self.slot {
            None => sleep(self.delay).await,
            Some(slot) => slot.wait(resource.unwrap_or(Resource::Pods), Duration::ZERO).await,
        }
    }

    pub(crate) async fn line(self, resource: Resource) {
        if let Some(slot) = self.slot {
            slot.wait(resource, slot.lag[resource]).await;
        }
    }

    pub(crate) async fn backfill_line(self, resource: Resource) {
        if let Some(slot) = self.slot.filter(|slot| !slot.backfill_lag[resource].is_zero()) {
            slot.wait(resource, slot.backfill_lag[resource]).await;
        }
    }

    pub(crate) fn delays_backfill_lines(self, resource: Resource) -> bool {
        self.slot.is_some_and(|slot| !slot.backfill_lag[resource].is_zero())
    }
}

impl TimeSlot {
    /// Milliseconds of a period. All delays of the bridge are multiples of it.
    const PERIOD_MS: u128 = 50;

    /// The first time of a phase, later than now, at which at least `time` has passed.
    pub(crate) fn next(started: Instant, time: Duration, phase: u64) -> Instant {
        let at = (started.elapsed() + time).as_millis().max(started.elapsed().as_millis() + 1);
        let periods = (at + Self::PERIOD_MS - 1 - u128::from(phase)).div_euclid(Self::PERIOD_MS);
        started + Duration::from_millis(u64::try_from(periods * Self::PERIOD_MS).unwrap() + phase)
    }

    async fn wait(self, resource: Resource, time: Duration) {
        sleep_until(TimeSlot::next(self.started, time, self.phases[resource])).await;
    }
}
