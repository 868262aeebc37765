//! Resumes: where in the log the holder of a cursor goes on, or why nowhere (docs/protocol.md#full-stream).

use std::time::Duration;

use tokio::time::Instant;

use super::{
    state::{Shared, State},
    types::{SnapshotReason, required_resources},
};
use crate::event::{Cursor, LogEntry, NamespaceId, PerResource, ResourceVersion, projection::Projection};

/// Why a cursor cannot be resumed from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResumeError {
    /// Older than the log reaches back.
    BeforeLog,
    /// In the middle of a difference, which tells its holder nothing true.
    InsideCoalesced,
    /// Of another namespace, or not a cursor.
    ForeignHistory,
    /// Made under another filter or other rights, or not covering a needed resource.
    ProjectionMismatch,
}

/// The first position that the cursor does not cover.
pub(super) fn locate(
    state: &State,
    namespace: NamespaceId,
    projection: &Projection,
    cursor: &Cursor,
) -> Result<u64, ResumeError> {
    // What was before another history began may be of either, whatever the numbers are.
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

fn find_position(state: &State, projection: &Projection, rv: PerResource<ResourceVersion>) -> Result<u64, ResumeError> {
    if required_resources(projection).any(|resource| rv[resource] < state.log_base_versions[resource]) {
        return Err(ResumeError::BeforeLog);
    }
    let mut start = state.log.end_position();
    for resource in required_resources(projection) {
        let first = state.log.partition_point(|step| step.versions_after[resource] <= rv[resource]);
        if state.log.read_from(first, 1).into_iter().flatten().any(|step| is_inside_coalesced(step, rv)) {
            return Err(ResumeError::InsideCoalesced);
        }
        start = start.min(first);
    }
    Ok(start)
}

/// Whether a client at these versions is in the middle of a difference, which tells it nothing true.
pub(super) fn is_inside_coalesced(step: &LogEntry, at: PerResource<ResourceVersion>) -> bool {
    step.change_set().is_some_and(|version| {
        let at = at[version.resource];
        version.coalesced_from.is_some_and(|since| since < at) && at < version.version
    })
}

/// A client whose cursor the log does not reach back to, while it may be extended.
#[derive(Debug)]
pub(super) struct PendingBackfill {
    round: u64,
    history_epoch: u64,
    pub(super) deadline: Instant,
}

/// What became of it.
pub(super) enum PendingOutcome {
    /// Nothing yet.
    Waiting,
    /// The log reaches back: here it goes on.
    Resume(u64),
    /// It is to be told the current state.
    Snapshot(SnapshotReason),
}

impl PendingBackfill {
    pub(super) fn new(
        state: &mut State,
        projection: &Projection,
        rv: PerResource<ResourceVersion>,
        patience: Duration,
    ) -> PendingBackfill {
        let mut below = PerResource::new(ResourceVersion::MAX, ResourceVersion::MAX);
        for resource in required_resources(projection) {
            below[resource] = rv[resource];
        }
        PendingBackfill {
            round: state.backfill_requests.request_backfill(below),
            history_epoch: state.history_epoch,
            deadline: Instant::now() + patience,
        }
    }

    pub(super) fn poll(
        &self,
        shared: &Shared,
        projection: &Projection,
        rv: PerResource<ResourceVersion>,
    ) -> PendingOutcome {
        let state = shared.state();
        if state.history_epoch != self.history_epoch {
            return PendingOutcome::Snapshot(SnapshotReason::Foreign);
        }
        if !state.backfill_requests.backfill_done(self.round) && Instant::now() < self.deadline {
            return PendingOutcome::Waiting;
        }
        find_position(&state, projection, rv)
            .map_or(PendingOutcome::Snapshot(SnapshotReason::Expired), PendingOutcome::Resume)
    }
}
