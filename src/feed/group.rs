//! Those who look through one lens, for whoever tells all of them when there is something to read.

use std::sync::Arc;

use bytes::Bytes;

use super::{ProjectionCache, Shared};
use crate::event::{PerResource, ResourceVersion};

/// A lens of a feed, from the side of those who look through it.
#[derive(Clone, Debug)]
pub struct Group {
    shared: Arc<Shared>,
    cache: Arc<ProjectionCache>,
}

/// What is shown to everybody of an audience who is at one position.
#[derive(Clone, Debug)]
pub struct SharedBatch {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) versions_after: PerResource<ResourceVersion>,
    /// Complete frames.
    pub bytes: Bytes,
}

impl SharedBatch {
    /// The position after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.to
    }
}

impl Group {
    pub(super) fn new(shared: Arc<Shared>, cache: Arc<ProjectionCache>) -> Group {
        Group { shared, cache }
    }

    /// The same number for the same audience, as long as one of both is there.
    #[must_use]
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.cache).addr()
    }

    /// The position up to which there are steps now.
    #[must_use]
    pub fn end(&self) -> u64 {
        *self.shared.log_end.borrow()
    }

    /// How far the log goes from a position, and whether anything on the way concerns this audience. The steps are
    /// rendered by it, once for all.
    #[must_use]
    pub fn has_relevant_since(&self, from: u64) -> (u64, bool) {
        self.cache.has_relevant_since(&self.shared, from)
    }

    /// What everybody is shown who is at this position, if it is at most `max_bytes` and no more than frames.
    #[must_use]
    pub fn batch_from(&self, from: u64, max_bytes: usize) -> Option<SharedBatch> {
        self.cache.shared_batch(from, max_bytes)
    }
}
