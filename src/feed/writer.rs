//! The feed's one writer: what a source says becomes steps of the log and the state at its end.

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
use crate::event::{EphemeralEvent, NamespaceId, PerResource, Resource, ResourceVersion, View};

/// The only way in. Not `Clone`: one source a feed, so that one order is kept.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Writer {
        Writer { shared }
    }

    /// The hand for what readers want to know of the past.
    #[must_use]
    pub fn backfill_handle(&self) -> BackfillHandle {
        BackfillHandle::new(self.shared.clone())
    }

    /// Says which Namespace all this is about. Nothing is served before.
    pub fn set_namespace(&mut self, namespace: NamespaceId) {
        self.shared.update(|state, _| {
            state.namespace = Some(namespace);
        });
    }

    /// A complete list at version `rv`. The first one of a resource makes the state; a later one is a difference and one
    /// step that says since when. A version lower than one already known means another history (an older copy of etcd).
    pub fn replace(&mut self, resource: Resource, views: Vec<View>, rv: ResourceVersion) {
        let for_many = self.shared.hub_feed.is_none();
        // A list is of the history that the hub knows by now, or the hub will find that out and count on.
        let history = self.shared.hub_feed.as_ref().map(|hub| hub.state().history_epoch);
        self.shared.update(|state, now_ms| {
            let changes = Arc::make_mut(&mut state.inventory).replace(resource, views);
            if !state.synced[resource] {
                state.synced[resource] = true;
                state.log_base_versions[resource] = rv;
                state.latest_versions[resource] = rv;
                state.history_epoch = history.unwrap_or(state.history_epoch);
                if state.synced == PerResource::new(true, true) {
                    // Steps from before the other resource was known would have no place in its history, and nobody has
                    // been served yet.
                    state.log.clear();
                    state.log_base_versions = state.latest_versions;
                }
                return;
            }
            let since = state.latest_versions[resource];
            let restart = rv < since;
            if restart {
                // Cursors are no positions in two histories at once. A single reader has none, and reads on.
                if for_many {
                    state.log.clear();
                }
                state.delivered.reset(resource);
                state.history_epoch += 1;
                state.log_base_versions = state.latest_versions;
                state.log_base_versions[resource] = rv;
                state.latest_versions[resource] = rv;
                state.history_start_versions = state.log_base_versions;
                state.backfill_requests.reset();
            }
            // Without any change, too: an object may have come and gone in between, and whoever was in between
            // may know of it.
            if rv != since || !changes.is_empty() {
                state.append_change_set(now_ms, resource, rv, changes, Some(since), restart);
            }
            state.history_epoch = history.unwrap_or(state.history_epoch);
        });
    }

    /// An object was added or modified.
    pub fn upsert(&mut self, view: View) {
        self.shared.update(|state, now_ms| {
            let (resource, rv) = (view.resource(), view.resource_version());
            let changes = Arc::make_mut(&mut state.inventory).upsert(view);
            if !changes.is_empty() {
                // Two changes: the end of a life was never told. Something between was missed.
                let since = (changes.len() > 1).then_some(state.latest_versions[resource]);
                state.append_change_set(now_ms, resource, rv, changes, since, false);
            }
        });
    }

    /// An object was deleted, or stopped being watched, at version `rv`.
    pub fn remove(&mut self, resource: Resource, name: &str, uid: &str, rv: ResourceVersion) {
        self.shared.update(|state, now_ms| {
            let change = Arc::make_mut(&mut state.inventory).remove(resource, name, uid);
            match change {
                Some(change) => state.append_change_set(now_ms, resource, rv, vec![change], None, false),
                None => state.latest_versions[resource] = state.latest_versions[resource].max(rv),
            }
        });
    }

    /// Everything of this resource up to `rv` has been told.
    pub fn bookmark(&mut self, resource: Resource, rv: ResourceVersion) {
        self.shared.update(|state, _| {
            let newest = &mut state.latest_versions[resource];
            *newest = rv.max(*newest);
        });
    }

    /// Resolves when a single reader has made room for more; others never keep a writer waiting. The writer itself is not
    /// kept meanwhile.
    pub fn wait_for_capacity(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            let mut read_on = pin!(shared.capacity_freed.notified());
            loop {
                // Registered before looking, so that reading on in between is not missed.
                read_on.as_mut().enable();
                if shared.hub_feed.is_none() || shared.has_capacity() {
                    return;
                }
                read_on.as_mut().await;
                read_on.set(shared.capacity_freed.notified());
            }
        }
    }

    /// For a single reader's feed: lets the reader look at the hub's health, which counts for it, too.
    pub fn notify_hub_health(&mut self) {
        self.shared.update(|_, _| {});
    }

    /// A byte about this resource has come.
    pub fn record_received(&self, resource: Resource) {
        self.shared.last_byte_ms[resource].store((self.shared.config.wall_clock_ms)(), Ordering::Relaxed);
    }

    /// The source's own condition. Going down and coming up again is told to whoever listens.
    pub fn set_health(&mut self, resource: Resource, health: Health) {
        let mut all = self.shared.health.borrow().clone();
        all[resource] = health;
        self.shared.update(|state, now_ms| {
            let condition = SourceState::from_health(&all);
            if state.source_state.0 != condition {
                state.source_state = (condition, now_ms);
            }
            match (&all[resource], state.down_at[resource]) {
                (Health::Down { since, reason }, None) => {
                    let silent_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let since_ms = now_ms.saturating_sub(silent_ms);
                    state.down_at[resource] = Some(Instant::now());
                    state.down_since_ms[resource] = since_ms;
                    if state.synced[resource] {
                        state.append_ephemeral(
                            now_ms,
                            EphemeralEvent::Upstream {
                                resource,
                                down_reason: Some(reason.clone()),
                                last_byte_ms: since_ms,
                            },
                        );
                    }
                }
                (Health::Live, Some(_)) => {
                    state.down_at[resource] = None;
                    if state.synced[resource] {
                        let since_ms = state.down_since_ms[resource];
                        state.append_ephemeral(
                            now_ms,
                            EphemeralEvent::Upstream { resource, down_reason: None, last_byte_ms: since_ms },
                        );
                    }
                }
                (Health::Down { .. }, Some(_)) | (Health::Live, None) => {}
                (Health::Connecting, _) => state.down_at[resource] = None,
            }
        });
        self.shared.health.send_replace(all);
    }
}

#[cfg(test)]
mod tests {
    use crate::feed::{Config, Feed, SourceState};

    use super::*;

    /// A clock that shows how often it has been looked at.
    fn count() -> u64 {
        static LOOKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        LOOKS.fetch_add(1, Ordering::Relaxed)
    }

    #[tokio::test]
    async fn source_state_is_that_of_the_worse_resource_since_its_last_change() {
        let (mut writer, feed) = Feed::new(Config { wall_clock_ms: count, ..Config::default() });
        let down = || Health::Down { since: Instant::now(), reason: "gone".into() };
        let mut since = feed.source_state().1;
        assert_eq!(feed.source_state(), (SourceState::Syncing, since));
        for (resource, health, condition, changed) in [
            (Resource::Pods, Health::Live, SourceState::Syncing, false),
            (Resource::Claims, down(), SourceState::Down, true),
            (Resource::Pods, down(), SourceState::Down, false),
            (Resource::Claims, Health::Live, SourceState::Down, false),
            (Resource::Pods, Health::Live, SourceState::Live, true),
            (Resource::Pods, Health::Connecting, SourceState::Syncing, true),
        ] {
            writer.set_health(resource, health.clone());
            let (now, at) = feed.source_state();
            assert_eq!((now, at > since), (condition, changed), "{resource:?} {health:?}");
            since = at;
        }
    }
}
