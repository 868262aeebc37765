//! The state of a feed together with its projection registry.
//!
//! *Guarantees:* each read that can fill a projection cache trims all caches to their common budget afterwards.

use std::{ops::Deref, sync::Arc};

use bytes::Bytes;

use super::{
    projection_cache::{Frame, InitialState, ProjectionCache},
    projection_registry::ProjectionRegistry,
    state::Shared,
    types::SnapshotReason,
};
use crate::event::{PerResource, ResourceVersion};

/// What the readers of a feed share. The writer holds the state only.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) projections: ProjectionRegistry,
}

impl Deref for Inner {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Inner {
    /// See [`ProjectionCache::frames`].
    pub(super) fn frames(&self, cache: &ProjectionCache, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        let frames = cache.frames(&self.shared, from, max_bytes);
        self.projections.trim();
        frames
    }

    /// See [`ProjectionCache::initial_state`].
    pub(super) fn initial_state(
        &self,
        cache: &ProjectionCache,
        reason: SnapshotReason,
        not_before: PerResource<ResourceVersion>,
        min_position: u64,
    ) -> Option<Arc<InitialState>> {
        cache.initial_state(&self.shared, reason, not_before, min_position)
    }

    /// See [`ProjectionCache::initial_state_part`].
    pub(super) fn initial_state_part(
        &self,
        cache: &ProjectionCache,
        initial: &InitialState,
        index: usize,
    ) -> Option<Bytes> {
        let part = cache.initial_state_part(&self.shared, initial, index);
        self.projections.trim();
        part
    }

    /// See [`ProjectionCache::has_relevant_since`].
    pub(super) fn has_relevant_since(&self, cache: &ProjectionCache, from: u64) -> (u64, bool) {
        let relevant = cache.has_relevant_since(&self.shared, from);
        self.projections.trim();
        relevant
    }
}
