//! The stream endpoints, as the table of `docs/protocol.md#endpoints` lists them.

use super::messages::{Form, Message};

/// How a stream is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    WebSocket,
    Sse,
}

/// One stream endpoint.
pub(super) struct Stream {
    pub(super) path: &'static str,
    pub(super) transport: Transport,
    pub(super) summary: &'static str,
    /// `upstream.down` and `upstream.up` have the names `matrix-down` and `matrix-up`.
    edgeplane_names: bool,
    /// A relay has this path, too.
    is_on_relay: bool,
}

const fn stream(path: &'static str, transport: Transport, summary: &'static str) -> Stream {
    Stream { path, transport, summary, edgeplane_names: false, is_on_relay: false }
}

/// Every stream endpoint.
pub(super) static STREAMS: &[Stream] = &[
    stream("/ws", Transport::WebSocket, "The documented event stream of Boilerhouse"),
    stream("/api/websocket", Transport::WebSocket, "The full stream"),
    stream("/api/sse", Transport::Sse, "The full stream, unnamed events"),
    stream("/api/events/stream", Transport::Sse, "The full stream, named events"),
    Stream {
        edgeplane_names: true,
        ..stream("/events/stream", Transport::Sse, "The full stream for clients of EdgePlane")
    },
    Stream {
        edgeplane_names: true,
        is_on_relay: true,
        ..stream("/events", Transport::Sse, "The full stream for clients of EdgePlane, or the stream of a relay")
    },
    Stream {
        edgeplane_names: true,
        is_on_relay: true,
        ..stream(
            "/events/ws",
            Transport::WebSocket,
            "The full stream for clients of EdgePlane, or the stream of a relay",
        )
    },
];

impl Stream {
    /// Returns the path as a name: `api_sse`.
    pub(super) fn channel(&self) -> String {
        self.path.trim_start_matches('/').replace('/', "_")
    }

    /// Returns the names of the query parameters.
    pub(super) fn parameters(&self) -> &'static [&'static str] {
        if self.path == "/ws" {
            return &["types", "snapshot", "connectionId"];
        }
        &["types", "params", "connectionId", "snapshot", "lastEventId", "token", "rstream.token"]
    }

    /// Returns whether the stream sends this message.
    pub(super) fn sends(&self, message: &Message) -> bool {
        match message.form {
            Form::Ws => self.path == "/ws",
            Form::Relay => self.is_on_relay,
            Form::Full => {
                let is_renamed = match message.name {
                    "upstream.down" | "upstream.up" => Some(false),
                    "matrix-down" | "matrix-up" => Some(true),
                    _ => None,
                };
                self.path != "/ws" && is_renamed.is_none_or(|renamed| renamed == self.edgeplane_names)
            }
        }
    }
}
