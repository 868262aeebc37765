//! The validator is tested itself: defects planted into the records of good runs, each of which it must catch.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use boilerhouse_bridge::event::{Cursor, Resource};
use serde_json::json;

use super::history;
use super::looks::LOOKS;
use super::record::{Entry, Start, Told};
use crate::support::dice::Dice;
use good::{Good, deleted, edit, false_reason, is_edge, is_event, kind_of, move_id, object, remove_key, uid_of};

mod good;

/// Histories whose records are spoilt.
const HISTORIES: u64 = 48;
/// How often each defect must have been planted for the test to mean anything.
const LEAST: u64 = 5;
/// How often it is planted at most, each in another record.
const ENOUGH: u64 = 12;

/// A defect: plants itself where it fits.
type Bug = fn(&Good<'_>, &mut Vec<Entry>, &mut Dice) -> Option<()>;

const BUGS: [(&str, Bug); 34] = [
    ("an event is skipped", |good, bad, dice| {
        bad.remove(good.any(dice, |nth, told| is_event(told) && good.matters(nth + 1))?);
        Some(())
    }),
    ("an event is repeated", |good, bad, dice| {
        let nth = good.any(dice, |_, told| is_event(told))?;
        bad.insert(nth, bad[nth].clone());
        Some(())
    }),
    ("a version is told again later", |good, bad, dice| {
        let step = good.step(dice, |step| good.is_plain(step))?;
        let later = good.steps.iter().rfind(|later| later.start > step.end)?.end;
        bad.splice(later..later, good.record[step].iter().cloned());
        Some(())
    }),
    ("a version is not told", |good, bad, dice| {
        bad.drain(good.step(dice, |step| good.matters(step.end))?);
        Some(())
    }),
    ("a deletion that a list showed is not told", |good, bad, dice| {
        bad.remove(
            good.any(dice, |nth, told| {
                told.is_coalesced() && is_event(told) && deleted(told) && good.matters(nth + 1)
            })?,
        );
        Some(())
    }),
    ("an edge that a list showed is not told", |good, bad, dice| {
        bad.remove(good.any(dice, |nth, told| told.is_coalesced() && is_edge(told) && good.matters(nth + 1))?);
        Some(())
    }),
    ("a resume includes its cursor", |good, bad, dice| {
        let told_before = |nth: usize| {
            let Start::Resume { id, looks, .. } = good.on[nth].2 else { return None };
            let is_mine = |step: &&Range<usize>| good.told(step.end - 1).unwrap().id.as_ref() == Some(id);
            good.steps.iter().find(is_mine).filter(|step| step.end <= nth && good.on[nth].1 == *looks).cloned()
        };
        let first = |nth: usize| matches!(good.record[nth - 1], Entry::Connect { .. });
        let nth = good.any(dice, |nth, told| told.name() == "heartbeat" && first(nth) && told_before(nth).is_some())?;
        bad.splice(nth + 1..nth + 1, good.record[told_before(nth)?].iter().cloned());
        Some(())
    }),
    ("a resume begins too far behind its cursor", |good, bad, dice| {
        let after_resume = |step: &Range<usize>| {
            let opens = good.record[..step.start].iter().rposition(|entry| matches!(entry, Entry::Connect { .. }));
            let first = opens.map(|opens| good.steps.iter().find(|step| step.start > opens));
            matches!(good.on[step.start].2, Start::Resume { .. })
                && first.flatten() == Some(step)
                && good.matters(step.end)
        };
        bad.drain(good.step(dice, after_resume)?);
        Some(())
    }),
    ("what came and went at a seam is lost", |good, bad, dice| {
        let uid = |step: &Range<usize>| uid_of(good.told(step.start).unwrap()).to_owned();
        let is_end = |step: &Range<usize>| {
            good.is_plain(step) && good.matters(step.end) && deleted(good.told(step.start).unwrap())
        };
        let end = good.step(dice, is_end)?;
        let mine: Vec<_> = good.steps.iter().filter(|step| step.end <= end.end && uid(step) == uid(&end)).collect();
        // From its beginning on.
        let begins = |step: &&&Range<usize>| good.body(step.start)["previousPhase"].is_null() && good.is_plain(step);
        mine.first().filter(begins)?;
        for step in mine.into_iter().rev() {
            bad.drain(step.clone());
        }
        Some(())
    }),
    ("it is told of another life", |good, bad, dice| {
        let nth = good.any(dice, |_, told| told.name().ends_with(".state"))?;
        edit(bad, nth, |told, body| {
            let other = uid_of(told).chars().rev().collect::<String>();
            body["key"] = body["key"].as_str().unwrap().replace(uid_of(told), &other).into();
            object(body)["uid"] = other.into();
        });
        Some(())
    }),
    ("an id goes back in the other resource", |good, bad, dice| {
        let other =
            |told: &Told| if kind_of(told) == Resource::Instance { Resource::Claim } else { Resource::Instance };
        let was = |nth: usize, told: &Told| good.before[nth].map_or(0, |cursor| cursor.rv[other(told) as usize]);
        // The first one of a picture may be anywhere.
        let fits = |nth: usize, told: &Told| is_event(told) && told.id.is_some() && was(nth, told) > 0;
        let nth = good.any(dice, fits)?;
        let told = good.told(nth)?;
        move_id(bad, nth, other(told), was(nth, told) - 1);
        Some(())
    }),
    ("an id is behind its own event", |good, bad, dice| {
        let nth = good.any(dice, |_, told| is_event(told) && told.id.is_some())?;
        let told = good.told(nth)?;
        let rv = Cursor::decode(told.id.as_ref()?)?.rv[kind_of(told) as usize];
        move_id(bad, nth, kind_of(told), rv - 1);
        Some(())
    }),
    ("an id is ahead of what was told", |good, bad, dice| {
        let next =
            |nth: usize, told: &Told| good.next(nth, kind_of(told), good.before[nth]?.rv[kind_of(told) as usize]);
        let later = |nth: usize, told: &Told| good.next(nth, kind_of(told), next(nth, told)?);
        let fits = |nth: usize, told: &Told| is_event(told) && told.id.is_some() && later(nth, told).is_some();
        let nth = good.any(dice, fits).filter(|_| good.in_one_history())?;
        let told = good.told(nth)?;
        let rv = Cursor::decode(told.id.as_ref()?)?.rv[kind_of(told) as usize];
        move_id(bad, nth, kind_of(told), good.next(nth, kind_of(told), rv)?);
        Some(())
    }),
    ("a heartbeat is ahead of what was told", |good, bad, dice| {
        let kind = *dice.pick(&Resource::ALL);
        let next = |nth: usize| good.next(nth, kind, good.before[nth]?.rv[kind as usize]);
        let fits = |nth: usize, told: &Told| told.name() == "heartbeat" && !told.is_coalesced() && next(nth).is_some();
        let nth = good.any(dice, fits).filter(|_| good.in_one_history())?;
        move_id(bad, nth, kind, next(nth)?);
        Some(())
    }),
    ("a quiet stream's heartbeat stays behind", |good, bad, dice| {
        let moved = |nth: usize, kind: Resource| {
            let id = good.told(nth)?.id.as_ref().and_then(|id| Cursor::decode(id))?;
            let was = good.before[nth]?.rv[kind as usize];
            (LOOKS[good.on[nth].1].needs(kind) && was < id.rv[kind as usize]).then_some(was)
        };
        let kind = *dice.pick(&Resource::ALL);
        let is_fresh = |nth: usize| !matches!(good.on[nth].2, Start::Resume { .. });
        let nth = good.any(dice, |nth, told| told.idle && is_fresh(nth) && moved(nth, kind).is_some())?;
        // What is told at the same moment may be behind it.
        let place = good.court.journeys[good.on[nth].0].place(kind, good.told(nth)?.at)?;
        let was = moved(nth, kind).filter(|was| place.0 == 0 && *was < place.1 && good.in_one_history())?;
        move_id(bad, nth, kind, was);
        Some(())
    }),
    ("false: foreign", |good, bad, dice| false_reason(good, bad, dice, "foreign", false)),
    ("false: expired", |good, bad, dice| false_reason(good, bad, dice, "expired", true)),
    ("false: lagged", |good, bad, dice| false_reason(good, bad, dice, "lagged", false)),
    ("false: filter", |good, bad, dice| false_reason(good, bad, dice, "filter", true)),
    ("a filter eats the event with the id", |good, bad, dice| {
        bad.remove(good.step(dice, |step| step.len() > 1 && good.matters(step.end))?.end - 1);
        Some(())
    }),
    ("a snapshot lacks its tail", |good, bad, dice| {
        let array = *dice.pick(&["instances", "claims"]);
        let full = |told: &Told| told.body[array].as_array().is_some_and(|all| !all.is_empty());
        let nth = good.any(dice, |nth, told| full(told) && good.is_whole(nth))?;
        edit(bad, nth, |_, body| drop(body[array].as_array_mut().unwrap().pop()));
        Some(())
    }),
    ("a part of a snapshot is lost", |good, bad, dice| {
        bad.remove(good.any(dice, |nth, told| told.body["more"] == true && good.is_whole(nth))?);
        Some(())
    }),
    ("a snapshot is of two moments", |good, bad, dice| {
        let kind = *dice.pick(&Resource::ALL);
        let rv = |told: &Told| told.id.as_ref().and_then(|id| Cursor::decode(id)).map(|id| id.rv[kind as usize]);
        let next = |nth: usize, told: &Told| good.next(nth, kind, rv(told)?);
        // Where nothing follows it, the other moment must differ from this one by itself.
        let differs = |nth: usize, told: &Told| {
            let fold = |rv| good.court.chronicle.fold(good.on[nth].1, 0, kind, rv);
            next(nth, told).is_some_and(|next| rv(told).is_some_and(|rv| fold(rv) != fold(next)))
        };
        let fits = |nth: usize, told: &Told| told.name() == "state.initial" && differs(nth, told);
        let nth = good.any(dice, fits).filter(|_| good.in_one_history())?;
        move_id(bad, nth, kind, next(nth, good.told(nth)?)?);
        Some(())
    }),
    ("an edge comes twice", |good, bad, dice| {
        let nth = good.any(dice, |_, told| is_edge(told))?;
        bad.insert(nth, bad[nth].clone());
        edit(bad, nth, |told, _| told.id = None);
        Some(())
    }),
    ("an edge is missing", |good, bad, dice| {
        let is_second =
            |nth: usize| nth > 0 && good.told(nth - 1).is_some_and(|told| is_event(told) && told.id.is_none());
        let nth = good.any(dice, |nth, told| is_edge(told) && is_second(nth))?;
        let Entry::Told(edge) = bad.remove(nth) else { return None };
        edit(bad, nth - 1, |told, _| told.id = edge.id);
        Some(())
    }),
    ("an edge is invented", |good, bad, dice| {
        let fits =
            |nth: usize, told: &Told| told.name() == "claim.state" && LOOKS[good.on[nth].1].has("tenant.released");
        let nth = good.any(dice, |nth, told| fits(nth, told) && told.id.is_some())?;
        let Entry::Told(mut edge) = bad[nth].clone() else { return None };
        let key = edge.body["key"].as_str()?.replace("claim.state", "tenant.released");
        let mut body = json!({"type": "tenant.released", "name": edge.body["name"], "uid": uid_of(&edge), "key": key});
        body["tenantId"] = edge.body["tenantId"].clone();
        edge.body = Arc::new(body);
        edit(bad, nth, |told, _| told.id = None);
        bad.insert(nth + 1, Entry::Told(edge));
        Some(())
    }),
    ("a difference is not marked", |good, bad, dice| {
        let uids = |step: &Range<usize>| {
            let mut all: Vec<&str> = step.clone().map(|nth| uid_of(good.told(nth).unwrap())).collect();
            all.dedup();
            all.len()
        };
        let step = good.step(dice, |step| !good.is_plain(step) && uids(step) > 1)?;
        step.for_each(|nth| edit(bad, nth, |_, body| remove_key(body, "coalesced")));
        Some(())
    }),
    ("what is no difference is marked as one", |good, bad, dice| {
        // Where the replica has one that says just this, nobody can tell.
        let step = good.step(dice, |step| good.is_plain(step) && good.is_calm(step.start))?;
        step.for_each(|nth| edit(bad, nth, |_, body| body["coalesced"] = true.into()));
        Some(())
    }),
    ("a deletion has no cause", |good, bad, dice| {
        let nth = good.any(dice, |_, told| is_event(told) && deleted(told))?;
        edit(bad, nth, |_, body| remove_key(body, "cause"));
        Some(())
    }),
    ("an object that leaves a filter is said to be gone", |good, bad, dice| {
        let nth = good.any(dice, |_, told| told.body["cause"] == "filtered")?;
        edit(bad, nth, |_, body| body["cause"] = "deleted".into());
        Some(())
    }),
    ("an object that leaves a filter is shown as its new owner sees it", |good, bad, dice| {
        let nth = good.any(dice, |_, told| told.body["cause"] == "filtered")?;
        edit(bad, nth, |_, body| object(body)["tenantId"] = "mallory".into());
        Some(())
    }),
    ("the phase before is wrong", |good, bad, dice| {
        let nth = good.any(dice, |_, told| told.body["previousPhase"].is_string())?;
        edit(bad, nth, |_, body| body["previousPhase"] = "Once".into());
        Some(())
    }),
    ("a loss of the upstream is invented", |good, bad, dice| {
        let calm = |nth: usize, told: &Told| {
            let journey = &good.court.journeys[good.on[nth].0];
            told.name() == "heartbeat" && !journey.is_unhappy(Resource::Instance, told.at)
        };
        let nth = good.any(dice, calm)?;
        let at = good.told(nth)?.at;
        let body = json!({"type": "upstream.down", "resource": "pods", "reason": "unreachable", "since": ""});
        let time = good.body(nth)["timestamp"].as_str().map(str::to_owned);
        let down = Told { at, idle: false, id: None, time, body: Arc::new(body) };
        bad.insert(nth + 1, Entry::Told(down));
        Some(())
    }),
    ("an upstream is lost twice", |good, bad, dice| {
        let nth = good.any(dice, |_, told| told.name() == "upstream.down")?;
        bad.insert(nth, bad[nth].clone());
        Some(())
    }),
];

#[test]
fn the_validator_catches_what_is_planted() {
    let mut planted: BTreeMap<&str, u64> = BUGS.iter().map(|(name, _)| (*name, 0)).collect();
    for seed in 0..HISTORIES {
        let mut dice = Dice(seed);
        let done = history(seed).judged;
        for record in &done.records {
            let good = Good::of(&done.court, record);
            for (name, bug) in BUGS {
                if planted[name] == ENOUGH {
                    continue;
                }
                let mut bad = record.clone();
                if bug(&good, &mut bad, &mut dice).is_some() && bad != *record {
                    *planted.get_mut(name).unwrap() += 1;
                    assert!(done.court.judge(&bad).is_err(), "seed {seed}: {name}, and nobody noticed");
                }
            }
        }
    }
    println!("{planted:#?}");
    for (name, count) in planted {
        assert!(count >= LEAST, "{name}: only {count} times");
    }
}
