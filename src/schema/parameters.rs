//! The query parameters of all endpoints, as `docs/protocol.md#query-parameters` lists them.

use serde_json::{Map, Value, json};

/// Name, schema and meaning of each query parameter.
fn query() -> [(&'static str, Value, &'static str); 8] {
    let text = || json!({ "type": "string" });
    [
        ("types", text(), "Comma-separated list of families or exact types of events"),
        ("params", text(), "A filter as JSON: `{\"instances\":{…},\"claims\":{…}}`"),
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
pub(super) fn components() -> Map<String, Value> {
    let component = |(name, schema, description): (&str, Value, &str)| {
        let parameter = json!({ "name": name, "in": "query", "description": description, "schema": schema });
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
