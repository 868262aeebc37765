//! What is POSTed: the events of a stream, and the gaps in it. Pure.

use serde::Deserialize;
use serde_json::json;

use crate::client::{Event, Payload};

/// Types that concern the connection only and are never forwarded.
pub const NEVER_FORWARDED: &[&str] = &["heartbeat", "auth.expiring", "stream.closing"];
/// The reason of a gap after a connection that had no cursor to resume from.
pub(super) const UNRESUMABLE: &str = "unresumable";
/// Characters of `webhook-id`.
const MAX_ID_CHARS: usize = 256;

/// One message to a receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// `webhook-id`. It is the same in every attempt.
    pub(super) id: String,
    /// The type of the event.
    pub(super) kind: String,
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
        Message { id: key.filter(usable).unwrap_or_else(own_id), kind: event.kind.clone(), body: body.to_owned() }
    }

    /// Returns `stream.gap`: events may have been missed. `time` is RFC 3339.
    pub(super) fn of_gap(reason: &str, time: &str, own_id: String) -> Message {
        let kind = "stream.gap".to_owned();
        let body = json!({"type": kind, "time": time, "reason": reason}).to_string();
        Message { id: own_id, kind, body }
    }
}

/// Returns the reason of a gap that an event reports, if it is an initial state. `is_start` is true if the receiver has
/// missed nothing before it: it has received nothing and had no cursor.
pub(super) fn gap_reason(event: &Event, is_start: bool) -> Option<Option<&str>> {
    let Payload::StateInitial(state) = &event.payload else { return None };
    Some(match state.reason.as_str() {
        "connect" if is_start => None,
        // The bridge did not know of the cursor.
        "connect" => Some(UNRESUMABLE),
        reason => Some(reason),
    })
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
        let gap = Message::of_gap("expired", "2026-01-02T03:04:05Z", "own".to_owned());
        assert_eq!(gap.body, r#"{"reason":"expired","time":"2026-01-02T03:04:05Z","type":"stream.gap"}"#);
    }

    #[test]
    fn an_initial_state_is_a_gap_unless_the_receiver_starts() {
        let initial = |reason: &str| event(&format!(r#"{{"type":"state.initial","reason":"{reason}"}}"#));
        assert_eq!(gap_reason(&initial("connect"), true), Some(None));
        assert_eq!(gap_reason(&initial("connect"), false), Some(Some(UNRESUMABLE)));
        assert_eq!(gap_reason(&initial("expired"), true), Some(Some("expired")));
        assert_eq!(gap_reason(&event(r#"{"type":"claim.state"}"#), true), None);
    }
}
