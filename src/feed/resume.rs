//! Resumes: the position of the log at which a cursor continues, or the reason why the client needs the current state
//! (docs/protocol.md#full-stream, docs/architecture.md#feed-contract, item 2).

use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use super::{
    state::{Shared, State},
    types::{SnapshotReason, required_resources},
};
use crate::event::{Cursor, LogEntry, NamespaceId, PerResource, ResourceVersion, projection::Projection};

/// Why a subscription cannot continue after a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResumeError {
    /// The cursor is older than the log. A backfill may extend the log back to it.
    BeforeLog,
    /// The cursor is inside a difference, which is correct only for a client at its start.
    InsideCoalesced,
    /// The cursor belongs to another namespace or another history.
    ForeignHistory,
    /// The cursor belongs to another filter or other rights, or does not cover a required resource.
    ProjectionMismatch,
}

/// Returns the first position that the cursor does not cover.
pub(super) fn locate(
    state: &State,
    namespace: NamespaceId,
    projection: &Projection,
    cursor: &Cursor,
) -> Result<u64, ResumeError> {
    // A version below the start of the current history may belong to either history.
    if cursor.namespace_hash != namespace.hash
        || required_resources(projection)
            .any(|resource| cursor.versions[resource] < state.history_start_versions[resource])
    {
        return Err(ResumeError::ForeignHistory);
    }
    let covered = required_resources(projection).all(|resource| cursor.resources[resource]);
    if cursor.projection_hash != projection.fingerprint() || !covered {
        return Err(ResumeError::ProjectionMismatch);
    }
    find_position(state, projection, cursor.versions)
}

fn find_position(
    state: &State,
    projection: &Projection,
    versions: PerResource<ResourceVersion>,
) -> Result<u64, ResumeError> {
    if required_resources(projection).any(|resource| versions[resource] < state.log_base_versions[resource]) {
        return Err(ResumeError::BeforeLog);
    }
    let mut start = state.log.end_position();
    for resource in required_resources(projection) {
        let first = state.log.partition_point(|entry| entry.versions_after[resource] <= versions[resource]);
        if state.log.read_from(first, 1).into_iter().flatten().any(|entry| is_inside_coalesced(entry, versions)) {
            return Err(ResumeError::InsideCoalesced);
        }
        start = start.min(first);
    }
    Ok(start)
}

/// Returns whether these versions are inside the difference of this entry. The difference may omit objects that a client
/// at these versions holds.
pub(super) fn is_inside_coalesced(entry: &LogEntry, versions: PerResource<ResourceVersion>) -> bool {
    entry.change_set().is_some_and(|change_set| {
        let version = versions[change_set.resource];
        change_set.coalesced_from.is_some_and(|from| from < version) && version < change_set.version
    })
}

/// A subscription whose cursor is older than the log, while a backfill may extend the log.
#[derive(Debug)]
pub(super) struct PendingBackfill {
    round: u64,
    history_epoch: u64,
    pub(super) deadline: Instant,
    /// The number of waiting subscriptions.
    waiting: Gauge,
}

/// The outcome of waiting for a backfill.
pub(super) enum PendingOutcome {
    /// The round has not ended.
    Waiting,
    /// The log reaches back to the cursor: the subscription continues at this position.
    Resume(u64),
    /// The client receives the current state.
    Snapshot(SnapshotReason),
}

impl PendingBackfill {
    /// Requests a backfill of the history after these versions, and waits for it at most `max_wait`. It counts itself in
    /// `waiting` until it is dropped.
    pub(super) fn new(
        state: &mut State,
        projection: &Projection,
        versions: PerResource<ResourceVersion>,
        max_wait: Duration,
        waiting: Gauge,
    ) -> PendingBackfill {
        let mut after = PerResource::new(ResourceVersion::MAX, ResourceVersion::MAX);
        for resource in required_resources(projection) {
            after[resource] = versions[resource];
        }
        waiting.inc();
        PendingBackfill {
            round: state.backfill_requests.request_backfill(after),
            history_epoch: state.history_epoch,
            deadline: Instant::now() + max_wait,
            waiting,
        }
    }

    /// Checks whether the round has ended, and whether the log reaches back to these versions then.
    pub(super) fn poll(
        &self,
        shared: &Shared,
        projection: &Projection,
        versions: PerResource<ResourceVersion>,
    ) -> PendingOutcome {
        let state = shared.state();
        if state.history_epoch != self.history_epoch {
            return PendingOutcome::Snapshot(SnapshotReason::Foreign);
        }
        if !state.backfill_requests.backfill_done(self.round) && Instant::now() < self.deadline {
            return PendingOutcome::Waiting;
        }
        find_position(&state, projection, versions)
            .map_or(PendingOutcome::Snapshot(SnapshotReason::Expired), PendingOutcome::Resume)
    }
}

impl Drop for PendingBackfill {
    fn drop(&mut self) {
        self.waiting.dec();
    }
}
