//! The `BoilerhouseClaim` custom resource as Rust types, the source of `crds/boilerhouseclaims.yaml`.
//!
//! The Boilerhouse operator owns the real CRD. This one is compatible with it (docs/protocol.md#objects) and serves
//! tests, demos and clusters without the operator. The bridge never reads claims through these strict types:
//! `source::decode` reads them and accepts objects that this schema rejects.
//!
//! The doc comments of the types and fields are the descriptions in the CRD. The CRD is part of the contract: a changed
//! comment changes `crds/boilerhouseclaims.yaml`.

use kube::{CustomResource, CustomResourceExt};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// API group of the custom resources.
pub const GROUP: &str = "boilerhouse.dev";
/// Version of the custom resources.
pub const VERSION: &str = "v1alpha1";
/// Plural of the resource, as in URLs.
pub const PLURAL: &str = "boilerhouseclaims";

/// What a tenant asks for: an instance of a workload.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "boilerhouse.dev",
    version = "v1alpha1",
    kind = "BoilerhouseClaim",
    plural = "boilerhouseclaims",
    singular = "boilerhouseclaim",
    shortname = "bhc",
    doc = "A tenant's claim to an instance of a workload.",
    namespaced,
    status = "BoilerhouseClaimStatus",
    printcolumn = r#"{"name":"Tenant","type":"string","jsonPath":".spec.tenantId"}"#,
    printcolumn = r#"{"name":"Workload","type":"string","jsonPath":".spec.workloadRef"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Endpoint","type":"string","jsonPath":".status.endpoint.host"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct BoilerhouseClaimSpec {
    /// The tenant who asks.
    pub tenant_id: String,
    /// The workload asked for.
    pub workload_ref: String,
    /// Whether earlier data of the tenant is to be restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<bool>,
}

/// What became of the claim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BoilerhouseClaimStatus {
    /// Where the claim stands.
    pub phase: ClaimPhase,
    /// Name of the Pod that serves the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// Where the tenant reaches the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// How the instance was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ClaimSource>,
    /// When the claim became Active (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<String>,
    /// A word for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The phases a claim goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClaimPhase {
    /// Asked for, not yet served.
    #[default]
    Pending,
    /// Served by an instance.
    Active,
    /// On its way out.
    Releasing,
    /// Given back.
    Released,
    /// Giving it back failed.
    ReleaseFailed,
    /// Could not be served.
    Error,
}

/// How an instance was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClaimSource {
    /// The tenant already had it.
    #[serde(rename = "existing")]
    Existing,
    /// Started for the claim.
    #[serde(rename = "cold")]
    Cold,
    /// Started for the claim, with the tenant's data.
    #[serde(rename = "cold+data")]
    ColdData,
    /// Taken from the pool.
    #[serde(rename = "pool")]
    Pool,
    /// Taken from the pool, with the tenant's data.
    #[serde(rename = "pool+data")]
    PoolData,
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// DNS name or IP address.
    pub host: String,
    /// TCP port.
    #[schemars(schema_with = "port")]
    pub port: u16,
}

/// Returns the CustomResourceDefinition as YAML: the text of `crds/boilerhouseclaims.yaml`.
///
/// # Errors
/// Returns an error if the definition cannot be written as YAML. That would be a defect of this crate.
pub fn crd_yaml() -> Result<String, serde_saphyr::ser::Error> {
    let mut definition = serde_json::json!(BoilerhouseClaim::crd());
    normalize_schema(&mut definition);
    serde_saphyr::to_string(&definition)
}

/// Returns the schema of a port. The derived schema has the format `uint16`, which Kubernetes does not support.
fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": u16::MAX })
}

/// Corrects two parts of the derived schema.
///
/// 1. It removes `nullable` beside an `enum`: an API server rejects null there, also if the field is nullable or the
///    enum lists null (measured on 1.36).
/// 2. It writes whole numbers without a fraction.
fn normalize_schema(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("enum").is_some_and(Value::is_array) {
                fields.remove("nullable");
            }
            fields.values_mut().for_each(normalize_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(normalize_schema),
        Value::Number(number) => {
            if let Some(integer) = number.as_f64().filter(|number| number.fract() == 0.0) {
                // The only numbers are bounds of ports, which a double represents exactly.
                *number = Number::from(integer as i64);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
