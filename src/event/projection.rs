//! A lens: what a group of clients looks through. Rights, filter, types and format, as plain values.

mod filter_params;

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Claim, Cursor, Instance, NamespaceId, PerResource, Resource, ResourceVersion, View, hash::sha256_prefix,
    view::Labels,
};

/// What the client may see at all (docs/protocol.md#access). What is not in it does not exist for the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Scope {
    /// Everything in the namespace.
    #[default]
    All,
    /// The instances and claims of this tenant; no pools, which are counted over all tenants.
    Tenant(String),
}

/// Which layout of events the client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventFormat {
    /// `/ws`: four types, bare keys, no ids (docs/protocol.md#boilerhouse-stream).
    Boilerhouse,
    /// Everything needed to hold the state (docs/protocol.md#full-stream).
    Full,
}

/// Equality filters, ANDed; `params` of docs/protocol.md#stream-endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Filters on instances, by view key.
    pub instances: ObjectFilter,
    /// Filters on claims, by view key.
    pub claims: ObjectFilter,
}

/// The filters on one kind of view. A key that the kind does not have matches nothing; parsing keeps such keys out.
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
    /// Labels that must be there, with this value; `None`: with any.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
}

/// Rights, filter, types and format: two clients with equal lenses read equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Projection {
    /// Rights.
    pub scope: Scope,
    /// Filter.
    pub filter: Filter,
    /// Wanted event types.
    pub types: EventTypes,
    /// Layout.
    pub format: EventFormat,
}

/// The event types about objects.
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
pub struct EventTypes(u8);

impl EventType {
    /// All of them, in the order of docs/protocol.md#full-stream.
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

    /// As it stands in `type`.
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

    /// The part before the first dot.
    #[must_use]
    pub fn family(self) -> &'static str {
        self.name().split_once('.').map_or(self.name(), |(family, _)| family)
    }

    /// The resource it tells of, if its events have a place in one's history.
    #[must_use]
    pub fn resource(self) -> Option<Resource> {
        match self {
            EventType::InstanceState | EventType::PoolInstanceReady => Some(Resource::Pods),
            EventType::ClaimState | EventType::TenantClaimed | EventType::TenantReleased => Some(Resource::Claims),
            EventType::PoolDepth | EventType::Telemetry | EventType::MqttMessage => None,
        }
    }

    /// Whether `/ws` has it (docs/protocol.md#boilerhouse-stream).
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
    /// The types that this format knows.
    pub fn types(self) -> impl Iterator<Item = EventType> {
        EventType::ALL.into_iter().filter(move |t| self == EventFormat::Full || t.in_boilerhouse_format())
    }
}

impl EventTypes {
    /// Every type of the format.
    #[must_use]
    pub fn all(format: EventFormat) -> EventTypes {
        format.types().collect()
    }

    /// Reads a comma list of families or exact types.
    ///
    /// # Errors
    /// A sentence that names the unknown word and lists what this format accepts.
    pub fn parse(list: &str, format: EventFormat) -> Result<EventTypes, String> {
        let mut requested = EventTypes(0);
        for word in list.split(',').map(str::trim) {
            let named = format.types().filter(|t| t.name() == word || t.family() == word);
            let found: EventTypes = named.collect();
            if found.0 == 0 {
                let mut accepted: Vec<&str> = format.types().flat_map(|t| [t.family(), t.name()]).collect();
                accepted.sort_unstable();
                accepted.dedup();
                return Err(format!("unknown type '{word}': accepted are {}, comma-separated", accepted.join(", ")));
            }
            requested.0 |= found.0;
        }
        Ok(requested)
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(self, event_type: EventType) -> bool {
        self.0 & (1 << event_type as u8) != 0
    }

    /// The resources needed to tell of these types.
    #[must_use]
    pub fn resources(self) -> PerResource<bool> {
        PerResource::from_fn(|resource| {
            EventType::ALL.into_iter().any(|t| t.resource() == Some(resource) && self.contains(t))
        })
    }
}

impl FromIterator<EventType> for EventTypes {
    fn from_iter<I: IntoIterator<Item = EventType>>(types: I) -> EventTypes {
        EventTypes(types.into_iter().fold(0, |set, t| set | 1 << t as u8))
    }
}

impl Scope {
    /// Whether the view may be seen.
    #[must_use]
    pub fn allows(&self, view: &View) -> bool {
        match view {
            View::Instance(instance) => self.allows_instance(instance),
            View::Claim(claim) => self.allows_claim(claim),
        }
    }

    /// Whether the instance may be seen.
    #[must_use]
    pub fn allows_instance(&self, instance: &Instance) -> bool {
        match self {
            Scope::All => true,
            Scope::Tenant(tenant) => instance.tenant_id.as_ref() == Some(tenant),
        }
    }

    /// Whether the claim may be seen.
    #[must_use]
    pub fn allows_claim(&self, claim: &Claim) -> bool {
        match self {
            Scope::All => true,
            Scope::Tenant(tenant) => claim.tenant_id == *tenant,
        }
    }
}

impl Projection {
    /// Everything, in the given format.
    #[must_use]
    pub fn everything(format: EventFormat) -> Projection {
        Projection { scope: Scope::All, filter: Filter::default(), types: EventTypes::all(format), format }
    }

    /// Whether the view may be seen and is wanted.
    #[must_use]
    pub fn includes(&self, view: &View) -> bool {
        match view {
            View::Instance(instance) => self.includes_instance(instance),
            View::Claim(claim) => self.includes_claim(claim),
        }
    }

    /// Whether the instance may be seen and is wanted.
    #[must_use]
    pub fn includes_instance(&self, instance: &Instance) -> bool {
        self.scope.allows_instance(instance) && self.filter.instances.matches_instance(instance)
    }

    /// Whether the claim may be seen and is wanted.
    #[must_use]
    pub fn includes_claim(&self, claim: &Claim) -> bool {
        self.scope.allows_claim(claim) && self.filter.claims.matches_claim(claim)
    }

    /// Whether the pool of this workload may be seen and is wanted: pools are counted over all instances of a workload,
    /// and only a filter by `workloadRef` chooses among them.
    #[must_use]
    pub fn includes_pool(&self, workload_ref: &str) -> bool {
        let wanted = self.filter.instances.workload_ref.as_deref();
        self.scope == Scope::All && wanted.is_none_or(|want| want == workload_ref)
    }

    /// Rights and filter as a number: what a [`Cursor`] is bound to. Types are apart: a cursor says which resources
    /// it covers.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let text = serde_json::to_vec(&(&self.scope, &self.filter)).unwrap_or_default();
        sha256_prefix(&text)
    }

    /// The cursor of a client of this lens that has been served up to `versions`.
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

fn equals_if_set(want: &Option<String>, have: Option<&String>) -> bool {
    want.as_ref().is_none_or(|want| have == Some(want))
}

fn labels_match(want: &BTreeMap<String, Option<String>>, have: &Labels) -> bool {
    want.iter().all(|(key, value)| have.get(key).is_some_and(|have| value.as_ref().is_none_or(|want| want == have)))
}
