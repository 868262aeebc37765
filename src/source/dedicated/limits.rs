//! Bounds and metrics that all dedicated watchers share.
//!
//! Owns: the slots of connections and the permits of lists.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::source::resource_family::ResourceFamily;

/// Bounds of dedicated watchers.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Maximum number of connections with dedicated watchers; 0: none.
    pub max_connections: usize,
    /// Maximum number of concurrent lists over all connections. It includes the re-lists after an outage.
    pub max_concurrent_lists: usize,
    /// `timeoutSeconds` of a watch. kube-runtime waits 5 s longer, then starts a new watch.
    pub watch_timeout: Duration,
    /// Maximum time until the head of a response.
    pub start_timeout: Duration,
    /// Maximum time for one page of a list after that. kube's client has no limit of its own.
    pub page_timeout: Duration,
    /// Maximum bytes of one page. The default is nine times the size of 500 Pods of 14 KB.
    pub page_bytes: usize,
    /// Maximum objects in one list. It bounds the memory if a server never ends its pages.
    pub list_objects: usize,
    /// Delay after an error, because kube-runtime has none.
    pub error_delay: Duration,
    /// First and maximum delay before a re-list. The delay doubles while each re-list starts within `healthy_after_quiet`
    /// after the last one. The maximum is at most 5 s, because changes are delivered that much later.
    pub relist_backoff: [Duration; 2],
    /// Silence of a watch after an error that means that it works again. It is longer than a watch takes to fail to start.
    pub healthy_after_quiet: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_connections: 50,
            max_concurrent_lists: 4,
            watch_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(15),
            page_timeout: Duration::from_secs(30),
            page_bytes: 64 << 20,
            list_objects: 500_000,
            error_delay: Duration::from_secs(1),
            relist_backoff: [Duration::from_millis(100), Duration::from_secs(5)],
            healthy_after_quiet: Duration::from_secs(20),
        }
    }
}

/// Why a watcher ended and must be created again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RebuildReason {
    /// Its version has expired. It would request the same version until its connection ends.
    Expired,
    /// A line did not parse. Only a new list delivers its change.
    DecodeError,
    /// The hub found a history reset.
    HistoryReset,
    /// A list has more than `list_objects` objects.
    ListTooLong,
}

impl RebuildReason {
    const ALL: [RebuildReason; 4] =
        [RebuildReason::Expired, RebuildReason::DecodeError, RebuildReason::HistoryReset, RebuildReason::ListTooLong];

    /// Returns the reason for logs, and as the value of a metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            RebuildReason::Expired => "expired",
            RebuildReason::DecodeError => "decode_error",
            RebuildReason::HistoryReset => "history_reset",
            RebuildReason::ListTooLong => "list_too_long",
        }
    }
}

/// Metrics of dedicated watchers.
#[derive(Clone, Debug)]
pub struct Metrics {
    connections: Gauge,
    pub(super) lists: ResourceFamily<Counter>,
    pub(super) errors: ResourceFamily<Counter>,
    rebuilds: Family<RebuildLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RebuildLabels {
    reason: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let rebuilds = Family::<RebuildLabels, Counter>::default();
        for reason in RebuildReason::ALL {
            drop(rebuilds.get_or_create(&RebuildLabels { reason: reason.label() }));
        }
        Metrics {
            connections: Gauge::default(),
            lists: ResourceFamily::default(),
            errors: ResourceFamily::default(),
            rebuilds,
        }
    }
}

impl Metrics {
    /// Registers all metrics. The caller sets the registry's prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "dedicated_watcher_connections",
            "Connections to /ws with dedicated watchers",
            self.connections.clone(),
        );
        self.lists.register(registry, "dedicated_watcher_lists", "Lists started by dedicated watchers");
        self.errors.register(registry, "dedicated_watcher_errors", "Errors of dedicated watchers");
        registry.register(
            "dedicated_watcher_rebuilds",
            "Dedicated watchers created again, by reason",
            self.rebuilds.clone(),
        );
    }

    /// Counts a watcher that is created again.
    pub(super) fn record_rebuild(&self, reason: RebuildReason) {
        self.rebuilds.get_or_create(&RebuildLabels { reason: reason.label() }).inc();
    }
}

/// Configuration, slots, permits and metrics of all dedicated watchers.
#[derive(Clone, Debug)]
pub(super) struct DedicatedLimits {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    slots: Arc<Semaphore>,
    lists: Arc<Semaphore>,
}

impl DedicatedLimits {
    pub(super) fn new(config: Config, metrics: Metrics) -> DedicatedLimits {
        DedicatedLimits {
            config,
            metrics,
            slots: Arc::new(Semaphore::new(config.max_connections)),
            lists: Arc::new(Semaphore::new(config.max_concurrent_lists)),
        }
    }

    /// Returns a slot for one connection, or `None` if all are in use.
    pub(super) fn try_acquire_slot(&self) -> Option<SlotGuard> {
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        self.metrics.connections.inc();
        Some(SlotGuard { connections: self.metrics.connections.clone(), _slot: slot })
    }

    /// Waits for the permit to run one list. Cancel safe.
    pub(super) async fn acquire_list(&self) -> Option<OwnedSemaphorePermit> {
        // It cannot fail, because the semaphore is never closed.
        self.lists.clone().acquire_owned().await.ok()
    }
}

/// The slot of one connection. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct SlotGuard {
    connections: Gauge,
    _slot: OwnedSemaphorePermit,
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.connections.dec();
    }
}
