//! What a connection has delivered, and the cursor that covers it. Pure.
//!
//! Only the last event of a resourceVersion or of a difference has an id, and a resume repeats what has no id
//! (docs/protocol.md#cursor). So the events before it are held back until it has come, and forgotten if the connection is
//! cut before. Another replica may send other events instead, in another order.

use std::{borrow::Cow, collections::VecDeque};

use serde::Deserialize;

use super::event::{Event, can_be_sent_back};

/// Bytes of events that are held back: more than a difference of a large namespace has. Beyond them, events are complete
/// although their id has not come.
const MAX_HELD_BYTES: usize = 64 << 20;

/// The position of a reader in a stream.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The last id of an event that was taken.
    cursor: Option<String>,
    /// Events whose id has not come, and their bytes.
    held: Vec<Event>,
    held_bytes: usize,
    /// Events that are taken next.
    complete: VecDeque<Event>,
}

impl Progress {
    /// A reader that resumes after this cursor.
    pub(super) fn after(cursor: Option<String>) -> Progress {
        Progress { cursor, ..Progress::default() }
    }

    /// Returns the cursor that covers what was taken.
    pub(super) fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// Forgets the cursor, because the server does not accept it.
    pub(super) fn forget_cursor(&mut self) {
        self.cursor = None;
    }

    /// Adds an event: it is complete, or held back.
    pub(super) fn add(&mut self, event: Event) {
        self.held_bytes += event.json.get().len();
        let waits = event.id.is_none() && (!self.held.is_empty() || self.is_followed_by_id(&event));
        self.held.push(event);
        if !waits || self.held_bytes > MAX_HELD_BYTES {
            self.complete.extend(self.held.drain(..));
            self.held_bytes = 0;
        }
    }

    /// Takes the next complete event. The cursor moves with it.
    pub(super) fn take(&mut self) -> Option<Event> {
        let event = self.complete.pop_front()?;
        if let Some(id) = &event.id {
            self.cursor = Some(id.clone());
        }
        Some(event)
    }

    /// Forgets what is held back, because the connection has ended. `last_id` is that of the stream, also one that no event
    /// carries; an empty one means that there is none any more.
    pub(super) fn connection_ended(&mut self, last_id: Option<&str>) {
        // An id without an event does not cover what is forgotten here. One that cannot be sent back would end every
        // further try.
        if let Some(id) = last_id.filter(|id| self.held.is_empty() && can_be_sent_back(id)) {
            self.cursor = Some(id.to_owned()).filter(|id| !id.is_empty());
        }
        self.held.clear();
        self.held_bytes = 0;
    }

    /// Returns whether another event follows at once, which has the id of this one. Only the keys of a bridge end with the
    /// type (docs/protocol.md#events-about-objects): the events of other servers do not wait.
    fn is_followed_by_id(&self, event: &Event) -> bool {
        #[derive(Deserialize)]
        struct Key<'a> {
            #[serde(borrow)]
            key: Option<Cow<'a, str>>,
        }
        let key = || serde_json::from_str::<Key<'_>>(event.json.get()).ok().and_then(|object| object.key);
        let is_of_bridge = |key: &str| key.strip_suffix(&event.kind).is_some_and(|rest| rest.ends_with('.'));
        self.cursor.is_some() && !event.kind.is_empty() && key().is_some_and(|key| is_of_bridge(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::event::MAX_ID_BYTES;

    /// The kinds of the events that are taken next.
    fn taken(progress: &mut Progress, data: &str) -> Vec<String> {
        progress.add(Event::from_json(data).unwrap());
        std::iter::from_fn(|| progress.take()).map(|event| event.kind).collect()
    }

    const FIRST: &str = r#"{"type":"a","key":"u.1.a"}"#;
    const LAST: &str = r#"{"type":"b","key":"u.1.b","id":"2"}"#;

    #[test]
    fn events_are_held_back_until_their_id_has_come() {
        let mut progress = Progress::default();
        assert_eq!(taken(&mut progress, FIRST), ["a"], "a server without ids");
        let mut progress = Progress::after(Some("1".to_owned()));
        assert_eq!(taken(&mut progress, r#"{"type":"pool.depth"}"#), ["pool.depth"]);
        assert_eq!(taken(&mut progress, r#"{"type":"order","key":"customer-1"}"#), ["order"], "another server");
        assert!(taken(&mut progress, FIRST).is_empty());
        assert!(taken(&mut progress, r#"{"type":"c"}"#).is_empty(), "the order stays");
        assert_eq!(progress.cursor(), Some("1"));
        assert_eq!(taken(&mut progress, LAST), ["a", "c", "b"]);
        assert_eq!(progress.cursor(), Some("2"));
        progress.held_bytes = MAX_HELD_BYTES;
        assert_eq!(taken(&mut progress, FIRST), ["a"], "the buffer is bounded");
        assert_eq!((progress.held.len(), progress.held_bytes), (0, 0));
    }

    #[test]
    fn a_cut_forgets_what_is_held_back() {
        let mut progress = Progress::after(Some("1".to_owned()));
        assert!(taken(&mut progress, FIRST).is_empty());
        progress.connection_ended(Some("7"));
        assert_eq!(progress.cursor(), Some("1"), "the id of a block does not cover what is forgotten");
        assert!(taken(&mut progress, FIRST).is_empty());
        assert_eq!(taken(&mut progress, LAST), ["a", "b"]);
        let long = "x".repeat(MAX_ID_BYTES + 1);
        let cannot_be_sent_back = [(Some("a\u{1}"), Some("2")), (Some(long.as_str()), Some("2"))];
        let ids = [(None, Some("2")), (Some("3"), Some("3")), (Some(""), None)];
        for (last_id, cursor) in cannot_be_sent_back.into_iter().chain(ids) {
            progress.connection_ended(last_id);
            assert_eq!(progress.cursor(), cursor);
        }
    }
}
