//! One entry of the history: an event of the upstream, or an event of the relay itself.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use serde::Serialize;

use crate::{
    client::Block,
    event::MqttMessage,
    feed::FrameFormat,
    wire::{sse, websocket},
};

/// Bytes that are charged for an entry beside its text: its slot in the log and its place in the index of ids.
const ENTRY_OVERHEAD: usize = 256;
/// An event with more text is large: all clients with one format share its frame. Smaller ones are copied, because a client
/// that catches up reads many of them at once.
const LARGE_EVENT_BYTES: usize = 64 << 10;
/// The number of formats whose frames differ.
pub(super) const FORMATS: usize = 3;

/// One event of a relay, with the fields of an SSE block.
#[derive(Debug)]
pub struct Entry {
    pub(super) kind: Kind,
    pub(super) block: Block,
    /// The frames of a large event that clients are being sent, one for each format. The history holds none of them.
    frames: Option<Box<SharedFrames>>,
}

type SharedFrames = [Mutex<Weak<Vec<u8>>>; FORMATS];

/// A frame that several clients are being sent.
struct SharedFrame(Arc<Vec<u8>>);

impl AsRef<[u8]> for SharedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Returns a number below [`FORMATS`] that formats with equal frames share.
pub(super) fn format_index(format: FrameFormat) -> usize {
    match format {
        FrameFormat::WebSocket => 0,
        FrameFormat::Sse { chunked: true, .. } => 1,
        FrameFormat::Sse { chunked: false, .. } | FrameFormat::JsonLines => 2,
    }
}

/// Where an entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The upstream. Only these entries count for `--history`.
    Event,
    /// `matrix-down`: the upstream does not answer. A later client gets the newest one only.
    Down,
    /// `matrix-up`: the upstream answers again.
    Up,
    /// `relay.gap`: events of the upstream may be missing here.
    Gap,
    /// `mqtt.message`: a message of the broker that the relay reads itself.
    Message,
}

/// Why events may be missing: `reason` of `relay.gap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The history no longer holds what the client needs.
    Expired,
    /// The id of the client is not one of this relay's history.
    Foreign,
    /// The upstream does not resume: it sends no ids, or its ids have started again.
    Upstream,
}

impl GapReason {
    /// Every reason.
    pub(super) const ALL: [GapReason; 3] = [Self::Expired, Self::Foreign, Self::Upstream];

    /// Returns the text of `reason`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Foreign => "foreign",
            Self::Upstream => "upstream",
        }
    }
}

impl Entry {
    /// Returns an event of the upstream.
    pub(super) fn event(block: Block) -> Entry {
        Entry::new(Kind::Event, block)
    }

    /// Returns `relay.gap`.
    pub(super) fn gap(reason: GapReason) -> Entry {
        let data = format!(r#"{{"type":"relay.gap","reason":"{}"}}"#, reason.name());
        Entry::own(Kind::Gap, "relay.gap", data)
    }

    /// Returns `matrix-up`.
    pub(super) fn up() -> Entry {
        Entry::own(Kind::Up, "matrix-up", r#"{"type":"matrix-up"}"#.to_owned())
    }

    /// Returns `matrix-down`. `retry_at` is the time of the next try (RFC 3339).
    pub(super) fn down(status: Option<u16>, reason: &str, retry_at: &str) -> Entry {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Down<'a> {
            r#type: &'static str,
            status: Option<u16>,
            reason: &'a str,
            retry_at: &'a str,
        }
        let down = Down { r#type: "matrix-down", status, reason, retry_at };
        // Texts and a number always have a JSON form.
        Entry::own(Kind::Down, down.r#type, serde_json::to_string(&down).unwrap_or_default())
    }

    /// Returns `mqtt.message`, with the keys that it has on the stream of a bridge. `time` is the time now (RFC 3339).
    pub(super) fn message(message: &MqttMessage, time: &str) -> Entry {
        #[derive(Serialize)]
        struct Message<'a> {
            r#type: &'static str,
            time: &'a str,
            #[serde(flatten)]
            message: &'a MqttMessage,
        }
        let event = Message { r#type: "mqtt.message", time, message };
        // Texts and a JSON value always have a JSON form.
        Entry::own(Kind::Message, event.r#type, serde_json::to_string(&event).unwrap_or_default())
    }

    fn own(kind: Kind, name: &str, data: String) -> Entry {
        Entry::new(kind, Block { id: None, name: Some(name.to_owned()), data })
    }

    pub(super) fn new(kind: Kind, block: Block) -> Entry {
        let is_large = text_len(&block) > LARGE_EVENT_BYTES;
        Entry { kind, block, frames: is_large.then(Box::default) }
    }

    /// Returns whether clients share the frame of the event ([`Entry::shared_frame`]).
    pub(super) fn is_large(&self) -> bool {
        self.frames.is_some()
    }

    /// Returns the id that a client can resume after.
    pub(super) fn id(&self) -> Option<&str> {
        self.block.id.as_deref().filter(|id| !id.is_empty())
    }

    /// Returns the bytes that the entry is charged. The index of ids holds each id a second time.
    pub(super) fn charge(&self) -> usize {
        ENTRY_OVERHEAD + text_len(&self.block) + self.block.id.as_ref().map_or(0, String::len)
    }

    /// Returns the frame of a large event. Its bytes exist once for each format, while a client holds them.
    pub(super) fn shared_frame(&self, format: FrameFormat) -> Option<Bytes> {
        let slot = &self.frames.as_ref()?[format_index(format)];
        // Under the lock, so that no two clients frame it.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = slot.upgrade().unwrap_or_else(|| {
            let mut frame = Vec::new();
            self.append_frame(&mut frame, format);
            Arc::new(frame)
        });
        *slot = Arc::downgrade(&frame);
        Some(Bytes::from_owner(SharedFrame(frame)))
    }

    /// Appends the frame of the entry: an SSE block with its fields, or a WebSocket message with its data alone.
    pub(super) fn append_frame(&self, out: &mut Vec<u8>, format: FrameFormat) {
        let Block { id, name, data } = &self.block;
        match format {
            FrameFormat::WebSocket => websocket::text(out, data),
            FrameFormat::Sse { .. } | FrameFormat::JsonLines => {
                format.append_part(out, |out| sse::event(out, name.as_deref(), id.as_deref(), data));
            }
        }
    }
}

fn text_len(Block { id, name, data }: &Block) -> usize {
    data.len() + name.as_ref().map_or(0, String::len) + id.as_ref().map_or(0, String::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_events_have_exactly_their_keys() {
        let data = |entry: Entry| (entry.block.name.unwrap(), entry.block.data);
        let down = r#"{"type":"matrix-down","status":500,"reason":"a \"b\"","retryAt":"t"}"#;
        assert_eq!(data(Entry::down(Some(500), "a \"b\"", "t")), ("matrix-down".into(), down.into()));
        let down = r#"{"type":"matrix-down","status":null,"reason":"silent","retryAt":"t"}"#;
        assert_eq!(data(Entry::down(None, "silent", "t")), ("matrix-down".into(), down.into()));
        assert_eq!(data(Entry::up()), ("matrix-up".into(), r#"{"type":"matrix-up"}"#.into()));
        let message = MqttMessage { topic: "a/b".into(), payload: serde_json::json!({"c": [1, null]}) };
        let expected = r#"{"type":"mqtt.message","time":"t","topic":"a/b","payload":{"c":[1,null]}}"#;
        assert_eq!(data(Entry::message(&message, "t")), ("mqtt.message".into(), expected.into()));
        let gap = r#"{"type":"relay.gap","reason":"foreign"}"#;
        assert_eq!(data(Entry::gap(GapReason::Foreign)), ("relay.gap".into(), gap.into()));
    }

    #[test]
    fn frames_have_the_fields_of_the_upstream() {
        let frame = |format| {
            let block = Block { id: Some("7".into()), name: Some("tick".into()), data: "a\n b".into() };
            let mut out = Vec::new();
            Entry::event(block).append_frame(&mut out, format);
            String::from_utf8(out).unwrap()
        };
        let block = "id: 7\nevent: tick\ndata: a\ndata:  b\n\n";
        assert_eq!(frame(FrameFormat::Sse { named: true, chunked: false }), block);
        let chunk = format!("{:x}\r\n{block}\r\n", block.len());
        assert_eq!(frame(FrameFormat::Sse { named: true, chunked: true }), chunk);
    }

    #[test]
    fn websocket_message_is_the_data_alone() {
        let block = Block { id: Some("7".into()), name: Some("tick".into()), data: "a\n b".into() };
        let mut out = Vec::new();
        Entry::event(block).append_frame(&mut out, FrameFormat::WebSocket);
        assert_eq!(out, b"\x81\x04a\n b");
    }
}
