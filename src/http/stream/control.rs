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
pub(in crate::http) fn closing_event(framing: Framing, reason: &'static str, retry: Duration) -> Bytes {
    rejection_event(framing, reason, None, None, retry)
}

/// Returns `stream.closing` of a request that is rejected for now. It has the id `id`, if there is one. `detail` is what a
/// person should know beyond the reason.
///
/// `reason` must need no escape in JSON.
pub(in crate::http) fn rejection_event(
    framing: Framing,
    reason: &'static str,
    detail: Option<&str>,
    id: Option<&str>,
    retry: Duration,
) -> Bytes {
    let (name, ms) = ("stream.closing", retry.as_millis());
    let mut out = retry_field(framing, retry);
    let detail = detail.map_or_else(String::new, |text| format!(r#","detail":{}"#, serde_json::Value::from(text)));
    let json = format!(r#"{{"type":"{name}","reason":"{reason}"{detail},"retryAfterMs":{ms}}}"#);
    framing.append_frame(&mut out, name, id, &json);
    out.into()
}
