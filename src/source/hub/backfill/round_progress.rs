//! Whether a round can be delivered before the watches of both resources have ended.

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    event::{PerResource, Resource},
    feed::Gap,
};

/// How far the histories of both resources have been read.
pub(super) struct RoundProgress(watch::Sender<PerResource<Reading>>);

/// How far the history of one resource has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Changes are missing.
    Open,
    /// The changes so far lead to the state at the end of the gap, or nothing more is read.
    AtEnd { has_changes: bool },
}

impl RoundProgress {
    /// Returns the progress of a round with these gaps, of which nothing has been read.
    pub(super) fn new(gaps: &[Gap]) -> RoundProgress {
        let is_open = |resource| gaps.iter().any(|gap| gap.resource() == resource);
        let reading = |resource| if is_open(resource) { Reading::Open } else { Reading::AtEnd { has_changes: false } };
        RoundProgress(watch::Sender::new(PerResource::from_fn(reading)))
    }

    /// Records that more is being read.
    pub(super) fn reopen(&self, resource: Resource) {
        self.set(resource, Reading::Open);
    }

    /// Records that the gap is at its end, or that nothing more is read.
    pub(super) fn end(&self, gap: &Gap) {
        self.set(gap.resource(), Reading::AtEnd { has_changes: gap.has_changes() });
    }

    /// Waits until the gap is at its end at `quiet_at`, and until the histories of both resources can be delivered. It never
    /// ends if a change is missing. Cancel safe.
    pub(super) async fn wait_at_end(&self, gap: &Gap, quiet_at: Instant) {
        sleep_until(quiet_at).await;
        if !gap.is_at_end() {
            return std::future::pending().await;
        }
        self.end(gap);
        // It fails only without a sender.
        let _ = self.0.subscribe().wait_for(can_deliver).await;
    }

    fn set(&self, resource: Resource, reading: Reading) {
        self.0.send_if_modified(|readings| std::mem::replace(&mut readings[resource], reading) != reading);
    }
}

/// Returns whether clients need not wait for more: no resource misses a change, and there are changes to deliver. Without
/// one, clients miss nothing while they wait for the proof that there was none.
fn can_deliver(readings: &PerResource<Reading>) -> bool {
    readings.iter().all(|reading| *reading != Reading::Open)
        && readings.iter().any(|reading| *reading == Reading::AtEnd { has_changes: true })
}
