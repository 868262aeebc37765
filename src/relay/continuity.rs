//! Whether the events of a new connection continue those of the connection before. Pure.
//!
//! After a reconnect, a server sends the events after `Last-Event-ID` again. Only some of its events have an id, so it also
//! repeats events that clients have: those after the last id. They are recognized by their content.
//!
//! A server that does not resume is recognized by what it sends: no ids at all, or ids that start again. A server whose ids
//! continue although it has skipped events cannot be recognized.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

use crate::client::{Block, MAX_ID_BYTES};

/// Different events after the last id that are remembered, as hashes. They take at most 2 MiB. Later events without an id can
/// be sent twice after a reconnect.
const MAX_TAIL: usize = 65_536;

/// How often each event was sent, by its hash.
type Counts = HashMap<u64, u32>;

/// What the connections so far say about the next one.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    hasher: RandomState,
    /// The last id, which the next request sends.
    cursor: Option<String>,
    /// The events from the one with the last id on.
    tail: Counts,
    /// Those of them that this connection has not repeated yet.
    expected: Counts,
    /// A connection has sent a stream.
    has_streamed: bool,
    /// The first id of this connection.
    first_id: Option<String>,
    /// The first id of the connection before.
    earlier_first_id: Option<String>,
    /// The request had an id, and no other id has arrived since.
    is_resuming: bool,
}

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It continues the stream.
    New,
    /// Clients have it.
    Repeated,
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
    pub(super) fn on_connected(&mut self) -> bool {
        self.expected.clone_from(&self.tail);
        self.earlier_first_id = self.first_id.take().or(self.earlier_first_id.take());
        self.is_resuming = self.cursor().is_some();
        self.has_streamed && !self.is_resuming
    }

    /// Records that the connection sends a stream, and is not a refusal in the form of a stream.
    pub(super) fn on_streaming(&mut self) {
        self.has_streamed = true;
    }

    /// Judges the next event. `has_seen` returns whether an event of an earlier connection has had an id.
    pub(super) fn judge(&mut self, block: &Block, has_seen: impl Fn(&str) -> bool) -> Verdict {
        let hash = self.hasher.hash_one(block);
        // Not in order: an event that a server does not repeat, such as a ping, can stand between those that it repeats.
        if let Some(count) = self.expected.get_mut(&hash).filter(|count| **count > 0) {
            *count -= 1;
            return Verdict::Repeated;
        }
        let mut verdict = Verdict::New;
        // An empty id means that there is none any more.
        if let Some(id) = block.id.as_deref()
            && self.cursor.as_deref().unwrap_or_default() != id
        {
            if std::mem::take(&mut self.is_resuming) && self.starts_again(id, has_seen) {
                verdict = Verdict::StartedAgain;
            }
            self.cursor = Some(id.to_owned()).filter(|id| !id.is_empty());
            self.expected.clear();
            self.tail.clear();
        }
        if self.first_id.is_none() {
            self.first_id = block.id.clone().filter(|id| !id.is_empty());
        }
        if self.tail.len() < MAX_TAIL {
            *self.tail.entry(hash).or_default() += 1;
        }
        verdict
    }

    /// Records the last id of the stream, which a block without data can have set.
    pub(super) fn on_last_id(&mut self, id: Option<&str>) {
        if let Some(id) = id
            && self.cursor.as_deref().unwrap_or_default() != id
        {
            self.cursor = Some(id.to_owned()).filter(|id| !id.is_empty());
            self.tail.clear();
        }
    }

    fn starts_again(&self, id: &str, has_seen: impl Fn(&str) -> bool) -> bool {
        let goes_back = || {
            let number = |id: &str| id.parse::<u64>().ok();
            number(id).zip(self.cursor.as_deref().and_then(number)).is_some_and(|(new, last)| new < last)
        };
        self.earlier_first_id.as_deref() == Some(id) || goes_back() || has_seen(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(id: &str, data: &str) -> Block {
        Block { id: Some(id.to_owned()).filter(|id| !id.is_empty()), name: None, data: data.to_owned() }
    }

    /// Judges events of (id, data) against the ids that were seen.
    fn judge(continuity: &mut Continuity, seen: &[&str], events: &[(&str, &str)]) -> Vec<Verdict> {
        let judge = |(id, data): &(&str, &str)| continuity.judge(&block(id, data), |id| seen.contains(&id));
        events.iter().map(judge).collect()
    }

    use Verdict::{New, Repeated, StartedAgain};

    #[test]
    fn repeated_events_after_the_last_id_are_recognized_once() {
        let mut continuity = Continuity::default();
        assert!(!continuity.on_connected());
        continuity.on_streaming();
        let first = [("1", "a"), ("", "ephemeral"), ("", "b"), ("", "b")];
        assert_eq!(judge(&mut continuity, &[], &first), [New; 4]);
        assert_eq!(continuity.cursor(), Some("1"));
        for _ in 0..2 {
            assert!(!continuity.on_connected());
            // A heartbeat with the last id precedes the events; the ephemeral one is not repeated.
            let second = [("1", "beat"), ("", "b"), ("", "b"), ("", "b")];
            let had_second = continuity.tail.len() > 3;
            let verdicts = if had_second { [Repeated; 4] } else { [New, Repeated, Repeated, New] };
            assert_eq!(judge(&mut continuity, &["1"], &second), verdicts);
        }
        assert_eq!(judge(&mut continuity, &["1"], &[("2", "c"), ("", "b")]), [New, New]);
    }

    #[test]
    fn an_upstream_that_does_not_resume_is_recognized() {
        let mut without_ids = Continuity::default();
        without_ids.on_connected();
        assert!(!without_ids.on_connected(), "the connection before has sent no stream");
        without_ids.on_streaming();
        judge(&mut without_ids, &[], &[("", "a")]);
        assert!(without_ids.on_connected());

        let resumed = |first: &[(&str, &str)], seen: &[&str], next: (&str, &str)| {
            let mut continuity = Continuity::default();
            continuity.on_connected();
            continuity.on_streaming();
            judge(&mut continuity, &[], first);
            assert!(!continuity.on_connected());
            judge(&mut continuity, seen, &[next])[0]
        };
        let first = [("10", "a"), ("11", "b")];
        assert_eq!(resumed(&first, &[], ("12", "c")), New);
        assert_eq!(resumed(&first, &[], ("11", "b")), Repeated, "the server sends the event with the last id again");
        assert_eq!(resumed(&first, &[], ("11", "other")), New);
        assert_eq!(resumed(&first, &[], ("3", "c")), StartedAgain, "lower than before");
        let cleared = Block { id: Some(String::new()), ..Block::default() };
        assert_eq!(
            Continuity { cursor: Some("7".into()), is_resuming: true, ..Continuity::default() }
                .judge(&cleared, |_| false),
            New
        );
        assert_eq!(resumed(&[("x", "a"), ("y", "b")], &[], ("x", "c")), StartedAgain, "the first id again");
        assert_eq!(resumed(&[("x", "a"), ("y", "b"), ("z", "")], &["y"], ("y", "c")), StartedAgain, "a known id");
    }

    #[test]
    fn ids_that_no_header_can_carry_are_not_sent() {
        let mut continuity = Continuity::default();
        judge(&mut continuity, &[], &[("a\u{1}", "")]);
        assert_eq!(continuity.cursor(), None);
        continuity.on_last_id(Some("é"));
        assert_eq!(continuity.cursor(), Some("é"));
        continuity.on_last_id(Some(""));
        assert_eq!(continuity.cursor(), None);
        continuity.on_last_id(Some(&"x".repeat(MAX_ID_BYTES)));
        assert!(continuity.cursor().is_some());
        continuity.on_last_id(Some(&"x".repeat(MAX_ID_BYTES + 1)));
        assert_eq!(continuity.cursor(), None, "the server would answer 431");
    }
}
