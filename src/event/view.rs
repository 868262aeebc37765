//! Views: the published fields of one object, with their JSON keys.
//!
//! Guarantees: the serialized form is the JSON of `docs/protocol.md#objects`, and nothing else of an object is
//! published.

use std::{collections::BTreeMap, sync::Arc};

use schemars::JsonSchema;
use serde::Serialize;

use super::{Resource, ResourceVersion};

/// Labels of an object, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// A managed Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`. A new uid under an old name is a new object.
    pub uid: String,
    /// `status.phase`; `Unknown` if it is empty.
    pub phase: String,
    /// Label `boilerhouse.dev/workload`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_ref: Option<String>,
    /// Label `boilerhouse.dev/tenant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// Label `boilerhouse.dev/pool-status`, an open string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_status: Option<String>,
    /// `status.podIP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// `metadata.creationTimestamp`, RFC 3339 in UTC, whole seconds.
    pub created_at: String,
    /// `metadata.labels`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// `metadata.resourceVersion`. It is not part of the JSON.
    #[serde(skip)]
    pub resource_version: ResourceVersion,
}

/// A BoilerhouseClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`. A new uid under an old name is a new object.
    pub uid: String,
    /// `spec.tenantId`.
    pub tenant_id: String,
    /// `spec.workloadRef`.
    pub workload_ref: String,
    /// `status.phase`, an open string; `Pending` if there is no status yet.
    pub phase: String,
    /// `status.instanceId`: the name of a Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// `status.endpoint`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// `status.source`, an open string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `status.claimedAt`, unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<String>,
    /// `status.detail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// `metadata.labels`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// Annotation `boilerhouse.dev/last-activity`. Snapshot GETs add it to the claim's instance. It is not part of the
    /// JSON of a claim.
    #[serde(skip)]
    pub last_activity: Option<String>,
    /// `metadata.resourceVersion`. It is not part of the JSON.
    #[serde(skip)]
    pub resource_version: ResourceVersion,
}

/// The address at which a tenant reaches its instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Endpoint {
    /// DNS name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// The view of one object of either resource. Clones share the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum View {
    /// A managed Pod.
    Instance(Arc<Instance>),
    /// A BoilerhouseClaim.
    Claim(Arc<Claim>),
}

impl Instance {
    /// Returns the bytes that are charged for holding the view: the struct and its strings, without allocator overhead.
    /// The JSON of the view is shorter.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        let optional = [&self.workload_ref, &self.tenant_id, &self.pool_status, &self.ip];
        let required = [&self.name, &self.uid, &self.phase, &self.created_at];
        size_of::<Instance>()
            + required.into_iter().map(String::len).sum::<usize>()
            + optional.into_iter().map(optional_len).sum::<usize>()
            + labels_len(&self.labels)
    }

    /// See [`View::same_on_wire`]. The fields that change most often are compared first.
    fn same_on_wire(&self, other: &Instance) -> bool {
        let Instance {
            name,
            uid,
            phase,
            workload_ref,
            tenant_id,
            pool_status,
            ip,
            created_at,
            labels,
            resource_version: _,
        } = self;
        *phase == other.phase
            && *pool_status == other.pool_status
            && *tenant_id == other.tenant_id
            && *workload_ref == other.workload_ref
            && *ip == other.ip
            && *labels == other.labels
            && *uid == other.uid
            && *name == other.name
            && *created_at == other.created_at
    }

    /// Returns whether the pool status is `ready`. Every other value counts as not ready (docs/protocol.md#objects).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pool_status.as_deref() == Some("ready")
    }
}

impl Claim {
    /// Returns the bytes that are charged for holding the view: the struct and its strings, without allocator overhead.
    /// The JSON of the view is shorter.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        let optional = [&self.instance_id, &self.source, &self.claimed_at, &self.detail, &self.last_activity];
        let required = [&self.name, &self.uid, &self.tenant_id, &self.workload_ref, &self.phase];
        size_of::<Claim>()
            + required.into_iter().map(String::len).sum::<usize>()
            + optional.into_iter().map(optional_len).sum::<usize>()
            + self.endpoint.as_ref().map_or(0, |endpoint| endpoint.host.len())
            + labels_len(&self.labels)
    }

    /// See [`View::same_on_wire`]. The fields that change most often are compared first.
    fn same_on_wire(&self, other: &Claim) -> bool {
        let Claim {
            name,
            uid,
            tenant_id,
            workload_ref,
            phase,
            instance_id,
            endpoint,
            source,
            claimed_at,
            detail,
            labels,
            last_activity: _,
            resource_version: _,
        } = self;
        *phase == other.phase
            && *instance_id == other.instance_id
            && *endpoint == other.endpoint
            && *source == other.source
            && *claimed_at == other.claimed_at
            && *detail == other.detail
            && *labels == other.labels
            && *tenant_id == other.tenant_id
            && *workload_ref == other.workload_ref
            && *uid == other.uid
            && *name == other.name
    }

    /// Returns whether the phase is `Active`: the tenant has an instance.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.phase == "Active"
    }

    /// Returns whether the phase is `Released`: the tenant has returned the instance.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.phase == "Released"
    }
}

impl View {
    /// Returns the resource that the object belongs to.
    #[must_use]
    pub fn resource(&self) -> Resource {
        match self {
            View::Instance(_) => Resource::Pods,
            View::Claim(_) => Resource::Claims,
        }
    }

    /// Returns `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            View::Instance(instance) => &instance.name,
            View::Claim(claim) => &claim.name,
        }
    }

    /// Returns `metadata.uid`.
    #[must_use]
    pub fn uid(&self) -> &str {
        match self {
            View::Instance(instance) => &instance.uid,
            View::Claim(claim) => &claim.uid,
        }
    }

    /// Returns `metadata.resourceVersion`.
    #[must_use]
    pub fn resource_version(&self) -> ResourceVersion {
        match self {
            View::Instance(instance) => instance.resource_version,
            View::Claim(claim) => claim.resource_version,
        }
    }

    /// Returns whether both views have the same JSON. It ignores the resourceVersion and `Claim::last_activity`, which
    /// are not part of the JSON.
    #[must_use]
    pub fn same_on_wire(&self, other: &View) -> bool {
        match (self, other) {
            (View::Instance(a), View::Instance(b)) => Arc::ptr_eq(a, b) || a.same_on_wire(b),
            (View::Claim(a), View::Claim(b)) => Arc::ptr_eq(a, b) || a.same_on_wire(b),
            (View::Instance(_), View::Claim(_)) | (View::Claim(_), View::Instance(_)) => false,
        }
    }

    /// Returns the bytes that are charged for holding the view.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        match self {
            View::Instance(instance) => instance.charged_bytes(),
            View::Claim(claim) => claim.charged_bytes(),
        }
    }
}

/// Bytes charged for a label in addition to its two strings: its share of a map node.
const LABEL_OVERHEAD_BYTES: usize = 48;

fn optional_len(s: &Option<String>) -> usize {
    s.as_ref().map_or(0, String::len)
}

fn labels_len(labels: &Labels) -> usize {
    labels.iter().map(|(key, value)| key.len() + value.len() + LABEL_OVERHEAD_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_comparison_matches_json_equality() {
        let some = || Some("x".to_owned());
        let labels = || Labels::from([("x".to_owned(), "x".to_owned())]);
        let instances: [fn(&mut Instance); 10] = [
            |i| i.resource_version = 7,
            |i| i.name.push('x'),
            |i| i.uid.push('x'),
            |i| i.phase.push('x'),
            |i| i.workload_ref = Some("y".into()),
            |i| i.tenant_id = None,
            |i| i.pool_status = None,
            |i| i.ip = None,
            |i| i.created_at.push('x'),
            |i| i.labels.clear(),
        ];
        let instance = Instance {
            workload_ref: some(),
            tenant_id: some(),
            pool_status: some(),
            ip: some(),
            labels: labels(),
            ..Instance::default()
        };
        for (n, change) in instances.into_iter().enumerate() {
            let mut other = instance.clone();
            change(&mut other);
            let equal = serde_json::to_value(&other).unwrap() == serde_json::to_value(&instance).unwrap();
            assert_eq!(equal, n == 0, "only field 0, the resourceVersion, is not in the JSON: field {n}");
            assert_eq!(
                View::Instance(Arc::new(other)).same_on_wire(&View::Instance(Arc::new(instance.clone()))),
                equal,
                "same_on_wire must agree with the JSON: field {n}"
            );
        }
        let claims: [fn(&mut Claim); 13] = [
            |c| c.resource_version = 7,
            |c| c.last_activity = None,
            |c| c.name.push('x'),
            |c| c.uid.push('x'),
            |c| c.tenant_id.push('x'),
            |c| c.workload_ref.push('x'),
            |c| c.phase.push('x'),
            |c| c.instance_id = None,
            |c| c.endpoint = Some(Endpoint { host: "x".into(), port: 2 }),
            |c| c.source = None,
            |c| c.claimed_at = None,
            |c| c.detail = None,
            |c| c.labels.clear(),
        ];
        let endpoint = Some(Endpoint { host: "x".into(), port: 1 });
        let claim = Claim {
            instance_id: some(),
            endpoint,
            source: some(),
            claimed_at: some(),
            detail: some(),
            labels: labels(),
            last_activity: some(),
            ..Claim::default()
        };
        for (n, change) in claims.into_iter().enumerate() {
            let mut other = claim.clone();
            change(&mut other);
            let equal = serde_json::to_value(&other).unwrap() == serde_json::to_value(&claim).unwrap();
            assert_eq!(equal, n < 2, "only fields 0 and 1 are not in the JSON: field {n}");
            assert_eq!(
                View::Claim(Arc::new(other)).same_on_wire(&View::Claim(Arc::new(claim.clone()))),
                equal,
                "same_on_wire must agree with the JSON: field {n}"
            );
        }
    }
}
