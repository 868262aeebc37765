//! Events and ids: each is the next that the client's place in the history asks for, and an id says no more and no less
//! than what has been told (G1, G2, G3, G7, G8).

use std::collections::BTreeMap;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use serde_json::Value;

use super::super::projections::PROJECTIONS;
use super::super::record::{Entry, ReceivedEvent};
use super::{CandidatePosition, Client, Validation};

impl Client<'_> {
    pub(super) fn event(&mut self, kind: Resource, received: &ReceivedEvent, next: &[Entry]) -> Validation {
        self.coverage.events += 1;
        self.follow_switches(received.at);
        let (k, is_last) = (kind as usize, received.id.is_some());
        let mut after: Vec<CandidatePosition> = Vec::new();
        let mut expected = None;
        for position in &self.positions[k] {
            let continued = !position.pending.is_empty();
            let started = if continued { vec![position.clone()] } else { self.begin(position, kind, received, next) };
            for mut position in started {
                let Some(first) = position.pending.pop_front() else { continue };
                if first != received.body || position.pending.is_empty() != is_last {
                    expected.get_or_insert((first, position.pending.is_empty(), position.end));
                    continue;
                }
                if position.pending.is_empty() {
                    position.rv = position.end;
                }
                if !after.contains(&position) {
                    after.push(position);
                }
                self.coverage.differences += u64::from(received.is_coalesced() && !continued);
            }
        }
        if after.is_empty() {
            return Err(match expected {
                Some((event, last, rv)) => format!("expected at {rv}, last of it: {last}, {event}"),
                None => format!("nothing of that was to come after {:?}", self.positions[k]),
            });
        }
        self.positions[k] = after;
        self.apply_event(k, &received.body);
        received.id.as_ref().map_or(Ok(()), |id| self.reach(id, received.at))
    }

    /// What may begin with an event at a track.
    fn begin(
        &self,
        position: &CandidatePosition,
        kind: Resource,
        received: &ReceivedEvent,
        next: &[Entry],
    ) -> Vec<CandidatePosition> {
        let history = &self.validator.history;
        let started =
            |events: Vec<Arc<Value>>, end| CandidatePosition { pending: events.into(), end, ..position.clone() };
        if !received.is_coalesced() {
            let visible = history.visible(self.projection, position.epoch, kind);
            let next = visible.get(visible.partition_point(|one| one.rv <= position.rv));
            return next.map(|one| started(one.events.clone(), one.rv)).into_iter().collect();
        }
        // A difference ends with an id, and that is its version.
        let rest = next.iter().map_while(|entry| match entry {
            Entry::Event(received) if received.is_coalesced() => Some(received),
            _ => None,
        });
        let end = [received].into_iter().chain(rest).find_map(|received| received.id.as_ref());
        let to = end.and_then(|id| Cursor::decode(id)).map(|cursor| cursor.versions[kind]);
        let known = self.differences(position, kind, to, received.at).into_iter();
        known
            .map(|(since, to)| started(history.difference(self.projection, position.epoch, kind, since, to), to))
            .collect()
    }

    /// The differences that its replica has and that a client at this track can be told: since when, up to when.
    pub(super) fn differences(
        &self,
        position: &CandidatePosition,
        kind: Resource,
        to: Option<ResourceVersion>,
        at: u64,
    ) -> Vec<(ResourceVersion, ResourceVersion)> {
        let (history, timeline, k) = (&self.validator.history, self.timeline(), kind as usize);
        let next = history.next_visible(self.projection, position.epoch, kind, position.rv);
        let mut all = Vec::new();
        for relist in timeline.relists[k].iter().filter(|relist| relist.at <= at && relist.epoch == position.epoch) {
            if to.is_none_or(|to| to == relist.rv) {
                all.extend(relist.since.iter().map(|since| (*since, relist.rv)));
            }
        }
        // At the end of what was read of the past, where that was not whole: where the log began. Of one that was cut off
        // before its id came, that may be anywhere that the replica has been.
        let ends = to.map_or_else(|| timeline.versions(kind, at), |to| vec![to]);
        if let Some(unwatched) = timeline.unwatched[k].iter().rev().find(|when| **when <= at) {
            let lists: Vec<ResourceVersion> =
                timeline.pasts[k].iter().filter(|past| past.0 <= *unwatched).map(|past| past.1).collect();
            let least = lists.iter().copied().min().unwrap_or(ResourceVersion::MAX).max(position.rv);
            for to in ends {
                let end = next.unwrap_or(to).min(to);
                let versions = history.between(position.epoch, kind, least.saturating_sub(1), end);
                all.extend(versions.chain(lists.iter().copied()).map(|since| (since, to)));
            }
        }
        all.retain(|(since, to)| *since >= position.rv && since < to && next.is_none_or(|next| next > *since));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What an event does to the client's picture.
    fn apply_event(&mut self, k: usize, body: &Value) {
        let view = &body[["instance", "claim"][k]];
        let (Some(fold), Some(uid)) = (&mut self.fold, view["uid"].as_str()) else { return };
        let was = match body["phase"].as_str() {
            Some("Deleted") => fold[k].remove(uid),
            _ => fold[k].insert(uid.to_owned(), Arc::new(view.clone())),
        };
        self.undo.push((k, uid.to_owned(), was));
    }

    /// Whoever is at a version that two histories share may be in either.
    pub(super) fn follow_switches(&mut self, at: u64) {
        let history = &self.validator.history;
        let newest = history.epoch_at(at);
        for positions in &mut self.positions {
            for epoch in 1..=newest {
                let from = |position: &&CandidatePosition| {
                    let is_shared = || history.is_shared(position.epoch, epoch, position.rv);
                    position.epoch < epoch && position.pending.is_empty() && is_shared()
                };
                let followed =
                    positions.iter().find(from).map(|position| CandidatePosition { epoch, ..position.clone() });
                let is_there = |position: &CandidatePosition| positions.iter().any(|other| other == position);
                if let Some(position) = followed.filter(|position| !is_there(position)) {
                    positions.push(position);
                }
            }
        }
    }

    /// An id: everything up to it must have been told, and nothing of it may be missing.
    pub(super) fn reach(&mut self, id: &str, at: u64) -> Validation {
        self.follow_switches(at);
        let versions = self.versions(id)?;
        for kind in self.needed() {
            let (k, rv) = (kind as usize, versions[kind as usize].unwrap());
            if let Some(last) = self.id.and_then(|id| id[k]).filter(|last| rv < *last) {
                return Err(format!("{} go back from {last} to {rv}", kind.plural()));
            }
            let history = &self.validator.history;
            let fits = |position: &CandidatePosition| {
                let next = history.next_visible(self.projection, position.epoch, kind, position.rv);
                let is_possible = rv >= position.rv && rv <= history.last(position.epoch);
                position.pending.is_empty() && is_possible && next.is_none_or(|next| next > rv)
            };
            let before = std::mem::take(&mut self.positions[k]);
            let mut after: Vec<CandidatePosition> = before.iter().filter(|position| fits(position)).cloned().collect();
            if after.is_empty() {
                let why = |position: &CandidatePosition| {
                    let next = history.next_visible(self.projection, position.epoch, kind, position.rv);
                    format!("{position:?}, next {next:?}, last {}", history.last(position.epoch))
                };
                let why: Vec<String> = before.iter().map(why).collect();
                return Err(format!("{} cannot be at {rv}: {why:?}", kind.plural()));
            }
            for position in &mut after {
                (position.rv, position.end) = (rv, rv);
            }
            after.dedup();
            self.positions[k] = after;
        }
        self.coverage.ids += 1;
        self.saved = self.positions.clone();
        self.id = Some(versions);
        self.text = Some(id.to_owned());
        self.undo.clear();
        self.folds()
    }

    /// Whether the client's picture is what the store had: G7.
    pub(super) fn folds(&self) -> Validation {
        let Some(fold) = &self.fold else { return Ok(()) };
        for kind in self.needed() {
            let k = kind as usize;
            let mine: BTreeMap<&str, &Value> = fold[k].iter().map(|(uid, view)| (uid.as_str(), &**view)).collect();
            let fits = |position: &CandidatePosition| {
                self.validator.history.fold(self.projection, position.epoch, kind, position.rv) == mine
            };
            if !self.positions[k].iter().any(fits) {
                return Err(format!("the fold of {} is {mine:?}", kind.plural()));
            }
        }
        Ok(())
    }

    /// The versions in an id, of the resources that are asked for.
    pub(super) fn versions(&self, id: &str) -> Result<[Option<ResourceVersion>; 2], String> {
        let cursor = Cursor::decode(id).ok_or("its id is none")?;
        let needed = Resource::ALL.map(|kind| PROJECTIONS[self.projection].needs(kind));
        if cursor.resources.into_array() != needed {
            return Err("its id covers something else".to_owned());
        }
        Ok([0, 1].map(|k| needed[k].then_some(cursor.versions.into_array()[k])))
    }
}
