//! The JSON bodies of the GETs and POSTs, as `docs/protocol.md#snapshots` and `docs/protocol.md#errors` list them.
//!
//! A field of type `Option` is a key that can be absent.

#![expect(dead_code, reason = "the types describe bodies that `http` makes")]

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::generate::{AmountOrNull, AnyObject, Count, RegionOrNull, Time, True};
use crate::{
    event::{Claim, Instance},
    wire::ErrorCode,
};

/// An instance with two fields of the claim that holds it.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct InstanceWithActivity {
    #[schemars(flatten)]
    instance: Instance,
    /// Annotation `boilerhouse.dev/last-activity` of the claim.
    last_activity: Option<String>,
    /// `status.claimedAt` of the claim.
    claimed_at: Option<String>,
}

/// A tenant and its claims, by name.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct Tenant {
    /// The tenant.
    tenant_id: String,
    /// Its claims.
    claims: Vec<Claim>,
}

/// Counts by phase.
#[derive(JsonSchema)]
pub(super) struct Stats {
    /// The instances.
    instances: PhaseCounts,
    /// The claims.
    claims: PhaseCounts,
}

/// The number of objects, and of those in each phase.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct PhaseCounts {
    /// All objects.
    total: u64,
    /// Phase → objects.
    by_phase: BTreeMap<String, u64>,
}

/// What the bridge watches.
#[derive(JsonSchema)]
pub(super) struct Connection {
    /// UUID version 5 of the uid of the Namespace.
    id: String,
    /// The context of the kubeconfig, or `in-cluster`, or `demo`.
    name: String,
    /// The watched namespace.
    namespace: String,
    /// `syncing` before the first lists, then `live` or `down`.
    state: ConnectionState,
    /// When `state` changed last: RFC 3339, UTC, milliseconds.
    since: Time,
    /// With `down`: why, for people. The reasons are those of `upstream.down`.
    #[schemars(extend("examples" = ["pods: forbidden"]))]
    detail: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", inline)]
enum ConnectionState {
    Syncing,
    Live,
    Down,
}

/// The process runs.
#[derive(JsonSchema)]
pub(super) struct Health {
    status: HealthStatus,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", inline)]
enum HealthStatus {
    Ok,
}

/// A session cookie was set.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct Session {
    /// When the cookie expires: RFC 3339, UTC.
    expires_at: Time,
}

/// A stream ticket.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct Ticket {
    /// The value of the query parameter `token`.
    ticket: String,
    /// When the ticket expires: RFC 3339, UTC.
    expires_at: Time,
}

/// The newest values that a tunnel has reported.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct TelemetrySnapshot {
    /// The uid of the instance.
    tunnel_id: String,
    /// When a replica accepted the values: ISO 8601, UTC, milliseconds.
    received_at: Time,
    /// Where the tunnel ends.
    region: RegionOrNull,
    /// The values.
    metrics: TelemetryMetrics,
}

/// The values of a tunnel. Times are in milliseconds.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
struct TelemetryMetrics {
    /// Connections since the tunnel was opened.
    ttl: Count,
    /// Open connections.
    opn: Count,
    /// Average duration over the last minute.
    rt1_ms: AmountOrNull,
    /// Average duration over the last five minutes.
    rt5_ms: AmountOrNull,
    /// Median duration.
    p50_ms: AmountOrNull,
    /// 90th percentile of the duration.
    p90_ms: AmountOrNull,
    /// Requests.
    requests: Count,
    /// Requests that failed.
    errors: Count,
    /// Bytes that were transferred.
    bytes: Count,
}

/// What a tunnel reports.
#[derive(JsonSchema)]
pub(super) struct TelemetryPost {
    /// Where the tunnel ends.
    region: RegionOrNull,
    /// The values.
    metrics: TelemetryMetrics,
    /// Single requests. They are checked and not stored.
    #[schemars(length(max = 200))]
    requests: Option<Vec<AnyObject>>,
}

/// The values are stored.
#[derive(JsonSchema)]
pub(super) struct TelemetryAccepted {
    ok: True,
}

/// An error.
#[derive(JsonSchema)]
#[schemars(rename = "Error")]
pub(super) struct ErrorBody {
    /// What is wrong.
    #[schemars(schema_with = "error_code")]
    code: ErrorCode,
    /// What to do. The text is no contract.
    message: String,
    /// For a bad parameter or a bad body: what is wrong.
    details: Option<ErrorDetails>,
    /// The same as `message`.
    error: String,
}

fn error_code(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": ErrorCode::ALL })
}

/// What the error is about.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum ErrorDetails {
    /// A parameter is wrong.
    Parameter {
        /// The name of the parameter.
        parameter: String,
    },
    /// The body is wrong.
    Body {
        /// What is wrong, at most 500 entries.
        violations: Vec<Violation>,
        /// The number of further violations.
        more: Option<Count>,
    },
}

/// One thing that is wrong with a body.
#[derive(JsonSchema)]
struct Violation {
    /// Where it is. Empty for the whole body.
    path: String,
    /// What is expected there, and what was found.
    message: String,
}
