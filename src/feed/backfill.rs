//! Backfill rounds and version checks: what a source does for subscriptions that need history before the log, or whose
//! cursors are ahead of this replica (docs/architecture.md#feed-contract, items 3 and 5).
//!
//! *Guarantees:*
//! - One round answers all subscriptions that requested it before it started. A waiting subscription costs no task.
//! - What a round finds is prepended to the log, for all subscriptions.
//! - Where the history cannot be shown to reach the start of the log, the rest is one difference that names the version
//!   from which it was computed.

use std::{pin::pin, sync::Arc};

use super::{backfill_requests::BackfillRequests, inventory::Inventory, state::Shared};
use crate::event::{Change, ChangeSet, EntryKind, LogEntry, PerResource, Resource, ResourceVersion, View};

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

/// Why a round was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillFailure {
    /// A request to the API server failed.
    Failed,
    /// The round took too long.
    Timeout,
    /// Too many rounds were started within a minute.
    Budget,
}

/// The missing history of one resource.
#[derive(Debug)]
pub struct Gap {
    resource: Resource,
    from: ResourceVersion,
    to: ResourceVersion,
    /// The state at `to`.
    end: Arc<Inventory>,
    /// The state after the last change set.
    state: Inventory,
    /// The version of `state`.
    at: ResourceVersion,
    change_sets: Vec<ChangeSet>,
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
        let oldest = state.backfill_requests.start_backfill().unwrap_or(state.log_base_versions);
        let (log_base_versions, history_epoch) = (state.log_base_versions, state.history_epoch);
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
        let missing = Resource::ALL.into_iter().filter(|resource| oldest[*resource] < log_base_versions[*resource]);
        let gap = |resource| Gap {
            resource,
            from: oldest[resource],
            to: log_base_versions[resource],
            end: end.clone(),
            state: Inventory::default(),
            at: oldest[resource],
            change_sets: Vec::new(),
        };
        BackfillRound { gaps: missing.map(gap).collect(), first_position, history_epoch, log_base_versions }
    }

    /// Ends the round and prepends its history to the log. All gaps must be closed. The history is dropped if the log
    /// has no capacity for it, or if the start of the log or the history has changed since the round started.
    pub fn complete_round(&self, round: BackfillRound) {
        let BackfillRound { gaps, first_position, history_epoch, log_base_versions } = round;
        let mut base = log_base_versions;
        let mut change_sets = Vec::new();
        for gap in gaps {
            base[gap.resource] = gap.from;
            change_sets.extend(gap.change_sets);
        }
        // Every order between the two resources is correct. The order of the versions is nearest to the real one.
        change_sets.sort_by_key(|change_set| change_set.version);
        self.shared.update(|state, now_ms| {
            state.backfill_requests.end_backfill();
            let metrics = &self.shared.metrics;
            if state.history_epoch != history_epoch {
                metrics.backfills_failed.inc();
                return;
            }
            let mut versions_after = base;
            let entry = |change_set: ChangeSet| {
                versions_after[change_set.resource] = change_set.version;
                let entry = LogEntry { versions_after, observed_at_ms: now_ms, kind: EntryKind::ChangeSet(change_set) };
                let bytes = entry.charged_bytes();
                (Arc::new(entry), bytes)
            };
            let prepended = state.log.first_position() == first_position
                && state.log.prepend(change_sets.into_iter().map(entry).collect(), now_ms);
            if prepended {
                state.log_base_versions = base;
                metrics.backfills_filled.inc();
            } else {
                metrics.backfills_no_room.inc();
            }
        });
    }

    /// Ends the round without history. The waiting subscriptions send the current state.
    pub fn abandon_round(&self, failure: BackfillFailure) {
        self.shared.update(|state, _| state.backfill_requests.end_backfill());
        let metrics = &self.shared.metrics;
        match failure {
            BackfillFailure::Failed => metrics.backfills_failed.inc(),
            BackfillFailure::Timeout => metrics.backfills_timeout.inc(),
            BackfillFailure::Budget => metrics.backfills_budget.inc(),
        };
    }

    /// Starts a version check for all requests so far. Later requests wait for the next one.
    pub fn start_version_check(&self) {
        self.shared.state().backfill_requests.start_version_check();
    }

    /// Ends a version check with the newest versions of the API server. `None` means that too many checks were started
    /// within a minute: the versions of this replica count then.
    pub fn complete_version_check(&self, versions: Option<PerResource<ResourceVersion>>) {
        self.shared.update(|state, _| {
            let versions = versions.unwrap_or(state.latest_versions);
            state.backfill_requests.end_version_check(versions);
        });
        let metrics = &self.shared.metrics;
        let outcome =
            if versions.is_some() { &metrics.version_checks_completed } else { &metrics.version_checks_budget };
        outcome.inc();
    }
}

impl Gap {
    /// Returns the resource.
    #[must_use]
    pub fn resource(&self) -> Resource {
        self.resource
    }

    /// Returns the version after which the history is missing.
    #[must_use]
    pub fn from(&self) -> ResourceVersion {
        self.from
    }

    /// Returns the last version of the missing history.
    #[must_use]
    pub fn to(&self) -> ResourceVersion {
        self.to
    }

    /// Sets the state at [`Gap::from`] to a complete list.
    pub fn list(&mut self, views: Vec<View>) {
        self.state = Inventory::default();
        self.state.replace(self.resource, views);
    }

    /// Applies an object that was added or modified. Versions must not decrease or exceed [`Gap::to`].
    pub fn upsert(&mut self, view: View) {
        let version = view.resource_version();
        let changes = self.state.upsert(view);
        if !changes.is_empty() {
            // Two changes: the deletion of the object with the old uid was not reported.
            let coalesced_from = (changes.len() > 1).then_some(self.at);
            self.push(version, changes, coalesced_from);
        }
    }

    /// Applies an object that was deleted, at the version of the deletion.
    pub fn remove(&mut self, view: &View) {
        if let Some(change) = self.state.remove(self.resource, view.name(), view.uid()) {
            self.push(view.resource_version(), vec![change], None);
        }
    }

    /// Returns the number of change sets so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.change_sets.len()
    }

    /// Returns whether there is no change set yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.change_sets.is_empty()
    }

    /// Closes the gap. Unless the changes so far are complete and lead to the state at the start of the log, it appends
    /// the difference to that state.
    pub fn close(&mut self, is_complete: bool) {
        let reaches_log_start = match self.resource {
            Resource::Pods => self.state.instances == self.end.instances,
            Resource::Claims => self.state.claims == self.end.claims,
        };
        if is_complete && reaches_log_start {
            return;
        }
        let end = self.end.views().filter(|view| view.resource() == self.resource).collect();
        let changes = self.state.replace(self.resource, end);
        let (to, from) = (self.to, self.at);
        self.push(to, changes, Some(from));
    }

    fn push(&mut self, version: ResourceVersion, changes: Vec<Change>, coalesced_from: Option<ResourceVersion>) {
        self.at = version;
        self.change_sets.push(ChangeSet {
            resource: self.resource,
            version,
            changes: changes.into(),
            coalesced_from,
            history_reset: false,
        });
    }
}
