//! The writer: it turns the lists, watch events and health of a source into log entries and the current state.
//!
//! *Guarantees:*
//! - A feed has one writer, so there is one order of changes.
//! - One resourceVersion becomes one log entry (docs/architecture.md#feed-contract, item 1).

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::Instant;

use super::{
    backfill::BackfillHandle,
    state::Shared,
    types::{Health, SourceState},
};
use crate::event::{NamespaceId, PerResource, Resource, ResourceVersion, View};

/// The only handle that adds to a feed. It is not `Clone`, so that a feed has one source and one order.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Writer {
        Writer { shared }
    }

    /// Returns the handle for backfills and version checks.
    #[must_use]
    pub fn backfill_handle(&self) -> BackfillHandle {
        BackfillHandle::new(self.shared.clone())
    }

    /// Sets the watched Namespace. Until then the feed serves nothing.
    ///
    /// Another Namespace starts a new history: the Namespace was deleted and created again, or another cluster answers.
    /// Cursors of the earlier one are foreign, and clients of the full stream get the current state.
    pub fn set_namespace(&mut self, namespace: NamespaceId) {
        self.shared.update(|state, now_ms| {
            let previous = state.namespace.replace(namespace);
            if previous.is_none_or(|previous| previous == namespace) || state.synced_namespace().is_err() {
                return;
            }
            for resource in Resource::ALL {
                state.delivered.reset(resource);
            }
            state.start_history();
            // It has no changes. Its mark lets subscriptions find the reset.
            let version = state.latest_versions[Resource::Pods];
            state.append_change_set(now_ms, Resource::Pods, version, Vec::new(), None, true);
        });
    }

    /// Applies a complete list at this version.
    ///
    /// The first list of a resource becomes its state. A later list becomes one log entry with the difference, which
    /// names the version from which it was computed. A version lower than the latest one is a history reset: etcd was
    /// restored from an older backup.
    pub fn replace(&mut self, resource: Resource, views: Vec<View>, version: ResourceVersion) {
        let is_hub = self.shared.hub_feed.is_none();
        // A list belongs to the current history of the hub. If it belongs to a newer one, the hub will detect that reset
        // and increment its epoch.
        let hub_epoch = self.shared.hub_feed.as_ref().map(|hub| hub.state().history_epoch);
        self.shared.update(|state, now_ms| {
            let changes = Arc::make_mut(&mut state.inventory).replace(resource, views);
            if !state.synced[resource] {
                state.synced[resource] = true;
                state.log_base_versions[resource] = version;
                state.latest_versions[resource] = version;
                state.history_epoch = hub_epoch.unwrap_or(state.history_epoch);
                if state.synced == PerResource::new(true, true) {
                    // An entry from before the first list of the other resource has no version of that resource. No
                    // subscription has started yet, so none misses these entries.
                    state.log.clear_before_first_reader();
                    state.log_base_versions = state.latest_versions;
                }
                return;
            }
            let latest = state.latest_versions[resource];
            let history_reset = version < latest;
            if history_reset {
                state.delivered.reset(resource);
                state.latest_versions[resource] = version;
                if is_hub {
                    state.start_history();
                }
            }
            // A difference without changes is appended as well: an object may have been created and deleted in between,
            // and a client whose cursor is in between may hold it.
            if version != latest || !changes.is_empty() {
                state.append_change_set(now_ms, resource, version, changes, Some(latest), history_reset);
            }
            state.history_epoch = hub_epoch.unwrap_or(state.history_epoch);
        });
    }

    /// Applies an object that was added or modified. An object that is not newer than the stored view is ignored.
    pub fn upsert(&mut self, view: View) {
        self.shared.update(|state, now_ms| {
            let (resource, version) = (view.resource(), view.resource_version());
            let changes = Arc::make_mut(&mut state.inventory).upsert(view);
            if !changes.is_empty() {
                // Two changes: the deletion of the object with the old uid was not reported, so something was missed.
                let coalesced_from = (changes.len() > 1).then_some(state.latest_versions[resource]);
                state.append_change_set(now_ms, resource, version, changes, coalesced_from, false);
            }
        });
    }

    /// Applies the deletion of an object at this version. An object that no longer matches the watch counts as deleted. A
    /// deletion that is older than the stored view is ignored.
    pub fn remove(&mut self, resource: Resource, name: &str, uid: &str, version: ResourceVersion) {
        self.shared.update(|state, now_ms| {
            let change = Arc::make_mut(&mut state.inventory).remove(resource, name, uid, version);
            match change {
                Some(change) => state.append_change_set(now_ms, resource, version, vec![change], None, false),
                None => state.latest_versions[resource] = state.latest_versions[resource].max(version),
            }
        });
    }

    /// Advances the latest version of a resource: the source has written all changes up to this version.
    pub fn bookmark(&mut self, resource: Resource, version: ResourceVersion) {
        self.shared.update(|state, _| {
            let latest = &mut state.latest_versions[resource];
            *latest = version.max(*latest);
        });
    }

    /// Waits until the log of a dedicated feed has capacity. For the hub's feed it resolves at once: slow readers never
    /// delay its writer. The future does not borrow the writer. Cancel safe.
    pub fn wait_for_capacity(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            let mut freed = pin!(shared.capacity_freed.notified());
            loop {
                // Registers before the check, so that a read in between is not missed.
                freed.as_mut().enable();
                if shared.hub_feed.is_none() || shared.has_capacity() {
                    return;
                }
                freed.as_mut().await;
                freed.set(shared.capacity_freed.notified());
            }
        }
    }

    /// Wakes the reader of a dedicated feed after a change of the hub's health, because that counts for it as well.
    pub fn notify_hub_health(&mut self) {
        self.shared.update(|_, _| {});
    }

    /// Records the current time as the time of the last byte of this resource.
    pub fn record_received(&self, resource: Resource) {
        self.shared.last_byte_ms[resource].store((self.shared.config.wall_clock_ms)(), Ordering::Relaxed);
    }

    /// Sets the health of one resource. When it goes down or comes up again after the first list, this appends an
    /// `upstream.down` or `upstream.up` event.
    pub fn set_health(&mut self, resource: Resource, health: Health) {
        let mut healths = self.shared.health.borrow().clone();
        healths[resource] = health;
        self.shared.update(|state, now_ms| {
            let source_state = SourceState::from_health(&healths);
            if state.source_state.0 != source_state {
                state.source_state = (source_state, now_ms);
            }
            // Without a complete list there is no stream that could get the event.
            let (name, is_logged) = (resource.plural(), state.synced[resource]);
            match (&healths[resource], state.down_at[resource]) {
                (Health::Down { since, reason }, None) => {
                    let silent_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let last_byte_ms = now_ms.saturating_sub(silent_ms);
                    state.down_at[resource] = Some(Instant::now());
                    state.down_since_ms[resource] = last_byte_ms;
                    state.report_upstream(now_ms, name, Some(reason.clone()), last_byte_ms, is_logged);
                }
                (Health::Live, Some(_)) => {
                    state.down_at[resource] = None;
                    state.report_upstream(now_ms, name, None, state.down_since_ms[resource], is_logged);
                }
                // Streams that start from now on get the new reason.
                (Health::Down { reason, .. }, Some(_)) => {
                    state.report_upstream(now_ms, name, Some(reason.clone()), state.down_since_ms[resource], false);
                }
                (Health::Live, None) => {}
                (Health::Connecting, _) => {
                    state.down_at[resource] = None;
                    state.report_upstream(now_ms, name, None, 0, false);
                }
            }
            // Before a stream can start without the outage: its first heartbeat must not be `down`.
            if healths[resource] == Health::Live {
                self.shared.health.send_replace(healths.clone());
            }
        });
        // After the report: a heartbeat `down` must not precede it.
        if healths[resource] != Health::Live {
            self.shared.health.send_replace(healths);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        feed::{Config, Feed, SourceState},
        test_support::PodBuilder,
    };

    use super::*;

    /// A clock that advances by 1 ms with each call.
    fn ticking_clock() -> u64 {
        static CALLS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        CALLS.fetch_add(1, Ordering::Relaxed)
    }

    #[test]
    fn deletion_older_than_the_view_moves_nothing_back() {
        let (mut writer, feed) = Feed::new(Config::default());
        writer.set_namespace(NamespaceId::from_uid("u"));
        writer.replace(Resource::Pods, vec![PodBuilder::new("a").uid("1").version(5).view()], 10);
        writer.replace(Resource::Claims, Vec::new(), 10);
        writer.upsert(PodBuilder::new("a").uid("1").version(12).view());
        let observe = || {
            let state = feed.inner.state();
            (state.latest_versions, state.log.end_position(), state.inventory.instances.len())
        };
        let before = observe();
        writer.remove(Resource::Pods, "a", "1", 11);
        assert_eq!(observe(), before);
        writer.remove(Resource::Pods, "b", "2", 3);
        assert_eq!(observe(), before);
        writer.remove(Resource::Pods, "a", "1", 13);
        assert_eq!(observe().0[Resource::Pods], 13);
        assert_eq!(observe().2, 0);
    }

    #[tokio::test]
    async fn source_state_is_that_of_the_worse_resource_since_its_last_change() {
        let (mut writer, feed) = Feed::new(Config { wall_clock_ms: ticking_clock, ..Config::default() });
        let down = || Health::Down { since: Instant::now(), reason: "unreachable".into() };
        let mut since = feed.source_state().1;
        assert_eq!(feed.source_state(), (SourceState::Syncing, since));
        for (resource, health, expected, changed) in [
            (Resource::Pods, Health::Live, SourceState::Syncing, false),
            (Resource::Claims, down(), SourceState::Down, true),
            (Resource::Pods, down(), SourceState::Down, false),
            (Resource::Claims, Health::Live, SourceState::Down, false),
            (Resource::Pods, Health::Live, SourceState::Live, true),
            (Resource::Pods, Health::Connecting, SourceState::Syncing, true),
        ] {
            writer.set_health(resource, health.clone());
            let (state, at) = feed.source_state();
            assert_eq!((state, at > since), (expected, changed), "{resource:?} {health:?}");
            since = at;
        }
    }
}
