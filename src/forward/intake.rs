//! From what a stream yields to what a receiver gets. Pure.

use super::message::{MALFORMED, Message, NEVER_FORWARDED, RELAY_GAP, UNRESUMABLE};
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
    /// A stream was open before, in this process or in an earlier one: what was sent meanwhile may be missing.
    has_started: bool,
    /// The server did not accept the cursor.
    was_rejected: bool,
    /// The connection resumes after a cursor.
    is_resumed: bool,
    /// The `snapshotAt` of a state that was reported as a gap, until its last part: its other parts are no further gap.
    reported: Option<String>,
    /// The start of the ids of messages without a key.
    run: String,
    numbered: u64,
}

impl Intake {
    /// `has_started` is true if the receiver has a state of an earlier process. `run` differs in each process.
    pub(super) fn new(types: Vec<String>, has_started: bool, run: String) -> Intake {
        Intake { types, has_started, was_rejected: false, is_resumed: false, reported: None, run, numbered: 0 }
    }

    /// Handles a new connection, which resumes after `cursor`. `time` is now (RFC 3339). The gap follows the loss only here,
    /// so that what a receiver reads again after it is not older than the stream.
    pub(super) fn on_connected(&mut self, cursor: Option<&str>, time: &str) -> Option<Item> {
        let was_rejected = std::mem::take(&mut self.was_rejected);
        let is_gap = was_rejected || (cursor.is_none() && self.has_started);
        (self.has_started, self.is_resumed, self.reported) = (true, cursor.is_some(), None);
        is_gap.then(|| self.gap(UNRESUMABLE, time, None))
    }

    /// Handles the rejection of the cursor. The next connection has none.
    pub(super) fn on_cursor_rejected(&mut self) {
        self.was_rejected = true;
    }

    /// Handles an event that cannot be parsed.
    pub(super) fn on_malformed(&mut self, time: &str) -> Item {
        self.gap(MALFORMED, time, None)
    }

    /// Handles one event.
    pub(super) fn on_event(&mut self, event: &Event, time: &str) -> Item {
        let cursor = event.id.clone();
        if let Payload::StateInitial(state) = &event.payload {
            let reason = match state.reason.as_str() {
                "connect" if !self.is_resumed => None,
                "connect" => Some(UNRESUMABLE),
                reason => Some(reason),
            };
            // One gap for all parts of a state. Another state is another gap, although no event has come since.
            let is_new = self.reported.as_ref() != Some(&state.snapshot_at);
            self.reported = state.more.then(|| state.snapshot_at.clone());
            return match reason.filter(|_| is_new) {
                Some(reason) => self.gap(reason, time, cursor),
                None => Item { message: None, cursor },
            };
        }
        let kind = event.kind.as_str();
        if kind != "heartbeat" {
            self.reported = None;
        }
        let is_selected = self.types.is_empty() || kind == RELAY_GAP || self.types.contains(&event.kind);
        let is_forwarded = is_selected && !NEVER_FORWARDED.contains(&kind);
        let message = is_forwarded.then(|| Message::of_event(event, || self.own_id()));
        Item { message, cursor }
    }

    fn gap(&mut self, reason: &str, time: &str, cursor: Option<String>) -> Item {
        let id = self.own_id();
        Item { message: Some(Message::of_gap(reason, time, id)), cursor }
    }

    fn own_id(&mut self) -> String {
        self.numbered += 1;
        format!("{}.{}", self.run, self.numbered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intake(types: &[&str], has_started: bool) -> Intake {
        Intake::new(types.iter().map(|kind| (*kind).to_owned()).collect(), has_started, "run".to_owned())
    }

    fn event(json: &str, id: Option<&str>) -> Event {
        let mut event = Event::from_json(json).unwrap();
        event.id = id.map(str::to_owned);
        event
    }

    /// The two parts of a state.
    fn state(reason: &str) -> [Event; 2] {
        let part = |rest: &str| format!(r#"{{"type":"state.initial","reason":"{reason}"{rest}}}"#);
        [event(&part(r#","more":true"#), None), event(&part(""), Some("c"))]
    }

    /// The reasons of gaps, and the types of other messages.
    fn texts(items: impl IntoIterator<Item = Option<Item>>) -> Vec<String> {
        let messages = items.into_iter().filter_map(|item| item?.message);
        let text = |message: Message| {
            let body: serde_json::Value = serde_json::from_str(&message.body).unwrap();
            body["reason"].as_str().map_or(message.kind, str::to_owned)
        };
        messages.map(text).collect()
    }

    #[test]
    fn a_first_state_is_no_gap_and_a_later_one_is_one_gap() {
        let mut intake = intake(&[], false);
        assert_eq!(intake.on_connected(None, "t"), None);
        let first = state("connect").map(|event| intake.on_event(&event, "t"));
        assert_eq!((first[1].message.is_none(), first[1].cursor.as_deref()), (true, Some("c")));
        let resumed = intake.on_connected(Some("c"), "t");
        let later = state("expired").map(|event| Some(intake.on_event(&event, "t")));
        assert_eq!((resumed, texts(later)), (None, vec!["expired".to_owned()]));
        // A cut between the parts starts the state again.
        intake.on_event(&state("lagged")[0], "t");
        assert_eq!(intake.on_connected(Some("c"), "t"), None);
        assert_eq!(texts([Some(intake.on_event(&state("lagged")[0], "t"))]), ["lagged"]);
    }

    #[test]
    fn what_a_cursor_does_not_cover_is_one_gap() {
        // The server does not know of cursors.
        let mut unknown = intake(&[], true);
        assert_eq!(unknown.on_connected(Some("c"), "t"), None);
        assert_eq!(texts(state("connect").map(|event| Some(unknown.on_event(&event, "t")))), [UNRESUMABLE]);
        // It rejects the cursor, and its state follows the gap.
        let mut rejected = intake(&[], true);
        rejected.on_cursor_rejected();
        let gap = rejected.on_connected(None, "t");
        let [one, two] = state("connect").map(|event| Some(rejected.on_event(&event, "t")));
        assert_eq!(texts([gap, one, two]), [UNRESUMABLE]);
        // A stream without cursors: the gap follows when it is open again.
        let mut plain = intake(&[], false);
        let opened = plain.on_connected(None, "t");
        let event = Some(plain.on_event(&event(r#"{"type":"x"}"#, None), "t"));
        assert_eq!(texts([opened, event, plain.on_connected(None, "t")]), ["x", UNRESUMABLE]);
        // A state file without a cursor says that an earlier process has read the stream.
        assert_eq!(texts([intake(&[], true).on_connected(None, "t")]), [UNRESUMABLE]);
    }

    #[test]
    fn each_state_is_a_gap_of_its_own_on_a_quiet_connection() {
        let heartbeat = || event(r#"{"type":"heartbeat"}"#, None);
        // The connection has no cursor, so it starts with a gap, and its first state is no further one.
        let mut intake = intake(&[], true);
        let mut items = vec![intake.on_connected(None, "t")];
        let mut events = vec![heartbeat()];
        events.extend(state("connect"));
        events.push(heartbeat());
        events.extend(state("foreign"));
        events.push(heartbeat());
        events.extend(state("lagged"));
        items.extend(events.iter().map(|event| Some(intake.on_event(event, "t"))));
        items.push(Some(intake.on_malformed("t")));
        let [first, last] = state("lagged");
        for event in [first, heartbeat(), last] {
            items.push(Some(intake.on_event(&event, "t")));
        }
        assert_eq!(texts(items), [UNRESUMABLE, "foreign", "lagged", MALFORMED, "lagged"]);
        // A state that another one interrupts.
        let part = |at: &str| {
            event(&format!(r#"{{"type":"state.initial","reason":"lagged","snapshotAt":"{at}","more":true}}"#), None)
        };
        let items = ["1", "1", "2", "2"].map(|at| Some(intake.on_event(&part(at), "t")));
        assert_eq!(texts(items), ["lagged", "lagged"]);
    }

    #[test]
    fn control_events_move_the_cursor_only() {
        let mut intake = intake(&["tenant.claimed"], true);
        for kind in ["heartbeat", "auth.expiring", "stream.closing", "claim.state"] {
            let item = intake.on_event(&event(&format!(r#"{{"type":"{kind}"}}"#), Some("c")), "t");
            assert_eq!(item, Item { message: None, cursor: Some("c".to_owned()) });
        }
        let claimed = intake.on_event(&event(r#"{"type":"tenant.claimed"}"#, None), "t").message.unwrap();
        assert_eq!(claimed.id, "run.1");
        // What may be missing is never narrowed.
        let relay = intake.on_event(&event(r#"{"type":"relay.gap","reason":"expired"}"#, None), "t");
        assert_eq!(texts([Some(relay), Some(intake.on_malformed("t"))]), ["expired", MALFORMED]);
    }
}
