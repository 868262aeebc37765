//! What a client asks for, and what it is to be told of a change: docs/protocol.md#objects, 3 and 4 once more, by hand and
//! on the raw objects. Calling `event::render` or `Projection::includes` would blind the validator to their errors.

use std::sync::Arc;

use boilerhouse_bridge::event::projection::{EventFormat, EventTypes, Filter, Projection, Scope};
use boilerhouse_bridge::event::{Resource, ResourceVersion};
use serde_json::{Map, Value, json};

use crate::seeded_ws::history::ObjectSnapshot;

/// An object at one version, as it stands on the wire.
#[derive(Debug)]
pub(super) struct ExpectedObject {
    pub(super) snapshot: Arc<ObjectSnapshot>,
    pub(super) view: Value,
}

/// One filter: `labels.x` is the label x; without a value it is to exist.
type Want = (Resource, &'static str, Option<&'static str>);

/// `types` and `params` of a client.
#[derive(Debug, PartialEq)]
pub(super) struct ExpectedProjection {
    types: Option<&'static str>,
    wants: &'static [Want],
}

const TENANT: &str = "labels.boilerhouse.dev/tenant";

/// What the clients of the histories ask for.
pub(super) const PROJECTIONS: [ExpectedProjection; 11] = [
    ExpectedProjection { types: None, wants: &[] },
    ExpectedProjection { types: None, wants: &[(Resource::Pods, "phase", Some("Running"))] },
    ExpectedProjection {
        types: None,
        wants: &[(Resource::Pods, "tenantId", Some("alice")), (Resource::Claims, "phase", Some("Active"))],
    },
    ExpectedProjection { types: None, wants: &[(Resource::Pods, "poolStatus", Some("ready"))] },
    ExpectedProjection { types: Some("claim"), wants: &[] },
    ExpectedProjection {
        types: Some("instance,pool.instance.ready,claim,tenant"),
        wants: &[(Resource::Pods, TENANT, None)],
    },
    ExpectedProjection {
        types: Some("instance,claim,tenant"),
        wants: &[(Resource::Pods, "name", Some("p1")), (Resource::Claims, "source", Some("pool"))],
    },
    ExpectedProjection { types: Some("instance.state,pool"), wants: &[(Resource::Pods, TENANT, Some("bob"))] },
    ExpectedProjection {
        types: Some("pool.instance.ready,tenant"),
        wants: &[(Resource::Claims, "phase", Some("Released"))],
    },
    ExpectedProjection {
        types: None,
        wants: &[(Resource::Pods, "phase", Some("Nowhere")), (Resource::Claims, "workloadRef", Some("nothing"))],
    },
    ExpectedProjection { types: Some("claim,tenant"), wants: &[] },
];

const TYPES: [(Resource, &[&str]); 2] = [
    (Resource::Pods, &["instance.state", "pool.instance.ready"]),
    (Resource::Claims, &["claim.state", "tenant.claimed", "tenant.released"]),
];

impl ExpectedProjection {
    pub(super) fn to_projection(&self) -> Projection {
        let mut filter = Filter::default();
        for (kind, key, value) in self.wants {
            let wanted = if *kind == Resource::Pods { &mut filter.instances } else { &mut filter.claims };
            let text = value.map(str::to_owned);
            match *key {
                "name" => wanted.name = text,
                "phase" => wanted.phase = text,
                "workloadRef" => wanted.workload_ref = text,
                "tenantId" => wanted.tenant_id = text,
                "poolStatus" => wanted.pool_status = text,
                "source" => wanted.source = text,
                label => drop(wanted.labels.insert(label.strip_prefix("labels.").unwrap().to_owned(), text)),
            }
        }
        let types = self.types.map_or_else(
            || EventTypes::all(EventFormat::Full),
            |list| EventTypes::parse(list, EventFormat::Full).unwrap(),
        );
        Projection { scope: Scope::All, filter, types, format: EventFormat::Full }
    }

    /// Whether an exact type is asked for, by its name or its family.
    pub(super) fn has(&self, name: &str) -> bool {
        let family = name.split('.').next().unwrap();
        self.types.is_none_or(|types| types.split(',').any(|word| word == name || word == family))
    }

    /// Whether anything of this resource is asked for.
    pub(super) fn needs(&self, kind: Resource) -> bool {
        TYPES[kind as usize].1.iter().any(|name| self.has(name))
    }

    /// Whether a cursor that was made under other looks is good for these.
    pub(super) fn takes(&self, other: &ExpectedProjection) -> bool {
        self.wants == other.wants && Resource::ALL.into_iter().all(|kind| other.needs(kind) || !self.needs(kind))
    }

    pub(super) fn shows(&self, object: &ExpectedObject) -> bool {
        let kind = object.kind();
        self.wants.iter().filter(|(of, ..)| *of == kind).all(|(_, key, value)| {
            let have = match key.strip_prefix("labels.") {
                Some(label) => &object.view["labels"][label],
                None => &object.view[*key],
            };
            value.map_or(!have.is_null(), |want| have == want)
        })
    }

    /// The events of one change of one life, without id and time; `rv` is its version, in a difference the list's.
    pub(super) fn events_of(
        &self,
        before: Option<&ExpectedObject>,
        after: Option<&ExpectedObject>,
        rv: ResourceVersion,
    ) -> Vec<Arc<Value>> {
        let Some(object) = after.or(before) else { return Vec::new() };
        let old = before.filter(|object| self.shows(object));
        let new = after.filter(|object| self.shows(object));
        let mut emitted = Vec::new();
        if old.is_none() && new.is_none() {
            return emitted;
        }
        let version = after.map_or(rv, |object| object.snapshot.rv);
        let mut emit = |name: &str, mut event: Value| {
            event["type"] = name.into();
            event["key"] = format!("{}.{version}.{name}", object.snapshot.uid).into();
            if self.has(name) {
                emitted.push(Arc::new(event));
            }
        };
        let is_seen = old.zip(new).is_none_or(|(old, new)| old.view != new.view);
        if is_seen {
            emit(
                if object.kind() == Resource::Pods { "instance.state" } else { "claim.state" },
                state(old, new, after),
            );
        }
        if let Some(name) = edge(before, after) {
            emit(name, object.edge(name));
        }
        emitted
    }
}

/// A state event; `after` is what became of it, whether or not the client may see that.
fn state(old: Option<&ExpectedObject>, new: Option<&ExpectedObject>, after: Option<&ExpectedObject>) -> Value {
    let object = new.or(old).unwrap();
    let phase = new.map_or("Deleted", |new| &new.snapshot.phase);
    let mut event = Map::new();
    event.insert("name".to_owned(), object.snapshot.name.clone().into());
    event.insert("phase".to_owned(), phase.into());
    for key in ["workloadRef", "tenantId"] {
        if let Some(value) = object.view.get(key) {
            event.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(old) = old.filter(|old| old.snapshot.phase != phase) {
        event.insert("previousPhase".to_owned(), old.snapshot.phase.clone().into());
    }
    if new.is_none() {
        event.insert("cause".to_owned(), if after.is_none() { "deleted" } else { "filtered" }.into());
    }
    let member = if object.kind() == Resource::Pods { "instance" } else { "claim" };
    event.insert(member.to_owned(), object.view.clone());
    event.into()
}

/// The edge of one life, whoever sees it.
fn edge(before: Option<&ExpectedObject>, after: Option<&ExpectedObject>) -> Option<&'static str> {
    let phase = |object: Option<&ExpectedObject>| object.map(|object| object.snapshot.phase.clone());
    if after.or(before)?.kind() == Resource::Pods {
        let ready = |object: Option<&ExpectedObject>| object.is_some_and(|object| object.snapshot.ready);
        return (ready(after) && !ready(before)).then_some("pool.instance.ready");
    }
    match (phase(before).as_deref(), phase(after).as_deref()) {
        (was, Some("Active")) if was != Some("Active") => Some("tenant.claimed"),
        (Some(was), Some("Released") | None) if was != "Released" => Some("tenant.released"),
        _ => None,
    }
}

impl ExpectedObject {
    pub(super) fn of(snapshot: &Arc<ObjectSnapshot>) -> ExpectedObject {
        let (meta, spec, status) = (&snapshot.raw["metadata"], &snapshot.raw["spec"], &snapshot.raw["status"]);
        let label = |key: &str| meta["labels"][key].clone();
        let mut view = if snapshot.raw["kind"] == "Pod" {
            json!({
                "createdAt": meta["creationTimestamp"], "workloadRef": label("boilerhouse.dev/workload"),
                "tenantId": label("boilerhouse.dev/tenant"), "poolStatus": label("boilerhouse.dev/pool-status"),
                "ip": status["podIP"],
            })
        } else {
            json!({
                "tenantId": spec["tenantId"], "workloadRef": spec["workloadRef"], "instanceId": status["instanceId"],
                "endpoint": status["endpoint"], "source": status["source"], "claimedAt": status["claimedAt"],
                "detail": status["detail"],
            })
        };
        view["labels"] = meta["labels"].clone();
        let fields = view.as_object_mut().unwrap();
        fields
            .retain(|_, value| !value.is_null() && *value != "" && value.as_object().is_none_or(|map| !map.is_empty()));
        if snapshot.raw["kind"] != "Pod" {
            // Always there, even where the object lacks them.
            fields.entry("tenantId").or_insert_with(|| "".into());
            fields.entry("workloadRef").or_insert_with(|| "".into());
        }
        fields.insert("name".to_owned(), snapshot.name.clone().into());
        fields.insert("uid".to_owned(), snapshot.uid.clone().into());
        fields.insert("phase".to_owned(), snapshot.phase.clone().into());
        ExpectedObject { snapshot: snapshot.clone(), view }
    }

    pub(super) fn kind(&self) -> Resource {
        if self.snapshot.raw["kind"] == "Pod" { Resource::Pods } else { Resource::Claims }
    }

    fn edge(&self, name: &str) -> Value {
        let keys: &[&str] = match name {
            "pool.instance.ready" => &["workloadRef"],
            "tenant.claimed" => &["tenantId", "workloadRef", "source"],
            _ => &["tenantId"],
        };
        let mut event = json!({"name": self.snapshot.name, "uid": self.snapshot.uid});
        for key in keys {
            if let Some(value) = self.view.get(*key).filter(|value| *value != "") {
                event[*key] = value.clone();
            }
        }
        event
    }
}
