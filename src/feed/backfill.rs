//! The past: what readers want to know that the log does not hold, and how a source tells it (docs/architecture.md, the feed's
//! contract, 3 and 5).
//!
//! Readers ask and wait, at no cost; whoever asks before a round begins shares it. A source takes a round, asks the API
//! server, and puts what it finds in front of the log, for all. Rounds are counted, so that a reader knows which answer
//! is his. What cannot be shown to meet the log's start ends in a difference that says since when.

use std::{pin::pin, sync::Arc};

use super::{backfill_requests::BackfillRequests, inventory::Inventory, state::Shared};
use crate::event::{ChangeSet, EntryKind, LogEntry, PerResource, Resource, ResourceVersion, View};

/// The source's hand for the past. The writer's is for what is new: neither is in the other's way.
#[derive(Debug)]
pub struct BackfillHandle {
    shared: Arc<Shared>,
}

/// What lies between the oldest cursor asked for and the log's start.
#[derive(Debug)]
pub struct BackfillRound {
    /// One for each resource of which something is missing.
    pub gaps: Vec<Gap>,
    first: u64,
    history_epoch: u64,
    log_base_versions: PerResource<ResourceVersion>,
}

/// The time of one resource that the log does not hold.
#[derive(Debug)]
pub struct Gap {
    resource: Resource,
    from: ResourceVersion,
    to: ResourceVersion,
    /// The state at `to`.
    end: Arc<Inventory>,
    state: Inventory,
    at: ResourceVersion,
    change_sets: Vec<ChangeSet>,
}

impl BackfillHandle {
    pub(super) fn new(shared: Arc<Shared>) -> BackfillHandle {
        BackfillHandle { shared }
    }

    /// Resolves when somebody waits for history.
    pub async fn wait_for_request(&self) {
        self.until(|wanted| wanted.is_backfill_requested()).await;
    }

    /// Resolves when somebody has a cursor ahead of this replica, and it should be found out whether there is such a
    /// version.
    pub async fn wait_for_version_check(&self) {
        self.until(|wanted| wanted.is_version_check_requested()).await;
    }

    async fn until(&self, holds: impl Fn(&BackfillRequests) -> bool) {
        let mut asked = pin!(self.shared.backfill_requested.notified());
        loop {
            // Registered before looking, so that a question in between is not missed.
            asked.as_mut().enable();
            if holds(&self.shared.state().backfill_requests) {
                return;
            }
            asked.as_mut().await;
            asked.set(self.shared.backfill_requested.notified());
        }
    }

    /// Begins a round: whoever asks from now on waits for the next one.
    #[must_use]
    pub fn start_round(&self) -> BackfillRound {
        let mut state = self.shared.state();
        let below = state.backfill_requests.start_backfill().unwrap_or(state.log_base_versions);
        let (base, first, history) = (state.log_base_versions, state.log.first_position(), state.history_epoch);
        let mut end = state.inventory.clone();
        let steps: Vec<Arc<LogEntry>> = state.log.read_from(first, usize::MAX).into_iter().flatten().cloned().collect();
        drop(state);
        let state = Arc::make_mut(&mut end);
        for change in steps.iter().rev().filter_map(|step| step.change_set()).flat_map(|v| v.changes.iter().rev()) {
            state.revert(change);
        }
        let missing = Resource::ALL.into_iter().filter(|resource| below[*resource] < base[*resource]);
        let gap = |resource| Gap {
            resource,
            from: below[resource],
            to: base[resource],
            end: end.clone(),
            state: Inventory::default(),
            at: below[resource],
            change_sets: Vec::new(),
        };
        BackfillRound { gaps: missing.map(gap).collect(), first, history_epoch: history, log_base_versions: base }
    }

    /// Ends the round with what was found, the gaps all closed.
    pub fn complete_round(&self, backfill: BackfillRound) {
        let BackfillRound { gaps, first, history_epoch: history, log_base_versions: base } = backfill;
        let mut from = base;
        let mut versions = Vec::new();
        for gap in gaps {
            from[gap.resource] = gap.from;
            versions.extend(gap.change_sets);
        }
        // Any order between the two resources is true; that of the numbers is nearest to what happened.
        versions.sort_by_key(|version| version.version);
        self.shared.update(|state, now_ms| {
            state.backfill_requests.end_backfill();
            if state.log.first_position() != first || state.history_epoch != history {
                return;
            }
            let mut after = from;
            let step = |version: ChangeSet| {
                after[version.resource] = version.version;
                let step =
                    LogEntry { versions_after: after, observed_at_ms: now_ms, kind: EntryKind::ChangeSet(version) };
                let cost = step.charged_bytes();
                (Arc::new(step), cost)
            };
            if state.log.prepend(versions.into_iter().map(step).collect(), now_ms) {
                state.log_base_versions = from;
                self.shared.metrics.backfills.inc();
            }
        });
    }

    /// Ends the round without having found anything.
    pub fn abandon_round(&self) {
        self.shared.update(|state, _| state.backfill_requests.end_backfill());
    }

    /// Begins a confirmation: whoever asks from now on waits for the next one.
    pub fn start_version_check(&self) {
        self.shared.state().backfill_requests.start_version_check();
    }

    /// Ends a confirmation with the versions that the API server has; `None` when it is not to be asked.
    pub fn complete_version_check(&self, versions: Option<PerResource<ResourceVersion>>) {
        self.shared.update(|state, _| {
            let versions = versions.unwrap_or(state.latest_versions);
            state.backfill_requests.end_version_check(versions);
        });
    }
}

impl Gap {
    /// The resource.
    #[must_use]
    pub fn resource(&self) -> Resource {
        self.resource
    }

    /// The version after which something is missing.
    #[must_use]
    pub fn from(&self) -> ResourceVersion {
        self.from
    }

    /// The version up to which, and including which, it is missing.
    #[must_use]
    pub fn to(&self) -> ResourceVersion {
        self.to
    }

    /// Takes the state at [`Gap::from`].
    pub fn list(&mut self, views: Vec<View>) {
        self.state = Inventory::default();
        self.state.replace(self.resource, views);
    }

    /// Takes an object that was added or modified. Versions come in order, none after [`Gap::to`].
    pub fn upsert(&mut self, view: View) {
        let rv = view.resource_version();
        let changes = self.state.upsert(view);
        if !changes.is_empty() {
            let since = (changes.len() > 1).then_some(self.at);
            self.push(rv, changes, since);
        }
    }

    /// Takes an object that was deleted, at its version.
    pub fn remove(&mut self, view: &View) {
        if let Some(change) = self.state.remove(self.resource, view.name(), view.uid()) {
            self.push(view.resource_version(), vec![change], None);
        }
    }

    /// Steps taken so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.change_sets.len()
    }

    /// Whether no step has been taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.change_sets.is_empty()
    }

    /// Ends it: with a difference, unless what has come `is_complete` and leads to the state at the log's start.
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
        let (to, since) = (self.to, self.at);
        self.push(to, changes, Some(since));
    }

    fn push(&mut self, rv: ResourceVersion, changes: Vec<crate::event::Change>, since: Option<ResourceVersion>) {
        self.at = rv;
        let version = ChangeSet {
            resource: self.resource,
            version: rv,
            changes: changes.into(),
            coalesced_from: since,
            history_reset: false,
        };
        self.change_sets.push(version);
    }
}
