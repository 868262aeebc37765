//! Resumes: the position of the log at which a cursor continues, or the reason why the client needs the current state
//! (docs/protocol.md#full-stream, docs/architecture.md#feed-contract, item 2).

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    backfill_requests::RequestedVersions,
    state::{Shared, State},
    types::{SnapshotReason, required_resources},
};
use crate::event::{Cursor, LogEntry, NamespaceId, PerResource, Resource, ResourceVersion, projection::Projection};

/// Why a subscription cannot continue after a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResumeError {
    /// The cursor is older than the log. A backfill may extend the log back to it.
    BeforeLog,
    /// The cursor is older than the log, and no backfill can extend the log: the API server no longer has the history
    /// after the cursor, or the log has evicted entries.
    NoHistory,
    /// The cursor is inside a difference, which is correct only for a client at its start.
    InsideCoalesced,
    /// As `InsideCoalesced`, and the source still finds out whether the difference omits anything.
    Unproven,
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
    let is_before_log = |resource: &Resource| versions[*resource] < state.log_base_versions[*resource];
    let has_no_history =
        |resource| !state.log.is_extendable() || state.backfill_requests.is_compacted(resource, versions[resource]);
    if required_resources(projection).filter(is_before_log).any(has_no_history) {
        return Err(ResumeError::NoHistory);
    }
    if required_resources(projection).any(|resource| is_before_log(&resource)) {
        return Err(ResumeError::BeforeLog);
    }
    let mut start = state.log.end_position();
    for resource in required_resources(projection) {
        let first = state.log.partition_point(|entry| entry.versions_after[resource] <= versions[resource]);
        let next = state.log.read_from(first, 1).into_iter().flatten().next();
        // After a bookmark, the next entry can be one of the other resource, which the projection may not need.
        let next = next.filter(|entry| entry.change_set().is_some_and(|change_set| change_set.resource == resource));
        let inside = next.filter(|entry| is_inside_coalesced(entry, versions));
        if let Some(change_set) = inside.and_then(|entry| entry.change_set()) {
            let is_unproven = state.unproven[change_set.resource].is_some_and(|rest| rest.contains(change_set));
            return Err(if is_unproven { ResumeError::Unproven } else { ResumeError::InsideCoalesced });
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

/// A subscription whose cursor is older than the log, while a backfill may extend the log. Its request ends with it.
#[derive(Debug)]
pub(super) struct PendingBackfill {
    shared: Arc<Shared>,
    after: RequestedVersions,
    round: u64,
    history_epoch: u64,
    pub(super) deadline: Instant,
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
    /// Requests a backfill of the history after these versions, and waits for it at most `backfill_wait_timeout`. `state`
    /// is the state of `shared`.
    pub(super) fn new(
        shared: &Arc<Shared>,
        state: &mut State,
        projection: &Projection,
        versions: PerResource<ResourceVersion>,
    ) -> PendingBackfill {
        let mut after = RequestedVersions::default();
        for resource in required_resources(projection) {
            after[resource] = Some(versions[resource]);
        }
        shared.metrics.backfill_waiting.inc();
        PendingBackfill {
            shared: shared.clone(),
            after,
            round: state.backfill_requests.request_backfill(&after),
            history_epoch: state.history_epoch,
            deadline: Instant::now() + shared.config.backfill_wait_timeout,
        }
    }

    /// Checks whether the log reaches back to these versions now. The subscription waits while it may still do so: until
    /// its round has ended, unless the API server is known to have no history after these versions.
    pub(super) fn poll(&self, projection: &Projection, versions: PerResource<ResourceVersion>) -> PendingOutcome {
        let state = self.shared.state();
        if state.history_epoch != self.history_epoch {
            return PendingOutcome::Snapshot(SnapshotReason::Foreign);
        }
        let is_over = state.backfill_requests.backfill_done(self.round) || Instant::now() >= self.deadline;
        match find_position(&state, projection, versions) {
            Ok(position) => PendingOutcome::Resume(position),
            Err(ResumeError::BeforeLog) if !is_over => PendingOutcome::Waiting,
            Err(ResumeError::Unproven) if Instant::now() < self.deadline => PendingOutcome::Waiting,
            Err(_) => PendingOutcome::Snapshot(SnapshotReason::Expired),
        }
    }
}

impl Drop for PendingBackfill {
    fn drop(&mut self) {
        self.shared.metrics.backfill_waiting.dec();
        self.shared.state().backfill_requests.cancel_backfill(self.round, &self.after);
    }
}
