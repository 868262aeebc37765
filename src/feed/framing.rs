//! The framing of events for a transport.

use crate::wire::{chunked, sse, websocket};

/// How the events of a subscription are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Framing {
    /// The format of one frame.
    pub format: FrameFormat,
    /// Uses EdgePlane's event names: `matrix-down` and `matrix-up` for `upstream.down` and `upstream.up`. On SSE these
    /// two always have an `event:` field.
    pub edgeplane_names: bool,
}

/// The format of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameFormat {
    /// One WebSocket text message.
    WebSocket,
    /// One SSE block.
    Sse {
        /// Whether the block has an `event:` field with the event type.
        named: bool,
        /// Whether the block is an HTTP chunk: in a body of HTTP/1.1.
        chunked: bool,
    },
    /// One line of JSON, for readers that frame the events themselves.
    JsonLines,
}

impl FrameFormat {
    /// Appends what `write` appends, as an HTTP chunk where the body has chunks.
    pub fn append_part(self, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.is_chunked() { chunked::chunk(out, write) } else { write(out) }
    }

    /// Returns true if the body has chunks.
    #[must_use]
    pub fn is_chunked(self) -> bool {
        matches!(self, FrameFormat::Sse { chunked: true, .. })
    }
}

impl Framing {
    /// WebSocket text messages with the event names of the protocol.
    pub const WEBSOCKET: Framing = Framing { format: FrameFormat::WebSocket, edgeplane_names: false };

    /// Appends the frame of one event to `out`. `name` is its event type, `id` its cursor, if it has one.
    pub fn append_frame(self, out: &mut Vec<u8>, name: &str, id: Option<&str>, json: &str) {
        match self.format {
            FrameFormat::WebSocket => websocket::text(out, json),
            FrameFormat::Sse { named, .. } => self.format.append_part(out, |out| {
                sse::event(out, (named || name.starts_with("matrix-")).then_some(name), id, json);
            }),
            FrameFormat::JsonLines => {
                out.extend_from_slice(json.as_bytes());
                out.push(b'\n');
            }
        }
    }

    /// Returns the event type as this framing writes it.
    pub(super) fn name(self, name: &'static str) -> &'static str {
        match name {
            "upstream.down" if self.edgeplane_names => "matrix-down",
            "upstream.up" if self.edgeplane_names => "matrix-up",
            name => name,
        }
    }
}
