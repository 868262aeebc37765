//! What readers and the writer share: the state behind its lock, and how every change of it goes.
//!
//! One function changes the state: it keeps the log within its limits, notes what a single reader is told, counts, and
//! wakes whoever waits. The lock of the hub's state is only ever taken inside a single feed's.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    Condition, Config, Health, Metrics, Refused, backfill::Wanted, inventory::Inventory, projection_registry::Lenses,
    read_your_writes::Told,
};
use crate::{
    event::{Change, Home, Notice, Resource, ResourceVersion, Step, Version, What},
    ring::Log,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) state: Mutex<State>,
    /// Where the log ends; also sent when the health changes.
    pub(super) head: watch::Sender<u64>,
    pub(super) health: watch::Sender<[Health; 2]>,
    /// When each resource's last byte came, by [`Config::clock`].
    pub(super) heard_ms: [AtomicU64; 2],
    /// Counts the histories that have ended: each time versions went back.
    pub(super) histories: watch::Sender<u64>,
    /// For a feed with a single reader: the feed of everybody else.
    pub(super) hub: Option<Arc<Shared>>,
    /// The single reader has read on: its writer may have room.
    pub(super) room: Notify,
    /// A reader wants to know something of the past.
    pub(super) asked: Notify,
    pub(super) lenses: Lenses,
    pub(super) metrics: Metrics,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) home: Option<Home>,
    pub(super) inventory: Arc<Inventory>,
    pub(super) log: Log<Step>,
    /// Versions that the state before the log's first step had: a resume must not start below.
    pub(super) base: [ResourceVersion; 2],
    pub(super) newest: [ResourceVersion; 2],
    pub(super) synced: [bool; 2],
    /// When it was first said to be down, while it is.
    pub(super) down_at: [Option<Instant>; 2],
    /// When the last byte before that came.
    pub(super) down_since_ms: [u64; 2],
    /// What clients of other feeds of the same upstream may have been told.
    pub(super) told: Told,
    /// What readers want to know that the log does not hold.
    pub(super) wanted: Wanted,
    /// Cursors below these versions are of a history that has ended.
    pub(super) origin: [ResourceVersion; 2],
    /// Counts the histories that have ended; in a single reader's feed, as the hub had counted at the last list.
    pub(super) history: u64,
    /// The workloads whose pools have changed since that was last told. No more than there are, and only for the hub.
    pub(super) touched: BTreeSet<String>,
    /// How the source is as a whole, and since when.
    pub(super) condition: (Condition, u64),
}

impl State {
    pub(super) fn ready(&self) -> Result<Home, Refused> {
        self.home.filter(|_| self.synced == [true; 2]).ok_or(Refused::NotReady)
    }

    pub(super) fn knows(&self, told: &Told) -> bool {
        told.is_known(&self.told, self.newest, &self.inventory)
    }

    /// Appends a version to the log.
    pub(super) fn version(
        &mut self,
        now_ms: u64,
        kind: Resource,
        rv: ResourceVersion,
        changes: Vec<Change>,
        since: Option<ResourceVersion>,
        restart: bool,
    ) {
        let newest = &mut self.newest[kind as usize];
        *newest = rv.max(*newest);
        let rv = *newest;
        self.push(now_ms, What::Version(Version { kind, rv, changes: changes.into(), since, restart }));
    }

    /// Appends a notice to the log.
    pub(super) fn notice(&mut self, now_ms: u64, notice: Notice) {
        self.push(now_ms, What::Notice(notice));
    }

    pub(super) fn push(&mut self, now_ms: u64, what: What) {
        let step = Step { after: self.newest, at_ms: now_ms, what };
        let cost = step.cost();
        self.log.push(Arc::new(step), cost, now_ms);
    }

    /// Drops what the log may no longer hold.
    pub(super) fn evict(&mut self, now_ms: u64) {
        while let Some(gone) = self.log.evict(now_ms) {
            if let Some(version) = gone.version() {
                let base = &mut self.base[version.kind as usize];
                *base = version.rv.max(*base);
            }
        }
    }

    pub(super) fn is_down_for(&self, limit: Duration) -> bool {
        self.down_at.iter().flatten().any(|at| *at + limit <= Instant::now())
    }
}

impl Shared {
    /// Changes the state, and lets everybody know.
    pub(super) fn change(&self, apply: impl FnOnce(&mut State, u64)) {
        let now_ms = (self.config.clock)();
        let mut state = self.state();
        let (before, was) = (state.log.end(), (state.newest, state.synced));
        apply(&mut state, now_ms);
        let step = state.log.range(before, 1).and_then(|mut steps| steps.next().cloned());
        match &self.hub {
            // Before the reader can see any of it. The hub's lock is only ever taken inside a single feed's.
            Some(hub) => {
                let hub = &mut *hub.state();
                if state.history == hub.history {
                    hub.told.note(&hub.inventory, &state, was, step.as_deref());
                }
            }
            None => {
                if let Some(version) = step.as_deref().and_then(Step::version) {
                    state.touch_pools(&version.changes);
                }
                let State { told, newest, inventory, .. } = &mut *state;
                told.prune(*newest, inventory);
                state.evict(now_ms);
                self.metrics.log_steps.set((state.log.end() - state.log.first()).cast_signed());
                self.metrics.log_bytes.set(state.log.bytes().cast_signed() as i64);
            }
        }
        let end = state.log.end();
        drop(state);
        self.metrics.steps.inc_by(end - before);
        if let Some(version) = step.as_deref().and_then(Step::version) {
            self.metrics.coalesced.inc_by(u64::from(version.since.is_some()));
            if version.restart {
                self.histories.send_modify(|count| *count += 1);
            }
        }
        self.head.send_replace(end);
    }

    /// Whether a single reader's feed may take in more.
    pub(super) fn has_room(&self) -> bool {
        let (state, limits) = (self.state(), self.config.log);
        state.log.end() - state.log.first() < limits.items as u64 && state.log.bytes() < limits.bytes
    }

    /// Whether both resources are live, and how long ago the quieter one was heard, in milliseconds.
    pub(super) fn upstream(&self) -> (&'static str, u64) {
        let live = self.health.borrow().iter().all(|health| *health == Health::Live);
        let heard = self.heard_ms.iter().map(|at| at.load(Ordering::Relaxed)).min().unwrap_or(0);
        (if live { "live" } else { "down" }, (self.config.clock)().saturating_sub(heard))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
