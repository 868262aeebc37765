//! The validator is tested itself: defects planted into the records of good runs, each of which it must catch.

use std::collections::BTreeMap;

use boilerhouse_bridge::event::Resource;

use super::api_recorder::{RecordedResponse, ResponseKind};
use super::history::{History, WsEvent, WsEventType, initial_events};
use super::run_seed;
use super::script::InjectedFault;
use super::validator::{End, Record, Start, validate, walk};
use crate::support::rng::SeededRng;
use crate::support::seeds::{ReplayCommand, seeds, test_name};

/// Histories whose records are spoilt.
const HISTORIES: u64 = 40;
/// How often each defect must have been planted for the test to mean anything.
const MIN_APPLIED: u64 = 20;

/// Where a message of a good record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Burst,
    /// What was heard of this kind, by its place.
    RecordedResponse(Resource, usize),
}

/// A good record, taken apart.
struct ValidRecord<'a> {
    history: &'a History,
    record: &'a Record,
    origins: Vec<Origin>,
}

impl ValidRecord<'_> {
    fn of<'a>(history: &'a History, record: &'a Record) -> Option<ValidRecord<'a>> {
        let (Start::Live(at) | Start::Burst(at)) = record.start;
        let mut origins = Vec::new();
        if let Start::Burst(_) = record.start {
            let state = |kind: Resource| walk(history, kind, &record.responses[kind as usize][..at[kind as usize]], 0);
            let (pods, claims) = (state(Resource::Pods).ok()?.0, state(Resource::Claims).ok()?.0);
            origins = vec![Origin::Burst; initial_events(&pods, &claims).len()];
        }
        let received = |kind: Resource| walk(history, kind, &record.responses[kind as usize], at[kind as usize]);
        let mut received =
            [received(Resource::Pods).ok()?.1.into_iter(), received(Resource::Claims).ok()?.1.into_iter()];
        for event in &record.received[origins.len()..] {
            let kind = event.r#type.kind();
            let (nth, expected) = received[kind as usize].next()?;
            if expected != *event {
                return None;
            }
            origins.push(Origin::RecordedResponse(kind, nth));
        }
        Some(ValidRecord { history, record, origins })
    }

    fn is_from_list(&self, nth: usize) -> bool {
        match self.origins[nth] {
            Origin::RecordedResponse(kind, at) => {
                matches!(self.record.responses[kind as usize][at].what, ResponseKind::List(_))
            }
            Origin::Burst => false,
        }
    }

    fn is_live(&self, nth: usize) -> bool {
        self.origins[nth] != Origin::Burst
    }

    /// One of the messages that fit, by chance.
    fn any(&self, rng: &mut SeededRng, fits: impl Fn(usize, &WsEvent) -> bool) -> Option<usize> {
        let received = &self.record.received;
        let fitting: Vec<usize> = (0..received.len()).filter(|nth| fits(*nth, &received[*nth])).collect();
        if fitting.is_empty() { None } else { Some(*rng.choose(&fitting)) }
    }
}

fn deleted(event: &WsEvent) -> bool {
    event.phase.as_deref() == Some("Deleted")
}

/// A defect: plants itself where it fits.
type Mutator = fn(&ValidRecord<'_>, &mut Record, &mut SeededRng) -> Option<()>;

const MUTATIONS: [(&str, Mutator); 21] = [
    ("a message is skipped", |valid, mutated, rng| {
        mutated.received.remove(valid.any(rng, |_, _| true)?);
        Some(())
    }),
    ("a message is repeated", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, _| true)?;
        mutated.received.insert(nth, valid.record.received[nth].clone());
        Some(())
    }),
    ("a deletion that a list showed is not told", |valid, mutated, rng| {
        mutated.received.remove(valid.any(rng, |nth, event| valid.is_from_list(nth) && deleted(event))?);
        Some(())
    }),
    ("an edge that a list showed is not told", |valid, mutated, rng| {
        mutated
            .received
            .remove(valid.any(rng, |nth, event| valid.is_from_list(nth) && event.r#type != WsEventType::State)?);
        Some(())
    }),
    ("a deletion that a list showed comes after what is new", |valid, mutated, rng| {
        let received = &valid.record.received;
        let next = |nth: usize| nth + 1 < received.len() && valid.origins[nth] == valid.origins[nth + 1];
        let nth = valid.any(rng, |nth, event| {
            valid.is_from_list(nth) && deleted(event) && next(nth) && !deleted(&received[nth + 1])
        })?;
        mutated.received.swap(nth, nth + 1);
        Some(())
    }),
    ("a difference is told twice", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| valid.is_from_list(nth))?;
        let mut all = (0..valid.origins.len()).filter(|other| valid.origins[*other] == valid.origins[nth]);
        let again: Vec<WsEvent> = all.clone().map(|other| valid.record.received[other].clone()).collect();
        let end = all.next_back()? + 1;
        mutated.received.splice(end..end, again);
        Some(())
    }),
    ("it is told of another life", |valid, mutated, rng| {
        let other = |event: &WsEvent| {
            let branch = valid.history.changes(valid.history.epochs.len() - 1, Resource::Pods);
            let snapshots = branch.iter().filter_map(|version| version.after.as_ref());
            let mut incarnations = snapshots
                .filter(|snapshot| snapshot.name == event.name)
                .map(|snapshot| (&snapshot.uid, snapshot.event_of(WsEventType::State)));
            let mine = incarnations.clone().find(|(_, event_of)| event_of == event)?.0;
            incarnations.find(|(uid, _)| *uid != mine).map(|(_, event_of)| event_of)
        };
        let nth = valid.any(rng, |_, event| other(event).is_some())?;
        mutated.received[nth] = other(&valid.record.received[nth])?;
        Some(())
    }),
    ("an edge comes again later", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.r#type != WsEventType::State)?;
        let later = nth + 1 + usize::try_from(rng.below((mutated.received.len() - nth) as u64)).ok()?;
        mutated.received.insert(later, valid.record.received[nth].clone());
        Some(())
    }),
    ("an edge comes before its state", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, event| nth > 0 && event.r#type == WsEventType::Ready)?;
        mutated.received.swap(nth - 1, nth);
        Some(())
    }),
    ("a released claim is released again when it is deleted", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.r#type == WsEventType::Released)?;
        mutated.received.push(valid.record.received[nth].clone());
        Some(())
    }),
    ("the burst comes after the first transition", |valid, mutated, _| {
        let first = valid.origins.iter().position(|origin| *origin != Origin::Burst).filter(|first| *first > 0)?;
        let live = mutated.received.remove(first);
        (live != mutated.received[0]).then(|| mutated.received.insert(0, live))
    }),
    ("the burst tells of a released claim", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| !valid.is_live(nth))?;
        let released =
            WsEvent { r#type: WsEventType::Released, phase: None, workload_ref: None, ..mutated.received[nth].clone() };
        mutated.received.insert(nth + 1, WsEvent { tenant_id: Some("t1".to_owned()), ..released });
        Some(())
    }),
    ("the burst leaves an object out", |valid, mutated, rng| {
        mutated.received.remove(valid.any(rng, |nth, _| !valid.is_live(nth))?);
        Some(())
    }),
    ("a deletion is invented", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.r#type == WsEventType::State && !deleted(event))?;
        let gone = WsEvent { phase: Some("Deleted".to_owned()), ..mutated.received[nth].clone() };
        mutated.received.insert(nth + 1, gone);
        Some(())
    }),
    ("two messages are swapped", |valid, mutated, rng| {
        let received = &valid.record.received;
        let nth = valid.any(rng, |nth, event| {
            let next = received.get(nth + 1);
            valid.is_live(nth) && next.is_some_and(|next| next != event && next.r#type.kind() == event.r#type.kind())
        })?;
        mutated.received.swap(nth, nth + 1);
        Some(())
    }),
    ("a message has a field of an earlier version", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.workload_ref.is_some())?;
        mutated.received[nth].workload_ref = Some("w1".to_owned());
        Some(())
    }),
    ("a field is left out", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.source.is_some())?;
        mutated.received[nth].source = None;
        Some(())
    }),
    ("the last message is lost", |valid, mutated, _| {
        (valid.record.end == End::Open).then(|| mutated.received.pop()).flatten().map(drop)
    }),
    ("what a line said at a seam is lost", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| {
            let from_line = valid.is_live(nth) && !valid.is_from_list(nth);
            from_line && (nth + 1..valid.origins.len()).next().is_some_and(|next| valid.is_from_list(next))
        })?;
        mutated.received.remove(nth);
        Some(())
    }),
    ("a watch was begun too far ahead", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| valid.is_live(nth) && !valid.is_from_list(nth))?;
        let Origin::RecordedResponse(kind, at) = valid.origins[nth] else { return None };
        // Before a loss it is part of what was lost.
        let later = &valid.record.responses[kind as usize][at + 1..];
        let next = later.iter().find(|response| response.is_list() || matches!(response.what, ResponseKind::Line(_)));
        if next.is_some_and(RecordedResponse::is_list) {
            return None;
        }
        let mut origins = valid.origins.iter();
        mutated.received.retain(|_| origins.next() != Some(&Origin::RecordedResponse(kind, at)));
        mutated.responses[kind as usize][at].what = ResponseKind::Bookmark(0);
        Some(())
    }),
    ("a list stands for what a watch could have told", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| valid.is_live(nth) && !valid.is_from_list(nth))?;
        let Origin::RecordedResponse(kind, at) = valid.origins[nth] else { return None };
        let responses = &mut mutated.responses[kind as usize];
        let ResponseKind::Line(rv) = responses[at].what else { return None };
        let reason = matches!(
            responses[at - 1].what,
            ResponseKind::Gone | ResponseKind::Garbage | ResponseKind::Probe(_) | ResponseKind::List(_)
        );
        responses[at].what = ResponseKind::List(rv);
        // In another history own watchers may list again without a reason of their own.
        (!reason && responses[at].epoch == 0).then_some(())
    }),
];

#[test]
fn validator_rejects_every_mutation() {
    let mut applied: BTreeMap<&str, u64> = BTreeMap::new();
    let seeds = seeds(0..HISTORIES);
    let count = seeds.len();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test_name!(), seed);
        let mut rng = SeededRng(seed);
        let (history, records, _) = run_seed(seed, &InjectedFault::ALL);
        for record in records.iter().filter(|record| record.end == End::Open) {
            let Some(valid) = ValidRecord::of(&history, record) else { continue };
            validate(&history, record, true).unwrap();
            for (name, mutator) in MUTATIONS {
                let mut mutated = record.clone();
                if mutator(&valid, &mut mutated, &mut rng).is_some() && mutated.differs_from(record) {
                    *applied.entry(name).or_default() += 1;
                    assert!(validate(&history, &mutated, true).is_err(), "seed {seed}: {name}, and nobody noticed");
                }
            }
        }
    }
    println!("{applied:?}");
    for (name, _) in MUTATIONS {
        let times = applied.get(name).copied().unwrap_or_default();
        assert!(count == 1 || times >= MIN_APPLIED, "{name}: only {times} times");
    }
}

impl Record {
    fn differs_from(&self, other: &Record) -> bool {
        self.received != other.received || self.responses != other.responses
    }
}
