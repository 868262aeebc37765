//! A good record, taken apart, and how to spoil it.

use std::ops::Range;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use serde_json::{Value, json};

use super::super::looks::LOOKS;
use super::super::record::{Entry, Start, Told};
use super::super::validator::Court;
use crate::support::dice::Dice;

/// A good record, taken apart.
pub(super) struct Good<'a> {
    pub(super) court: &'a Court,
    pub(super) record: &'a [Entry],
    /// The events of one version, or of one difference: up to one with an id.
    pub(super) steps: Vec<Range<usize>>,
    /// The connection that each entry belongs to: replica, looks, start.
    pub(super) on: Vec<(usize, usize, &'a Start)>,
    /// The last id before each entry.
    pub(super) before: Vec<Option<Cursor>>,
}

impl<'a> Good<'a> {
    pub(super) fn of(court: &'a Court, record: &'a [Entry]) -> Good<'a> {
        let mut good = Good { court, record, steps: Vec::new(), on: Vec::new(), before: Vec::new() };
        let (mut on, mut last, mut from) = ((0, 0, &Start::Snapshot), None, None);
        for (nth, entry) in record.iter().enumerate() {
            if let Entry::Connect { replica, looks, start, .. } = entry {
                on = (*replica, *looks, start);
            }
            good.on.push(on);
            good.before.push(last);
            match entry {
                Entry::Told(told) => {
                    let cursor = told.id.as_ref().and_then(|id| Cursor::decode(id));
                    last = cursor.or(last);
                    if told.body["key"].is_string() {
                        let from = *from.get_or_insert(nth);
                        if cursor.is_some() {
                            good.steps.push(from..nth + 1);
                        }
                    }
                    if cursor.is_some() {
                        from = None;
                    }
                }
                Entry::Connect { .. } | Entry::Cut { .. } => from = None,
            }
        }
        good
    }

    pub(super) fn told(&self, nth: usize) -> Option<&Told> {
        match self.record.get(nth) {
            Some(Entry::Told(told)) => Some(told),
            _ => None,
        }
    }

    /// One of the lines that fit, by chance.
    pub(super) fn any(&self, dice: &mut Dice, fits: impl Fn(usize, &Told) -> bool) -> Option<usize> {
        let fitting = (0..self.record.len()).filter(|nth| self.told(*nth).is_some_and(|told| fits(*nth, told)));
        pick(dice, &fitting.collect::<Vec<_>>())
    }

    /// One of the steps that fit, by chance.
    pub(super) fn step(&self, dice: &mut Dice, fits: impl Fn(&Range<usize>) -> bool) -> Option<Range<usize>> {
        pick(dice, &self.steps.iter().filter(|step| fits(step)).cloned().collect::<Vec<_>>())
    }

    pub(super) fn body(&self, nth: usize) -> &Value {
        &self.told(nth).unwrap().body
    }

    /// Whether it matters that the line before another one is missing: whether the client's cursor goes on from there. Where
    /// it left and came back without one, or was given a new picture, what it had not been told yet is no loss; and what
    /// it was told last, without an id, it might as well not have waited for.
    pub(super) fn matters(&self, from: usize) -> bool {
        let mut is_last = from.checked_sub(1).and_then(|nth| self.told(nth)).is_some_and(|told| told.id.is_none());
        for entry in &self.record[from..] {
            match entry {
                Entry::Told(told) if told.id.is_some() => return told.name() != "state.initial",
                Entry::Told(told) => is_last &= !is_event(told),
                Entry::Cut { .. } if is_last => return false,
                Entry::Cut { .. } => {}
                Entry::Connect { start, .. } => return matches!(start, Start::Resume { .. }),
            }
        }
        true
    }

    /// Whether all parts came of the picture that a line is one of.
    pub(super) fn is_whole(&self, nth: usize) -> bool {
        let end = self.record[nth..].iter().find_map(|entry| match entry {
            Entry::Told(told) => told.id.as_ref().map(|_| true),
            Entry::Connect { .. } | Entry::Cut { .. } => Some(false),
        });
        end == Some(true)
    }

    pub(super) fn is_plain(&self, step: &Range<usize>) -> bool {
        !self.told(step.start).unwrap().is_coalesced()
    }

    pub(super) fn in_one_history(&self) -> bool {
        self.court.chronicle.epoch_at(u64::MAX) == 0
    }

    /// The next version of which a client sees something.
    pub(super) fn next(&self, nth: usize, kind: Resource, after: ResourceVersion) -> Option<ResourceVersion> {
        let looks = self.on[nth].1;
        LOOKS[looks].needs(kind).then(|| self.court.chronicle.next_visible(looks, 0, kind, after)).flatten()
    }

    /// A true picture at the last id before a line, with any reason.
    pub(super) fn picture(&self, nth: usize, reason: &str) -> Option<Entry> {
        let (looks, cursor) = (self.on[nth].1, self.before[nth]?);
        let fold = |kind: Resource| -> Vec<&Value> {
            let rv = cursor.rv[kind as usize];
            let fold = self.court.chronicle.fold(looks, 0, kind, rv);
            if LOOKS[looks].needs(kind) { fold.into_values().collect() } else { Vec::new() }
        };
        let pool = |(workload, [warming, ready, acquired]): (String, [u64; 3])| json!({"workloadRef": workload, "warming": warming, "ready": ready, "acquired": acquired});
        let pools = self.court.chronicle.pools(0, cursor.rv[0]).into_iter().map(pool);
        let pools: Vec<Value> = if LOOKS[looks].has("pool.depth") { pools.collect() } else { Vec::new() };
        let body = json!({
            "type": "state.initial", "reason": reason, "instances": fold(Resource::Instance), "claims": fold(Resource::Claim),
            "pools": pools,
        });
        let told = self.told(nth)?;
        Some(Entry::Told(Told {
            id: Some(cursor.encode()),
            time: None,
            idle: false,
            at: told.at,
            body: Arc::new(body),
        }))
    }

    /// Whether the replica that tells a line never had any trouble.
    pub(super) fn is_calm(&self, nth: usize) -> bool {
        let journey = &self.court.journeys[self.on[nth].0];
        let nothing = |all: &[Vec<u64>; 2]| all.iter().all(Vec::is_empty);
        let at = self.told(nth).map_or(0, |told| told.at);
        let resumes = self.court.resumes.iter().filter(|(_, who)| *who == self.on[nth].0).count();
        !journey.setup.is_small
            && resumes <= 6
            && at < journey.setup.born + 500_000
            && nothing(&journey.unlisted)
            && nothing(&journey.unwatched)
            && journey.relists.iter().all(Vec::is_empty)
    }
}

pub(super) fn pick<T: Clone>(dice: &mut Dice, fitting: &[T]) -> Option<T> {
    if fitting.is_empty() { None } else { Some(dice.pick(fitting).clone()) }
}

pub(super) fn is_event(told: &Told) -> bool {
    told.body["key"].is_string()
}

pub(super) fn is_edge(told: &Told) -> bool {
    is_event(told) && !told.name().ends_with(".state")
}

pub(super) fn kind_of(told: &Told) -> Resource {
    let of_pods = told.name() == "instance.state" || told.name() == "pool.instance.ready";
    if of_pods { Resource::Instance } else { Resource::Claim }
}

pub(super) fn uid_of(told: &Told) -> &str {
    told.body["key"].as_str().unwrap().split('.').next().unwrap()
}

pub(super) fn deleted(told: &Told) -> bool {
    told.name().ends_with(".state") && told.body["phase"] == "Deleted"
}

/// Changes a line.
pub(super) fn edit(record: &mut [Entry], nth: usize, change: impl FnOnce(&mut Told, &mut Value)) {
    let Entry::Told(told) = &mut record[nth] else { panic!("not a line") };
    let mut body = (*told.body).clone();
    change(told, &mut body);
    told.body = Arc::new(body);
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
    edit(record, nth, |told, _| {
        let mut cursor = Cursor::decode(told.id.as_ref().unwrap()).unwrap();
        cursor.rv[kind as usize] = rv;
        told.id = Some(cursor.encode());
    });
}

/// A picture in the middle of a connection that gives this reason, where there is none.
pub(super) fn false_reason(
    good: &Good<'_>,
    bad: &mut Vec<Entry>,
    dice: &mut Dice,
    reason: &str,
    resumed: bool,
) -> Option<()> {
    let is_resume = |nth: usize| match good.on[nth].2 {
        Start::Resume { looks, is_forged, .. } => !is_forged && good.on[nth].1 == *looks,
        Start::Snapshot | Start::Now => false,
    };
    let fits = |nth: usize, told: &Told| {
        told.name() == "heartbeat" && good.is_calm(nth) && good.before[nth].is_some() && (!resumed || is_resume(nth))
    };
    let nth = good.any(dice, fits).filter(|_| good.in_one_history())?;
    bad.insert(nth + 1, good.picture(nth, reason)?);
    Some(())
}
