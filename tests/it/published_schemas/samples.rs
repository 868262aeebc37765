//! Values that match a schema, and changes of them that do not.

use serde_json::{Map, Value, json};

/// Returns a value that matches `schema`, which can refer to parts of `root`: with all keys, or with the required keys only.
pub(super) fn sample(root: &Value, schema: &Value, all_keys: bool) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return sample(root, resolve(root, reference), all_keys);
    }
    for forms in [&schema["anyOf"], &schema["oneOf"]] {
        if let Some(first) = forms.get(0) {
            return sample(root, first, all_keys);
        }
    }
    if let Some(value) = schema.get("const").or_else(|| schema["enum"].get(0)) {
        return value.clone();
    }
    match schema["type"].get(0).unwrap_or(&schema["type"]).as_str().unwrap_or_default() {
        "object" => sample_object(root, schema, all_keys).into(),
        "array" => json!([sample(root, &schema["items"], all_keys)]),
        "string" if schema["format"] == "date-time" => json!("2026-01-02T03:04:05.678Z"),
        "string" => json!("text"),
        "integer" => json!(1),
        "number" => json!(1.5),
        "boolean" => json!(true),
        // Any value.
        "" => json!("any"),
        other => panic!("a type without a sample: {other} in {schema}"),
    }
}

fn sample_object(root: &Value, schema: &Value, all_keys: bool) -> Map<String, Value> {
    let Some(properties) = schema["properties"].as_object() else {
        return Map::from_iter([("key".to_owned(), sample(root, &schema["additionalProperties"], all_keys))]);
    };
    let is_required =
        |key: &str| schema["required"].as_array().is_some_and(|required| required.iter().any(|r| r == key));
    let used = properties.iter().filter(|(key, _)| all_keys || is_required(key));
    used.map(|(key, property)| (key.clone(), sample(root, property, all_keys))).collect()
}

pub(super) fn resolve<'a>(root: &'a Value, reference: &str) -> &'a Value {
    root.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("nothing is at {reference}"))
}

/// Returns every change of `value` that `schema` must refuse, with a text that says what was changed: a further key in each
/// object, a missing key where it is required, and a value of each wrong type.
pub(super) fn wrong(root: &Value, schema: &Value, value: &Value) -> Vec<(String, Value)> {
    let mut changes = Vec::new();
    collect(root, schema, value, "", &mut |what, changed| changes.push((what, changed)));
    changes
}

fn collect(root: &Value, schema: &Value, value: &Value, place: &str, emit: &mut dyn FnMut(String, Value)) {
    if let Some(reference) = schema["$ref"].as_str() {
        return collect(root, resolve(root, reference), value, place, emit);
    }
    let is_limited = ["type", "anyOf", "oneOf", "const", "enum"].iter().any(|keyword| !schema[*keyword].is_null());
    if !is_limited {
        return;
    }
    let types = schema["type"].as_array().map_or(&[][..], Vec::as_slice);
    let can_be_null = types.contains(&json!("null"))
        || schema["oneOf"].as_array().is_some_and(|forms| forms.contains(&json!({"type": "null"})));
    let is_number = schema["type"] == "number"
        || schema["oneOf"].as_array().is_some_and(|forms| forms.iter().any(|form| form["type"] == "number"));
    let is_any_object =
        schema["type"] == "object" && schema["properties"].is_null() && schema["additionalProperties"].is_null();
    for wrong in [json!(null), json!(7.5), json!({"wrong": {}}), json!([[]])] {
        let is_right = match &wrong {
            Value::Null => can_be_null,
            Value::Number(_) => is_number,
            Value::Object(_) => is_any_object,
            _ => false,
        };
        if !is_right {
            emit(format!("{place}: {wrong}"), wrong);
        }
    }
    match value {
        Value::Object(members) => {
            let is_map = schema["properties"].is_null();
            if !is_map {
                let mut further = members.clone();
                further.insert("furtherKey".into(), json!("text"));
                emit(format!("{place}: a further key"), further.into());
            }
            for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let mut missing = members.clone();
                missing.remove(key);
                emit(format!("{place}: without {key}"), missing.into());
            }
            for (key, member) in members {
                let of_key = if is_map { &schema["additionalProperties"] } else { &schema["properties"][key] };
                collect(root, of_key, member, &format!("{place}/{key}"), &mut |what, changed| {
                    let mut members = members.clone();
                    members.insert(key.clone(), changed);
                    emit(what, members.into());
                });
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                collect(root, &schema["items"], item, &format!("{place}/{index}"), &mut |what, changed| {
                    let mut items = items.clone();
                    items[index] = changed;
                    emit(what, items.into());
                });
            }
        }
        Value::String(_) if schema.get("const").or(schema.get("enum")).or(schema.get("format")).is_some() => {
            emit(format!("{place}: another text"), json!("another text"));
        }
        Value::Bool(_) => emit(format!("{place}: false"), json!(false)),
        Value::Number(_) => emit(format!("{place}: negative"), json!(-1)),
        Value::Null | Value::String(_) => {}
    }
}
