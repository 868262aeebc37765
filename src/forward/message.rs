//! What is POSTed: the events of a stream, and the gaps in it. Pure.

use serde::Deserialize;
use serde_json::json;

use crate::client::{Event, Payload};

/// Types that concern one connection only and are never forwarded. `stream.gap` stands for a state.
pub const NEVER_FORWARDED: &[&str] = &["heartbeat", "auth.expiring", "stream.closing", "state.initial"];
/// The type that says that a relay has missed events. `--events` does not narrow it.
pub(super) const RELAY_GAP: &str = "relay.gap";
/// The reason of a gap: there was no cursor to resume from, or the server did not accept it.
pub(super) const UNRESUMABLE: &str = "unresumable";
/// The reason of a gap in place of an event that cannot be parsed.
pub(super) const MALFORMED: &str = "malformed";
/// Characters of `webhook-id`.
const MAX_ID_CHARS: usize = 256;

/// One message to a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// `webhook-id`. It is the same in every attempt.
    pub(super) id: String,
    /// The type of the event.
    pub(super) kind: String,
    /// The reason of a gap.
    pub(super) reason: Option<String>,
    /// The JSON.
    pub(super) body: String,
}

impl Message {
    /// Returns the message for an event. `own_id` is used for an event without a key.
    pub(super) fn of_event(event: &Event, own_id: impl FnOnce() -> String) -> Message {
        #[derive(Deserialize)]
        struct Key {
            key: Option<String>,
        }
        let body = event.json.get();
        let key = serde_json::from_str::<Key>(body).ok().and_then(|key| key.key);
        let usable = |key: &String| {
            !key.is_empty() && key.len() <= MAX_ID_CHARS && key.bytes().all(|byte| byte.is_ascii_graphic())
        };
        // Each stream that starts during an outage repeats the report.
        let key = key.or_else(|| match &event.payload {
            Payload::UpstreamDown(report) | Payload::UpstreamUp(report) if !report.time.is_empty() => {
                Some(format!("{}.{}.{}", event.kind, report.resource, report.time))
            }
            _ => None,
        });
        let reason = match &event.payload {
            Payload::RelayGap(gap) => Some(gap.reason.clone()),
            _ => None,
        };
        Message {
            id: key.filter(usable).unwrap_or_else(own_id),
            kind: event.kind.clone(),
            reason,
            body: body.to_owned(),
        }
    }

    /// Returns `stream.gap`: events may have been missed. `time` is RFC 3339.
    pub(super) fn of_gap(reason: &str, time: &str, own_id: String) -> Message {
        let kind = "stream.gap".to_owned();
        let body = json!({"type": kind, "time": time, "reason": reason}).to_string();
        Message { id: own_id, kind, reason: Some(reason.to_owned()), body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event {
        Event::from_json(json).unwrap()
    }

    #[test]
    fn the_key_is_the_id_where_it_can_be_a_header() {
        let id = |json: &str| Message::of_event(&event(json), || "own".to_owned()).id;
        assert_eq!(id(r#"{"type":"a","key":"u.1.a"}"#), "u.1.a");
        for json in
            [r#"{"type":"a"}"#, r#"{"type":"a","key":""}"#, r#"{"type":"a","key":"é"}"#, r#"{"type":"a","key":1}"#]
        {
            assert_eq!(id(json), "own", "{json}");
        }
        let time = "2026-01-02T03:04:05.000Z";
        let down = format!(r#"{{"type":"upstream.down","resource":"pods","reason":"no answer","time":"{time}"}}"#);
        assert_eq!(id(&down), format!("upstream.down.pods.{time}"), "a repeated report has the same id");
        assert_eq!(id(r#"{"type":"matrix-down","reason":"no connection"}"#), "own");
        let gap = Message::of_gap("expired", "2026-01-02T03:04:05Z", "own".to_owned());
        assert_eq!(gap.body, r#"{"reason":"expired","time":"2026-01-02T03:04:05Z","type":"stream.gap"}"#);
    }
}
