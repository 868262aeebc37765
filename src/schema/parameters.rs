//! The query parameters of all endpoints, as `docs/protocol.md#query-parameters` lists them.

use std::collections::BTreeMap;

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// A filter: the objects that the client asks for. The keys are combined with AND.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "the types describe the parameter that `event::projection` parses")]
struct Params {
    /// The instances.
    instances: Option<InstanceFilter>,
    /// The claims.
    claims: Option<ClaimFilter>,
}

/// Equality filters on instances.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "as for `Params`")]
struct InstanceFilter {
    name: Option<String>,
    phase: Option<String>,
    workload_ref: Option<String>,
    tenant_id: Option<String>,
    pool_status: Option<String>,
    /// Label → value. Null means that the label exists, with any value.
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// Equality filters on claims.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "as for `Params`")]
struct ClaimFilter {
    name: Option<String>,
    phase: Option<String>,
    tenant_id: Option<String>,
    workload_ref: Option<String>,
    source: Option<String>,
    /// Label → value. Null means that the label exists, with any value.
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// Name, schema and meaning of each query parameter.
fn query() -> [(&'static str, Value, &'static str); 8] {
    let text = || json!({ "type": "string" });
    [
        ("types", text(), "Comma-separated list of families or exact types of events"),
        ("params", text(), "A filter as JSON, URL-encoded, of at most 8 KiB"),
        ("connectionId", text(), "The `id` of `/api/v1/connections`"),
        (
            "snapshot",
            json!({ "type": "string", "enum": ["state", "none"] }),
            "Whether the stream starts with the current state",
        ),
        ("lastEventId", text(), "The cursor to resume after. The header `Last-Event-ID` has precedence"),
        ("token", text(), "A stream ticket"),
        ("rstream.token", text(), "A stream ticket"),
        ("verbose", text(), "Adds details. The value does not matter"),
    ]
}

/// Returns all query parameters as components of an OpenAPI document.
pub(super) fn components(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let component = |(name, schema, description): (&str, Value, &str)| {
        let mut parameter = json!({ "name": name, "in": "query", "description": description });
        if name == "params" {
            let filter = generator.subschema_for::<Params>();
            parameter["content"] = json!({ "application/json": { "schema": filter } });
        } else {
            parameter["schema"] = schema;
        }
        (name.to_owned(), parameter)
    };
    query().into_iter().map(component).collect()
}

/// Returns references to these components.
pub(super) fn references(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({ "$ref": format!("#/components/parameters/{name}") })).collect()
}

/// Returns these query parameters as the schema of an object, for an AsyncAPI binding.
pub(super) fn object(names: &[&str]) -> Value {
    let listed = query().into_iter().filter(|(name, _, _)| names.contains(name));
    let described = listed.map(|(name, mut schema, description)| {
        schema["description"] = json!(description);
        (name.to_owned(), schema)
    });
    json!({ "type": "object", "properties": described.collect::<Map<String, Value>>() })
}

/// Returns the header with which a client resumes.
pub(super) fn last_event_id() -> Value {
    json!({
        "name": "Last-Event-ID",
        "in": "header",
        "description": "The cursor to resume after",
        "schema": { "type": "string" },
    })
}
