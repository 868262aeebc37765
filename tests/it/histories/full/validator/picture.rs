//! `state.initial`: whether there was a reason for it, and whether it is one cut, true at its id (G3, G4).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use boilerhouse_bridge::event::Resource;
use serde_json::Value;

use super::super::looks::LOOKS;
use super::super::record::{Start, Told};
use super::{Client, Fold, Pools, Track, Tracks, Verdict, pool_of};

/// Where versions have gone back, it is asked once more whose they are before a list is taken in (milliseconds).
pub(super) const HOME: u64 = 100;
/// A log holds no more than this, and neither does a replica remember (milliseconds).
const AGE: u64 = 590_000;
/// So many rounds of reading the past may begin in so long a time (milliseconds).
const BUDGET: usize = 6;
const BUDGET_TIME: u64 = 65_000;

/// One `state.initial`, in however many parts.
#[derive(Debug, Default)]
pub(super) struct Picture {
    reason: String,
    /// When its first part came.
    begun: u64,
    objects: Fold,
    pools: Pools,
}

impl Client<'_> {
    pub(super) fn initial(&mut self, told: &Told) -> Verdict {
        let body = &told.body;
        let reason = body["reason"].as_str().ok_or("no reason")?.to_owned();
        let open = self.open.as_mut().unwrap();
        let mut picture = open.parts.take().unwrap_or_else(|| Picture {
            reason: reason.clone(),
            begun: told.at,
            ..Picture::default()
        });
        if picture.reason != reason {
            return Err(format!("it began with {}", picture.reason));
        }
        for (k, array) in ["instances", "claims"].into_iter().enumerate() {
            for view in body[array].as_array().ok_or("an array is missing")? {
                let uid = view["uid"].as_str().ok_or("an object without uid")?.to_owned();
                if picture.objects[k].insert(uid, Arc::new(view.clone())).is_some() {
                    return Err("an object stands in it twice".to_owned());
                }
            }
        }
        for pool in body["pools"].as_array().ok_or("an array is missing")? {
            let (workload, counts) = pool_of(pool)?;
            if picture.pools.insert(workload, counts).is_some() {
                return Err("a pool stands in it twice".to_owned());
            }
        }
        self.found.parts += 1;
        let more = body.get("more") == Some(&Value::Bool(true));
        match (&told.id, more) {
            (None, true) => {
                open.parts = Some(picture);
                Ok(())
            }
            (Some(id), false) => self.pictured(told.at, id, picture),
            _ => Err("exactly the last part has an id".to_owned()),
        }
    }

    /// A whole picture.
    fn pictured(&mut self, at: u64, id: &str, picture: Picture) -> Verdict {
        let Picture { reason, begun, objects, pools } = picture;
        self.justify(&reason, at)?;
        let versions = self.versions(id)?;
        if reason == "connect" || reason == "foreign" {
            self.id = None;
        }
        let chronicle = &self.court.chronicle;
        let epochs = 0..=chronicle.epoch_at(at);
        let mut tracks = Tracks::default();
        for kind in Resource::ALL {
            let (k, needed) = (kind as usize, LOOKS[self.looks].needs(kind));
            let rv = versions[k].unwrap_or(0);
            let told: BTreeMap<&str, &Value> = objects[k].iter().map(|(uid, view)| (uid.as_str(), &**view)).collect();
            let fits = |epoch: &usize| {
                !needed || (rv <= chronicle.last(*epoch) && chronicle.fold(self.looks, *epoch, kind, rv) == told)
            };
            let track = |epoch| Track { epoch, rv, pending: VecDeque::new(), end: rv };
            tracks[k] = epochs.clone().filter(fits).map(track).collect();
            if tracks[k].is_empty() || (!needed && !told.is_empty()) {
                let really: Vec<_> = epochs.map(|epoch| chronicle.fold(self.looks, epoch, kind, rv)).collect();
                return Err(format!("at {rv} {} were {really:?}", kind.resource()));
            }
        }
        if LOOKS[self.looks].has("pool.depth") {
            let fits = |track: &Track| pools == chronicle.pools(track.epoch, track.rv);
            if !tracks[0].iter().any(fits) {
                return Err(format!("the pools were {:?}", chronicle.pools(tracks[0][0].epoch, tracks[0][0].rv)));
            }
        } else if !pools.is_empty() {
            return Err("nobody asked for pools".to_owned());
        }
        self.tracks = tracks;
        self.fold = Some(objects);
        self.pools = Some(pools);
        self.pictured = begun;
        let open = self.open.as_mut().unwrap();
        open.is_pictured = true;
        // What was said of the upstream while the client was behind is not said again: heartbeats do.
        open.down = [None; 2];
        *self.found.initials.entry(reason).or_default() += 1;
        self.reach(id, at)
    }

    /// Whether there was a reason for a new picture.
    fn justify(&self, reason: &str, at: u64) -> Verdict {
        let (open, journey) = (self.open.as_ref().unwrap(), self.journey());
        let resumed = match &open.start {
            Start::Resume { looks, is_forged, .. } => Some((*looks, *is_forged)),
            Start::Snapshot | Start::Now => None,
        };
        let is_long = at.saturating_sub(journey.setup.born) > AGE;
        let is_first = !open.is_pictured;
        let is_right = match reason {
            "connect" => is_first && open.start == Start::Snapshot,
            "filter" => is_first && resumed.is_some_and(|(looks, _)| !LOOKS[self.looks].takes(&LOOKS[looks])),
            "foreign" => is_first && resumed.is_some_and(|(_, is_forged)| is_forged) || self.is_foreign(at),
            "expired" => is_first && resumed.is_some() && (is_long || !self.should_be_held(at)),
            "lagged" => (journey.setup.is_small || is_long) && journey.has_grown(open.at.max(self.pictured), at),
            _ => false,
        };
        if is_right { Ok(()) } else { Err(format!("there is no reason to say {reason}")) }
    }

    /// Whether the client's cursor may be of another history than the replica's.
    fn is_foreign(&self, at: u64) -> bool {
        let (chronicle, journey) = (&self.court.chronicle, self.journey());
        let newest = chronicle.epoch_at(at);
        if newest == 0 {
            return false;
        }
        let is_lost = |kind: Resource| {
            let good = |track: &Track| chronicle.is_shared(track.epoch, newest, track.rv);
            !self.tracks[kind as usize].iter().any(good)
        };
        self.needed().any(is_lost) || journey.has_restarted(self.pictured.saturating_sub(HOME), at) || {
            // What was before a restart may be of either history.
            let is_before = |kind: Resource| {
                let mut restarts = journey.relists.iter().flatten().filter(|list| list.is_restart() && list.at <= at);
                let rv = self.id.unwrap_or_default()[kind as usize];
                restarts.any(|list| rv.is_none_or(|rv| rv < list.rv))
            };
            self.needed().any(is_before)
        }
    }

    /// Whether a replica without any trouble holds, or can read, all that came after the cursor.
    fn should_be_held(&self, at: u64) -> bool {
        let (open, journey) = (self.open.as_ref().unwrap(), self.journey());
        let lately = open.at.saturating_sub(BUDGET_TIME)..=at;
        let resumes =
            self.court.resumes.iter().filter(|(when, who)| *who == open.replica && lately.contains(when)).count();
        let is_spoilt = |kind: Resource| {
            let k = kind as usize;
            // Of what it does not cover nothing is needed.
            let is_between = self.id.unwrap_or_default()[k].is_some_and(|rv| journey.is_between(kind, rv, at));
            // A difference at the end of what was read of the past is one, too.
            let unread = journey.unwatched[k].iter().any(|when| *when <= at);
            let unlisted = journey.unlisted[k].iter().any(|when| (open.at..=at).contains(when));
            is_between || unread || unlisted
        };
        !journey.setup.is_small
            && resumes <= BUDGET
            && self.court.chronicle.epoch_at(at) == 0
            && !Resource::ALL.into_iter().any(is_spoilt)
    }
}
