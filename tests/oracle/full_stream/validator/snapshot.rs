//! `state.initial`: there must be a reason for it, and it must be one consistent state, true at its id (G3, G4).

use std::collections::VecDeque;

use boilerhouse_bridge::event::Resource;
use serde_json::Value;

use crate::oracle::fold::Fold;
use crate::oracle::violation::{Guarantee, Validation, Violation, ensure};

use super::super::projected_history::Pools;
use super::super::record::{ReceivedEvent, Start, time_ms};
use super::super::replica::ReplicaKnowledge;
use super::super::timeline::ReplicaTimeline;
use super::client::{CandidatePosition, CandidatePositions, Client, pool_of};

/// After versions went back, the hub checks the namespace once more before it applies a list. It takes at most this
/// time (milliseconds).
pub(super) const NAMESPACE_CHECK: u64 = 100;
/// A log entry and what a replica remembers may be older than this only by chance (milliseconds).
const LOG_AGE: u64 = 590_000;
/// The number of backfill rounds that may start within [`BACKFILL_BUDGET_TIME`].
const BACKFILL_BUDGET: usize = 6;
/// Milliseconds.
const BACKFILL_BUDGET_TIME: u64 = 65_000;

/// The parts of one `state.initial`.
#[derive(Debug, Default)]
pub(super) struct ReceivedState {
    reason: String,
    /// The time of the state. A client that reads slowly receives the first part later.
    taken_at: u64,
    objects: Fold,
    pools: Pools,
}

impl Client<'_> {
    pub(super) fn initial(&mut self, received: &ReceivedEvent) -> Validation {
        let body = &received.body;
        let missing = |key: &str| Violation::new(Guarantee::WireFormat, format!("{key} is missing"));
        let reason = body["reason"].as_str().ok_or_else(|| missing("reason"))?.to_owned();
        let taken_at = time_ms(body["snapshotAt"].as_str())?;
        ensure(taken_at <= received.at, Guarantee::Honest, || "the state is of the future".to_owned())?;
        let first = || ReceivedState { reason: reason.clone(), taken_at, ..ReceivedState::default() };
        let mut state = self.connection_mut().parts.take().unwrap_or_else(first);
        ensure(state.reason == reason, Guarantee::Atomic, || format!("the first part has reason {}", state.reason))?;
        state.objects.add_part(body)?;
        for pool in body["pools"].as_array().ok_or_else(|| missing("pools"))? {
            let (workload, counts) = pool_of(pool)?;
            let previous = state.pools.insert(workload, counts);
            ensure(previous.is_none(), Guarantee::Unique, || "the snapshot contains a pool twice".to_owned())?;
        }
        self.coverage.parts += 1;
        let has_more = body.get("more") == Some(&Value::Bool(true));
        match (&received.id, has_more) {
            (None, true) => {
                self.connection_mut().parts = Some(state);
                Ok(())
            }
            (Some(id), false) => self.complete_initial(received.at, id, state),
            _ => Err(Violation::new(Guarantee::WireFormat, "exactly the last part has an id")),
        }
    }

    fn complete_initial(&mut self, at: u64, id: &str, state: ReceivedState) -> Validation {
        let ReceivedState { reason, taken_at, objects, pools } = state;
        ensure(self.is_justified(&reason, at), Guarantee::Reliable, || format!("there is no reason {reason}"))?;
        let versions = self.versions(id)?;
        if reason == "connect" || reason == "foreign" {
            self.id = None;
        }
        let (expected, history) = (self.expected(), &self.expected().history);
        let epochs = 0..=history.epoch_at(at);
        let mut positions = CandidatePositions::default();
        for resource in Resource::ALL {
            let needed = self.projection().needs(resource);
            let version = versions[resource].unwrap_or(0);
            let views = objects.views(resource);
            let fits = |epoch: &usize| {
                !needed
                    || (version <= history.last_version(*epoch)
                        && expected.fold(self.projection, *epoch, resource, version) == views)
            };
            let position = |epoch| CandidatePosition { epoch, version, pending: VecDeque::new(), end: version };
            positions[resource] = epochs.clone().filter(fits).map(position).collect();
            let is_right = !positions[resource].is_empty() && (needed || objects.is_empty(resource));
            ensure(is_right, Guarantee::Atomic, || {
                let states = epochs.clone().map(|epoch| expected.fold(self.projection, epoch, resource, version));
                format!("at {version} the {} were {:?}", resource.plural(), states.collect::<Vec<_>>())
            })?;
        }
        let expected_pools =
            |position: &CandidatePosition| expected.pools(self.projection, position.epoch, position.version);
        let is_right = if self.projection().has("pool.depth") {
            positions[Resource::Pods].iter().any(|position| pools == expected_pools(position))
        } else {
            pools.is_empty()
        };
        ensure(is_right, Guarantee::Atomic, || {
            format!("the pools were {:?}", positions[Resource::Pods].iter().map(expected_pools).collect::<Vec<_>>())
        })?;
        self.positions = positions;
        self.fold = Some(objects);
        self.pools = Some(pools);
        self.initial_taken_at = taken_at;
        let connection = self.connection_mut();
        connection.has_snapshot = true;
        // Only a new state may be of another Namespace.
        connection.namespace_hash = None;
        *self.coverage.initials.entry(reason).or_default() += 1;
        self.reach(id, at)
    }

    /// Whether there is a reason for a snapshot.
    fn is_justified(&self, reason: &str, at: u64) -> bool {
        let connection = self.connection();
        let resumed = match &connection.start {
            Start::Resume { projection, is_forged, .. } => Some((*projection, *is_forged)),
            Start::Snapshot | Start::Live => None,
        };
        let is_first = !connection.has_snapshot;
        match reason {
            "connect" => is_first && connection.start == Start::Snapshot,
            "filter" => is_first && resumed.is_some_and(|(projection, _)| !self.accepts_cursor_of(projection)),
            "foreign" => is_first && resumed.is_some_and(|(_, is_forged)| is_forged) || self.may_be_foreign(at),
            "expired" => is_first && resumed.is_some() && self.may_be_expired(at),
            "lagged" => self.may_have_lagged(at),
            _ => false,
        }
    }

    fn may_be_expired(&self, at: u64) -> bool {
        match self.replica() {
            ReplicaKnowledge::Undisturbed => false,
            ReplicaKnowledge::Unknown => true,
            ReplicaKnowledge::Recorded(timeline) => is_long(timeline, at) || !self.must_have_history(timeline, at),
        }
    }

    fn may_have_lagged(&self, at: u64) -> bool {
        match self.replica() {
            ReplicaKnowledge::Undisturbed => false,
            ReplicaKnowledge::Unknown => true,
            ReplicaKnowledge::Recorded(timeline) => {
                let since = self.connection().at.max(self.initial_taken_at);
                (timeline.setup.has_small_log || is_long(timeline, at)) && timeline.has_grown(since, at)
            }
        }
    }

    /// Whether the client's cursor may be of another epoch than the replica's.
    fn may_be_foreign(&self, at: u64) -> bool {
        let history = &self.expected().history;
        let newest = history.epoch_at(at);
        if history.has_new_namespace() && matches!(self.replica(), ReplicaKnowledge::Unknown) {
            return true;
        }
        let Some(timeline) = self.timeline().filter(|_| newest > 0) else { return false };
        let is_lost = |resource: Resource| {
            let mut positions = self.positions[resource].iter();
            !positions.any(|position| history.is_shared(position.epoch, newest, position.version))
        };
        // A version before a history reset may be of either epoch.
        let is_before_reset = |resource: Resource| {
            let version = self.id.unwrap_or_default()[resource];
            let relists = timeline.relists.iter().flatten();
            let mut resets = relists.filter(|relist| relist.is_history_reset() && relist.at <= at);
            resets.any(|relist| version.is_none_or(|version| version < relist.version))
        };
        self.needed().any(is_lost)
            || timeline.has_history_reset(self.initial_taken_at.saturating_sub(NAMESPACE_CHECK), at)
            || self.needed().any(is_before_reset)
    }

    /// Whether a replica that works has, or can read, everything after the cursor.
    fn must_have_history(&self, timeline: &ReplicaTimeline, at: u64) -> bool {
        let connection = self.connection();
        let recently = connection.at.saturating_sub(BACKFILL_BUDGET_TIME)..=at;
        let resumes = self.validator.resumes.iter();
        let resumes =
            resumes.filter(|(when, replica)| *replica == connection.replica && recently.contains(when)).count();
        let may_be_lost = |resource: Resource| {
            // A resource that the cursor does not cover needs no history.
            let version = self.id.unwrap_or_default()[resource];
            let is_inside = version.is_some_and(|version| timeline.is_inside_difference(resource, version, at));
            // An incomplete backfill ends with a difference, too.
            let watch_failed = timeline.backfill_watch_failed[resource].iter().any(|when| *when <= at);
            let waiting = connection.at..=at;
            let list_failed = timeline.backfill_list_failed[resource].iter().any(|when| waiting.contains(when));
            let mut gone = timeline.backfill_list_gone[resource].iter();
            let is_gone = version.is_some_and(|version| gone.any(|(when, gone)| *when <= at && version <= *gone));
            // So does one that stopped before the end, if an object was then created and deleted.
            let first = timeline.first_version(resource).unwrap_or(0);
            let may_be_left = timeline.backfill_lists[resource]
                .iter()
                .any(|(when, list)| *when <= at && self.expected().history.has_transient(0, resource, *list, first));
            is_inside || watch_failed || list_failed || is_gone || may_be_left
        };
        !timeline.setup.has_small_log
            && resumes <= BACKFILL_BUDGET
            && self.expected().history.epoch_at(at) == 0
            && !Resource::ALL.into_iter().any(may_be_lost)
    }
}

/// Whether a replica runs so long that it may have dropped entries by age.
fn is_long(timeline: &ReplicaTimeline, at: u64) -> bool {
    at.saturating_sub(timeline.setup.started_at) > LOG_AGE
}
