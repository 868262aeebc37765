//! The log that the streams of a server read: that of a feed, or the history of a relay.
//!
//! The choice costs one branch for each batch of a group, not for each delivery.

use tokio::sync::watch;

use crate::{
    feed::{self, Feed, SharedBatch},
    relay::{self, History},
};

/// The log of all streams of a server.
#[derive(Clone, Debug)]
pub enum Log {
    /// The log of a feed, with groups that only some entries concern.
    Feed(Feed),
    /// The history of a relay, whose entries concern every group.
    Relay(History),
}

/// The log as all streams of one fan-out group read it.
#[derive(Clone, Debug)]
pub enum Group {
    /// The live subscriptions of one projection.
    Feed(feed::Group),
    /// The live clients of a relay with one format.
    Relay(relay::Group),
}

impl Log {
    /// Returns a receiver of the end position of the log.
    pub(super) fn end(&self) -> watch::Receiver<u64> {
        match self {
            Log::Feed(feed) => feed.log_end(),
            Log::Relay(history) => history.log_end(),
        }
    }

    /// Adds a reader of the groups that entries concern. Returns its number, for [`Log::take_concerned`].
    pub(super) fn add_concern_reader(&self) -> usize {
        match self {
            Log::Feed(feed) => feed.add_concern_reader(),
            Log::Relay(_) => 0,
        }
    }

    /// Returns the ids of the indexed groups that new entries can concern.
    pub(super) fn take_concerned(&self, reader: usize, end: u64) -> Vec<usize> {
        match self {
            Log::Feed(feed) => feed.take_concerned(reader, end),
            Log::Relay(_) => Vec::new(),
        }
    }
}

impl Group {
    /// Returns a number that equal groups share, and no other group of the log.
    pub(super) fn id(&self) -> usize {
        match self {
            Group::Feed(group) => group.id(),
            Group::Relay(group) => group.id(),
        }
    }

    /// Returns whether [`Log::take_concerned`] reports the entries that can concern the group. Otherwise each entry can.
    pub(super) fn is_indexed(&self) -> bool {
        match self {
            Group::Feed(group) => group.is_indexed(),
            Group::Relay(_) => false,
        }
    }

    /// Returns the end position of the log.
    pub(super) fn end(&self) -> u64 {
        match self {
            Group::Feed(group) => group.end(),
            Group::Relay(group) => group.end(),
        }
    }

    /// Returns the end of the log, and whether an entry from `from` up to it is relevant for the group.
    pub(super) fn has_relevant_since(&self, from: u64) -> (u64, bool) {
        match self {
            Group::Feed(group) => group.has_relevant_since(from),
            Group::Relay(group) => {
                let end = group.end();
                (end, end > from)
            }
        }
    }

    /// Returns the bytes that every member at this position receives. `None` if there are none, if they exceed
    /// `max_bytes`, or if each member must read by itself.
    pub(super) fn batch_from(&self, from: u64, max_bytes: usize) -> Option<SharedBatch> {
        match self {
            Group::Feed(group) => group.batch_from(from, max_bytes),
            Group::Relay(group) => group.batch_from(from, max_bytes),
        }
    }
}
