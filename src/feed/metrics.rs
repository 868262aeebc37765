//! What the feed counts.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// What the feed counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(super) steps: Counter,
    pub(super) coalesced: Counter,
    pub(super) renders: Counter,
    pub(super) snapshots: Counter,
    pub(super) lagged: Counter,
    pub(super) backfills: Counter,
    pub(super) subscriptions: Gauge,
    pub(super) log_steps: Gauge,
    pub(super) log_bytes: Gauge,
    pub(super) projections: Gauge,
    pub(super) projection_cache_bytes: Gauge,
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
