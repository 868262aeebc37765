//! The state behind the lock, the values beside it, and the only function that changes the state.
//!
//! *Owns* the lock, the log, the inventory, the watch channels and the wake-ups of one feed.
//!
//! *Guarantees:*
//! - Every change of the state goes through [`Shared::update`]. It evicts old entries of the log, records what a
//!   dedicated feed delivers, counts, and wakes the subscriptions.
//! - The lock of the hub's state is taken only inside the lock of a dedicated feed's state, never the other way round.
//!
//! *Must not import* anything that renders: `feed/projection_cache.rs` reads this state.

use std::{
    collections::BTreeMap,
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
    filter_index::FilterIndex,
    inventory::Inventory,
    latest_telemetry::LatestTelemetry,
    metrics::Metrics,
    pool_depth::DirtyPools,
    read_your_writes::{DedicatedProgress, DeliveredWatermark},
    snapshot::Snapshot,
    types::{Config, Health, NotSynced, SourceState},
    unproven_rest::UnprovenRest,
};
use crate::{
    event::{
        Change, ChangeSet, EntryKind, EphemeralEvent, LogEntry, NamespaceId, PerResource, Resource, ResourceVersion,
    },
    ring::RingLog,
};

/// What the writer, the source and the subscriptions of one feed share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) state: Mutex<State>,
    /// The end position of the log, which never goes back. It is also sent when the health changes.
    pub(super) log_end: watch::Sender<u64>,
    pub(super) health: watch::Sender<PerResource<Health>>,
    /// When the last byte of each resource was received, by [`Config::wall_clock_ms`].
    pub(super) last_byte_ms: PerResource<AtomicU64>,
    /// The number of history resets.
    pub(super) history_resets: watch::Sender<u64>,
    /// In a dedicated feed: the hub's feed.
    pub(super) hub_feed: Option<Arc<Shared>>,
    /// Notified when the reader of a dedicated feed has read entries, so that the log may have capacity again.
    pub(super) capacity_freed: Notify,
    /// Which projections an entry can concern.
    pub(super) filter_index: FilterIndex,
    /// Notified when a subscription requests a backfill or a version check.
    pub(super) backfill_requested: Notify,
    pub(super) metrics: Metrics,
}

/// The state of a feed.
#[derive(Debug)]
pub(super) struct State {
    pub(super) namespace: Option<NamespaceId>,
    /// The state at the end of the log.
    pub(super) inventory: Arc<Inventory>,
    pub(super) log: RingLog<LogEntry>,
    /// The versions before the first entry of the log. A resume cannot start below them.
    pub(super) log_base_versions: PerResource<ResourceVersion>,
    pub(super) latest_versions: PerResource<ResourceVersion>,
    /// Which resources have been listed.
    pub(super) synced: PerResource<bool>,
    /// When each resource was reported as down, while it is down.
    pub(super) down_at: PerResource<Option<Instant>>,
    /// When the last byte before that was received, in milliseconds since the Unix epoch.
    pub(super) down_since_ms: PerResource<u64>,
    /// What is down: the `upstream.down` entries that no `upstream.up` has followed, by resource. The log may not have them.
    pub(super) outages: BTreeMap<&'static str, Arc<LogEntry>>,
    /// In the hub's feed: what dedicated feeds have delivered.
    pub(super) delivered: DeliveredWatermark,
    /// What subscriptions wait for.
    pub(super) backfill_requests: BackfillRequests,
    /// Differences of which the source still finds out whether they omit anything.
    pub(super) unproven: PerResource<Option<UnprovenRest>>,
    /// The versions at which the current history started. A cursor below them belongs to an earlier history.
    pub(super) history_start_versions: PerResource<ResourceVersion>,
    /// The number of history resets. In a dedicated feed: that of the hub's feed at the last list.
    pub(super) history_epoch: u64,
    /// In the hub's feed: the pools whose depth must be published.
    pub(super) dirty_pools: DirtyPools,
    /// In the hub's feed: the most recent telemetry.
    pub(super) telemetry: LatestTelemetry,
    /// The state of the source, and when it changed, in milliseconds since the Unix epoch.
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
            outages: BTreeMap::new(),
            delivered: DeliveredWatermark::default(),
            backfill_requests: BackfillRequests::default(),
            unproven: PerResource::default(),
            history_start_versions: PerResource::default(),
            history_epoch: 0,
            dirty_pools: DirtyPools::default(),
            telemetry: LatestTelemetry::default(),
            source_state: (SourceState::default(), (config.wall_clock_ms)()),
        }
    }

    /// Returns the namespace as soon as both resources have been listed.
    pub(super) fn synced_namespace(&self) -> Result<NamespaceId, NotSynced> {
        self.namespace.filter(|_| self.synced == PerResource::new(true, true)).ok_or(NotSynced)
    }

    /// Returns the current state.
    ///
    /// # Errors
    /// [`NotSynced`] before both resources have been listed.
    pub(super) fn snapshot(&self) -> Result<Snapshot, NotSynced> {
        Ok(Snapshot {
            namespace: self.synced_namespace()?,
            inventory: self.inventory.clone(),
            versions: self.latest_versions,
            position: self.log.end_position(),
        })
    }

    /// Returns whether the state contains everything that was delivered up to this watermark.
    pub(super) fn has_reached(&self, delivered: &DeliveredWatermark) -> bool {
        delivered.is_covered_by(&self.delivered, self.latest_versions, &self.inventory)
    }

    /// Starts a new history at the latest versions. No cursor may refer to entries of two histories, so the log is
    /// cleared. Only for the hub's feed: the reader of a dedicated feed has no cursor, and reads its log to the end.
    pub(super) fn start_history(&mut self) {
        self.log.clear();
        self.history_epoch += 1;
        self.log_base_versions = self.latest_versions;
        self.history_start_versions = self.latest_versions;
        self.backfill_requests.reset();
        self.unproven = PerResource::default();
    }

    /// Appends a change set to the log and advances the latest version of its resource.
    pub(super) fn append_change_set(
        &mut self,
        now_ms: u64,
        resource: Resource,
        version: ResourceVersion,
        changes: Vec<Change>,
        coalesced_from: Option<ResourceVersion>,
        history_reset: bool,
    ) {
        let latest = &mut self.latest_versions[resource];
        *latest = version.max(*latest);
        let version = *latest;
        let changes = changes.into();
        let change_set = ChangeSet { resource, version, changes, coalesced_from, history_reset };
        let entry = self.entry(now_ms, EntryKind::ChangeSet(change_set));
        self.append(entry, now_ms);
    }

    /// Appends an ephemeral event to the log.
    pub(super) fn append_ephemeral(&mut self, now_ms: u64, event: EphemeralEvent) {
        let entry = self.entry(now_ms, EntryKind::Ephemeral(event));
        self.append(entry, now_ms);
    }

    /// Records that something is down (with a reason) or up. If `is_logged`, open streams get the event. `last_byte_ms` is
    /// when the last byte arrived before it went down, in milliseconds since the Unix epoch.
    pub(super) fn report_upstream(
        &mut self,
        now_ms: u64,
        resource: &'static str,
        down_reason: Option<Arc<str>>,
        last_byte_ms: u64,
        is_logged: bool,
    ) {
        let is_down = down_reason.is_some();
        let event = EphemeralEvent::Upstream { resource, down_reason, last_byte_ms };
        let entry = self.entry(now_ms, EntryKind::Ephemeral(event));
        if is_down {
            self.outages.insert(resource, entry.clone());
        } else {
            self.outages.remove(resource);
        }
        if is_logged {
            self.append(entry, now_ms);
        }
    }

    /// Returns the `upstream.down` entries of what is down now, for a stream that starts.
    pub(super) fn outages(&self) -> Vec<Arc<LogEntry>> {
        self.outages.values().cloned().collect()
    }

    fn entry(&self, now_ms: u64, kind: EntryKind) -> Arc<LogEntry> {
        Arc::new(LogEntry { versions_after: self.latest_versions, observed_at_ms: now_ms, kind })
    }

    fn append(&mut self, entry: Arc<LogEntry>, now_ms: u64) {
        let bytes = entry.charged_bytes();
        self.log.push(entry, bytes, now_ms);
    }

    /// Appends the depth of each pool that has changed.
    pub(super) fn append_pool_depths(&mut self, now_ms: u64) {
        for pool in self.dirty_pools.take(&self.inventory) {
            self.append_ephemeral(now_ms, EphemeralEvent::PoolDepth(pool));
        }
    }

    /// Evicts the entries that exceed the limits of the log.
    fn evict(&mut self, now_ms: u64) {
        while let Some(evicted) = self.log.evict(now_ms) {
            if let Some(change_set) = evicted.change_set() {
                let base = &mut self.log_base_versions[change_set.resource];
                *base = change_set.version.max(*base);
            }
        }
    }

    /// Returns whether a resource has been down for at least this time.
    pub(super) fn down_longer_than(&self, limit: Duration) -> bool {
        self.down_at.iter().flatten().any(|at| *at + limit <= Instant::now())
    }
}

impl Shared {
    /// Creates an empty state. `hub_feed` makes it the state of a dedicated feed.
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
            filter_index: FilterIndex::default(),
            state: Mutex::new(state),
            metrics,
        }
    }

    /// Changes the state and wakes all subscriptions. `apply` gets the state and the current time in milliseconds, and
    /// appends at most one change set, or any number of ephemeral events.
    pub(super) fn update(&self, apply: impl FnOnce(&mut State, u64)) {
        let now_ms = (self.config.wall_clock_ms)();
        let mut state = self.state();
        let end_before = state.log.end_position();
        let (versions_before, synced_before) = (state.latest_versions, state.synced);
        apply(&mut state, now_ms);
        let entry = state.log.read_from(end_before, 1).and_then(|mut entries| entries.next().cloned());
        let change_set = entry.as_deref().and_then(LogEntry::change_set);
        match &self.hub_feed {
            // Recorded before the reader of the dedicated feed can read the change.
            Some(hub_feed) => {
                let hub = &mut *hub_feed.state();
                if state.history_epoch == hub.history_epoch {
                    let progress = DedicatedProgress {
                        versions_before,
                        synced_before,
                        versions: state.latest_versions,
                        synced: state.synced,
                        inventory: &state.inventory,
                    };
                    let dropped = hub.delivered.record(&hub.inventory, &progress, entry.as_deref());
                    self.metrics.tombstones_dropped.inc_by(dropped);
                }
            }
            None => {
                if let Some(change_set) = change_set {
                    state.dirty_pools.mark(&change_set.changes);
                    if !state.telemetry.is_empty() {
                        state.telemetry.remove_deleted(&change_set.changes);
                    }
                }
                let State { delivered, latest_versions, inventory, .. } = &mut *state;
                delivered.prune(*latest_versions, inventory);
                for (entry, position) in
                    state.log.read_from(end_before, usize::MAX).into_iter().flatten().zip(end_before..)
                {
                    self.filter_index.mark(entry, position);
                }
                state.evict(now_ms);
            }
        }
        let end = state.log.end_position();
        drop(state);
        if self.hub_feed.is_none() {
            self.count(end - end_before, change_set);
        }
        if change_set.is_some_and(|change_set| change_set.history_reset) {
            self.history_resets.send_modify(|count| *count += 1);
        }
        // Several tasks update the hub's feed, and this one may come after another that has sent a later end.
        self.log_end.send_modify(|sent| *sent = end.max(*sent));
    }

    /// Counts the entries of one update of the hub's feed: one change set, or ephemeral events.
    fn count(&self, entries: u64, change_set: Option<&ChangeSet>) {
        let Some(change_set) = change_set else {
            self.metrics.ephemeral_events.inc_by(entries);
            return;
        };
        self.metrics.change_sets.inc_by(entries);
        if change_set.coalesced_from.is_some() {
            self.metrics.coalesced[change_set.resource].inc();
        }
        if change_set.history_reset {
            self.metrics.history_resets.inc();
        }
    }

    /// Returns whether the log of a dedicated feed has capacity for another entry.
    pub(super) fn has_capacity(&self) -> bool {
        let (state, limits) = (self.state(), self.config.log);
        state.log.end_position() - state.log.first_position() < limits.items as u64 && state.log.bytes() < limits.bytes
    }

    /// Returns whether both resources are watched, and the milliseconds since the last byte of the resource that has been silent longer.
    pub(super) fn upstream_status(&self) -> (bool, u64) {
        let live = self.health.borrow().iter().all(|health| *health == Health::Live);
        let last_byte = self.last_byte_ms.iter().map(|at| at.load(Ordering::Relaxed)).min().unwrap_or(0);
        (live, (self.config.wall_clock_ms)().saturating_sub(last_byte))
    }

    /// Locks the state.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
