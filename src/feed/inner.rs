//! The state of a feed and the projections in use.

use std::{ops::Deref, sync::Arc};

use super::{
    projection_cache::{Frame, InitialState, ProjectionCache},
    projection_registry::ProjectionRegistry,
    state::Shared,
    types::SnapshotReason,
};
use crate::event::{NamespaceId, PerResource, ResourceVersion};

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
    pub(super) fn frames(
        &self,
        cache: &ProjectionCache,
        namespace: NamespaceId,
        from: u64,
        max_bytes: usize,
    ) -> Option<Vec<Frame>> {
        let frames = cache.frames(&self.shared, namespace, from, max_bytes);
        self.projections.trim();
        frames
    }

    pub(super) fn initial(
        &self,
        cache: &ProjectionCache,
        reason: SnapshotReason,
        at_least: PerResource<ResourceVersion>,
    ) -> Option<Arc<InitialState>> {
        let initial = cache.initial(&self.shared, reason, at_least);
        self.projections.trim();
        initial
    }

    pub(super) fn has_relevant_since(&self, cache: &ProjectionCache, from: u64) -> (u64, bool) {
        let relevant = cache.has_relevant_since(&self.shared, from);
        self.projections.trim();
        relevant
    }
}
