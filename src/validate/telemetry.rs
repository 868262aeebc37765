//! The body of a telemetry post (docs/protocol.md#post-telemetry).
//!
//! Guarantees: all violations are found in one pass, not only the first one. The body is strict: an unknown or repeated key
//! is a violation.

use serde_json::{Map, Number, Value};

use super::{unique_json, violation::Violations};
use crate::event::TelemetryMetrics;

/// Maximum bytes of a body: 256 KiB.
pub const MAX_BODY_BYTES: usize = 256 << 10;
/// Maximum number of requests in a body.
const MAX_REQUESTS: usize = 200;
/// Maximum number of characters of a region.
const MAX_REGION_CHARS: usize = 16;
/// The greatest integer that every JSON parser reads exactly (2^53 - 1).
const MAX_INTEGER: u64 = (1 << 53) - 1;

/// A body without violations.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryBody {
    /// Where the tunnel ends.
    pub region: Option<String>,
    /// The values.
    pub metrics: TelemetryMetrics,
    /// The body as it was sent, for further validation.
    pub value: Value,
}

/// Why a body is not accepted.
#[derive(Clone, Debug, PartialEq)]
pub enum BodyError {
    /// It is no JSON text. The message says where.
    NotJson(String),
    /// It is JSON with these violations.
    Invalid(Violations),
}

/// Parses a body.
///
/// # Errors
/// [`BodyError`] with everything that is wrong.
pub fn parse(body: &[u8]) -> Result<TelemetryBody, BodyError> {
    let (value, repeated) = unique_json::parse(body).map_err(BodyError::NotJson)?;
    let mut check = Check(Violations::default());
    for path in repeated.paths {
        check.0.add(&path, "is there more than once; send each key once");
    }
    check.0.add_unlisted(repeated.more);
    let mut region = None;
    let mut metrics = None;
    if let Some(members) = check.object("", &value, &["region", "metrics"], &["requests"]) {
        region = members.get("region").and_then(|value| check.region(value));
        metrics = members.get("metrics").and_then(|value| check.metrics(value));
        if let Some(requests) = members.get("requests") {
            check.requests(requests);
        }
    }
    match metrics {
        Some(metrics) if check.0.is_empty() => Ok(TelemetryBody { region, metrics, value }),
        _ => Err(BodyError::Invalid(check.0)),
    }
}

/// The violations that have been found.
struct Check(Violations);

impl Check {
    fn expected(&mut self, path: &str, what: &str, found: &Value) {
        self.0.add(path, &format!("expected {what}, found {}", describe(found)));
    }

    /// Checks that a value is an object with these keys.
    fn object<'a>(
        &mut self,
        path: &str,
        value: &'a Value,
        required: &[&str],
        optional: &[&str],
    ) -> Option<&'a Map<String, Value>> {
        let Value::Object(members) = value else {
            self.expected(path, "an object", value);
            return None;
        };
        let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        for key in required.iter().filter(|key| !members.contains_key(**key)) {
            self.0.add(&join(key), "is missing");
        }
        for key in members.keys().filter(|key| !required.contains(&&***key) && !optional.contains(&&***key)) {
            let accepted = [required, optional].concat().join(", ");
            self.0.add(&join(key), &format!("is not a key of the body; accepted here: {accepted}"));
        }
        Some(members)
    }

    fn region(&mut self, value: &Value) -> Option<String> {
        match value {
            Value::Null => None,
            Value::String(text) if text.chars().count() <= MAX_REGION_CHARS => Some(text.clone()),
            Value::String(text) => {
                let found = text.chars().count();
                self.0.add("region", &format!("has {found} characters; the maximum is {MAX_REGION_CHARS}"));
                None
            }
            _ => {
                self.expected("region", "a string or null", value);
                None
            }
        }
    }

    fn metrics(&mut self, value: &Value) -> Option<TelemetryMetrics> {
        const KEYS: [&str; 9] = ["ttl", "opn", "rt1Ms", "rt5Ms", "p50Ms", "p90Ms", "requests", "errors", "bytes"];
        let members = self.object("metrics", value, &KEYS, &[])?;
        let [ttl, opn, requests, errors, bytes] =
            ["ttl", "opn", "requests", "errors", "bytes"].map(|key| self.integer(key, members.get(key)));
        let [rt1_ms, rt5_ms, p50_ms, p90_ms] =
            ["rt1Ms", "rt5Ms", "p50Ms", "p90Ms"].map(|key| self.milliseconds(key, members.get(key)));
        let [ttl, opn, requests, errors, bytes] = [ttl?, opn?, requests?, errors?, bytes?];
        Some(TelemetryMetrics { ttl, opn, rt1_ms, rt5_ms, p50_ms, p90_ms, requests, errors, bytes })
    }

    /// An integer from 0 to 2^53 - 1. As in JSON Schema, `1.0` is one.
    fn integer(&mut self, key: &str, value: Option<&Value>) -> Option<u64> {
        let value = value?;
        let integer = match value {
            Value::Number(number) => number.as_u64().or_else(|| {
                let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
                (0.0..=MAX_INTEGER as f64).contains(&float).then_some(float as u64)
            }),
            _ => None,
        };
        let integer = integer.filter(|integer| *integer <= MAX_INTEGER);
        if integer.is_none() {
            self.expected(&format!("metrics.{key}"), &format!("an integer from 0 to {MAX_INTEGER}"), value);
        }
        integer
    }

    /// A number from 0 on, or null.
    fn milliseconds(&mut self, key: &str, value: Option<&Value>) -> Option<Number> {
        match value {
            None | Some(Value::Null) => None,
            Some(Value::Number(number)) if number.as_f64().is_some_and(|number| number >= 0.0) => Some(number.clone()),
            Some(value) => {
                self.expected(&format!("metrics.{key}"), "a number of at least 0, or null", value);
                None
            }
        }
    }

    fn requests(&mut self, value: &Value) {
        let Value::Array(requests) = value else {
            self.expected("requests", "an array", value);
            return;
        };
        if requests.len() > MAX_REQUESTS {
            self.0.add("requests", &format!("has {} elements; the maximum is {MAX_REQUESTS}", requests.len()));
        }
        for (index, request) in requests.iter().enumerate().take(MAX_REQUESTS) {
            if !request.is_object() {
                self.expected(&format!("requests[{index}]"), "an object", request);
            }
        }
    }
}

/// Returns the type of a value, and the value of a number.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body() -> Value {
        json!({"region": "eu", "metrics": {"ttl": 1, "opn": 2, "rt1Ms": 1.5, "rt5Ms": null, "p50Ms": 0, "p90Ms": 3,
               "requests": 4, "errors": 5, "bytes": 6}, "requests": [{}]})
    }

    fn paths(body: &str) -> Vec<String> {
        match parse(body.as_bytes()) {
            Ok(_) => Vec::new(),
            Err(BodyError::NotJson(_)) => vec!["no JSON".to_owned()],
            Err(BodyError::Invalid(violations)) => violations.listed().iter().map(|v| v.path.clone()).collect(),
        }
    }

    #[test]
    fn valid_bodies_are_accepted() {
        let parsed = parse(body().to_string().as_bytes()).unwrap();
        assert_eq!((parsed.region.as_deref(), parsed.metrics.bytes, parsed.metrics.rt5_ms), (Some("eu"), 6, None));
        for (pointer, value) in [
            ("/region", json!(null)),
            ("/region", json!("")),
            ("/region", json!("ä".repeat(16))),
            ("/metrics/ttl", json!(0)),
            ("/metrics/ttl", json!(3.0)),
            ("/metrics/bytes", json!(MAX_INTEGER)),
            ("/metrics/p90Ms", json!(1e300)),
            ("/requests", json!([])),
            ("/requests", json!(vec![json!({"path": "/", "any": [null]}); 200])),
        ] {
            let mut body = body();
            *body.pointer_mut(pointer).unwrap() = value.clone();
            assert!(parse(body.to_string().as_bytes()).is_ok(), "{pointer} {value}");
        }
        let mut without = body();
        without.as_object_mut().unwrap().remove("requests");
        assert!(parse(without.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn all_violations_are_listed() {
        let found =
            paths(r#"{"region":7,"metrics":{"ttl":-1,"opn":1.5,"rt1Ms":-0.1,"x":1,"x":2},"requests":[{},1],"y":0}"#);
        let expected = [
            "metrics.x",
            "y",
            "region",
            "metrics.rt5Ms",
            "metrics.p50Ms",
            "metrics.p90Ms",
            "metrics.requests",
            "metrics.errors",
            "metrics.bytes",
            "metrics.x",
            "metrics.ttl",
            "metrics.opn",
            "metrics.rt1Ms",
            "requests[1]",
        ];
        assert_eq!(found, expected);
        assert_eq!(paths("[]"), [""]);
        assert_eq!(paths("{"), ["no JSON"]);
        assert_eq!(
            paths(&format!(r#"{{"region":null,"metrics":{}1{}}}"#, "[".repeat(200), "]".repeat(200))),
            ["no JSON"]
        );
    }

    /// A long key is not copied for each element below it.
    #[test]
    fn hostile_bodies_take_little_time() {
        let key = "k".repeat(100_000);
        let body = format!(r#"{{"{key}":[{}0],"{key}":{{"{key}":1}}}}"#, "[0],".repeat(15_000));
        let start = std::time::Instant::now();
        assert!(paths(&body).len() >= 3);
        assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    }
}
