//! The JSON Schema of an entity in a schema pack (docs/protocol.md#schema-pack).
//!
//! Guarantees:
//! - A schema loads nothing: `$ref` leads to places of the same schema, and to the meta-schemas of JSON Schema.
//! - The time of a pattern is linear in the payload, and its memory is bounded. Patterns that need backtracking are refused.

use serde_json::Value;

use super::violation::Violations;

/// Maximum bytes of a compiled pattern: 1 MiB.
#[cfg(feature = "json-schema")]
const MAX_PATTERN_BYTES: usize = 1 << 20;
/// Maximum number of violations of a schema that are counted.
#[cfg(feature = "json-schema")]
const MAX_VIOLATIONS: usize = 100;

/// A compiled schema.
#[derive(Debug)]
pub(super) struct JsonSchema {
    #[cfg(feature = "json-schema")]
    validator: jsonschema::Validator,
    /// Without the feature there is no schema.
    #[cfg(not(feature = "json-schema"))]
    never: std::convert::Infallible,
}

#[cfg(feature = "json-schema")]
impl JsonSchema {
    /// Compiles a schema: JSON Schema 2020-12, or the draft that its `$schema` names.
    ///
    /// # Errors
    /// The reason, for people.
    pub(super) fn compile(schema: &Value) -> Result<JsonSchema, String> {
        let patterns = jsonschema::PatternOptions::regex().size_limit(MAX_PATTERN_BYTES);
        let options = jsonschema::options().offline().with_pattern_options(patterns).should_validate_formats(true);
        let validator = options.build(schema).map_err(|error| match error.instance_path().as_str() {
            "" => error.to_string(),
            path => format!("{error} (at {path})"),
        })?;
        Ok(JsonSchema { validator })
    }

    /// Adds what is wrong with a payload. The messages have no values of it.
    pub(super) fn validate(&self, payload: &Value, violations: &mut Violations) {
        for error in self.validator.iter_errors(payload).take(MAX_VIOLATIONS) {
            violations.add(&path(error.instance_path().as_str()), &error.masked_with("it").to_string());
        }
    }
}

#[cfg(not(feature = "json-schema"))]
impl JsonSchema {
    /// Refuses the schema.
    ///
    /// # Errors
    /// Always: this binary cannot validate with it.
    pub(super) fn compile(_: &Value) -> Result<JsonSchema, String> {
        Err("this binary has no support for JSON Schema; build it with the cargo feature json-schema".to_owned())
    }

    /// There is no schema.
    pub(super) fn validate(&self, _: &Value, _: &mut Violations) {
        match self.never {}
    }
}

/// Returns a JSON Pointer (RFC 6901) in the form of the other violations, such as `requests[3].id`.
#[cfg(feature = "json-schema")]
fn path(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/").replace("~0", "~");
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            path.extend(["[", part.as_str(), "]"]);
        } else {
            path.extend([if path.is_empty() { "" } else { "." }, part.as_str()]);
        }
    }
    path
}

#[cfg(test)]
#[cfg(feature = "json-schema")]
mod tests {
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    fn violations(schema: &Value, payload: &Value) -> Vec<(String, String)> {
        let mut violations = Violations::default();
        JsonSchema::compile(schema).unwrap().validate(payload, &mut violations);
        violations.listed().iter().map(|violation| (violation.path.clone(), violation.message.clone())).collect()
    }

    #[test]
    fn every_violation_has_its_path_and_no_value_of_the_payload() {
        let schema = json!({
            "type": "object", "required": ["id"], "additionalProperties": false,
            "properties": {
                "id": {"type": "string", "format": "uuid"},
                "a/b": {"type": "array", "items": {"$ref": "#/$defs/point"}},
                "n": {"maximum": 10},
            },
            "$defs": {"point": {"properties": {"x": {"type": "number"}}}},
        });
        let payload = json!({"id": "secret-1", "a/b": [{"x": 1}, {"x": "secret-2"}], "n": 11, "other": "secret-3"});
        let found = violations(&schema, &payload);
        let mut paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["", "a/b[1].x", "id", "n"]);
        assert!(found.iter().all(|(_, message)| !message.contains("secret") && !message.is_empty()), "{found:?}");
        assert_eq!(violations(&schema, &json!({"id": "7a3b1c1e-0b5e-4b44-8f7c-1d2e3f405162"})), []);
        assert_eq!(violations(&schema, &json!({})).len(), 1);
    }

    #[test]
    fn schema_that_loads_something_or_needs_backtracking_is_refused() {
        for (schema, expected) in [
            (json!({"$ref": "http://127.0.0.1:1/schema"}), "127.0.0.1"),
            (json!({"properties": {"a": {"$ref": "file:///etc/passwd"}}}), "file:///etc/passwd"),
            (json!({"$ref": "other.json"}), "other.json"),
            (json!({"$ref": "#/$defs/absent"}), "absent"),
            (json!({"$schema": "http://127.0.0.1:1/meta"}), "127.0.0.1"),
            (json!({"pattern": "(?=a)b"}), "pattern"),
            (json!({"pattern": r"(a)\1"}), "pattern"),
            (json!({"pattern": "("}), "pattern"),
            (json!({"pattern": "(((a{1000}){1000}){1000})"}), "pattern"),
            (json!({"type": "nothing"}), "type"),
            (json!({"required": "id"}), "required"),
            (json!("text"), ""),
        ] {
            let error = JsonSchema::compile(&schema).unwrap_err();
            assert!(error.contains(expected) && !error.is_empty(), "{schema}: {error}");
        }
    }

    /// The crate would follow a chain of references without end otherwise.
    #[test]
    fn recursive_schemas_end() {
        let list = json!({"properties": {"next": {"$ref": "#"}}, "required": ["value"]});
        let mut payload = json!({"value": 1});
        for _ in 0..100 {
            payload = json!({"value": 1, "next": payload});
        }
        assert_eq!(violations(&list, &payload), []);
        for schema in [json!({"$ref": "#"}), json!({"allOf": [{"$ref": "#"}]}), json!({"$dynamicRef": "#"})] {
            // A schema that leads to itself is refused, or accepts everything: it must not run away.
            if let Ok(schema) = JsonSchema::compile(&schema) {
                schema.validate(&payload, &mut Violations::default());
            }
        }
    }

    #[test]
    fn time_of_a_pattern_is_linear() {
        let schema = json!({"pattern": "^(a+)+$"});
        let started = Instant::now();
        assert_eq!(violations(&schema, &json!(format!("{}!", "a".repeat(60_000)))).len(), 1);
        // With backtracking it takes longer than the age of the universe.
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn number_of_violations_is_bounded() {
        let payload = json!(vec![json!("x"); 1000]);
        assert_eq!(violations(&json!({"items": {"type": "number"}}), &payload).len(), MAX_VIOLATIONS);
    }
}
