//! The handle of a feed for its readers.

use std::{convert::Infallible, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    collector::StateCollector,
    framing::Framing,
    inner::Inner,
    metrics::Metrics,
    projection_cache::ProjectionCache,
    projection_registry::ProjectionRegistry,
    snapshot::Snapshot,
    state::{Shared, State},
    subscription::Subscription,
    types::{Config, Health, NotSynced, SourceState, StartAt},
    writer::Writer,
};
use crate::{
    event::{NamespaceId, PerResource, projection::Projection},
    ring,
};

/// Bounds of the unread entries of a dedicated feed. Above them its writer waits. They are larger than any burst that
/// one write delivers.
const DEDICATED_LOG_LIMITS: ring::Limits = ring::Limits { items: 256, bytes: 256 << 10, age_ms: u64::MAX };

/// A feed, from the side of its readers.
#[derive(Clone, Debug)]
pub struct Feed {
    pub(super) inner: Arc<Inner>,
}

impl Feed {
    /// Creates an empty feed and its writer.
    #[must_use]
    pub fn new(config: Config) -> (Writer, Feed) {
        Feed::build(config, None, Metrics::default())
    }

    /// Creates a feed of the same namespace for one reader (docs/architecture.md#feed-contract, item 9).
    ///
    /// Its writer waits for capacity instead of evicting unread entries. It caches nothing. What it delivers raises the
    /// delivered watermark of this feed.
    #[must_use]
    pub fn dedicated(&self) -> (Writer, Feed) {
        let config = Config { log: DEDICATED_LOG_LIMITS, ..self.inner.config };
        let (mut writer, feed) = Feed::build(config, Some(self.inner.shared.clone()), self.inner.metrics.clone());
        if let Some(namespace) = self.namespace() {
            writer.set_namespace(namespace);
        }
        (writer, feed)
    }

    fn build(config: Config, hub_feed: Option<Arc<Shared>>, metrics: Metrics) -> (Writer, Feed) {
        // The gauges describe the hub's feed. A dedicated feed has one projection and no cached bytes.
        let (cached_bytes, in_use) = match hub_feed {
            None => (metrics.projection_cache_bytes.clone(), metrics.projections.clone()),
            Some(_) => Default::default(),
        };
        let projections = ProjectionRegistry::new(config.projection_cache_bytes, cached_bytes, in_use);
        let shared = Arc::new(Shared::new(config, hub_feed, metrics));
        (Writer::new(shared.clone()), Feed { inner: Arc::new(Inner { shared, projections }) })
    }

    /// Registers the metrics of the feed. The caller sets the prefix of the registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
        registry.register_collector(Box::new(StateCollector::new(self.inner.shared.clone())));
    }

    /// Returns the watched namespace; `None` before the source has read it.
    #[must_use]
    pub fn namespace(&self) -> Option<NamespaceId> {
        self.inner.state().namespace
    }

    /// Returns a receiver of the health of the source.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<PerResource<Health>> {
        self.inner.health.subscribe()
    }

    /// Returns the state of the source, and when it changed last, in milliseconds since the Unix epoch by
    /// [`Config::wall_clock_ms`].
    #[must_use]
    pub fn source_state(&self) -> (SourceState, u64) {
        self.inner.state().source_state
    }

    /// Returns a receiver of the number of history resets. After a reset, dedicated watchers must list again.
    #[must_use]
    pub fn history_resets(&self) -> watch::Receiver<u64> {
        self.inner.history_resets.subscribe()
    }

    /// Returns a receiver of the end position of the log. It is also notified when the health changes.
    #[must_use]
    pub fn log_end(&self) -> watch::Receiver<u64> {
        self.inner.log_end.subscribe()
    }

    /// Adds a reader of the projections that entries concern. Returns its number, for [`Feed::take_concerned`].
    #[must_use]
    pub fn add_concern_reader(&self) -> usize {
        self.inner.filter_index.add_reader()
    }

    /// Returns [`Group::id`](super::Group::id) of the indexed groups that entries can concern which were appended since the
    /// last call. Groups that entries from `end` on can concern are returned again by the next call.
    #[must_use]
    pub fn take_concerned(&self, reader: usize, end: u64) -> Vec<usize> {
        self.inner.filter_index.take_marked(reader, end)
    }

    /// Returns the current time in milliseconds since the Unix epoch, by [`Config::wall_clock_ms`].
    #[must_use]
    pub fn wall_clock_ms(&self) -> u64 {
        (self.inner.config.wall_clock_ms)()
    }

    /// Returns how long the telemetry of a tunnel is served ([`Config::telemetry_ttl`]).
    #[must_use]
    pub fn telemetry_ttl(&self) -> Duration {
        self.inner.config.telemetry_ttl
    }

    /// Returns whether both resources have been listed. The bridge serves no state before (G10).
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.inner.state().synced_namespace().is_ok()
    }

    /// Waits until both resources have been listed. Cancel safe.
    pub async fn wait_synced(&self) {
        let mut log_end = self.inner.log_end.subscribe();
        while !self.is_synced() {
            // Cannot fail: `self.inner` holds the sender.
            let _ = log_end.changed().await;
        }
    }

    /// Waits until both resources have been listed and the upstream has not been down for
    /// [`Config::max_upstream_downtime`]. Before that, a `/ws` client would receive an old state and be disconnected at
    /// once. Cancel safe.
    pub async fn wait_serviceable(&self) {
        let mut log_end = self.inner.log_end.subscribe();
        self.wait_synced().await;
        while self.inner.state().down_longer_than(self.inner.config.max_upstream_downtime) {
            // Cannot fail: `self.inner` holds the sender. It is notified of health changes as well.
            let _ = log_end.changed().await;
        }
    }

    /// Returns the cache of this projection and framing. Equal ones share a cache, so entries are rendered once for all.
    #[must_use]
    pub fn projection_cache(&self, projection: Projection, framing: Framing) -> Arc<ProjectionCache> {
        self.inner.projections.get(&self.inner.shared, projection, framing)
    }

    /// Creates a subscription.
    ///
    /// # Errors
    /// [`NotSynced`] before both resources have been listed.
    pub fn subscribe(&self, cache: Arc<ProjectionCache>, start_at: StartAt) -> Result<Subscription, NotSynced> {
        Subscription::start(self.inner.clone(), cache, start_at)
    }

    /// Returns the current state: for each resource the state that Kubernetes had at its version (G4).
    ///
    /// It contains everything that this replica had delivered to any client before the call. The call waits for that, at
    /// most [`Config::read_your_writes_timeout`]. Cancel safe.
    ///
    /// # Errors
    /// [`NotSynced`] before both resources have been listed, and after that timeout.
    pub async fn snapshot(&self) -> Result<Snapshot, NotSynced> {
        let mut log_end = self.inner.log_end.subscribe();
        // Not the current watermark of each iteration: under load a dedicated watcher is always ahead of the hub.
        let delivered = self.inner.state().delivered.clone();
        let reached = async {
            while !self.inner.state().has_reached(&delivered) {
                // Cannot fail: `self.inner` holds the sender.
                let _ = log_end.changed().await;
            }
        };
        timeout(self.inner.config.read_your_writes_timeout, reached).await.map_err(|_| {
            self.inner.metrics.read_your_writes_timeouts.inc();
            NotSynced
        })?;
        self.inner.state().snapshot()
    }

    /// Publishes the depths of pools that change, once per [`Config::pool_depth_interval`] at most, and always the last
    /// depth. It never returns.
    pub async fn publish_pool_depths(self) -> Infallible {
        let mut log_end = self.inner.log_end.subscribe();
        self.wait_synced().await;
        loop {
            // Cannot fail: `self.inner` holds the sender.
            let _ = log_end.changed().await;
            if !self.inner.state().dirty_pools.is_empty() {
                self.inner.update(State::append_pool_depths);
                sleep(self.inner.config.pool_depth_interval).await;
            }
        }
    }
}
