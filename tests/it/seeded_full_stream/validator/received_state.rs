//! `state.initial`: whether there was a reason for it, and whether it is one cut, true at its id (G3, G4).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use boilerhouse_bridge::event::Resource;
use serde_json::Value;

use super::super::projections::PROJECTIONS;
use super::super::record::{ReceivedEvent, Start};
use super::{CandidatePosition, CandidatePositions, Client, Fold, Pools, Validation, pool_of};

/// Where versions have gone back, it is asked once more whose they are before a list is taken in (milliseconds).
pub(super) const HOME: u64 = 100;
/// A log holds no more than this, and neither does a replica remember (milliseconds).
const AGE: u64 = 590_000;
/// So many rounds of reading the past may begin in so long a time (milliseconds).
const BUDGET: usize = 6;
const BUDGET_TIME: u64 = 65_000;

/// One `state.initial`, in however many parts.
#[derive(Debug, Default)]
pub(super) struct ReceivedState {
    reason: String,
    /// When its first part came.
    started: u64,
    objects: Fold,
    pools: Pools,
}

impl Client<'_> {
    pub(super) fn initial(&mut self, received: &ReceivedEvent) -> Validation {
        let body = &received.body;
        let reason = body["reason"].as_str().ok_or("no reason")?.to_owned();
        let open = self.open.as_mut().unwrap();
        let mut state = open.parts.take().unwrap_or_else(|| ReceivedState {
            reason: reason.clone(),
            started: received.at,
            ..ReceivedState::default()
        });
        if state.reason != reason {
            return Err(format!("it began with {}", state.reason));
        }
        for (k, array) in ["instances", "claims"].into_iter().enumerate() {
            for view in body[array].as_array().ok_or("an array is missing")? {
                let uid = view["uid"].as_str().ok_or("an object without uid")?.to_owned();
                if state.objects[k].insert(uid, Arc::new(view.clone())).is_some() {
                    return Err("an object stands in it twice".to_owned());
                }
            }
        }
        for pool in body["pools"].as_array().ok_or("an array is missing")? {
            let (workload, counts) = pool_of(pool)?;
            if state.pools.insert(workload, counts).is_some() {
                return Err("a pool stands in it twice".to_owned());
            }
        }
        self.coverage.parts += 1;
        let more = body.get("more") == Some(&Value::Bool(true));
        match (&received.id, more) {
            (None, true) => {
                open.parts = Some(state);
                Ok(())
            }
            (Some(id), false) => self.initial_started_at(received.at, id, state),
            _ => Err("exactly the last part has an id".to_owned()),
        }
    }

    /// A whole picture.
    fn initial_started_at(&mut self, at: u64, id: &str, state: ReceivedState) -> Validation {
        let ReceivedState { reason, started, objects, pools } = state;
        self.justify(&reason, at)?;
        let versions = self.versions(id)?;
        if reason == "connect" || reason == "foreign" {
            self.id = None;
        }
        let history = &self.validator.history;
        let epochs = 0..=history.epoch_at(at);
        let mut positions = CandidatePositions::default();
        for kind in Resource::ALL {
            let (k, needed) = (kind as usize, PROJECTIONS[self.projection].needs(kind));
            let rv = versions[k].unwrap_or(0);
            let received: BTreeMap<&str, &Value> =
                objects[k].iter().map(|(uid, view)| (uid.as_str(), &**view)).collect();
            let fits = |epoch: &usize| {
                !needed || (rv <= history.last(*epoch) && history.fold(self.projection, *epoch, kind, rv) == received)
            };
            let position = |epoch| CandidatePosition { epoch, rv, pending: VecDeque::new(), end: rv };
            positions[k] = epochs.clone().filter(fits).map(position).collect();
            if positions[k].is_empty() || (!needed && !received.is_empty()) {
                let really: Vec<_> = epochs.map(|epoch| history.fold(self.projection, epoch, kind, rv)).collect();
                return Err(format!("at {rv} {} were {really:?}", kind.plural()));
            }
        }
        if PROJECTIONS[self.projection].has("pool.depth") {
            let fits = |position: &CandidatePosition| pools == history.pools(position.epoch, position.rv);
            if !positions[0].iter().any(fits) {
                return Err(format!("the pools were {:?}", history.pools(positions[0][0].epoch, positions[0][0].rv)));
            }
        } else if !pools.is_empty() {
            return Err("nobody asked for pools".to_owned());
        }
        self.positions = positions;
        self.fold = Some(objects);
        self.pools = Some(pools);
        self.initial_started_at = started;
        let open = self.open.as_mut().unwrap();
        open.is_pictured = true;
        // What was said of the upstream while the client was behind is not said again: heartbeats do.
        open.down = [None; 2];
        *self.coverage.initials.entry(reason).or_default() += 1;
        self.reach(id, at)
    }

    /// Whether there was a reason for a new picture.
    fn justify(&self, reason: &str, at: u64) -> Validation {
        let (open, timeline) = (self.open.as_ref().unwrap(), self.timeline());
        let resumed = match &open.start {
            Start::Resume { projection, is_forged, .. } => Some((*projection, *is_forged)),
            Start::Snapshot | Start::Live => None,
        };
        let is_long = at.saturating_sub(timeline.setup.born) > AGE;
        let is_first = !open.is_pictured;
        let is_right = match reason {
            "connect" => is_first && open.start == Start::Snapshot,
            "filter" => {
                is_first
                    && resumed
                        .is_some_and(|(projection, _)| !PROJECTIONS[self.projection].takes(&PROJECTIONS[projection]))
            }
            "foreign" => is_first && resumed.is_some_and(|(_, is_forged)| is_forged) || self.is_foreign(at),
            "expired" => is_first && resumed.is_some() && (is_long || !self.should_be_held(at)),
            "lagged" => {
                (timeline.setup.is_small || is_long) && timeline.has_grown(open.at.max(self.initial_started_at), at)
            }
            _ => false,
        };
        if is_right { Ok(()) } else { Err(format!("there is no reason to say {reason}")) }
    }

    /// Whether the client's cursor may be of another history than the replica's.
    fn is_foreign(&self, at: u64) -> bool {
        let (history, timeline) = (&self.validator.history, self.timeline());
        let newest = history.epoch_at(at);
        if newest == 0 {
            return false;
        }
        let is_lost = |kind: Resource| {
            let valid = |position: &CandidatePosition| history.is_shared(position.epoch, newest, position.rv);
            !self.positions[kind as usize].iter().any(valid)
        };
        self.needed().any(is_lost) || timeline.has_restarted(self.initial_started_at.saturating_sub(HOME), at) || {
            // What was before a restart may be of either history.
            let is_before = |kind: Resource| {
                let mut restarts = timeline.relists.iter().flatten().filter(|list| list.is_restart() && list.at <= at);
                let rv = self.id.unwrap_or_default()[kind as usize];
                restarts.any(|list| rv.is_none_or(|rv| rv < list.rv))
            };
            self.needed().any(is_before)
        }
    }

    /// Whether a replica without any trouble holds, or can read, all that came after the cursor.
    fn should_be_held(&self, at: u64) -> bool {
        let (open, timeline) = (self.open.as_ref().unwrap(), self.timeline());
        let lately = open.at.saturating_sub(BUDGET_TIME)..=at;
        let resumes = self
            .validator
            .resumes
            .iter()
            .filter(|(when, index)| *index == open.replica && lately.contains(when))
            .count();
        let is_spoilt = |kind: Resource| {
            let k = kind as usize;
            // Of what it does not cover nothing is needed.
            let is_between = self.id.unwrap_or_default()[k].is_some_and(|rv| timeline.is_between(kind, rv, at));
            // A difference at the end of what was read of the past is one, too.
            let unread = timeline.unwatched[k].iter().any(|when| *when <= at);
            let unlisted = timeline.unlisted[k].iter().any(|when| (open.at..=at).contains(when));
            is_between || unread || unlisted
        };
        !timeline.setup.is_small
            && resumes <= BUDGET
            && self.validator.history.epoch_at(at) == 0
            && !Resource::ALL.into_iter().any(is_spoilt)
    }
}
