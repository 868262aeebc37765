//! Metrics of a relay.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::entry::GapReason;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Metrics of a relay.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) upstream_up: Gauge,
    pub(super) upstream_connections: Counter,
    upstream_failures: Family<ReasonLabels, Counter>,
    pub(super) events: Counter,
    pub(super) repeated_events: Counter,
    gaps: Family<ReasonLabels, Counter>,
    pub(super) history_events: Gauge,
    pub(super) history_bytes: Gauge,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let metrics = Metrics {
            upstream_up: Gauge::default(),
            upstream_connections: Counter::default(),
            upstream_failures: Family::default(),
            events: Counter::default(),
            repeated_events: Counter::default(),
            gaps: Family::default(),
            history_events: Gauge::default(),
            history_bytes: Gauge::default(),
        };
        for reason in GapReason::ALL {
            drop(metrics.gaps.get_or_create(&ReasonLabels { reason: reason.name() }));
        }
        metrics
    }
}

impl Metrics {
    /// Adds the metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("relay_upstream_up", "1 while the upstream sends its stream", self.upstream_up.clone());
        registry.register(
            "relay_upstream_connections",
            "Streams that the upstream has started",
            self.upstream_connections.clone(),
        );
        registry.register(
            "relay_upstream_failures",
            "Tries without a stream, and streams that ended, by reason",
            self.upstream_failures.clone(),
        );
        registry.register("relay_events", "Events of the upstream", self.events.clone());
        registry.register(
            "relay_repeated_events",
            "Events that the upstream sent again after a reconnect, and that clients do not get again",
            self.repeated_events.clone(),
        );
        registry.register("relay_gaps", "relay.gap events, by reason; each client's own count", self.gaps.clone());
        registry.register("relay_history_events", "Events in the history", self.history_events.clone());
        registry.register("relay_history_bytes", "Bytes charged for the history", self.history_bytes.clone());
    }

    /// Creates the counter of each reason with the value 0.
    pub(super) fn create_failures(&self, reasons: &[&'static str]) {
        for reason in reasons {
            drop(self.upstream_failures.get_or_create(&ReasonLabels { reason }));
        }
    }

    pub(super) fn count_failure(&self, reason: &'static str) {
        self.upstream_failures.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(super) fn count_gap(&self, reason: GapReason) {
        self.gaps.get_or_create(&ReasonLabels { reason: reason.name() }).inc();
    }
}
