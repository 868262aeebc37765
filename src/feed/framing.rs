//! How events are laid on the wire: what a lens's frames look like to those who carry them.

use crate::wire::{sse, websocket};

/// How events are laid on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Framing {
    /// What carries them.
    pub format: FrameFormat,
    /// EdgePlane's words: `upstream.down` and `upstream.up` are `matrix-down` and `matrix-up`, named on SSE.
    pub edgeplane_names: bool,
}

/// What carries events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameFormat {
    /// One text message an event.
    WebSocket,
    /// An event stream; where `named`, events carry their type as `event:`.
    Sse {
        /// Whether `event:` is written.
        named: bool,
    },
    /// One line of JSON an event, for whoever frames them himself.
    JsonLines,
}

impl Framing {
    /// A WebSocket without further ado.
    pub const WEBSOCKET: Framing = Framing { format: FrameFormat::WebSocket, edgeplane_names: false };

    /// Lays one event on the wire.
    pub fn append_frame(self, out: &mut Vec<u8>, name: &str, id: Option<&str>, json: &str) {
        match self.format {
            FrameFormat::WebSocket => websocket::text(out, json),
            FrameFormat::Sse { named } => {
                sse::event(out, (named || name.starts_with("matrix-")).then_some(name), id, json)
            }
            FrameFormat::JsonLines => {
                out.extend_from_slice(json.as_bytes());
                out.push(b'\n');
            }
        }
    }

    pub(super) fn name(self, name: &'static str) -> &'static str {
        match name {
            "upstream.down" if self.edgeplane_names => "matrix-down",
            "upstream.up" if self.edgeplane_names => "matrix-up",
            name => name,
        }
    }
}
