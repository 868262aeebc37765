//! The phase after a cursor: the events that the client misses, without those that it already has
//! (docs/architecture.md#feed-contract, items 2 and 3).

use bytes::Bytes;
use tokio::time::Instant;

use super::Subscription;
use crate::{
    event::{PerResource, ResourceVersion, cursor},
    feed::{
        projection_cache::{ENTRIES_PER_READ, read_entries},
        resume::is_inside_coalesced,
        types::{SnapshotReason, required_resources},
    },
};

impl Subscription {
    /// Returns whether the client's versions are beyond those of the API server, so that they are of another history.
    ///
    /// Replicas differ by milliseconds, so it waits for `ahead_cursor_wait` first. Then one version check answers for
    /// all waiting subscriptions (docs/architecture.md#feed-contract, item 3).
    pub(super) fn cursor_beyond_history(&mut self, floor: PerResource<ResourceVersion>) -> bool {
        let mut state = self.inner.state();
        let existing = cursor::max_versions(state.latest_versions, state.backfill_requests.checked_versions());
        if self.cache.covers(existing, floor) {
            (self.wake_at, self.version_check) = (None, 0);
            return false;
        }
        if self.version_check > 0 {
            return state.backfill_requests.version_check_result(self.version_check).is_some();
        }
        let now = Instant::now();
        let deadline = *self.wake_at.get_or_insert_with(|| now + self.inner.config.ahead_cursor_wait);
        if now >= deadline {
            self.wake_at = None;
            self.version_check = state.backfill_requests.request_version_check();
            drop(state);
            self.inner.backfill_requested.notify_waiters();
        }
        false
    }

    /// Renders entries for this client alone, without those that it already has. `None` means that the log has evicted
    /// the next entry.
    pub(super) fn catch_up(&mut self, floor: PerResource<ResourceVersion>, max_bytes: usize) -> Option<Vec<Bytes>> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        loop {
            let (_, entries) = read_entries(&self.inner, self.position, ENTRIES_PER_READ)?;
            if entries.is_empty() {
                let latest = self.inner.state().latest_versions;
                if self.finish_catch_up(floor, latest) {
                    frames.extend(self.pool_depths());
                }
                return Some(frames);
            }
            for entry in entries {
                if bytes > max_bytes {
                    return Some(frames);
                }
                let change_set = entry.change_set();
                if change_set.is_some_and(|change_set| change_set.history_reset) && self.on_history_reset() {
                    return Some(frames);
                }
                let is_required = change_set.is_some_and(|change_set| {
                    required_resources(&self.cache.projection).any(|resource| resource == change_set.resource)
                });
                if is_required && is_inside_coalesced(&entry, floor) {
                    self.restart_with_snapshot(SnapshotReason::Expired);
                    return Some(frames);
                }
                self.position += 1;
                self.delivered_versions = cursor::max_versions(self.delivered_versions, entry.versions_after);
                // Ephemeral events of the past are skipped: only the newest one counts.
                if change_set.is_some_and(|change_set| change_set.version > floor[change_set.resource]) {
                    let frame = self.cache.render_entry(
                        &self.inner,
                        self.namespace,
                        &entry,
                        self.position,
                        self.delivered_versions,
                    );
                    if !frame.bytes.is_empty() {
                        bytes += frame.bytes.len();
                        frames.push(frame.bytes);
                    }
                }
                if self.finish_catch_up(floor, entry.versions_after) {
                    frames.extend(self.pool_depths());
                    return Some(frames);
                }
            }
        }
    }

    /// Returns the depths of all pools: the client missed the events of those that changed while it was disconnected.
    fn pool_depths(&self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.cache.append_pool_depths(&mut out, &self.inner);
        (!out.is_empty()).then(|| out.into())
    }

    /// Ends the catch-up if `versions` have reached the floor for all resources that the projection needs.
    fn finish_catch_up(&mut self, floor: PerResource<ResourceVersion>, versions: PerResource<ResourceVersion>) -> bool {
        let is_finished = self.cache.covers(versions, floor);
        if is_finished {
            self.go_live();
        }
        is_finished
    }
}
