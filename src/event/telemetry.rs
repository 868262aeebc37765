//! Values that come from outside the cluster: the telemetry of a tunnel, and a message of an MQTT broker.
//!
//! Guarantees: the bytes of a [`Telemetry`] are bounded, because it has a fixed number of fields and a short region. The
//! bytes of a [`MqttMessage`] are bounded by the source that makes it, and charged ([`MqttMessage::charged_bytes`]).
//!
//! Implements the values of `docs/protocol.md#telemetry` and `docs/protocol.md#mqtt`.

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// The most recent values that a tunnel has reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// The uid of the instance.
    pub tunnel_id: String,
    /// When a replica accepted it, in milliseconds since the Unix epoch. JSON: `receivedAt`, ISO 8601, UTC.
    #[serde(rename = "receivedAt", with = "iso_8601")]
    pub received_at_ms: u64,
    /// Where the tunnel ends; at most 16 characters.
    pub region: Option<String>,
    /// The values.
    pub metrics: TelemetryMetrics,
}

/// The values of a [`Telemetry`]. The tunnel defines what they count; times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TelemetryMetrics {
    /// Connections since the tunnel was opened.
    pub ttl: u64,
    /// Open connections.
    pub opn: u64,
    /// Average duration over the last minute.
    pub rt1_ms: Option<Number>,
    /// Average duration over the last five minutes.
    pub rt5_ms: Option<Number>,
    /// Median duration.
    pub p50_ms: Option<Number>,
    /// 90th percentile of the duration.
    pub p90_ms: Option<Number>,
    /// Requests.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Bytes that were transferred.
    pub bytes: u64,
}

impl Telemetry {
    /// Returns the bytes that are charged for holding it.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        size_of::<Telemetry>() + self.tunnel_id.len() + self.region.as_ref().map_or(0, String::len)
    }
}

/// A message of an MQTT broker whose payload is JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MqttMessage {
    /// The topic that it was published to.
    pub topic: String,
    /// The payload.
    pub payload: Value,
}

impl MqttMessage {
    /// Returns the bytes that are charged for holding it. They can be many times the bytes of its JSON, because each value
    /// of a list has the size of a [`Value`], and an object has room for 11 members. It visits every value.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        size_of::<MqttMessage>() + self.topic.capacity() + heap_bytes(&self.payload)
    }
}

/// Members that a node of a `BTreeMap` has room for. A node is allocated completely, also for one member.
const NODE_MEMBERS: usize = 11;
/// Members that each node of a map has at least, except its root.
const MIN_NODE_MEMBERS: usize = 5;
/// Bytes of a node: room for keys and values, for pointers to its children, and for its place in the tree.
const NODE_BYTES: usize =
    NODE_MEMBERS * (size_of::<String>() + size_of::<Value>()) + (NODE_MEMBERS + 3) * size_of::<usize>();

/// Returns the bytes that a value holds beside its own size, at least those that it has allocated. It recurses as deep as the
/// value, at most 128 levels (`serde_json` parses no more).
fn heap_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(values) => values.capacity() * size_of::<Value>() + values.iter().map(heap_bytes).sum::<usize>(),
        Value::Object(members) => {
            let member = |(key, value): (&String, &Value)| key.capacity() + heap_bytes(value);
            nodes(members.len()) * NODE_BYTES + members.iter().map(member).sum::<usize>()
        }
    }
}

/// Returns the most nodes that a map with this number of members has.
fn nodes(members: usize) -> usize {
    match members {
        0 => 0,
        1..=NODE_MEMBERS => 1,
        _ => 1 + (members - 1) / MIN_NODE_MEMBERS,
    }
}

/// Milliseconds since the Unix epoch as a timestamp with milliseconds.
mod iso_8601 {
    use std::borrow::Cow;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::event::timestamp::format_timestamp;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    pub(super) fn serialize<S: Serializer>(at_ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        format_timestamp(*at_ms).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let at: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        u64::try_from(at.as_millisecond()).map_err(|_| D::Error::custom("a time before 1970"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_of_telemetry_is_the_documented_one_and_is_read_back() {
        let body = json!({
            "tunnelId": "0f0e", "receivedAt": "2026-01-02T03:04:05.006Z", "region": null,
            "metrics": {"ttl": 1, "opn": 2, "rt1Ms": 3, "rt5Ms": 4.5, "p50Ms": null, "p90Ms": 0, "requests": 5, "errors": 6,
                        "bytes": 7},
        });
        let telemetry: Telemetry = serde_json::from_value(body.clone()).unwrap();
        assert_eq!(telemetry.received_at_ms, 1_767_323_045_006);
        assert_eq!(
            serde_json::to_value(&telemetry).unwrap(),
            body,
            "region and p50Ms are null, and 3 stays an integer"
        );
    }

    #[test]
    fn message_is_charged_for_what_its_values_allocate() {
        let charge = |payload: &str| {
            let payload = serde_json::from_str(payload).unwrap();
            MqttMessage { topic: String::new(), payload }.charged_bytes() - size_of::<MqttMessage>()
        };
        assert_eq!([charge("1"), charge("[]"), charge("{}"), charge(r#""""#)], [0; 4]);
        assert!(charge("[0,0,0]") >= 3 * size_of::<Value>());
        assert!(charge(r#""value""#) >= "value".len());
        // Room for 11 keys and values: `BTreeMap` allocates it with the first member.
        let node = 11 * (size_of::<String>() + size_of::<Value>());
        assert!(charge(r#"{"a":0}"#) >= node + "a".len());
        let objects = format!("[{}]", [r#"{"":0}"#; 1000].join(","));
        assert!(charge(&objects) >= 1000 * (node + size_of::<Value>()));
        let members: Vec<String> = (0..1000).map(|n| format!("\"{n:04}\":0")).collect();
        let charged = charge(&format!("{{{}}}", members.join(",")));
        // Keys in ascending order leave nodes with 6 members, below nodes of their own.
        assert!((1000 / 7 * node..1000 / 4 * node).contains(&charged), "{charged}");
    }

    #[test]
    fn nodes_of_a_map_are_at_most_those_of_the_fewest_members() {
        assert_eq!([0, 1, 11, 12, 17, 1001].map(nodes), [0, 1, 1, 3, 4, 201]);
    }
}
