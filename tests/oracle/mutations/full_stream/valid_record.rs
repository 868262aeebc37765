//! A valid record of the full stream, and functions to change it.

use std::ops::Range;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use boilerhouse_bridge::test_support::SeededRng;
use serde_json::Value;

use crate::oracle::fold::VIEWS;
use crate::oracle::full_stream::{Entry, ReceivedEvent, ReplicaKnowledge, ReplicaTimeline, Start, StreamValidator};
use crate::oracle::mutations::pick;
use crate::oracle::visibility::ExpectedProjection;

/// The connection that an entry belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection<'a> {
    pub(super) replica: usize,
    pub(super) projection: usize,
    pub(super) start: &'a Start,
}

/// A valid record, and what it consists of.
pub(super) struct ValidRecord<'a> {
    pub(super) validator: &'a StreamValidator,
    pub(super) record: &'a [Entry],
    /// The events of one version, or of one difference: up to one with an id.
    pub(super) changes: Vec<Range<usize>>,
    /// The connection of each entry.
    pub(super) connections: Vec<Connection<'a>>,
    /// The last id before each entry.
    pub(super) before: Vec<Option<Cursor>>,
}

impl<'a> ValidRecord<'a> {
    pub(super) fn of(validator: &'a StreamValidator, record: &'a [Entry]) -> ValidRecord<'a> {
        let (changes, connections, before) = (Vec::new(), Vec::new(), Vec::new());
        let mut valid = ValidRecord { validator, record, changes, connections, before };
        let mut connection = Connection { replica: 0, projection: 0, start: &Start::Snapshot };
        let (mut last, mut first) = (None, None);
        for (nth, entry) in record.iter().enumerate() {
            if let Entry::Connect { replica, projection, start, .. } = entry {
                connection = Connection { replica: *replica, projection: *projection, start };
            }
            valid.connections.push(connection);
            valid.before.push(last);
            match entry {
                Entry::Event(received) => {
                    let cursor = received.id.as_ref().and_then(|id| Cursor::decode(id));
                    last = cursor.or(last);
                    if is_event(received) {
                        let first = *first.get_or_insert(nth);
                        if cursor.is_some() {
                            valid.changes.push(first..nth + 1);
                        }
                    }
                    if cursor.is_some() {
                        first = None;
                    }
                }
                Entry::Connect { .. } | Entry::Disconnect { .. } => first = None,
            }
        }
        valid
    }

    pub(super) fn received(&self, nth: usize) -> Option<&ReceivedEvent> {
        match self.record.get(nth) {
            Some(Entry::Event(received)) => Some(received),
            _ => None,
        }
    }

    pub(super) fn body(&self, nth: usize) -> &Value {
        &self.received(nth).unwrap().body
    }

    pub(super) fn projection(&self, nth: usize) -> &ExpectedProjection {
        &self.validator.expected.projections[self.connections[nth].projection]
    }

    pub(super) fn replica(&self, nth: usize) -> &ReplicaKnowledge {
        &self.validator.replicas[self.connections[nth].replica]
    }

    pub(super) fn timeline(&self, nth: usize) -> Option<&ReplicaTimeline> {
        match self.replica(nth) {
            ReplicaKnowledge::Recorded(timeline) => Some(timeline),
            ReplicaKnowledge::Undisturbed | ReplicaKnowledge::Unknown => None,
        }
    }

    /// One of the events that fit, by chance.
    pub(super) fn any(&self, rng: &mut SeededRng, fits: impl Fn(usize, &ReceivedEvent) -> bool) -> Option<usize> {
        let fitting =
            (0..self.record.len()).filter(|nth| self.received(*nth).is_some_and(|received| fits(*nth, received)));
        pick(rng, &fitting.collect::<Vec<_>>())
    }

    /// One of the changes that fit, by chance.
    pub(super) fn change(&self, rng: &mut SeededRng, fits: impl Fn(&Range<usize>) -> bool) -> Option<Range<usize>> {
        pick(rng, &self.changes.iter().filter(|change| fits(change)).cloned().collect::<Vec<_>>())
    }

    /// Whether a change is one version, not a difference.
    pub(super) fn is_one_version(&self, change: &Range<usize>) -> bool {
        !self.received(change.start).unwrap().is_coalesced()
    }

    /// Whether the event before an entry must not be missing: whether the client's cursor continues from there. An
    /// event may be missing if the client then disconnects and returns without a cursor, or receives a snapshot. The
    /// last event before a disconnect may be missing if it has no id.
    pub(super) fn matters(&self, from: usize) -> bool {
        let mut is_last =
            from.checked_sub(1).and_then(|nth| self.received(nth)).is_some_and(|received| received.id.is_none());
        for entry in &self.record[from..] {
            match entry {
                Entry::Event(received) if received.id.is_some() => return received.name() != "state.initial",
                Entry::Event(received) => is_last &= !is_event(received),
                Entry::Disconnect { .. } if is_last => return false,
                Entry::Disconnect { .. } => {}
                Entry::Connect { start, .. } => return matches!(start, Start::Resume { .. }),
            }
        }
        true
    }

    /// Whether the client received all parts of the snapshot to which an event belongs.
    pub(super) fn is_complete(&self, nth: usize) -> bool {
        let end = self.record[nth..].iter().find_map(|entry| match entry {
            Entry::Event(received) => received.id.as_ref().map(|_| true),
            Entry::Connect { .. } | Entry::Disconnect { .. } => Some(false),
        });
        end == Some(true)
    }

    /// Whether etcd was never restored.
    pub(super) fn has_one_epoch(&self) -> bool {
        self.validator.expected.history.epoch_at(u64::MAX) == 0
    }

    /// The next version with events for the client.
    pub(super) fn next(&self, nth: usize, resource: Resource, after: ResourceVersion) -> Option<ResourceVersion> {
        let needed = self.projection(nth).needs(resource);
        let next = || self.validator.expected.next_visible(self.connections[nth].projection, 0, resource, after);
        needed.then(next).flatten()
    }

    /// A snapshot that is true at the last id before an entry, with any reason.
    pub(super) fn state_initial(&self, nth: usize, reason: &str) -> Option<Entry> {
        let cursor = self.before[nth]?;
        let expected = &self.validator.expected;
        let version = |resource: Resource| cursor.versions[resource];
        let body = expected.state_initial(self.connections[nth].projection, reason, version);
        let (id, at) = (Some(cursor.encode()), self.received(nth)?.at);
        Some(Entry::Event(ReceivedEvent { id, time: None, idle: false, at, body: Arc::new(body) }))
    }

    /// Whether nothing disturbed the replica of an entry.
    pub(super) fn is_undisturbed(&self, nth: usize) -> bool {
        let timeline = match self.replica(nth) {
            ReplicaKnowledge::Undisturbed => return true,
            ReplicaKnowledge::Unknown => return false,
            ReplicaKnowledge::Recorded(timeline) => timeline,
        };
        let at = self.received(nth).map_or(0, |received| received.at);
        let replica = self.connections[nth].replica;
        let resumes = self.validator.resumes.iter().filter(|(_, of)| *of == replica).count();
        !timeline.setup.has_small_log
            && resumes <= 6
            && at < timeline.setup.started_at + 500_000
            && timeline.backfill_list_failed.iter().all(Vec::is_empty)
            && timeline.backfill_watch_failed.iter().all(Vec::is_empty)
            && timeline.relists.iter().all(Vec::is_empty)
    }
}

pub(super) fn is_event(received: &ReceivedEvent) -> bool {
    received.body["key"].is_string()
}

pub(super) fn is_transition(received: &ReceivedEvent) -> bool {
    is_event(received) && !received.name().ends_with(".state")
}

pub(super) fn is_deleted(received: &ReceivedEvent) -> bool {
    received.name().ends_with(".state") && received.body["phase"] == "Deleted"
}

pub(super) fn resource_of(received: &ReceivedEvent) -> Resource {
    match received.name() {
        "instance.state" | "pool.instance.ready" => Resource::Pods,
        _ => Resource::Claims,
    }
}

pub(super) fn uid_of(received: &ReceivedEvent) -> &str {
    received.body["key"].as_str().unwrap().split('.').next().unwrap()
}

/// Changes an event.
pub(super) fn edit(record: &mut [Entry], nth: usize, change: impl FnOnce(&mut ReceivedEvent, &mut Value)) {
    let Entry::Event(received) = &mut record[nth] else { panic!("entry {nth} is no event") };
    let mut body = (*received.body).clone();
    change(received, &mut body);
    received.body = Arc::new(body);
}

/// The view of a state event.
pub(super) fn view_mut(body: &mut Value) -> &mut Value {
    let resource = if body["type"] == "instance.state" { Resource::Pods } else { Resource::Claims };
    &mut body[VIEWS[resource]]
}

pub(super) fn remove_member(body: &mut Value, key: &str) {
    body.as_object_mut().unwrap().remove(key);
}

/// Changes one version of an id.
pub(super) fn set_version(record: &mut [Entry], nth: usize, resource: Resource, version: ResourceVersion) {
    edit(record, nth, |received, _| {
        let mut cursor = Cursor::decode(received.id.as_ref().unwrap()).unwrap();
        cursor.versions[resource] = version;
        received.id = Some(cursor.encode());
    });
}

/// Inserts a snapshot with this reason where there is no reason for one. `resumed`: on resumed connections only.
pub(super) fn insert_snapshot(
    valid: &ValidRecord<'_>,
    mutated: &mut Vec<Entry>,
    rng: &mut SeededRng,
    reason: &str,
    resumed: bool,
) -> Option<()> {
    let is_resumed = |nth: usize| match valid.connections[nth].start {
        Start::Resume { projection, is_forged, .. } => !is_forged && valid.connections[nth].projection == *projection,
        Start::Snapshot | Start::Live => false,
    };
    let fits = |nth: usize, received: &ReceivedEvent| {
        received.name() == "heartbeat"
            && valid.is_undisturbed(nth)
            && valid.before[nth].is_some()
            && (!resumed || is_resumed(nth))
    };
    let nth = valid.any(rng, fits).filter(|_| valid.has_one_epoch())?;
    mutated.insert(nth + 1, valid.state_initial(nth, reason)?);
    Some(())
}
