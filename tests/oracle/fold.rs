//! The state that a client computes from what it receives.

use std::collections::BTreeMap;
use std::sync::Arc;

use boilerhouse_bridge::event::{PerResource, Resource};
use serde_json::Value;

use super::history::History;
use super::transitions::Transition;
use super::violation::{Guarantee, Validation, Violation, ensure};
use super::ws::{WsEvent, WsEventType};

/// The member of `state.initial` that lists the objects of each resource.
pub(crate) const ARRAYS: PerResource<&str> = PerResource::new("instances", "claims");
/// The member of a state event that is the object's view.
pub(crate) const VIEWS: PerResource<&str> = PerResource::new("instance", "claim");
/// The type of the state event of each resource.
pub(crate) const STATE_EVENTS: PerResource<&str> = PerResource::new("instance.state", "claim.state");

/// The fold of the full stream (docs/protocol.md#full-stream): views by uid.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fold {
    objects: PerResource<BTreeMap<String, Arc<Value>>>,
}

/// What the fold held of an object before an event.
#[derive(Clone, Debug)]
pub(crate) struct Undo {
    resource: Resource,
    uid: String,
    view: Option<Arc<Value>>,
}

impl Fold {
    /// Adds the objects of one part of a `state.initial`.
    pub(crate) fn add_part(&mut self, part: &Value) -> Validation {
        for resource in Resource::ALL {
            let array = ARRAYS[resource];
            let views = part[array]
                .as_array()
                .ok_or_else(|| Violation::new(Guarantee::WireFormat, format!("the array {array} is missing")))?;
            for view in views {
                let uid = view["uid"]
                    .as_str()
                    .ok_or_else(|| Violation::new(Guarantee::WireFormat, "an object has no uid"))?;
                let previous = self.objects[resource].insert(uid.to_owned(), Arc::new(view.clone()));
                ensure(previous.is_none(), Guarantee::Unique, || format!("the snapshot contains {uid} twice"))?;
            }
        }
        Ok(())
    }

    /// Applies a state event. Returns what it replaced, or `None` if the event is no state event.
    pub(crate) fn apply(&mut self, event: &Value) -> Option<Undo> {
        let resource = Resource::ALL.into_iter().find(|resource| event["type"] == STATE_EVENTS[*resource])?;
        let view = &event[VIEWS[resource]];
        let uid = view["uid"].as_str()?.to_owned();
        let objects = &mut self.objects[resource];
        let before = match event["phase"].as_str() {
            Some("Deleted") => objects.remove(&uid),
            _ => objects.insert(uid.clone(), Arc::new(view.clone())),
        };
        Some(Undo { resource, uid, view: before })
    }

    /// Takes back an event; the last one first.
    pub(crate) fn undo(&mut self, undo: Undo) {
        let objects = &mut self.objects[undo.resource];
        match undo.view {
            Some(view) => drop(objects.insert(undo.uid, view)),
            None => drop(objects.remove(&undo.uid)),
        }
    }

    pub(crate) fn holds(&self, resource: Resource, uid: &str) -> bool {
        self.objects[resource].contains_key(uid)
    }

    pub(crate) fn is_empty(&self, resource: Resource) -> bool {
        self.objects[resource].is_empty()
    }

    /// The views of one resource, by uid.
    pub(crate) fn views(&self, resource: Resource) -> BTreeMap<&str, &Value> {
        self.objects[resource].iter().map(|(uid, view)| (uid.as_str(), &**view)).collect()
    }
}

/// Compares the fold of a `/ws` client that started with a burst with the state of the store at the end: instances by
/// name, and the last transition of each claim. It does not use what the API server sent.
///
/// # Errors
/// The first difference.
pub(crate) fn validate_ws_fold(history: &History, received: &[WsEvent]) -> Validation {
    let (mut pods, mut transitions) = (BTreeMap::new(), BTreeMap::new());
    for event in received {
        match event.r#type {
            WsEventType::State if event.phase.as_deref() == Some("Deleted") => drop(pods.remove(event.name.as_str())),
            WsEventType::State => {
                let members = (event.phase.as_deref(), event.workload_ref.as_deref(), event.tenant_id.as_deref());
                pods.insert(event.name.as_str(), members);
            }
            WsEventType::Transition(Transition::Ready) => {}
            WsEventType::Transition(transition) => drop(transitions.insert(event.name.as_str(), transition)),
        }
    }
    let (expected, claims) = (history.final_state(Resource::Pods), history.final_state(Resource::Claims));
    let members = expected.values().map(|pod| {
        let members = (pod.text("phase"), pod.text("workloadRef"), pod.text("tenantId"));
        (pod.name.as_str(), members)
    });
    let expected: BTreeMap<_, _> = members.collect();
    ensure(pods == expected, Guarantee::Convergent, || format!("the fold is {pods:?}, the store has {expected:?}"))?;
    for name in transitions.keys().copied().chain(claims.keys().map(String::as_str)) {
        let phase = claims.get(name).map(|claim| claim.phase());
        let last = transitions.get(name).copied();
        let fits = match phase {
            Some("Active") => last == Some(Transition::Claimed),
            Some("Released") | None => last != Some(Transition::Claimed),
            Some(_) => true,
        };
        ensure(fits, Guarantee::Convergent, || {
            format!("claim {name} is in phase {phase:?}, and its last transition is {last:?}")
        })?;
    }
    Ok(())
}
