//! Schema packs: which fields a payload of an entity must have, and its JSON Schema (docs/protocol.md#schema-pack).

use std::collections::BTreeMap;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::Value;
use thiserror::Error;

use super::{json_schema::JsonSchema, violation::Violations};

/// Maximum size of a schema pack in bytes: 1 MiB.
pub const MAX_BYTES: usize = 1 << 20;
/// Maximum number of fields of all entities of a pack. Each payload is searched for the required ones of its entity.
const MAX_FIELDS: usize = 10_000;

/// The required fields of the embedded defaults.
const DEFAULTS: [(&str, &[&str]); 6] = [
    ("domain", &["name"]),
    ("mission", &["name"]),
    ("task", &["mission_id", "title"]),
    ("doc", &["mission_id", "title", "body"]),
    ("artifact", &["mission_id", "name", "uri"]),
    ("telemetry", &["metrics"]),
];

/// The entities and what their payloads must have.
#[derive(Debug)]
pub struct SchemaPack {
    /// Name and version, for the log.
    title: String,
    entities: BTreeMap<String, Entity>,
}

/// What the payloads of an entity must have.
#[derive(Debug, Default)]
struct Entity {
    required: Vec<String>,
    schema: Option<JsonSchema>,
}

/// Why a schema pack cannot be used.
#[derive(Debug, Error)]
pub enum PackError {
    /// More than 1 MiB.
    #[error("it has {0} bytes; the maximum is {MAX_BYTES} bytes (1 MiB)")]
    TooLong(usize),
    /// No JSON of the documented shape.
    #[error(
        "{0}; expected {{\"version\":…,\"name\":…,\"entities\":{{\"<entity>\":{{\"required\":[…],\"optional\":[…],\"schema\":{{…}}}}}}}}"
    )]
    Shape(#[from] serde_json::Error),
    /// There is no entity.
    #[error("it has no entities")]
    Empty,
    /// Too many fields.
    #[error("it has more than {MAX_FIELDS} fields")]
    TooManyFields,
    /// Something else than the documented shape that is JSON all the same; the text says what.
    #[error("{0}")]
    Content(String),
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PackFile {
    version: Version,
    name: String,
    #[serde(default, rename = "description")]
    _description: Option<String>,
    /// For each entity `required`, `optional` and `schema`.
    entities: Unique<Unique<Value>>,
}

/// `"1.0"` or `1`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Version {
    Text(String),
    Number(serde_json::Number),
}

/// The members of an object, each name once.
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<T>, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if members.insert(name.clone(), value).is_some() {
                        return Err(A::Error::custom(format_args!("'{name}' is there more than once")));
                    }
                }
                Ok(Unique(members))
            }
        }
        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

impl Default for SchemaPack {
    fn default() -> Self {
        let owned = |fields: &[&str]| fields.iter().map(|field| (*field).to_owned()).collect();
        let entity = |fields| Entity { required: owned(fields), schema: None };
        let entities = DEFAULTS.into_iter().map(|(name, fields)| (name.to_owned(), entity(fields))).collect();
        SchemaPack { title: "embedded defaults".to_owned(), entities }
    }
}

impl SchemaPack {
    /// Parses a schema pack. It replaces the embedded defaults completely.
    ///
    /// # Errors
    /// [`PackError`] says what is wrong and what is accepted.
    pub fn parse(file: &[u8]) -> Result<SchemaPack, PackError> {
        if file.len() > MAX_BYTES {
            return Err(PackError::TooLong(file.len()));
        }
        // serde reads a list as an object whose keys are left out.
        if file.trim_ascii_start().first() == Some(&b'[') {
            return Err(PackError::Content("it is a list".to_owned()));
        }
        let PackFile { version, name, entities: Unique(members), .. } = serde_json::from_slice(file)?;
        if members.is_empty() {
            return Err(PackError::Empty);
        }
        let (mut entities, mut fields) = (BTreeMap::new(), 0);
        for (entity, Unique(mut members)) in members {
            let mut list = |key| members.remove(key).map_or(Ok(Vec::new()), serde_json::from_value::<Vec<String>>);
            let (required, optional) = (list("required")?, list("optional")?);
            let schema = members.remove("schema");
            fields += required.len() + optional.len();
            if fields > MAX_FIELDS {
                return Err(PackError::TooManyFields);
            }
            if let Some(key) = members.keys().next() {
                return Err(PackError::Content(format!(
                    "the entity '{entity}' has the key '{key}'; accepted: required, optional, schema"
                )));
            }
            if let Some(field) = required.iter().find(|field| optional.contains(field)) {
                return Err(PackError::Content(format!("the field '{field}' of '{entity}' is required and optional")));
            }
            if entity.trim().is_empty() || required.iter().chain(&optional).any(|field| field.trim().is_empty()) {
                return Err(PackError::Content(format!("the entity '{entity}' has a blank name, or a field with one")));
            }
            let unusable = |reason| PackError::Content(format!("the schema of '{entity}' cannot be used: {reason}"));
            let schema = schema.as_ref().map(JsonSchema::compile).transpose().map_err(unusable)?;
            if entities.insert(entity.to_lowercase(), Entity { required, schema }).is_some() {
                return Err(PackError::Content(format!(
                    "the entity '{}' is there more than once",
                    entity.to_lowercase()
                )));
            }
        }
        let version = match version {
            Version::Text(text) => text,
            Version::Number(number) => number.to_string(),
        };
        Ok(SchemaPack { title: format!("{name} {version}"), entities })
    }

    /// Returns name and version, or `embedded defaults`.
    #[must_use]
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Returns the number of entities.
    #[must_use]
    pub fn entities(&self) -> usize {
        self.entities.len()
    }

    /// Validates a payload. Its entity is `entity`, or the one that it names itself. A payload of an unknown entity, or of
    /// none, is valid.
    #[must_use]
    pub fn validate(&self, entity: Option<&str>, payload: &Value) -> Violations {
        let mut violations = Violations::default();
        let entity = entity.map(str::to_owned).or_else(|| named_entity(payload));
        let Some((entity, Entity { required, schema })) =
            entity.and_then(|entity| self.entities.get_key_value(&entity))
        else {
            return violations;
        };
        for field in required {
            let found = match payload.get(field) {
                None => "is absent",
                Some(Value::Null) => "is null",
                Some(Value::String(text)) if text.trim().is_empty() => "is blank",
                Some(_) => continue,
            };
            violations.add(field, &format!("the schema pack requires it for '{entity}'; it {found}"));
        }
        if let Some(schema) = schema {
            schema.validate(payload, &mut violations);
        }
        violations
    }
}

/// Returns the entity that a payload names, in lower case.
fn named_entity(payload: &Value) -> Option<String> {
    let named = |key| payload.get(key).and_then(Value::as_str);
    named("entity_type").or_else(|| named("type")).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(pack: &SchemaPack, entity: Option<&str>, payload: &Value) -> Vec<String> {
        pack.validate(entity, payload).listed().iter().map(|violation| violation.path.clone()).collect()
    }

    #[test]
    fn embedded_defaults_require_the_documented_fields() {
        let pack = SchemaPack::default();
        for (payload, missing) in [
            (json!({"type": "domain"}), &["name"][..]),
            (json!({"type": "Mission", "name": "m"}), &[]),
            (json!({"type": "TASK", "title": "t"}), &["mission_id"]),
            (json!({"entity_type": "doc"}), &["mission_id", "title", "body"]),
            (json!({"entity_type": "artifact", "mission_id": 1, "name": "n", "uri": null}), &["uri"]),
            (json!({"type": "telemetry"}), &["metrics"]),
            (json!({"entity_type": "domain", "type": "unknown"}), &["name"]),
            (json!({"entity_type": "unknown", "type": "domain"}), &[]),
            (json!({"entity_type": 7, "type": "domain"}), &["name"]),
            (json!({"type": "domain", "name": ""}), &["name"]),
            (json!({"type": "domain", "name": " \t\n"}), &["name"]),
            (json!({"type": "domain", "name": 0}), &[]),
            (json!({"type": "domain", "name": false}), &[]),
            (json!({"type": "domain", "name": []}), &[]),
            (json!({"type": "other"}), &[]),
            (json!({}), &[]),
            (json!([1]), &[]),
            (json!(null), &[]),
            (json!("domain"), &[]),
        ] {
            assert_eq!(paths(&pack, None, &payload), missing, "{payload}");
        }
        assert_eq!(
            paths(&pack, Some("telemetry"), &json!({"type": "domain"})),
            ["metrics"],
            "the entity of the endpoint"
        );
    }

    #[test]
    fn pack_replaces_the_defaults() {
        let text = r#"{"version":2,"name":"ours","description":"d",
                       "entities":{"Order":{"required":["id"],"optional":["note"]},"empty":{}}}"#;
        let pack = SchemaPack::parse(text.as_bytes()).unwrap();
        assert_eq!((pack.title(), pack.entities()), ("ours 2", 2));
        assert_eq!(paths(&pack, None, &json!({"type": "ORDER"})), ["id"]);
        assert_eq!(paths(&pack, None, &json!({"type": "domain"})), [""; 0], "no longer an entity");
    }

    #[cfg(feature = "json-schema")]
    #[test]
    fn payload_must_have_the_fields_and_match_the_schema() {
        let text = r#"{"version":1,"name":"p","entities":{"order":{"required":["id"],
                       "schema":{"properties":{"id":{"type":"string"},"lines":{"items":{"required":["sku"]}}}}}}}"#;
        let pack = SchemaPack::parse(text.as_bytes()).unwrap();
        let payload = json!({"type": "order", "id": " ", "lines": [{"sku": 1}, {}]});
        assert_eq!(paths(&pack, None, &payload), ["id", "lines[1]"]);
        assert_eq!(paths(&pack, None, &json!({"type": "order", "id": "7"})), [""; 0]);
        assert_eq!(paths(&pack, None, &json!({"type": "other", "id": 7})), [""; 0]);
    }

    #[test]
    fn unusable_packs_are_errors_that_say_what_is_accepted() {
        let with = |entities: &str| format!(r#"{{"version":"1","name":"p","entities":{entities}}}"#);
        let recursive = format!("{}1{}", r#"{"entities":"#.repeat(200), "}".repeat(200));
        let many = json!({"a": {"required": vec!["x"; MAX_FIELDS + 1]}}).to_string();
        for (pack, expected) in [
            (String::new(), "expected {\"version\""),
            ("{".into(), "expected {\"version\""),
            ("null".into(), "expected {\"version\""),
            ("[]".into(), "it is a list"),
            (r#"["1","p",null,{}]"#.into(), "it is a list"),
            ("version: 1".into(), "expected {\"version\""),
            (r#"{"version":"1","entities":{}}"#.into(), "missing field `name`"),
            (r#"{"name":"p","entities":{}}"#.into(), "missing field `version`"),
            (r#"{"version":"1","name":"p"}"#.into(), "missing field `entities`"),
            (with("{}"), "no entities"),
            (with("[]"), "expected an object"),
            (with(r#"{"a":[]}"#), "invalid type"),
            (with(r#"{"a":{"required":"x"}}"#), "invalid type"),
            (with(r#"{"a":{"required":[1]}}"#), "invalid type"),
            (with(r#"{"a":{"requires":["x"]}}"#), "accepted: required, optional, schema"),
            (with(r#"{"a":{},"a":{}}"#), "more than once"),
            (with(r#"{"a":{},"A":{}}"#), "more than once"),
            (with(r#"{" ":{}}"#), "blank name"),
            (with(r#"{"a":{"required":[""]}}"#), "blank name"),
            (with(r#"{"a":{"required":["x"],"optional":["x"]}}"#), "required and optional"),
            (with(&many), "more than 10000 fields"),
            (recursive, "unknown field `entities`, expected"),
            (
                r#"{"$schema":"https://json-schema.org/draft/2020-12/schema","$ref":"http://127.0.0.1:1/x"}"#.into(),
                "unknown field `$schema`",
            ),
            (
                r#"{"version":"1","name":"p","entities":{"a":{"$ref":"file:///etc/passwd"}}}"#.into(),
                "accepted: required",
            ),
            (r#"{"version":"1","name":"p","entities":{"a":{"pattern":"(a+)+$"}}}"#.into(), "accepted: required"),
            (with(r#"{"a":{"schema":{"$ref":"http://127.0.0.1:1/x"}}}"#), "the schema of 'a' cannot be used"),
            (with(r#"{"a":{"schema":{"pattern":"(?=a)"}}}"#), "the schema of 'a' cannot be used"),
            (with(r#"{"a":{"schema":7}}"#), "the schema of 'a' cannot be used"),
            (" ".repeat(MAX_BYTES + 1), "the maximum is 1048576 bytes"),
        ] {
            let error = SchemaPack::parse(pack.as_bytes()).unwrap_err().to_string();
            let short: String = pack.chars().take(100).collect();
            let is_named =
                error.contains(expected) || (short.starts_with(r#"{"entities":{"entities"#) && !error.is_empty());
            assert!(is_named, "{short}: {error}");
        }
        assert!(SchemaPack::parse(b"\xff\xfe").is_err());
    }
}
