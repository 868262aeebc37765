//! Metrics of the hub, each by resource.
//!
//! Guarantees: every label set that can occur exists from the start, with the value 0. An update in the path of a watch
//! line takes no lock and no hash lookup. Label values come from this program, never from an object.

use std::{
    sync::atomic::AtomicU64,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    event::{PerResource, Resource},
    source::{
        decode::{Decode, DecodedClaim, DecodedPod},
        error::UpstreamError,
        resource_family::{ErrorFamily, ResourceFamily},
    },
};

/// Upper bounds of the buckets of `upstream_list_duration_seconds`, in seconds. One page may take 30 s (`page_timeout`).
const LIST_SECONDS: [f64; 11] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Counters, gauges and a histogram of the hub.
#[derive(Debug)]
pub struct Metrics {
    pub(super) list_pages: ResourceFamily<Counter>,
    pub(super) list_duration: ResourceFamily<Histogram>,
    pub(super) watches_started: ResourceFamily<Counter>,
    pub(super) decode_errors: ResourceFamily<Counter>,
    pub(super) stale_events: ResourceFamily<Counter>,
    pub(super) probes: ResourceFamily<Counter>,
    pub(super) up: ResourceFamily<Gauge>,
    pub(super) synced: ResourceFamily<Gauge>,
    resource_version: ResourceFamily<Gauge>,
    last_received: ResourceFamily<Gauge<f64, AtomicU64>>,
    interruptions: ErrorFamily,
    event_family: Family<EventLabels, Counter>,
    pub(super) events: PerResource<EventCounters>,
    malformed_family: Family<FieldLabels, Counter>,
    /// The counters of `malformed_family` by field, in the order of [`Decode::FIELDS`].
    malformed: PerResource<Vec<(&'static str, Counter)>>,
}

/// Counters of watch lines, by the type of their event.
#[derive(Debug)]
pub(super) struct EventCounters {
    pub(super) added: Counter,
    pub(super) modified: Counter,
    pub(super) deleted: Counter,
    pub(super) bookmark: Counter,
    pub(super) error: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    resource: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FieldLabels {
    resource: &'static str,
    field: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let event_family = Family::<EventLabels, Counter>::default();
        let events = PerResource::from_fn(|resource| {
            let counter =
                |r#type| event_family.get_or_create_owned(&EventLabels { resource: resource.plural(), r#type });
            EventCounters {
                added: counter("added"),
                modified: counter("modified"),
                deleted: counter("deleted"),
                bookmark: counter("bookmark"),
                error: counter("error"),
            }
        });
        let malformed_family = Family::<FieldLabels, Counter>::default();
        let malformed = PerResource::new(DecodedPod::FIELDS, DecodedClaim::FIELDS);
        let malformed = PerResource::from_fn(|resource| {
            let counter =
                |field| malformed_family.get_or_create_owned(&FieldLabels { resource: resource.plural(), field });
            malformed[resource].iter().map(|field| (*field, counter(*field))).collect()
        });
        let last_received = ResourceFamily::<Gauge<f64, _>>::default();
        for resource in Resource::ALL {
            last_received[resource].set(unix_seconds());
        }
        Metrics {
            list_pages: ResourceFamily::default(),
            list_duration: ResourceFamily::new(|| Histogram::new(LIST_SECONDS)),
            watches_started: ResourceFamily::default(),
            decode_errors: ResourceFamily::default(),
            stale_events: ResourceFamily::default(),
            probes: ResourceFamily::default(),
            up: ResourceFamily::default(),
            synced: ResourceFamily::default(),
            resource_version: ResourceFamily::default(),
            last_received,
            interruptions: ErrorFamily::default(),
            event_family,
            events,
            malformed_family,
            malformed,
        }
    }
}

impl Metrics {
    /// Returns one line for each resource with malformed fields: how many, and the count of each field.
    ///
    /// `/readyz?verbose` prints the lines. They contain names of fields and never names of objects, because a client that
    /// must not see an object may see this text.
    #[must_use]
    pub fn malformed_fields(&self) -> Vec<String> {
        let lines = Resource::ALL.into_iter().filter_map(|resource| {
            let counts: Vec<_> = self.malformed[resource]
                .iter()
                .map(|(field, counter)| (*field, counter.get()))
                .filter(|(_, count)| *count > 0)
                .collect();
            let total: u64 = counts.iter().map(|(_, count)| count).sum();
            let each: Vec<_> = counts.iter().map(|(field, count)| format!("{field} ({count})")).collect();
            let noun = if total == 1 { "field" } else { "fields" };
            // "odd" is the word of the response of `/readyz?verbose`; clients may parse it.
            (total > 0).then(|| format!("{}: {total} odd {noun}: {}", resource.plural(), each.join(", ")))
        });
        lines.collect()
    }

    /// Registers all metrics. The caller sets the registry's prefix.
    pub fn register(&self, registry: &mut Registry) {
        self.up.register(registry, "upstream_up", "1 while the resource is watched without a gap");
        self.synced.register(registry, "upstream_synced", "1 after the first complete list of the resource");
        self.last_received.register(
            registry,
            "upstream_last_received_timestamp_seconds",
            "Unix time of the last byte received about the resource, or of the start before the first byte",
        );
        self.resource_version.register(
            registry,
            "upstream_resource_version",
            "Newest resourceVersion of the resource that was processed",
        );
        registry.register("upstream_events", "Watch lines processed, by event type", self.event_family.clone());
        self.list_pages.register(registry, "upstream_list_pages", "Pages of lists read");
        self.list_duration.register(
            registry,
            "upstream_list_duration_seconds",
            "Time from the first request to the last byte of a complete list, all pages included",
        );
        self.watches_started.register(registry, "upstream_watches_started", "Watches started");
        self.interruptions.register(
            registry,
            "upstream_interruptions",
            "Ends of watches and failed requests, by reason",
        );
        self.decode_errors.register(
            registry,
            "upstream_decode_errors",
            "Responses and watch lines that could not be parsed",
        );
        registry.register(
            "upstream_malformed_fields",
            "Fields left out of an object because of a wrong JSON type",
            self.malformed_family.clone(),
        );
        self.stale_events.register(
            registry,
            "upstream_stale_events",
            "Watch lines skipped because their resourceVersion was not newer",
        );
        self.probes.register(registry, "upstream_probes", "LIST limit=1 requests to check a silent API server");
    }

    /// Counts a field that was left out because of its type.
    pub(super) fn record_malformed(&self, resource: Resource, field: &'static str) {
        if let Some((_, counter)) = self.malformed[resource].iter().find(|(name, _)| *name == field) {
            counter.inc();
        }
    }

    /// Counts the end of a watch or a failed request.
    pub(super) fn record_interruption(&self, resource: Resource, error: &UpstreamError) {
        self.interruptions.record(resource, error);
    }

    /// Sets the time of the last byte to now.
    pub(super) fn record_received(&self, resource: Resource) {
        self.last_received[resource].set(unix_seconds());
    }

    /// Sets the newest processed version.
    pub(super) fn record_version(&self, resource: Resource, version: u64) {
        self.resource_version[resource].set(i64::try_from(version).unwrap_or(i64::MAX));
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
pub(super) mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    pub(in crate::source::hub) fn encoded(metrics: &Metrics) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        metrics.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        text
    }

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

    #[test]
    fn every_family_has_both_resources_before_its_first_event() {
        let text = encoded(&Metrics::default());
        let families: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(families.len(), 13, "{text}");
        for family in families {
            for resource in Resource::ALL.map(Resource::plural) {
                let of_family =
                    |line: &&str| line.starts_with(family) && line.contains(&format!("resource=\"{resource}\""));
                assert!(text.lines().any(|line| of_family(&line)), "{family} of {resource} is missing: {text}");
            }
        }
        let sample = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(sample("upstream_interruptions_total{"), 2 * UpstreamError::LABELS.len());
        assert_eq!(sample("upstream_events_total{"), 2 * 5);
    }

    #[test]
    fn last_received_is_the_current_unix_time() {
        let metrics = Metrics::default();
        let before = unix_seconds();
        metrics.record_received(Resource::Pods);
        assert!((before..=unix_seconds()).contains(&metrics.last_received[Resource::Pods].get()));
    }
}
