//! The validator is tested itself: defects planted into the records of good runs, each of which it must catch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource};
use serde_json::json;

use super::projections::PROJECTIONS;
use super::record::{Entry, ReceivedEvent, Start};
use super::run_seed;
use crate::support::rng::SeededRng;
use crate::support::seeds::{ReplayCommand, seeds, test_name};
use valid_record::{
    ValidRecord, deleted, edit, false_reason, is_edge, is_event, kind_of, move_id, object, remove_key, uid_of,
};

mod valid_record;

/// Histories whose records are spoilt.
const HISTORIES: u64 = 48;
/// How often each defect must have been planted for the test to mean anything.
const MIN_APPLIED: u64 = 5;
/// How often it is planted at most, each in another record.
const MAX_APPLIED: u64 = 12;

/// A defect: plants itself where it fits.
type Mutator = fn(&ValidRecord<'_>, &mut Vec<Entry>, &mut SeededRng) -> Option<()>;

const MUTATIONS: [(&str, Mutator); 34] = [
    ("an event is skipped", |valid, mutated, rng| {
        mutated.remove(valid.any(rng, |nth, received| is_event(received) && valid.matters(nth + 1))?);
        Some(())
    }),
    ("an event is repeated", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_event(received))?;
        mutated.insert(nth, mutated[nth].clone());
        Some(())
    }),
    ("a version is told again later", |valid, mutated, rng| {
        let step = valid.step(rng, |step| valid.is_plain(step))?;
        let later = valid.steps.iter().rfind(|later| later.start > step.end)?.end;
        mutated.splice(later..later, valid.record[step].iter().cloned());
        Some(())
    }),
    ("a version is not told", |valid, mutated, rng| {
        mutated.drain(valid.step(rng, |step| valid.matters(step.end))?);
        Some(())
    }),
    ("a deletion that a list showed is not told", |valid, mutated, rng| {
        mutated.remove(valid.any(rng, |nth, received| {
            received.is_coalesced() && is_event(received) && deleted(received) && valid.matters(nth + 1)
        })?);
        Some(())
    }),
    ("an edge that a list showed is not told", |valid, mutated, rng| {
        mutated.remove(
            valid.any(rng, |nth, received| received.is_coalesced() && is_edge(received) && valid.matters(nth + 1))?,
        );
        Some(())
    }),
    ("a resume includes its cursor", |valid, mutated, rng| {
        let told_before = |nth: usize| {
            let Start::Resume { id, projection, .. } = valid.on[nth].2 else { return None };
            let is_mine = |step: &&Range<usize>| valid.received(step.end - 1).unwrap().id.as_ref() == Some(id);
            valid.steps.iter().find(is_mine).filter(|step| step.end <= nth && valid.on[nth].1 == *projection).cloned()
        };
        let first = |nth: usize| matches!(valid.record[nth - 1], Entry::Connect { .. });
        let nth = valid
            .any(rng, |nth, received| received.name() == "heartbeat" && first(nth) && told_before(nth).is_some())?;
        mutated.splice(nth + 1..nth + 1, valid.record[told_before(nth)?].iter().cloned());
        Some(())
    }),
    ("a resume begins too far behind its cursor", |valid, mutated, rng| {
        let after_resume = |step: &Range<usize>| {
            let opens = valid.record[..step.start].iter().rposition(|entry| matches!(entry, Entry::Connect { .. }));
            let first = opens.map(|opens| valid.steps.iter().find(|step| step.start > opens));
            matches!(valid.on[step.start].2, Start::Resume { .. })
                && first.flatten() == Some(step)
                && valid.matters(step.end)
        };
        mutated.drain(valid.step(rng, after_resume)?);
        Some(())
    }),
    ("what came and went at a seam is lost", |valid, mutated, rng| {
        let uid = |step: &Range<usize>| uid_of(valid.received(step.start).unwrap()).to_owned();
        let is_end = |step: &Range<usize>| {
            valid.is_plain(step) && valid.matters(step.end) && deleted(valid.received(step.start).unwrap())
        };
        let end = valid.step(rng, is_end)?;
        let mine: Vec<_> = valid.steps.iter().filter(|step| step.end <= end.end && uid(step) == uid(&end)).collect();
        // From its beginning on.
        let begins = |step: &&&Range<usize>| valid.body(step.start)["previousPhase"].is_null() && valid.is_plain(step);
        mine.first().filter(begins)?;
        for step in mine.into_iter().rev() {
            mutated.drain(step.clone());
        }
        Some(())
    }),
    ("it is told of another life", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.name().ends_with(".state"))?;
        edit(mutated, nth, |received, body| {
            let other = uid_of(received).chars().rev().collect::<String>();
            body["key"] = body["key"].as_str().unwrap().replace(uid_of(received), &other).into();
            object(body)["uid"] = other.into();
        });
        Some(())
    }),
    ("an id goes back in the other resource", |valid, mutated, rng| {
        let other = |received: &ReceivedEvent| {
            if kind_of(received) == Resource::Pods { Resource::Claims } else { Resource::Pods }
        };
        let was = |nth: usize, received: &ReceivedEvent| {
            valid.before[nth].map_or(0, |cursor| cursor.versions[other(received)])
        };
        // The first one of a picture may be anywhere.
        let fits = |nth: usize, received: &ReceivedEvent| {
            is_event(received) && received.id.is_some() && was(nth, received) > 0
        };
        let nth = valid.any(rng, fits)?;
        let received = valid.received(nth)?;
        move_id(mutated, nth, other(received), was(nth, received) - 1);
        Some(())
    }),
    ("an id is behind its own event", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_event(received) && received.id.is_some())?;
        let received = valid.received(nth)?;
        let rv = Cursor::decode(received.id.as_ref()?)?.versions[kind_of(received)];
        move_id(mutated, nth, kind_of(received), rv - 1);
        Some(())
    }),
    ("an id is ahead of what was told", |valid, mutated, rng| {
        let next = |nth: usize, received: &ReceivedEvent| {
            valid.next(nth, kind_of(received), valid.before[nth]?.versions[kind_of(received)])
        };
        let later = |nth: usize, received: &ReceivedEvent| valid.next(nth, kind_of(received), next(nth, received)?);
        let fits = |nth: usize, received: &ReceivedEvent| {
            is_event(received) && received.id.is_some() && later(nth, received).is_some()
        };
        let nth = valid.any(rng, fits).filter(|_| valid.in_one_history())?;
        let received = valid.received(nth)?;
        let rv = Cursor::decode(received.id.as_ref()?)?.versions[kind_of(received)];
        move_id(mutated, nth, kind_of(received), valid.next(nth, kind_of(received), rv)?);
        Some(())
    }),
    ("a heartbeat is ahead of what was told", |valid, mutated, rng| {
        let kind = *rng.choose(&Resource::ALL);
        let next = |nth: usize| valid.next(nth, kind, valid.before[nth]?.versions[kind]);
        let fits = |nth: usize, received: &ReceivedEvent| {
            received.name() == "heartbeat" && !received.is_coalesced() && next(nth).is_some()
        };
        let nth = valid.any(rng, fits).filter(|_| valid.in_one_history())?;
        move_id(mutated, nth, kind, next(nth)?);
        Some(())
    }),
    ("a quiet stream's heartbeat stays behind", |valid, mutated, rng| {
        let moved = |nth: usize, kind: Resource| {
            let id = valid.received(nth)?.id.as_ref().and_then(|id| Cursor::decode(id))?;
            let was = valid.before[nth]?.versions[kind];
            (PROJECTIONS[valid.on[nth].1].needs(kind) && was < id.versions[kind]).then_some(was)
        };
        let kind = *rng.choose(&Resource::ALL);
        let is_fresh = |nth: usize| !matches!(valid.on[nth].2, Start::Resume { .. });
        let nth = valid.any(rng, |nth, received| received.idle && is_fresh(nth) && moved(nth, kind).is_some())?;
        // What is told at the same moment may be behind it.
        let place = valid.validator.timelines[valid.on[nth].0].position(kind, valid.received(nth)?.at)?;
        let was = moved(nth, kind).filter(|was| place.0 == 0 && *was < place.1 && valid.in_one_history())?;
        move_id(mutated, nth, kind, was);
        Some(())
    }),
    ("false: foreign", |valid, mutated, rng| false_reason(valid, mutated, rng, "foreign", false)),
    ("false: expired", |valid, mutated, rng| false_reason(valid, mutated, rng, "expired", true)),
    ("false: lagged", |valid, mutated, rng| false_reason(valid, mutated, rng, "lagged", false)),
    ("false: filter", |valid, mutated, rng| false_reason(valid, mutated, rng, "filter", true)),
    ("a filter eats the event with the id", |valid, mutated, rng| {
        mutated.remove(valid.step(rng, |step| step.len() > 1 && valid.matters(step.end))?.end - 1);
        Some(())
    }),
    ("a snapshot lacks its tail", |valid, mutated, rng| {
        let array = *rng.choose(&["instances", "claims"]);
        let full = |received: &ReceivedEvent| received.body[array].as_array().is_some_and(|all| !all.is_empty());
        let nth = valid.any(rng, |nth, received| full(received) && valid.is_complete(nth))?;
        edit(mutated, nth, |_, body| drop(body[array].as_array_mut().unwrap().pop()));
        Some(())
    }),
    ("a part of a snapshot is lost", |valid, mutated, rng| {
        mutated.remove(valid.any(rng, |nth, received| received.body["more"] == true && valid.is_complete(nth))?);
        Some(())
    }),
    ("a snapshot is of two moments", |valid, mutated, rng| {
        let kind = *rng.choose(&Resource::ALL);
        let rv = |received: &ReceivedEvent| {
            received.id.as_ref().and_then(|id| Cursor::decode(id)).map(|id| id.versions[kind])
        };
        let next = |nth: usize, received: &ReceivedEvent| valid.next(nth, kind, rv(received)?);
        // Where nothing follows it, the other moment must differ from this one by itself.
        let differs = |nth: usize, received: &ReceivedEvent| {
            let fold = |rv| valid.validator.history.fold(valid.on[nth].1, 0, kind, rv);
            next(nth, received).is_some_and(|next| rv(received).is_some_and(|rv| fold(rv) != fold(next)))
        };
        let fits = |nth: usize, received: &ReceivedEvent| received.name() == "state.initial" && differs(nth, received);
        let nth = valid.any(rng, fits).filter(|_| valid.in_one_history())?;
        move_id(mutated, nth, kind, next(nth, valid.received(nth)?)?);
        Some(())
    }),
    ("an edge comes twice", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_edge(received))?;
        mutated.insert(nth, mutated[nth].clone());
        edit(mutated, nth, |received, _| received.id = None);
        Some(())
    }),
    ("an edge is missing", |valid, mutated, rng| {
        let is_second = |nth: usize| {
            nth > 0 && valid.received(nth - 1).is_some_and(|received| is_event(received) && received.id.is_none())
        };
        let nth = valid.any(rng, |nth, received| is_edge(received) && is_second(nth))?;
        let Entry::Event(edge) = mutated.remove(nth) else { return None };
        edit(mutated, nth - 1, |received, _| received.id = edge.id);
        Some(())
    }),
    ("an edge is invented", |valid, mutated, rng| {
        let fits = |nth: usize, received: &ReceivedEvent| {
            received.name() == "claim.state" && PROJECTIONS[valid.on[nth].1].has("tenant.released")
        };
        let nth = valid.any(rng, |nth, received| fits(nth, received) && received.id.is_some())?;
        let Entry::Event(mut edge) = mutated[nth].clone() else { return None };
        let key = edge.body["key"].as_str()?.replace("claim.state", "tenant.released");
        let mut body = json!({"type": "tenant.released", "name": edge.body["name"], "uid": uid_of(&edge), "key": key});
        body["tenantId"] = edge.body["tenantId"].clone();
        edge.body = Arc::new(body);
        edit(mutated, nth, |received, _| received.id = None);
        mutated.insert(nth + 1, Entry::Event(edge));
        Some(())
    }),
    ("a difference is not marked", |valid, mutated, rng| {
        let uids = |step: &Range<usize>| {
            let mut all: Vec<&str> = step.clone().map(|nth| uid_of(valid.received(nth).unwrap())).collect();
            all.dedup();
            all.len()
        };
        let step = valid.step(rng, |step| !valid.is_plain(step) && uids(step) > 1)?;
        step.for_each(|nth| edit(mutated, nth, |_, body| remove_key(body, "coalesced")));
        Some(())
    }),
    ("what is no difference is marked as one", |valid, mutated, rng| {
        // Where the replica has one that says just this, nobody can tell.
        let step = valid.step(rng, |step| valid.is_plain(step) && valid.is_calm(step.start))?;
        step.for_each(|nth| edit(mutated, nth, |_, body| body["coalesced"] = true.into()));
        Some(())
    }),
    ("a deletion has no cause", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| is_event(received) && deleted(received))?;
        edit(mutated, nth, |_, body| remove_key(body, "cause"));
        Some(())
    }),
    ("an object that leaves a filter is said to be gone", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.body["cause"] == "filtered")?;
        edit(mutated, nth, |_, body| body["cause"] = "deleted".into());
        Some(())
    }),
    ("an object that leaves a filter is shown as its new owner sees it", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.body["cause"] == "filtered")?;
        edit(mutated, nth, |_, body| object(body)["tenantId"] = "mallory".into());
        Some(())
    }),
    ("the phase before is wrong", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.body["previousPhase"].is_string())?;
        edit(mutated, nth, |_, body| body["previousPhase"] = "Once".into());
        Some(())
    }),
    ("a loss of the upstream is invented", |valid, mutated, rng| {
        let calm = |nth: usize, received: &ReceivedEvent| {
            let timeline = &valid.validator.timelines[valid.on[nth].0];
            received.name() == "heartbeat" && !timeline.may_be_down(Resource::Pods, received.at)
        };
        let nth = valid.any(rng, calm)?;
        let at = valid.received(nth)?.at;
        let body = json!({"type": "upstream.down", "resource": "pods", "reason": "unreachable", "since": ""});
        let time = valid.body(nth)["timestamp"].as_str().map(str::to_owned);
        let down = ReceivedEvent { at, idle: false, id: None, time, body: Arc::new(body) };
        mutated.insert(nth + 1, Entry::Event(down));
        Some(())
    }),
    ("an upstream is lost twice", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, received| received.name() == "upstream.down")?;
        mutated.insert(nth, mutated[nth].clone());
        Some(())
    }),
];

#[test]
fn validator_rejects_every_mutation() {
    let mut applied: BTreeMap<&str, u64> = MUTATIONS.iter().map(|(name, _)| (*name, 0)).collect();
    let seeds = seeds(0..HISTORIES);
    let histories = seeds.len();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test_name!(), seed);
        let mut rng = SeededRng(seed);
        // A mutation that is left out because of earlier seeds must not move the numbers of the others.
        let mut rngs = MUTATIONS.map(|_| rng.fork());
        let done = run_seed(seed).validated;
        for record in &done.records {
            let valid = ValidRecord::of(&done.validator, record);
            for ((name, mutator), rng) in MUTATIONS.into_iter().zip(&mut rngs) {
                if applied[name] == MAX_APPLIED {
                    continue;
                }
                let mut mutated = record.clone();
                if mutator(&valid, &mut mutated, rng).is_some() && mutated != *record {
                    *applied.get_mut(name).unwrap() += 1;
                    assert!(done.validator.validate(&mutated).is_err(), "seed {seed}: {name}, and nobody noticed");
                }
            }
        }
    }
    println!("{applied:#?}");
    for (name, count) in applied {
        assert!(histories == 1 || count >= MIN_APPLIED, "{name}: only {count} times");
    }
}
