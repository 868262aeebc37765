//! Defects put between a subscription and its client, to see that the model's checks catch each.

use boilerhouse_bridge::event::{Cursor, ResourceVersion};
use serde_json::{Value, json};

use crate::support::dice::Dice;

/// One defect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plant {
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

impl Plant {
    pub(super) const ALL: [Plant; 21] = [
        Plant::SkipOne,
        Plant::RepeatOne,
        Plant::DropDeleted,
        Plant::DropFiltered,
        Plant::DropEdge,
        Plant::SwapTwo,
        Plant::IdBackInOne,
        Plant::IdAhead,
        Plant::IdTooEarly,
        Plant::EatTheId,
        Plant::HeartbeatAhead,
        Plant::SnapshotWithoutTail,
        Plant::SnapshotOfBefore,
        Plant::WrongUid,
        Plant::OldPhase,
        Plant::NoCoalesced,
        Plant::FalseCoalesced,
        Plant::FalseExpired,
        Plant::FalseForeign,
        Plant::ResumeInclusive,
        Plant::ResumeTooFar,
    ];

    /// Spoils what a read gave, where it can.
    pub(super) fn spoil(self, events: &mut Vec<Value>, dice: &mut Dice) {
        let is_state = |event: &Value| event["type"].as_str().is_some_and(|kind| kind.ends_with(".state"));
        let is_edge = |event: &Value| !event["key"].is_null() && !is_state(event);
        let is_told = |event: &Value| !event["key"].is_null();
        let with_id = |event: &Value| is_told(event) && event["id"].is_string();
        let is_first = |event: &Value| event["type"] == "state.initial";
        match self {
            Plant::SkipOne => {
                let at = find(events, dice, is_told);
                without(events, at);
            }
            Plant::RepeatOne => {
                if let Some(at) = find(events, dice, is_told) {
                    events.insert(at, events[at].clone());
                }
            }
            Plant::DropDeleted => {
                let at = find(events, dice, |e| e["cause"] == "deleted");
                without(events, at);
            }
            Plant::DropFiltered => {
                let at = find(events, dice, |e| e["cause"] == "filtered");
                without(events, at);
            }
            Plant::DropEdge => {
                let at = find(events, dice, is_edge);
                without(events, at);
            }
            Plant::SwapTwo => {
                if let Some(at) = find(events, dice, is_told)
                    && events.get(at + 1).is_some_and(is_told)
                {
                    events.swap(at, at + 1);
                }
            }
            Plant::IdBackInOne => shift(events, dice, with_id, |rv| rv.saturating_sub(40)),
            Plant::IdAhead => shift(events, dice, with_id, |rv| rv + 4),
            Plant::HeartbeatAhead => shift(events, dice, |e| e["type"] == "heartbeat", |rv| rv + 4),
            Plant::IdTooEarly => {
                if let Some(at) = find(events, dice, with_id)
                    && at > 0
                    && is_told(&events[at - 1])
                    && events[at - 1]["id"].is_null()
                {
                    let id = events[at]["id"].take();
                    events[at].as_object_mut().unwrap().remove("id");
                    events[at - 1]["id"] = id;
                }
            }
            Plant::EatTheId => drop(find(events, dice, with_id).map(|at| events.remove(at))),
            Plant::SnapshotWithoutTail => {
                if let Some(at) = find(events, dice, is_first) {
                    for array in ["instances", "claims"] {
                        events[at][array].as_array_mut().unwrap().pop();
                    }
                }
            }
            Plant::SnapshotOfBefore => {
                if let Some(at) = find(events, dice, is_first) {
                    for view in events[at]["instances"].as_array_mut().unwrap() {
                        view["phase"] = json!("Before");
                    }
                }
            }
            Plant::WrongUid => {
                if let Some(at) = find(events, dice, is_state) {
                    for view in ["instance", "claim"] {
                        if events[at][view].is_object() {
                            events[at][view]["uid"] = json!("u0");
                        }
                    }
                }
            }
            Plant::OldPhase => {
                if let Some(at) = find(events, dice, |e| e["previousPhase"].is_string() && e["cause"].is_null()) {
                    let old = events[at]["previousPhase"].clone();
                    for view in ["instance", "claim"] {
                        if events[at][view].is_object() {
                            events[at][view]["phase"] = old.clone();
                        }
                    }
                }
            }
            Plant::NoCoalesced => {
                for event in events {
                    event.as_object_mut().unwrap().remove("coalesced");
                }
            }
            Plant::FalseCoalesced => {
                if let Some(at) = find(events, dice, is_told) {
                    events[at]["coalesced"] = json!(true);
                }
            }
            Plant::FalseExpired | Plant::FalseForeign | Plant::ResumeInclusive | Plant::ResumeTooFar => {}
        }
    }

    /// Spoils the cursor with which a client comes back.
    pub(super) fn spoil_cursor(self, cursor: Cursor) -> Cursor {
        let rv = match self {
            Plant::ResumeInclusive => cursor.rv.map(|rv| rv.saturating_sub(1)),
            Plant::ResumeTooFar => cursor.rv.map(|rv| rv + 1),
            _ => cursor.rv,
        };
        Cursor { rv, ..cursor }
    }
}

/// One of those that are so, now and then.
fn find(events: &[Value], dice: &mut Dice, is: impl Fn(&Value) -> bool) -> Option<usize> {
    let all: Vec<usize> = (0..events.len()).filter(|at| is(&events[*at])).collect();
    (!all.is_empty() && dice.roll(3) == 0).then(|| *dice.pick(&all))
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
    dice: &mut Dice,
    is: impl Fn(&Value) -> bool,
    by: impl Fn(ResourceVersion) -> ResourceVersion,
) {
    let which = dice.roll(2) as usize;
    if let Some(at) = find(events, dice, is)
        && let Some(mut cursor) = events[at]["id"].as_str().and_then(Cursor::decode)
    {
        cursor.rv[which] = by(cursor.rv[which]);
        events[at]["id"] = json!(cursor.encode());
    }
}
