//! Mutations of a valid record of the full stream.

mod valid_record;

use std::ops::Range;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource};
use boilerhouse_bridge::test_support::SeededRng;
use serde_json::json;

use crate::oracle::full_stream::{Entry, ReceivedEvent, Start, StreamValidator};

use super::Applied;
use valid_record::{
    ValidRecord, edit, insert_snapshot, is_deleted, is_event, is_transition, remove_member, resource_of, set_version,
    uid_of, view_mut,
};

/// Changes the record where the mutation is possible.
type Mutator = fn(&ValidRecord<'_>, &mut Vec<Entry>, &mut SeededRng) -> Option<()>;

const MUTATIONS: [(&str, Mutator); 35] = [
    ("an event is missing", |valid, mutated, rng| {
        mutated.remove(valid.any(rng, |nth, received| is_event(received) && valid.matters(nth + 1))?);
        Some(())
    }),
    ("an event is repeated", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_event(received))?;
        mutated.insert(nth, mutated[nth].clone());
        Some(())
    }),
    ("a version is repeated later", |valid, mutated, rng| {
        let change = valid.change(rng, |change| valid.is_one_version(change))?;
        let later = valid.changes.iter().rfind(|later| later.start > change.end)?.end;
        mutated.splice(later..later, valid.record[change].iter().cloned());
        Some(())
    }),
    ("a version is missing", |valid, mutated, rng| {
        mutated.drain(valid.change(rng, |change| valid.matters(change.end))?);
        Some(())
    }),
    ("a deletion of a difference is missing", |valid, mutated, rng| {
        mutated.remove(valid.any(rng, |nth, received| {
            received.is_coalesced() && is_event(received) && is_deleted(received) && valid.matters(nth + 1)
        })?);
        Some(())
    }),
    ("a transition of a difference is missing", |valid, mutated, rng| {
        mutated.remove(
            valid.any(rng, |nth, received| {
                received.is_coalesced() && is_transition(received) && valid.matters(nth + 1)
            })?,
        );
        Some(())
    }),
    ("a resumed stream repeats the version of its cursor", |valid, mutated, rng| {
        let delivered_before = |nth: usize| {
            let Start::Resume { id, projection, .. } = valid.connections[nth].start else { return None };
            let has_id = |change: &&Range<usize>| valid.received(change.end - 1).unwrap().id.as_ref() == Some(id);
            let change = valid.changes.iter().find(has_id);
            change.filter(|change| change.end <= nth && valid.connections[nth].projection == *projection).cloned()
        };
        let is_first = |nth: usize| matches!(valid.record[nth - 1], Entry::Connect { .. });
        let nth = valid.any(rng, |nth, received| {
            received.name() == "heartbeat" && is_first(nth) && delivered_before(nth).is_some()
        })?;
        mutated.splice(nth + 1..nth + 1, valid.record[delivered_before(nth)?].iter().cloned());
        Some(())
    }),
    ("a resumed stream lacks the version after its cursor", |valid, mutated, rng| {
        let is_first_of_resume = |change: &Range<usize>| {
            let entries = &valid.record[..change.start];
            let connect = entries.iter().rposition(|entry| matches!(entry, Entry::Connect { .. }));
            let first = connect.map(|connect| valid.changes.iter().find(|change| change.start > connect));
            matches!(valid.connections[change.start].start, Start::Resume { .. })
                && first.flatten() == Some(change)
                && valid.matters(change.end)
        };
        mutated.drain(valid.change(rng, is_first_of_resume)?);
        Some(())
    }),
    ("an object from its creation to its deletion is missing", |valid, mutated, rng| {
        let uid = |change: &Range<usize>| uid_of(valid.received(change.start).unwrap()).to_owned();
        let is_end = |change: &Range<usize>| {
            valid.is_one_version(change)
                && valid.matters(change.end)
                && is_deleted(valid.received(change.start).unwrap())
        };
        let end = valid.change(rng, is_end)?;
        let of_uid = |change: &&Range<usize>| change.end <= end.end && uid(change) == uid(&end);
        let changes: Vec<_> = valid.changes.iter().filter(of_uid).collect();
        let is_creation = |change: &&&Range<usize>| {
            valid.body(change.start)["previousPhase"].is_null() && valid.is_one_version(change)
        };
        changes.first().filter(is_creation)?;
        for change in changes.into_iter().rev() {
            mutated.drain(change.clone());
        }
        Some(())
    }),
    ("an event has another uid", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.name().ends_with(".state"))?;
        edit(mutated, nth, |received, body| {
            let other = uid_of(received).chars().rev().collect::<String>();
            body["key"] = body["key"].as_str().unwrap().replace(uid_of(received), &other).into();
            view_mut(body)["uid"] = other.into();
        });
        Some(())
    }),
    ("an id goes back in the other resource", |valid, mutated, rng| {
        let other = |received: &ReceivedEvent| match resource_of(received) {
            Resource::Pods => Resource::Claims,
            Resource::Claims => Resource::Pods,
        };
        let before = |nth: usize, received: &ReceivedEvent| {
            valid.before[nth].map_or(0, |cursor| cursor.versions[other(received)])
        };
        // The first id of a snapshot may have any version.
        let fits = |nth: usize, received: &ReceivedEvent| {
            is_event(received) && received.id.is_some() && before(nth, received) > 0
        };
        let nth = valid.any(rng, fits)?;
        let received = valid.received(nth)?;
        set_version(mutated, nth, other(received), before(nth, received) - 1);
        Some(())
    }),
    ("an id does not cover its own event", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_event(received) && received.id.is_some())?;
        let received = valid.received(nth)?;
        let version = Cursor::decode(received.id.as_ref()?)?.versions[resource_of(received)];
        set_version(mutated, nth, resource_of(received), version - 1);
        Some(())
    }),
    ("an id covers an event that was not delivered", |valid, mutated, rng| {
        let next = |nth: usize, received: &ReceivedEvent| {
            valid.next(nth, resource_of(received), valid.before[nth]?.versions[resource_of(received)])
        };
        let later = |nth: usize, received: &ReceivedEvent| valid.next(nth, resource_of(received), next(nth, received)?);
        let fits = |nth: usize, received: &ReceivedEvent| {
            is_event(received) && received.id.is_some() && later(nth, received).is_some()
        };
        let nth = valid.any(rng, fits).filter(|_| valid.has_one_epoch())?;
        let received = valid.received(nth)?;
        let version = Cursor::decode(received.id.as_ref()?)?.versions[resource_of(received)];
        set_version(mutated, nth, resource_of(received), valid.next(nth, resource_of(received), version)?);
        Some(())
    }),
    ("a heartbeat covers an event that was not delivered", |valid, mutated, rng| {
        let resource = *rng.choose(&Resource::ALL);
        let next = |nth: usize| valid.next(nth, resource, valid.before[nth]?.versions[resource]);
        let fits = |nth: usize, received: &ReceivedEvent| {
            received.name() == "heartbeat" && !received.is_coalesced() && next(nth).is_some()
        };
        let nth = valid.any(rng, fits).filter(|_| valid.has_one_epoch())?;
        set_version(mutated, nth, resource, next(nth)?);
        Some(())
    }),
    ("the heartbeat of an idle stream is not fresh", |valid, mutated, rng| {
        let resource = *rng.choose(&Resource::ALL);
        let older = |nth: usize| {
            let id = valid.received(nth)?.id.as_ref().and_then(|id| Cursor::decode(id))?;
            let before = valid.before[nth]?.versions[resource];
            (valid.projection(nth).needs(resource) && before < id.versions[resource]).then_some(before)
        };
        let must_be_fresh = |nth: usize| !matches!(valid.connections[nth].start, Start::Resume { .. });
        let nth = valid.any(rng, |nth, received| received.idle && must_be_fresh(nth) && older(nth).is_some())?;
        // What arrives at the same moment may come after the heartbeat.
        let (epoch, version) = valid.timeline(nth)?.position(resource, valid.received(nth)?.at)?;
        let older = older(nth).filter(|older| epoch == 0 && *older < version && valid.has_one_epoch())?;
        set_version(mutated, nth, resource, older);
        Some(())
    }),
    ("snapshot without reason: foreign", |valid, mutated, rng| insert_snapshot(valid, mutated, rng, "foreign", false)),
    ("snapshot without reason: expired", |valid, mutated, rng| insert_snapshot(valid, mutated, rng, "expired", true)),
    ("snapshot without reason: lagged", |valid, mutated, rng| insert_snapshot(valid, mutated, rng, "lagged", false)),
    ("snapshot without reason: filter", |valid, mutated, rng| insert_snapshot(valid, mutated, rng, "filter", true)),
    ("the last event of a version, which has the id, is missing", |valid, mutated, rng| {
        mutated.remove(valid.change(rng, |change| change.len() > 1 && valid.matters(change.end))?.end - 1);
        Some(())
    }),
    ("a snapshot lacks its last object", |valid, mutated, rng| {
        let array = *rng.choose(&["instances", "claims"]);
        let has_objects = |received: &ReceivedEvent| received.body[array].as_array().is_some_and(|all| !all.is_empty());
        let nth = valid.any(rng, |nth, received| has_objects(received) && valid.is_complete(nth))?;
        edit(mutated, nth, |_, body| drop(body[array].as_array_mut().unwrap().pop()));
        Some(())
    }),
    ("a part of a snapshot is missing", |valid, mutated, rng| {
        mutated.remove(valid.any(rng, |nth, received| received.body["more"] == true && valid.is_complete(nth))?);
        Some(())
    }),
    ("a snapshot has an id of another state", |valid, mutated, rng| {
        let resource = *rng.choose(&Resource::ALL);
        let version = |received: &ReceivedEvent| {
            received.id.as_ref().and_then(|id| Cursor::decode(id)).map(|cursor| cursor.versions[resource])
        };
        let next = |nth: usize, received: &ReceivedEvent| valid.next(nth, resource, version(received)?);
        // If no event follows, only the states themselves show the difference.
        let differs = |nth: usize, received: &ReceivedEvent| {
            let projection = valid.connections[nth].projection;
            let fold = |version| valid.validator.expected.fold(projection, 0, resource, version);
            next(nth, received).is_some_and(|next| version(received).is_some_and(|version| fold(version) != fold(next)))
        };
        let fits = |nth: usize, received: &ReceivedEvent| received.name() == "state.initial" && differs(nth, received);
        let nth = valid.any(rng, fits).filter(|_| valid.has_one_epoch())?;
        set_version(mutated, nth, resource, next(nth, valid.received(nth)?)?);
        Some(())
    }),
    ("a transition is sent twice", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_transition(received))?;
        mutated.insert(nth, mutated[nth].clone());
        edit(mutated, nth, |received, _| received.id = None);
        Some(())
    }),
    ("a transition is missing", |valid, mutated, rng| {
        let is_second = |nth: usize| {
            nth > 0 && valid.received(nth - 1).is_some_and(|received| is_event(received) && received.id.is_none())
        };
        let nth = valid.any(rng, |nth, received| is_transition(received) && is_second(nth))?;
        let Entry::Event(transition) = mutated.remove(nth) else { return None };
        edit(mutated, nth - 1, |received, _| received.id = transition.id);
        Some(())
    }),
    ("a transition is invented", |valid, mutated, rng| {
        let fits = |nth: usize, received: &ReceivedEvent| {
            received.name() == "claim.state" && valid.projection(nth).has("tenant.released")
        };
        let nth = valid.any(rng, |nth, received| fits(nth, received) && received.id.is_some())?;
        let Entry::Event(mut released) = mutated[nth].clone() else { return None };
        let (name, key) = ("tenant.released", released.body["key"].as_str()?.replace("claim.state", "tenant.released"));
        let mut body = json!({"type": name, "name": released.body["name"], "uid": uid_of(&released), "key": key});
        body["tenantId"] = released.body["tenantId"].clone();
        released.body = Arc::new(body);
        edit(mutated, nth, |received, _| received.id = None);
        mutated.insert(nth + 1, Entry::Event(released));
        Some(())
    }),
    ("a difference is not marked as coalesced", |valid, mutated, rng| {
        let uids = |change: &Range<usize>| {
            let mut all: Vec<&str> = change.clone().map(|nth| uid_of(valid.received(nth).unwrap())).collect();
            all.dedup();
            all.len()
        };
        let change = valid.change(rng, |change| !valid.is_one_version(change) && uids(change) > 1)?;
        change.for_each(|nth| edit(mutated, nth, |_, body| remove_member(body, "coalesced")));
        Some(())
    }),
    ("one version is marked as coalesced", |valid, mutated, rng| {
        // A replica that has an equal difference could have sent it.
        let fits = |change: &Range<usize>| valid.is_one_version(change) && valid.is_undisturbed(change.start);
        let change = valid.change(rng, fits)?;
        change.for_each(|nth| edit(mutated, nth, |_, body| body["coalesced"] = true.into()));
        Some(())
    }),
    ("a deletion has no cause", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_event(received) && is_deleted(received))?;
        edit(mutated, nth, |_, body| remove_member(body, "cause"));
        Some(())
    }),
    ("an object that leaves the filter is reported as deleted", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.body["cause"] == "filtered")?;
        edit(mutated, nth, |_, body| body["cause"] = "deleted".into());
        Some(())
    }),
    ("an object that leaves the filter has its new tenant", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.body["cause"] == "filtered")?;
        edit(mutated, nth, |_, body| view_mut(body)["tenantId"] = "mallory".into());
        Some(())
    }),
    ("the previous phase is wrong", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.body["previousPhase"].is_string())?;
        edit(mutated, nth, |_, body| body["previousPhase"] = "Other".into());
        Some(())
    }),
    ("an upstream.down is invented", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, received| {
            let may_be_down = |received: &ReceivedEvent| match valid.timeline(nth) {
                Some(timeline) => timeline.may_be_down(Resource::Pods, received.at),
                None => !valid.is_undisturbed(nth),
            };
            received.name() == "heartbeat" && !may_be_down(received)
        })?;
        let at = valid.received(nth)?.at;
        let body = json!({"type": "upstream.down", "resource": "pods", "reason": "unreachable", "since": ""});
        let time = valid.body(nth)["timestamp"].as_str().map(str::to_owned);
        let down = ReceivedEvent { at, idle: false, id: None, time, body: Arc::new(body) };
        mutated.insert(nth + 1, Entry::Event(down));
        Some(())
    }),
    ("no upstream.down precedes a heartbeat with down", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.idle && received.body["upstream"] == "down")?;
        let start = valid.record[..nth].iter().rposition(|entry| matches!(entry, Entry::Connect { .. }))?;
        let is_down = |nth: &usize| valid.received(*nth).is_some_and(|received| received.name() == "upstream.down");
        for nth in (start..nth).filter(is_down).rev() {
            mutated.remove(nth);
        }
        Some(())
    }),
    ("an upstream.down is repeated", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.name() == "upstream.down")?;
        mutated.insert(nth, mutated[nth].clone());
        Some(())
    }),
];

/// A generator for each mutation, so that a mutation that is left out does not change the choices of the others.
#[derive(Debug)]
pub(crate) struct Generators([SeededRng; MUTATIONS.len()]);

impl Generators {
    pub(crate) fn new(seed: u64) -> Generators {
        let mut rng = SeededRng(seed);
        Generators(MUTATIONS.map(|_| rng.fork()))
    }
}

/// The counts before the first record.
pub(crate) fn none_applied() -> Applied {
    Applied::none(MUTATIONS.iter().map(|(name, _)| *name))
}

/// Applies each mutation to a valid record where it is possible, and counts it. A mutation that was applied `max` times
/// is left out.
///
/// # Panics
/// If the validator accepts a mutation.
pub(crate) fn reject_all(
    validator: &StreamValidator,
    record: &[Entry],
    generators: &mut Generators,
    max: u64,
    applied: &mut Applied,
) {
    let valid = ValidRecord::of(validator, record);
    for ((name, mutator), rng) in MUTATIONS.into_iter().zip(&mut generators.0) {
        let count = applied.0.entry(name).or_default();
        if *count == max {
            continue;
        }
        let mut mutated = record.to_vec();
        if mutator(&valid, &mut mutated, rng).is_some() && mutated != *record {
            *count += 1;
            assert!(validator.validate(&mutated).is_err(), "the validator accepts this mutation: {name}");
        }
    }
}
