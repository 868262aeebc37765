//! Defects put between a subscription and its client, to see that the model's checks catch each.

use boilerhouse_bridge::event::{Cursor, Resource, ResourceVersion};
use serde_json::{Value, json};

use crate::support::rng::SeededRng;

/// One defect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mutation {
    SkipOne,
    RepeatOne,
    DropDeleted,
    DropFiltered,
    DropEdge,
    SwapTwo,
    IdBackInOne,
    IdAhead,
    IdTooEarly,
    EatTheId,
    HeartbeatAhead,
    SnapshotWithoutTail,
    SnapshotOfBefore,
    WrongUid,
    OldPhase,
    NoCoalesced,
    FalseCoalesced,
    FalseExpired,
    FalseForeign,
    ResumeInclusive,
    ResumeTooFar,
}

impl Mutation {
    pub(super) const ALL: [Mutation; 21] = [
        Mutation::SkipOne,
        Mutation::RepeatOne,
        Mutation::DropDeleted,
        Mutation::DropFiltered,
        Mutation::DropEdge,
        Mutation::SwapTwo,
        Mutation::IdBackInOne,
        Mutation::IdAhead,
        Mutation::IdTooEarly,
        Mutation::EatTheId,
        Mutation::HeartbeatAhead,
        Mutation::SnapshotWithoutTail,
        Mutation::SnapshotOfBefore,
        Mutation::WrongUid,
        Mutation::OldPhase,
        Mutation::NoCoalesced,
        Mutation::FalseCoalesced,
        Mutation::FalseExpired,
        Mutation::FalseForeign,
        Mutation::ResumeInclusive,
        Mutation::ResumeTooFar,
    ];

    /// Spoils what a read gave, where it can.
    pub(super) fn mutate(self, events: &mut Vec<Value>, rng: &mut SeededRng) {
        let is_state = |event: &Value| event["type"].as_str().is_some_and(|kind| kind.ends_with(".state"));
        let is_edge = |event: &Value| !event["key"].is_null() && !is_state(event);
        let is_told = |event: &Value| !event["key"].is_null();
        let with_id = |event: &Value| is_told(event) && event["id"].is_string();
        let is_first = |event: &Value| event["type"] == "state.initial";
        match self {
            Mutation::SkipOne => {
                let at = find(events, rng, is_told);
                without(events, at);
            }
            Mutation::RepeatOne => {
                if let Some(at) = find(events, rng, is_told) {
                    events.insert(at, events[at].clone());
                }
            }
            Mutation::DropDeleted => {
                let at = find(events, rng, |e| e["cause"] == "deleted");
                without(events, at);
            }
            Mutation::DropFiltered => {
                let at = find(events, rng, |e| e["cause"] == "filtered");
                without(events, at);
            }
            Mutation::DropEdge => {
                let at = find(events, rng, is_edge);
                without(events, at);
            }
            Mutation::SwapTwo => {
                if let Some(at) = find(events, rng, is_told)
                    && events.get(at + 1).is_some_and(is_told)
                {
                    events.swap(at, at + 1);
                }
            }
            Mutation::IdBackInOne => shift(events, rng, with_id, |rv| rv.saturating_sub(40)),
            Mutation::IdAhead => shift(events, rng, with_id, |rv| rv + 4),
            Mutation::HeartbeatAhead => shift(events, rng, |e| e["type"] == "heartbeat", |rv| rv + 4),
            Mutation::IdTooEarly => {
                if let Some(at) = find(events, rng, with_id)
                    && at > 0
                    && is_told(&events[at - 1])
                    && events[at - 1]["id"].is_null()
                {
                    let id = events[at]["id"].take();
                    events[at].as_object_mut().unwrap().remove("id");
                    events[at - 1]["id"] = id;
                }
            }
            Mutation::EatTheId => drop(find(events, rng, with_id).map(|at| events.remove(at))),
            Mutation::SnapshotWithoutTail => {
                if let Some(at) = find(events, rng, is_first) {
                    for array in ["instances", "claims"] {
                        events[at][array].as_array_mut().unwrap().pop();
                    }
                }
            }
            Mutation::SnapshotOfBefore => {
                if let Some(at) = find(events, rng, is_first) {
                    for view in events[at]["instances"].as_array_mut().unwrap() {
                        view["phase"] = json!("Before");
                    }
                }
            }
            Mutation::WrongUid => {
                if let Some(at) = find(events, rng, is_state) {
                    for view in ["instance", "claim"] {
                        if events[at][view].is_object() {
                            events[at][view]["uid"] = json!("u0");
                        }
                    }
                }
            }
            Mutation::OldPhase => {
                if let Some(at) = find(events, rng, |e| e["previousPhase"].is_string() && e["cause"].is_null()) {
                    let old = events[at]["previousPhase"].clone();
                    for view in ["instance", "claim"] {
                        if events[at][view].is_object() {
                            events[at][view]["phase"] = old.clone();
                        }
                    }
                }
            }
            Mutation::NoCoalesced => {
                for event in events {
                    event.as_object_mut().unwrap().remove("coalesced");
                }
            }
            Mutation::FalseCoalesced => {
                if let Some(at) = find(events, rng, is_told) {
                    events[at]["coalesced"] = json!(true);
                }
            }
            Mutation::FalseExpired | Mutation::FalseForeign | Mutation::ResumeInclusive | Mutation::ResumeTooFar => {}
        }
    }

    /// Spoils the cursor with which a client comes back.
    pub(super) fn mutate_cursor(self, cursor: Cursor) -> Cursor {
        let rv = match self {
            Mutation::ResumeInclusive => cursor.versions.map(|rv| rv.saturating_sub(1)),
            Mutation::ResumeTooFar => cursor.versions.map(|rv| rv + 1),
            _ => cursor.versions,
        };
        Cursor { versions: rv, ..cursor }
    }
}

/// One of those that are so, now and then.
fn find(events: &[Value], rng: &mut SeededRng, is: impl Fn(&Value) -> bool) -> Option<usize> {
    let all: Vec<usize> = (0..events.len()).filter(|at| is(&events[*at])).collect();
    (!all.is_empty() && rng.below(3) == 0).then(|| *rng.choose(&all))
}

/// Takes one out, its id going to the one before it: as if it had never been.
fn without(events: &mut Vec<Value>, at: Option<usize>) {
    let Some(at) = at else { return };
    let gone = events.remove(at);
    if gone["id"].is_string() && at > 0 && events[at - 1]["id"].is_null() && !events[at - 1]["key"].is_null() {
        events[at - 1]["id"] = gone["id"].clone();
    }
}

fn shift(
    events: &mut [Value],
    rng: &mut SeededRng,
    is: impl Fn(&Value) -> bool,
    by: impl Fn(ResourceVersion) -> ResourceVersion,
) {
    let which = Resource::ALL[rng.below(2) as usize];
    if let Some(at) = find(events, rng, is)
        && let Some(mut cursor) = events[at]["id"].as_str().and_then(Cursor::decode)
    {
        cursor.versions[which] = by(cursor.versions[which]);
        events[at]["id"] = json!(cursor.encode());
    }
}
