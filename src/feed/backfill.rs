//! Backfill rounds and version checks: what a source does for subscriptions that need history before the log, or whose
//! cursors are ahead of this replica (docs/architecture.md#feed-contract, items 3 and 5).
//!
//! *Guarantees:*
//! - One round answers all subscriptions that requested it before it started. A waiting subscription costs no task.
//! - What a round finds is prepended to the log, for all subscriptions. What does not fit into the log is dropped, the
//!   oldest first.
//! - Where the history cannot be shown to reach the start of the log, the rest is one difference that names the version
//!   from which it was computed.

use std::{collections::VecDeque, pin::pin, sync::Arc};

use super::{
    backfill_requests::BackfillRequests,
    inventory::Inventory,
    state::{Shared, State},
    unproven_rest::UnprovenRest,
};
use crate::{
    event::{Change, ChangeSet, EntryKind, LogEntry, PerResource, Resource, ResourceVersion, View},
    ring,
};

/// The source's handle for backfills. It is separate from the [`Writer`](super::Writer), so that a round does not delay
/// new changes.
#[derive(Debug)]
pub struct BackfillHandle {
    shared: Arc<Shared>,
}

/// The history between the oldest requested versions and the start of the log.
#[derive(Debug)]
pub struct BackfillRound {
    /// One gap for each resource whose history is missing.
    pub gaps: Vec<Gap>,
    first_position: u64,
    history_epoch: u64,
    log_base_versions: PerResource<ResourceVersion>,
}

/// Why a gap was not filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillFailure {
    /// A request to the API server failed, or the API server no longer has any requested version.
    Failed,
    /// The round took too long.
    Timeout,
}

/// The missing history of one resource.
///
/// It is filled from a list at a requested version on: with the changes after it, or with the difference to a list at a
/// later version.
#[derive(Debug)]
pub struct Gap {
    resource: Resource,
    history_epoch: u64,
    /// The versions after which subscriptions need the history, in ascending order.
    requested: Vec<ResourceVersion>,
    /// The last version of the missing history.
    to: ResourceVersion,
    /// The state at `to`.
    end: Arc<Inventory>,
    /// Bounds of the history: those of the log.
    limits: ring::Limits,
    progress: Progress,
    /// The version after which changes can be missing, if the gap was closed early.
    rest_after: Option<ResourceVersion>,
}

#[derive(Debug)]
enum Progress {
    /// No list has been set.
    Empty,
    /// The changes so far lead to `state` at the version `at`.
    Filling { history: History, state: Inventory, at: ResourceVersion },
    /// The changes lead to the start of the log.
    Closed(History),
}

/// The changes after the version `from`, with the bytes charged for each change set.
#[derive(Debug, Default)]
struct History {
    from: ResourceVersion,
    change_sets: VecDeque<(ChangeSet, usize)>,
    bytes: usize,
}

impl BackfillHandle {
    pub(super) fn new(shared: Arc<Shared>) -> BackfillHandle {
        BackfillHandle { shared }
    }

    /// Waits until a subscription requests a backfill. Cancel safe.
    pub async fn wait_for_request(&self) {
        self.wait_until(BackfillRequests::is_backfill_requested).await;
    }

    /// Waits until a subscription whose cursor is ahead of this replica requests a version check. Cancel safe.
    pub async fn wait_for_version_check(&self) {
        self.wait_until(BackfillRequests::is_version_check_requested).await;
    }

    async fn wait_until(&self, is_requested: impl Fn(&BackfillRequests) -> bool) {
        let mut requested = pin!(self.shared.backfill_requested.notified());
        loop {
            // Registers before the check, so that a request in between is not missed.
            requested.as_mut().enable();
            if is_requested(&self.shared.state().backfill_requests) {
                return;
            }
            requested.as_mut().await;
            requested.set(self.shared.backfill_requested.notified());
        }
    }

    /// Starts a round for all requests so far. Later requests wait for the next round.
    #[must_use]
    pub fn start_round(&self) -> BackfillRound {
        let mut state = self.shared.state();
        let (log_base_versions, history_epoch) = (state.log_base_versions, state.history_epoch);
        let mut requested = state.backfill_requests.start_backfill();
        for resource in Resource::ALL {
            let base = log_base_versions[resource];
            requested[resource]
                .retain(|version| *version < base && !state.backfill_requests.is_compacted(resource, *version));
        }
        let first_position = state.log.first_position();
        let mut end = state.inventory.clone();
        let entries: Vec<Arc<LogEntry>> =
            state.log.read_from(first_position, usize::MAX).into_iter().flatten().cloned().collect();
        drop(state);
        // The state before the log: the current state without the changes of all entries.
        let inventory = Arc::make_mut(&mut end);
        let change_sets = entries.iter().rev().filter_map(|entry| entry.change_set());
        for change in change_sets.flat_map(|change_set| change_set.changes.iter().rev()) {
            inventory.revert(change);
        }
        let gap = |(resource, requested): (Resource, Vec<ResourceVersion>)| {
            (!requested.is_empty()).then(|| Gap {
                resource,
                history_epoch,
                requested,
                to: log_base_versions[resource],
                end: end.clone(),
                limits: self.shared.config.log,
                progress: Progress::Empty,
                rest_after: None,
            })
        };
        let gaps = Resource::ALL.into_iter().zip(requested.into_array()).filter_map(gap).collect();
        BackfillRound { gaps, first_position, history_epoch, log_base_versions }
    }

    /// Records that the API server no longer lists the objects of the gap at exactly this version (410). Subscriptions
    /// that wait for the history after it, or after an older version, get the current state at once.
    pub fn record_compacted(&self, gap: &mut Gap, version: ResourceVersion) {
        gap.requested.retain(|requested| *requested > version);
        self.shared.update(|state, _| {
            if state.history_epoch == gap.history_epoch {
                state.backfill_requests.record_compacted(gap.resource, version);
            }
        });
    }

    /// Ends the round and prepends the history of its closed gaps to the log. `failure` is the reason why a gap was not
    /// closed. Waiting subscriptions whose versions the log does not reach send the current state.
    ///
    /// The history is dropped if the start of the log or the history has changed since the round started.
    pub fn complete_round(&self, round: BackfillRound, failure: Option<BackfillFailure>) {
        let is_counted = !round.gaps.is_empty();
        self.shared.update(|state, now_ms| {
            state.backfill_requests.end_backfill();
            let metrics = &self.shared.metrics;
            let is_current = state.history_epoch == round.history_epoch;
            let rests: Vec<_> =
                round.gaps.iter().filter_map(|gap| Some((gap.resource, gap.rest_after?, gap.to))).collect();
            let is_prepended = is_current && prepend(state, round, now_ms);
            for (resource, from, to) in rests.into_iter().filter(|_| is_prepended) {
                state.unproven[resource] = Some(UnprovenRest::new(from, to));
            }
            let outcome = match failure {
                Some(BackfillFailure::Failed) => &metrics.backfills_failed,
                Some(BackfillFailure::Timeout) => &metrics.backfills_timeout,
                None if !is_current => &metrics.backfills_failed,
                None if is_prepended => &metrics.backfills_filled,
                None => &metrics.backfills_no_room,
            };
            outcome.inc_by(u64::from(is_counted));
        });
    }

    /// Ends the wait for the rest of a history that was closed early ([`Gap::close_early`]). If it is proven that the rest has
    /// no change, its differences count as complete from now on. Otherwise clients inside them get the current state.
    pub fn end_rest(&self, resource: Resource, is_proven: bool) {
        self.shared.update(|state, _| {
            let Some(rest) = state.unproven[resource].take() else { return };
            if is_proven {
                state.log.replace(|entry| rest.proven(resource, entry));
            }
        });
    }

    /// Starts a version check for all requests so far. Later requests wait for the next one.
    pub fn start_version_check(&self) {
        self.shared.state().backfill_requests.start_version_check();
    }

    /// Ends a version check with the newest versions of the API server. `None` means that the API server has not answered
    /// in time: its clients wait for the next version check, because nothing is known about them.
    pub fn complete_version_check(&self, versions: Option<PerResource<ResourceVersion>>) {
        self.shared.update(|state, _| match versions {
            Some(versions) => state.backfill_requests.end_version_check(versions),
            None => state.backfill_requests.retry_version_check(),
        });
        let metrics = &self.shared.metrics;
        let outcome =
            if versions.is_some() { &metrics.version_checks_completed } else { &metrics.version_checks_timeout };
        outcome.inc();
    }
}

/// Prepends the history of the closed gaps to the log, as far as it fits. Returns false if none of it fits, or if the start
/// of the log has moved.
fn prepend(state: &mut State, round: BackfillRound, now_ms: u64) -> bool {
    let BackfillRound { gaps, first_position, log_base_versions, .. } = round;
    // An entry that was evicted meanwhile would be missing between the history and the log.
    if state.log.first_position() != first_position {
        return false;
    }
    let mut base = log_base_versions;
    let mut change_sets = Vec::new();
    for gap in gaps {
        if let Progress::Closed(history) = gap.progress {
            base[gap.resource] = history.from;
            change_sets.extend(history.change_sets.into_iter().map(|(change_set, _)| change_set));
        }
    }
    // Every order between the two resources is correct. The order of the versions is nearest to the real one.
    change_sets.sort_by_key(|change_set| change_set.version);
    let mut versions_after = base;
    let entry = |change_set: ChangeSet| {
        versions_after[change_set.resource] = change_set.version;
        let entry = LogEntry { versions_after, observed_at_ms: now_ms, kind: EntryKind::ChangeSet(change_set) };
        let bytes = entry.charged_bytes();
        (Arc::new(entry), bytes)
    };
    let entries: Vec<_> = change_sets.into_iter().map(entry).collect();
    let count = entries.len();
    let dropped = state.log.prepend(entries, now_ms);
    for change_set in dropped.iter().filter_map(|entry| entry.change_set()) {
        base[change_set.resource] = change_set.version;
    }
    state.log_base_versions = base;
    dropped.is_empty() || dropped.len() < count
}

impl Gap {
    /// Returns the resource.
    #[must_use]
    pub fn resource(&self) -> Resource {
        self.resource
    }

    /// Returns the versions after which subscriptions need the history and up to which nothing is filled yet, in
    /// ascending order.
    #[must_use]
    pub fn requested(&self) -> &[ResourceVersion] {
        let filled = match self.progress {
            Progress::Empty => 0,
            Progress::Filling { at, .. } => at,
            Progress::Closed(_) => self.to,
        };
        &self.requested[self.requested.partition_point(|version| *version <= filled)..]
    }

    /// Returns the version up to which the gap is filled; `None` before the first list and after the end.
    #[must_use]
    pub fn filled_up_to(&self) -> Option<ResourceVersion> {
        match self.progress {
            Progress::Filling { at, .. } => Some(at),
            Progress::Empty | Progress::Closed(_) => None,
        }
    }

    /// Returns the last version of the missing history.
    #[must_use]
    pub fn to(&self) -> ResourceVersion {
        self.to
    }

    /// Applies a complete list at a version: the start of the history, or the difference to it.
    pub fn list(&mut self, version: ResourceVersion, views: Vec<View>) {
        if let Progress::Empty = self.progress {
            let mut state = Inventory::default();
            state.replace(self.resource, views);
            let history = History { from: version, ..History::default() };
            self.progress = Progress::Filling { history, state, at: version };
            return;
        }
        let resource = self.resource;
        self.apply(version, |state, at| (state.replace(resource, views), Some(at)));
    }

    /// Applies an object that was added or modified.
    pub fn upsert(&mut self, view: View) {
        self.apply(view.resource_version(), |state, at| {
            let changes = state.upsert(view);
            // Two changes: the deletion of the object with the old uid was not reported.
            let coalesced_from = (changes.len() > 1).then_some(at);
            (changes, coalesced_from)
        });
    }

    /// Applies an object that was deleted, at the version of the deletion.
    pub fn remove(&mut self, view: &View) {
        let (resource, version) = (self.resource, view.resource_version());
        self.apply(version, |state, _| {
            (state.remove(resource, view.name(), view.uid(), version).into_iter().collect(), None)
        });
    }

    /// Applies the changes of one version. A version outside the rest of the gap is ignored: it must not move the history
    /// back, and the log has what comes after the gap.
    fn apply(
        &mut self,
        version: ResourceVersion,
        change: impl FnOnce(&mut Inventory, ResourceVersion) -> (Vec<Change>, Option<ResourceVersion>),
    ) {
        let Progress::Filling { history, state, at } = &mut self.progress else { return };
        if version <= *at || version > self.to {
            return;
        }
        let (changes, coalesced_from) = change(state, *at);
        *at = version;
        if !changes.is_empty() || coalesced_from.is_some() {
            history.push(self.resource, version, changes, coalesced_from, self.limits);
        }
    }

    /// Returns whether the changes so far lead to the state at the end of the gap: the same objects in the same versions.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let Progress::Filling { state, .. } = &self.progress else { return false };
        match self.resource {
            Resource::Pods => state.instances == self.end.instances,
            Resource::Claims => state.claims == self.end.claims,
        }
    }

    /// Returns whether the history so far has a change.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        let (Progress::Filling { history, .. } | Progress::Closed(history)) = &self.progress else { return false };
        history.change_sets.iter().any(|(change_set, _)| !change_set.changes.is_empty())
    }

    /// Closes the gap although changes after the last one can be missing. The objects must be those at its end
    /// ([`Gap::is_at_end`]), so that only objects that were created and deleted can be missing. The rest is a difference
    /// without a change, and clients inside it wait until [`BackfillHandle::end_rest`].
    pub fn close_early(&mut self) {
        self.rest_after = self.filled_up_to().filter(|at| *at < self.to);
        self.close(false);
    }

    /// Closes the gap. Unless the changes so far are complete and lead to the state at the start of the log, it appends
    /// the difference to that state. A gap without a list stays open.
    pub fn close(&mut self, is_complete: bool) {
        let reaches_log_start = self.is_at_end();
        let Progress::Filling { history, state, at } = &mut self.progress else { return };
        if !is_complete || !reaches_log_start {
            let end = self.end.views().filter(|view| view.resource() == self.resource).collect();
            let changes = state.replace(self.resource, end);
            history.push(self.resource, self.to, changes, Some(*at), self.limits);
        }
        self.progress = Progress::Closed(std::mem::take(history));
    }
}

impl History {
    /// Appends a change set, and drops the oldest ones that exceed the limits.
    fn push(
        &mut self,
        resource: Resource,
        version: ResourceVersion,
        changes: Vec<Change>,
        coalesced_from: Option<ResourceVersion>,
        limits: ring::Limits,
    ) {
        let change_set = ChangeSet { resource, version, changes: changes.into(), coalesced_from, history_reset: false };
        let charged = change_set.charged_bytes();
        self.bytes += charged;
        self.change_sets.push_back((change_set, charged));
        while self.change_sets.len() > limits.items || self.bytes > limits.bytes {
            let Some((dropped, charged)) = self.change_sets.pop_front() else { return };
            self.from = dropped.version;
            self.bytes -= charged;
        }
    }
}
