//! The events of one change of one object, as a client with a projection must receive them
//! (docs/protocol.md#full-stream).

use std::sync::Arc;

use boilerhouse_bridge::event::ResourceVersion;
use serde_json::{Map, Value, json};

use crate::oracle::fold::{STATE_EVENTS, VIEWS};
use crate::oracle::object::ExpectedObject;
use crate::oracle::transitions::Transition;
use crate::oracle::visibility::ExpectedProjection;

/// The events of a change, without `id` and `time`. `version` is the version of the change, or that of the list if the
/// change is part of a difference.
pub(crate) fn events_of(
    projection: &ExpectedProjection,
    before: Option<&ExpectedObject>,
    after: Option<&ExpectedObject>,
    version: ResourceVersion,
) -> Vec<Arc<Value>> {
    let Some(object) = after.or(before) else { return Vec::new() };
    let old = before.filter(|object| projection.shows(object));
    let new = after.filter(|object| projection.shows(object));
    if old.is_none() && new.is_none() {
        return Vec::new();
    }
    let version = after.map_or(version, |object| object.version);
    let mut events = Vec::new();
    let mut emit = |name: &str, mut event: Value| {
        event["type"] = name.into();
        event["key"] = format!("{}.{version}.{name}", object.uid).into();
        if projection.has(name) {
            events.push(Arc::new(event));
        }
    };
    let is_changed = old.zip(new).is_none_or(|(old, new)| old.view != new.view);
    if is_changed {
        emit(STATE_EVENTS[object.resource], state_event(old, new, after));
    }
    if let Some(transition) = Transition::of(before, after) {
        emit(transition.event_type(), transition_event(object, transition));
    }
    events
}

/// A state event. `old` and `new` are the sides that the client sees, `after` is the object after the change even if
/// the client does not see it.
fn state_event(old: Option<&ExpectedObject>, new: Option<&ExpectedObject>, after: Option<&ExpectedObject>) -> Value {
    let object = new.or(old).unwrap();
    let phase = new.map_or("Deleted", ExpectedObject::phase);
    let mut event = Map::new();
    event.insert("name".to_owned(), object.name.clone().into());
    event.insert("phase".to_owned(), phase.into());
    for key in ["workloadRef", "tenantId"] {
        if let Some(value) = object.view.get(key) {
            event.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(old) = old.filter(|old| old.phase() != phase) {
        event.insert("previousPhase".to_owned(), old.phase().into());
    }
    if new.is_none() {
        event.insert("cause".to_owned(), if after.is_none() { "deleted" } else { "filtered" }.into());
    }
    event.insert(VIEWS[object.resource].to_owned(), object.view.clone());
    event.into()
}

fn transition_event(object: &ExpectedObject, transition: Transition) -> Value {
    let mut event = json!({"name": object.name, "uid": object.uid});
    for key in transition.members() {
        if let Some(value) = object.text(key) {
            event[*key] = value.into();
        }
    }
    event
}
