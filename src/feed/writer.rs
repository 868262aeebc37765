//! The feed's one writer: what a source says becomes steps of the log and the state at its end.

use std::{pin::pin, sync::Arc};

use tokio::time::Instant;

use super::{Health, Shared, State, Told};
use crate::event::{Change, Home, Kind, Rv, Step, View};

/// The only way in. Not `Clone`: one source a feed, so that one order is kept.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Writer {
        Writer { shared }
    }

    /// Says which Namespace all this is about. Nothing is served before.
    pub fn home(&mut self, home: Home) {
        self.change(|state, _| {
            state.home = Some(home);
        });
    }

    /// A complete list at version `rv`. The first one of a kind makes the state; a later one is a difference and one
    /// step that says since when. A version lower than one already known means another history (an older copy of etcd).
    pub fn replace(&mut self, kind: Kind, views: Vec<View>, rv: Rv) {
        let for_many = self.shared.hub.is_none();
        self.change(|state, steps| {
            let k = kind as usize;
            let changes = Arc::make_mut(&mut state.inventory).replace(kind, views);
            if !state.synced[k] {
                state.synced[k] = true;
                state.base[k] = rv;
                state.newest[k] = rv;
                return;
            }
            let since = state.newest[k];
            let restart = rv < since;
            if restart {
                // Cursors are no positions in two histories at once. A single reader has none, and reads on.
                if for_many {
                    state.log.clear();
                }
                state.told = Told::default();
                state.base = state.newest;
                state.base[k] = rv;
                state.newest[k] = rv;
            }
            // Without any change, too: an object may have come and gone in between, and whoever was in between
            // may know of it.
            if rv != since || !changes.is_empty() {
                steps.push(state, kind, rv, changes, Some(since), restart);
            }
        });
    }

    /// An object was added or modified.
    pub fn upsert(&mut self, view: View) {
        self.change(|state, steps| {
            let (kind, rv) = (view.kind(), view.rv());
            let changes = Arc::make_mut(&mut state.inventory).upsert(view);
            if !changes.is_empty() {
                // Two changes: the end of a life was never told. Something between was missed.
                let since = (changes.len() > 1).then_some(state.newest[kind as usize]);
                steps.push(state, kind, rv, changes, since, false);
            }
        });
    }

    /// An object was deleted, or stopped being watched, at version `rv`.
    pub fn remove(&mut self, kind: Kind, name: &str, uid: &str, rv: Rv) {
        self.change(|state, steps| {
            let change = Arc::make_mut(&mut state.inventory).remove(kind, name, uid);
            match change {
                Some(change) => steps.push(state, kind, rv, vec![change], None, false),
                None => state.newest[kind as usize] = state.newest[kind as usize].max(rv),
            }
        });
    }

    /// Everything of this kind up to `rv` has been told.
    pub fn bookmark(&mut self, kind: Kind, rv: Rv) {
        self.change(|state, _| {
            let newest = &mut state.newest[kind as usize];
            *newest = rv.max(*newest);
        });
    }

    /// Waits until a single reader has made room for more; others never keep a writer waiting.
    pub async fn room(&self) {
        if self.shared.hub.is_none() {
            return;
        }
        let mut read_on = pin!(self.shared.room.notified());
        loop {
            // Registered before looking, so that reading on in between is not missed.
            read_on.as_mut().enable();
            let full = {
                let state = self.shared.state();
                let limits = self.shared.config.log;
                state.log.end() - state.log.first() >= limits.items as u64 || state.log.bytes() >= limits.bytes
            };
            if !full {
                return;
            }
            read_on.as_mut().await;
            read_on.set(self.shared.room.notified());
        }
    }

    /// The source's own condition.
    pub fn health(&mut self, kind: Kind, health: Health) {
        self.change(|state, _| {
            let down_at = &mut state.down_at[kind as usize];
            *down_at = match &health {
                Health::Down { .. } => Some(down_at.unwrap_or_else(Instant::now)),
                Health::Connecting | Health::Live => None,
            };
        });
        self.shared.health.send_modify(|all| all[kind as usize] = health);
    }

    fn change(&mut self, apply: impl FnOnce(&mut State, &Steps)) {
        let now_ms = (self.shared.config.clock)();
        let mut state = self.shared.state();
        let (before, newest) = (state.log.end(), state.newest);
        apply(&mut state, &Steps { now_ms });
        let step = state.log.range(before, 1).and_then(|mut steps| steps.next().cloned());
        match &self.shared.hub {
            // Before the reader can see any of it. The hub's lock is only ever taken inside a single feed's.
            Some(hub) => hub.state().told.note(newest, state.newest, step.as_deref()),
            None => {
                while let Some(gone) = state.log.evict(now_ms) {
                    let base = &mut state.base[gone.kind as usize];
                    *base = gone.rv.max(*base);
                }
                self.shared.metrics.log_steps.set((state.log.end() - state.log.first()).cast_signed());
                self.shared.metrics.log_bytes.set(state.log.bytes().cast_signed() as i64);
            }
        }
        let end = state.log.end();
        drop(state);
        self.shared.metrics.steps.inc_by(end - before);
        if let Some(step) = step {
            self.shared.metrics.coalesced.inc_by(u64::from(step.since.is_some()));
            if step.restart {
                self.shared.histories.send_modify(|count| *count += 1);
            }
        }
        self.shared.head.send_replace(end);
    }
}

/// Appends to the log.
struct Steps {
    now_ms: u64,
}

impl Steps {
    fn push(&self, state: &mut State, kind: Kind, rv: Rv, changes: Vec<Change>, since: Option<Rv>, restart: bool) {
        let k = kind as usize;
        state.newest[k] = state.newest[k].max(rv);
        let (rv, after) = (state.newest[k], state.newest);
        let step = Step { kind, rv, after, changes: changes.into(), since, restart, at_ms: self.now_ms };
        let cost = step.cost();
        state.log.push(Arc::new(step), cost, self.now_ms);
    }
}
