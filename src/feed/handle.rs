//! A feed, from the readers' side.

use std::{convert::Infallible, sync::Arc};

use tokio::{sync::watch, time::sleep};

use super::{
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

/// A feed, from the readers' side.
#[derive(Clone, Debug)]
pub struct Feed {
    pub(super) inner: Arc<Inner>,
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
        let config = Config { log: DEDICATED_LOG_LIMITS, ..self.inner.config };
        let (mut writer, feed) = Feed::build(config, Some(self.inner.shared.clone()), self.inner.metrics.clone());
        if let Some(namespace) = self.namespace() {
            writer.set_namespace(namespace);
        }
        (writer, feed)
    }

    fn build(config: Config, hub: Option<Arc<Shared>>, metrics: Metrics) -> (Writer, Feed) {
        let (cached_bytes, in_use) = match hub {
            None => (metrics.projection_cache_bytes.clone(), metrics.projections.clone()),
            Some(_) => Default::default(),
        };
        let projections = ProjectionRegistry::new(config.projection_cache_bytes, cached_bytes, in_use);
        let shared = Arc::new(Shared::new(config, hub, metrics));
        (Writer::new(shared.clone()), Feed { inner: Arc::new(Inner { shared, projections }) })
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Where the facts come from, once known.
    #[must_use]
    pub fn namespace(&self) -> Option<NamespaceId> {
        self.inner.state().namespace
    }

    /// What the source says of itself, pods then claims; and a way to wait for it to change.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<PerResource<Health>> {
        self.inner.health.subscribe()
    }

    /// How the source is as a whole, and since when: milliseconds since the Unix epoch, by [`Config::wall_clock_ms`].
    #[must_use]
    pub fn source_state(&self) -> (SourceState, u64) {
        self.inner.state().source_state
    }

    /// Changes each time the source finds another history (an older copy of etcd): whoever watches by himself must list.
    #[must_use]
    pub fn history_resets(&self) -> watch::Receiver<u64> {
        self.inner.history_resets.subscribe()
    }

    /// Changes each time there may be something new to read: the position up to which there is.
    #[must_use]
    pub fn log_end(&self) -> watch::Receiver<u64> {
        self.inner.log_end.subscribe()
    }

    /// Whether both resources have been listed (G10: nothing is served before).
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.inner.state().synced_namespace().is_ok()
    }

    /// Resolves once both resources have been listed.
    pub async fn wait_synced(&self) {
        let mut log_end = self.inner.log_end.subscribe();
        while !self.is_synced() {
            // The sender lives in `self.shared`, so this cannot fail while we are here.
            let _ = log_end.changed().await;
        }
    }

    /// Resolves once [`Feed::wait_synced`] does and the upstream has not been down for [`Config::max_upstream_downtime`]: until then a
    /// `/ws` client would be told a state of long ago and sent away at once.
    pub async fn wait_serviceable(&self) {
        let mut log_end = self.inner.log_end.subscribe();
        self.wait_synced().await;
        while self.inner.state().down_longer_than(self.inner.config.max_upstream_downtime) {
            // Sent when the health changes, too; the sender lives in `self.shared`.
            let _ = log_end.changed().await;
        }
    }

    /// The lens shared by all who look the same way: equal lenses render once.
    #[must_use]
    pub fn projection_cache(&self, projection: Projection, framing: Framing) -> Arc<ProjectionCache> {
        self.inner.projections.get(projection, framing)
    }

    /// A reader that looks through `lens`.
    ///
    /// # Errors
    /// See [`NotSynced`]. [`NotSynced::BeforeLog`] may pass when the log is extended backwards; the others call for
    /// [`StartAt::Snapshot`] with a reason.
    pub fn subscribe(&self, cache: Arc<ProjectionCache>, from: StartAt) -> Result<Subscription, NotSynced> {
        Subscription::start(self.inner.clone(), cache, from)
    }

    /// The current state as one cut (G4): the state that Kubernetes had at `rv` of each resource. It is not older than
    /// anything that any client of this process has been told; that is waited for, up to [`Config::read_your_writes_timeout`].
    ///
    /// # Errors
    /// [`NotSynced`] before both resources have been listed, and when the wait was not enough.
    pub async fn snapshot(&self) -> Result<Snapshot, NotSynced> {
        let mut log_end = self.inner.log_end.subscribe();
        // What is told from now on is no business of this GET: under load somebody is always ahead.
        let told = self.inner.state().delivered.clone();
        let reached = async {
            while !self.inner.state().has_reached(&told) {
                // The sender lives in `self.shared`, so this cannot fail while we are here.
                let _ = log_end.changed().await;
            }
        };
        tokio::time::timeout(self.inner.config.read_your_writes_timeout, reached).await.map_err(|_| NotSynced)?;
        let state = self.inner.state();
        let namespace = state.synced_namespace()?;
        Ok(Snapshot {
            namespace,
            inventory: state.inventory.clone(),
            versions: state.latest_versions,
            position: state.log.end_position(),
        })
    }

    /// Tells of pool depths as they change, at most once in [`Config::pool_depth_interval`] each, the
    /// last always. For as long as it is polled.
    pub async fn publish_pool_depths(self) -> Infallible {
        let mut log_end = self.inner.log_end.subscribe();
        self.wait_synced().await;
        loop {
            // The sender lives in `self.shared`, so this cannot fail while we are here.
            let _ = log_end.changed().await;
            if !self.inner.state().dirty_pools.is_empty() {
                self.inner.update(State::append_pool_depths);
                sleep(self.inner.config.pool_depth_interval).await;
            }
        }
    }
}
