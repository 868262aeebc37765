//! Rust types → JSON Schema 2020-12.
//!
//! Guarantees: an object with named keys has no further keys, and a key that can be absent is never null.

use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value, json};

/// The dialect of the schemas.
pub(super) const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Where OpenAPI and AsyncAPI documents hold the schemas that others refer to.
const COMPONENTS: &str = "/components/schemas";

/// Returns a generator whose definitions are in `$defs` of the schema.
pub(super) fn for_schema_file() -> SchemaGenerator {
    settings().into_generator()
}

/// Returns a generator whose definitions are in the components of a document.
pub(super) fn for_document() -> SchemaGenerator {
    settings().with(|settings| settings.definitions_path = COMPONENTS.into()).into_generator()
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.meta_schema = None;
        settings.transforms.clear();
    })
}

/// Returns the definitions that the generator has made, each exact.
pub(super) fn definitions(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let mut definitions = generator.take_definitions(false);
    for definition in definitions.values_mut() {
        if let Ok(schema) = <&mut Schema>::try_from(definition) {
            Exact.transform(schema);
        }
    }
    definitions
}

/// Returns the exact schema of `T`.
pub(super) fn exact<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    Exact.transform(&mut schema);
    schema
}

/// Makes an object with named keys exact: it has no further keys, and a key of type `Option` can be absent but not null.
#[derive(Clone, Debug)]
struct Exact;

impl Transform for Exact {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        let Some(Value::Object(properties)) = object.get_mut("properties") else { return };
        let optional: Vec<String> =
            properties.iter_mut().filter_map(|(key, property)| without_null(property).then(|| key.clone())).collect();
        if let Some(Value::Array(required)) = object.get_mut("required") {
            required.retain(|key| !optional.iter().any(|optional| key == optional));
        }
        object.insert("additionalProperties".into(), json!(false));
    }
}

/// Removes null from what a property can be. Returns whether null was there. schemars writes `Option` as an array of types
/// (with null among the values, if they are listed), or as `anyOf` with null.
fn without_null(property: &mut Value) -> bool {
    let Some(property) = property.as_object_mut() else { return false };
    if let Some(Value::Array(types)) = property.get("type")
        && let [only, null] = &types[..]
        && null == "null"
    {
        let only = only.clone();
        property.insert("type".into(), only);
        if let Some(Value::Array(values)) = property.get_mut("enum") {
            values.retain(|value| !value.is_null());
            if let [only] = &values[..] {
                let only = only.clone();
                property.remove("enum");
                property.insert("const".into(), only);
            }
        }
        return true;
    }
    if let Some(Value::Array(forms)) = property.get("anyOf")
        && let [Value::Object(only), null] = &forms[..]
        && null["type"] == "null"
    {
        let only = only.clone();
        property.remove("anyOf");
        property.extend(only);
        return true;
    }
    false
}

/// A type whose schema has no place in Rust: its definition, and the schema that stands in its place.
macro_rules! inline_type {
    ($(#[$doc:meta])* $name:ident, $schema:tt) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}

inline_type! {
    /// A time as RFC 3339.
    Time, { "type": "string", "format": "date-time" }
}
inline_type! {
    /// A cursor: opaque, at most 255 characters (docs/protocol.md#what-clients-must-do).
    Cursor, { "type": "string", "minLength": 1, "maxLength": 255 }
}
inline_type! {
    /// A flag that is omitted instead of false.
    True, { "type": "boolean", "const": true }
}
inline_type! {
    /// An integer that is null instead of absent.
    IntegerOrNull, { "oneOf": [{ "type": "integer", "minimum": 0 }, { "type": "null" }] }
}
inline_type! {
    /// An integer that every client can represent: from 0 to 2^53 - 1.
    Count, { "type": "integer", "minimum": 0, "maximum": 9_007_199_254_740_991_u64 }
}
inline_type! {
    /// A number of at least 0 that is null instead of absent.
    AmountOrNull, { "oneOf": [{ "type": "number", "minimum": 0 }, { "type": "null" }] }
}
inline_type! {
    /// A text of at most 16 characters that is null instead of absent.
    RegionOrNull, { "oneOf": [{ "type": "string", "maxLength": 16 }, { "type": "null" }] }
}
inline_type! {
    /// An object with any keys.
    AnyObject, { "type": "object" }
}
inline_type! {
    /// Any JSON value.
    AnyValue, {}
}
