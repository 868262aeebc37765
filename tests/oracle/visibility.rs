//! What a client sees: an own implementation of `types` and `params` (docs/protocol.md#stream-endpoints), on the views
//! of the oracle.

use boilerhouse_bridge::event::Resource;
use serde_json::{Map, Value, json};

use super::object::ExpectedObject;

/// One condition of a filter: the resource, the key, and the value. The key `labels.x` is the label `x`. Without a value
/// the label must exist.
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
