//! Events and ids: each is the next that the client's place in the history asks for, and an id says no more and no less
//! than what has been told (G1, G2, G3, G7, G8).

use std::collections::BTreeMap;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use serde_json::Value;

use super::super::looks::LOOKS;
use super::super::record::{Entry, Told};
use super::{Client, Track, Verdict};

impl Client<'_> {
    pub(super) fn event(&mut self, kind: Resource, told: &Told, next: &[Entry]) -> Verdict {
        self.found.events += 1;
        self.follow_turns(told.at);
        let (k, is_last) = (kind as usize, told.id.is_some());
        let mut after: Vec<Track> = Vec::new();
        let mut expected = None;
        for track in &self.tracks[k] {
            let continued = !track.pending.is_empty();
            let begun = if continued { vec![track.clone()] } else { self.begin(track, kind, told, next) };
            for mut track in begun {
                let Some(first) = track.pending.pop_front() else { continue };
                if first != told.body || track.pending.is_empty() != is_last {
                    expected.get_or_insert((first, track.pending.is_empty(), track.end));
                    continue;
                }
                if track.pending.is_empty() {
                    track.rv = track.end;
                }
                if !after.contains(&track) {
                    after.push(track);
                }
                self.found.differences += u64::from(told.is_coalesced() && !continued);
            }
        }
        if after.is_empty() {
            return Err(match expected {
                Some((event, last, rv)) => format!("expected at {rv}, last of it: {last}, {event}"),
                None => format!("nothing of that was to come after {:?}", self.tracks[k]),
            });
        }
        self.tracks[k] = after;
        self.take(k, &told.body);
        told.id.as_ref().map_or(Ok(()), |id| self.reach(id, told.at))
    }

    /// What may begin with an event at a track.
    fn begin(&self, track: &Track, kind: Resource, told: &Told, next: &[Entry]) -> Vec<Track> {
        let chronicle = &self.court.chronicle;
        let begun = |events: Vec<Arc<Value>>, end| Track { pending: events.into(), end, ..track.clone() };
        if !told.is_coalesced() {
            let visible = chronicle.visible(self.looks, track.epoch, kind);
            let next = visible.get(visible.partition_point(|one| one.rv <= track.rv));
            return next.map(|one| begun(one.events.clone(), one.rv)).into_iter().collect();
        }
        // A difference ends with an id, and that is its version.
        let rest = next.iter().map_while(|entry| match entry {
            Entry::Told(told) if told.is_coalesced() => Some(told),
            _ => None,
        });
        let end = [told].into_iter().chain(rest).find_map(|told| told.id.as_ref());
        let to = end.and_then(|id| Cursor::decode(id)).map(|cursor| cursor.rv[kind as usize]);
        let known = self.differences(track, kind, to, told.at).into_iter();
        known.map(|(since, to)| begun(chronicle.difference(self.looks, track.epoch, kind, since, to), to)).collect()
    }

    /// The differences that its replica has and that a client at this track can be told: since when, up to when.
    pub(super) fn differences(
        &self,
        track: &Track,
        kind: Resource,
        to: Option<ResourceVersion>,
        at: u64,
    ) -> Vec<(ResourceVersion, ResourceVersion)> {
        let (chronicle, journey, k) = (&self.court.chronicle, self.journey(), kind as usize);
        let next = chronicle.next_visible(self.looks, track.epoch, kind, track.rv);
        let mut all = Vec::new();
        for relist in journey.relists[k].iter().filter(|relist| relist.at <= at && relist.epoch == track.epoch) {
            if to.is_none_or(|to| to == relist.rv) {
                all.extend(relist.since.iter().map(|since| (*since, relist.rv)));
            }
        }
        // At the end of what was read of the past, where that was not whole: where the log began. Of one that was cut off
        // before its id came, that may be anywhere that the replica has been.
        let ends = to.map_or_else(|| journey.versions(kind, at), |to| vec![to]);
        if let Some(unwatched) = journey.unwatched[k].iter().rev().find(|when| **when <= at) {
            let lists: Vec<ResourceVersion> =
                journey.pasts[k].iter().filter(|past| past.0 <= *unwatched).map(|past| past.1).collect();
            let least = lists.iter().copied().min().unwrap_or(ResourceVersion::MAX).max(track.rv);
            for to in ends {
                let end = next.unwrap_or(to).min(to);
                let versions = chronicle.between(track.epoch, kind, least.saturating_sub(1), end);
                all.extend(versions.chain(lists.iter().copied()).map(|since| (since, to)));
            }
        }
        all.retain(|(since, to)| *since >= track.rv && since < to && next.is_none_or(|next| next > *since));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What an event does to the client's picture.
    fn take(&mut self, k: usize, body: &Value) {
        let view = &body[["instance", "claim"][k]];
        let (Some(fold), Some(uid)) = (&mut self.fold, view["uid"].as_str()) else { return };
        let was = match body["phase"].as_str() {
            Some("Deleted") => fold[k].remove(uid),
            _ => fold[k].insert(uid.to_owned(), Arc::new(view.clone())),
        };
        self.undo.push((k, uid.to_owned(), was));
    }

    /// Whoever is at a version that two histories share may be in either.
    pub(super) fn follow_turns(&mut self, at: u64) {
        let chronicle = &self.court.chronicle;
        let newest = chronicle.epoch_at(at);
        for tracks in &mut self.tracks {
            for epoch in 1..=newest {
                let from = |track: &&Track| {
                    let is_shared = || chronicle.is_shared(track.epoch, epoch, track.rv);
                    track.epoch < epoch && track.pending.is_empty() && is_shared()
                };
                let followed = tracks.iter().find(from).map(|track| Track { epoch, ..track.clone() });
                let is_there = |track: &Track| tracks.iter().any(|other| other == track);
                if let Some(track) = followed.filter(|track| !is_there(track)) {
                    tracks.push(track);
                }
            }
        }
    }

    /// An id: everything up to it must have been told, and nothing of it may be missing.
    pub(super) fn reach(&mut self, id: &str, at: u64) -> Verdict {
        self.follow_turns(at);
        let versions = self.versions(id)?;
        for kind in self.needed() {
            let (k, rv) = (kind as usize, versions[kind as usize].unwrap());
            if let Some(last) = self.id.and_then(|id| id[k]).filter(|last| rv < *last) {
                return Err(format!("{} go back from {last} to {rv}", kind.resource()));
            }
            let chronicle = &self.court.chronicle;
            let fits = |track: &Track| {
                let next = chronicle.next_visible(self.looks, track.epoch, kind, track.rv);
                let is_possible = rv >= track.rv && rv <= chronicle.last(track.epoch);
                track.pending.is_empty() && is_possible && next.is_none_or(|next| next > rv)
            };
            let before = std::mem::take(&mut self.tracks[k]);
            let mut after: Vec<Track> = before.iter().filter(|track| fits(track)).cloned().collect();
            if after.is_empty() {
                let why = |track: &Track| {
                    let next = chronicle.next_visible(self.looks, track.epoch, kind, track.rv);
                    format!("{track:?}, next {next:?}, last {}", chronicle.last(track.epoch))
                };
                let why: Vec<String> = before.iter().map(why).collect();
                return Err(format!("{} cannot be at {rv}: {why:?}", kind.resource()));
            }
            for track in &mut after {
                (track.rv, track.end) = (rv, rv);
            }
            after.dedup();
            self.tracks[k] = after;
        }
        self.found.ids += 1;
        self.saved = self.tracks.clone();
        self.id = Some(versions);
        self.text = Some(id.to_owned());
        self.undo.clear();
        self.folds()
    }

    /// Whether the client's picture is what the store had: G7.
    pub(super) fn folds(&self) -> Verdict {
        let Some(fold) = &self.fold else { return Ok(()) };
        for kind in self.needed() {
            let k = kind as usize;
            let mine: BTreeMap<&str, &Value> = fold[k].iter().map(|(uid, view)| (uid.as_str(), &**view)).collect();
            let fits = |track: &Track| self.court.chronicle.fold(self.looks, track.epoch, kind, track.rv) == mine;
            if !self.tracks[k].iter().any(fits) {
                return Err(format!("the fold of {} is {mine:?}", kind.resource()));
            }
        }
        Ok(())
    }

    /// The versions in an id, of the resources that are asked for.
    pub(super) fn versions(&self, id: &str) -> Result<[Option<ResourceVersion>; 2], String> {
        let cursor = Cursor::decode(id).ok_or("its id is none")?;
        let needed = Resource::ALL.map(|kind| LOOKS[self.looks].needs(kind));
        if cursor.covers != needed {
            return Err("its id covers something else".to_owned());
        }
        Ok([0, 1].map(|k| needed[k].then_some(cursor.rv[k])))
    }
}
