//! Whether the events of a new connection continue those of the connection before. Pure.
//!
//! After a reconnect, a server sends the events after `Last-Event-ID` again. Only some of its events have an id, so it also
//! repeats events that clients have: those after the last id. They are recognized by their content, and only while the server
//! repeats events at all: later, an event with the text of an earlier one is a new event.
//!
//! A server that does not resume is recognized by what it sends: no ids at all, or ids that start again. A server whose ids
//! continue although it has skipped events cannot be recognized.
//!
//! In doubt an event is new: clients can recognize one that comes twice, and cannot recognize one that is missing.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use tokio::time::Instant;

use crate::client::{Block, MAX_ID_BYTES};

/// Different events after the last id that are remembered, as hashes. They take about 2 MiB. Later events without an id can
/// be sent twice after a reconnect.
const MAX_TAIL: usize = 65_536;
/// The server has repeated everything when it has repeated nothing for this time. It repeats at once what it has stored, so
/// this time covers a network that loses packets and a busy server.
const REPLAY_PAUSE: Duration = Duration::from_secs(2);
/// A server that still repeats events after this time may as well send new ones that are equal.
const MAX_REPLAY: Duration = Duration::from_secs(30);
/// Names of events that never count as repeated. A relay does not repeat `matrix-up`. A second `relay.gap` can report a
/// further loss, and a client that gets one too many loses nothing.
const ALWAYS_NEW: [&str; 2] = ["matrix-up", "relay.gap"];

/// What the connections so far say about the next one.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    hasher: RandomState,
    /// The last id, which the next request sends.
    cursor: Option<String>,
    /// The events from the one with the last id on, by their hashes. Empty while a request cannot resume after that id. Events
    /// before the first id of a stream do not belong to it. If a heartbeat has that id, a server can repeat them nevertheless.
    tail: HashMap<u64, Sent>,
    /// `Some` while this connection can repeat the tail.
    replay: Option<Replay>,
    /// A connection has sent a stream.
    has_streamed: bool,
    /// The first id of this connection.
    first_id: Option<String>,
    /// The first id of the connection before.
    earlier_first_id: Option<String>,
    /// The request had an id, and no other id has arrived since.
    is_resuming: bool,
}

/// How often an event of the tail was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    count: u32,
    /// Those that this connection has not repeated yet.
    expected: u32,
}

/// The part of a connection that can repeat the tail.
#[derive(Clone, Copy, Debug)]
struct Replay {
    started: Instant,
    /// When the last repeated event arrived; at first the start.
    last: Instant,
}

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It continues the stream.
    New,
    /// Clients have it.
    Repeated,
    /// It is sent, but it may be repeated, and events before it that counted as repeated may have been new.
    Unclear,
    /// The ids of the upstream have started again: the stream is another one from this event on.
    StartedAgain,
}

impl Continuity {
    /// Returns the id after which the next connection resumes, if a header can carry it.
    pub(super) fn cursor(&self) -> Option<&str> {
        let is_text = |id: &str| id.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f));
        let can_be_sent = |id: &&str| id.len() <= MAX_ID_BYTES && is_text(id);
        self.cursor.as_deref().filter(can_be_sent)
    }

    /// Records that a connection has started. Returns whether events may be missing, because a connection before has sent
    /// no id to resume after.
    pub(super) fn on_connected(&mut self, now: Instant) -> bool {
        self.earlier_first_id = self.first_id.take().or(self.earlier_first_id.take());
        self.is_resuming = self.cursor().is_some();
        self.tail.values_mut().for_each(|sent| sent.expected = sent.count);
        // A server that was not asked to resume does not know what clients have: nothing that it sends is a repetition.
        self.replay = self.is_resuming.then_some(Replay { started: now, last: now });
        self.has_streamed && !self.is_resuming
    }

    /// Records that the connection sends a stream, and is not a refusal in the form of a stream.
    pub(super) fn on_streaming(&mut self) {
        self.has_streamed = true;
    }

    /// Judges the next event, which began to arrive at this time. `has_seen` returns whether an event of an earlier
    /// connection has had an id.
    pub(super) fn judge(&mut self, block: &Block, at: Instant, has_seen: impl Fn(&str) -> bool) -> Verdict {
        let known = self.judge_repetition(block, at);
        if known == Some(Verdict::Repeated) {
            return Verdict::Repeated;
        }
        let verdict = block.id.as_deref().map_or(Verdict::New, |id| self.advance(id, has_seen));
        self.record(block);
        known.unwrap_or(verdict)
    }

    /// Judges an event that was held back. [`Continuity::advance`] has moved to its id when it arrived.
    pub(super) fn judge_held(&mut self, block: &Block, at: Instant) -> Verdict {
        let known = self.judge_repetition(block, at);
        if known != Some(Verdict::Repeated) {
            self.record(block);
        }
        known.unwrap_or(Verdict::New)
    }

    /// Records an event that clients get.
    fn record(&mut self, block: &Block) {
        let hash = self.hasher.hash_one(block);
        let has_place = self.tail.len() < MAX_TAIL || self.tail.contains_key(&hash);
        if has_place && self.cursor().is_some() && !is_always_new(block) {
            self.tail.entry(hash).or_default().count += 1;
        }
    }

    /// Judges whether this connection repeats an event. `None` if it does not.
    ///
    /// Not in order: an event that a server does not repeat, such as a ping, can stand between those that it repeats.
    fn judge_repetition(&mut self, block: &Block, at: Instant) -> Option<Verdict> {
        if is_always_new(block) {
            return None;
        }
        let replay = self.replay.as_mut()?;
        if at >= replay.last + REPLAY_PAUSE {
            self.replay = None;
            return None;
        }
        let sent = self.tail.get_mut(&self.hasher.hash_one(block)).filter(|sent| sent.expected > 0)?;
        if sent.count > 1 && at >= replay.started + REPLAY_PAUSE {
            // A text that comes again and again, such as that of a ping: it is new sooner than others.
            return None;
        }
        if at >= replay.started + MAX_REPLAY {
            self.replay = None;
            return Some(Verdict::Unclear);
        }
        sent.expected -= 1;
        replay.last = at;
        Some(Verdict::Repeated)
    }

    /// Moves to the id of an event that is not repeated, or of a block without data. An empty id means that there is none any
    /// more. Returns [`Verdict::StartedAgain`] or [`Verdict::New`].
    pub(super) fn advance(&mut self, id: &str, has_seen: impl Fn(&str) -> bool) -> Verdict {
        let new = Some(id.to_owned()).filter(|id| !id.is_empty());
        if self.first_id.is_none() {
            self.first_id.clone_from(&new);
        }
        if self.cursor == new {
            return Verdict::New;
        }
        let is_first = new.is_some() && std::mem::take(&mut self.is_resuming);
        let verdict = if is_first && self.starts_again(id, has_seen) { Verdict::StartedAgain } else { Verdict::New };
        self.cursor = new;
        // What the server repeats precedes its next id.
        self.tail.clear();
        self.replay = None;
        verdict
    }

    fn starts_again(&self, id: &str, has_seen: impl Fn(&str) -> bool) -> bool {
        let goes_back = || {
            let number = |id: &str| id.parse::<u64>().ok();
            number(id).zip(self.cursor.as_deref().and_then(number)).is_some_and(|(new, last)| new < last)
        };
        self.earlier_first_id.as_deref() == Some(id) || goes_back() || has_seen(id)
    }
}

fn is_always_new(block: &Block) -> bool {
    block.name.as_deref().is_some_and(|name| ALWAYS_NEW.contains(&name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn block(id: &str, data: &str) -> Block {
        Block { id: Some(id.to_owned()).filter(|id| !id.is_empty()), name: None, data: data.to_owned() }
    }

    /// Judges events of (id, data) that arrive at this time against the ids that were seen.
    fn judge_at(continuity: &mut Continuity, at: Instant, seen: &[&str], events: &[(&str, &str)]) -> Vec<Verdict> {
        let judge = |(id, data): &(&str, &str)| continuity.judge(&block(id, data), at, |id| seen.contains(&id));
        events.iter().map(judge).collect()
    }

    /// A stream that began at `start` with these events, was cut, and is resumed at `start`.
    fn resumed(start: Instant, first: &[(&str, &str)]) -> Continuity {
        let mut continuity = Continuity::default();
        assert!(!continuity.on_connected(start));
        continuity.on_streaming();
        assert_eq!(judge_at(&mut continuity, start, &[], first), vec![New; first.len()]);
        assert!(!continuity.on_connected(start));
        continuity
    }

    use Verdict::{New, Repeated, StartedAgain, Unclear};

    #[test]
    fn repeated_events_after_the_last_id_are_recognized_once() {
        let now = Instant::now();
        let mut continuity = resumed(now, &[("1", "a"), ("", "ephemeral"), ("", "b"), ("", "b")]);
        assert_eq!(continuity.cursor(), Some("1"));
        // A heartbeat with the last id precedes the events; the ephemeral one is not repeated.
        let second = [("1", "beat"), ("", "b"), ("", "b"), ("", "b")];
        assert_eq!(judge_at(&mut continuity, now, &["1"], &second), [New, Repeated, Repeated, New]);
        assert!(!continuity.on_connected(now));
        assert_eq!(judge_at(&mut continuity, now, &["1"], &second), [Repeated; 4]);
        assert_eq!(judge_at(&mut continuity, now, &["1"], &[("2", "c"), ("", "b")]), [New, New]);
    }

    /// Nothing is known to be repeated by a server that was not asked to resume.
    #[test]
    fn equal_events_of_an_upstream_without_ids_are_new_after_a_reconnect() {
        for id in ["", "a\u{1}"] {
            let now = Instant::now();
            let mut continuity = Continuity::default();
            let ticks = vec![(id, "tick"); 100];
            for connection in 0..3 {
                assert_eq!(continuity.on_connected(now), connection > 0);
                continuity.on_streaming();
                assert_eq!(judge_at(&mut continuity, now, &[], &ticks), [New; 100]);
                assert!(continuity.tail.is_empty(), "a request cannot resume after {id:?}");
            }
        }
    }

    #[test]
    fn equal_events_are_new_when_the_server_has_repeated_everything() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        // A server that does not repeat events without ids. A text that recurs, and one that has come once.
        for first in [[("1", "a"), ("", "tick"), ("", "tick")], [("1", "a"), ("", "once"), ("", "tick")]] {
            let mut continuity = resumed(start, &first);
            assert_eq!(judge_at(&mut continuity, after(2), &[], &first[1..]), [New; 2]);
        }
        // Each repeated event moves the end. A text that recurs does not move it.
        let tail = [("1", "a"), ("", "b"), ("", "c"), ("", "tick"), ("", "tick"), ("", "d")];
        let mut continuity = resumed(start, &tail);
        assert_eq!(judge_at(&mut continuity, after(1), &[], &tail[..3]), [Repeated; 3]);
        assert_eq!(judge_at(&mut continuity, after(2), &[], &tail[3..]), [New, New, Repeated]);
        assert_eq!(judge_at(&mut continuity, after(4), &[], &[("", "tick"), ("1", "a")]), [New; 2]);
    }

    #[test]
    fn repetition_without_end_is_reported() {
        let start = Instant::now();
        let texts: Vec<String> = (0..40).map(|n| n.to_string()).collect();
        let events: Vec<_> = std::iter::once(("1", "a")).chain(texts.iter().map(|text| ("", text.as_str()))).collect();
        let mut continuity = resumed(start, &events);
        for (second, event) in events.iter().enumerate() {
            let verdict = judge_at(&mut continuity, start + Duration::from_secs(second as u64), &[], &[*event]);
            let expected = match second {
                0..30 => Repeated,
                30 => Unclear,
                _ => New,
            };
            assert_eq!(verdict, [expected], "second {second}");
        }
    }

    /// Of a relay that is the upstream.
    #[test]
    fn reports_of_a_relay_are_never_repeated_events() {
        let start = Instant::now();
        for name in ALWAYS_NEW {
            let report = Block { id: None, name: Some(name.to_owned()), data: "same".to_owned() };
            let mut continuity = resumed(start, &[("1", "a")]);
            for _ in 0..3 {
                assert_eq!(continuity.judge(&report, start, |_| false), New);
                assert!(!continuity.on_connected(start));
            }
        }
    }

    #[test]
    fn an_upstream_that_does_not_resume_is_recognized() {
        let now = Instant::now();
        let mut without_ids = Continuity::default();
        without_ids.on_connected(now);
        assert!(!without_ids.on_connected(now), "the connection before has sent no stream");
        without_ids.on_streaming();
        judge_at(&mut without_ids, now, &[], &[("", "a")]);
        assert!(without_ids.on_connected(now));

        let resumed = |first: &[(&str, &str)], seen: &[&str], next: (&str, &str)| {
            judge_at(&mut resumed(now, first), now, seen, &[next])[0]
        };
        let first = [("10", "a"), ("11", "b")];
        assert_eq!(resumed(&first, &[], ("12", "c")), New);
        assert_eq!(resumed(&first, &[], ("11", "b")), Repeated, "the server sends the event with the last id again");
        assert_eq!(resumed(&first, &[], ("11", "other")), New);
        assert_eq!(resumed(&first, &[], ("3", "c")), StartedAgain, "lower than before");
        assert_eq!(resumed(&[("x", "a"), ("y", "b")], &[], ("x", "c")), StartedAgain, "the first id again");
        assert_eq!(resumed(&[("x", "a"), ("y", "b"), ("z", "")], &["y"], ("y", "c")), StartedAgain, "a known id");
    }

    #[test]
    fn ids_of_blocks_without_data_count_in_order() {
        let now = Instant::now();
        let mut continuity = Continuity::default();
        continuity.on_connected(now);
        assert_eq!(judge_at(&mut continuity, now, &[], &[("4", "a")]), [New]);
        assert_eq!(continuity.advance("5", |_| false), New);
        assert_eq!(judge_at(&mut continuity, now, &[], &[("", "x")]), [New]);
        continuity.on_connected(now);
        assert_eq!(continuity.advance("5", |_| false), New, "the server repeats the block without data");
        assert_eq!(judge_at(&mut continuity, now, &[], &[("", "x"), ("", "a")]), [Repeated, New]);
        continuity.on_connected(now);
        assert_eq!(continuity.advance("", |_| false), New);
        assert_eq!(continuity.cursor(), None);
        assert_eq!(continuity.advance("4", |id| id == "4"), StartedAgain, "an id was cleared before");
    }

    #[test]
    fn event_that_was_held_back_does_not_move_the_id_back() {
        let now = Instant::now();
        let mut continuity = resumed(now, &[("1", "a")]);
        let held = block("2", "held");
        assert_eq!(continuity.advance("2", |_| false), New);
        assert_eq!(continuity.advance("3", |_| false), New);
        assert_eq!(continuity.judge_held(&held, now), New);
        assert_eq!(continuity.cursor(), Some("3"));
        continuity.on_connected(now);
        assert_eq!(continuity.judge_held(&held, now), Repeated);
    }

    #[test]
    fn ids_that_no_header_can_carry_are_not_sent() {
        let mut continuity = Continuity::default();
        judge_at(&mut continuity, Instant::now(), &[], &[("a\u{1}", "")]);
        assert_eq!(continuity.cursor(), None);
        continuity.advance("é", |_| false);
        assert_eq!(continuity.cursor(), Some("é"));
        continuity.advance("", |_| false);
        assert_eq!(continuity.cursor(), None);
        continuity.advance(&"x".repeat(MAX_ID_BYTES), |_| false);
        assert!(continuity.cursor().is_some());
        continuity.advance(&"x".repeat(MAX_ID_BYTES + 1), |_| false);
        assert_eq!(continuity.cursor(), None, "the server would answer 431");
    }

    /// What happens at a server, or between it and the relay.
    #[derive(Clone, Debug)]
    enum Step {
        /// The server stores an event, and sends it if the relay is connected.
        Stored {
            has_id: bool,
            text: u8,
        },
        /// The server sends an event that it does not store, with the last id or without one. It has the first id that the relay
        /// receives in an event that it stores.
        Beat {
            has_id: bool,
            text: u8,
        },
        /// The connection is cut.
        Cut,
        /// The relay connects, if it is not connected. The server repeats at most this many events before a cut.
        Connect {
            repeats: usize,
        },
        /// The server is replaced by one that has stored nothing, and gives its ids again.
        Replace,
        Wait {
            ms: u64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (any::<bool>(), 0..2u8).prop_map(|(has_id, text)| Step::Stored { has_id, text }),
            3 => (any::<bool>(), 0..2u8).prop_map(|(has_id, text)| Step::Beat { has_id, text }),
            2 => Just(Step::Cut),
            3 => prop_oneof![Just(usize::MAX), 0..4usize].prop_map(|repeats| Step::Connect { repeats }),
            1 => Just(Step::Replace),
            1 => (0..4000u64).prop_map(|ms| Step::Wait { ms }),
        ]
    }

    /// A server that stores its events, and one relay.
    struct Model {
        continuity: Continuity,
        now: Instant,
        /// The events of (id, data) that the server has stored.
        stored: Vec<(String, String)>,
        /// Those of them that the relay was sent, by their index.
        sent: HashSet<usize>,
        next_id: u64,
        /// Ids are numbers, or texts that have no order.
        has_numbers: bool,
        is_connected: bool,
        /// A server was replaced.
        is_replaced: bool,
        /// The server was replaced, and has sent no other id since. What it repeats cannot be known.
        is_unclear: bool,
        /// When the last connection or the last event that it repeated was.
        repeated_at: Instant,
        seen: HashSet<String>,
        /// What clients have, and what they must have: stored events only.
        received: Vec<(String, String)>,
        expected: Vec<(String, String)>,
    }

    impl Model {
        fn new(has_numbers: bool) -> Model {
            let now = Instant::now();
            Model {
                continuity: Continuity::default(),
                now,
                stored: Vec::new(),
                sent: HashSet::new(),
                next_id: 1,
                has_numbers,
                is_connected: false,
                is_replaced: false,
                is_unclear: false,
                repeated_at: now,
                seen: HashSet::new(),
                received: Vec::new(),
                expected: Vec::new(),
            }
        }

        /// The relay receives an event. Returns what it is.
        fn receive(&mut self, id: &str, data: &str) -> Verdict {
            let cursor = self.continuity.cursor.clone().unwrap_or_default();
            let is_first = self.continuity.is_resuming && !id.is_empty() && id != cursor;
            let verdict = self.continuity.judge(&block(id, data), self.now, |id| self.seen.contains(id));
            let number = |id: &str| id.parse::<u64>().ok();
            let goes_back =
                self.seen.contains(id) || number(id).zip(number(&cursor)).is_some_and(|(id, last)| id < last);
            let starts_again = is_first && goes_back;
            assert_eq!(verdict == StartedAgain, starts_again, "{id} after {cursor}");
            assert!(!starts_again || self.is_replaced, "a gap is reported although the server is the same");
            if !id.is_empty() {
                self.is_unclear &= id == cursor;
                self.seen.insert(id.to_owned());
            }
            if verdict == Repeated {
                self.repeated_at = self.now;
            }
            verdict
        }

        /// The server sends a stored event, which the relay must have then.
        fn send_stored(&mut self, index: usize) {
            let is_new = self.sent.insert(index);
            let (id, data) = self.stored[index].clone();
            let verdict = self.receive(&id, &data);
            if self.is_unclear {
                return;
            }
            if is_new {
                self.expected.push((id.clone(), data.clone()));
            }
            match verdict {
                Repeated => {}
                New | StartedAgain => self.received.push((id, data)),
                Unclear => panic!("the server repeats for less than {MAX_REPLAY:?}"),
            }
        }

        fn connect(&mut self, repeats: usize) {
            let cursor = self.continuity.cursor().map(str::to_owned);
            let is_reported = self.continuity.on_connected(self.now);
            self.continuity.on_streaming();
            self.repeated_at = self.now;
            let place = cursor.as_ref().and_then(|cursor| self.stored.iter().position(|(id, _)| id == cursor));
            // A server without the id sends everything, and one that was not asked sends what is new.
            let from = if cursor.is_some() { place.map_or(0, |place| place + 1) } else { self.stored.len() };
            if cursor.is_none() {
                let is_missing = self.sent.len() < self.stored.len() && !self.received.is_empty();
                assert!(is_reported || !is_missing, "a silent gap");
                self.is_unclear = false;
            }
            self.is_connected = repeats >= self.stored.len() - from;
            for index in (from..self.stored.len()).take(repeats) {
                self.send_stored(index);
            }
        }

        fn step(&mut self, step: &Step) {
            self.now += Duration::from_millis(1);
            match step {
                Step::Stored { has_id, text } => {
                    let prefix = if self.has_numbers { "" } else { "id " };
                    let id = if *has_id { format!("{prefix}{}", self.next_id) } else { String::new() };
                    self.next_id += u64::from(*has_id);
                    self.stored.push((id, format!("stored {text}")));
                    if self.is_connected {
                        self.send_stored(self.stored.len() - 1);
                    }
                }
                Step::Beat { has_id, text } if self.is_connected => {
                    let last = self.stored.iter().rev().map(|(id, _)| id.clone()).find(|id| !id.is_empty());
                    let knows_id = self.continuity.cursor.is_some();
                    let is_late = self.now >= self.repeated_at + REPLAY_PAUSE;
                    let verdict = self
                        .receive(&last.filter(|_| *has_id && knows_id).unwrap_or_default(), &format!("beat {text}"));
                    assert!(verdict != Repeated || !is_late, "a new event is left out");
                }
                Step::Cut => self.is_connected = false,
                Step::Connect { repeats } if !self.is_connected => self.connect(*repeats),
                Step::Replace => {
                    (self.is_connected, self.is_replaced, self.is_unclear) = (false, true, true);
                    self.next_id = 1;
                    self.stored.clear();
                    self.sent.clear();
                }
                Step::Wait { ms } => self.now += Duration::from_millis(*ms),
                Step::Beat { .. } | Step::Connect { .. } => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        /// Each stored event reaches clients once and in order, whatever else is equal to it; and no event is left out once the
        /// server has repeated everything.
        #[test]
        fn every_stored_event_is_sent_once(
            has_numbers in any::<bool>(),
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut model = Model::new(has_numbers);
            for step in &steps {
                model.step(step);
                prop_assert_eq!(&model.received, &model.expected);
            }
        }
    }
}
