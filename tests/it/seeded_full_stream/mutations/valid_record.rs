//! A good record, taken apart, and how to spoil it.

use std::ops::Range;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use serde_json::{Value, json};

use super::super::projections::PROJECTIONS;
use super::super::record::{Entry, ReceivedEvent, Start};
use super::super::validator::StreamValidator;
use crate::support::rng::SeededRng;

/// A good record, taken apart.
pub(super) struct ValidRecord<'a> {
    pub(super) validator: &'a StreamValidator,
    pub(super) record: &'a [Entry],
    /// The events of one version, or of one difference: up to one with an id.
    pub(super) steps: Vec<Range<usize>>,
    /// The connection that each entry belongs to: replica, looks, start.
    pub(super) on: Vec<(usize, usize, &'a Start)>,
    /// The last id before each entry.
    pub(super) before: Vec<Option<Cursor>>,
}

impl<'a> ValidRecord<'a> {
    pub(super) fn of(validator: &'a StreamValidator, record: &'a [Entry]) -> ValidRecord<'a> {
        let mut valid = ValidRecord { validator, record, steps: Vec::new(), on: Vec::new(), before: Vec::new() };
        let (mut on, mut last, mut from) = ((0, 0, &Start::Snapshot), None, None);
        for (nth, entry) in record.iter().enumerate() {
            if let Entry::Connect { replica, projection, start, .. } = entry {
                on = (*replica, *projection, start);
            }
            valid.on.push(on);
            valid.before.push(last);
            match entry {
                Entry::Event(received) => {
                    let cursor = received.id.as_ref().and_then(|id| Cursor::decode(id));
                    last = cursor.or(last);
                    if received.body["key"].is_string() {
                        let from = *from.get_or_insert(nth);
                        if cursor.is_some() {
                            valid.steps.push(from..nth + 1);
                        }
                    }
                    if cursor.is_some() {
                        from = None;
                    }
                }
                Entry::Connect { .. } | Entry::Cut { .. } => from = None,
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

    /// One of the lines that fit, by chance.
    pub(super) fn any(&self, rng: &mut SeededRng, fits: impl Fn(usize, &ReceivedEvent) -> bool) -> Option<usize> {
        let fitting =
            (0..self.record.len()).filter(|nth| self.received(*nth).is_some_and(|received| fits(*nth, received)));
        pick(rng, &fitting.collect::<Vec<_>>())
    }

    /// One of the steps that fit, by chance.
    pub(super) fn step(&self, rng: &mut SeededRng, fits: impl Fn(&Range<usize>) -> bool) -> Option<Range<usize>> {
        pick(rng, &self.steps.iter().filter(|step| fits(step)).cloned().collect::<Vec<_>>())
    }

    pub(super) fn body(&self, nth: usize) -> &Value {
        &self.received(nth).unwrap().body
    }

    /// Whether it matters that the line before another one is missing: whether the client's cursor goes on from there. Where
    /// it left and came back without one, or was given a new picture, what it had not been told yet is no loss; and what
    /// it was told last, without an id, it might as well not have waited for.
    pub(super) fn matters(&self, from: usize) -> bool {
        let mut is_last =
            from.checked_sub(1).and_then(|nth| self.received(nth)).is_some_and(|received| received.id.is_none());
        for entry in &self.record[from..] {
            match entry {
                Entry::Event(received) if received.id.is_some() => return received.name() != "state.initial",
                Entry::Event(received) => is_last &= !is_event(received),
                Entry::Cut { .. } if is_last => return false,
                Entry::Cut { .. } => {}
                Entry::Connect { start, .. } => return matches!(start, Start::Resume { .. }),
            }
        }
        true
    }

    /// Whether all parts came of the picture that a line is one of.
    pub(super) fn is_complete(&self, nth: usize) -> bool {
        let end = self.record[nth..].iter().find_map(|entry| match entry {
            Entry::Event(received) => received.id.as_ref().map(|_| true),
            Entry::Connect { .. } | Entry::Cut { .. } => Some(false),
        });
        end == Some(true)
    }

    pub(super) fn is_plain(&self, step: &Range<usize>) -> bool {
        !self.received(step.start).unwrap().is_coalesced()
    }

    pub(super) fn in_one_history(&self) -> bool {
        self.validator.history.epoch_at(u64::MAX) == 0
    }

    /// The next version of which a client sees something.
    pub(super) fn next(&self, nth: usize, kind: Resource, after: ResourceVersion) -> Option<ResourceVersion> {
        let projection = self.on[nth].1;
        PROJECTIONS[projection]
            .needs(kind)
            .then(|| self.validator.history.next_visible(projection, 0, kind, after))
            .flatten()
    }

    /// A true picture at the last id before a line, with any reason.
    pub(super) fn state_initial(&self, nth: usize, reason: &str) -> Option<Entry> {
        let (projection, cursor) = (self.on[nth].1, self.before[nth]?);
        let fold = |kind: Resource| -> Vec<&Value> {
            let rv = cursor.versions[kind];
            let fold = self.validator.history.fold(projection, 0, kind, rv);
            if PROJECTIONS[projection].needs(kind) { fold.into_values().collect() } else { Vec::new() }
        };
        let pool = |(workload, [warming, ready, acquired]): (String, [u64; 3])| json!({"workloadRef": workload, "warming": warming, "ready": ready, "acquired": acquired});
        let pools = self.validator.history.pools(0, cursor.versions[Resource::Pods]).into_iter().map(pool);
        let pools: Vec<Value> = if PROJECTIONS[projection].has("pool.depth") { pools.collect() } else { Vec::new() };
        let body = json!({
            "type": "state.initial", "reason": reason, "instances": fold(Resource::Pods), "claims": fold(Resource::Claims),
            "pools": pools,
        });
        let received = self.received(nth)?;
        Some(Entry::Event(ReceivedEvent {
            id: Some(cursor.encode()),
            time: None,
            idle: false,
            at: received.at,
            body: Arc::new(body),
        }))
    }

    /// Whether the replica that tells a line never had any trouble.
    pub(super) fn is_calm(&self, nth: usize) -> bool {
        let timeline = &self.validator.timelines[self.on[nth].0];
        let nothing = |all: &[Vec<u64>; 2]| all.iter().all(Vec::is_empty);
        let at = self.received(nth).map_or(0, |received| received.at);
        let resumes = self.validator.resumes.iter().filter(|(_, index)| *index == self.on[nth].0).count();
        !timeline.setup.is_small
            && resumes <= 6
            && at < timeline.setup.born + 500_000
            && nothing(&timeline.unlisted)
            && nothing(&timeline.unwatched)
            && timeline.relists.iter().all(Vec::is_empty)
    }
}

pub(super) fn pick<T: Clone>(rng: &mut SeededRng, fitting: &[T]) -> Option<T> {
    if fitting.is_empty() { None } else { Some(rng.choose(fitting).clone()) }
}

pub(super) fn is_event(received: &ReceivedEvent) -> bool {
    received.body["key"].is_string()
}

pub(super) fn is_edge(received: &ReceivedEvent) -> bool {
    is_event(received) && !received.name().ends_with(".state")
}

pub(super) fn kind_of(received: &ReceivedEvent) -> Resource {
    let of_pods = received.name() == "instance.state" || received.name() == "pool.instance.ready";
    if of_pods { Resource::Pods } else { Resource::Claims }
}

pub(super) fn uid_of(received: &ReceivedEvent) -> &str {
    received.body["key"].as_str().unwrap().split('.').next().unwrap()
}

pub(super) fn deleted(received: &ReceivedEvent) -> bool {
    received.name().ends_with(".state") && received.body["phase"] == "Deleted"
}

/// Changes a line.
pub(super) fn edit(record: &mut [Entry], nth: usize, change: impl FnOnce(&mut ReceivedEvent, &mut Value)) {
    let Entry::Event(received) = &mut record[nth] else { panic!("not a line") };
    let mut body = (*received.body).clone();
    change(received, &mut body);
    received.body = Arc::new(body);
}

pub(super) fn object(body: &mut Value) -> &mut Value {
    let key = if body["type"] == "instance.state" { "instance" } else { "claim" };
    &mut body[key]
}

pub(super) fn remove_key(body: &mut Value, key: &str) {
    body.as_object_mut().unwrap().remove(key);
}

/// Puts another number into an id.
pub(super) fn move_id(record: &mut [Entry], nth: usize, kind: Resource, rv: ResourceVersion) {
    edit(record, nth, |received, _| {
        let mut cursor = Cursor::decode(received.id.as_ref().unwrap()).unwrap();
        cursor.versions[kind] = rv;
        received.id = Some(cursor.encode());
    });
}

/// A picture in the middle of a connection that gives this reason, where there is none.
pub(super) fn false_reason(
    valid: &ValidRecord<'_>,
    mutated: &mut Vec<Entry>,
    rng: &mut SeededRng,
    reason: &str,
    resumed: bool,
) -> Option<()> {
    let is_resume = |nth: usize| match valid.on[nth].2 {
        Start::Resume { projection, is_forged, .. } => !is_forged && valid.on[nth].1 == *projection,
        Start::Snapshot | Start::Live => false,
    };
    let fits = |nth: usize, received: &ReceivedEvent| {
        received.name() == "heartbeat"
            && valid.is_calm(nth)
            && valid.before[nth].is_some()
            && (!resumed || is_resume(nth))
    };
    let nth = valid.any(rng, fits).filter(|_| valid.in_one_history())?;
    mutated.insert(nth + 1, valid.state_initial(nth, reason)?);
    Some(())
}
