//! Frames about the stream itself: `stream.closing` and SSE's `retry:` (docs/protocol.md#stream-endpoints).

use std::time::Duration;

use bytes::Bytes;

use crate::{
    feed::{FrameFormat, Framing},
    wire::sse,
};

/// Returns SSE's `retry:` field, from which a browser's `EventSource` takes its reconnection delay. It is the start of the
/// block of the event that follows. On other transports the field does not exist, and the result is empty.
pub(in crate::http) fn retry_field(framing: Framing, retry: Duration) -> Vec<u8> {
    let mut out = Vec::new();
    if let FrameFormat::Sse { .. } = framing.format {
        framing.format.append_part(&mut out, |out| sse::retry(out, retry.as_millis()));
    }
    out
}

/// Returns `stream.closing`, the last event of a stream that the bridge ends. On SSE a `retry:` field precedes it.
///
/// `reason` must need no escape in JSON. The event has the id `id`, if there is one.
pub(in crate::http) fn closing_event(
    framing: Framing,
    reason: &'static str,
    id: Option<&str>,
    retry: Duration,
) -> Bytes {
    let (name, ms) = ("stream.closing", retry.as_millis());
    let mut out = retry_field(framing, retry);
    let json = format!(r#"{{"type":"{name}","reason":"{reason}","retryAfterMs":{ms}}}"#);
    framing.append_frame(&mut out, name, id, &json);
    out.into()
}
