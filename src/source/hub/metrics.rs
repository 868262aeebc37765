//! What the hub counts, and how old its last byte is.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::time::Instant;

use crate::event::{PerResource, Resource};

/// Counters and gauges of the hub, each by resource.
#[derive(Debug)]
pub struct Metrics {
    pub(super) lists: Family<ResourceLabel, Counter>,
    pub(super) watches: Family<ResourceLabel, Counter>,
    pub(super) restarts: Family<InterruptionLabels, Counter>,
    pub(super) unreadable: Family<ResourceLabel, Counter>,
    malformed: Family<FieldLabels, Counter>,
    /// The labels of `malformed`, which keeps them to itself: as many at most as projections have fields.
    malformed_fields: Mutex<BTreeSet<FieldLabels>>,
    pub(super) stale: Family<ResourceLabel, Counter>,
    pub(super) probes: Family<ResourceLabel, Counter>,
    pub(super) live: Family<ResourceLabel, Gauge>,
    start: Instant,
    /// Milliseconds from `start` to the last byte.
    last_byte_ms: PerResource<AtomicU64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResourceLabel {
    pub(super) resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct InterruptionLabels {
    pub(super) resource: &'static str,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct FieldLabels {
    resource: &'static str,
    field: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            lists: Family::default(),
            watches: Family::default(),
            restarts: Family::default(),
            unreadable: Family::default(),
            malformed: Family::default(),
            malformed_fields: Mutex::default(),
            stale: Family::default(),
            probes: Family::default(),
            live: Family::default(),
            start: Instant::now(),
            last_byte_ms: PerResource::default(),
        }
    }
}

impl Metrics {
    /// How long ago the last byte about a resource came; since the start where none has come yet.
    #[must_use]
    pub fn since_last_byte(&self, resource: Resource) -> Duration {
        let heard = Duration::from_millis(self.last_byte_ms[resource].load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(heard)
    }

    /// A line for each resource of which fields had to be left out because of their type: which and how often. Names of
    /// fields, never of objects: who may not see an object may see this.
    #[must_use]
    pub fn malformed_fields(&self) -> Vec<String> {
        let fields = self.malformed_fields.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = Resource::ALL.into_iter().filter_map(|resource| {
            let of_resource = fields.iter().filter(|odd| odd.resource == resource.plural());
            let counts: Vec<_> = of_resource.map(|odd| (odd.field, self.malformed.get_or_create(odd).get())).collect();
            let all: u64 = counts.iter().map(|(_, count)| count).sum();
            let each: Vec<_> = counts.iter().map(|(field, count)| format!("{field} ({count})")).collect();
            let word = if all == 1 { "field" } else { "fields" };
            (all > 0).then(|| format!("{}: {all} odd {word}: {}", resource.plural(), each.join(", ")))
        });
        lines.collect()
    }

    /// Names them in a registry, whose prefix the caller has set.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register("upstream_lists", "Pages of lists read", self.lists.clone());
        registry.register("upstream_watches", "Watches started", self.watches.clone());
        registry.register("upstream_restarts", "Ends of watches and failed requests, by reason", self.restarts.clone());
        registry.register("upstream_unreadable", "Answers that could not be parsed", self.unreadable.clone());
        registry.register("upstream_odd_fields", "Fields left out because of their type", self.malformed.clone());
        registry.register(
            "upstream_stale_lines",
            "Watch lines at or below a known version, skipped",
            self.stale.clone(),
        );
        registry.register("upstream_probes", "Lists of one object sent into silence", self.probes.clone());
        registry.register("upstream_live", "Whether the resource is watched without a gap", self.live.clone());
        registry.register_collector(Box::new(LastByteCollector(self.clone())));
    }

    /// A field had to be left out because of its type.
    pub(super) fn record_malformed(&self, resource: Resource, field: &'static str) {
        let odd = FieldLabels { resource: resource.plural(), field };
        self.malformed.get_or_create(&odd).inc();
        self.malformed_fields.lock().unwrap_or_else(PoisonError::into_inner).insert(odd);
    }

    pub(super) fn record_received(&self, resource: Resource, at: Instant) {
        let since_start = at.saturating_duration_since(self.start).as_millis();
        self.last_byte_ms[resource].store(u64::try_from(since_start).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Reads the age when it is asked for.
#[derive(Debug)]
struct LastByteCollector(Arc<Metrics>);

impl Collector for LastByteCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let ages = Family::<ResourceLabel, Gauge<f64, AtomicU64>>::default();
        for resource in Resource::ALL {
            ages.get_or_create(&ResourceLabel { resource: resource.plural() })
                .set(self.0.since_last_byte(resource).as_secs_f64());
        }
        let metric = encoder.encode_descriptor(
            "upstream_last_byte_age_seconds",
            "Time since the last byte about a resource came",
            None,
            ages.metric_type(),
        )?;
        ages.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_fields_are_reported_by_resource_with_counts() {
        let metrics = Metrics::default();
        assert!(metrics.malformed_fields().is_empty());
        for field in ["status.podIP", "metadata.labels", "metadata.labels"] {
            metrics.record_malformed(Resource::Pods, field);
        }
        assert_eq!(metrics.malformed_fields(), ["pods: 3 odd fields: metadata.labels (2), status.podIP (1)"]);
        metrics.record_malformed(Resource::Claims, "status");
        assert_eq!(metrics.malformed_fields()[1], "boilerhouseclaims: 1 odd field: status (1)");
    }
}
