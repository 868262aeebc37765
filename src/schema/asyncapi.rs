//! `/asyncapi.json`: the streams as an AsyncAPI 3 document. The address of each channel is its path.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::{
    generate,
    messages::MESSAGES,
    parameters,
    streams::{STREAMS, Stream, Transport},
};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));

/// Returns the text of `/asyncapi.json`.
#[must_use]
pub fn text() -> &'static str {
    &DOCUMENT
}

fn document() -> Value {
    let mut generator = generate::for_document();
    let (mut messages, mut schemas) = (Map::new(), Map::new());
    for message in MESSAGES {
        let name = message.component();
        let payload = json!({ "$ref": format!("#/components/schemas/{name}") });
        messages.insert(
            name.clone(),
            json!({ "name": message.name, "contentType": "application/json", "payload": payload }),
        );
        schemas.insert(name, message.schema(&mut generator));
    }
    schemas.extend(generate::definitions(&mut generator));
    let channels: Map<String, Value> = STREAMS.iter().map(|stream| (stream.channel(), channel(stream))).collect();
    let operations: Map<String, Value> = STREAMS.iter().map(|stream| (stream.channel(), operation(stream))).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "boilerhouse-bridge",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The streams of the bridge that serves this document. The bridge sends, and ignores the \
                            messages of clients. /openapi.json describes the HTTP interface.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages, "schemas": schemas },
    })
}

fn channel(stream: &Stream) -> Value {
    let sent = MESSAGES.iter().filter(|message| stream.sends(message)).map(|message| {
        let name = message.component();
        let reference = json!({ "$ref": format!("#/components/messages/{name}") });
        (name, reference)
    });
    let mut channel = json!({
        "address": stream.path,
        "summary": stream.summary,
        "messages": sent.collect::<Map<String, Value>>(),
    });
    if stream.transport == Transport::WebSocket {
        channel["bindings"] = json!({ "ws": { "method": "GET", "query": parameters::object(stream.parameters()) } });
    }
    channel
}

/// The bridge sends on every channel.
fn operation(stream: &Stream) -> Value {
    let reference = format!("#/channels/{}", stream.channel());
    let mut operation = json!({ "action": "send", "channel": { "$ref": reference } });
    if stream.transport == Transport::Sse {
        operation["bindings"] =
            json!({ "http": { "method": "GET", "query": parameters::object(stream.parameters()) } });
    }
    operation
}
