//! Validates what the bridge sends against the schemas that it publishes (docs/protocol.md#schemas).
//!
//! Guarantees: each validator is compiled once. Every message that a client or a history of the tests receives is validated,
//! the same bytes once. The crate `jsonschema` is therefore compiled with optimization (Cargo.toml).

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, RandomState},
    sync::{LazyLock, Mutex},
};

use boilerhouse_bridge::schema::messages::{self, Form, MESSAGES};
use jsonschema::Validator;
use serde_json::{Value, json};

/// Maximum number of texts that [`check`] remembers, as 64-bit hashes: 8 MB.
const MAX_REMEMBERED: usize = 1_000_000;

/// The hashes of the texts that were validated, each with the path of its stream.
static REMEMBERED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());
/// The key of the hashes.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Type and form of a message.
type Key = (&'static str, &'static str);

static MESSAGE_VALIDATORS: LazyLock<BTreeMap<Key, Validator>> = LazyLock::new(|| {
    let key = |message: &messages::Message| (message.name, message.form.name());
    MESSAGES.iter().map(|message| (key(message), validator(&form_schema(message)))).collect()
});

/// Returns the validator of a schema. Formats count.
pub(crate) fn validator(schema: &Value) -> Validator {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap()
}

/// Returns the published schema of one form of a message.
pub(crate) fn form_schema(message: &messages::Message) -> Value {
    let mut schema: Value = serde_json::from_str(messages::file(message.name).unwrap()).unwrap();
    let form = message.form.name();
    if schema["$defs"][form].is_object() {
        let members = schema.as_object_mut().unwrap();
        members.remove("anyOf").unwrap();
        members.insert("$ref".into(), json!(format!("#/$defs/{form}")));
    }
    schema
}

/// Validates a message of the stream at `path` (with its query).
///
/// A relay sends the events of any server at `/events` and `/events/ws`. There, messages of other types are permitted.
///
/// # Panics
/// When the message does not match the schema of its type.
pub(crate) fn check(path: &str, message: &str) {
    let path = path.split('?').next().unwrap_or_default().trim_end_matches('/');
    let hash = HASHER.hash_one((path, message));
    if REMEMBERED.lock().unwrap().contains(&hash) {
        return;
    }
    check_new(path, message);
    let mut remembered = REMEMBERED.lock().unwrap();
    if remembered.len() == MAX_REMEMBERED {
        remembered.clear();
    }
    remembered.insert(hash);
}

fn check_new(path: &str, message: &str) {
    let (forms, is_relay): (&[Form], bool) = match path {
        "/ws" => (&[Form::Ws], false),
        "/api/websocket" | "/api/sse" | "/api/events/stream" | "/events/stream" => (&[Form::Full], false),
        "/events" | "/events/ws" => (&[Form::Full, Form::Relay], true),
        // Not a stream of events.
        _ => return,
    };
    let event: Value = match serde_json::from_str(message) {
        Ok(event) => event,
        Err(_) if is_relay => return,
        Err(error) => panic!("{error}: {message}"),
    };
    // The upstream of a relay can use a name of the bridge for other keys. The tests of the relay do that.
    let is_foreign = |name: &str| name == "stream.closing" && event["retryAfterMs"].is_null();
    let name = event["type"].as_str().unwrap_or_default();
    if !is_relay || (messages::file(name).is_some() && !is_foreign(name)) {
        check_event(forms, &event);
    }
}

/// Validates a message that has one of these forms.
///
/// # Panics
/// When the message does not match the schema of its type.
pub(crate) fn check_event(forms: &[Form], event: &Value) {
    let name = event["type"].as_str().unwrap_or_default();
    let mut errors = Vec::new();
    for form in forms {
        match MESSAGE_VALIDATORS.get(&(name, form.name())).map(|validator| validator.validate(event)) {
            Some(Ok(())) => return,
            Some(Err(error)) => errors.push(error.to_string()),
            None => errors.push(format!("the form {} has no type '{name}'", form.name())),
        }
    }
    panic!("a message does not match its published schema: {errors:?}: {event}");
}
