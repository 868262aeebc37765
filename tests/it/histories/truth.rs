//! What really happened, from the store's own history, and what a reader of `/ws` has to be told of it.
//!
//! The rules of protocol.md section 2 stand here once more, by hand and on the raw objects: calling `event::render` or
//! `source::project` would blind the validator to their errors. A restored older copy of etcd begins another epoch.

use std::collections::BTreeMap;
use std::sync::Arc;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use boilerhouse_bridge::sim::ApiResource;
use boilerhouse_bridge::sim::store::Change;
use serde::Deserialize;
use serde_json::Value;

pub(super) const NAMESPACE: &str = "boilerhouse";

/// One message of `/ws`. A key that is not in protocol.md section 2 is an error.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Said {
    pub(super) r#type: Type,
    pub(super) name: String,
    pub(super) phase: Option<String>,
    pub(super) tenant_id: Option<String>,
    pub(super) workload_ref: Option<String>,
    pub(super) source: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Type {
    #[serde(rename = "instance.state")]
    State,
    #[serde(rename = "pool.instance.ready")]
    Ready,
    #[serde(rename = "tenant.claimed")]
    Claimed,
    #[serde(rename = "tenant.released")]
    Released,
}

impl Type {
    pub(super) fn kind(self) -> Resource {
        match self {
            Type::State | Type::Ready => Resource::Instance,
            Type::Claimed | Type::Released => Resource::Claim,
        }
    }
}

/// An object at one version, as far as `/ws` tells of it.
#[derive(Debug)]
pub(super) struct Face {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) rv: ResourceVersion,
    pub(super) phase: String,
    pub(super) tenant: Option<String>,
    pub(super) workload: Option<String>,
    pub(super) ready: bool,
    pub(super) source: Option<String>,
    pub(super) raw: Arc<Value>,
}

/// All objects of one resource, by name.
pub(super) type State = BTreeMap<String, Arc<Face>>;

/// One version of one resource: an object before and after it, where it is watched at all.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) rv: ResourceVersion,
    pub(super) before: Option<Arc<Face>>,
    pub(super) after: Option<Arc<Face>>,
}

/// Every version of one resource, in order.
pub(super) type Branch = Vec<Version>;

/// All there ever was: an epoch for each history, with both resources.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) epochs: Vec<[Branch; 2]>,
}

impl Truth {
    pub(super) fn of(histories: &[Vec<Change>]) -> Truth {
        let branch = |changes: &[Change], kind| changes.iter().filter_map(|change| version(change, kind)).collect();
        let epochs = histories.iter().map(|changes| Resource::ALL.map(|kind| branch(changes, kind))).collect();
        Truth { epochs }
    }

    pub(super) fn branch(&self, epoch: usize, kind: Resource) -> &Branch {
        &self.epochs[epoch][kind as usize]
    }

    /// The state at a version of an epoch.
    pub(super) fn state_at(&self, epoch: usize, kind: Resource, rv: ResourceVersion) -> State {
        let mut state = State::new();
        for version in self.branch(epoch, kind).iter().take_while(|version| version.rv <= rv) {
            apply(&mut state, version);
        }
        state
    }

    /// The state at the very end.
    pub(super) fn now(&self, kind: Resource) -> State {
        self.state_at(self.epochs.len() - 1, kind, ResourceVersion::MAX)
    }
}

pub(super) fn apply(state: &mut State, version: &Version) {
    match (&version.before, &version.after) {
        (_, Some(after)) => drop(state.insert(after.name.clone(), after.clone())),
        (Some(before), None) => drop(state.remove(&before.name)),
        (None, None) => {}
    }
}

/// What one version says to somebody who knows everything before it.
pub(super) fn step(version: &Version, say: &mut Vec<Said>) {
    transition(version.before.as_deref(), version.after.as_deref(), say);
}

/// What a new list says to somebody who knows another state: the net difference, deletions first, by name, then what is
/// new or changed in the order of versions (protocol.md section 3).
pub(super) fn difference(old: &State, new: &State, say: &mut Vec<Said>) {
    let same_life = |a: &Face, b: Option<&Arc<Face>>| b.is_some_and(|b| a.uid == b.uid);
    for gone in old.values().filter(|face| !same_life(face, new.get(&face.name))) {
        transition(Some(gone), None, say);
    }
    let mut fresh: Vec<&Arc<Face>> = new.values().collect();
    fresh.sort_by_key(|face| face.rv);
    for face in fresh {
        let known = old.get(&face.name).filter(|known| known.uid == face.uid);
        if known.is_none_or(|known| known.raw != face.raw) {
            transition(known.map(|known| &**known), Some(face), say);
        }
    }
}

/// The messages with which a connection opens: pods by name, then claims by name.
pub(super) fn burst(pods: &State, claims: &State) -> Vec<Said> {
    let mut say = Vec::new();
    for pod in pods.values() {
        say.push(pod.says(Type::State));
        say.extend(pod.ready.then(|| pod.says(Type::Ready)));
    }
    say.extend(claims.values().filter(|claim| claim.phase == "Active").map(|claim| claim.says(Type::Claimed)));
    say
}

/// One life, from one state to another.
fn transition(before: Option<&Face>, after: Option<&Face>, say: &mut Vec<Said>) {
    let Some(face) = after.or(before) else { return };
    if face.is_pod() {
        let mut state = face.says(Type::State);
        if after.is_none() {
            state.phase = Some("Deleted".to_owned());
        }
        say.push(state);
        if after.is_some_and(|after| after.ready) && !before.is_some_and(|before| before.ready) {
            say.push(face.says(Type::Ready));
        }
        return;
    }
    let (was, is) = (before.map(|face| face.phase.as_str()), after.map(|face| face.phase.as_str()));
    match (was, is) {
        (was, Some("Active")) if was != Some("Active") => say.push(face.says(Type::Claimed)),
        (Some(was), Some("Released") | None) if was != "Released" => say.push(face.says(Type::Released)),
        _ => {}
    }
}

impl Face {
    fn is_pod(&self) -> bool {
        self.raw["kind"] == "Pod"
    }

    pub(super) fn says(&self, r#type: Type) -> Said {
        let (tenant_id, workload_ref) = (self.tenant.clone(), self.workload.clone());
        let bare =
            Said { r#type, name: self.name.clone(), phase: None, tenant_id: None, workload_ref: None, source: None };
        match r#type {
            Type::State => Said { phase: Some(self.phase.clone()), tenant_id, workload_ref, ..bare },
            Type::Ready => Said { workload_ref, ..bare },
            Type::Claimed => Said { tenant_id, workload_ref, source: self.source.clone(), ..bare },
            Type::Released => Said { tenant_id, ..bare },
        }
    }
}

fn version(change: &Change, kind: Resource) -> Option<Version> {
    let resource = match kind {
        Resource::Instance => ApiResource::Pods,
        Resource::Claim => ApiResource::Claims,
    };
    if change.resource != resource || change.namespace != NAMESPACE {
        return None;
    }
    let seen = |object: &Option<Arc<Value>>| object.as_ref().and_then(face);
    let (before, after) = (seen(&change.before), seen(&change.after));
    (before.is_some() || after.is_some()).then_some(Version { rv: change.revision, before, after })
}

/// How an object looks; nothing for a pod that is not managed.
fn face(object: &Arc<Value>) -> Option<Arc<Face>> {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let label = |key: &str| text(&meta["labels"][key]);
    let is_pod = object["kind"] == "Pod";
    if is_pod && label("boilerhouse.dev/managed").as_deref() != Some("true") {
        return None;
    }
    let phase = text(&status["phase"]).unwrap_or_else(|| if is_pod { "Unknown" } else { "Pending" }.to_owned());
    Some(Arc::new(Face {
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
