//! A lens: what a group of clients looks through. Rights, filter, types and format, as plain values.

mod filter_params;

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Claim, Cursor, Home, Instance, Resource, ResourceVersion, View, view::Labels};

/// What the client may see at all (protocol.md section 7). What is not in it does not exist for the client.
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
pub enum Format {
    /// `/ws`: four types, bare keys, no ids (protocol.md section 2).
    Boilerhouse,
    /// Everything needed to hold the state (protocol.md section 3).
    Full,
}

/// Equality filters, ANDed; `params` of protocol.md section 4.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Filters on instances, by view key.
    pub instances: Wanted,
    /// Filters on claims, by view key.
    pub claims: Wanted,
}

/// The filters on one kind of view. A key that the kind does not have matches nothing; parsing keeps such keys out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
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
pub struct Lens {
    /// Rights.
    pub scope: Scope,
    /// Filter.
    pub filter: Filter,
    /// Wanted event types.
    pub types: Types,
    /// Layout.
    pub format: Format,
}

/// The event types about objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
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
pub struct Types(u8);

impl Type {
    /// All of them, in the order of protocol.md section 3.
    pub const ALL: [Type; 8] = [
        Type::InstanceState,
        Type::PoolInstanceReady,
        Type::ClaimState,
        Type::TenantClaimed,
        Type::TenantReleased,
        Type::PoolDepth,
        Type::Telemetry,
        Type::MqttMessage,
    ];

    /// As it stands in `type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Type::InstanceState => "instance.state",
            Type::PoolInstanceReady => "pool.instance.ready",
            Type::ClaimState => "claim.state",
            Type::TenantClaimed => "tenant.claimed",
            Type::TenantReleased => "tenant.released",
            Type::PoolDepth => "pool.depth",
            Type::Telemetry => "telemetry",
            Type::MqttMessage => "mqtt.message",
        }
    }

    /// The part before the first dot.
    #[must_use]
    pub fn family(self) -> &'static str {
        self.name().split_once('.').map_or(self.name(), |(family, _)| family)
    }

    /// The resource it tells of, if its events have a place in one's history.
    #[must_use]
    pub fn kind(self) -> Option<Resource> {
        match self {
            Type::InstanceState | Type::PoolInstanceReady => Some(Resource::Instance),
            Type::ClaimState | Type::TenantClaimed | Type::TenantReleased => Some(Resource::Claim),
            Type::PoolDepth | Type::Telemetry | Type::MqttMessage => None,
        }
    }

    /// Whether `/ws` has it (protocol.md section 2).
    fn is_boilerhouse(self) -> bool {
        matches!(self, Type::InstanceState | Type::PoolInstanceReady | Type::TenantClaimed | Type::TenantReleased)
    }
}

impl Format {
    /// The types that this format knows.
    pub fn types(self) -> impl Iterator<Item = Type> {
        Type::ALL.into_iter().filter(move |t| self == Format::Full || t.is_boilerhouse())
    }
}

impl Types {
    /// Every type of the format.
    #[must_use]
    pub fn all(format: Format) -> Types {
        format.types().collect()
    }

    /// Reads a comma list of families or exact types.
    ///
    /// # Errors
    /// A sentence that names the unknown word and lists what this format accepts.
    pub fn parse(list: &str, format: Format) -> Result<Types, String> {
        let mut wanted = Types(0);
        for word in list.split(',').map(str::trim) {
            let named = format.types().filter(|t| t.name() == word || t.family() == word);
            let found: Types = named.collect();
            if found.0 == 0 {
                let mut accepted: Vec<&str> = format.types().flat_map(|t| [t.family(), t.name()]).collect();
                accepted.sort_unstable();
                accepted.dedup();
                return Err(format!("unknown type '{word}': accepted are {}, comma-separated", accepted.join(", ")));
            }
            wanted.0 |= found.0;
        }
        Ok(wanted)
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn has(self, one: Type) -> bool {
        self.0 & (1 << one as u8) != 0
    }

    /// The resources needed to tell of these types.
    #[must_use]
    pub fn kinds(self) -> [bool; 2] {
        Resource::ALL.map(|kind| Type::ALL.into_iter().any(|t| t.kind() == Some(kind) && self.has(t)))
    }
}

impl FromIterator<Type> for Types {
    fn from_iter<I: IntoIterator<Item = Type>>(types: I) -> Types {
        Types(types.into_iter().fold(0, |set, t| set | 1 << t as u8))
    }
}

impl Scope {
    /// Whether the view may be seen.
    #[must_use]
    pub fn has(&self, view: &View) -> bool {
        match view {
            View::Instance(instance) => self.has_instance(instance),
            View::Claim(claim) => self.has_claim(claim),
        }
    }

    /// Whether the instance may be seen.
    #[must_use]
    pub fn has_instance(&self, instance: &Instance) -> bool {
        match self {
            Scope::All => true,
            Scope::Tenant(tenant) => instance.tenant_id.as_ref() == Some(tenant),
        }
    }

    /// Whether the claim may be seen.
    #[must_use]
    pub fn has_claim(&self, claim: &Claim) -> bool {
        match self {
            Scope::All => true,
            Scope::Tenant(tenant) => claim.tenant_id == *tenant,
        }
    }
}

impl Lens {
    /// Everything, in the given format.
    #[must_use]
    pub fn all(format: Format) -> Lens {
        Lens { scope: Scope::All, filter: Filter::default(), types: Types::all(format), format }
    }

    /// Whether the view may be seen and is wanted.
    #[must_use]
    pub fn includes(&self, view: &View) -> bool {
        match view {
            View::Instance(instance) => self.includes_instance(instance),
            View::Claim(claim) => self.shows_claim(claim),
        }
    }

    /// Whether the instance may be seen and is wanted.
    #[must_use]
    pub fn includes_instance(&self, instance: &Instance) -> bool {
        self.scope.has_instance(instance) && self.filter.instances.match_instance(instance)
    }

    /// Whether the claim may be seen and is wanted.
    #[must_use]
    pub fn shows_claim(&self, claim: &Claim) -> bool {
        self.scope.has_claim(claim) && self.filter.claims.match_claim(claim)
    }

    /// Whether the pool of this workload may be seen and is wanted: pools are counted over all instances of a workload,
    /// and only a filter by `workloadRef` chooses among them.
    #[must_use]
    pub fn shows_pool(&self, workload_ref: &str) -> bool {
        let wanted = self.filter.instances.workload_ref.as_deref();
        self.scope == Scope::All && wanted.is_none_or(|want| want == workload_ref)
    }

    /// Rights and filter as a number: what a [`Cursor`] is bound to. Types are apart: a cursor says which resources
    /// it covers.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let text = serde_json::to_vec(&(&self.scope, &self.filter)).unwrap_or_default();
        short_hash(&text)
    }

    /// The cursor of a client of this lens that has been served up to `rv`.
    #[must_use]
    pub fn cursor(&self, home: Home, rv: [ResourceVersion; 2]) -> Cursor {
        Cursor::new(home, self.hash(), self.types.kinds(), rv)
    }
}

/// The first 64 bits of the SHA-256: short enough for an id, the same on every replica and in every version.
#[must_use]
pub fn short_hash(bytes: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Wanted {
    fn match_instance(&self, i: &Instance) -> bool {
        is(&self.name, Some(&i.name))
            && is(&self.phase, Some(&i.phase))
            && is(&self.workload_ref, i.workload_ref.as_ref())
            && is(&self.tenant_id, i.tenant_id.as_ref())
            && is(&self.pool_status, i.pool_status.as_ref())
            && self.source.is_none()
            && labelled(&self.labels, &i.labels)
    }

    fn match_claim(&self, c: &Claim) -> bool {
        is(&self.name, Some(&c.name))
            && is(&self.phase, Some(&c.phase))
            && is(&self.workload_ref, Some(&c.workload_ref))
            && is(&self.tenant_id, Some(&c.tenant_id))
            && is(&self.source, c.source.as_ref())
            && self.pool_status.is_none()
            && labelled(&self.labels, &c.labels)
    }
}

fn is(want: &Option<String>, have: Option<&String>) -> bool {
    want.as_ref().is_none_or(|want| have == Some(want))
}

fn labelled(want: &BTreeMap<String, Option<String>>, have: &Labels) -> bool {
    want.iter().all(|(key, value)| have.get(key).is_some_and(|have| value.as_ref().is_none_or(|want| want == have)))
}
