//! Mutations of a valid record of `/ws`.

use boilerhouse_bridge::event::Resource;
use boilerhouse_bridge::test_support::SeededRng;

use crate::oracle::history::History;
use crate::oracle::recording::{RecordedResponse, ResponseKind};
use crate::oracle::transitions::Transition;
use crate::oracle::ws::{End, Record, Start, WsEvent, WsEventType, initial_events, replay, validate};

use super::{Applied, pick};

const RELEASED: WsEventType = WsEventType::Transition(Transition::Released);

/// Where a message of a valid record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Burst,
    /// A response about this resource, by its number.
    Response(Resource, usize),
}

/// A valid record and the origin of each of its messages.
struct ValidRecord<'a> {
    history: &'a History,
    record: &'a Record,
    origins: Vec<Origin>,
}

impl ValidRecord<'_> {
    fn of<'a>(history: &'a History, record: &'a Record) -> Option<ValidRecord<'a>> {
        let at = record.start.received();
        let mut origins = Vec::new();
        if let Start::Burst(_) = record.start {
            let state = |resource: Resource| replay(history, resource, &record.responses[resource][..at[resource]], 0);
            let (pods, claims) = (state(Resource::Pods).ok()?.0, state(Resource::Claims).ok()?.0);
            origins = vec![Origin::Burst; initial_events(&pods, &claims).len()];
        }
        let live = |resource: Resource| replay(history, resource, &record.responses[resource], at[resource]);
        let mut live = [live(Resource::Pods).ok()?.1.into_iter(), live(Resource::Claims).ok()?.1.into_iter()];
        for event in &record.received[origins.len()..] {
            let resource = event.r#type.resource();
            let (nth, expected) = live[resource as usize].next()?;
            if expected != *event {
                return None;
            }
            origins.push(Origin::Response(resource, nth));
        }
        Some(ValidRecord { history, record, origins })
    }

    fn is_live(&self, nth: usize) -> bool {
        self.origins[nth] != Origin::Burst
    }

    fn is_from_list(&self, nth: usize) -> bool {
        match self.origins[nth] {
            Origin::Response(resource, at) => self.record.responses[resource][at].is_list(),
            Origin::Burst => false,
        }
    }

    fn is_from_line(&self, nth: usize) -> bool {
        self.is_live(nth) && !self.is_from_list(nth)
    }

    /// One of the messages that fit, by chance.
    fn any(&self, rng: &mut SeededRng, fits: impl Fn(usize, &WsEvent) -> bool) -> Option<usize> {
        let received = &self.record.received;
        let fitting: Vec<usize> = (0..received.len()).filter(|nth| fits(*nth, &received[*nth])).collect();
        pick(rng, &fitting)
    }

    /// The `instance.state` of a Pod with the same name and another uid.
    fn state_of_other_uid(&self, event: &WsEvent) -> Option<WsEvent> {
        let changes = self.history.changes(self.history.last_epoch(), Resource::Pods).iter();
        let pods = changes.filter_map(|change| change.after.as_ref()).filter(|pod| pod.name == event.name);
        let mut states = pods.map(|pod| (&pod.uid, WsEvent::state(pod)));
        let uid = states.clone().find(|(_, state)| state == event)?.0;
        states.find(|(other, _)| *other != uid).map(|(_, state)| state)
    }
}

fn is_deleted(event: &WsEvent) -> bool {
    event.phase.as_deref() == Some("Deleted")
}

fn is_transition(event: &WsEvent) -> bool {
    event.r#type != WsEventType::State
}

/// Changes the record where the mutation is possible.
type Mutator = fn(&ValidRecord<'_>, &mut Record, &mut SeededRng) -> Option<()>;

const MUTATIONS: [(&str, Mutator); 21] = [
    ("a message is missing", |valid, mutated, rng| {
        mutated.received.remove(valid.any(rng, |_, _| true)?);
        Some(())
    }),
    ("a message is repeated", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, _| true)?;
        mutated.received.insert(nth, valid.record.received[nth].clone());
        Some(())
    }),
    ("a deletion found by a list is missing", |valid, mutated, rng| {
        mutated.received.remove(valid.any(rng, |nth, event| valid.is_from_list(nth) && is_deleted(event))?);
        Some(())
    }),
    ("a transition found by a list is missing", |valid, mutated, rng| {
        mutated.received.remove(valid.any(rng, |nth, event| valid.is_from_list(nth) && is_transition(event))?);
        Some(())
    }),
    ("a deletion found by a list comes after a new object", |valid, mutated, rng| {
        let received = &valid.record.received;
        let has_next = |nth: usize| nth + 1 < received.len() && valid.origins[nth] == valid.origins[nth + 1];
        let nth = valid.any(rng, |nth, event| {
            valid.is_from_list(nth) && is_deleted(event) && has_next(nth) && !is_deleted(&received[nth + 1])
        })?;
        mutated.received.swap(nth, nth + 1);
        Some(())
    }),
    ("a difference is sent twice", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| valid.is_from_list(nth))?;
        let mut all = (0..valid.origins.len()).filter(|other| valid.origins[*other] == valid.origins[nth]);
        let again: Vec<WsEvent> = all.clone().map(|other| valid.record.received[other].clone()).collect();
        let end = all.next_back()? + 1;
        mutated.received.splice(end..end, again);
        Some(())
    }),
    ("a state event is that of another uid", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| valid.state_of_other_uid(event).is_some())?;
        mutated.received[nth] = valid.state_of_other_uid(&valid.record.received[nth])?;
        Some(())
    }),
    ("a transition is repeated later", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| is_transition(event))?;
        let later = nth + 1 + usize::try_from(rng.below((mutated.received.len() - nth) as u64)).ok()?;
        mutated.received.insert(later, valid.record.received[nth].clone());
        Some(())
    }),
    ("a transition comes before its state event", |valid, mutated, rng| {
        let is_ready = |event: &WsEvent| event.r#type == WsEventType::Transition(Transition::Ready);
        let nth = valid.any(rng, |nth, event| nth > 0 && is_ready(event))?;
        mutated.received.swap(nth - 1, nth);
        Some(())
    }),
    ("a released claim is released again when it is deleted", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.r#type == RELEASED)?;
        mutated.received.push(valid.record.received[nth].clone());
        Some(())
    }),
    ("the burst comes after the first change", |valid, mutated, _| {
        let first = valid.origins.iter().position(|origin| *origin != Origin::Burst).filter(|first| *first > 0)?;
        let live = mutated.received.remove(first);
        (live != mutated.received[0]).then(|| mutated.received.insert(0, live))
    }),
    ("the burst contains a released claim", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| !valid.is_live(nth))?;
        let released = WsEvent {
            r#type: RELEASED,
            phase: None,
            workload_ref: None,
            tenant_id: Some("t1".to_owned()),
            ..mutated.received[nth].clone()
        };
        mutated.received.insert(nth + 1, released);
        Some(())
    }),
    ("the burst lacks an object", |valid, mutated, rng| {
        mutated.received.remove(valid.any(rng, |nth, _| !valid.is_live(nth))?);
        Some(())
    }),
    ("a deletion is invented", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.r#type == WsEventType::State && !is_deleted(event))?;
        let deleted = WsEvent { phase: Some("Deleted".to_owned()), ..mutated.received[nth].clone() };
        mutated.received.insert(nth + 1, deleted);
        Some(())
    }),
    ("two messages are swapped", |valid, mutated, rng| {
        let received = &valid.record.received;
        let nth = valid.any(rng, |nth, event| {
            let differs = |next: &WsEvent| next != event && next.r#type.resource() == event.r#type.resource();
            valid.is_live(nth) && received.get(nth + 1).is_some_and(differs)
        })?;
        mutated.received.swap(nth, nth + 1);
        Some(())
    }),
    ("a member is that of an earlier version", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.workload_ref.is_some())?;
        mutated.received[nth].workload_ref = Some("w1".to_owned());
        Some(())
    }),
    ("a member is missing", |valid, mutated, rng| {
        let nth = valid.any(rng, |_, event| event.source.is_some())?;
        mutated.received[nth].source = None;
        Some(())
    }),
    ("the last message is missing", |valid, mutated, _| {
        (valid.record.end == End::Open).then(|| mutated.received.pop()).flatten().map(drop)
    }),
    ("the message of the last line before a list is missing", |valid, mutated, rng| {
        let is_before_list = |nth: usize| nth + 1 < valid.origins.len() && valid.is_from_list(nth + 1);
        let nth = valid.any(rng, |nth, _| valid.is_from_line(nth) && is_before_list(nth))?;
        mutated.received.remove(nth);
        Some(())
    }),
    ("a watch starts after a version that was not sent", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| valid.is_from_line(nth))?;
        let Origin::Response(resource, at) = valid.origins[nth] else { return None };
        // Before a list the version is part of the difference.
        let mut later = valid.record.responses[resource][at + 1..].iter();
        let next = later.find(|response| response.is_list() || matches!(response.kind, ResponseKind::Line(_)));
        if next.is_some_and(RecordedResponse::is_list) {
            return None;
        }
        let mut origins = valid.origins.iter();
        mutated.received.retain(|_| origins.next() != Some(&Origin::Response(resource, at)));
        mutated.responses[resource][at].kind = ResponseKind::Bookmark(0);
        Some(())
    }),
    ("a list replaces a line that the watch could send", |valid, mutated, rng| {
        let nth = valid.any(rng, |nth, _| valid.is_from_line(nth))?;
        let Origin::Response(resource, at) = valid.origins[nth] else { return None };
        let responses = &mut mutated.responses[resource];
        let ResponseKind::Line(version) = responses[at].kind else { return None };
        let has_reason = matches!(
            responses[at - 1].kind,
            ResponseKind::Gone | ResponseKind::Garbage | ResponseKind::Probe(_) | ResponseKind::List(_)
        );
        responses[at].kind = ResponseKind::List(version);
        // In a later epoch dedicated watchers may list again without a reason of their own.
        (!has_reason && responses[at].epoch == 0).then_some(())
    }),
];

/// The counts before the first record.
pub(crate) fn none_applied() -> Applied {
    Applied::none(MUTATIONS.iter().map(|(name, _)| *name))
}

/// Applies each mutation to a valid record where it is possible, and counts it.
///
/// # Panics
/// If the validator rejects the record, or accepts a mutation.
pub(crate) fn reject_all(history: &History, record: &Record, rng: &mut SeededRng, applied: &mut Applied) {
    let Some(valid) = ValidRecord::of(history, record) else { return };
    validate(history, record, true).unwrap();
    for (name, mutator) in MUTATIONS {
        let mut mutated = record.clone();
        let is_possible = mutator(&valid, &mut mutated, rng).is_some();
        if is_possible && (mutated.received != record.received || mutated.responses != record.responses) {
            *applied.0.entry(name).or_default() += 1;
            assert!(validate(history, &mutated, true).is_err(), "the validator accepts this mutation: {name}");
        }
    }
}
