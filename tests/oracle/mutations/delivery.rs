//! Mutations of the events on their way from a subscription to its client, and of the cursor on its way back.

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use boilerhouse_bridge::test_support::SeededRng;
use serde_json::{Value, json};

use super::pick;

/// One mutation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mutation {
    MissingEvent,
    RepeatedEvent,
    MissingDeletion,
    MissingFiltered,
    MissingTransition,
    SwappedEvents,
    IdGoesBack,
    IdAhead,
    IdTooEarly,
    MissingEventWithId,
    HeartbeatAhead,
    SnapshotWithoutLastObjects,
    SnapshotOfOtherState,
    WrongUid,
    OldPhase,
    CoalescedRemoved,
    CoalescedAdded,
    ExpiredWithoutReason,
    ForeignWithoutReason,
    ResumeBeforeCursor,
    ResumeAfterCursor,
    OtherNamespace,
}

impl Mutation {
    pub(crate) const ALL: [Mutation; 22] = [
        Mutation::MissingEvent,
        Mutation::RepeatedEvent,
        Mutation::MissingDeletion,
        Mutation::MissingFiltered,
        Mutation::MissingTransition,
        Mutation::SwappedEvents,
        Mutation::IdGoesBack,
        Mutation::IdAhead,
        Mutation::IdTooEarly,
        Mutation::MissingEventWithId,
        Mutation::HeartbeatAhead,
        Mutation::SnapshotWithoutLastObjects,
        Mutation::SnapshotOfOtherState,
        Mutation::WrongUid,
        Mutation::OldPhase,
        Mutation::CoalescedRemoved,
        Mutation::CoalescedAdded,
        Mutation::ExpiredWithoutReason,
        Mutation::ForeignWithoutReason,
        Mutation::ResumeBeforeCursor,
        Mutation::ResumeAfterCursor,
        Mutation::OtherNamespace,
    ];

    /// Changes the events of one read where the mutation is possible.
    pub(crate) fn mutate(self, events: &mut Vec<Value>, rng: &mut SeededRng) {
        let is_state = |event: &Value| event["type"].as_str().is_some_and(|name| name.ends_with(".state"));
        let is_event = |event: &Value| !event["key"].is_null();
        let is_transition = |event: &Value| is_event(event) && !is_state(event);
        let has_id = |event: &Value| is_event(event) && event["id"].is_string();
        let is_snapshot = |event: &Value| event["type"] == "state.initial";
        match self {
            Mutation::MissingEvent => remove(events, rng, is_event),
            Mutation::MissingDeletion => remove(events, rng, |event| event["cause"] == "deleted"),
            Mutation::MissingFiltered => remove(events, rng, |event| event["cause"] == "filtered"),
            Mutation::MissingTransition => remove(events, rng, is_transition),
            Mutation::RepeatedEvent => {
                if let Some(at) = find(events, rng, is_event) {
                    events.insert(at, events[at].clone());
                }
            }
            Mutation::SwappedEvents => {
                if let Some(at) = find(events, rng, is_event)
                    && events.get(at + 1).is_some_and(is_event)
                {
                    events.swap(at, at + 1);
                }
            }
            Mutation::OtherNamespace => {
                if let Some(at) = find(events, rng, has_id)
                    && let Some(cursor) = events[at]["id"].as_str().and_then(Cursor::decode)
                {
                    let namespace_hash = cursor.namespace_hash ^ 1;
                    events[at]["id"] = json!(Cursor { namespace_hash, ..cursor }.encode());
                }
            }
            Mutation::IdGoesBack => change_version(events, rng, has_id, |version| version.saturating_sub(40)),
            Mutation::IdAhead => change_version(events, rng, has_id, |version| version + 4),
            Mutation::HeartbeatAhead => {
                change_version(events, rng, |event| event["type"] == "heartbeat", |version| version + 4);
            }
            Mutation::IdTooEarly => {
                if let Some(at) = find(events, rng, has_id)
                    && at > 0
                    && is_event(&events[at - 1])
                    && events[at - 1]["id"].is_null()
                {
                    let id = events[at]["id"].take();
                    events[at].as_object_mut().unwrap().remove("id");
                    events[at - 1]["id"] = id;
                }
            }
            Mutation::MissingEventWithId => drop(find(events, rng, has_id).map(|at| events.remove(at))),
            Mutation::SnapshotWithoutLastObjects => {
                if let Some(at) = find(events, rng, is_snapshot) {
                    for array in ["instances", "claims"] {
                        events[at][array].as_array_mut().unwrap().pop();
                    }
                }
            }
            Mutation::SnapshotOfOtherState => {
                if let Some(at) = find(events, rng, is_snapshot) {
                    for view in events[at]["instances"].as_array_mut().unwrap() {
                        view["phase"] = json!("Other");
                    }
                }
            }
            Mutation::WrongUid => {
                if let Some(at) = find(events, rng, is_state) {
                    set_member(&mut events[at], "uid", &json!("u0"));
                }
            }
            Mutation::OldPhase => {
                let has_both = |event: &Value| event["previousPhase"].is_string() && event["cause"].is_null();
                if let Some(at) = find(events, rng, has_both) {
                    let old = events[at]["previousPhase"].clone();
                    set_member(&mut events[at], "phase", &old);
                }
            }
            Mutation::CoalescedRemoved => {
                for event in events {
                    event.as_object_mut().unwrap().remove("coalesced");
                }
            }
            Mutation::CoalescedAdded => {
                if let Some(at) = find(events, rng, is_event) {
                    events[at]["coalesced"] = json!(true);
                }
            }
            Mutation::ExpiredWithoutReason
            | Mutation::ForeignWithoutReason
            | Mutation::ResumeBeforeCursor
            | Mutation::ResumeAfterCursor => {}
        }
    }

    /// Changes the cursor with which a client resumes.
    pub(crate) fn mutate_cursor(self, cursor: Cursor) -> Cursor {
        let versions = match self {
            Mutation::ResumeBeforeCursor => cursor.versions.map(|version| version.saturating_sub(1)),
            Mutation::ResumeAfterCursor => cursor.versions.map(|version| version + 1),
            _ => cursor.versions,
        };
        Cursor { versions, ..cursor }
    }
}

/// In one of three cases, one of the events that fit.
fn find(events: &[Value], rng: &mut SeededRng, fits: impl Fn(&Value) -> bool) -> Option<usize> {
    let fitting: Vec<usize> = (0..events.len()).filter(|at| fits(&events[*at])).collect();
    (!fitting.is_empty() && rng.below(3) == 0).then(|| pick(rng, &fitting)).flatten()
}

/// Removes an event as if it had not been rendered: its id moves to the event before it.
fn remove(events: &mut Vec<Value>, rng: &mut SeededRng, fits: impl Fn(&Value) -> bool) {
    let Some(at) = find(events, rng, fits) else { return };
    let removed = events.remove(at);
    if removed["id"].is_string() && at > 0 && events[at - 1]["id"].is_null() && !events[at - 1]["key"].is_null() {
        events[at - 1]["id"] = removed["id"].clone();
    }
}

/// Sets a member of the view of a state event.
fn set_member(event: &mut Value, key: &str, value: &Value) {
    for view in ["instance", "claim"] {
        if event[view].is_object() {
            event[view][key] = value.clone();
        }
    }
}

fn change_version(
    events: &mut [Value],
    rng: &mut SeededRng,
    fits: impl Fn(&Value) -> bool,
    change: impl Fn(ResourceVersion) -> ResourceVersion,
) {
    let resource = Resource::ALL[rng.below(2) as usize];
    if let Some(at) = find(events, rng, fits)
        && let Some(mut cursor) = events[at]["id"].as_str().and_then(Cursor::decode)
    {
        cursor.versions[resource] = change(cursor.versions[resource]);
        events[at]["id"] = json!(cursor.encode());
    }
}
