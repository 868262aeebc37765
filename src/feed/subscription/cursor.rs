//! How far a client has been served: its cursor, and heartbeats.

use bytes::Bytes;

use super::{Phase, Subscription};
use crate::{
    event::{PerResource, ResourceVersion, cursor, projection::EventFormat},
    feed::projection_cache::HeartbeatKind,
};

impl Subscription {
    /// Returns the cursor up to which the client has received everything; `None` while it has no complete state.
    #[must_use]
    pub fn cursor(&mut self) -> Option<String> {
        let versions = self.advance_delivered()?;
        Some(self.cache.cursor(self.namespace, versions))
    }

    pub(super) fn advance_delivered(&mut self) -> Option<PerResource<ResourceVersion>> {
        match self.phase {
            Phase::SnapshotPending(..) | Phase::SendingSnapshot(..) => None,
            Phase::PendingBackfill(_) => Some(self.delivered_versions),
            Phase::CatchUp(_) | Phase::Live => {
                let state = self.inner.state();
                if self.position == state.log.end_position() {
                    // Bookmarks advance the cursor of a quiet stream (G6), but only if the client has read everything.
                    self.delivered_versions = cursor::max_versions(self.delivered_versions, state.latest_versions);
                }
                Some(self.delivered_versions)
            }
        }
    }

    /// Returns a heartbeat with the client's own cursor (docs/protocol.md#full-stream); `None` on `/ws`, and while the
    /// client has no complete state.
    #[must_use]
    pub fn heartbeat(&mut self) -> Option<Bytes> {
        if self.cache.projection.format == EventFormat::Boilerhouse {
            return None;
        }
        let mut out = Vec::new();
        let versions = self.advance_delivered()?;
        self.sent_syncing = self.is_syncing();
        let kind = if self.sent_syncing { HeartbeatKind::Syncing } else { HeartbeatKind::Periodic };
        self.cache.append_heartbeat(&mut out, &self.inner, self.namespace, versions, kind);
        Some(out.into())
    }

    /// Returns whether a resume is being prepared: a backfill is pending, or this replica has not reached the cursor.
    fn is_syncing(&self) -> bool {
        match self.phase {
            Phase::PendingBackfill(_) => true,
            Phase::CatchUp(floor) => !self.cache.covers(self.inner.state().latest_versions, floor),
            Phase::SnapshotPending(..) | Phase::SendingSnapshot(..) | Phase::Live => false,
        }
    }
}
