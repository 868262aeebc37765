//! The events in the bytes of a stream, and where each of them is complete.

use boilerhouse_bridge::feed::{FrameFormat, Framing};
use serde_json::Value;

/// One event of a batch of bytes.
#[derive(Debug, PartialEq)]
pub(super) struct WireEvent {
    pub(super) json: String,
    /// A client that has these bytes has the event.
    pub(super) end: usize,
}

/// The events of bytes that contain complete frames only.
pub(super) fn events(framing: Framing, bytes: &[u8]) -> Vec<WireEvent> {
    match framing.format {
        FrameFormat::WebSocket => messages(bytes),
        FrameFormat::Sse { named, chunked: false } => blocks(bytes, 0, named),
        FrameFormat::Sse { named, chunked: true } => chunks(bytes, named),
        FrameFormat::JsonLines => panic!("no stream has this format"),
    }
}

/// Text messages of RFC 6455.
fn messages(bytes: &[u8]) -> Vec<WireEvent> {
    let (mut events, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        assert_eq!(bytes[at], 0x81, "a text message in one frame");
        let (len, start) = match bytes[at + 1] {
            126 => (usize::from(u16::from_be_bytes(bytes[at + 2..at + 4].try_into().unwrap())), at + 4),
            127 => (u64::from_be_bytes(bytes[at + 2..at + 10].try_into().unwrap()) as usize, at + 10),
            len => (usize::from(len), at + 2),
        };
        at = start + len;
        events.push(WireEvent { json: String::from_utf8(bytes[start..at].to_vec()).unwrap(), end: at });
    }
    events
}

/// Chunks of HTTP/1.1. The line end after a chunk is not needed for its events.
fn chunks(bytes: &[u8], named: bool) -> Vec<WireEvent> {
    let (mut events, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let digits = bytes[at..].windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + digits]).unwrap(), 16).unwrap();
        let start = at + digits + 2;
        events.extend(blocks(&bytes[start..start + size], start, named));
        at = start + size + 2;
        assert_eq!(&bytes[at - 2..at], b"\r\n");
    }
    events
}

/// Blocks of SSE, which start at `offset`. Their fields must say the same as their data.
fn blocks(bytes: &[u8], offset: usize, named: bool) -> Vec<WireEvent> {
    let (mut events, mut end) = (Vec::new(), offset);
    for block in std::str::from_utf8(bytes).unwrap().split_inclusive("\n\n") {
        end += block.len();
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let json = field("data").unwrap();
        let value: Value = serde_json::from_str(json).unwrap();
        assert!(block.ends_with("\n\n") && value["id"].as_str() == field("id"), "{block}");
        assert!(!named || value["type"].as_str() == field("event"), "{block}");
        events.push(WireEvent { json: json.to_owned(), end });
    }
    events
}

#[test]
fn events_end_with_the_last_byte_that_a_client_needs() {
    let (first, second) = (r#"{"type":"a","id":"1"}"#, format!(r#"{{"type":"b","text":"{}"}}"#, "x".repeat(200)));
    let formats = [false, true].map(|named| [false, true].map(|chunked| FrameFormat::Sse { named, chunked }));
    for format in formats.into_iter().flatten().chain([FrameFormat::WebSocket]) {
        let framing = Framing { format, edgeplane_names: false };
        let mut bytes = Vec::new();
        framing.append_frame(&mut bytes, "a", Some("1"), first);
        let rest = if format.is_chunked() { 2 } else { 0 };
        let first_end = bytes.len() - rest;
        framing.append_frame(&mut bytes, "b", None, &second);
        let expected = [(first, first_end), (second.as_str(), bytes.len() - rest)];
        let expected = expected.map(|(json, end)| WireEvent { json: json.to_owned(), end });
        assert_eq!(events(framing, &bytes), expected, "{format:?}");
    }
}
