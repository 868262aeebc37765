//! Those who look through one lens, for whoever tells all of them when there is something to read.

use std::sync::Arc;

use super::{
    inner::Inner,
    projection_cache::{ProjectionCache, SharedBatch},
};

/// A lens of a feed, from the side of those who look through it.
#[derive(Clone, Debug)]
pub struct Group {
    inner: Arc<Inner>,
    cache: Arc<ProjectionCache>,
}

impl Group {
    pub(super) fn new(inner: Arc<Inner>, cache: Arc<ProjectionCache>) -> Group {
        Group { inner, cache }
    }

    /// The same number for the same audience, as long as one of both is there.
    #[must_use]
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.cache).addr()
    }

    /// The position up to which there are steps now.
    #[must_use]
    pub fn end(&self) -> u64 {
        *self.inner.log_end.borrow()
    }

    /// How far the log goes from a position, and whether anything on the way concerns this audience. The steps are
    /// rendered by it, once for all.
    #[must_use]
    pub fn has_relevant_since(&self, from: u64) -> (u64, bool) {
        self.inner.has_relevant_since(&self.cache, from)
    }

    /// What everybody is shown who is at this position, if it is at most `max_bytes` and no more than frames.
    #[must_use]
    pub fn batch_from(&self, from: u64, max_bytes: usize) -> Option<SharedBatch> {
        self.cache.shared_batch(from, max_bytes)
    }
}
