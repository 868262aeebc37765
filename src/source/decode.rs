//! Kubernetes objects become views (protocol.md section 1), in one pass over the JSON and without keeping the rest.
//!
//! An object is never refused because a field is odd: all but `name`, `uid` and `resourceVersion` may be missing,
//! null or of another type; such a field is absent from the view and named in `odd`. One row type a resource serves
//! lists, watches and `kube::runtime::watcher`. It knows nothing of requests, feeds or time.

mod json_skip;
mod lenient;
mod watch_line;

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::{Deserialize, de::DeserializeOwned};

pub(super) use self::lenient::version;
use self::lenient::{Fields, Loose, Moment, Port, Texts};
pub use self::watch_line::line;
use super::crd::BoilerhouseClaim;
use crate::event::{
    self, Claim, Instance, ResourceVersion, View,
    view::{Endpoint, Labels},
};

/// What the phase of a Pod without one reads (protocol.md section 1).
const NO_POD_PHASE: &str = "Unknown";
/// What the phase of a claim without a status reads (protocol.md section 1).
const NO_CLAIM_PHASE: &str = "Pending";

/// A row of a list or a line of a watch: what is kept of an object.
pub trait Row:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Which resource it is.
    const KIND: event::Resource;

    /// The view, and the names of the fields that were of a wrong type.
    fn into_seen(self) -> Seen;
}

/// An object as the bridge sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The view.
    pub view: View,
    /// JSON paths of the fields left out because of their type; empty for a sound object.
    pub odd: Vec<&'static str>,
}

/// A Pod, projected.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = Pod)]
#[serde(from = "RawPod")]
pub struct PodRow {
    /// Name, uid and resourceVersion only: what `kube::Resource` asks for.
    pub metadata: ObjectMeta,
    /// What is kept.
    pub seen: Seen,
}

/// A BoilerhouseClaim, projected.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = BoilerhouseClaim)]
#[serde(from = "RawClaim")]
pub struct ClaimRow {
    /// Name, uid and resourceVersion only: what `kube::Resource` asks for.
    pub metadata: ObjectMeta,
    /// What is kept.
    pub seen: Seen,
}

impl Row for PodRow {
    const KIND: event::Resource = event::Resource::Instance;

    fn into_seen(self) -> Seen {
        self.seen
    }
}

impl Row for ClaimRow {
    const KIND: event::Resource = event::Resource::Claim;

    fn into_seen(self) -> Seen {
        self.seen
    }
}

#[derive(Deserialize)]
struct RawPod {
    metadata: RawMeta,
    #[serde(default)]
    status: Loose<RawPodStatus>,
}

#[derive(Deserialize)]
struct RawClaim {
    metadata: RawMeta,
    #[serde(default)]
    spec: Loose<RawClaimSpec>,
    #[serde(default)]
    status: Loose<RawClaimStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMeta {
    name: String,
    uid: String,
    #[serde(deserialize_with = "version")]
    resource_version: ResourceVersion,
    #[serde(default)]
    creation_timestamp: Loose<Moment>,
    #[serde(default)]
    labels: Loose<Texts>,
    #[serde(default)]
    annotations: Loose<RawAnnotations>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAnnotations {
    #[serde(rename = "boilerhouse.dev/last-activity")]
    last_activity: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPodStatus {
    phase: Loose<String>,
    #[serde(rename = "podIP")]
    pod_ip: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawClaimSpec {
    tenant_id: Loose<String>,
    workload_ref: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawClaimStatus {
    phase: Loose<String>,
    instance_id: Loose<String>,
    endpoint: Loose<RawEndpoint>,
    source: Loose<String>,
    claimed_at: Loose<String>,
    detail: Loose<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEndpoint {
    host: Loose<String>,
    port: Loose<Port>,
}

impl Fields for RawAnnotations {}
impl Fields for RawPodStatus {}
impl Fields for RawClaimSpec {}
impl Fields for RawClaimStatus {}
impl Fields for RawEndpoint {}

impl From<RawPod> for PodRow {
    fn from(raw: RawPod) -> Self {
        let mut odd = Vec::new();
        let metadata = raw.metadata.object_meta();
        let labels = raw.metadata.labels.texts("metadata.labels", &mut odd);
        let status = raw.status.take("status", &mut odd).unwrap_or_default();
        let label = |key: &str| labels.get(key).filter(|value| !value.is_empty()).cloned();
        let instance = Instance {
            name: raw.metadata.name,
            uid: raw.metadata.uid,
            phase: status.phase.text("status.phase", &mut odd).unwrap_or_else(|| NO_POD_PHASE.to_owned()),
            workload_ref: label("boilerhouse.dev/workload"),
            tenant_id: label("boilerhouse.dev/tenant"),
            pool_status: label("boilerhouse.dev/pool-status"),
            ip: status.pod_ip.text("status.podIP", &mut odd),
            created_at: created(raw.metadata.creation_timestamp, &mut odd),
            labels,
            rv: raw.metadata.resource_version,
        };
        PodRow { metadata, seen: Seen { view: View::Instance(Arc::new(instance)), odd } }
    }
}

impl From<RawClaim> for ClaimRow {
    fn from(raw: RawClaim) -> Self {
        let mut odd = Vec::new();
        let metadata = raw.metadata.object_meta();
        let labels: Labels = raw.metadata.labels.texts("metadata.labels", &mut odd);
        let annotations = raw.metadata.annotations.take("metadata.annotations", &mut odd).unwrap_or_default();
        let spec = raw.spec.take("spec", &mut odd).unwrap_or_default();
        let status = raw.status.take("status", &mut odd).unwrap_or_default();
        let claim = Claim {
            name: raw.metadata.name,
            uid: raw.metadata.uid,
            tenant_id: spec.tenant_id.text("spec.tenantId", &mut odd).unwrap_or_default(),
            workload_ref: spec.workload_ref.text("spec.workloadRef", &mut odd).unwrap_or_default(),
            phase: status.phase.text("status.phase", &mut odd).unwrap_or_else(|| NO_CLAIM_PHASE.to_owned()),
            instance_id: status.instance_id.text("status.instanceId", &mut odd),
            endpoint: endpoint(status.endpoint, &mut odd),
            source: status.source.text("status.source", &mut odd),
            claimed_at: status.claimed_at.text("status.claimedAt", &mut odd),
            detail: status.detail.text("status.detail", &mut odd),
            labels,
            last_activity: annotations.last_activity.text("metadata.annotations", &mut odd),
            rv: raw.metadata.resource_version,
        };
        ClaimRow { metadata, seen: Seen { view: View::Claim(Arc::new(claim)), odd } }
    }
}

impl RawMeta {
    fn object_meta(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            resource_version: Some(self.resource_version.to_string()),
            ..ObjectMeta::default()
        }
    }
}

/// `createdAt` stands in every view, so an object without one has an empty one.
fn created(raw: Loose<Moment>, odd: &mut Vec<&'static str>) -> String {
    raw.take("metadata.creationTimestamp", odd).map(|Moment(text)| text).unwrap_or_default()
}

/// An endpoint with half its parts helps nobody: both, or it is absent.
fn endpoint(raw: Loose<RawEndpoint>, odd: &mut Vec<&'static str>) -> Option<Endpoint> {
    let raw = raw.take("status.endpoint", odd)?;
    let mut parts = Vec::new();
    let host = raw.host.text("status.endpoint.host", &mut parts);
    let port = raw.port.take("status.endpoint.port", &mut parts);
    match (host, port) {
        (Some(host), Some(Port(port))) => Some(Endpoint { host, port }),
        (Some(_) | None, None) | (None, Some(_)) => {
            odd.push("status.endpoint");
            None
        }
    }
}

#[cfg(test)]
mod tests;
