//! What really happened, from the store's own history, and what a reader of `/ws` has to be told of it.
//!
//! The rules of docs/protocol.md#boilerhouse-stream stand here once more, by hand and on the raw objects: calling `event::render` or
//! `source::project` would blind the validator to their errors. A restored older copy of etcd begins another epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use boilerhouse_bridge::sim::ApiResource;
use boilerhouse_bridge::sim::store::Change;
use serde::Deserialize;
use serde_json::Value;

pub(crate) const NAMESPACE: &str = "boilerhouse";

/// One message of `/ws`. A key that is not in docs/protocol.md#boilerhouse-stream is an error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WsEvent {
    pub(crate) r#type: WsEventType,
    pub(crate) name: String,
    pub(crate) phase: Option<String>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) workload_ref: Option<String>,
    pub(crate) source: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum WsEventType {
    #[serde(rename = "instance.state")]
    State,
    #[serde(rename = "pool.instance.ready")]
    Ready,
    #[serde(rename = "tenant.claimed")]
    Claimed,
    #[serde(rename = "tenant.released")]
    Released,
}

impl WsEventType {
    pub(crate) fn kind(self) -> Resource {
        match self {
            WsEventType::State | WsEventType::Ready => Resource::Pods,
            WsEventType::Claimed | WsEventType::Released => Resource::Claims,
        }
    }
}

/// An object at one version, as far as `/ws` tells of it.
#[derive(Debug)]
pub(crate) struct ObjectSnapshot {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) rv: ResourceVersion,
    pub(crate) phase: String,
    pub(crate) tenant: Option<String>,
    pub(crate) workload: Option<String>,
    pub(crate) ready: bool,
    pub(crate) source: Option<String>,
    pub(crate) raw: Arc<Value>,
}

/// All objects of one resource, by name.
pub(crate) type State = BTreeMap<String, Arc<ObjectSnapshot>>;

/// One version of one resource: an object before and after it, where it is watched at all.
#[derive(Clone, Debug)]
pub(crate) struct VersionChange {
    pub(crate) rv: ResourceVersion,
    pub(crate) before: Option<Arc<ObjectSnapshot>>,
    pub(crate) after: Option<Arc<ObjectSnapshot>>,
}

/// Every version of one resource, in order.
pub(crate) type Epoch = Vec<VersionChange>;

/// All there ever was: an epoch for each history, with both resources.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) epochs: Vec<[Epoch; 2]>,
}

impl History {
    pub(crate) fn of(histories: &[Vec<Change>]) -> History {
        let branch = |changes: &[Change], kind| changes.iter().filter_map(|change| version(change, kind)).collect();
        let epochs = histories.iter().map(|changes| Resource::ALL.map(|kind| branch(changes, kind))).collect();
        History { epochs }
    }

    pub(crate) fn changes(&self, epoch: usize, kind: Resource) -> &Epoch {
        &self.epochs[epoch][kind as usize]
    }

    /// The state at a version of an epoch.
    pub(crate) fn state_at(&self, epoch: usize, kind: Resource, rv: ResourceVersion) -> State {
        let mut state = State::new();
        for version in self.changes(epoch, kind).iter().take_while(|version| version.rv <= rv) {
            apply(&mut state, version);
        }
        state
    }

    /// The state at the very end.
    pub(crate) fn now(&self, kind: Resource) -> State {
        self.state_at(self.epochs.len() - 1, kind, ResourceVersion::MAX)
    }
}

pub(crate) fn apply(state: &mut State, version: &VersionChange) {
    match (&version.before, &version.after) {
        (_, Some(after)) => drop(state.insert(after.name.clone(), after.clone())),
        (Some(before), None) => drop(state.remove(&before.name)),
        (None, None) => {}
    }
}

/// What one version says to somebody who knows everything before it.
pub(crate) fn step(version: &VersionChange, events: &mut Vec<WsEvent>) {
    transition(version.before.as_deref(), version.after.as_deref(), events);
}

/// What a new list says to somebody who knows another state: the net difference, deletions first, by name, then what is
/// new or changed in the order of versions (docs/protocol.md#full-stream).
pub(crate) fn difference(old: &State, new: &State, events: &mut Vec<WsEvent>) {
    let same_life = |a: &ObjectSnapshot, b: Option<&Arc<ObjectSnapshot>>| b.is_some_and(|b| a.uid == b.uid);
    for gone in old.values().filter(|snapshot| !same_life(snapshot, new.get(&snapshot.name))) {
        transition(Some(gone), None, events);
    }
    let mut fresh: Vec<&Arc<ObjectSnapshot>> = new.values().collect();
    fresh.sort_by_key(|snapshot| snapshot.rv);
    for snapshot in fresh {
        let known = old.get(&snapshot.name).filter(|known| known.uid == snapshot.uid);
        if known.is_none_or(|known| known.raw != snapshot.raw) {
            transition(known.map(|known| &**known), Some(snapshot), events);
        }
    }
}

/// The messages with which a connection opens: pods by name, then claims by name.
pub(crate) fn initial_events(pods: &State, claims: &State) -> Vec<WsEvent> {
    let mut events = Vec::new();
    for pod in pods.values() {
        events.push(pod.event_of(WsEventType::State));
        events.extend(pod.ready.then(|| pod.event_of(WsEventType::Ready)));
    }
    events.extend(
        claims.values().filter(|claim| claim.phase == "Active").map(|claim| claim.event_of(WsEventType::Claimed)),
    );
    events
}

/// One life, from one state to another.
fn transition(before: Option<&ObjectSnapshot>, after: Option<&ObjectSnapshot>, events: &mut Vec<WsEvent>) {
    let Some(snapshot) = after.or(before) else { return };
    if snapshot.is_pod() {
        let mut state = snapshot.event_of(WsEventType::State);
        if after.is_none() {
            state.phase = Some("Deleted".to_owned());
        }
        events.push(state);
        if after.is_some_and(|after| after.ready) && !before.is_some_and(|before| before.ready) {
            events.push(snapshot.event_of(WsEventType::Ready));
        }
        return;
    }
    let (was, is) = (before.map(|snapshot| snapshot.phase.as_str()), after.map(|snapshot| snapshot.phase.as_str()));
    match (was, is) {
        (was, Some("Active")) if was != Some("Active") => events.push(snapshot.event_of(WsEventType::Claimed)),
        (Some(was), Some("Released") | None) if was != "Released" => {
            events.push(snapshot.event_of(WsEventType::Released))
        }
        _ => {}
    }
}

impl ObjectSnapshot {
    fn is_pod(&self) -> bool {
        self.raw["kind"] == "Pod"
    }

    pub(crate) fn event_of(&self, r#type: WsEventType) -> WsEvent {
        let (tenant_id, workload_ref) = (self.tenant.clone(), self.workload.clone());
        let bare =
            WsEvent { r#type, name: self.name.clone(), phase: None, tenant_id: None, workload_ref: None, source: None };
        match r#type {
            WsEventType::State => WsEvent { phase: Some(self.phase.clone()), tenant_id, workload_ref, ..bare },
            WsEventType::Ready => WsEvent { workload_ref, ..bare },
            WsEventType::Claimed => WsEvent { tenant_id, workload_ref, source: self.source.clone(), ..bare },
            WsEventType::Released => WsEvent { tenant_id, ..bare },
        }
    }
}

fn version(change: &Change, kind: Resource) -> Option<VersionChange> {
    let resource = match kind {
        Resource::Pods => ApiResource::Pods,
        Resource::Claims => ApiResource::Claims,
    };
    if change.resource != resource || change.namespace != NAMESPACE {
        return None;
    }
    let seen = |object: &Option<Arc<Value>>| object.as_ref().and_then(snapshot);
    let (before, after) = (seen(&change.before), seen(&change.after));
    (before.is_some() || after.is_some()).then_some(VersionChange { rv: change.revision, before, after })
}

/// How an object looks; nothing for a pod that is not managed.
fn snapshot(object: &Arc<Value>) -> Option<Arc<ObjectSnapshot>> {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let label = |key: &str| text(&meta["labels"][key]);
    let is_pod = object["kind"] == "Pod";
    if is_pod && label("boilerhouse.dev/managed").as_deref() != Some("true") {
        return None;
    }
    let phase = text(&status["phase"]).unwrap_or_else(|| if is_pod { "Unknown" } else { "Pending" }.to_owned());
    Some(Arc::new(ObjectSnapshot {
        name: text(&meta["name"])?,
        uid: text(&meta["uid"])?,
        rv: meta["resourceVersion"].as_str()?.parse().ok()?,
        phase,
        tenant: if is_pod { label("boilerhouse.dev/tenant") } else { text(&spec["tenantId"]) },
        workload: if is_pod { label("boilerhouse.dev/workload") } else { text(&spec["workloadRef"]) },
        ready: is_pod && label("boilerhouse.dev/pool-status").as_deref() == Some("ready"),
        source: if is_pod { None } else { text(&status["source"]) },
        raw: object.clone(),
    }))
}
