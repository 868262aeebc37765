//! What readers and the writer share: the state behind its lock, and how every change of it goes.
//!
//! One function changes the state: it keeps the log within its limits, notes what a single reader is told, counts, and
//! wakes whoever waits. The lock of the hub's state is only ever taken inside a single feed's.

use std::{
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
    backfill_requests::BackfillRequests,
    inventory::Inventory,
    metrics::Metrics,
    pool_depth::DirtyPools,
    read_your_writes::{DedicatedProgress, DeliveredWatermark},
    types::{Config, Health, NotSynced, SourceState},
};
use crate::{
    event::{
        Change, ChangeSet, EntryKind, EphemeralEvent, LogEntry, NamespaceId, PerResource, Resource, ResourceVersion,
    },
    ring::RingLog,
};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) state: Mutex<State>,
    /// Where the log ends; also sent when the health changes.
    pub(super) log_end: watch::Sender<u64>,
    pub(super) health: watch::Sender<PerResource<Health>>,
    /// When each resource's last byte came, by [`Config::wall_clock_ms`].
    pub(super) last_byte_ms: PerResource<AtomicU64>,
    /// Counts the histories that have ended: each time versions went back.
    pub(super) history_resets: watch::Sender<u64>,
    /// For a feed with a single reader: the feed of everybody else.
    pub(super) hub_feed: Option<Arc<Shared>>,
    /// The single reader has read on: its writer may have room.
    pub(super) capacity_freed: Notify,
    /// A reader wants to know something of the past.
    pub(super) backfill_requested: Notify,
    pub(super) metrics: Metrics,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) namespace: Option<NamespaceId>,
    pub(super) inventory: Arc<Inventory>,
    pub(super) log: RingLog<LogEntry>,
    /// Versions that the state before the log's first step had: a resume must not start below.
    pub(super) log_base_versions: PerResource<ResourceVersion>,
    pub(super) latest_versions: PerResource<ResourceVersion>,
    pub(super) synced: PerResource<bool>,
    /// When it was first said to be down, while it is.
    pub(super) down_at: PerResource<Option<Instant>>,
    /// When the last byte before that came.
    pub(super) down_since_ms: PerResource<u64>,
    /// What clients of other feeds of the same upstream may have been told.
    pub(super) delivered: DeliveredWatermark,
    /// What readers want to know that the log does not hold.
    pub(super) backfill_requests: BackfillRequests,
    /// Cursors below these versions are of a history that has ended.
    pub(super) history_start_versions: PerResource<ResourceVersion>,
    /// Counts the histories that have ended; in a single reader's feed, as the hub had counted at the last list.
    pub(super) history_epoch: u64,
    /// The workloads whose pools have changed since that was last told. No more than there are, and only for the hub.
    pub(super) dirty_pools: DirtyPools,
    /// How the source is as a whole, and since when.
    pub(super) source_state: (SourceState, u64),
}

impl State {
    fn new(config: &Config) -> State {
        State {
            namespace: None,
            inventory: Arc::default(),
            log: RingLog::new(config.log),
            log_base_versions: PerResource::default(),
            latest_versions: PerResource::default(),
            synced: PerResource::default(),
            down_at: PerResource::default(),
            down_since_ms: PerResource::default(),
            delivered: DeliveredWatermark::default(),
            backfill_requests: BackfillRequests::default(),
            history_start_versions: PerResource::default(),
            dirty_pools: DirtyPools::default(),
            history_epoch: 0,
            source_state: (SourceState::default(), (config.wall_clock_ms)()),
        }
    }

    pub(super) fn synced_namespace(&self) -> Result<NamespaceId, NotSynced> {
        self.namespace.filter(|_| self.synced == PerResource::new(true, true)).ok_or(NotSynced)
    }

    pub(super) fn has_reached(&self, told: &DeliveredWatermark) -> bool {
        told.is_covered_by(&self.delivered, self.latest_versions, &self.inventory)
    }

    /// Appends a version to the log.
    pub(super) fn append_change_set(
        &mut self,
        now_ms: u64,
        resource: Resource,
        rv: ResourceVersion,
        changes: Vec<Change>,
        since: Option<ResourceVersion>,
        restart: bool,
    ) {
        let newest = &mut self.latest_versions[resource];
        *newest = rv.max(*newest);
        let rv = *newest;
        self.append(
            now_ms,
            EntryKind::ChangeSet(ChangeSet {
                resource,
                version: rv,
                changes: changes.into(),
                coalesced_from: since,
                history_reset: restart,
            }),
        );
    }

    /// Appends a notice to the log.
    pub(super) fn append_ephemeral(&mut self, now_ms: u64, notice: EphemeralEvent) {
        self.append(now_ms, EntryKind::Ephemeral(notice));
    }

    fn append(&mut self, now_ms: u64, kind: EntryKind) {
        let step = LogEntry { versions_after: self.latest_versions, observed_at_ms: now_ms, kind };
        let cost = step.charged_bytes();
        self.log.push(Arc::new(step), cost, now_ms);
    }

    pub(super) fn append_pool_depths(&mut self, now_ms: u64) {
        for pool in self.dirty_pools.take(&self.inventory) {
            self.append_ephemeral(now_ms, EphemeralEvent::PoolDepth(pool));
        }
    }

    /// Drops what the log may no longer hold.
    pub(super) fn evict(&mut self, now_ms: u64) {
        while let Some(gone) = self.log.evict(now_ms) {
            if let Some(version) = gone.change_set() {
                let base = &mut self.log_base_versions[version.resource];
                *base = version.version.max(*base);
            }
        }
    }

    pub(super) fn down_longer_than(&self, limit: Duration) -> bool {
        self.down_at.iter().flatten().any(|at| *at + limit <= Instant::now())
    }
}

impl Shared {
    pub(super) fn new(config: Config, hub_feed: Option<Arc<Shared>>, metrics: Metrics) -> Shared {
        let state = State::new(&config);
        Shared {
            config,
            log_end: watch::Sender::new(state.log.end_position()),
            health: watch::Sender::default(),
            last_byte_ms: PerResource::default(),
            history_resets: watch::Sender::default(),
            hub_feed,
            capacity_freed: Notify::new(),
            backfill_requested: Notify::new(),
            state: Mutex::new(state),
            metrics,
        }
    }

    /// Changes the state, and lets everybody know.
    pub(super) fn update(&self, apply: impl FnOnce(&mut State, u64)) {
        let now_ms = (self.config.wall_clock_ms)();
        let mut state = self.state();
        let (before, was) = (state.log.end_position(), (state.latest_versions, state.synced));
        apply(&mut state, now_ms);
        let step = state.log.read_from(before, 1).and_then(|mut steps| steps.next().cloned());
        match &self.hub_feed {
            // Before the reader can see any of it. The hub's lock is only ever taken inside a single feed's.
            Some(hub) => {
                let hub = &mut *hub.state();
                if state.history_epoch == hub.history_epoch {
                    let progress = DedicatedProgress {
                        versions_before: was.0,
                        synced_before: was.1,
                        versions: state.latest_versions,
                        synced: state.synced,
                        inventory: &state.inventory,
                    };
                    hub.delivered.record(&hub.inventory, &progress, step.as_deref());
                }
            }
            None => {
                if let Some(version) = step.as_deref().and_then(LogEntry::change_set) {
                    state.dirty_pools.mark(&version.changes);
                }
                let State { delivered: told, latest_versions: newest, inventory, .. } = &mut *state;
                told.prune(*newest, inventory);
                state.evict(now_ms);
                self.metrics.log_steps.set((state.log.end_position() - state.log.first_position()).cast_signed());
                self.metrics.log_bytes.set(state.log.bytes().cast_signed() as i64);
            }
        }
        let end = state.log.end_position();
        drop(state);
        self.metrics.steps.inc_by(end - before);
        if let Some(version) = step.as_deref().and_then(LogEntry::change_set) {
            self.metrics.coalesced.inc_by(u64::from(version.coalesced_from.is_some()));
            if version.history_reset {
                self.history_resets.send_modify(|count| *count += 1);
            }
        }
        self.log_end.send_replace(end);
    }

    /// Whether a single reader's feed may take in more.
    pub(super) fn has_capacity(&self) -> bool {
        let (state, limits) = (self.state(), self.config.log);
        state.log.end_position() - state.log.first_position() < limits.items as u64 && state.log.bytes() < limits.bytes
    }

    /// Whether both resources are live, and how long ago the quieter one was heard, in milliseconds.
    pub(super) fn upstream_status(&self) -> (&'static str, u64) {
        let live = self.health.borrow().iter().all(|health| *health == Health::Live);
        let heard = self.last_byte_ms.iter().map(|at| at.load(Ordering::Relaxed)).min().unwrap_or(0);
        (if live { "live" } else { "down" }, (self.config.wall_clock_ms)().saturating_sub(heard))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
