//! The projection: scope, filter, event types and event format of a client, as plain values.
//!
//! Guarantees: a log entry and a projection determine the events of a client. Equal projections give equal events.
//! Implements the types of `docs/protocol.md#full-stream` and the matching of `params`
//! (`docs/protocol.md#stream-endpoints`).

mod filter_params;

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Claim, Cursor, Instance, NamespaceId, PerResource, Resource, ResourceVersion, View, hash::sha256_prefix,
    view::Labels,
};

/// The objects that a principal is authorized to see (docs/protocol.md#access). For the client, other objects do not
/// exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Everything in the namespace.
    #[default]
    All,
    /// The instances and claims of this tenant. Pools are excluded, because they count the instances of all tenants.
    Tenant(String),
}

/// The format of the events that a client receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventFormat {
    /// `/ws`: four event types with few keys and without ids (docs/protocol.md#boilerhouse-stream).
    Boilerhouse,
    /// All event types, with everything that a client needs to compute the current state
    /// (docs/protocol.md#full-stream).
    Full,
}

/// The equality filters of `params` (docs/protocol.md#stream-endpoints). An object must match all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Filters on instances, by view key.
    pub instances: ObjectFilter,
    /// Filters on claims, by view key.
    pub claims: ObjectFilter,
}

/// The filters on the views of one resource. A filter on a key that the resource does not have matches no object; the
/// parser rejects such keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectFilter {
    /// `name` equals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `phase` equals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// `workloadRef` equals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_ref: Option<String>,
    /// `tenantId` equals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// `poolStatus` equals (instances).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_status: Option<String>,
    /// `source` equals (claims).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Labels that the object must have, with this value; `None` accepts every value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}

/// Scope, filter, event types and event format. Two clients with equal projections receive equal events.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Projection {
    /// The objects that the principal is authorized to see.
    pub scope: Scope,
    /// The objects that the client asked for.
    pub filter: Filter,
    /// The event types that the client asked for.
    pub types: EventTypes,
    /// The format of the events.
    pub format: EventFormat,
}

/// The event types that a client can select with `types`. Control events, such as `heartbeat`, are not among them.
///
/// # Add an event type
///
/// `docs/development.md#add-an-event-type` lists all files to change. In this file, add the variant, an entry at the
/// same place in [`EventType::ALL`], and an arm in [`EventType::name`] and in [`EventType::resource`]. The compiler
/// reports a missing arm and a wrong order of `ALL`, but not a missing last entry of `ALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// `instance.state`
    InstanceState,
    /// `pool.instance.ready`
    PoolInstanceReady,
    /// `claim.state`
    ClaimState,
    /// `tenant.claimed`
    TenantClaimed,
    /// `tenant.released`
    TenantReleased,
    /// `pool.depth`
    PoolDepth,
    /// `telemetry`
    Telemetry,
    /// `mqtt.message`
    MqttMessage,
}

/// A set of event types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventTypes(u16);

// Each type has one bit of `EventTypes`, at the position of its discriminant. Without this check, a type beyond the
// last bit would share the bit of another type in release builds, where the shift wraps around.
const _: () = {
    assert!(EventType::ALL.len() <= u16::BITS as usize, "EventTypes has too few bits for all event types: widen it");
    let mut index = 0;
    while index < EventType::ALL.len() {
        assert!(EventType::ALL[index] as usize == index, "EventType::ALL must list every type in declaration order");
        index += 1;
    }
};

impl EventType {
    /// All event types (docs/protocol.md#full-stream), in the order of declaration.
    pub const ALL: [EventType; 8] = [
        EventType::InstanceState,
        EventType::PoolInstanceReady,
        EventType::ClaimState,
        EventType::TenantClaimed,
        EventType::TenantReleased,
        EventType::PoolDepth,
        EventType::Telemetry,
        EventType::MqttMessage,
    ];

    /// Returns the value of the event's `type` key.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EventType::InstanceState => "instance.state",
            EventType::PoolInstanceReady => "pool.instance.ready",
            EventType::ClaimState => "claim.state",
            EventType::TenantClaimed => "tenant.claimed",
            EventType::TenantReleased => "tenant.released",
            EventType::PoolDepth => "pool.depth",
            EventType::Telemetry => "telemetry",
            EventType::MqttMessage => "mqtt.message",
        }
    }

    /// Returns the part of the name before the first dot. `types` accepts it for all types of the family.
    #[must_use]
    pub fn family(self) -> &'static str {
        self.name().split_once('.').map_or(self.name(), |(family, _)| family)
    }

    /// Returns the resource whose history contains the events of this type, or `None` for ephemeral events.
    #[must_use]
    pub fn resource(self) -> Option<Resource> {
        match self {
            EventType::InstanceState | EventType::PoolInstanceReady => Some(Resource::Pods),
            EventType::ClaimState | EventType::TenantClaimed | EventType::TenantReleased => Some(Resource::Claims),
            EventType::PoolDepth | EventType::Telemetry | EventType::MqttMessage => None,
        }
    }

    /// The bit of this type in [`EventTypes`].
    const fn bit(self) -> u16 {
        1 << self as u16
    }

    /// Returns whether `/ws` sends this type (docs/protocol.md#boilerhouse-stream).
    fn in_boilerhouse_format(self) -> bool {
        matches!(
            self,
            EventType::InstanceState
                | EventType::PoolInstanceReady
                | EventType::TenantClaimed
                | EventType::TenantReleased
        )
    }
}

impl EventFormat {
    /// Returns the event types of this format, in the order of [`EventType::ALL`].
    pub fn types(self) -> impl Iterator<Item = EventType> {
        EventType::ALL.into_iter().filter(move |t| self == EventFormat::Full || t.in_boilerhouse_format())
    }

    /// Returns what [`EventTypes::parse`] accepts: families and names, sorted.
    #[must_use]
    pub fn accepted_types(self) -> Vec<&'static str> {
        let mut accepted: Vec<&str> = self.types().flat_map(|t| [t.family(), t.name()]).collect();
        accepted.sort_unstable();
        accepted.dedup();
        accepted
    }
}

impl EventTypes {
    /// Returns the set of all event types of the format.
    #[must_use]
    pub fn all(format: EventFormat) -> EventTypes {
        format.types().collect()
    }

    /// Parses a comma-separated list of families and names of event types.
    ///
    /// # Errors
    /// Returns a message that contains the unknown word and lists the words that this format accepts.
    pub fn parse(list: &str, format: EventFormat) -> Result<EventTypes, String> {
        let mut requested = EventTypes(0);
        for word in list.split(',').map(str::trim) {
            let matching: EventTypes = format.types().filter(|t| t.name() == word || t.family() == word).collect();
            if matching.0 == 0 {
                let accepted = format.accepted_types().join(", ");
                return Err(format!("unknown type '{word}'; accepted types (comma-separated): {accepted}"));
            }
            requested.0 |= matching.0;
        }
        Ok(requested)
    }

    /// Returns whether the type is in the set.
    #[must_use]
    pub fn contains(self, event_type: EventType) -> bool {
        self.0 & event_type.bit() != 0
    }

    /// Returns the resources that the events of these types come from.
    #[must_use]
    pub fn resources(self) -> PerResource<bool> {
        PerResource::from_fn(|resource| {
            EventType::ALL.into_iter().any(|t| t.resource() == Some(resource) && self.contains(t))
        })
    }
}

impl FromIterator<EventType> for EventTypes {
    fn from_iter<I: IntoIterator<Item = EventType>>(types: I) -> EventTypes {
        EventTypes(types.into_iter().fold(0, |set, event_type| set | event_type.bit()))
    }
}

impl Scope {
    /// Returns whether the principal is authorized to see the object.
    #[must_use]
    pub fn allows(&self, view: &View) -> bool {
        match view {
            View::Instance(instance) => self.allows_instance(instance),
            View::Claim(claim) => self.allows_claim(claim),
        }
    }

    /// Returns whether the principal is authorized to see the instance.
    #[must_use]
    pub fn allows_instance(&self, instance: &Instance) -> bool {
        match self {
            Scope::All => true,
            Scope::Tenant(tenant) => instance.tenant_id.as_ref() == Some(tenant),
        }
    }

    /// Returns whether the principal is authorized to see the claim.
    #[must_use]
    pub fn allows_claim(&self, claim: &Claim) -> bool {
        match self {
            Scope::All => true,
            Scope::Tenant(tenant) => claim.tenant_id == *tenant,
        }
    }
}

impl Projection {
    /// Returns the projection of all objects and all event types in the given format.
    #[must_use]
    pub fn everything(format: EventFormat) -> Projection {
        Projection { scope: Scope::All, filter: Filter::default(), types: EventTypes::all(format), format }
    }

    /// Returns whether the object is in the scope and matches the filter.
    #[must_use]
    pub fn includes(&self, view: &View) -> bool {
        match view {
            View::Instance(instance) => self.includes_instance(instance),
            View::Claim(claim) => self.includes_claim(claim),
        }
    }

    /// Returns whether the instance is in the scope and matches the filter.
    #[must_use]
    pub fn includes_instance(&self, instance: &Instance) -> bool {
        self.scope.allows_instance(instance) && self.filter.instances.matches_instance(instance)
    }

    /// Returns whether the claim is in the scope and matches the filter.
    #[must_use]
    pub fn includes_claim(&self, claim: &Claim) -> bool {
        self.scope.allows_claim(claim) && self.filter.claims.matches_claim(claim)
    }

    /// Returns whether the pool of this workload is in the scope and matches the filter.
    ///
    /// A pool counts all instances of a workload, so a tenant's scope includes no pool. Of the filters, only
    /// `workloadRef` applies to pools.
    #[must_use]
    pub fn includes_pool(&self, workload_ref: &str) -> bool {
        let filter = self.filter.instances.workload_ref.as_deref();
        self.scope == Scope::All && filter.is_none_or(|filter| filter == workload_ref)
    }

    /// Returns the hash of scope and filter. A [`Cursor`] is valid only under the fingerprint that it contains.
    ///
    /// Event types are not part of it, because a cursor contains the resources that it covers. The hash is part of
    /// every cursor and must never change: renaming a field or variant of [`Scope`], [`Filter`] or [`ObjectFilter`]
    /// changes it.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let text = serde_json::to_vec(&(&self.scope, &self.filter)).unwrap_or_default();
        sha256_prefix(&text)
    }

    /// Returns the cursor of a client of this projection that was served up to `versions`.
    #[must_use]
    pub fn cursor_at(&self, namespace: NamespaceId, versions: PerResource<ResourceVersion>) -> Cursor {
        Cursor::new(namespace, self.fingerprint(), self.types.resources(), versions)
    }
}

impl ObjectFilter {
    fn matches_instance(&self, i: &Instance) -> bool {
        equals_if_set(&self.name, Some(&i.name))
            && equals_if_set(&self.phase, Some(&i.phase))
            && equals_if_set(&self.workload_ref, i.workload_ref.as_ref())
            && equals_if_set(&self.tenant_id, i.tenant_id.as_ref())
            && equals_if_set(&self.pool_status, i.pool_status.as_ref())
            && self.source.is_none()
            && labels_match(&self.labels, &i.labels)
    }

    fn matches_claim(&self, c: &Claim) -> bool {
        equals_if_set(&self.name, Some(&c.name))
            && equals_if_set(&self.phase, Some(&c.phase))
            && equals_if_set(&self.workload_ref, Some(&c.workload_ref))
            && equals_if_set(&self.tenant_id, Some(&c.tenant_id))
            && equals_if_set(&self.source, c.source.as_ref())
            && self.pool_status.is_none()
            && labels_match(&self.labels, &c.labels)
    }
}

fn equals_if_set(filter: &Option<String>, value: Option<&String>) -> bool {
    filter.as_ref().is_none_or(|filter| value == Some(filter))
}

fn labels_match(filter: &BTreeMap<String, Option<String>>, labels: &Labels) -> bool {
    filter
        .iter()
        .all(|(key, filter)| labels.get(key).is_some_and(|value| filter.as_ref().is_none_or(|filter| filter == value)))
}
