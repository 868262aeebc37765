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
mod tests;
