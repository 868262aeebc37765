//! Events and ids. Each event is the next one after the client's position. An id covers exactly what was delivered (G1,
//! G2, G3, G7, G8).

use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, PerResource, Resource, ResourceVersion};
use serde_json::Value;

use crate::oracle::violation::{Guarantee, Validation, Violation, ensure};

use super::super::record::{Entry, ReceivedEvent};
use super::super::replica::ReplicaKnowledge;
use super::client::{CandidatePosition, Client, Versions};

impl Client<'_> {
    pub(super) fn event(&mut self, resource: Resource, received: &ReceivedEvent, next: &[Entry]) -> Validation {
        self.coverage.events += 1;
        self.follow_switches(received.at);
        let is_last = received.id.is_some();
        let mut after: Vec<CandidatePosition> = Vec::new();
        let mut expected = None;
        for position in &self.positions[resource] {
            let is_continued = !position.pending.is_empty();
            let candidates = if is_continued {
                vec![position.clone()]
            } else {
                self.next_changes(position, resource, received, next)
            };
            for mut position in candidates {
                let Some(first) = position.pending.pop_front() else { continue };
                if first != received.body || position.pending.is_empty() != is_last {
                    expected.get_or_insert((first, position.pending.is_empty(), position.end));
                    continue;
                }
                if position.pending.is_empty() {
                    position.version = position.end;
                }
                if !after.contains(&position) {
                    after.push(position);
                }
                self.coverage.differences += u64::from(received.is_coalesced() && !is_continued);
            }
        }
        if after.is_empty() {
            return Err(match expected {
                Some((event, is_last, version)) => {
                    let is_state = received.name().ends_with(".state");
                    let guarantee = if is_state { Guarantee::Reliable } else { Guarantee::ExactTransitions };
                    Violation::new(guarantee, format!("expected at {version} (with an id: {is_last}) {event}"))
                }
                None => {
                    let message = format!("no such event is expected after {:?}", self.positions[resource]);
                    Violation::new(Guarantee::Unique, message)
                }
            });
        }
        self.positions[resource] = after;
        self.apply_event(resource, &received.body);
        received.id.as_ref().map_or(Ok(()), |id| self.reach(id, received.at))
    }

    /// The changes that may start with an event at a position.
    fn next_changes(
        &self,
        position: &CandidatePosition,
        resource: Resource,
        received: &ReceivedEvent,
        next: &[Entry],
    ) -> Vec<CandidatePosition> {
        let expected = self.expected();
        let starting =
            |events: Vec<Arc<Value>>, end| CandidatePosition { pending: events.into(), end, ..position.clone() };
        if !received.is_coalesced() {
            let visible = expected.visible(self.projection, position.epoch, resource);
            let next = visible.get(visible.partition_point(|change| change.version <= position.version));
            return next.map(|change| starting(change.events.clone(), change.version)).into_iter().collect();
        }
        // The last event of a difference has an id, which has the version of the difference.
        let rest = next.iter().map_while(|entry| match entry {
            Entry::Event(received) if received.is_coalesced() => Some(received),
            _ => None,
        });
        let id = [received].into_iter().chain(rest).find_map(|received| received.id.as_ref());
        let to = id.and_then(|id| Cursor::decode(id)).map(|cursor| cursor.versions[resource]);
        let differences = self.differences(position, resource, to, received.at).into_iter();
        differences
            .map(|(since, to)| starting(expected.difference(self.projection, position.epoch, resource, since, to), to))
            .collect()
    }

    /// The differences that the replica may send to a client at this position: from which version to which.
    pub(super) fn differences(
        &self,
        position: &CandidatePosition,
        resource: Resource,
        to: Option<ResourceVersion>,
        at: u64,
    ) -> Vec<(ResourceVersion, ResourceVersion)> {
        let (expected, history) = (self.expected(), &self.expected().history);
        let next = expected.next_visible(self.projection, position.epoch, resource, position.version);
        let versions_between = |after: ResourceVersion, before: ResourceVersion| {
            let changes = history.changes_between(position.epoch, resource, after, before.saturating_sub(1));
            changes.iter().map(|change| change.version)
        };
        let mut all = Vec::new();
        match self.replica() {
            // A backfill need not read the rest of the history if the objects are the same at its end.
            ReplicaKnowledge::Undisturbed => {
                if let Some(to) = to {
                    let state = |version| history.state(position.epoch, resource, version);
                    let versions = versions_between(position.version, to).chain([position.version]);
                    all.extend(versions.filter(|since| state(*since) == state(to)).map(|since| (since, to)));
                }
            }
            ReplicaKnowledge::Unknown => {
                if let Some(to) = to {
                    let end = next.unwrap_or(to).min(to);
                    all.extend(versions_between(position.version, end).map(|since| (since, to)));
                    all.push((position.version, to));
                }
            }
            ReplicaKnowledge::Recorded(timeline) => {
                let relists = timeline.relists[resource].iter();
                for relist in relists.filter(|relist| relist.at <= at && relist.epoch == position.epoch) {
                    if to.is_none_or(|to| to == relist.version) {
                        all.extend(relist.since.iter().map(|since| (*since, relist.version)));
                    }
                }
                // An incomplete backfill ends with a difference up to the start of the log. If the client disconnected
                // before its id, that may be any version of the replica.
                let ends = to.map_or_else(|| timeline.versions(resource, at), |to| vec![to]);
                // A backfill need not read the rest of the history if the objects are the same at its end. Objects that
                // were created and deleted there can be missing.
                if timeline.backfill_lists[resource].iter().any(|(when, _)| *when <= at) {
                    for to in &ends {
                        let state = |version| history.state(position.epoch, resource, version);
                        let versions = versions_between(position.version, *to).chain([position.version]);
                        let versions = versions.chain(timeline.backfill_lists[resource].iter().map(|list| list.1));
                        all.extend(versions.filter(|since| state(*since) == state(*to)).map(|since| (since, *to)));
                    }
                }
                let failed = timeline.backfill_watch_failed[resource].iter().rev().find(|when| **when <= at);
                if failed.is_some() {
                    // Lists without a watch can follow the failed one: clients there get a difference of their own.
                    let lists = timeline.backfill_lists[resource].iter().filter(|list| list.0 <= at);
                    let lists: Vec<ResourceVersion> = lists.map(|list| list.1).collect();
                    let min = lists.iter().copied().min().unwrap_or(ResourceVersion::MAX).max(position.version);
                    for to in ends {
                        let end = next.unwrap_or(to).min(to);
                        let versions = versions_between(min.saturating_sub(1), end);
                        all.extend(versions.chain(lists.iter().copied()).map(|since| (since, to)));
                    }
                }
            }
        }
        // A list may show the version that the replica already has: its difference is empty.
        let min = if matches!(self.replica(), ReplicaKnowledge::Unknown) { 0 } else { 1 };
        all.retain(|(since, to)| {
            *since >= position.version && since + min <= *to && next.is_none_or(|next| next > *since)
        });
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Applies an event to the client's fold.
    fn apply_event(&mut self, resource: Resource, body: &Value) {
        let Some(fold) = &mut self.fold else { return };
        let uid = body["key"].as_str().and_then(|key| key.split('.').next()).unwrap_or_default();
        let was_held = fold.holds(resource, uid);
        let Some(undo) = fold.apply(body) else { return };
        self.undo.push(undo);
        let version = body["key"].as_str().and_then(|key| key.split('.').nth(1)?.parse().ok()).unwrap_or(0);
        let history = &self.validator.expected.history;
        let is_old = || history.object_before(resource, uid, version).is_some();
        self.coverage.left += u64::from(body["cause"] == "filtered");
        self.coverage.entered += u64::from(!was_held && body["phase"] != "Deleted" && is_old());
    }

    /// A client at a version that two epochs share may be in either.
    pub(super) fn follow_switches(&mut self, at: u64) {
        let history = &self.expected().history;
        let newest = history.epoch_at(at);
        for resource in Resource::ALL {
            let positions = &mut self.positions[resource];
            for epoch in 1..=newest {
                let may_switch = |position: &&CandidatePosition| {
                    position.epoch < epoch
                        && position.pending.is_empty()
                        && history.is_shared(position.epoch, epoch, position.version)
                };
                let switched = positions.iter().find(may_switch);
                let switched = switched.map(|position| CandidatePosition { epoch, ..position.clone() });
                if let Some(position) = switched.filter(|position| !positions.contains(position)) {
                    positions.push(position);
                }
            }
        }
    }

    /// An id: everything up to it must have been delivered, and nothing after it.
    pub(super) fn reach(&mut self, id: &str, at: u64) -> Validation {
        self.follow_switches(at);
        let versions = self.versions(id)?;
        let hash = Cursor::decode(id).map_or(0, |cursor| cursor.namespace_hash);
        let known = *self.connection_mut().namespace_hash.get_or_insert(hash);
        ensure(known == hash, Guarantee::Resumable, || "the id is of another Namespace".to_owned())?;
        for resource in self.needed() {
            let version = versions[resource].unwrap();
            let last = self.id.and_then(|id| id[resource]);
            ensure(last.is_none_or(|last| version >= last), Guarantee::Ordered, || {
                format!("the version of {} goes back from {last:?} to {version}", resource.plural())
            })?;
            let (expected, history) = (self.expected(), &self.expected().history);
            let next = |position: &CandidatePosition| {
                expected.next_visible(self.projection, position.epoch, resource, position.version)
            };
            let fits = |position: &CandidatePosition| {
                let is_possible = version >= position.version && version <= history.last_version(position.epoch);
                position.pending.is_empty() && is_possible && next(position).is_none_or(|next| next > version)
            };
            let before = &self.positions[resource];
            let mut after: Vec<CandidatePosition> = before.iter().filter(|position| fits(position)).cloned().collect();
            if after.is_empty() {
                let describe = |position: &CandidatePosition| {
                    let last = history.last_version(position.epoch);
                    format!("{position:?}, next {:?}, last {last}", next(position))
                };
                let positions: Vec<String> = before.iter().map(describe).collect();
                let message = format!("{} cannot be at {version}: {positions:?}", resource.plural());
                return Err(Violation::new(Guarantee::Reliable, message));
            }
            for position in &mut after {
                (position.version, position.end) = (version, version);
            }
            after.dedup();
            self.positions[resource] = after;
        }
        self.coverage.ids += 1;
        self.saved = self.positions.clone();
        self.id = Some(versions);
        self.id_text = Some(id.to_owned());
        self.undo.clear();
        self.validate_fold()
    }

    /// Compares the client's fold with the state of the store (G7).
    pub(super) fn validate_fold(&self) -> Validation {
        let Some(fold) = &self.fold else { return Ok(()) };
        for resource in self.needed() {
            let views = fold.views(resource);
            let fits = |position: &CandidatePosition| {
                self.expected().fold(self.projection, position.epoch, resource, position.version) == views
            };
            ensure(self.positions[resource].iter().any(fits), Guarantee::Filtered, || {
                format!("the fold of {} is {views:?}", resource.plural())
            })?;
        }
        Ok(())
    }

    /// The versions of an id. It must cover exactly the resources that the client asks for.
    pub(super) fn versions(&self, id: &str) -> Result<Versions, Violation> {
        let wrong = |message: &str| Violation::new(Guarantee::WireFormat, message);
        let cursor = Cursor::decode(id).ok_or_else(|| wrong("the id is no cursor"))?;
        let needed = PerResource::from_fn(|resource| self.projection().needs(resource));
        let has_others = |resource: Resource| !needed[resource] && cursor.versions[resource] != 0;
        if cursor.resources != needed || Resource::ALL.into_iter().any(has_others) {
            return Err(wrong("the id covers other resources"));
        }
        Ok(PerResource::from_fn(|resource| needed[resource].then_some(cursor.versions[resource])))
    }
}
