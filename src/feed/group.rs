//! A fan-out group as the transport sees it: all live subscriptions of one projection.

use std::sync::Arc;

use super::{
    inner::Inner,
    projection_cache::{ProjectionCache, SharedBatch},
};

/// The log as all subscriptions of one projection read it.
#[derive(Clone, Debug)]
pub struct Group {
    inner: Arc<Inner>,
    cache: Arc<ProjectionCache>,
}

impl Group {
    pub(super) fn new(inner: Arc<Inner>, cache: Arc<ProjectionCache>) -> Group {
        Group { inner, cache }
    }

    /// Returns a number that equal groups share, and no other group.
    #[must_use]
    pub fn id(&self) -> usize {
        self.cache.id()
    }

    /// Returns whether [`Feed::take_concerned`](super::Feed::take_concerned) reports the entries that can concern the group.
    /// Otherwise each entry can.
    #[must_use]
    pub fn is_indexed(&self) -> bool {
        self.cache.is_indexed()
    }

    /// Returns the end position of the log.
    #[must_use]
    pub fn end(&self) -> u64 {
        *self.inner.log_end.borrow()
    }

    /// Returns the end of the log, and whether an entry from `from` up to it is relevant for the group. It renders the
    /// entries, once for all members.
    #[must_use]
    pub fn has_relevant_since(&self, from: u64) -> (u64, bool) {
        self.inner.has_relevant_since(&self.cache, from)
    }

    /// Returns the bytes that every member at this position receives. `None` if there are none, if they exceed
    /// `max_bytes`, or if each subscription must read by itself.
    #[must_use]
    pub fn batch_from(&self, from: u64, max_bytes: usize) -> Option<SharedBatch> {
        self.cache.shared_batch(from, max_bytes)
    }
}
