//! The table of all messages of the streams, and `/schemas/<type>.json`.
//!
//! # Add an event type
//!
//! Add a type with its keys to `keys`, and a row to [`MESSAGES`].

use std::{collections::BTreeMap, sync::LazyLock};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{generate, keys};

/// A stream that has a form of a message of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `/ws`.
    Ws,
    /// All other streams of a bridge.
    Full,
    /// What a relay adds to the stream of its upstream.
    Relay,
}

/// One type of message on one kind of stream.
#[derive(Debug)]
pub struct Message {
    /// The value of the key `type`.
    pub name: &'static str,
    /// The streams that send it in this form.
    pub form: Form,
    body: fn(&mut SchemaGenerator) -> Schema,
}

/// All messages, in the order of `docs/protocol.md`.
pub static MESSAGES: &[Message] = &[
    Message::of::<keys::WsInstanceState>("instance.state", Form::Ws),
    Message::of::<keys::WsPoolInstanceReady>("pool.instance.ready", Form::Ws),
    Message::of::<keys::WsTenantClaimed>("tenant.claimed", Form::Ws),
    Message::of::<keys::WsTenantReleased>("tenant.released", Form::Ws),
    Message::of::<keys::StateInitial>("state.initial", Form::Full),
    Message::of::<keys::InstanceState>("instance.state", Form::Full),
    Message::of::<keys::ClaimState>("claim.state", Form::Full),
    Message::of::<keys::PoolInstanceReady>("pool.instance.ready", Form::Full),
    Message::of::<keys::TenantClaimed>("tenant.claimed", Form::Full),
    Message::of::<keys::TenantReleased>("tenant.released", Form::Full),
    Message::of::<keys::PoolDepth>("pool.depth", Form::Full),
    Message::of::<keys::Telemetry>("telemetry", Form::Full),
    Message::of::<keys::MqttMessage>("mqtt.message", Form::Full),
    Message::of::<keys::UpstreamDown>("upstream.down", Form::Full),
    Message::of::<keys::UpstreamUp>("upstream.up", Form::Full),
    Message::of::<keys::Heartbeat>("heartbeat", Form::Full),
    Message::of::<keys::AuthExpiring>("auth.expiring", Form::Full),
    Message::of::<keys::StreamClosing>("stream.closing", Form::Full),
    Message::of::<keys::UpstreamDown>("matrix-down", Form::Full),
    Message::of::<keys::UpstreamUp>("matrix-up", Form::Full),
    Message::of::<keys::RelayDown>("matrix-down", Form::Relay),
    Message::of::<keys::RelayUp>("matrix-up", Form::Relay),
    Message::of::<keys::RelayGap>("relay.gap", Form::Relay),
];

/// Type of message → the text of its schema.
static FILES: LazyLock<BTreeMap<&'static str, String>> = LazyLock::new(|| {
    let names = MESSAGES.iter().map(|message| message.name);
    names.map(|name| (name, format!("{:#}\n", schema(name)))).collect()
});

/// Returns the text of `/schemas/<name>.json`, or `None` if no message has this type.
#[must_use]
pub fn file(name: &str) -> Option<&'static str> {
    FILES.get(name).map(String::as_str)
}

/// Returns the types of all messages, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.keys().copied()
}

impl Form {
    /// Returns the name of the form in `$defs`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Form::Ws => "ws",
            Form::Full => "full",
            Form::Relay => "relay",
        }
    }
}

impl Message {
    const fn of<Body: JsonSchema>(name: &'static str, form: Form) -> Message {
        Message { name, form, body: generate::exact::<Body> }
    }

    /// Returns the name of the message among the components of a document.
    #[must_use]
    pub fn component(&self) -> String {
        match self.form {
            Form::Full => self.name.to_owned(),
            form @ (Form::Ws | Form::Relay) => format!("{}.{}", form.name(), self.name),
        }
    }

    /// Returns the schema of the message: the keys of its body, `type`, and on a full stream `rate_limit`.
    pub(super) fn schema(&self, generator: &mut SchemaGenerator) -> Value {
        let mut schema = (self.body)(generator).to_value();
        let mut properties = Map::from_iter([("type".to_owned(), json!({ "type": "string", "const": self.name }))]);
        if let Value::Object(others) = schema["properties"].take() {
            properties.extend(others);
        }
        if self.form == Form::Full {
            let rate_limit = generator.subschema_for::<keys::RateLimit>().to_value();
            properties.insert("rate_limit".into(), rate_limit);
        }
        let mut required = vec![json!("type")];
        if let Value::Array(others) = schema["required"].take() {
            required.extend(others);
        }
        schema["type"] = json!("object");
        schema["additionalProperties"] = json!(false);
        schema["properties"] = properties.into();
        schema["required"] = required.into();
        schema
    }
}

/// Returns the schema of a type of message. If several kinds of streams send it, each form is in `$defs`.
fn schema(name: &str) -> Value {
    let mut generator = generate::for_schema_file();
    let forms: Vec<(Form, Value)> = MESSAGES
        .iter()
        .filter(|message| message.name == name)
        .map(|message| (message.form, message.schema(&mut generator)))
        .collect();
    let mut definitions = generate::definitions(&mut generator);
    let mut schema = match &forms[..] {
        [(_, only)] => only.clone(),
        _ => {
            let refs: Vec<Value> =
                forms.iter().map(|(form, _)| json!({ "$ref": format!("#/$defs/{}", form.name()) })).collect();
            definitions.extend(forms.into_iter().map(|(form, schema)| (form.name().to_owned(), schema)));
            json!({ "anyOf": refs })
        }
    };
    schema["$schema"] = json!(generate::DIALECT);
    schema["title"] = json!(name);
    if !definitions.is_empty() {
        schema["$defs"] = definitions.into();
    }
    schema
}
