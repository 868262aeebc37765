//! From the events of a stream to what a receiver gets. Pure.

use super::message::{Message, NEVER_FORWARDED, UNRESUMABLE, gap_reason};
use crate::client::{Event, Payload};

/// What follows from one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// The message to deliver.
    pub(super) message: Option<Message>,
    /// The cursor to store when the message, and all before it, are delivered.
    pub(super) cursor: Option<String>,
}

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Intake {
    /// `--events`; empty selects every type.
    types: Vec<String>,
    /// The stream has resumed after a cursor, or has delivered an event.
    has_started: bool,
    /// A part of an initial state was received, and further ones follow.
    is_in_initial_state: bool,
    /// The start of the ids of messages without a key.
    run: String,
    numbered: u64,
}

impl Intake {
    /// `has_cursor` is true if the stream resumes after a cursor. `run` differs in each process.
    pub(super) fn new(types: Vec<String>, has_cursor: bool, run: String) -> Intake {
        Intake { types, has_started: has_cursor, is_in_initial_state: false, run, numbered: 0 }
    }

    /// Handles one event. `time` is now (RFC 3339).
    pub(super) fn accept(&mut self, event: &Event, time: &str) -> Item {
        let cursor = event.id.clone();
        if let Some(gap) = gap_reason(event, !self.has_started) {
            let more = matches!(&event.payload, Payload::StateInitial(state) if state.more);
            let is_first_part = !std::mem::replace(&mut self.is_in_initial_state, more);
            let gap = gap.filter(|_| is_first_part).map(|reason| self.gap(reason, time));
            self.has_started |= !more;
            return Item { message: gap, cursor };
        }
        self.has_started = true;
        let is_forwarded = !NEVER_FORWARDED.contains(&event.kind.as_str())
            && (self.types.is_empty() || self.types.contains(&event.kind));
        let message = is_forwarded.then(|| Message::of_event(event, || self.own_id()));
        Item { message, cursor }
    }

    /// Handles the loss of a connection. `cursor` is the one that the next connection resumes after.
    pub(super) fn on_lost(&mut self, cursor: Option<&str>, time: &str) -> Option<Item> {
        // The rest of the initial state does not follow.
        self.is_in_initial_state = false;
        let is_gap = cursor.is_none() && self.has_started;
        is_gap.then(|| Item { message: Some(self.gap(UNRESUMABLE, time)), cursor: None })
    }

    fn gap(&mut self, reason: &str, time: &str) -> Message {
        let id = self.own_id();
        Message::of_gap(reason, time, id)
    }

    fn own_id(&mut self) -> String {
        self.numbered += 1;
        format!("{}.{}", self.run, self.numbered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str, id: Option<&str>) -> Event {
        let mut event = Event::from_json(json).unwrap();
        event.id = id.map(str::to_owned);
        event
    }

    fn kinds(items: &[Item]) -> Vec<Option<&str>> {
        items.iter().map(|item| item.message.as_ref().map(|message| message.kind.as_str())).collect()
    }

    #[test]
    fn a_first_state_is_no_gap_and_a_later_one_is_one_gap() {
        let mut intake = Intake::new(Vec::new(), false, "run".to_owned());
        let parts = |reason: &str| {
            [
                event(&format!(r#"{{"type":"state.initial","reason":"{reason}","more":true}}"#), None),
                event(&format!(r#"{{"type":"state.initial","reason":"{reason}"}}"#), Some("c")),
            ]
        };
        let first = parts("connect").map(|event| intake.accept(&event, "t"));
        assert_eq!((kinds(&first), first[1].cursor.as_deref()), (vec![None, None], Some("c")));
        let later = parts("expired").map(|event| intake.accept(&event, "t"));
        assert_eq!(kinds(&later), [Some("stream.gap"), None]);
        // A cut between the parts starts the state again.
        intake.accept(&parts("lagged")[0], "t");
        assert_eq!(intake.on_lost(Some("c"), "t"), None);
        assert_eq!(kinds(&[intake.accept(&parts("lagged")[0], "t")]), [Some("stream.gap")]);
    }

    #[test]
    fn a_state_although_there_was_a_cursor_is_a_gap() {
        let state = event(r#"{"type":"state.initial","reason":"connect"}"#, Some("c"));
        assert_eq!(kinds(&[Intake::new(Vec::new(), true, String::new()).accept(&state, "t")]), [Some("stream.gap")]);
    }

    #[test]
    fn control_events_move_the_cursor_only() {
        let mut intake = Intake::new(vec!["tenant.claimed".to_owned()], true, "run".to_owned());
        for kind in ["heartbeat", "auth.expiring", "stream.closing", "claim.state"] {
            let item = intake.accept(&event(&format!(r#"{{"type":"{kind}"}}"#), Some("c")), "t");
            assert_eq!(item, Item { message: None, cursor: Some("c".to_owned()) });
        }
        let claimed = intake.accept(&event(r#"{"type":"tenant.claimed"}"#, None), "t").message.unwrap();
        assert_eq!(claimed.id, "run.1");
    }

    #[test]
    fn a_lost_stream_without_a_cursor_is_a_gap() {
        let mut intake = Intake::new(Vec::new(), false, "run".to_owned());
        assert_eq!(intake.on_lost(None, "t"), None, "nothing was received yet");
        intake.accept(&event(r#"{"type":"x"}"#, None), "t");
        assert_eq!(intake.on_lost(Some("c"), "t"), None);
        assert_eq!(kinds(&[intake.on_lost(None, "t").unwrap()]), [Some("stream.gap")]);
    }
}
