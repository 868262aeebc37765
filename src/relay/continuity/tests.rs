//! Tests of the continuity of an upstream, with a model of what it sends.

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
        let goes_back = self.seen.contains(id) || number(id).zip(number(&cursor)).is_some_and(|(id, last)| id < last);
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
                let verdict =
                    self.receive(&last.filter(|_| *has_id && knows_id).unwrap_or_default(), &format!("beat {text}"));
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
