//! What a client asks for, and what it is to be told of a change: protocol.md sections 1, 3 and 4 once more, by hand and
//! on the raw objects. Calling `event::render` or `Lens::shows` would blind the validator to their errors.

use std::sync::Arc;

use boilerhouse_bridge::event::projection::{Filter, Format, Lens, Scope, Types};
use boilerhouse_bridge::event::{Resource, ResourceVersion};
use serde_json::{Map, Value, json};

use super::super::truth::Face;

/// An object at one version, as it stands on the wire.
#[derive(Debug)]
pub(super) struct Thing {
    pub(super) face: Arc<Face>,
    pub(super) view: Value,
}

/// One filter: `labels.x` is the label x; without a value it is to exist.
type Want = (Resource, &'static str, Option<&'static str>);

/// `types` and `params` of a client.
#[derive(Debug, PartialEq)]
pub(super) struct Looks {
    types: Option<&'static str>,
    wants: &'static [Want],
}

const TENANT: &str = "labels.boilerhouse.dev/tenant";

/// What the clients of the histories ask for.
pub(super) const LOOKS: [Looks; 11] = [
    Looks { types: None, wants: &[] },
    Looks { types: None, wants: &[(Resource::Instance, "phase", Some("Running"))] },
    Looks {
        types: None,
        wants: &[(Resource::Instance, "tenantId", Some("alice")), (Resource::Claim, "phase", Some("Active"))],
    },
    Looks { types: None, wants: &[(Resource::Instance, "poolStatus", Some("ready"))] },
    Looks { types: Some("claim"), wants: &[] },
    Looks { types: Some("instance,pool.instance.ready,claim,tenant"), wants: &[(Resource::Instance, TENANT, None)] },
    Looks {
        types: Some("instance,claim,tenant"),
        wants: &[(Resource::Instance, "name", Some("p1")), (Resource::Claim, "source", Some("pool"))],
    },
    Looks { types: Some("instance.state,pool"), wants: &[(Resource::Instance, TENANT, Some("bob"))] },
    Looks { types: Some("pool.instance.ready,tenant"), wants: &[(Resource::Claim, "phase", Some("Released"))] },
    Looks {
        types: None,
        wants: &[(Resource::Instance, "phase", Some("Nowhere")), (Resource::Claim, "workloadRef", Some("nothing"))],
    },
    Looks { types: Some("claim,tenant"), wants: &[] },
];

const TYPES: [(Resource, &[&str]); 2] = [
    (Resource::Instance, &["instance.state", "pool.instance.ready"]),
    (Resource::Claim, &["claim.state", "tenant.claimed", "tenant.released"]),
];

impl Looks {
    pub(super) fn lens(&self) -> Lens {
        let mut filter = Filter::default();
        for (kind, key, value) in self.wants {
            let wanted = if *kind == Resource::Instance { &mut filter.instances } else { &mut filter.claims };
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
        let types =
            self.types.map_or_else(|| Types::all(Format::Full), |list| Types::parse(list, Format::Full).unwrap());
        Lens { scope: Scope::All, filter, types, format: Format::Full }
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
    pub(super) fn takes(&self, other: &Looks) -> bool {
        self.wants == other.wants && Resource::ALL.into_iter().all(|kind| other.needs(kind) || !self.needs(kind))
    }

    pub(super) fn shows(&self, thing: &Thing) -> bool {
        let kind = thing.kind();
        self.wants.iter().filter(|(of, ..)| *of == kind).all(|(_, key, value)| {
            let have = match key.strip_prefix("labels.") {
                Some(label) => &thing.view["labels"][label],
                None => &thing.view[*key],
            };
            value.map_or(!have.is_null(), |want| have == want)
        })
    }

    /// The events of one change of one life, without id and time; `rv` is its version, in a difference the list's.
    pub(super) fn tell(&self, before: Option<&Thing>, after: Option<&Thing>, rv: ResourceVersion) -> Vec<Arc<Value>> {
        let Some(thing) = after.or(before) else { return Vec::new() };
        let old = before.filter(|thing| self.shows(thing));
        let new = after.filter(|thing| self.shows(thing));
        let mut said = Vec::new();
        if old.is_none() && new.is_none() {
            return said;
        }
        let version = after.map_or(rv, |thing| thing.face.rv);
        let mut say = |name: &str, mut event: Value| {
            event["type"] = name.into();
            event["key"] = format!("{}.{version}.{name}", thing.face.uid).into();
            if self.has(name) {
                said.push(Arc::new(event));
            }
        };
        let is_seen = old.zip(new).is_none_or(|(old, new)| old.view != new.view);
        if is_seen {
            say(
                if thing.kind() == Resource::Instance { "instance.state" } else { "claim.state" },
                state(old, new, after),
            );
        }
        if let Some(name) = edge(before, after) {
            say(name, thing.edge(name));
        }
        said
    }
}

/// A state event; `after` is what became of it, whether or not the client may see that.
fn state(old: Option<&Thing>, new: Option<&Thing>, after: Option<&Thing>) -> Value {
    let thing = new.or(old).unwrap();
    let phase = new.map_or("Deleted", |new| &new.face.phase);
    let mut event = Map::new();
    event.insert("name".to_owned(), thing.face.name.clone().into());
    event.insert("phase".to_owned(), phase.into());
    for key in ["workloadRef", "tenantId"] {
        if let Some(value) = thing.view.get(key) {
            event.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(old) = old.filter(|old| old.face.phase != phase) {
        event.insert("previousPhase".to_owned(), old.face.phase.clone().into());
    }
    if new.is_none() {
        event.insert("cause".to_owned(), if after.is_none() { "deleted" } else { "filtered" }.into());
    }
    let object = if thing.kind() == Resource::Instance { "instance" } else { "claim" };
    event.insert(object.to_owned(), thing.view.clone());
    event.into()
}

/// The edge of one life, whoever sees it.
fn edge(before: Option<&Thing>, after: Option<&Thing>) -> Option<&'static str> {
    let phase = |thing: Option<&Thing>| thing.map(|thing| thing.face.phase.clone());
    if after.or(before)?.kind() == Resource::Instance {
        let ready = |thing: Option<&Thing>| thing.is_some_and(|thing| thing.face.ready);
        return (ready(after) && !ready(before)).then_some("pool.instance.ready");
    }
    match (phase(before).as_deref(), phase(after).as_deref()) {
        (was, Some("Active")) if was != Some("Active") => Some("tenant.claimed"),
        (Some(was), Some("Released") | None) if was != "Released" => Some("tenant.released"),
        _ => None,
    }
}

impl Thing {
    pub(super) fn of(face: &Arc<Face>) -> Thing {
        let (meta, spec, status) = (&face.raw["metadata"], &face.raw["spec"], &face.raw["status"]);
        let label = |key: &str| meta["labels"][key].clone();
        let mut view = if face.raw["kind"] == "Pod" {
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
        if face.raw["kind"] != "Pod" {
            // Always there, even where the object lacks them.
            fields.entry("tenantId").or_insert_with(|| "".into());
            fields.entry("workloadRef").or_insert_with(|| "".into());
        }
        fields.insert("name".to_owned(), face.name.clone().into());
        fields.insert("uid".to_owned(), face.uid.clone().into());
        fields.insert("phase".to_owned(), face.phase.clone().into());
        Thing { face: face.clone(), view }
    }

    pub(super) fn kind(&self) -> Resource {
        if self.face.raw["kind"] == "Pod" { Resource::Instance } else { Resource::Claim }
    }

    fn edge(&self, name: &str) -> Value {
        let keys: &[&str] = match name {
            "pool.instance.ready" => &["workloadRef"],
            "tenant.claimed" => &["tenantId", "workloadRef", "source"],
            _ => &["tenantId"],
        };
        let mut event = json!({"name": self.face.name, "uid": self.face.uid});
        for key in keys {
            if let Some(value) = self.view.get(*key).filter(|value| *value != "") {
                event[*key] = value.clone();
            }
        }
        event
    }
}
