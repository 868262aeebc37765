//! The keys of each message beside `type` and `rate_limit`, as the tables of `docs/protocol.md#full-stream`,
//! `docs/protocol.md#boilerhouse-stream` and `docs/protocol.md#events-of-the-relay` list them.
//!
//! A field of type `Option` is a key that can be absent.

#![expect(dead_code, reason = "the types describe messages that other modules make")]

use schemars::JsonSchema;

use super::{
    bodies::TelemetrySnapshot,
    generate::{AnyValue, Cursor, IntegerOrNull, Time, True},
};
use crate::event::{Claim, Instance, PoolDepth as Pool};

/// `/ws`: an instance was added, was modified or was deleted.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct WsInstanceState {
    /// The name of the instance.
    name: String,
    /// The phase. `Deleted` after a deletion.
    phase: String,
    /// The workload.
    workload_ref: Option<String>,
    /// The tenant.
    tenant_id: Option<String>,
}

/// `/ws`: the pool status of an instance became `ready`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct WsPoolInstanceReady {
    /// The name of the instance.
    name: String,
    /// The workload.
    workload_ref: Option<String>,
}

/// `/ws`: the phase of a claim became `Active`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct WsTenantClaimed {
    /// The name of the claim.
    name: String,
    /// The tenant.
    tenant_id: Option<String>,
    /// The workload.
    workload_ref: Option<String>,
    /// Where the instance came from.
    source: Option<String>,
}

/// `/ws`: a claim whose phase was not `Released` became `Released` or was deleted.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct WsTenantReleased {
    /// The name of the claim.
    name: String,
    /// The tenant.
    tenant_id: Option<String>,
}

/// The current state, or a part of it. The client replaces its state when it has all parts.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct StateInitial {
    /// The cursor at which the state is true. Only the last part has it.
    id: Option<Cursor>,
    /// The time of the state: RFC 3339, UTC, milliseconds.
    snapshot_at: Time,
    /// Why the client gets a new state.
    reason: StateReason,
    /// The `id` of `/api/v1/connections`.
    connection_id: String,
    /// The instances.
    instances: Vec<Instance>,
    /// The claims.
    claims: Vec<Claim>,
    /// The pools.
    pools: Vec<Pool>,
    /// Further parts follow.
    more: Option<True>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", inline)]
enum StateReason {
    Connect,
    Expired,
    Foreign,
    Filter,
    Lagged,
}

/// The view of an instance changed.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct InstanceState {
    /// The cursor after this event.
    id: Option<Cursor>,
    /// When this replica received the change: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The name of the instance.
    name: String,
    /// The phase. `Deleted` when the instance is gone for this client.
    phase: String,
    /// The phase before the change, if it was another one.
    previous_phase: Option<String>,
    /// The workload.
    workload_ref: Option<String>,
    /// The tenant.
    tenant_id: Option<String>,
    /// The complete view. In a `Deleted` event it is the last view that the client may see.
    instance: Instance,
    /// Why the phase is `Deleted`.
    cause: Option<Cause>,
    /// `<uid>.<resourceVersion>.<type>`, by which a receiver removes duplicates.
    key: String,
    /// The event comes from a difference. States in between may have been skipped.
    coalesced: Option<True>,
}

/// The view of a claim changed.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct ClaimState {
    /// The cursor after this event.
    id: Option<Cursor>,
    /// When this replica received the change: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The name of the claim.
    name: String,
    /// The phase. `Deleted` when the claim is gone for this client.
    phase: String,
    /// The phase before the change, if it was another one.
    previous_phase: Option<String>,
    /// The tenant.
    tenant_id: String,
    /// The workload.
    workload_ref: String,
    /// The complete view. In a `Deleted` event it is the last view that the client may see.
    claim: Claim,
    /// Why the phase is `Deleted`.
    cause: Option<Cause>,
    /// `<uid>.<resourceVersion>.<type>`, by which a receiver removes duplicates.
    key: String,
    /// The event comes from a difference. States in between may have been skipped.
    coalesced: Option<True>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", inline)]
enum Cause {
    Deleted,
    Filtered,
}

/// The pool status of an instance became `ready`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct PoolInstanceReady {
    /// The cursor after this event.
    id: Option<Cursor>,
    /// When this replica received the change: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The name of the instance.
    name: String,
    /// The workload.
    workload_ref: Option<String>,
    /// The uid of the instance.
    uid: String,
    /// `<uid>.<resourceVersion>.<type>`, by which a receiver removes duplicates.
    key: String,
    /// The event comes from a difference. States in between may have been skipped.
    coalesced: Option<True>,
}

/// The phase of a claim became `Active`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct TenantClaimed {
    /// The cursor after this event.
    id: Option<Cursor>,
    /// When this replica received the change: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The name of the claim.
    name: String,
    /// The tenant.
    tenant_id: Option<String>,
    /// The workload.
    workload_ref: Option<String>,
    /// Where the instance came from.
    source: Option<String>,
    /// The uid of the claim.
    uid: String,
    /// `<uid>.<resourceVersion>.<type>`, by which a receiver removes duplicates.
    key: String,
    /// The event comes from a difference. States in between may have been skipped.
    coalesced: Option<True>,
}

/// A claim whose phase was not `Released` became `Released` or was deleted.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct TenantReleased {
    /// The cursor after this event.
    id: Option<Cursor>,
    /// When this replica received the change: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The name of the claim.
    name: String,
    /// The tenant.
    tenant_id: Option<String>,
    /// The uid of the claim.
    uid: String,
    /// `<uid>.<resourceVersion>.<type>`, by which a receiver removes duplicates.
    key: String,
    /// The event comes from a difference. States in between may have been skipped.
    coalesced: Option<True>,
}

/// The counts of a pool changed.
#[derive(JsonSchema)]
pub(super) struct PoolDepth {
    /// When this replica computed the counts: RFC 3339, UTC, milliseconds.
    time: Time,
    #[schemars(flatten)]
    pool: Pool,
}

/// A tunnel has reported its values.
#[derive(JsonSchema)]
pub(super) struct Telemetry {
    /// When this replica published the event: RFC 3339, UTC, milliseconds.
    time: Time,
    #[schemars(flatten)]
    snapshot: TelemetrySnapshot,
}

/// A broker has sent a message whose payload is JSON.
#[derive(JsonSchema)]
pub(super) struct MqttMessage {
    /// When this replica published the event: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The topic.
    topic: String,
    /// The payload.
    payload: AnyValue,
}

/// The bridge cannot watch a resource, or the watch is silent.
#[derive(JsonSchema)]
pub(super) struct UpstreamDown {
    /// When this replica observed it: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The resource.
    resource: Resource,
    /// Why the resource is down: a reason of docs/protocol.md#control-events, or the words of NATS.
    reason: String,
    /// When the last useful byte arrived before it went down: RFC 3339, UTC, milliseconds.
    since: Time,
}

/// A resource is watched again, and all changes that were missed have been delivered before.
#[derive(JsonSchema)]
pub(super) struct UpstreamUp {
    /// When this replica observed it: RFC 3339, UTC, milliseconds.
    time: Time,
    /// The resource.
    resource: Resource,
    /// When the last useful byte arrived before it went down: RFC 3339, UTC, milliseconds.
    since: Time,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum Resource {
    Pods,
    BoilerhouseClaims,
    Nats,
}

/// A periodic event that advances the cursor.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct Heartbeat {
    /// The cursor: how far this client has been served.
    id: Cursor,
    /// When the event was made: RFC 3339, UTC, milliseconds.
    timestamp: Time,
    /// The state of the watches. `syncing` means that a resume is still being prepared.
    upstream: UpstreamState,
    /// Milliseconds since the last byte of the quieter resource.
    upstream_age_ms: u64,
    /// The event stands for a difference without a change for this client. States in between may have been skipped.
    coalesced: Option<True>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", inline)]
enum UpstreamState {
    Live,
    Syncing,
    Down,
}

/// The credential expires soon. The stream ends with it.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct AuthExpiring {
    /// When the event was made: RFC 3339, UTC, milliseconds.
    time: Time,
    /// When the credential expires: RFC 3339, UTC.
    expires_at: Time,
}

/// The bridge ends the stream, or rejects it for now.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct StreamClosing {
    /// Why: a reason of the close codes, or of a temporary rejection.
    reason: ClosingReason,
    /// With `not ready`: why, for people. The reasons are those of `upstream.down`.
    #[schemars(extend("examples" = ["pods and boilerhouseclaims: forbidden"]))]
    detail: Option<String>,
    /// Milliseconds after which the client can connect again.
    retry_after_ms: u64,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum ClosingReason {
    #[schemars(rename = "protocol error")]
    ProtocolError,
    #[schemars(rename = "not utf-8")]
    NotUtf8,
    #[schemars(rename = "credential expired")]
    CredentialExpired,
    #[schemars(rename = "access revoked")]
    AccessRevoked,
    #[schemars(rename = "message too big")]
    MessageTooBig,
    Internal,
    Draining,
    #[schemars(rename = "slow consumer")]
    SlowConsumer,
    Idle,
    #[schemars(rename = "not ready")]
    NotReady,
    #[schemars(rename = "too many connections")]
    TooManyConnections,
    Rate,
    #[schemars(rename = "credential check unavailable")]
    CredentialCheckUnavailable,
}

/// A try of the relay to read its upstream has failed, or the stream of the upstream has ended.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
pub(super) struct RelayDown {
    /// The HTTP status of an answer that is no event stream, else null.
    status: IntegerOrNull,
    /// Why: a reason of the relay, or of the upstream's `stream.closing`.
    reason: String,
    /// When the relay tries again: RFC 3339, UTC, milliseconds.
    retry_at: Time,
}

/// The upstream sends its stream again.
#[derive(JsonSchema)]
pub(super) struct RelayUp {}

/// Events of the upstream may be missing here.
#[derive(JsonSchema)]
pub(super) struct RelayGap {
    /// Why.
    reason: GapReason,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", inline)]
enum GapReason {
    Expired,
    Foreign,
    Upstream,
}

/// The state of `--stream-rate` after this event. Present only where the server limits the rate.
#[derive(JsonSchema)]
pub(super) struct RateLimit {
    /// Events a minute.
    limit: u32,
    /// Events that the client can still receive in this window.
    remaining: u32,
    /// When the window ends: RFC 3339, UTC, milliseconds.
    reset_at: Time,
}
