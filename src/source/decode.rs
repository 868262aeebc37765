//! Decodes Kubernetes objects into views (docs/protocol.md#objects), in one pass over the JSON.
//!
//! Guarantees: a malformed field never rejects its object. Only `name`, `uid` and `resourceVersion` are required. Any other
//! field may be missing, null or of another type; such a field is absent from the view and named in `malformed_fields`. One
//! type per resource serves lists, watches and `kube::runtime::watcher`. Fields that no view contains are not stored.
//!
//! Must not import: requests, feeds, clocks.

mod json_skip;
mod lenient;
pub mod watch_line;

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::{Deserialize, de::DeserializeOwned};

pub(super) use self::lenient::resource_version;
use self::lenient::{Lenient, LenientStruct, Port, StringMap, UtcSeconds};
use crate::{
    api::{BoilerhouseClaim, LABEL_POOL_STATUS, LABEL_TENANT, LABEL_WORKLOAD},
    event::{
        self, Claim, Instance, ResourceVersion, View,
        view::{Endpoint, Labels},
    },
};

/// The phase of a Pod without a phase (docs/protocol.md#objects).
const NO_POD_PHASE: &str = "Unknown";
/// The phase of a claim without a status (docs/protocol.md#objects).
const NO_CLAIM_PHASE: &str = "Pending";

/// An object of a list or of a watch line, reduced to its view.
pub trait Decode:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// The resource of the object.
    const RESOURCE: event::Resource;

    /// The names that `malformed_fields` can contain, in alphabetical order.
    const FIELDS: &'static [&'static str];

    /// Returns the view and the names of the malformed fields.
    fn into_decoded(self) -> Decoded;
}

/// The decoded form of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The view.
    pub view: View,
    /// JSON paths of the fields that were left out because of their type. Empty for a valid object.
    pub malformed_fields: Vec<&'static str>,
}

/// A decoded Pod.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = Pod)]
#[serde(from = "RawPod")]
pub struct DecodedPod {
    /// Name, uid and resourceVersion only, for `kube::Resource`.
    pub metadata: ObjectMeta,
    /// The view and the malformed fields.
    pub decoded: Decoded,
}

/// A decoded BoilerhouseClaim.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = BoilerhouseClaim)]
#[serde(from = "RawClaim")]
pub struct DecodedClaim {
    /// Name, uid and resourceVersion only, for `kube::Resource`.
    pub metadata: ObjectMeta,
    /// The view and the malformed fields.
    pub decoded: Decoded,
}

impl Decode for DecodedPod {
    const RESOURCE: event::Resource = event::Resource::Pods;
    const FIELDS: &'static [&'static str] =
        &["metadata.creationTimestamp", "metadata.labels", "status", "status.phase", "status.podIP"];

    fn into_decoded(self) -> Decoded {
        self.decoded
    }
}

impl Decode for DecodedClaim {
    const RESOURCE: event::Resource = event::Resource::Claims;
    const FIELDS: &'static [&'static str] = &[
        "metadata.annotations",
        "metadata.labels",
        "spec",
        "spec.tenantId",
        "spec.workloadRef",
        "status",
        "status.claimedAt",
        "status.detail",
        "status.endpoint",
        "status.instanceId",
        "status.phase",
        "status.source",
    ];

    fn into_decoded(self) -> Decoded {
        self.decoded
    }
}

#[derive(Deserialize)]
struct RawPod {
    metadata: RawMeta,
    #[serde(default)]
    status: Lenient<RawPodStatus>,
}

#[derive(Deserialize)]
struct RawClaim {
    metadata: RawMeta,
    #[serde(default)]
    spec: Lenient<RawClaimSpec>,
    #[serde(default)]
    status: Lenient<RawClaimStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMeta {
    name: String,
    uid: String,
    #[serde(deserialize_with = "resource_version")]
    resource_version: ResourceVersion,
    #[serde(default)]
    creation_timestamp: Lenient<UtcSeconds>,
    #[serde(default)]
    labels: Lenient<StringMap>,
    #[serde(default)]
    annotations: Lenient<RawAnnotations>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAnnotations {
    // The value of `api::ANNOTATION_LAST_ACTIVITY`. serde accepts only a literal here.
    #[serde(rename = "boilerhouse.dev/last-activity")]
    last_activity: Lenient<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPodStatus {
    phase: Lenient<String>,
    #[serde(rename = "podIP")]
    pod_ip: Lenient<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawClaimSpec {
    tenant_id: Lenient<String>,
    workload_ref: Lenient<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawClaimStatus {
    phase: Lenient<String>,
    instance_id: Lenient<String>,
    endpoint: Lenient<RawEndpoint>,
    source: Lenient<String>,
    claimed_at: Lenient<String>,
    detail: Lenient<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawEndpoint {
    host: Lenient<String>,
    port: Lenient<Port>,
}

impl LenientStruct for RawAnnotations {}
impl LenientStruct for RawPodStatus {}
impl LenientStruct for RawClaimSpec {}
impl LenientStruct for RawClaimStatus {}
impl LenientStruct for RawEndpoint {}

impl From<RawPod> for DecodedPod {
    fn from(raw: RawPod) -> Self {
        let mut malformed = Vec::new();
        let metadata = raw.metadata.object_meta();
        let labels = raw.metadata.labels.string_map("metadata.labels", &mut malformed);
        let status = raw.status.value("status", &mut malformed).unwrap_or_default();
        let label = |key: &str| labels.get(key).filter(|value| !value.is_empty()).cloned();
        let instance = Instance {
            name: raw.metadata.name,
            uid: raw.metadata.uid,
            phase: status.phase.non_empty("status.phase", &mut malformed).unwrap_or_else(|| NO_POD_PHASE.to_owned()),
            workload_ref: label(LABEL_WORKLOAD),
            tenant_id: label(LABEL_TENANT),
            pool_status: label(LABEL_POOL_STATUS),
            ip: status.pod_ip.non_empty("status.podIP", &mut malformed),
            created_at: created_at(raw.metadata.creation_timestamp, &mut malformed),
            labels,
            resource_version: raw.metadata.resource_version,
        };
        DecodedPod {
            metadata,
            decoded: Decoded { view: View::Instance(Arc::new(instance)), malformed_fields: malformed },
        }
    }
}

impl From<RawClaim> for DecodedClaim {
    fn from(raw: RawClaim) -> Self {
        let mut malformed = Vec::new();
        let metadata = raw.metadata.object_meta();
        let labels: Labels = raw.metadata.labels.string_map("metadata.labels", &mut malformed);
        let annotations = raw.metadata.annotations.value("metadata.annotations", &mut malformed).unwrap_or_default();
        let spec = raw.spec.value("spec", &mut malformed).unwrap_or_default();
        let status = raw.status.value("status", &mut malformed).unwrap_or_default();
        let claim = Claim {
            name: raw.metadata.name,
            uid: raw.metadata.uid,
            tenant_id: spec.tenant_id.non_empty("spec.tenantId", &mut malformed).unwrap_or_default(),
            workload_ref: spec.workload_ref.non_empty("spec.workloadRef", &mut malformed).unwrap_or_default(),
            phase: status.phase.non_empty("status.phase", &mut malformed).unwrap_or_else(|| NO_CLAIM_PHASE.to_owned()),
            instance_id: status.instance_id.non_empty("status.instanceId", &mut malformed),
            endpoint: endpoint(status.endpoint, &mut malformed),
            source: status.source.non_empty("status.source", &mut malformed),
            claimed_at: status.claimed_at.non_empty("status.claimedAt", &mut malformed),
            detail: status.detail.non_empty("status.detail", &mut malformed),
            labels,
            last_activity: annotations.last_activity.non_empty("metadata.annotations", &mut malformed),
            resource_version: raw.metadata.resource_version,
        };
        DecodedClaim { metadata, decoded: Decoded { view: View::Claim(Arc::new(claim)), malformed_fields: malformed } }
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

/// Returns `createdAt`. Every view of an instance has it, so it is empty if the object has no creation timestamp.
fn created_at(raw: Lenient<UtcSeconds>, malformed: &mut Vec<&'static str>) -> String {
    raw.value("metadata.creationTimestamp", malformed).map(|UtcSeconds(text)| text).unwrap_or_default()
}

/// Returns the endpoint if both its parts are valid. One part alone is of no use to a client.
fn endpoint(raw: Lenient<RawEndpoint>, malformed: &mut Vec<&'static str>) -> Option<Endpoint> {
    let raw = raw.value("status.endpoint", malformed)?;
    let mut parts = Vec::new();
    let host = raw.host.non_empty("status.endpoint.host", &mut parts);
    let port = raw.port.value("status.endpoint.port", &mut parts);
    match (host, port) {
        (Some(host), Some(Port(port))) => Some(Endpoint { host, port }),
        (Some(_) | None, None) | (None, Some(_)) => {
            malformed.push("status.endpoint");
            None
        }
    }
}

#[cfg(test)]
mod tests;
