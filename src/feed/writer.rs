//! The feed's one writer: what a source says becomes steps of the log and the state at its end.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
};

use tokio::time::Instant;

use super::{Condition, Health, Past, Shared};
use crate::event::{Home, Notice, Resource, ResourceVersion, View};

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
    pub fn past(&self) -> Past {
        Past::new(self.shared.clone())
    }

    /// Says which Namespace all this is about. Nothing is served before.
    pub fn home(&mut self, home: Home) {
        self.shared.change(|state, _| {
            state.home = Some(home);
        });
    }

    /// A complete list at version `rv`. The first one of a kind makes the state; a later one is a difference and one
    /// step that says since when. A version lower than one already known means another history (an older copy of etcd).
    pub fn replace(&mut self, kind: Resource, views: Vec<View>, rv: ResourceVersion) {
        let for_many = self.shared.hub.is_none();
        // A list is of the history that the hub knows by now, or the hub will find that out and count on.
        let history = self.shared.hub.as_ref().map(|hub| hub.state().history);
        self.shared.change(|state, now_ms| {
            let k = kind as usize;
            let changes = Arc::make_mut(&mut state.inventory).replace(kind, views);
            if !state.synced[k] {
                state.synced[k] = true;
                state.base[k] = rv;
                state.newest[k] = rv;
                state.history = history.unwrap_or(state.history);
                if state.synced == [true; 2] {
                    // Steps from before the other resource was known would have no place in its history, and nobody has
                    // been served yet.
                    state.log.clear();
                    state.base = state.newest;
                }
                return;
            }
            let since = state.newest[k];
            let restart = rv < since;
            if restart {
                // Cursors are no positions in two histories at once. A single reader has none, and reads on.
                if for_many {
                    state.log.clear();
                }
                state.told.forget(kind);
                state.history += 1;
                state.base = state.newest;
                state.base[k] = rv;
                state.newest[k] = rv;
                state.origin = state.base;
                state.wanted.forget();
            }
            // Without any change, too: an object may have come and gone in between, and whoever was in between
            // may know of it.
            if rv != since || !changes.is_empty() {
                state.version(now_ms, kind, rv, changes, Some(since), restart);
            }
            state.history = history.unwrap_or(state.history);
        });
    }

    /// An object was added or modified.
    pub fn upsert(&mut self, view: View) {
        self.shared.change(|state, now_ms| {
            let (kind, rv) = (view.kind(), view.rv());
            let changes = Arc::make_mut(&mut state.inventory).upsert(view);
            if !changes.is_empty() {
                // Two changes: the end of a life was never told. Something between was missed.
                let since = (changes.len() > 1).then_some(state.newest[kind as usize]);
                state.version(now_ms, kind, rv, changes, since, false);
            }
        });
    }

    /// An object was deleted, or stopped being watched, at version `rv`.
    pub fn remove(&mut self, kind: Resource, name: &str, uid: &str, rv: ResourceVersion) {
        self.shared.change(|state, now_ms| {
            let change = Arc::make_mut(&mut state.inventory).remove(kind, name, uid);
            match change {
                Some(change) => state.version(now_ms, kind, rv, vec![change], None, false),
                None => state.newest[kind as usize] = state.newest[kind as usize].max(rv),
            }
        });
    }

    /// Everything of this kind up to `rv` has been told.
    pub fn bookmark(&mut self, kind: Resource, rv: ResourceVersion) {
        self.shared.change(|state, _| {
            let newest = &mut state.newest[kind as usize];
            *newest = rv.max(*newest);
        });
    }

    /// Resolves when a single reader has made room for more; others never keep a writer waiting. The writer itself is not
    /// kept meanwhile.
    pub fn room(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            let mut read_on = pin!(shared.room.notified());
            loop {
                // Registered before looking, so that reading on in between is not missed.
                read_on.as_mut().enable();
                if shared.hub.is_none() || shared.has_room() {
                    return;
                }
                read_on.as_mut().await;
                read_on.set(shared.room.notified());
            }
        }
    }

    /// For a single reader's feed: lets the reader look at the hub's health, which counts for it, too.
    pub fn hub_changed(&mut self) {
        self.shared.change(|_, _| {});
    }

    /// A byte about this resource has come.
    pub fn heard(&self, kind: Resource) {
        self.shared.heard_ms[kind as usize].store((self.shared.config.clock)(), Ordering::Relaxed);
    }

    /// The source's own condition. Going down and coming up again is told to whoever listens.
    pub fn health(&mut self, kind: Resource, health: Health) {
        let k = kind as usize;
        let mut all = self.shared.health.borrow().clone();
        all[k] = health;
        self.shared.change(|state, now_ms| {
            let condition = Condition::of(&all);
            if state.condition.0 != condition {
                state.condition = (condition, now_ms);
            }
            match (&all[k], state.down_at[k]) {
                (Health::Down { since, reason }, None) => {
                    let silent_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let since_ms = now_ms.saturating_sub(silent_ms);
                    state.down_at[k] = Some(Instant::now());
                    state.down_since_ms[k] = since_ms;
                    if state.synced[k] {
                        state.notice(now_ms, Notice::Upstream { kind, down: Some(reason.clone()), since_ms });
                    }
                }
                (Health::Live, Some(_)) => {
                    state.down_at[k] = None;
                    if state.synced[k] {
                        let since_ms = state.down_since_ms[k];
                        state.notice(now_ms, Notice::Upstream { kind, down: None, since_ms });
                    }
                }
                (Health::Down { .. }, Some(_)) | (Health::Live, None) => {}
                (Health::Connecting, _) => state.down_at[k] = None,
            }
        });
        self.shared.health.send_replace(all);
    }
}

#[cfg(test)]
mod tests {
    use crate::feed::{Condition, Config, Feed};

    use super::*;

    /// A clock that shows how often it has been looked at.
    fn count() -> u64 {
        static LOOKS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        LOOKS.fetch_add(1, Ordering::Relaxed)
    }

    #[tokio::test]
    async fn the_condition_is_that_of_the_worse_resource_since_it_last_changed() {
        let (mut writer, feed) = Feed::new(Config { clock: count, ..Config::default() });
        let down = || Health::Down { since: Instant::now(), reason: "gone".into() };
        let mut since = feed.condition().1;
        assert_eq!(feed.condition(), (Condition::Syncing, since));
        for (kind, health, condition, changed) in [
            (Resource::Instance, Health::Live, Condition::Syncing, false),
            (Resource::Claim, down(), Condition::Down, true),
            (Resource::Instance, down(), Condition::Down, false),
            (Resource::Claim, Health::Live, Condition::Down, false),
            (Resource::Instance, Health::Live, Condition::Live, true),
            (Resource::Instance, Health::Connecting, Condition::Syncing, true),
        ] {
            writer.health(kind, health.clone());
            let (now, at) = feed.condition();
            assert_eq!((now, at > since), (condition, changed), "{kind:?} {health:?}");
            since = at;
        }
    }
}
