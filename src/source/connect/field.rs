//! Fields of a kubeconfig: their types, their values, and the error that names one of them.
//!
//! Guarantees: an error names the entry and the field and contains no value, because a value may be a secret. A missing
//! field, null, and an empty value are the same, as in client-go.

use std::path::Path;

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};
use thiserror::Error;

/// Go's `base64.StdEncoding`: padding is required, and unused bits of the last character are ignored.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A field of the kubeconfig, or of the Pod's service account, that cannot be used. The text names the field and contains no
/// value of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct FieldError {
    place: String,
    problem: String,
}

impl FieldError {
    pub(super) fn new(place: impl Into<String>, problem: impl Into<String>) -> FieldError {
        FieldError { place: place.into(), problem: problem.into() }
    }
}

/// The type of a value.
#[derive(Debug)]
pub(super) enum Shape {
    Anything,
    Text,
    Flag,
    /// Bytes in base64. Line breaks are allowed everywhere.
    Base64,
    List(&'static Shape),
    /// A map with any keys.
    Values(&'static Shape),
    Object(&'static [(&'static str, Shape)]),
    /// A list of `{name, <field>}` with different names.
    Named(&'static str, &'static Shape),
}

impl Shape {
    /// Checks a value and everything below it. Unknown fields are ignored.
    ///
    /// # Errors
    /// The first value of another type, and the first repeated name.
    pub(super) fn check(&self, value: &Value, place: &str) -> Result<(), FieldError> {
        let wrong = |expected: &str| Err(FieldError::new(place, format!("expected {expected}, found {}", kind(value))));
        match (self, value) {
            (Shape::Anything, _)
            | (_, Value::Null)
            | (Shape::Text, Value::String(_))
            | (Shape::Flag, Value::Bool(_)) => Ok(()),
            (Shape::Text, Value::Number(_) | Value::Bool(_)) => {
                let written = "which YAML writes in quotes when it looks like a number or a Boolean";
                wrong(&format!("a text, {written}"))
            }
            (Shape::Text, _) => wrong("a text"),
            (Shape::Flag, _) => wrong("true or false, without quotes"),
            (Shape::Base64, Value::String(text)) => {
                decode_base64(text).map(drop).map_err(|problem| FieldError::new(place, problem))
            }
            (Shape::Base64, _) => wrong("base64"),
            (Shape::List(item), Value::Array(items)) => items.iter().try_for_each(|value| item.check(value, place)),
            (Shape::List(_), _) => wrong("a list"),
            (Shape::Values(item), Value::Object(fields)) => {
                fields.values().try_for_each(|value| item.check(value, place))
            }
            (Shape::Object(shapes), Value::Object(fields)) => shapes.iter().try_for_each(|(field, shape)| {
                let Some(value) = fields.get(*field) else { return Ok(()) };
                match shape {
                    Shape::Named(..) => shape.check(value, place),
                    _ => shape.check(value, &join(place, field)),
                }
            }),
            (Shape::Values(_) | Shape::Object(_), _) => wrong("a mapping"),
            (Shape::Named(field, shape), Value::Array(items)) => check_named(items, field, shape, place),
            (Shape::Named(field, _), _) => {
                FieldError::new(join(place, &format!("{field}s")), "expected a list").into_err()
            }
        }
    }
}

fn check_named(items: &[Value], field: &str, shape: &Shape, place: &str) -> Result<(), FieldError> {
    let mut names = Vec::with_capacity(items.len());
    for item in items {
        let list = join(place, &format!("{field}s"));
        Shape::Object(&[("name", Shape::Text)]).check(item, &list)?;
        let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
        let place = join(place, &format!("{field} `{}`", shown_name(name)));
        if names.contains(&name) {
            return FieldError::new(place, "the name occurs twice; names must be different").into_err();
        }
        names.push(name);
        shape.check(item.get(field).unwrap_or(&Value::Null), &place)?;
    }
    Ok(())
}

impl FieldError {
    fn into_err<T>(self) -> Result<T, FieldError> {
        Err(self)
    }
}

/// Maximum characters of a name in an error.
const SHOWN_NAME: usize = 128;

/// Returns a name for errors: its start, without white space. A line with wrong indentation can become a part of the name
/// before it, and can contain a secret.
pub(super) fn shown_name(name: &str) -> String {
    let word = name.split(|c: char| c.is_whitespace() || c.is_control()).next().unwrap_or_default();
    let shown: String = word.chars().take(SHOWN_NAME).collect();
    if shown.len() == name.len() { shown } else { shown + "…" }
}

fn join(place: &str, field: &str) -> String {
    if place.is_empty() { field.to_owned() } else { format!("{place}: {field}") }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a Boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let joined: Vec<u8> = text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    BASE64.decode(&joined).map_err(|_| {
        let hint = match joined.iter().any(u8::is_ascii_whitespace) {
            true => "it contains spaces; write several lines after `|`, not after `>`, and not without a mark",
            false => "encode the file with `base64`",
        };
        format!("the value is not base64: {hint}")
    })
}

/// The fields of one entry, such as a cluster, after [`Shape::check`].
#[derive(Clone, Default)]
pub(super) struct Fields {
    place: String,
    values: Map<String, Value>,
}

impl Fields {
    /// `place` names the entry in errors, such as "cluster `x`".
    pub(super) fn new(place: String, value: Option<&Value>) -> Fields {
        Fields { place, values: value.and_then(Value::as_object).cloned().unwrap_or_default() }
    }

    /// Returns a text, which is empty if the field is missing.
    pub(super) fn text(&self, field: &str) -> &str {
        self.values.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns whether a text or a base64 field has a value.
    pub(super) fn has(&self, field: &str) -> bool {
        !self.text(field).is_empty()
    }

    pub(super) fn flag(&self, field: &str) -> bool {
        self.values.get(field).and_then(Value::as_bool).unwrap_or_default()
    }

    /// Returns the bytes of a base64 field. They are empty if the field is missing.
    pub(super) fn bytes(&self, field: &str) -> Vec<u8> {
        // `Shape::check` has decoded it once.
        decode_base64(self.text(field)).unwrap_or_default()
    }

    pub(super) fn texts(&self, field: &str) -> Vec<&str> {
        texts(self.values.get(field))
    }

    /// Returns the entries of a map whose values are lists of texts.
    pub(super) fn text_lists(&self, field: &str) -> Vec<(&str, Vec<&str>)> {
        let fields = self.values.get(field).and_then(Value::as_object);
        fields.into_iter().flatten().map(|(key, value)| (key.as_str(), texts(Some(value)))).collect()
    }

    /// Returns a mapping, or `None` if the field is missing.
    pub(super) fn object(&self, field: &str) -> Option<Fields> {
        let value = self.values.get(field).filter(|value| value.is_object())?;
        Some(Fields::new(join(&self.place, field), Some(value)))
    }

    /// Returns the mappings of a list.
    pub(super) fn objects(&self, field: &str) -> Vec<Fields> {
        let items = self.values.get(field).and_then(Value::as_array);
        items.into_iter().flatten().map(|item| Fields::new(join(&self.place, field), Some(item))).collect()
    }

    pub(super) fn value(&self, field: &str) -> Option<&Value> {
        self.values.get(field)
    }

    /// Makes a relative path absolute.
    pub(super) fn resolve(&mut self, field: &str, folder: &Path) {
        if self.has(field) {
            // A path from YAML and the path of a file that exists are mostly UTF-8. Other bytes are replaced, and the error
            // then names a file that does not exist.
            let path = folder.join(self.text(field)).to_string_lossy().into_owned();
            self.values.insert(field.to_owned(), path.into());
        }
    }

    /// Replaces a mapping.
    pub(super) fn set_object(&mut self, field: &str, fields: Fields) {
        self.values.insert(field.to_owned(), Value::Object(fields.values));
    }

    /// Returns the name of a field in errors.
    pub(super) fn place(&self, field: &str) -> String {
        join(&self.place, field)
    }

    /// Returns the name of the entry in errors.
    pub(super) fn entry(&self) -> &str {
        &self.place
    }

    pub(super) fn error(&self, field: &str, problem: impl Into<String>) -> FieldError {
        FieldError::new(self.place(field), problem)
    }
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    let items = value.and_then(Value::as_array);
    items.into_iter().flatten().map(|item| item.as_str().unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shown_name_ends_before_white_space() {
        let long = "x".repeat(200);
        for (name, expected) in [
            ("", ""),
            ("arn:aws:eks:eu:1:cluster/a", "arn:aws:eks:eu:1:cluster/a"),
            ("a\ntoken: b", "a…"),
            ("a token: b", "a…"),
            ("ä\u{0}", "ä…"),
            (&long, &format!("{}…", &long[..128])),
        ] {
            assert_eq!(shown_name(name), expected);
        }
    }

    #[test]
    fn base64_is_decoded_as_go_decodes_it() {
        for (text, expected) in [
            ("", Some("")),
            ("YWJj", Some("abc")),
            ("YW\nJj\n", Some("abc")),
            ("\r\nYWJj\r\n", Some("abc")),
            ("YQ=\n=", Some("a")),
            // The last character of "YR==" has bits that are not used.
            ("YR==", Some("a")),
            ("YQ", None),
            ("YQ=", None),
            ("YW Jj", None),
            ("YWJj ", None),
            ("YW\tJj", None),
            ("_-__", None),
            ("YWJj=", None),
            ("YQ==YQ==", None),
        ] {
            assert_eq!(decode_base64(text).ok().as_deref(), expected.map(str::as_bytes), "{text:?}");
        }
    }

    #[test]
    fn wrong_type_is_reported_with_its_place_and_without_its_value() {
        const SHAPE: Shape = Shape::Object(&[
            ("users", Shape::Named("user", &Shape::Object(&[("token", Shape::Text), ("data", Shape::Base64)]))),
            ("flag", Shape::Flag),
            ("lists", Shape::Values(&Shape::List(&Shape::Text))),
        ]);
        for (value, expected) in [
            (json!({"users": null, "flag": null, "lists": null, "more": [1]}), ""),
            (json!({"users": [null, {"name": "a", "user": {"token": null}}]}), ""),
            (json!({"users": [{"name": "a"}, {"name": "a"}]}), "user `a`: the name occurs twice"),
            (json!({"users": [{"name": "a", "user": {"token": 471_100}}]}), "user `a`: token: expected a text"),
            (json!({"users": [{"name": "a", "user": ["471100"]}]}), "user `a`: expected a mapping, found a list"),
            (json!({"users": [{"name": "a", "user": {"data": "471 100"}}]}), "user `a`: data: the value is not base64"),
            (json!({"users": {"a": 1}}), "users: expected a list"),
            (json!({"users": ["471100"]}), "users: expected a mapping"),
            (json!({"flag": "471100"}), "flag: expected true or false"),
            (json!({"lists": {"a": ["b", 471_100]}}), "lists: expected a text"),
        ] {
            let error = SHAPE.check(&value, "").map_or_else(|error| error.to_string(), |()| String::new());
            assert!(error.starts_with(expected) && error.is_empty() == expected.is_empty(), "{value}: {error}");
            assert!(!error.contains("471"), "{error}");
        }
    }
}
