//! The feed: one order of changes, the current state, and who has read how far.
//!
//! Facts come in through the one [`Writer`]; clients read through [`Subscription`]s, each a position in the log and a
//! lens. Always true: the inventory is what the log's end says; `latest_versions` never go back within a history; what a
//! client is served is a function of the log, its lens and its cursor. Under the lock there is pushing and cloning of
//! `Arc`s only. Nothing here knows where facts come from, what a socket is, or who a client is.

mod backfill;
mod framing;
mod group;
pub mod inventory;
mod pool_depth;
mod projection_cache;
mod projection_registry;
mod read_your_writes;
mod resume;
pub mod snapshot;
mod state;
mod subscription;
mod writer;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub use self::{
    backfill::{BackfillHandle, BackfillRound, Gap},
    framing::{FrameFormat, Framing},
    group::{Group, SharedBatch},
    projection_cache::ProjectionCache,
    snapshot::Snapshot,
    subscription::{ReadResult, Subscription},
    writer::Writer,
};
use crate::{
    event::{Cursor, NamespaceId, PerResource, Resource, ResourceVersion, projection::Projection},
    ring::{self, RingLog},
};
use backfill::BackfillRequests;
use pool_depth::DirtyPools;
use projection_registry::ProjectionRegistry;
use read_your_writes::DeliveredWatermark;
use state::{Shared, State};

/// Bounds of a feed.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What the log may hold.
    pub log: ring::Limits,
    /// How long the upstream may be down before `/ws` clients are sent away, so that they see it (docs/protocol.md#boilerhouse-stream).
    pub max_upstream_downtime: Duration,
    /// How long a snapshot GET waits for the feed to reach what somebody has been told (docs/protocol.md#boilerhouse-stream).
    pub read_your_writes_timeout: Duration,
    /// How often the depths of the pools are told (docs/protocol.md#full-stream: 4 times a second).
    pub pool_depth_interval: Duration,
    /// About how many bytes an initial state has before it comes in parts (docs/protocol.md#full-stream: 256 KiB, and a part ends
    /// with the object that passes this).
    pub initial_state_part_bytes: usize,
    /// How many bytes of what has been rendered all lenses together may keep for their readers, so that a client is not
    /// paid for by how it looks: 32 MiB, half of the log.
    pub projection_cache_bytes: usize,
    /// How long a client whose cursor is older than the log waits for it to be extended backwards, before it is told the
    /// current state instead: two rounds, as one may be under way.
    pub backfill_wait_timeout: Duration,
    /// How long a client whose cursor is ahead of this replica waits before the API server is asked whether there is such
    /// a version (docs/protocol.md#full-stream: 2 s).
    pub ahead_cursor_wait: Duration,
    /// Milliseconds since the Unix epoch, for `time`.
    pub wall_clock_ms: fn() -> u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            log: ring::Limits::default(),
            max_upstream_downtime: Duration::from_secs(60),
            read_your_writes_timeout: Duration::from_secs(1),
            pool_depth_interval: Duration::from_millis(250),
            initial_state_part_bytes: 240 << 10,
            projection_cache_bytes: 32 << 20,
            backfill_wait_timeout: Duration::from_secs(30),
            ahead_cursor_wait: Duration::from_secs(2),
            wall_clock_ms: system_clock,
        }
    }
}

fn system_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What a source says of itself, for one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not yet listed for the first time.
    #[default]
    Connecting,
    /// Listed, and watched without a gap since.
    Live,
    /// Re-watching failed, or the watch has been silent past the idle limit.
    Down {
        /// When its last byte came.
        since: Instant,
        /// A sentence for people.
        reason: Arc<str>,
    },
}

/// How a source is as a whole: `state` of `/api/v1/connections` (docs/protocol.md#snapshots).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// Not all has been listed yet.
    #[default]
    Syncing,
    /// All is listed and watched.
    Live,
    /// Some resource cannot be watched.
    Down,
}

impl SourceState {
    fn from_health(all: &PerResource<Health>) -> SourceState {
        if all.iter().any(|health| matches!(health, Health::Down { .. })) {
            SourceState::Down
        } else if all.iter().any(|health| *health == Health::Connecting) {
            SourceState::Syncing
        } else {
            SourceState::Live
        }
    }
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// Transitions from this moment on.
    Live,
    /// The current state first, once it has reached these versions: a client must not be taken back in time.
    Snapshot {
        /// `reason` of `state.initial`.
        reason: SnapshotReason,
        /// The state is sent when it is not older than these versions.
        not_before: PerResource<ResourceVersion>,
    },
    /// Exactly what came after the cursor, where the log has it; otherwise the current state, with the reason
    /// (docs/protocol.md#full-stream).
    Cursor(Cursor),
}

/// Why a client's picture is (re)placed: `reason` of `state.initial` (docs/protocol.md#full-stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// It has just come.
    Connect,
    /// Its cursor is older than the log.
    Expired,
    /// Its cursor is of another cluster or another history, or is none.
    Foreign,
    /// Its cursor was made under another filter or other rights, or does not cover a resource.
    Filter,
    /// It read too slowly.
    Lagged,
}

impl SnapshotReason {
    /// As it stands in `reason`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SnapshotReason::Connect => "connect",
            SnapshotReason::Expired => "expired",
            SnapshotReason::Foreign => "foreign",
            SnapshotReason::Filter => "filter",
            SnapshotReason::Lagged => "lagged",
        }
    }
}

/// Why a cursor cannot be resumed from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResumeError {
    /// No complete state yet.
    #[error("the first lists are not complete yet")]
    NotSynced,
    /// Older than the log reaches back.
    #[error("the log does not reach back to the cursor")]
    BeforeLog,
    /// In the middle of a difference, which tells its holder nothing true.
    #[error("the log has no history at the cursor, only a difference")]
    InsideCoalesced,
    /// Of another namespace, or not a cursor.
    #[error("the cursor is of another history")]
    ForeignHistory,
    /// Made under another filter or other rights, or not covering a needed resource.
    #[error("the cursor was made under another filter or other rights")]
    ProjectionMismatch,
}

/// What the feed counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    steps: Counter,
    coalesced: Counter,
    renders: Counter,
    snapshots: Counter,
    lagged: Counter,
    backfills: Counter,
    subscriptions: Gauge,
    log_steps: Gauge,
    log_bytes: Gauge,
    projections: Gauge,
    projection_cache_bytes: Gauge,
}

impl Metrics {
    /// Names them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("feed_steps", "Resource versions taken in", self.steps.clone());
        registry.register("feed_coalesced", "Differences taken in after a re-list", self.coalesced.clone());
        registry.register(
            "feed_renders",
            "Steps rendered, once per lens or per client that catches up",
            self.renders.clone(),
        );
        registry.register("feed_snapshots_built", "Initial states encoded", self.snapshots.clone());
        registry.register("feed_lagged", "Clients that fell off the log", self.lagged.clone());
        registry.register("feed_backfills", "Extensions of the log backwards", self.backfills.clone());
        registry.register("feed_subscriptions", "Clients reading now", self.subscriptions.clone());
        registry.register("feed_log_steps", "Steps held for resumes", self.log_steps.clone());
        registry.register("feed_log_bytes", "Bytes charged for the steps held", self.log_bytes.clone());
        registry.register("feed_lenses", "Different lenses in use", self.projections.clone());
        registry.register(
            "feed_lens_bytes",
            "Bytes that lenses keep for their readers",
            self.projection_cache_bytes.clone(),
        );
    }
}

/// A feed, from the readers' side.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

/// What a single reader may be behind before its writer waits: enough for any burst that one write takes up.
const DEDICATED_LOG_LIMITS: ring::Limits = ring::Limits { items: 256, bytes: 256 << 10, age_ms: u64::MAX };

impl Feed {
    /// An empty feed and its only writer.
    #[must_use]
    pub fn new(config: Config) -> (Writer, Feed) {
        Feed::build(config, None, Metrics::default())
    }

    /// A feed of the same upstream for a single reader (docs/architecture.md#feed-contract, item 9): its writer waits for
    /// room instead of dropping what is not read, nothing is cached in it, and what it takes in is noted here as told.
    #[must_use]
    pub fn dedicated(&self) -> (Writer, Feed) {
        let config = Config { log: DEDICATED_LOG_LIMITS, ..self.shared.config };
        let (mut writer, feed) = Feed::build(config, Some(self.shared.clone()), self.shared.metrics.clone());
        if let Some(namespace) = self.namespace() {
            writer.set_namespace(namespace);
        }
        (writer, feed)
    }

    fn build(config: Config, hub: Option<Arc<Shared>>, metrics: Metrics) -> (Writer, Feed) {
        let state = State {
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
        };
        let shared = Arc::new(Shared {
            config,
            log_end: watch::Sender::new(state.log.end_position()),
            health: watch::Sender::default(),
            last_byte_ms: Default::default(),
            history_resets: watch::Sender::default(),
            hub_feed: hub,
            capacity_freed: Notify::new(),
            backfill_requested: Notify::new(),
            state: Mutex::new(state),
            projections: ProjectionRegistry::new(config.projection_cache_bytes, metrics.projection_cache_bytes.clone()),
            metrics,
        });
        (Writer::new(shared.clone()), Feed { shared })
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Where the facts come from, once known.
    #[must_use]
    pub fn namespace(&self) -> Option<NamespaceId> {
        self.shared.state().namespace
    }

    /// What the source says of itself, pods then claims; and a way to wait for it to change.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<PerResource<Health>> {
        self.shared.health.subscribe()
    }

    /// How the source is as a whole, and since when: milliseconds since the Unix epoch, by [`Config::wall_clock_ms`].
    #[must_use]
    pub fn source_state(&self) -> (SourceState, u64) {
        self.shared.state().source_state
    }

    /// Changes each time the source finds another history (an older copy of etcd): whoever watches by himself must list.
    #[must_use]
    pub fn history_resets(&self) -> watch::Receiver<u64> {
        self.shared.history_resets.subscribe()
    }

    /// Changes each time there may be something new to read: the position up to which there is.
    #[must_use]
    pub fn log_end(&self) -> watch::Receiver<u64> {
        self.shared.log_end.subscribe()
    }

    /// Whether both resources have been listed (G10: nothing is served before).
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.shared.state().synced_namespace().is_ok()
    }

    /// Resolves once both resources have been listed.
    pub async fn wait_synced(&self) {
        let mut log_end = self.shared.log_end.subscribe();
        while !self.is_synced() {
            // The sender lives in `self.shared`, so this cannot fail while we are here.
            let _ = log_end.changed().await;
        }
    }

    /// Resolves once [`Feed::wait_synced`] does and the upstream has not been down for [`Config::max_upstream_downtime`]: until then a
    /// `/ws` client would be told a state of long ago and sent away at once.
    pub async fn wait_serviceable(&self) {
        let mut log_end = self.shared.log_end.subscribe();
        self.wait_synced().await;
        while self.shared.state().down_longer_than(self.shared.config.max_upstream_downtime) {
            // Sent when the health changes, too; the sender lives in `self.shared`.
            let _ = log_end.changed().await;
        }
    }

    /// The lens shared by all who look the same way: equal lenses render once.
    #[must_use]
    pub fn projection_cache(&self, projection: Projection, framing: Framing) -> Arc<ProjectionCache> {
        let (shared, count) = self.shared.projections.get(projection, framing);
        if self.shared.hub_feed.is_none() {
            self.shared.metrics.projections.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        shared
    }

    /// A reader that looks through `lens`.
    ///
    /// # Errors
    /// See [`ResumeError`]. [`ResumeError::BeforeLog`] may pass when the log is extended backwards; the others call for
    /// [`StartAt::Snapshot`] with a reason.
    pub fn subscribe(&self, cache: Arc<ProjectionCache>, from: StartAt) -> Result<Subscription, ResumeError> {
        Subscription::start(self.shared.clone(), cache, from)
    }

    /// The current state as one cut (G4): the state that Kubernetes had at `rv` of each resource. It is not older than
    /// anything that any client of this process has been told; that is waited for, up to [`Config::read_your_writes_timeout`].
    ///
    /// # Errors
    /// [`ResumeError::NotSynced`] before both resources have been listed, and when the wait was not enough.
    pub async fn snapshot(&self) -> Result<Snapshot, ResumeError> {
        let mut log_end = self.shared.log_end.subscribe();
        // What is told from now on is no business of this GET: under load somebody is always ahead.
        let told = self.shared.state().delivered.clone();
        let reached = async {
            while !self.shared.state().has_reached(&told) {
                // The sender lives in `self.shared`, so this cannot fail while we are here.
                let _ = log_end.changed().await;
            }
        };
        tokio::time::timeout(self.shared.config.read_your_writes_timeout, reached)
            .await
            .map_err(|_| ResumeError::NotSynced)?;
        let state = self.shared.state();
        let namespace = state.synced_namespace()?;
        Ok(Snapshot {
            namespace,
            inventory: state.inventory.clone(),
            versions: state.latest_versions,
            position: state.log.end_position(),
        })
    }
}

/// The resources that a lens tells of: a cursor of it must cover them.
fn required_resources(projection: &Projection) -> impl Iterator<Item = Resource> {
    let kinds = projection.types.resources();
    Resource::ALL.into_iter().filter(move |resource| kinds[*resource])
}
