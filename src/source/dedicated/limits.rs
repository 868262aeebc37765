//! Bounds and metrics that all dedicated watchers share.
//!
//! Owns: the slots of connections, the permits of lists, and the bytes that all watchers buffer together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    event::Resource,
    source::{
        error::UpstreamError,
        list_limits::{LINE_BYTES, ListLimits, PAGE_BYTES},
        resource_family::{ErrorFamily, ResourceFamily},
        retry::Backoff,
    },
};

/// Bounds of dedicated watchers.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Maximum number of connections with dedicated watchers; 0: none.
    pub max_connections: usize,
    /// Maximum number of concurrent lists over all connections. It includes the re-lists after an outage.
    pub max_concurrent_lists: usize,
    /// `timeoutSeconds` of a watch. kube-runtime waits 5 s longer, then starts a new watch.
    pub watch_timeout: Duration,
    /// Maximum time until a watch starts, as for the hub.
    pub start_timeout: Duration,
    /// A watch that ends sooner, without a change, counts as failed, as for the hub.
    pub min_watch_duration: Duration,
    /// Maximum bytes of one watch line, as for the hub. kube's client has no limit of its own.
    pub line_bytes: usize,
    /// Maximum time for one page of a list, from the request to the last byte. kube's client has no limit of its own.
    pub page_timeout: Duration,
    /// Maximum bytes of one page. The default is nine times the size of 500 Pods of 14 KB.
    pub page_bytes: usize,
    /// Bounds of one list, over all its pages.
    pub list: ListLimits,
    /// Maximum bytes of the unfinished lines of all dedicated watchers together. It is 16 lines of the maximum size.
    pub all_lines_bytes: usize,
    /// Maximum bytes of the unfinished lists of all dedicated watchers together: pages, and views of the pages before. It is
    /// one page of the maximum size. It also bounds each list, because it is less than `list.view_bytes`.
    pub all_lists_bytes: usize,
    /// Delays between retries of a watch, as for the hub.
    pub backoff: Backoff,
    /// First and maximum delay before a re-list. The delay doubles while each re-list starts within `relist_window` after
    /// the last one. The maximum is at most 5 s, because changes are delivered that much later.
    pub relist_backoff: [Duration; 2],
    /// Time after a re-list in which another one is delayed longer.
    pub relist_window: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_connections: 50,
            max_concurrent_lists: 4,
            watch_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(15),
            min_watch_duration: Duration::from_secs(1),
            line_bytes: LINE_BYTES,
            page_timeout: Duration::from_secs(30),
            page_bytes: PAGE_BYTES,
            list: ListLimits::default(),
            all_lines_bytes: 64 << 20,
            all_lists_bytes: 64 << 20,
            backoff: Backoff::default(),
            relist_backoff: [Duration::from_millis(100), Duration::from_secs(5)],
            relist_window: Duration::from_secs(20),
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
    /// A list exceeds one of its limits.
    ListTooLarge,
    /// Another error after which only a new list helps.
    Error,
}

impl RebuildReason {
    const ALL: [RebuildReason; 5] = [
        RebuildReason::Expired,
        RebuildReason::DecodeError,
        RebuildReason::HistoryReset,
        RebuildReason::ListTooLarge,
        RebuildReason::Error,
    ];

    /// Returns the reason for a new list after this error.
    pub(super) fn after(error: &UpstreamError) -> RebuildReason {
        match error {
            UpstreamError::Expired => RebuildReason::Expired,
            UpstreamError::Decode(_) => RebuildReason::DecodeError,
            UpstreamError::ListTooLarge { .. } => RebuildReason::ListTooLarge,
            _ => RebuildReason::Error,
        }
    }

    /// Returns the reason for logs, and as the value of a metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            RebuildReason::Expired => "expired",
            RebuildReason::DecodeError => "decode_error",
            RebuildReason::HistoryReset => "history_reset",
            RebuildReason::ListTooLarge => "list_too_large",
            RebuildReason::Error => "error",
        }
    }
}

/// Metrics of dedicated watchers.
#[derive(Clone, Debug)]
pub struct Metrics {
    connections: Gauge,
    pub(super) lists: ResourceFamily<Counter>,
    errors: ErrorFamily,
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
            errors: ErrorFamily::default(),
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
        self.errors.register(registry, "dedicated_watcher_errors", "Errors of dedicated watchers, by reason");
        registry.register(
            "dedicated_watcher_rebuilds",
            "Dedicated watchers created again, by reason",
            self.rebuilds.clone(),
        );
    }

    /// Counts an error.
    pub(super) fn record_error(&self, resource: Resource, error: &UpstreamError) {
        self.errors.record(resource, error);
    }

    /// Counts a watcher that is created again.
    pub(super) fn record_rebuild(&self, reason: RebuildReason) {
        self.rebuilds.get_or_create(&RebuildLabels { reason: reason.label() }).inc();
    }
}

/// Configuration, slots, permits, buffers and metrics of all dedicated watchers.
#[derive(Debug)]
pub(super) struct DedicatedLimits {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    pub(super) line_buffers: BufferBudget,
    pub(super) list_buffers: BufferBudget,
    slots: Arc<Semaphore>,
    lists: Arc<Semaphore>,
}

impl DedicatedLimits {
    pub(super) fn new(config: Config, metrics: Metrics) -> DedicatedLimits {
        DedicatedLimits {
            config,
            metrics,
            line_buffers: BufferBudget { used: Arc::default(), max: config.all_lines_bytes },
            list_buffers: BufferBudget { used: Arc::default(), max: config.all_lists_bytes },
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

/// The bytes that buffers of all dedicated watchers use together. Lines and lists have budgets of their own, so that lines
/// that do not end cannot prevent a list.
#[derive(Clone, Debug)]
pub(super) struct BufferBudget {
    used: Arc<AtomicUsize>,
    max: usize,
}

impl BufferBudget {
    /// Returns a charge of no bytes.
    pub(super) fn charge(&self) -> BufferCharge {
        BufferCharge { budget: self.clone(), bytes: 0 }
    }
}

/// The part of a [`BufferBudget`] that one buffer uses. Dropping it releases the bytes.
#[derive(Debug)]
pub(super) struct BufferCharge {
    budget: BufferBudget,
    bytes: usize,
}

impl BufferCharge {
    /// Charges this many bytes instead of the bytes before.
    ///
    /// # Errors
    /// The excess, in words: all buffers together would be too large. The charge is unchanged, and the caller must drop its
    /// buffer.
    pub(super) fn set(&mut self, bytes: usize) -> Result<(), String> {
        let BufferBudget { used, max } = &self.budget;
        if bytes > self.bytes {
            let more = bytes - self.bytes;
            if used.fetch_add(more, Relaxed).saturating_add(more) > *max {
                used.fetch_sub(more, Relaxed);
                return Err(format!("more than {max} bytes in the buffers of all dedicated watchers"));
            }
        } else if bytes < self.bytes {
            used.fetch_sub(self.bytes - bytes, Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Charges more bytes.
    ///
    /// # Errors
    /// As [`BufferCharge::set`].
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), String> {
        self.set(self.bytes.saturating_add(bytes))
    }
}

impl Drop for BufferCharge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_share_one_budget_and_release_it() {
        let budget = BufferBudget { used: Arc::default(), max: 100 };
        let (mut first, mut second) = (budget.charge(), budget.charge());
        assert!(first.set(60).is_ok() && second.set(40).is_ok());
        assert!(second.add(1).is_err(), "101 bytes are over the budget");
        assert!(first.set(50).is_ok() && second.add(10).is_ok());
        drop(first);
        assert!(second.set(100).is_ok());
        drop(second);
        assert_eq!(budget.used.load(Relaxed), 0);
    }
}
