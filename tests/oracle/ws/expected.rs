//! The messages that a client of `/ws` must receive for a state and for a change.

use boilerhouse_bridge::event::Resource;

use crate::oracle::history::{Sides, State};
use crate::oracle::object::ExpectedObject;
use crate::oracle::transitions::Transition;

use super::record::{WsEvent, WsEventType};

/// The burst at the start of a connection: pods by name, then claims by name.
pub(crate) fn initial_events(pods: &State, claims: &State) -> Vec<WsEvent> {
    let mut events = Vec::new();
    for pod in pods.values() {
        events.push(WsEvent::state(pod));
        events.extend(pod.is_ready().then(|| WsEvent::transition(pod, Transition::Ready)));
    }
    let active = claims.values().filter(|claim| claim.phase() == "Active");
    events.extend(active.map(|claim| WsEvent::transition(claim, Transition::Claimed)));
    events
}

/// The messages of one change of one object.
pub(crate) fn events_of((before, after): Sides<'_>) -> Vec<WsEvent> {
    let Some(object) = after.or(before) else { return Vec::new() };
    let mut events = Vec::new();
    if object.resource == Resource::Pods {
        let state = WsEvent::state(object);
        events.push(if after.is_some() { state } else { WsEvent { phase: Some("Deleted".to_owned()), ..state } });
    }
    let transition = Transition::of(before.map(|object| &**object), after.map(|object| &**object));
    events.extend(transition.map(|transition| WsEvent::transition(object, transition)));
    events
}

impl WsEvent {
    /// `instance.state` of a Pod.
    pub(crate) fn state(pod: &ExpectedObject) -> WsEvent {
        WsEvent::with_members(pod, WsEventType::State, &["phase", "tenantId", "workloadRef"])
    }

    fn transition(object: &ExpectedObject, transition: Transition) -> WsEvent {
        WsEvent::with_members(object, WsEventType::Transition(transition), transition.members())
    }

    fn with_members(object: &ExpectedObject, r#type: WsEventType, members: &[&str]) -> WsEvent {
        let member = |key| members.contains(&key).then(|| object.text(key)).flatten().map(str::to_owned);
        WsEvent {
            r#type,
            name: object.name.clone(),
            phase: member("phase"),
            tenant_id: member("tenantId"),
            workload_ref: member("workloadRef"),
            source: member("source"),
        }
    }
}
