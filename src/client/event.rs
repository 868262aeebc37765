//! The events of the full stream (docs/protocol.md#full-stream), as a client reads them.
//!
//! Guarantees: an unknown type, key or value is never an error. What a type does not name is in [`Event::json`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

/// Bytes of an id. A cursor of a bridge has about 100, and servers accept header lines of at least 8 KiB.
pub(crate) const MAX_ID_BYTES: usize = 4096;

/// Returns whether an id can be a cursor: a header, or a query, can carry it.
pub(super) fn can_be_sent_back(id: &str) -> bool {
    id.len() <= MAX_ID_BYTES && !id.chars().any(char::is_control)
}

/// One event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// The cursor of the event, if it has one.
    pub id: Option<String>,
    /// The `type` of the JSON, or the name of the SSE event where the data has none.
    pub kind: String,
    /// The data as it was sent.
    pub json: Box<RawValue>,
    /// The data as a type.
    pub payload: Payload,
}

/// The data of an event.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Payload {
    /// `state.initial`
    StateInitial(StateInitial),
    /// `instance.state`
    InstanceState(InstanceState),
    /// `claim.state`
    ClaimState(ClaimState),
    /// `pool.instance.ready`
    PoolReady(PoolReady),
    /// `pool.depth`
    PoolDepth(Pool),
    /// `telemetry`
    Telemetry(Telemetry),
    /// `mqtt.message`
    MqttMessage(MqttMessage),
    /// `tenant.claimed`
    TenantClaimed(TenantEvent),
    /// `tenant.released`
    TenantReleased(TenantEvent),
    /// `heartbeat`
    Heartbeat(Heartbeat),
    /// `upstream.down` or `matrix-down`
    UpstreamDown(Upstream),
    /// `upstream.up` or `matrix-up`
    UpstreamUp(Upstream),
    /// `auth.expiring`
    AuthExpiring(AuthExpiring),
    /// `stream.closing`
    StreamClosing(StreamClosing),
    /// `relay.gap`
    RelayGap(RelayGap),
    /// A type of a later release, or of another server.
    Unknown,
}

/// Defines structs of which every field is optional on the wire.
macro_rules! objects {
    ($($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $field_doc:literal])+ $field:ident: $type:ty,)* })+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
            #[serde(rename_all = "camelCase", default)]
            #[non_exhaustive]
            pub struct $name {
                $($(#[doc = $field_doc])+ pub $field: $type,)*
            }
        )+
    };
}

objects! {
    /// The complete state, or a part of it.
    StateInitial {
        /// The time of the state (RFC 3339).
        snapshot_at: String,
        /// Why the client gets it: `connect`, `expired`, `foreign`, `filter`, `lagged`, or a later reason.
        reason: String,
        /// The connection of the bridge.
        connection_id: String,
        /// Instances.
        instances: Vec<Instance>,
        /// Claims.
        claims: Vec<Claim>,
        /// Pools.
        pools: Vec<Pool>,
        /// Further parts follow.
        more: bool,
    }
    /// A Pod of the platform.
    Instance {
        /// The name of the Pod.
        name: String,
        /// The uid of the Pod.
        uid: String,
        /// The phase.
        phase: String,
        /// The workload.
        workload_ref: Option<String>,
        /// The tenant.
        tenant_id: Option<String>,
        /// `warming`, `ready` or `acquired`.
        pool_status: Option<String>,
        /// The address of the Pod.
        ip: Option<String>,
        /// When the Pod was created (RFC 3339).
        created_at: String,
        /// The labels of the Pod.
        labels: BTreeMap<String, String>,
    }
    /// A `BoilerhouseClaim`.
    Claim {
        /// The name of the claim.
        name: String,
        /// The uid of the claim.
        uid: String,
        /// The tenant.
        tenant_id: String,
        /// The workload.
        workload_ref: String,
        /// The phase.
        phase: String,
        /// The name of the instance that the claim holds.
        instance_id: Option<String>,
        /// Where the tenant reaches the instance.
        endpoint: Option<Endpoint>,
        /// Where the instance came from.
        source: Option<String>,
        /// When the claim became active.
        claimed_at: Option<String>,
        /// What the operator says about it.
        detail: Option<String>,
        /// The labels of the claim.
        labels: BTreeMap<String, String>,
    }
    /// An address.
    Endpoint {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    }
    /// The counts of one pool.
    Pool {
        /// The workload.
        workload_ref: String,
        /// Instances that start.
        warming: u64,
        /// Instances that can be claimed.
        ready: u64,
        /// Instances that a tenant holds.
        acquired: u64,
    }
    /// How the tunnel of an instance is used.
    Telemetry {
        /// When the bridge sent it (RFC 3339).
        time: String,
        /// The uid of the instance.
        tunnel_id: String,
        /// When a bridge accepted it (RFC 3339).
        received_at: String,
        /// Where the tunnel ends.
        region: Option<String>,
        /// What the tunnel reported.
        metrics: TelemetryMetrics,
    }
    /// What a tunnel reports. Durations are in milliseconds.
    TelemetryMetrics {
        /// Connections that it has had.
        ttl: u64,
        /// Open connections.
        opn: u64,
        /// Average duration over the last minute.
        rt1_ms: Option<f64>,
        /// Average duration over the last five minutes.
        rt5_ms: Option<f64>,
        /// Median duration.
        p50_ms: Option<f64>,
        /// 90th percentile of the duration.
        p90_ms: Option<f64>,
        /// Requests.
        requests: u64,
        /// Requests that failed.
        errors: u64,
        /// Bytes that were transferred.
        bytes: u64,
    }
    /// A message of an MQTT broker.
    MqttMessage {
        /// When the bridge sent it (RFC 3339).
        time: String,
        /// The topic.
        topic: String,
        /// The payload.
        payload: Value,
    }
    /// A change of an instance.
    InstanceState {
        /// When the bridge received the change (RFC 3339).
        time: String,
        /// The name of the Pod.
        name: String,
        /// The phase, or `Deleted`.
        phase: String,
        /// The phase before.
        previous_phase: Option<String>,
        /// The new view, or the last one.
        instance: Instance,
        /// `deleted` or `filtered`, with the phase `Deleted`.
        cause: Option<String>,
        /// What identifies the event, on every replica.
        key: String,
        /// States in between may have been skipped.
        coalesced: bool,
    }
    /// A change of a claim.
    ClaimState {
        /// When the bridge received the change (RFC 3339).
        time: String,
        /// The name of the claim.
        name: String,
        /// The phase, or `Deleted`.
        phase: String,
        /// The phase before.
        previous_phase: Option<String>,
        /// The new view, or the last one.
        claim: Claim,
        /// `deleted` or `filtered`, with the phase `Deleted`.
        cause: Option<String>,
        /// What identifies the event, on every replica.
        key: String,
        /// States in between may have been skipped.
        coalesced: bool,
    }
    /// An instance became ready.
    PoolReady {
        /// When the bridge received the change (RFC 3339).
        time: String,
        /// The name of the Pod.
        name: String,
        /// The workload.
        workload_ref: Option<String>,
        /// The uid of the Pod.
        uid: String,
        /// What identifies the event, on every replica.
        key: String,
        /// States in between may have been skipped.
        coalesced: bool,
    }
    /// A tenant got or released an instance.
    TenantEvent {
        /// When the bridge received the change (RFC 3339).
        time: String,
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
        /// What identifies the event, on every replica.
        key: String,
        /// States in between may have been skipped.
        coalesced: bool,
    }
    /// The stream is alive.
    Heartbeat {
        /// When it was sent (RFC 3339).
        timestamp: String,
        /// `live`, `syncing`, `down`, or a later value, which is not `live`.
        upstream: String,
        /// Milliseconds since the API server sent the last byte.
        upstream_age_ms: u64,
        /// A difference without an event for this client lies before.
        coalesced: bool,
    }
    /// The bridge has lost a resource of the API server, or watches it again; or a relay has lost its upstream, or reads it
    /// again.
    Upstream {
        /// When (RFC 3339).
        time: String,
        /// `pods`, `boilerhouseclaims` or `nats`.
        resource: String,
        /// Why it is down; `None` in `upstream.up`.
        reason: Option<String>,
        /// When the last useful byte arrived (RFC 3339).
        since: Option<String>,
        /// Of a relay: the HTTP status of an answer that is no stream.
        status: Option<u16>,
        /// Of a relay: when it tries again (RFC 3339).
        retry_at: Option<String>,
    }
    /// The credential expires soon.
    AuthExpiring {
        /// When (RFC 3339).
        expires_at: String,
    }
    /// Events may be missing: a relay does not have them.
    RelayGap {
        /// Why: `expired`, `foreign`, `upstream`, or a later reason.
        reason: String,
    }
    /// The bridge ends the stream.
    StreamClosing {
        /// Why.
        reason: String,
        /// What a person should know beyond the reason.
        detail: Option<String>,
        /// The delay before the client reconnects.
        retry_after_ms: Option<u64>,
    }
}

impl Event {
    /// Parses an event of SSE. `id` and `name` are the fields of its block; a member `id` of the data is no cursor.
    ///
    /// # Errors
    /// The data is no JSON object, a member of a known type has another JSON type, or the id cannot be sent back.
    pub(super) fn of_block(id: Option<String>, name: Option<String>, data: &str) -> Result<Event, String> {
        Event::parse(id, name, data)
    }

    /// Parses an event of a WebSocket, or of a line: the member `id` is the cursor.
    ///
    /// # Errors
    /// As for [`Event::of_block`].
    pub(super) fn of_message(data: &str) -> Result<Event, String> {
        #[derive(Deserialize)]
        struct Id {
            id: Option<Value>,
        }
        let Id { id } = serde_json::from_str(data).map_err(|error| error.to_string())?;
        Event::parse(id.and_then(|id| id.as_str().map(str::to_owned)), None, data)
    }

    fn parse(id: Option<String>, name: Option<String>, data: &str) -> Result<Event, String> {
        #[derive(Deserialize)]
        struct Type {
            r#type: Option<Value>,
        }
        let Type { r#type } = serde_json::from_str(data).map_err(|error| error.to_string())?;
        let kind = r#type.and_then(|kind| kind.as_str().map(str::to_owned)).or(name).unwrap_or_default();
        let json: Box<RawValue> = serde_json::from_str(data).map_err(|error| error.to_string())?;
        let payload = Payload::parse(&kind, data).map_err(|error| error.to_string())?;
        let id = id.filter(|id| !id.is_empty());
        if id.as_ref().is_some_and(|id| !can_be_sent_back(id)) {
            return Err(format!("its id is longer than {MAX_ID_BYTES} bytes, or has control characters"));
        }
        Ok(Event { id, kind, json, payload })
    }

    /// Parses the JSON of an event, for example of a line that `events -o json` has printed.
    ///
    /// # Errors
    /// The text is no JSON object, or a member of a known type has another JSON type.
    pub fn from_json(data: &str) -> Result<Event, String> {
        Event::of_message(data)
    }

    /// Returns the data as a JSON value.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_str(self.json.get()).unwrap_or_default()
    }
}

impl Payload {
    fn parse(kind: &str, data: &str) -> Result<Payload, serde_json::Error> {
        Ok(match kind {
            "state.initial" => Payload::StateInitial(serde_json::from_str(data)?),
            "instance.state" => Payload::InstanceState(serde_json::from_str(data)?),
            "claim.state" => Payload::ClaimState(serde_json::from_str(data)?),
            "pool.instance.ready" => Payload::PoolReady(serde_json::from_str(data)?),
            "pool.depth" => Payload::PoolDepth(serde_json::from_str(data)?),
            "telemetry" => Payload::Telemetry(serde_json::from_str(data)?),
            "mqtt.message" => Payload::MqttMessage(serde_json::from_str(data)?),
            "tenant.claimed" => Payload::TenantClaimed(serde_json::from_str(data)?),
            "tenant.released" => Payload::TenantReleased(serde_json::from_str(data)?),
            "heartbeat" => Payload::Heartbeat(serde_json::from_str(data)?),
            // Those of a relay have other keys.
            "upstream.down" | "matrix-down" => {
                serde_json::from_str(data).map_or(Payload::Unknown, Payload::UpstreamDown)
            }
            "upstream.up" | "matrix-up" => serde_json::from_str(data).map_or(Payload::Unknown, Payload::UpstreamUp),
            "auth.expiring" => Payload::AuthExpiring(serde_json::from_str(data)?),
            "stream.closing" => Payload::StreamClosing(serde_json::from_str(data)?),
            "relay.gap" => Payload::RelayGap(serde_json::from_str(data)?),
            _ => Payload::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_types_are_parsed_and_unknown_ones_are_passed_on() {
        let parse = |data: &str| Event::of_block(Some("sse".to_owned()), Some("named".to_owned()), data);
        let event =
            parse(r#"{"type":"instance.state","id":"c1","name":"a","phase":"Running","instance":{"uid":"u","new":1}}"#);
        let event = event.unwrap();
        assert_eq!((event.id.as_deref(), event.kind.as_str()), (Some("sse"), "instance.state"));
        let Payload::InstanceState(state) = event.payload else { panic!("{:?}", event.payload) };
        assert_eq!((state.name.as_str(), state.instance.uid.as_str(), state.coalesced), ("a", "u", false));
        let event = parse(r#"{"color":"red"}"#).unwrap();
        assert_eq!((event.id.as_deref(), event.kind.as_str()), (Some("sse"), "named"));
        assert!(matches!(event.payload, Payload::Unknown));
        assert_eq!(event.json.get(), r#"{"color":"red"}"#);
        let telemetry =
            r#"{"type":"telemetry","tunnelId":"u","region":null,"metrics":{"ttl":1,"rt1Ms":2.5,"rt5Ms":null}}"#;
        let Payload::Telemetry(telemetry) = parse(telemetry).unwrap().payload else { panic!("no telemetry") };
        assert_eq!((telemetry.tunnel_id.as_str(), telemetry.metrics.rt1_ms, telemetry.region), ("u", Some(2.5), None));
        let message = parse(r#"{"type":"mqtt.message","topic":"a/b","payload":[1]}"#).unwrap();
        assert!(matches!(message.payload, Payload::MqttMessage(message) if message.payload == serde_json::json!([1])));
        for malformed in ["", "[]", "1", "{", r#"{"type":"heartbeat","upstreamAgeMs":"x"}"#] {
            parse(malformed).unwrap_err();
        }
    }

    /// The member `id` of another server is no cursor of SSE. On a WebSocket it is the only place for one.
    #[test]
    fn the_cursor_is_the_id_of_the_transport() {
        let id = |event: Result<Event, String>| event.unwrap().id;
        assert_eq!(id(Event::of_block(None, None, r#"{"type":"a","id":"order-1"}"#)), None);
        assert_eq!(id(Event::of_block(None, None, r#"{"type":1,"id":17}"#)), None);
        assert_eq!(id(Event::of_message(r#"{"type":"a","id":"c"}"#)).as_deref(), Some("c"));
        assert_eq!(id(Event::of_message(r#"{"type":"a","id":17}"#)), None);
        for wrong in ["x".repeat(MAX_ID_BYTES + 1), "a\u{1}b".to_owned()] {
            assert!(Event::of_block(Some(wrong), None, "{}").unwrap_err().contains("its id is longer than 4096 bytes"));
        }
    }
}
