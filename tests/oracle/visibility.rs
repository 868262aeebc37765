//! What a client sees: an own implementation of `types` and `params` (docs/protocol.md#stream-endpoints), on the views
//! of the oracle.

use boilerhouse_bridge::event::Resource;
use serde_json::{Map, Value, json};

use super::object::ExpectedObject;

/// One condition of a filter: the resource, the key, and the value. The key `labels.x` is the label `x`. Without a
/// value the label must exist.
pub(crate) type Condition = (Resource, &'static str, Option<&'static str>);

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExpectedProjection {
    /// `types`: names or families of event types; `None` stands for all.
    pub(crate) types: Option<&'static str>,
    /// `params`: all must hold.
    pub(crate) conditions: &'static [Condition],
}

const TYPES: [(Resource, &[&str]); 2] = [
    (Resource::Pods, &["instance.state", "pool.instance.ready"]),
    (Resource::Claims, &["claim.state", "tenant.claimed", "tenant.released"]),
];

impl ExpectedProjection {
    /// All events of all objects.
    pub(crate) const EVERYTHING: ExpectedProjection = ExpectedProjection { types: None, conditions: &[] };

    /// Whether the client asks for an event type, by its name or its family.
    pub(crate) fn has(&self, event_type: &str) -> bool {
        let family = event_type.split('.').next();
        self.types.is_none_or(|types| types.split(',').any(|word| word == event_type || Some(word) == family))
    }

    /// Whether the client asks for any event type of a resource.
    pub(crate) fn needs(&self, resource: Resource) -> bool {
        TYPES.iter().filter(|(of, _)| *of == resource).any(|(_, names)| names.iter().any(|name| self.has(name)))
    }

    /// The resources that the client asks for.
    pub(crate) fn needed(&self) -> impl Iterator<Item = Resource> {
        Resource::ALL.into_iter().filter(|resource| self.needs(*resource))
    }

    /// Whether a cursor of another projection can be resumed under this one.
    pub(crate) fn accepts_cursor_of(&self, other: &ExpectedProjection) -> bool {
        self.conditions == other.conditions && self.needed().all(|resource| other.needs(resource))
    }

    /// Whether the filter selects an object.
    pub(crate) fn shows(&self, object: &ExpectedObject) -> bool {
        let conditions = self.conditions.iter().filter(|(resource, ..)| *resource == object.resource);
        conditions.into_iter().all(|(_, key, value)| {
            let actual = match key.strip_prefix("labels.") {
                Some(label) => &object.view["labels"][label],
                None => &object.view[*key],
            };
            value.map_or(!actual.is_null(), |value| actual == value)
        })
    }

    /// Whether the client sees the pool of a workload. Only a condition on the workload of instances selects among
    /// pools.
    pub(crate) fn shows_pool(&self, workload: &str) -> bool {
        let mut conditions = self.conditions.iter();
        let selects_other = |(resource, key, value): &Condition| {
            *resource == Resource::Pods && *key == "workloadRef" && *value != Some(workload)
        };
        self.has("pool.depth") && !conditions.any(selects_other)
    }

    /// The filter as a client writes it in `params`.
    pub(crate) fn params(&self) -> Value {
        let mut params = Map::new();
        for (resource, key, value) in self.conditions {
            let member = if *resource == Resource::Pods { "instances" } else { "claims" };
            let filter = params.entry(member).or_insert_with(|| json!({}));
            match key.strip_prefix("labels.") {
                Some(label) => filter["labels"][label] = json!(value),
                None => filter[*key] = json!(value),
            }
        }
        params.into()
    }
}

#[test]
fn filter_selects_objects_by_their_raw_fields() {
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web", "team": "a"});
    let metadata = json!({"name": "p0", "uid": "u", "resourceVersion": "1", "labels": labels});
    let pod = ExpectedObject::of(&json!({"kind": "Pod", "metadata": metadata, "status": {}}).into()).unwrap();
    let metadata = json!({"name": "c0", "uid": "u", "resourceVersion": "1"});
    let spec = json!({"tenantId": "alice", "workloadRef": "web"});
    let claim = json!({"kind": "BoilerhouseClaim", "metadata": metadata, "spec": spec});
    let claim = ExpectedObject::of(&claim.into()).unwrap();
    let rows: [(&'static [Condition], bool, bool); 8] = [
        (&[], true, true),
        (&[(Resource::Pods, "phase", Some("Unknown"))], true, true),
        (&[(Resource::Pods, "phase", Some("Running"))], false, true),
        (&[(Resource::Pods, "labels.team", None), (Resource::Pods, "workloadRef", Some("web"))], true, true),
        (&[(Resource::Pods, "labels.team", Some("b"))], false, true),
        (&[(Resource::Pods, "tenantId", Some("alice"))], false, true),
        (&[(Resource::Claims, "phase", Some("Pending")), (Resource::Claims, "tenantId", Some("alice"))], true, true),
        (&[(Resource::Claims, "source", Some("pool"))], true, false),
    ];
    for (conditions, shows_pod, shows_claim) in rows {
        let projection = ExpectedProjection { types: None, conditions };
        assert_eq!((projection.shows(&pod), projection.shows(&claim)), (shows_pod, shows_claim), "{conditions:?}");
    }
}
